import json
from dataclasses import replace

import pytest
import torch

from pdd_lightning.augment import DSA
from pdd_lightning.data.distilled import save_distilled
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import ConfigError, DataError
from pdd_lightning.evaluation import EvaluationSettings, Subject, evaluate_file, evaluation_tasks
from pdd_lightning.evaluation import stored as stored_module
from pdd_lightning.networks import ConvNet
from pdd_lightning.networks.spec import network_spec
from pdd_lightning.results.store import rows_from_results
from tests.tiny import NAMES, Blobs

SETTINGS = EvaluationSettings(num_networks=2, epochs=5, lr=0.05, batch_size=16)
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


def evaluate(path, factory=None, real=None, settings=SETTINGS, **options):
    return evaluate_file(path, real or Blobs(), factory, settings, **options)


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
    augment, device = DSA("color_flip", align_corners=False), torch.device("cpu")
    tasks = evaluation_tasks(Subject(staged_blobs, blobs, blobs.pixels, factory, augment, "val", 7, device), ALONE)
    expected = rows_from_results([task.run() for task in tasks], NAMES)
    rows = evaluate(save(), part="val", seed=7, settings=ALONE)
    assert without_time(rows) == without_time(expected)


@pytest.mark.parametrize("given", [True, False])
def test_the_network_comes_from_the_file_unless_it_is_given(save, monkeypatch, given):
    widths = []
    initialise = ConvNet.__init__

    def watch(self, *args, **kwargs):
        initialise(self, *args, **kwargs)
        widths.append(self.classifier.in_features)

    def wide(*shape):
        return ConvNet(*shape, depth=1, width=10)

    path = save()
    monkeypatch.setattr(ConvNet, "__init__", watch)
    evaluate(path, wide if given else None, settings=ALONE)
    assert set(widths) == ({10 * 4 * 4} if given else {8 * 2 * 2})


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
    evaluate(save(**about), settings=replace(ALONE, num_networks=1, epochs=1), part="val")
    assert ("another split" in capsys.readouterr().out) == noted


@pytest.mark.parametrize("names", [["red", "green", "violet"], NAMES[::-1], [*NAMES, "white"]])
def test_a_set_of_other_classes_is_refused(save, names):
    with pytest.raises(DataError, match=r"set\.safetensors does not belong to Blobs: its class names: \['"):
        evaluate(save(names=names))


def test_a_set_of_other_image_shapes_is_refused(save):
    other = SyntheticSet.empty((3, 16, 16)).append(torch.zeros(3, 3, 16, 16), torch.arange(3))
    with pytest.raises(DataError, match=r"its image shape: \(3, 16, 16\), the data's: \(3, 8, 8\)"):
        evaluate(save(other))


def test_a_file_that_names_no_network_asks_for_one(save, factory):
    path = save(leave_out=["network"])
    with pytest.raises(DataError, match=r"set\.safetensors does not say .* --network"):
        evaluate(path)
    assert evaluate(path, factory, settings=ALONE)[0]["n"] == 2


def test_a_network_of_unknown_origin_is_not_imported(save):
    path = save(network={"class_path": "os.system", "init_args": {}})
    with pytest.raises(ConfigError, match=r"stored network os\.system"):
        evaluate(path)


def test_a_file_without_settings_is_evaluated(save):
    assert evaluate(save(leave_out=["settings"]), settings=ALONE)[0]["n"] == 2


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.safetensors"):
        evaluate(tmp_path / "none.safetensors")


def test_a_set_whose_images_stand_for_several_is_evaluated_decoded(save, blobs, staged_blobs, monkeypatch):
    """With the augmentation it was distilled with, and counted as stored."""
    augmentations = []
    make_tasks = stored_module.evaluation_tasks

    def watch(subject, settings):
        augment = subject.augment
        augmentations.append((augment.strategy, augment.align_corners, augment.together))
        return make_tasks(subject, settings)

    monkeypatch.setattr(stored_module, "evaluation_tasks", watch)
    settings = {"augment": "color_crop", "align_corners": False, "augment_together": True}
    rows = evaluate(save(replace(staged_blobs, decode_factor=2), settings=settings))
    assert augmentations == [("color_crop", False, True)]
    assert [(row["row"], row["images"]) for row in rows] == [("distilled", 9), ("random real", 9)]


def test_results_are_kept_beside_and_said_to_be_used(save, tmp_path, capsys):
    path, results = save(), tmp_path / "results.jsonl"
    first = evaluate(path, results=results)
    assert "trained before" not in capsys.readouterr().out
    assert evaluate(path, results=results) == first  # even the seconds
    assert f"4 of 4 networks were trained before: their results are in {results}" in capsys.readouterr().out


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
