"""A small study from the command line, run by processes as users run it."""

import json
from pathlib import Path

import pytest

from pdd_lightning import DistilledDataset
from pdd_lightning.cli import main
from tests.cli.conftest import image_folder, recipe, run_pdd  # noqa: F401  (fixtures)

STUDY = """
class_path: pdd_lightning.studies.Conditioning
init_args:
  method: {name: tiny, recipe: RECIPE}
  grid: {num_classes: 3, seeds: [0], evaluate: {full_data_epochs: 0}}
"""


@pytest.mark.slow
def test_a_study_runs_and_is_not_repeated(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    study = tmp_path / "study.yaml"
    study.write_text(STUDY.replace("RECIPE", str(recipe)))
    folder = tmp_path / "results"
    result = run_pdd("study", study, "--folder", folder, "--jobs", 2)
    assert result.returncode == 0, result.stdout
    assert "step 6 of 6" in result.stdout
    rows = json.loads((folder / "study.json").read_text())["rows"]
    assert [(row["conditioning"], row["row"]) for row in rows] == [
        ("on", "distilled"),
        ("on", "random real"),
        ("off", "distilled"),
    ]
    assert {row["images"] for row in rows} == {6}
    on, off = (
        DistilledDataset(folder / "runs" / "tiny" / "2x1_6" / name / "seed_0" / "distilled.safetensors").synthetic
        for name in ("on", "off")
    )
    assert on.num_stages == off.num_stages == 2
    assert on.stage(1).sha256() == off.stage(1).sha256(), "independent sets begin with the same first stage"
    assert on.stage(2).sha256() != off.stage(2).sha256()

    main(["study", str(study), "--folder", str(folder)])
    assert "6 of 6 steps are done already" in capsys.readouterr().out
    study.write_text(study.read_text().replace("full_data_epochs: 0", "full_data_epochs: 0, epochs: 9"))
    with pytest.raises(SystemExit, match=r"other words:\n *--epochs: '2' on disk, '9' asked for"):
        main(["study", str(study), "--folder", str(folder)])
