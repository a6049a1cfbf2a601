"""Files as the methods' own code leaves them, written here without this package's writers."""

import numpy as np
import pytest
import torch

from pdd_lightning.augment.multiformation import decode
from pdd_lightning.data.formats import ImportOptions, find_format, open_distilled
from pdd_lightning.errors import ConfigError, DamagedFileError, DataError

CLASSES = 3


def numbered(count: int) -> torch.Tensor:
    """Images `[count, 3, 8, 8]` in [0, 1], told apart by their first pixel."""
    images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))
    images[:, 0, 0, 0] = torch.arange(count) / 100
    return images


def numbers(dataset) -> list[int]:
    """Which of `numbered` each image is, in whatever space they are kept."""
    return (dataset.images[:, 0, 0, 0] * 100).round().int().tolist()


@pytest.fixture
def mtt(tmp_path):
    """Writes a folder in MTT's format."""

    def write(images, labels, rate=None):
        torch.save(images, tmp_path / "images_best.pt")
        torch.save(labels, tmp_path / "labels_best.pt")
        if rate is not None:
            torch.save(rate, tmp_path / "syn_lr_best.pt")
        return tmp_path

    return write


@pytest.mark.parametrize("named", ["images_best.pt", "."])
def test_mtt(mtt, blobs, named):
    images = numbered(6) - 0.5
    path = mtt(images, torch.tensor([0, 0, 1, 1, 2, 2])) / named
    dataset = open_distilled(path, blobs)
    assert find_format(path).name == "mtt"
    assert torch.equal(dataset.images, images) and dataset.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (dataset.num_stages, dataset.learning_rates) == (1, (None,))
    assert dataset.class_names == blobs.class_names and "network" not in dataset.metadata
    assert torch.equal(dataset.to_pixels(), blobs.pixels.decode(images).clamp(0, 1))


def test_labels_are_the_files_wherever_the_images_stand(mtt, blobs):
    dataset = open_distilled(mtt(numbered(4), torch.tensor([2, 0, 1, 0])), blobs)
    assert dataset.labels.tolist() == [2, 0, 1, 0] and numbers(dataset) == [0, 1, 2, 3]


def test_mtt_files_of_another_iteration(tmp_path, blobs):
    torch.save(numbered(3), tmp_path / "images_5000.pt")
    torch.save(torch.tensor([0, 1, 2]), tmp_path / "labels_5000.pt")
    assert open_distilled(tmp_path / "images_5000.pt", blobs).labels.tolist() == [0, 1, 2]


def test_mtt_in_whitened_space(mtt, whitened):
    """The pixel space is the data module's, for the file does not say it."""
    images = numbered(3) - 0.5
    dataset = open_distilled(mtt(images, torch.arange(3)), whitened)
    assert torch.equal(dataset.images, images) and dataset.pixels.kind == "zca"
    assert torch.equal(dataset.to_pixels(), whitened.pixels.decode(images).clamp(0, 1))


def test_images_that_were_saved_as_parameters(mtt, blobs):
    images = torch.nn.Parameter(numbered(3))
    dataset = open_distilled(mtt(images, torch.arange(3)), blobs)
    assert torch.equal(dataset.images, images) and not dataset.images.requires_grad


def test_progressive_mtt_is_stage_by_stage(mtt, blobs):
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2])
    path = mtt(numbered(12), labels, torch.tensor(0.03, dtype=torch.float64))
    dataset = open_distilled(path, blobs, ImportOptions(num_stages=2))
    assert dataset.stages.tolist() == [1] * 6 + [2] * 6
    assert torch.equal(dataset.labels, labels) and numbers(dataset) == list(range(12))
    assert dataset.learning_rates == (None, 0.03), "the one rate in the folder is that of its last stage"
    assert numbers(dataset.union(1)) == list(range(6))


@pytest.mark.parametrize("rates", [torch.tensor([0.25, 0.5]), [torch.tensor(0.25), torch.tensor([0.5])], [0.25, 0.5]])
def test_a_rate_for_each_stage(mtt, blobs, rates):
    path = mtt(numbered(6), torch.arange(3).repeat(2), rates)
    assert open_distilled(path, blobs, ImportOptions(num_stages=2)).learning_rates == (0.25, 0.5)
    assert open_distilled(path, blobs).stages.tolist() == [1, 1, 1, 2, 2, 2], "two rates are those of two stages"


def test_soft_labels_are_taken_stage_by_stage(mtt, blobs):
    labels = torch.full((6, 3), 0.25)
    labels[torch.arange(6), torch.tensor([1, 1, 0, 0, 1, 1])] = 0.5  # which says nothing about the stage
    dataset = open_distilled(mtt(numbered(6), labels), blobs, ImportOptions(num_stages=2))
    assert dataset.stages.tolist() == [1, 1, 1, 2, 2, 2] and torch.equal(dataset.labels, labels)


