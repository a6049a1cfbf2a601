"""Easy examples that a stage leaves out are used for nothing, whatever the method."""

import functools

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from pdd_lightning.callbacks.checkpoint import RollingCheckpoint
from pdd_lightning.data import DiscardSettings, ForgettingScores
from pdd_lightning.data.progressive import ProgressiveDataModule
from pdd_lightning.data.splits import ImageSplit
from pdd_lightning.errors import ConfigError, DataError
from pdd_lightning.experts import ExpertSettings, TrajectoryStore
from pdd_lightning.networks import ConvNet
from pdd_lightning.progression import StageAdvance, StageObserver, TransitionSettings
from pdd_lightning.stages import DATM, IDC, DistributionMatching, GradientMatching, TrajectoryMatching
from tests.tiny import Blobs

TRAJECTORIES = {"syn_steps": 2, "expert_epochs": 1, "max_start_epoch": 2, "lr_img": 10.0}
METHODS = {
    "DM": (DistributionMatching, {"lr_img": 0.1}),
    "DC": (GradientMatching, {"outer": 2, "inner": 1, "lr_net": 0.1}),
    "IDC": (IDC, {"inner": 2, "net_images": 20, "batch_real": 8, "lr_img": 0.05, "init": "real"}),
    "MTT": (TrajectoryMatching, TRAJECTORIES),
    "MTT, soft labels": (DATM, {**TRAJECTORIES, "lr_label": 5.0}),
}
EXAMPLES = 54  # of Blobs, without the validation part
# Quick: IDC has ways of its own to the real images, and soft labels need all that trajectory matching does.
each_method = pytest.mark.parametrize(
    "method",
    [
        "IDC",
        "MTT, soft labels",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("DM", "DC", "MTT")),
    ],
)
KEEP = (0.7, 0.4)
ITERATIONS = 3


class Spoiled(Blobs):
    """Blobs some of whose training images are black, in the pixel space of those that are not."""

    def __init__(self, places):
        super().__init__()
        self.places = places

    def setup(self, stage=None):
        loaded = self._parts is not None
        super().setup(stage)
        if not loaded:
            train, val, test = self._parts
            images = train.images.clone()
            images[torch.isin(train.indices, self.places)] = 0
            self._parts = (ImageSplit(images, train.labels, train.indices), val, test)


class Watch(StageObserver):
    """Remembers what stages used; can interrupt the run, or spoil some images after the first stage's iterations."""

    def __init__(self, stop=None, spoil=None):
        self.stop = stop
        self.spoil = spoil
        self.kept = {}
        self.scores = None
        self.iterations = 0

    def on_scores_ready(self, trainer, stage_module, scores):
        self.scores = scores

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        data, state = pl_module.data, pl_module.state
        self.iterations += 1
        self.kept[state.stage] = data.kept.indices
        if self.spoil is not None and (state.stage, state.iteration) == (1, ITERATIONS):
            data.real.train.images[torch.isin(data.real.train.indices, self.spoil)] = 0
        if self.stop == (state.stage, state.iteration):
            raise InterruptedError

    def on_stage_end(self, trainer, stage_module, history):
        self.history = history


