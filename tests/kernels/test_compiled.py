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


def test_they_are_compiled_once_and_kept(tmp_path):
    first, second = run(tmp_path), run(tmp_path, CXX="c++")
    (file,) = (tmp_path / "pdd_lightning").iterdir()
    assert f"INFO Fused CPU kernels: {file}" in first.stderr
    assert first.stdout == second.stdout
    written = file.stat().st_mtime_ns
    run(tmp_path)
    assert file.stat().st_mtime_ns == written


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
def test_without_them_networks_take_torchs_operations(tmp_path, environment, line):
    with_kernels, without = run(tmp_path / "a"), run(tmp_path / "b", **environment)
    assert line in without.stderr
    assert float(without.stdout) == pytest.approx(float(with_kernels.stdout), rel=1e-5)
    assert not list(tmp_path.glob("b/pdd_lightning/*.so"))


def test_a_compiler_that_fails_is_named_with_its_message(tmp_path):
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\n[ $1 = --version ] && exit 0\necho no room >&2\nexit 1\n")
    compiler.chmod(0o755)
    result = run(tmp_path, CXX=str(compiler))
    assert f"{compiler} failed: no room" in result.stderr


def test_a_damaged_file_is_made_again(tmp_path):
    run(tmp_path)
    (file,) = (tmp_path / "pdd_lightning").iterdir()
    file.write_bytes(b"torn")
    assert "WARNING Fused CPU kernels: none" in run(tmp_path).stderr
    assert f"INFO Fused CPU kernels: {file}" in run(tmp_path).stderr
