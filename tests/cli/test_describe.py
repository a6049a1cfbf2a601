"""`pdd describe` from the command line."""

import json
from pathlib import Path

import pytest

from pdd_lightning.cli import main

FEW = ["--num_networks", "1", "--training.epochs", "1", "--device", "cpu"]


def test_it_prints_a_table_and_writes_rows_and_a_picture(
    run: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, figure = tmp_path / "d" / "rows.json", tmp_path / "f" / "figure.png"
    words = ["describe", str(run / "distilled.safetensors"), "--data", "ImageFolder", "--data.root", str(image_folder)]
    main([*words, *FEW, "--output", str(output), "--figure", str(figure)])
    written = json.loads(output.read_text())
    assert [row["row"] for row in written["rows"]] == ["stage 1", "stage 2", "real, held out"]
    assert written["training"]["epochs"] == 1 and written["network"]["init_args"]["width"] == 4
    assert "stage 2" in capsys.readouterr().out
    assert len((tmp_path / "d" / "rows.networks.jsonl").read_text().splitlines()) == 1
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_an_output_that_is_a_folder_is_refused_before_the_work(run: Path, image_folder: Path, tmp_path: Path) -> None:
    words = ["describe", str(run / "distilled.safetensors"), "--data", "ImageFolder", "--data.root", str(image_folder)]
    with pytest.raises(SystemExit, match=r"--figure .* is a folder: name a file"):
        main([*words, *FEW, "--figure", str(tmp_path)])
