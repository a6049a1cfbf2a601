import json
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from pdd_lightning.augment import DSA
from pdd_lightning.data.splits import EncodedImages
from pdd_lightning.errors import ConfigError, DamagedFileError
from pdd_lightning.experts import ExpertRecorder, ExpertSettings, StartPoint, TrajectoryStore
from pdd_lightning.experts import recorder as recorder_module
from pdd_lightning.networks import flatten, unflatten
from pdd_lightning.training import TrainingSettings, score_network
from tests.tiny import Watched, image_set

SETTINGS = ExpertSettings(number=2, lr=0.05, batch_size=16)
TRANSITION = TrainingSettings(epochs=20, lr=0.05, batch_size=16)
EPOCHS = 3


@pytest.fixture
def recorder(blobs, factory):
    """Makes recorders; other settings, another augmentation or seed are the test's choice."""

    def make(settings=SETTINGS, augment="color_crop", align_corners=True, seed=5, augment_together=False, **others):
        augmentation = DSA(augment, align_corners, augment_together)
        return ExpertRecorder(factory, blobs, settings, augmentation, seed, torch.device("cpu"), **others)

    return make


@pytest.fixture
def first(recorder, tmp_path):
    """Experts of the first stage."""
    return recorder().record(tmp_path / "first", EPOCHS)


@pytest.fixture
def start(first, staged_blobs):
    """Makes start points after the two stages of `staged_blobs`."""

    def make(epochs=TRANSITION.epochs, at_once=1):
        return StartPoint(lambda: first, ((staged_blobs, replace(TRANSITION, epochs=epochs)),), at_once)

    return make


def snapshots(store, expert, epochs=EPOCHS):
    return torch.stack([store.segment(expert, epoch, epoch)[0] for epoch in range(epochs + 1)])


def files(store):
    return [store.file(expert).read_bytes() for expert in range(store.number)]


def times(store):
    """When each file was written."""
    return [store.file(expert).stat().st_mtime_ns for expert in range(store.number)]


def val_accuracy(snapshot, blobs, factory):
    """Accuracy on the validation part of a network with the parameters of a snapshot."""
    network = factory(3, 3, 8)
    network.load_state_dict(unflatten(snapshot, dict(network.named_parameters())))
    images = EncodedImages(blobs.val.images, blobs.pixels)
    return score_network(network, images, blobs.val.labels, 3).accuracy


def test_equal_seeds_give_equal_files_and_other_seeds_others(recorder, first, tmp_path):
    torch.manual_seed(1234)  # the global generator does not matter
    assert files(recorder().record(tmp_path / "again", EPOCHS)) == files(first)
    others = files(recorder(seed=6).record(tmp_path / "other", EPOCHS))
    assert not set(others) & set(files(first))


def test_an_expert_does_not_depend_on_how_many_there_are(recorder, first, tmp_path):
    more = recorder(replace(SETTINGS, number=3)).record(tmp_path / "more", EPOCHS)
    assert files(more)[:2] == files(first)
    starts = {tuple(snapshots(more, expert)[0].tolist()) for expert in range(3)}
    assert len(starts) == len(set(files(more))) == 3


