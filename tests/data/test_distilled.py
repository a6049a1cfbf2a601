import json
import random
import subprocess
import sys
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch.utils.data import DataLoader

from pdd_lightning import __version__
from pdd_lightning.augment.zca import ZCA
from pdd_lightning.cli import main
from pdd_lightning.data import distilled
from pdd_lightning.data.distilled import DistilledDataset, join_distilled, save_distilled
from pdd_lightning.data.pixels import Standardized, Whitened
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import ConfigError, DamagedFileError, DataError, PDDError

NAMES = ["circle", "square", "étoile"]
METADATA = {
    "dataset": {"name": "shapes", "fingerprint": "ab" * 32},
    "network": {"class_path": "pdd_lightning.networks.ConvNet", "init_args": {"width": 8}},
    "method": "trajectory_matching",
    "settings": {"iterations": 5, "zca": None},
}
SPACE = Standardized([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])


@pytest.fixture
def path(tmp_path, staged_set):
    return save_distilled(tmp_path / "distilled.safetensors", staged_set, SPACE, NAMES, METADATA)


def test_it_is_used_like_a_torchvision_dataset(path, staged_set):
    dataset = DistilledDataset(path)
    image, label = dataset[4]
    assert len(dataset) == 6
    assert torch.equal(image, staged_set.images[4]) and image.dtype == torch.float32
    assert isinstance(label, int) and label == 1
    images, labels = next(iter(DataLoader(dataset, batch_size=6)))
    assert torch.equal(images, staged_set.images) and torch.equal(labels, staged_set.labels)
    with pytest.raises(IndexError):
        dataset[6]


def test_all_that_was_saved_comes_back(path, staged_set):
    dataset = DistilledDataset(str(path))
    assert dataset.synthetic.sha256() == staged_set.sha256()
    assert dataset.learning_rates == (0.02, None)
    assert (dataset.num_stages, dataset.stages.tolist()) == (2, [1, 1, 1, 2, 2, 2])
    assert dataset.class_names == NAMES
    assert METADATA.items() <= dataset.metadata.items()
    assert dataset.metadata["decode_factor"] == "1"
    assert dataset.metadata["pdd_lightning_version"] == __version__


def test_soft_labels_come_back_as_tensors(tmp_path):
    labels = torch.rand(2, 3).softmax(1)
    soft = SyntheticSet.empty((3, 4, 4)).append(torch.randn(2, 3, 4, 4), labels)
    dataset = DistilledDataset(save_distilled(tmp_path / "soft.safetensors", soft, SPACE, NAMES, {}))
    assert torch.equal(dataset[1][1], labels[1])


def test_union_gives_the_first_stages(path, staged_set):
    dataset = DistilledDataset(path)
    first = dataset.union(1)
    assert isinstance(first, DistilledDataset)
    assert (len(first), first.num_stages, first.learning_rates) == (3, 1, (0.02,))
    assert torch.equal(first.images, staged_set.images[:3])
    assert first.class_names == NAMES and len(dataset) == 6
    with pytest.raises(IndexError, match="stage 3 does not exist"):
        dataset.union(3)


