import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pdd_lightning.metrics import ForgettingScore

# Per example: right (1), wrong (0), not seen (None) in each epoch; then counts, first epoch learned, errors.
HISTORIES = {
    "never learned": ([0, 0, 0, 0, 0, 0], 0, -1, 6),
    "learned at once": ([1, 1, 1, 1, 1, 1], 0, 0, 0),
    "learned later": ([0, 0, 1, 1, 1, 1], 0, 2, 2),
    "forgotten once": ([0, 1, 0, 0, 1, 1], 1, 1, 3),
    "forgotten as often as possible": ([1, 0, 1, 0, 1, 0], 3, 0, 3),
    "forgotten at the end": ([1, 1, 1, 1, 1, 0], 1, 0, 1),
    "forgotten while not seen": ([1, None, None, 0, None, 1], 1, 0, 1),
    "seen late": ([None, None, 0, 1, None, None], 0, 3, 1),
    "never seen": ([None] * 6, 0, -1, 0),
}
EPOCHS = 6
COUNT = len(HISTORIES)


def feed(metric, epochs=range(EPOCHS), examples=range(COUNT)):
    """Gives the metric the histories of some examples in some epochs, in batches of up to 2, last example first."""
    rows = [history for history, *_ in HISTORIES.values()]
    for epoch in epochs:
        seen = [example for example in reversed(examples) if rows[example][epoch] is not None]
        for batch in (seen[start : start + 2] for start in range(0, len(seen), 2)):
            correct = torch.tensor([rows[example][epoch] == 1 for example in batch])
            metric.update(correct, torch.tensor(batch), epoch)
    return metric


def check(result):
    for number, (name, (history, count, first, errors)) in enumerate(HISTORIES.items()):
        got = tuple(int(column[number]) for column in result)
        assert got == (count, int(1 in history), first, errors), name


def new():
    return ForgettingScore(COUNT, EPOCHS)


def test_histories_worked_out_by_hand():
    check(feed(new()).compute())


def test_the_order_of_batches_does_not_matter():
    check(feed(new(), epochs=[3, 0, 5, 1, 4, 2]).compute())


def test_an_example_seen_twice_in_an_epoch_is_correct_if_it_was_once():
    metric = ForgettingScore(2, 1)
    metric.update(torch.tensor([True, False, False, True]), torch.tensor([0, 0, 1, 1]), 0)
    assert metric.compute().learned.tolist() == [True, True]


def test_a_stored_state_is_continued():
    first = feed(new(), epochs=range(3))
    state = copy.deepcopy(first.state_dict())
    second = new()
    second.load_state_dict(state)
    check(feed(second, epochs=range(3, EPOCHS)).compute())
    assert torch.equal(state["history"], first.history), "the given state was changed"


def test_a_stored_state_can_be_read_at_once():
    state = feed(new()).state_dict()
    other = feed(new(), epochs=range(1))
    other.compute()  # what was computed before does not count any more
    other.load_state_dict(state)
    check(other.compute())


def test_reset_forgets_everything():
    metric = feed(new())
    metric.reset()
    assert bool((metric.history == -1).all())


@pytest.mark.parametrize("epoch", [-1, EPOCHS])
def test_other_epochs_are_refused(epoch):
    with pytest.raises(ValueError, match="epoch must be in 0 to 5"):
        new().update(torch.tensor([True]), torch.tensor([0]), epoch)


@pytest.mark.parametrize("numbers", [(0, 3), (3, 0)])
def test_empty_histories_are_refused(numbers):
    with pytest.raises(ValueError, match="must be >= 1"):
        ForgettingScore(*numbers)


def _process(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    metric = new()
    for epoch in range(EPOCHS):  # who sees an example changes from epoch to epoch
        feed(metric, [epoch], range((rank + epoch) % 2, COUNT, 2))
    check(metric.compute())
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_see_half_of_the_examples_each(tmp_path):
    mp.spawn(_process, args=(tmp_path,), nprocs=2)
