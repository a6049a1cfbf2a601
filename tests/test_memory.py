"""Memory of a process: kept for later use, and how much there is."""

import os
import platform
import subprocess
import sys

import torch

from pdd_lightning.memory import total_memory

PROGRAM = """
import resource
from pdd_lightning.memory import keep_freed_memory
kept = keep_freed_memory()
import torch
torch.set_num_threads(1)

def work():
    maps = [torch.ones(size * 1_000_000) for size in (2, 5, 7, 3, 7, 5)]

work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    work()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(**environment: str) -> tuple[bool, int]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env={**clean, **environment}
    )
    kept, faults = result.stdout.split()
    return kept == "True", int(faults)


def test_memory_that_was_freed_costs_few_page_faults_when_it_is_used_again():
    kept, faults = run()
    # Who says how memory is to be handled is not overruled.
    chosen, faults_without = run(MALLOC_TOP_PAD_="65536")
    assert not chosen and kept == (platform.libc_ver()[0] == "glibc")
    assert faults < faults_without / 2 or not kept


def test_the_memory_of_this_machine():
    assert total_memory(torch.device("cpu")) > 100e6