@pytest.mark.parametrize("kind", ["standard", "zca"])
def test_pixels_come_back_on_the_unit_scale(tmp_path, kind):
    originals = torch.rand(60, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    space = SPACE if kind == "standard" else Whitened(ZCA.fit(originals))
    images = space.encode(originals[:3])
    images[0] *= 50
    synthetic = SyntheticSet.empty((3, 4, 4)).append(images, torch.arange(3))
    dataset = DistilledDataset(save_distilled(tmp_path / "d.safetensors", synthetic, space, NAMES, {}))
    pixels = dataset.to_pixels()
    torch.testing.assert_close(pixels[1:], originals[1:3], atol=1e-5, rtol=0)
    assert pixels[0].min() == 0 and pixels[0].max() == 1
    assert dataset.pixels.kind == kind
    torch.testing.assert_close(dataset.pixels.encode(originals), space.encode(originals))


def test_other_tools_can_read_the_file(path):
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
        assert set(file.keys()) == {
            "images", "labels", "stages", "learning_rates", "pixels.mean", "pixels.std",
        }  # fmt: skip
    assert header["method"] == "trajectory_matching"
    assert (header["format_version"], header["pixel_space"]) == ("1", "standard")
    assert json.loads(header["network"]) == METADATA["network"]


def test_saving_again_replaces_the_file_and_leaves_nothing_beside_it(path, staged_set):
    save_distilled(path, staged_set.union(1), SPACE, NAMES, METADATA)
    assert len(DistilledDataset(path)) == 3
    assert list(path.parent.iterdir()) == [path]


def altered_positions(size, header_end):
    """Every byte of the length field, and random ones of the header and of the data."""
    rng = random.Random(0)
    return [*range(8), *rng.sample(range(8, header_end), 250), *rng.sample(range(header_end, size), 250)]


def test_an_altered_byte_anywhere_is_noticed(path):
    good = path.read_bytes()
    header_end = 8 + int.from_bytes(good[:8], "little")
    rng = random.Random(1)
    positions = [*altered_positions(len(good), header_end), header_end - 1]
    for position in positions:
        for mask in (0xFF, 1 << rng.randrange(8)):
            bad = bytearray(good)
            bad[position] ^= mask
            path.write_bytes(bad)
            with pytest.raises(PDDError, match=r"distilled\.safetensors"):
                DistilledDataset(path)
    path.write_bytes(good)
    DistilledDataset(path)


def test_padding_that_json_would_not_notice_is_noticed(path):
    good = path.read_bytes()
    header_end = 8 + int.from_bytes(good[:8], "little")
    padded = good[8:header_end].rstrip(b" ") + b"\t" * 8
    path.write_bytes(len(padded).to_bytes(8, "little") + padded + good[header_end:])
    assert set(safetensors.torch.load_file(path)) >= {"images", "labels"}
    with pytest.raises(DamagedFileError):
        DistilledDataset(path)


def test_a_truncated_file_is_noticed(path):
    good = path.read_bytes()
    for length in [0, 1, 8, 9, 200, len(good) // 2, len(good) - 1]:
        path.write_bytes(good[:length])
        with pytest.raises(DamagedFileError, match=r"distilled\.safetensors is damaged"):
            DistilledDataset(path)
    path.write_bytes(good + b"\0")
    with pytest.raises(DamagedFileError):
        DistilledDataset(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*none\.safetensors: No such file"):
        DistilledDataset(tmp_path / "none.safetensors")
    with pytest.raises(DataError, match="cannot read"):
        DistilledDataset(tmp_path)


def test_a_safetensors_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(DataError, match=r"weights\.safetensors.*not one written by pdd_lightning"):
        DistilledDataset(path)


def test_a_file_of_a_newer_format_says_to_upgrade(tmp_path, staged_set, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(distilled, "FORMAT_VERSION", 2)
        path = save_distilled(tmp_path / "new.safetensors", staged_set, SPACE, NAMES, {})
    with pytest.raises(DataError, match=r"has format 2.*reads 1: upgrade") as caught:
        DistilledDataset(path)
    assert not isinstance(caught.value, DamagedFileError)


def test_an_empty_set_is_not_saved(tmp_path):
    with pytest.raises(DataError, match="no stage yet"):
        save_distilled(tmp_path / "d.safetensors", SyntheticSet.empty((3, 4, 4)), SPACE, NAMES, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("metadata", "message"),
    [({"class_names": ["x"]}, "class_names"), ({"settings": {"rate": torch.ones(1)}}, "JSON")],
)
def test_metadata_that_cannot_be_kept_is_refused(tmp_path, staged_set, metadata, message):
    with pytest.raises(ConfigError, match=message):
        save_distilled(tmp_path / "d.safetensors", staged_set, SPACE, NAMES, metadata)


def test_reading_a_set_does_not_import_lightning(path):
    code = (
        "import sys; from pdd_lightning.data.distilled import DistilledDataset; "
        "from pdd_lightning.data import DistilledDataset; "
        f"len(DistilledDataset({str(path)!r})); "
        "print({'lightning', 'torchmetrics', 'torchvision', 'sklearn'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


@pytest.fixture
def tiled_path(tmp_path, staged_set):
    """A file whose images stand for four each."""
    return save_distilled(tmp_path / "tiled.safetensors", replace(staged_set, decode_factor=2), SPACE, NAMES, METADATA)


def test_images_that_stand_for_several_are_decoded(tiled_path, staged_set):
    dataset = DistilledDataset(tiled_path)
    decoded = replace(staged_set, decode_factor=2).decoded(SPACE)
    assert len(dataset) == 24 and dataset.metadata["decode_factor"] == "2"
    assert torch.equal(dataset.images, decoded.images) and torch.equal(dataset[7][0], decoded.images[7])
    assert [dataset[index][1] for index in range(24)] == dataset.labels.tolist() == decoded.labels.tolist()
    first = dataset.union(1)
    assert len(first) == 12 and set(first.stages.tolist()) == {1} and first.learning_rates == (0.02,)
    assert dataset.to_pixels().shape == (24, 3, 4, 4)


def test_the_stored_form_can_be_had(tiled_path, staged_set):
    dataset = DistilledDataset(tiled_path, stored=True)
    assert torch.equal(dataset.images, staged_set.images) and len(dataset.union(1)) == 3
    assert dataset.synthetic.decode_factor == 2


def test_stored_and_decoded_are_the_same_where_images_stand_for_themselves(path):
    assert DistilledDataset(path).synthetic.sha256() == DistilledDataset(path, stored=True).synthetic.sha256()


def test_what_could_not_be_read_is_not_written(tmp_path, staged_set):
    object.__setattr__(staged_set, "decode_factor", "two")
    with pytest.raises(DataError, match=r"cannot write .*odd\.safetensors: .*decode_factor"):
        save_distilled(tmp_path / "odd.safetensors", staged_set, SPACE, NAMES, {})
    assert not (tmp_path / "odd.safetensors").exists()


def saved(path, blobs, staged, names=None):
    return save_distilled(
        path, staged, blobs.pixels, names or blobs.class_names, {"method": "DM", "settings": {"a": 1}}
    )


def test_joined_stages_follow_each_other(blobs, staged_blobs, tmp_path):
    both = saved(tmp_path / "both.safetensors", blobs, staged_blobs)
    one = saved(tmp_path / "one.safetensors", blobs, staged_blobs.union(1))
    joined = DistilledDataset(join_distilled([one, both, one], tmp_path / "joined.safetensors"), stored=True)
    assert joined.num_stages == 4
    assert joined.learning_rates == (0.02, 0.02, None, 0.02)
    assert torch.equal(joined.synthetic.stage(3).images, staged_blobs.stage(2).images)
    assert joined.metadata["method"] == "DM" and joined.metadata["settings"] == {"a": 1}
    assert joined.metadata["joined"] == [DistilledDataset(path).metadata["sha256"] for path in (one, both, one)]


def test_sets_that_do_not_belong_together_are_not_joined(blobs, staged_blobs, tmp_path):
    one = saved(tmp_path / "one.safetensors", blobs, staged_blobs)
    other = saved(tmp_path / "other.safetensors", blobs, staged_blobs, ["a", "b", "c"])
    with pytest.raises(DataError, match=r"other.safetensors cannot be joined with .*another class names"):
        join_distilled([one, other], tmp_path / "joined.safetensors")
    with pytest.raises(DataError, match="another model space and data"):
        metadata = {"dataset": {"name": "others"}}
        save_distilled(other, staged_blobs, Standardized([0.5] * 3, [0.5] * 3), blobs.class_names, metadata)
        join_distilled([one, other], tmp_path / "joined.safetensors")
    with pytest.raises(ConfigError, match="nothing to join"):
        join_distilled([], tmp_path / "joined.safetensors")


def test_a_folder_is_no_file_to_write(tmp_path):
    with pytest.raises(SystemExit, match=r"--output .* is a folder: name a file"):
        main(["join", "one.safetensors", "--output", str(tmp_path)])
