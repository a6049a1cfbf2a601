"""Several distilled sets as the stages of one."""

from pathlib import Path

import pytest
import torch

from pdd_lightning.cli import main
from pdd_lightning.data.distilled import DistilledDataset, join_distilled, save_distilled
from pdd_lightning.data.real import RealDataModule
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import ConfigError, DataError


def saved(path: Path, blobs: RealDataModule, staged: SyntheticSet, names: list[str] | None = None) -> Path:
    return save_distilled(
        path, staged, blobs.pixels, names or blobs.class_names, {"method": "DM", "settings": {"a": 1}}
    )


def test_stages_follow_each_other(blobs: RealDataModule, staged_blobs: SyntheticSet, tmp_path: Path) -> None:
    both = saved(tmp_path / "both.safetensors", blobs, staged_blobs)
    one = saved(tmp_path / "one.safetensors", blobs, staged_blobs.union(1))
    joined = DistilledDataset(join_distilled([one, both, one], tmp_path / "joined.safetensors"), stored=True)
    assert joined.num_stages == 4
    assert joined.learning_rates == (0.02, 0.02, None, 0.02)
    assert torch.equal(joined.synthetic.stage(3).images, staged_blobs.stage(2).images)
    assert joined.metadata["method"] == "DM" and joined.metadata["settings"] == {"a": 1}
    assert joined.metadata["joined"] == [DistilledDataset(path).metadata["sha256"] for path in (one, both, one)]


def test_sets_that_do_not_belong_together_are_refused(
    blobs: RealDataModule, staged_blobs: SyntheticSet, tmp_path: Path
) -> None:
    one = saved(tmp_path / "one.safetensors", blobs, staged_blobs)
    other = saved(tmp_path / "other.safetensors", blobs, staged_blobs, ["a", "b", "c"])
    with pytest.raises(DataError, match=r"other.safetensors cannot be joined with .*another class names"):
        join_distilled([one, other], tmp_path / "joined.safetensors")
    with pytest.raises(ConfigError, match="nothing to join"):
        join_distilled([], tmp_path / "joined.safetensors")


def test_a_folder_is_no_file_to_write(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"--output .* is a folder: name a file"):
        main(["join", "one.safetensors", "--output", str(tmp_path)])
