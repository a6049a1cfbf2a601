"""The package works where it is installed, without the repository."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.cli.conftest import PROJECT

SHORT = (
    "--stages.num_stages=1 --stages.iterations=2 --stages.experts.number=1 --stages.transition.epochs=1"
    " --evaluation.num_networks=1 --evaluation.epochs=1 --evaluation.full_data_epochs=0"
)


def build(what: str, folder: Path) -> Path:
    """A wheel or a source archive of the project, built from a copy of what git knows of it."""
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, check=True, capture_output=True, text=True).stdout
    source = folder / "source"
    for name in listed.splitlines():
        if (PROJECT / name).is_symlink() or (PROJECT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-P", PROJECT / name, source / name], check=True)
    program = f"from setuptools.build_meta import build_{what} as build; print(build({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", program], cwd=source, check=True, capture_output=True)
    (made,) = folder.glob("*.whl" if what == "wheel" else "*.tar.gz")
    return made


@pytest.mark.slow
@pytest.mark.parametrize("what", ["wheel", "sdist"])
def test_archives_hold_all_recipes(what: str, tmp_path: Path) -> None:
    made = build(what, tmp_path)
    with zipfile.ZipFile(made) if what == "wheel" else tarfile.open(made) as archive:
        names = archive.namelist() if isinstance(archive, zipfile.ZipFile) else archive.getnames()
    there = {"/".join(Path(name).parts[-3:]) for name in names}
    wanted = {"/".join(path.parts[-3:]) for path in (PROJECT / "configs").glob("*/*.yaml")}
    assert len(wanted) > 60 and wanted <= there
    assert any(name.endswith("zoo/digits_mtt/distilled.safetensors") for name in names)
    assert {"results/templates/page.html", "pdd_lightning/kernels/winograd.cpp"} <= there


@pytest.mark.slow
def test_the_wheel_distils_evaluates_and_reports_by_names(tmp_path: Path) -> None:
    with zipfile.ZipFile(build("wheel", tmp_path)) as wheel:
        wheel.extractall(tmp_path / "installed")
    work = tmp_path / "work"
    work.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}

    def pdd(line: str) -> str:
        command = [sys.executable, "-m", "pdd_lightning", *line.split()]
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    pdd(f"fit digits_mtt --folder runs/a {SHORT}")
    pdd("evaluate runs/a --network resnet10 --epochs 1 --num_networks 1 --output rows.json")
    pdd("report runs/a --output page.html")
    assert json.loads((work / "rows.json").read_text())["rows"]
    assert "TrajectoryMatching" in (work / "page.html").read_text()
    assert "runs/a" in pdd("runs")