def fit(method, folder, discard, data=None, stop=None, spoil=None, resume=False, num_stages=2, **options):
    """A run of short stages; the union and what was watched."""
    seed_everything(0, verbose=False)
    kind, arguments = METHODS[method]
    module = kind(functools.partial(ConvNet, depth=2, width=4), **{"ipc": 1, **arguments, **options})
    watch = Watch(stop, spoil)
    experts = ExpertSettings(number=2, batch_size=16, lr=0.05)
    trainer = Trainer(
        default_root_dir=folder,
        callbacks=[
            StageAdvance(num_stages, ITERATIONS, experts, TransitionSettings(epochs=2), discard),
            RollingCheckpoint(folder / "checkpoints", 1),
            watch,
        ],
        accelerator="cpu",
        max_epochs=-1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = ProgressiveDataModule(data or Blobs())
    trainer.fit(module, datamodule=data, ckpt_path=folder / "checkpoints" / "last.ckpt" if resume else None)
    return data.union, watch


@pytest.fixture(scope="module")
def given(blobs, tmp_path_factory):
    """A file of scores: the place in the source says how hard an example is."""
    places = blobs.train.indices
    scores = (places * 31 % 97).double()
    path = tmp_path_factory.mktemp("scores") / "scores.npz"
    ForgettingScores(places, scores, scores, scores, torch.ones_like(scores)).save(path)
    return path


@pytest.fixture(scope="module")
def straight(given, tmp_path_factory):
    """Gives each method's run with given scores, made once."""
    discard = DiscardSettings(keep=KEEP, scores=str(given))
    return functools.cache(lambda method: fit(method, tmp_path_factory.mktemp("straight"), discard))


def folders(path):
    return sorted(folder.name for folder in (path / "experts").iterdir())


@each_method
def test_what_is_left_out_does_not_matter(method, blobs, straight, given, tmp_path):
    """Images that no stage uses are spoiled from the start, those of the first stage alone when it is over."""
    union, seen = straight(method)
    places = blobs.train.indices
    assert len(places) == EXAMPLES
    assert [len(kept) for kept in seen.kept.values()] == [report.real_images for report in seen.history] == [38, 22]
    unused, easy = places[~torch.isin(places, seen.kept[1])], seen.kept[1][~torch.isin(seen.kept[1], seen.kept[2])]
    assert (len(unused), len(easy)) == (16, 16)
    discard = DiscardSettings(keep=KEEP, scores=str(given))
    spoiled, _ = fit(method, tmp_path, discard, Spoiled(unused), spoil=easy)
    assert torch.equal(spoiled.images, union.images) and torch.equal(spoiled.labels, union.labels)


def test_what_is_kept_does_matter(straight, given, tmp_path):
    """Or the test above could not fail."""
    union, seen = straight("DM")
    discard = DiscardSettings(keep=KEEP, scores=str(given))
    first, _ = fit("DM", tmp_path / "first", discard, Spoiled(seen.kept[1]))
    second, _ = fit("DM", tmp_path / "second", discard, spoil=seen.kept[2])
    assert not torch.equal(first.stage(1).images, union.stage(1).images)
    assert torch.equal(second.stage(1).images, union.stage(1).images)
    assert not torch.equal(second.stage(2).images, union.stage(2).images)


@each_method
def test_a_continued_run_equals_the_straight_one(method, straight, given, tmp_path):
    discard = DiscardSettings(keep=KEEP, scores=str(given))
    with pytest.raises(InterruptedError):
        fit(method, tmp_path, discard, stop=(2, 2))
    union, seen = fit(method, tmp_path, discard, resume=True)
    assert seen.iterations < ITERATIONS, "the run was not continued but made again"
    assert torch.equal(union.images, straight(method)[0].images)


def test_scores_come_from_the_experts_where_the_first_stage_uses_all(tmp_path):
    _, seen = fit("MTT", tmp_path, DiscardSettings(keep=(1.0, 0.5)))
    assert folders(tmp_path) == ["theta_0", "theta_1", "theta_2_final"]
    hardest = seen.scores.ranking()[:27]
    assert set(seen.kept[2].tolist()) == set(seen.scores.indices[hardest].tolist())
    assert len(seen.kept[1]) == EXAMPLES


@pytest.mark.parametrize(
    ("method", "keep"), [("DM", (1.0, 0.5)), pytest.param("MTT", (0.9, 0.5), marks=pytest.mark.slow)]
)
def test_scores_come_from_networks_of_their_own_elsewhere(method, keep, tmp_path):
    discard = DiscardSettings(keep=keep, networks=1, epochs=4)
    with pytest.raises(InterruptedError):
        fit(method, tmp_path, discard, stop=(1, 2))
    scoring = tmp_path / "experts" / "scoring"
    assert [path.name for path in scoring.glob("*.safetensors")] == ["expert_000.safetensors"]
    for path in scoring.iterdir():
        path.unlink()  # the checkpoint has the scores
    union, seen = fit(method, tmp_path, discard, resume=True)
    assert list(scoring.iterdir()) == []
    straight, watched = fit(method, tmp_path / "straight", discard)
    assert torch.equal(seen.scores.scores, watched.scores.scores)
    assert torch.equal(union.images, straight.images)
    if method == "DM":  # which trains no other networks on real images
        first, second = (report.seconds["experts"] for report in seen.history)
        assert first > second, "the time that discarding costs is hidden"


def test_experts_without_forgetting_are_not_asked(tmp_path, monkeypatch):
    """As those that earlier versions recorded: the run then has scores only if it needs them."""
    original = TrajectoryStore.forgetting

    def forgetting(store, expert):
        return None if store.folder.name == "theta_0" else original(store, expert)

    monkeypatch.setattr(TrajectoryStore, "forgetting", forgetting)
    _, seen = fit("MTT", tmp_path / "all", DiscardSettings(), num_stages=1)
    assert seen.scores is None and folders(tmp_path / "all") == ["theta_0", "theta_1_final"]
    _, seen = fit("MTT", tmp_path / "some", DiscardSettings(keep=(1.0, 0.5), networks=1, epochs=3))
    assert seen.scores is not None and "scoring" in folders(tmp_path / "some")


def test_without_discarding_the_scores_are_known_where_there_are_experts(tmp_path):
    _, seen = fit("MTT", tmp_path / "mtt", DiscardSettings(), num_stages=1)
    assert len(seen.scores) == EXAMPLES == len(seen.kept[1])
    _, seen = fit("DM", tmp_path / "dm", DiscardSettings(), num_stages=1)
    assert seen.scores is None


def test_stages_to_come_may_change_and_others_may_not(given, tmp_path):
    name = str(given)
    with pytest.raises(InterruptedError):
        fit("DM", tmp_path, DiscardSettings(keep=(0.7, 0.4), scores=name), stop=(1, 2))
    with pytest.raises(ConfigError, match=r"stages\.discard\.keep\.stage 1: 0\.7 on disk, 0\.6 asked for"):
        fit("DM", tmp_path, DiscardSettings(keep=(0.6, 0.4), scores=name), resume=True)
    with pytest.raises(ConfigError, match=r"stages\.discard: .* on disk, None asked for"):
        fit("DM", tmp_path, DiscardSettings(), resume=True)
    other = tmp_path / "other.npz"
    scores = ForgettingScores.load(given)
    ForgettingScores(**{**scores.tensors(), "scores": scores.scores + 1}).save(other)
    with pytest.raises(ConfigError, match=r"stages\.discard\.scores: .* asked for"):
        fit("DM", tmp_path, DiscardSettings(keep=(0.7, 0.4), scores=str(other)), resume=True)
    _, seen = fit("DM", tmp_path, DiscardSettings(keep=(0.7, 0.5, 0.1), scores=name), resume=True, num_stages=3)
    assert [report.real_images for report in seen.history] == [38, 27, 5]


def test_what_cannot_work_is_refused_before_anything_is_done(tmp_path):
    with pytest.raises(ConfigError, match=r"discard\.keep has 1 values, one per stage, but there are 2 stages"):
        fit("DM", tmp_path, DiscardSettings(keep=(0.5,)))
    with pytest.raises(DataError, match=r"has 18 training images, fewer than the 20 .*min_per_class"):
        fit("DM", tmp_path, DiscardSettings(keep=(1.0, 0.5), min_per_class=20))
    with pytest.raises(DataError, match="there are no forgetting scores"):
        fit("DM", tmp_path, DiscardSettings(keep=(1.0, 0.5), scores="nowhere.npz"))
    assert list(tmp_path.iterdir()) == []


def test_initial_images_find_enough_of_each_class(given, tmp_path):
    """Four images per class and stage, of which a schedule that keeps nearly nothing leaves that many."""
    _, seen = fit("DM", tmp_path, DiscardSettings(keep=(0.01, 0.01), scores=str(given)), ipc=4)
    assert [report.real_images for report in seen.history] == [12, 12]