def test_recording_leaves_the_global_generator_alone(recorder, tmp_path):
    before = torch.get_rng_state()
    recorder().record(tmp_path, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_snapshots_follow_the_training(first, blobs, factory):
    recorded = snapshots(first, 0)
    moves = (recorded[1:] - recorded[:-1]).norm(dim=1)
    assert recorded.shape == (EPOCHS + 1, flatten(dict(factory(3, 3, 8).named_parameters())).numel())
    assert bool((moves > 0.01).all())
    assert val_accuracy(recorded[-1], blobs, factory) == pytest.approx(first.records[0].end_accuracy)
    assert val_accuracy(recorded[0], blobs, factory) == pytest.approx(first.records[0].start_accuracy)


def test_longer_recordings_begin_like_shorter_ones(recorder, first, tmp_path):
    """Also: a snapshot is a copy, which further training does not change."""
    longer = recorder().record(tmp_path / "longer", EPOCHS + 2)
    for expert in range(2):
        assert torch.equal(snapshots(longer, expert), snapshots(first, expert))


def test_curves_have_one_entry_per_epoch(first):
    for record in first.records:
        assert len(record.losses) == len(record.accuracies) == EPOCHS
        assert all(0 <= accuracy <= 1 for accuracy in record.accuracies)
        assert record.losses[-1] < record.losses[0]
        assert record.record_seconds > 0


def test_shorter_epochs_see_other_images_each_time(blobs, tmp_path):
    """Neither do they leave forgetting scores, nor are their folders those of whole epochs."""
    settings = replace(SETTINGS, number=1, images_per_epoch=20)

    def record(settings):
        return ExpertRecorder(Watched, blobs, settings, DSA("none"), 5, torch.device("cpu")).record(tmp_path, EPOCHS)

    Watched.seen.clear()
    store = record(settings)
    assert [len(batch) for batch in Watched.seen] == [16, 4] * EPOCHS
    epochs = [image_set(torch.cat(Watched.seen[first : first + 2])) for first in range(0, 2 * EPOCHS, 2)]
    assert [len(images) for images in epochs] == [20] * EPOCHS
    assert epochs[0] != epochs[1] != epochs[2]
    assert store.forgetting(0) is None
    record(settings)
    with pytest.raises(ConfigError, match="images_per_epoch: 20 on disk, None asked for"):
        record(replace(settings, images_per_epoch=None))


def test_longer_epochs_see_all_images_several_times(blobs, tmp_path):
    settings = replace(SETTINGS, number=1, images_per_epoch=2 * len(blobs.train) + 3)
    Watched.seen.clear()
    store = ExpertRecorder(Watched, blobs, settings, DSA("none"), 5, torch.device("cpu")).record(tmp_path, 1)
    seen = torch.cat(Watched.seen)
    assert len(seen) == settings.images_per_epoch
    counts = seen.flatten(1).unique(dim=0, return_counts=True)[1].tolist()
    assert sorted(counts) == [2] * (len(blobs.train) - 3) + [3] * 3
    (accuracy,) = store.records[0].accuracies
    assert 0 <= accuracy <= 1


def test_experts_learn(recorder, tmp_path):
    store = recorder(replace(SETTINGS, momentum=0.9)).record(tmp_path, 15)
    assert min(record.end_accuracy for record in store.records) > 0.8


def test_no_epochs_store_the_start_points_only(recorder, first, tmp_path):
    store = recorder().record(tmp_path / "starts", 0)
    for expert, record in enumerate(store.records):
        assert torch.equal(snapshots(store, expert, epochs=0), snapshots(first, expert)[:1])
        assert (record.losses, record.end_accuracy) == ([], record.start_accuracy)
        with pytest.raises(DamagedFileError, match="epochs 0 and 1"):
            store.segment(expert, 0, 1)


def test_later_experts_start_where_the_former_ones_started(recorder, first, start, tmp_path):
    store = recorder().record(tmp_path / "later", 1, start(epochs=0))
    for expert in range(2):
        assert torch.equal(snapshots(store, expert, 1)[0], snapshots(first, expert)[0])


def test_start_points_alone_are_enough_to_go_on_from(recorder, start, tmp_path):
    """As methods without trajectories leave them."""
    starts = recorder().record(tmp_path / "starts", 0)
    later = recorder().record(tmp_path / "later", 0, replace(start(epochs=0), previous=lambda: starts))
    assert files(later) == files(starts)


def test_later_experts_are_trained_on_the_union_first(recorder, first, start, blobs, factory, tmp_path):
    store = recorder().record(tmp_path / "later", 1, start())
    for expert, record in enumerate(store.records):
        theta = snapshots(store, expert, 1)[0]
        assert not torch.equal(theta, snapshots(first, expert)[0])
        assert val_accuracy(theta, blobs, factory) == pytest.approx(record.start_accuracy)
        assert record.start_accuracy > max(0.5, first.records[expert].start_accuracy)
        assert len(record.losses) == 1 and record.start_seconds > 0


def test_without_former_experts_the_first_start_from_their_initialisation(recorder, first, start, tmp_path):
    """What methods without trajectories have after stage 1 is what those with them have."""
    with_experts = recorder().record(tmp_path / "later", 0, start())
    without = recorder().record(tmp_path / "alone", 0, replace(start(), previous=lambda: None))
    assert files(without) == files(with_experts)


@pytest.mark.parametrize("at_once", [2, 3, 5])
def test_start_points_trained_at_once_are_those_trained_one_by_one(recorder, first, start, tmp_path, at_once):
    """Up to rounding, wherever the groups are cut; how many at once is not a setting that folders differ by."""
    three = recorder(replace(SETTINGS, number=3))
    common = replace(start(at_once=at_once), previous=lambda: None)
    together = three.record(tmp_path / "together", 1, common)
    alone = three.record(tmp_path / "alone", 1, replace(common, at_once=1))
    assert files(together) != files(alone)
    for expert in range(3):
        torch.testing.assert_close(snapshots(together, expert, 1), snapshots(alone, expert, 1), rtol=1e-3, atol=1e-4)
    assert all(record.start_seconds > 0 for record in together.records)
    three.record(tmp_path / "together", 1, replace(common, at_once=1))


def test_an_expert_has_the_same_companions_whichever_are_missing(recorder, start, tmp_path):
    three, common = recorder(replace(SETTINGS, number=3)), replace(start(at_once=2), previous=lambda: None)
    store = three.record(tmp_path, 1, common)
    whole, before = files(store), times(store)
    store.file(1).unlink()
    store = three.record(tmp_path, 1, common)
    assert files(store) == whole
    assert [time == old for time, old in zip(times(store), before, strict=True)] == [True, False, True]


def test_former_experts_are_opened_only_to_record(recorder, start, tmp_path):
    recorder().record(tmp_path / "later", 0, start())

    def refuse():
        raise AssertionError("nothing had to be recorded")

    recorder().record(tmp_path / "later", 0, replace(start(), previous=refuse))


@pytest.mark.parametrize(
    "change", [{"augment": "crop"}, {"align_corners": False}, {"augment_together": True}, {"seed": 6}]
)
def test_experts_of_other_settings_are_refused(recorder, first, change):
    with pytest.raises(ConfigError, match=rf"other settings:\s+{next(iter(change))}: .* asked for"):
        recorder(**change).record(first.folder, EPOCHS)


def test_start_points_of_another_union_are_refused(recorder, start, tmp_path):
    recorder().record(tmp_path / "later", 0, start())
    ((union, training),) = start().phases
    other = replace(start(), phases=((union.union(1), training),))
    with pytest.raises(ConfigError, match=r"start\.union"):
        recorder().record(tmp_path / "later", 0, other)


@pytest.mark.parametrize("interrupted", [False, True])
def test_recorded_experts_are_not_touched_again(recorder, first, interrupted):
    """Where one is missing, that one alone is recorded."""
    whole, before = files(first), times(first)
    if interrupted:
        first.file(1).unlink()
    store = recorder().record(first.folder, EPOCHS)
    assert [time == old for time, old in zip(times(store), before, strict=True)] == [True, not interrupted]
    assert files(store) == whole and len(store.records) == 2


def test_damaged_files_are_named(recorder, first):
    first.file(1).write_bytes(first.file(1).read_bytes()[:-4])
    with pytest.raises(DamagedFileError, match=r"expert_001\.safetensors\. Restore them .* or delete them"):
        recorder().record(first.folder, EPOCHS)


def test_deleted_files_are_recorded_again(recorder, first):
    whole = files(first)
    before = first.file(0).stat().st_mtime_ns
    first.file(1).unlink()
    store = recorder().record(first.folder, EPOCHS)
    assert files(store) == whole and store.damaged() == []
    assert store.file(0).stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "bad",
    [
        {"number": 0},
        {"images_per_epoch": 0},
        {"epochs": -1},
        {"lr": 0.0},
        {"batch_size": 0},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        ExpertSettings(**bad)


def test_forgetting_is_that_of_the_training_images(recorder, blobs, tmp_path):
    """Errors over all epochs and examples are what the curve of accuracies says."""
    store = recorder().record(tmp_path, EPOCHS)
    for expert, record in enumerate(store.records):
        found = store.forgetting(expert)
        assert len(found.counts) == len(blobs.train)
        wrong = sum(1 - accuracy for accuracy in record.accuracies) * len(blobs.train)
        assert int(found.errors.sum()) == pytest.approx(wrong)
        assert torch.equal(found.learned, found.errors < EPOCHS)
        assert 0 < found.counts.sum() <= len(blobs.train)
    starts = recorder().record(tmp_path / "starts", 0)
    assert starts.forgetting(0) is None


def test_experts_are_trained_on_the_kept_examples(recorder, first, blobs, tmp_path):
    half = blobs.train.subset(torch.arange(0, len(blobs.train), 2))
    store = recorder().record(tmp_path / "half", EPOCHS, examples=half)
    assert len(store.forgetting(0).counts) == len(half)
    assert torch.equal(snapshots(store, 0)[0], snapshots(first, 0)[0])
    assert not torch.equal(snapshots(store, 0), snapshots(first, 0))


def test_the_manifest_knows_the_kept_examples(recorder, first, blobs, tmp_path):
    recorder().record(first.folder, EPOCHS, examples=blobs.train)
    assert "examples" not in json.loads((first.folder / "manifest.json").read_text())["settings"]
    half, other = (blobs.train.subset(torch.arange(start, len(blobs.train), 2)) for start in (0, 1))
    recorder().record(tmp_path / "half", 1, examples=half)
    recorder().record(tmp_path / "half", 1, examples=half)
    for examples in (other, None):
        with pytest.raises(ConfigError, match=r"examples: .* asked for"):
            recorder().record(tmp_path / "half", 1, examples=examples)


def test_start_points_do_not_depend_on_the_kept_examples(recorder, start, blobs, tmp_path):
    recorder().record(tmp_path, 0, start(), examples=blobs.train.subset(torch.arange(5)))
    recorder().record(tmp_path, 0, start())


def test_experts_can_be_counted_from_another_number(recorder, start, tmp_path):
    """Number 1 is the same network whether or not number 0 is recorded, up to the end of its training."""
    begin = replace(start(), previous=lambda: None)
    both = recorder().record(tmp_path / "both", 1, begin)
    second = recorder(replace(SETTINGS, number=1), first=1).record(tmp_path / "second", 1, begin)
    assert files(second) == files(both)[1:]


@pytest.fixture
def bars(monkeypatch):
    """Progress bars in place of the recorder's: what they were made for and told."""
    made = []

    class Bar:
        def __init__(self, total, title):
            self.total, self.done, self.titles = total, 0, [title]

        def update(self, steps=1):
            self.done += steps

        def set_description(self, title, refresh):
            self.titles.append(title)

    @contextmanager
    def progress_bar(total, title, *_):
        made.append(Bar(total, title))
        yield made[-1]

    monkeypatch.setattr(recorder_module, "progress_bar", progress_bar)
    return made


@pytest.mark.parametrize(("at_once", "missing"), [(1, [0, 1, 2]), (2, [0, 1, 2]), (2, [1, 2]), (2, [0]), (3, [1])])
def test_the_bar_ends_at_its_total(recorder, start, bars, tmp_path, at_once, missing):
    """Companions that are there already are trained once more on the union, and not on real images."""
    three, begin = recorder(replace(SETTINGS, number=3)), replace(start(4, at_once), previous=lambda: None)
    store = three.record(tmp_path, 2, begin)
    for expert in missing:
        store.file(expert).unlink()
    bars.clear()
    three.record(tmp_path, 2, begin, title="Experts")
    companions = len({expert // at_once for expert in missing}) * at_once - (2 in missing and at_once == 2)
    assert [bar.done for bar in bars] == [bar.total for bar in bars] == [companions * 4 * 1 + len(missing) * 2 * 4]
    groups = {expert // at_once: missing.index(expert) + 1 for expert in reversed(missing)}
    numbers = [f"Experts {number}/{len(missing)}" for number in sorted(groups.values())]
    assert bars[0].titles == ["Experts", *numbers]


def test_a_bar_without_a_start_counts_the_real_images_alone(recorder, bars, tmp_path):
    recorder().record(tmp_path, EPOCHS)
    recorder().record(tmp_path, EPOCHS)  # nothing is missing: no bar
    assert [(bar.done, bar.total) for bar in bars] == [(2 * EPOCHS * 4, 2 * EPOCHS * 4)]


@pytest.mark.parametrize("at_once", [1, 2])
def test_times_of_all_experts_are_not_more_than_it_took(recorder, start, tmp_path, at_once):
    """Networks that are trained at once share the time."""
    begin = time.perf_counter()
    store = recorder().record(tmp_path, 1, replace(start(30, at_once), previous=lambda: None))
    passed = time.perf_counter() - begin
    assert 0 < sum(record.start_seconds + record.record_seconds for record in store.records) < passed


def test_experts_of_the_first_stage_lie_where_they_are_asked_for(tmp_path):
    assert ExpertSettings(folder="elsewhere").first_folder(tmp_path).name == "elsewhere"
    assert ExpertSettings().first_folder(tmp_path) == tmp_path / "theta_0"


def test_two_runs_record_into_one_folder_one_after_the_other(recorder, first, tmp_path, monkeypatch):
    """The second waits for the first, and records nothing again."""
    write, written, others = TrajectoryStore.write, [], []

    def watched(self, expert, *arguments, **record):
        if not others:  # the first run is in the middle of its work
            others.append(threading.Thread(target=recorder().record, args=(tmp_path / "shared", EPOCHS)))
            others[0].start()
            others[0].join(0.5)
        written.append(expert)
        write(self, expert, *arguments, **record)

    monkeypatch.setattr(TrajectoryStore, "write", watched)
    store = recorder().record(tmp_path / "shared", EPOCHS)
    others[0].join()
    assert written == [0, 1] and files(store) == files(first)
