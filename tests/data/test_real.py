import lightning as L
import pytest
import torch
from torch import nn

from pdd_lightning.data.splits import ImageSplit
from pdd_lightning.errors import ConfigError, DataError


def test_validation_is_taken_out_of_train_and_test_is_left_alone(small_set):
    data = small_set(val_fraction=0.2)
    data.setup()
    source, test, names = small_set().load()
    assert data.val.class_counts(3).tolist() == [4, 4, 2]
    assert data.train.class_counts(3).tolist() == [16, 16, 8]
    assert torch.equal(torch.cat([data.train.indices, data.val.indices]).sort().values, torch.arange(50))
    assert torch.equal(data.val.images, source.images[data.val.indices])
    assert torch.equal(data.test.images, test.images)
    assert (data.class_names, data.num_classes, data.image_shape) == (names, 3, (3, 4, 4))
    assert data.name == "SmallSet"


def test_a_source_without_test_images_gives_all_three_parts_from_train(small_set):
    data = small_set(test_counts=None)
    data.setup()
    parts = (data.train, data.val, data.test)
    assert torch.equal(torch.cat([part.indices for part in parts]).sort().values, torch.arange(50))
    assert all(part.class_counts(3).min() >= 1 for part in parts)


def test_setup_loads_once(small_set):
    data = small_set()
    data.setup("fit")
    train = data.train
    data.setup("test")
    assert data.loads == 1 and data.train is train


def test_using_a_set_before_setup_says_what_to_call(small_set):
    with pytest.raises(RuntimeError, match=r"setup\(\)"):
        _ = small_set().num_classes


def test_statistics_come_from_the_train_part_alone(small_set):
    data = small_set(val_fraction=0.5)
    data.setup()
    expected = (data.train.images.double() / 255).mean((0, 2, 3))
    torch.testing.assert_close(data.pixels.tensors()["mean"].double(), expected, atol=1e-6, rtol=0)


def test_whitening_is_fitted_on_the_train_part_alone(small_set):
    data = small_set(normalization="zca", val_fraction=0.5)
    data.setup()
    expected = (data.train.images.double() / 255).mean(0).flatten()
    assert data.pixels.kind == "zca"
    torch.testing.assert_close(data.pixels.tensors()["mean"].double(), expected, atol=1e-6, rtol=0)


def test_given_statistics_win_over_published_ones(small_set):
    class Published(small_set):
        PUBLISHED_MEAN = (0.5, 0.5, 0.5)
        PUBLISHED_STD = (0.2, 0.2, 0.2)

    default, given = Published(), Published(mean=[0.1, 0.2, 0.3], std=[1.0, 1.0, 1.0])
    for data in (default, given):
        data.setup()
    assert default.pixels.tensors()["std"].tolist() == pytest.approx([0.2, 0.2, 0.2])
    assert given.pixels.tensors()["mean"].tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_equal_sets_share_a_fingerprint_and_different_ones_do_not(small_set):
    def fingerprint(**options):
        data = small_set(**options)
        data.setup()
        return data.fingerprint

    assert fingerprint() == fingerprint()
    variants = [
        {},
        {"seed": 1},
        {"content": 1},
        {"val_fraction": 0.2},
        {"normalization": "zca"},
        {"mean": [0.5] * 3, "std": [0.5] * 3},
        {"mean": [0.5] * 3, "std": [0.6] * 3},
        {"train_counts": (20, 20, 11)},
        {"test_counts": (4, 4, 5)},
        {"test_counts": None},
    ]
    assert len({fingerprint(**options) for options in variants}) == len(variants)


def test_a_renamed_class_changes_the_fingerprint(small_set, monkeypatch):
    data, renamed = small_set(), small_set()
    train, test, names = renamed.load()
    monkeypatch.setattr(renamed, "load", lambda: (train, test, ["disc", *names[1:]]))
    for one in (data, renamed):
        one.setup()
    assert data.fingerprint != renamed.fingerprint


