import json
from dataclasses import replace

import pytest
import torch

from pdd_lightning.augment import DSA
from pdd_lightning.data.distilled import save_distilled
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import ConfigError, DataError
from pdd_lightning.evaluation import EvaluationSettings, Subject, stored_subject
from pdd_lightning.evaluation import evaluate as evaluate_subject
from pdd_lightning.evaluation.subject import outputs_of
from pdd_lightning.networks import ConvNet
from pdd_lightning.networks.spec import network_spec
from tests.tiny import NAMES, Blobs

SETTINGS = EvaluationSettings(num_networks=2, random_sets=1, epochs=5, lr=0.05, batch_size=16)
ALONE = replace(SETTINGS, baselines=())


@pytest.fixture
def save(tmp_path, blobs, staged_blobs, factory):
    """Saves a set and returns its path; entries of the metadata can be changed or left out."""

    def write(synthetic=staged_blobs, names=NAMES, leave_out=(), **changes):
        metadata = {
            "network": network_spec(factory),
            "settings": {"augment": "color_flip", "align_corners": False},
            **changes,
        }
        kept = {name: value for name, value in metadata.items() if name not in leave_out}
        return save_distilled(tmp_path / "set.safetensors", synthetic, blobs.pixels, names, kept)

    return write


def evaluate(path, factory=None, real=None, settings=SETTINGS, **others):
    subject = stored_subject(path, real or Blobs(), factory, **others)
    return evaluate_subject(subject, settings, progress=False)


def without_time(rows):
    return [{**row, "seconds": 0} for row in rows]


def test_a_saved_set_is_evaluated_beside_random_real_images(save):
    rows = evaluate(save())
    assert [(row["row"], row["n"], row["images"], row["part"]) for row in rows] == [
        ("distilled", 2, 9, "test"),
        ("random real", 2, 9, "test"),
    ]
    assert all(row["mean"] > 0.4 for row in rows)
    assert list(rows[0]["per_class"]) == NAMES


def test_it_is_the_evaluation_of_the_set_before_it_was_saved(save, blobs, staged_blobs, factory):
    augment = DSA("color_flip", align_corners=False)
    expected = evaluate_subject(Subject(staged_blobs, blobs, blobs.pixels, factory, augment, "val", 7), ALONE)
    rows = evaluate(save(), part="val", seed=7, settings=ALONE)
    assert without_time(rows) == without_time(expected)


@pytest.mark.parametrize("given", [True, False])
def test_the_network_comes_from_the_file_unless_it_is_given(save, given):
    def wide(*shape):
        return ConvNet(*shape, depth=1, width=10)

    network = stored_subject(save(), Blobs(), wide if given else None).network("any")
    assert network.classifier.in_features == (10 * 4 * 4 if given else 8 * 2 * 2)


def test_real_images_are_brought_into_the_space_of_the_set(save):
    """The data module's own normalisation is of no account."""
    path = save()
    expected = without_time(evaluate(path))
    assert without_time(evaluate(path, real=Blobs(normalization="zca"))) == expected


@pytest.mark.parametrize(("seed", "noted"), [(0, False), (1, True), (None, False)])
def test_a_set_distilled_from_another_split_is_noted(save, blobs, seed, noted, capsys):
    """Its images may be among those that are scored; a set that does not say where it comes from passes."""
    source = Blobs(seed=seed or 0)
    source.setup()
    about = {} if seed is None else {"dataset": {"name": "Blobs", "fingerprint": source.fingerprint}}
    stored_subject(save(**about), Blobs())
    assert ("another split" in capsys.readouterr().out) == noted


@pytest.mark.parametrize("names", [["red", "green", "violet"], NAMES[::-1], [*NAMES, "white"]])
def test_a_set_of_other_classes_is_refused(save, names):
    with pytest.raises(DataError, match=r"set\.safetensors does not belong to Blobs: its class names: \['"):
        stored_subject(save(names=names), Blobs())


def test_a_set_of_other_image_shapes_is_refused(save):
    other = SyntheticSet.empty((3, 16, 16)).append(torch.zeros(3, 3, 16, 16), torch.arange(3))
    with pytest.raises(DataError, match=r"its image shape: \(3, 16, 16\), the data's: \(3, 8, 8\)"):
        stored_subject(save(other), Blobs())


def test_a_file_that_names_no_network_asks_for_one(save, factory):
    path = save(leave_out=["network"])
    with pytest.raises(DataError, match=r"set\.safetensors does not name .* --network"):
        stored_subject(path, Blobs())
    assert stored_subject(path, Blobs(), factory).factory is factory


def test_a_network_of_unknown_origin_is_not_imported(save):
    path = save(network={"class_path": "os.system", "init_args": {}})
    with pytest.raises(ConfigError, match=r"stored network os\.system"):
        stored_subject(path, Blobs())


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.safetensors"):
        stored_subject(tmp_path / "none.safetensors", Blobs())


@pytest.mark.parametrize("stated", [True, False])
def test_the_augmentation_is_that_of_the_file_or_else_the_default(save, stated):
    settings = {"augment": "color_crop", "align_corners": False, "augment_together": True}
    path = save(settings=settings) if stated else save(leave_out=["settings"])
    expected = DSA("color_crop", align_corners=False, together=True) if stated else DSA()
    assert vars(stored_subject(path, Blobs()).augment) == vars(expected)


def test_a_set_whose_images_stand_for_several_is_counted_as_stored(save, staged_blobs):
    rows = evaluate(save(replace(staged_blobs, decode_factor=2)), settings=replace(SETTINGS, num_networks=1, epochs=1))
    assert [(row["row"], row["images"]) for row in rows] == [("distilled", 9), ("random real", 9)]


def test_features_are_what_the_classifier_is_given(blobs, factory):
    network = factory(3, 3, 8)
    images = torch.rand(5, 3, 8, 8)
    features, logits = outputs_of(network, images, batch_size=2)
    torch.testing.assert_close(logits, network(images))
    torch.testing.assert_close(network.classifier(features), network(images))


def test_what_is_not_said_is_the_usual(save):
    subject = stored_subject(save(), Blobs())
    assert (subject.part, subject.seed, subject.device.type, subject.experts) == ("test", 0, "cpu", None)
    assert (subject.method, stored_subject(save(method="MTT"), Blobs()).method) == ("distilled", "MTT")


def test_a_row_says_all_that_a_reader_must_know(save):
    settings = replace(SETTINGS, num_networks=1, augment="crop", every_stage=True)
    first, last, *_ = json.loads(json.dumps(evaluate(save(), settings=settings, seed=5)))
    expected = {
        "row": "distilled",
        "protocol": "progressive",
        "init": "fresh",
        "labels": "hard",
        "part": "test",
        "scored": 24,
        "seed": 5,
        "augment": "crop",
        "stage": 2,
        "num_stages": 2,
        "images": 9,
        "steps": 10,
        "epochs": [5, 5],
        "learning_rates": [pytest.approx(0.02), 0.05],
        "n": 1,
    }
    assert expected.items() <= last.items()
    assert last["network"]["init_args"] == {"depth": 2, "width": 8}
    assert last["training"] == {
        "batch_size": 16,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "gamma": 0.1,
        "cutmix": 0.0,
        "milestones": [0.5],
    }
    assert (first["stage"], first["images"], first["steps"]) == (1, 3, 5)
