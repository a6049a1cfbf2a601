"""How kernels are made, kept, and done without."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import logging, torch
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
from pdd_lightning.networks import ConvNet
torch.manual_seed(0)
print(ConvNet(3, 4, 16, width=33)(torch.randn(2, 3, 16, 16)).sum().item())
"""


def run(cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "XDG_CACHE_HOME": str(cache), **environment}
    return subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=variables)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cache, the file that was compiled there, and the process that did it."""
    cache = tmp_path_factory.mktemp("cache")
    process = run(cache)
    (file,) = (cache / "pdd_lightning").glob("*.so")
    return cache, file, process


def test_they_are_compiled_once_and_kept(made):
    cache, file, first = made
    assert f"INFO Fused CPU kernels: {file}" in first.stderr
    written = file.stat().st_mtime_ns
    second = run(cache, CXX="c++")
    assert first.stdout == second.stdout
    assert file.stat().st_mtime_ns == written
    assert sorted(file.parent.iterdir()) == [file.with_suffix(".sha256"), file, file.with_name("lock")]


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"PDD_KERNELS": "off"}, "INFO Fused CPU kernels: off (PDD_KERNELS=off)"),
        ({"PDD_KERNELS": "False"}, "INFO Fused CPU kernels: off (PDD_KERNELS=False)"),
        ({"CXX": "/no/such/compiler"}, "WARNING Fused CPU kernels: none"),
        ({"CXX": "c++ '"}, "WARNING Fused CPU kernels: none"),
        ({"CXX": "false"}, "WARNING Fused CPU kernels: none"),
    ],
)
def test_without_them_networks_take_torchs_operations(tmp_path, environment, line, made):
    without = run(tmp_path, **environment)
    assert line in without.stderr
    assert float(without.stdout) == pytest.approx(float(made[2].stdout), rel=1e-5)
    assert not list(tmp_path.glob("pdd_lightning/*.so"))


def test_a_compiler_that_fails_is_named_with_its_message(tmp_path):
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\n[ $1 = --version ] && exit 0\necho no room >&2\nexit 1\n")
    compiler.chmod(0o755)
    result = run(tmp_path, CXX=str(compiler))
    assert f"{compiler} failed: no room" in result.stderr