def test_loaders_give_encoded_images_with_labels_and_source_indices(small_set):
    data = small_set(batch_size=7)
    data.setup()
    source, _, _ = small_set().load()
    for loader, part in [(data.train_dataloader(), data.train), (data.val_dataloader(), data.val)]:
        seen = []
        for images, labels, indices in loader:
            pixels = data.pixels.decode(images) * 255
            torch.testing.assert_close(pixels, source.images[indices].float(), atol=1e-3, rtol=0)
            assert torch.equal(labels, source.labels[indices])
            seen += indices.tolist()
        assert sorted(seen) == sorted(part.indices.tolist())
        assert (seen == part.indices.tolist()) == (part is data.val)  # only training is shuffled
    assert len(data.test_dataloader().dataset) == 12


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning 2.6 on recent PyTorch
def test_plain_lightning_training_and_testing(small_set, monkeypatch):
    # As on a machine with many cores, where Lightning would advise worker processes.
    connector = "lightning.pytorch.trainer.connectors.data_connector"
    monkeypatch.setattr(f"{connector}.suggested_max_num_workers", lambda devices: 8)

    class Linear(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(48, 3)

        def training_step(self, batch, _):
            images, labels, _ = batch
            return nn.functional.cross_entropy(self.layer(images.flatten(1)), labels)

        test_step = validation_step = training_step

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    data = small_set(batch_size=16)
    trainer.fit(Linear(), datamodule=data)
    assert trainer.global_step == 3  # 45 training images
    trainer.test(Linear(), datamodule=data)
    assert data.loads == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 0.0}, "val_fraction must be between 0 and 1"),
        ({"val_fraction": 1.0}, "val_fraction must be between 0 and 1"),
        ({"batch_size": 0}, "batch_size must be >= 1"),
        ({"normalization": "pca"}, "'standard' or 'zca', got 'pca'"),
        ({"mean": [0.5] * 3}, "both or neither"),
        ({"mean": [0.5] * 3, "std": [0.5, 0.5, 0.0]}, "std must be positive"),
        ({"mean": [0.5] * 3, "std": [0.5] * 3, "normalization": "zca"}, "no effect"),
    ],
)
def test_settings_that_cannot_work_are_refused(small_set, options, message):
    with pytest.raises(ConfigError, match=message):
        small_set(**options)


def test_one_mean_for_three_channels_is_refused(small_set):
    with pytest.raises(ConfigError, match=r"one value per channel \(3\), got 1"):
        small_set(mean=[0.5], std=[0.5]).setup()


def test_a_class_too_small_for_validation_is_named(small_set):
    with pytest.raises(DataError, match=r"'star' has 1 image.*validation"):
        small_set(train_counts=(5, 5, 1)).setup()


def broken(images=(6, 3, 4, 4), labels=(0, 0, 1, 1, 2, 2)):
    return ImageSplit.in_order(torch.zeros(images, dtype=torch.uint8), torch.tensor(labels))


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (broken(images=(6, 3, 4, 5)), None, "square, got 4x5.*image_size"),
        (broken(labels=(0, 0, 1, 1, 2, 3)), None, r"0\.\.2 for 3 classes, got 0\.\.3"),
        (broken(labels=(0, 0, 1, 1, 2, -1)), None, r"got -1\.\.2"),
        (broken(), broken(labels=(0, 0, 0, 0, 0, 9)), r"got 0\.\.9"),
        (broken(), broken(images=(6, 1, 4, 4)), "test images"),
        (broken(labels=(0, 1)), None, "one label each"),
    ],
)
def test_images_that_networks_cannot_use_are_refused(small_set, monkeypatch, train, test, message):
    data = small_set()
    monkeypatch.setattr(data, "load", lambda: (train, test, ["a", "b", "c"]))
    with pytest.raises(DataError, match=message):
        data.setup()
