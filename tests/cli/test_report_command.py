"""`pdd report` on a run that was really made."""

import json
from pathlib import Path

import pytest

from pdd_lightning.cli import main


def test_report_of_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "report.html"
    main(["report", str(run), "--output", str(output)])
    page = output.read_text()
    rows = json.loads((run / "summary.json").read_text())["evaluation"]
    figures = [f"{100 * row['mean']:.1f} ± {100 * row['std']:.1f}" for row in rows]
    for part in ("TrajectoryMatching", "full real", "data:image/png;base64,", *figures):
        assert part in page
    assert "cannot" not in page.partition("How to read this")[2], "a whole run has no notes"
    assert capsys.readouterr().out == f"{output}: runs: 1, studies: 0\n"


def test_text_that_is_no_unicode_is_told(run: Path, tmp_path: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    (tmp_path / "summary.json").write_text(json.dumps({**summary, "dataset": {"name": "half \ud800"}}))
    main(["report", str(tmp_path), "--output", str(tmp_path / "report.html")])
    assert "summary.json is damaged: dataset.name" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(("words", "message"), [([], "no run found in"), (["--output", "."], "is a folder")])
def test_refusals(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["report", str(tmp_path), *words])
    assert message in str(stop.value.code)
