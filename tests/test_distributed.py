"""Processes that are started to share work."""

import os
from functools import partial

import pytest
import torch

from pdd_lightning import distributed
from pdd_lightning.errors import ConfigError, DataError, ProcessError


def meet(folder, words):
    """What each process does: tells the others of itself."""
    own = distributed.gather((distributed.rank(), torch.get_num_threads()))
    torch.save([own, distributed.broadcast(words[distributed.rank()])], folder / f"{distributed.rank()}.pt")


def leave(number):
    """The second process is lost while the first one waits for it."""
    if distributed.rank() == 1:
        os._exit(number)
    distributed.gather("anybody there?")


def refuse():
    raise DataError(f"refused by {distributed.world_size()}")


def test_processes_work_together_and_share_the_threads(tmp_path):
    share = max(1, torch.get_num_threads() // 2)
    distributed.on_processes(2, partial(meet, tmp_path, ["first", "second"]))
    for rank in (0, 1):
        assert torch.load(tmp_path / f"{rank}.pt") == [[(0, share), (1, share)], "first"]
    assert not distributed.is_distributed()


def test_a_process_that_is_lost_is_an_error_rather_than_a_wait():
    with pytest.raises(ProcessError, match="another process ended"):
        distributed.on_processes(2, partial(leave, 3))


@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_wrong_is_said_as_by_one_process(processes):
    with pytest.raises(DataError, match=f"^refused by {processes}$"):
        distributed.on_processes(processes, refuse)


def test_one_process_needs_no_other():
    with distributed.first_before_others():
        assert distributed.gather("own") == ["own"]
    with pytest.raises(ConfigError, match="processes must be >= 1, got 0"):
        distributed.on_processes(0, refuse)
