"""Processes that are started to share work."""

import os
from functools import partial

import pytest
import torch

from pdd_lightning import distributed
from pdd_lightning.errors import ConfigError, DataError, ProcessError


def meet(words):
    """What each process does: tells the others of itself."""
    own = distributed.gather((distributed.rank(), torch.get_num_threads()))
    with distributed.process_group(5, os.abort):  # there is a group already
        assert distributed.world_size() == len(own)
    return own, distributed.broadcast(words[distributed.rank()])


def test_processes_work_together_and_share_the_threads():
    threads = torch.get_num_threads()
    with distributed.process_group(2, partial(meet, ["first", "second"])):
        own, word = meet(["first", "second"])
    assert own == [(0, max(1, threads // 2)), (1, max(1, threads // 2))]
    assert word == "first"
    assert torch.get_num_threads() == threads and not distributed.is_distributed()


def test_a_process_that_is_lost_is_an_error_rather_than_a_wait():
    with pytest.raises(ProcessError, match="another process ended"), distributed.process_group(2, partial(os._exit, 3)):
        distributed.gather("anybody there?")
    assert not distributed.is_distributed()


def test_one_process_needs_no_other():
    with distributed.process_group(1, os.abort), distributed.first_before_others():
        assert distributed.gather("own") == ["own"]
    with pytest.raises(DataError), distributed.process_group(1, os.abort):
        raise DataError("of the block")
    with pytest.raises(ConfigError, match="processes must be >= 1, got 0"), distributed.process_group(0, os.abort):
        pass