def test_idc(tmp_path, blobs):
    images, labels = numbered(6), torch.tensor([0, 0, 1, 1, 2, 2])
    torch.save([images, labels], tmp_path / "data.pt")
    stored = open_distilled(tmp_path / "data.pt", blobs, ImportOptions(decode_factor=2), stored=True)
    assert find_format(tmp_path / "data.pt").name == "idc"
    assert stored.synthetic.decode_factor == 2 and torch.equal(stored.labels, labels)
    torch.testing.assert_close(stored.to_pixels(), images)
    dataset = open_distilled(tmp_path / "data.pt", blobs, ImportOptions(decode_factor=2))
    decoded, decoded_labels = decode(images, labels, 2)
    torch.testing.assert_close(dataset.to_pixels(), decoded)
    assert torch.equal(dataset.labels, decoded_labels)


def test_idc_needs_the_factor(tmp_path, blobs):
    torch.save([numbered(3), torch.arange(3)], tmp_path / "data.pt")
    with pytest.raises(ConfigError, match=r"data\.pt .* give decode_factor"):
        open_distilled(tmp_path / "data.pt", blobs)


def test_progressive_idc_is_class_by_class(tmp_path, blobs):
    """Per class the images of all stages; the set comes out stage by stage."""
    labels = torch.arange(3).repeat_interleave(6)
    torch.save([numbered(18), labels], tmp_path / "interval_2_data.pt")
    dataset = open_distilled(tmp_path / "interval_2_data.pt", blobs, ImportOptions(num_stages=3, decode_factor=1))
    assert dataset.stages.tolist() == [1] * 6 + [2] * 6 + [3] * 6
    assert dataset.labels.tolist() == [0, 0, 1, 1, 2, 2] * 3
    found = (dataset.to_pixels()[:, 0, 0, 0] * 100).round().int().tolist()
    assert found == [0, 1, 6, 7, 12, 13, 2, 3, 8, 9, 14, 15, 4, 5, 10, 11, 16, 17]


@pytest.mark.parametrize("zipped", [True, False])
def test_dc(tmp_path, blobs, zipped):
    """Several experiments, the last of which is used; accuracies are numpy's numbers; older files are no archives."""
    images, labels = numbered(3) - 0.5, torch.tensor([0, 1, 2])
    content = {
        "data": [[numbered(3), labels.flip(0)], [images, labels]],
        "accs_all_exps": {"ConvNet": [np.float64(0.5), np.float32(0.25), np.int64(3)]},
    }
    path = tmp_path / "res_DSA_CIFAR10_ConvNet_1ipc.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    dataset = open_distilled(path, blobs)
    assert find_format(path).name == "dc"
    assert torch.equal(dataset.images, images) and torch.equal(dataset.labels, labels)


def test_numbers_of_an_older_numpy(tmp_path, blobs):
    content = {"data": [[numbered(3), torch.arange(3)]], "accs_all_exps": [np.float64(0.5)]}
    path = tmp_path / "res_DM.pt"
    torch.save(content, path, _use_new_zipfile_serialization=False)
    old, new = b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n"
    data = path.read_bytes()
    assert (old in data) != (new in data)
    path.write_bytes(data.replace(new, old) if new in data else data.replace(old, new))
    assert open_distilled(path, blobs).labels.tolist() == [0, 1, 2]


def test_images_of_another_size_are_refused(mtt, blobs):
    with pytest.raises(
        DataError, match=r"does not belong to Blobs: its image shape: \(3, 4, 4\), the data's: \(3, 8, 8"
    ):
        open_distilled(mtt(torch.zeros(3, 3, 4, 4), torch.arange(3)), blobs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_stages": 2}, "3 images of a class do not fit 2 stages"),
        ({"num_stages": 0}, "num_stages must be >= 1"),
    ],
)
def test_stages_that_do_not_fit_are_refused(mtt, blobs, options, message):
    path = mtt(numbered(9), torch.arange(3).repeat(3))
    with pytest.raises((ConfigError, DataError), match=message):
        open_distilled(path, blobs, ImportOptions(**options))


def test_rates_that_do_not_fit_are_refused(mtt, blobs):
    path = mtt(numbered(9), torch.arange(3).repeat(3), torch.tensor([0.1, 0.2]))
    with pytest.raises(DataError, match="2 learned rates do not fit 3 stages"):
        open_distilled(path, blobs, ImportOptions(num_stages=3))
    with pytest.raises(DamagedFileError, match="learning_rates"):
        open_distilled(mtt(numbered(3), torch.arange(3), torch.tensor(-0.1)), blobs)
