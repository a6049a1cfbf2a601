import pytest
import torch

from pdd_lightning.randomness import derive_seed, generator_for, seeded

KEYS = [(0,), (1,), (0, "batch"), (0, "batch", 1), (0, "batch", 1, 2), (0, "batch", 2, 1), (0, "batch", 12), (0, "1")]


def numbers(generator):
    return torch.rand(4, generator=generator).tolist()


def test_different_keys_give_different_numbers():
    seeds = [derive_seed(*key) for key in KEYS]
    assert len(set(seeds)) == len(KEYS)
    assert len({tuple(numbers(generator_for(*key))) for key in KEYS}) == len(KEYS)


def test_texts_that_join_to_the_same_are_different_keys():
    assert derive_seed(0, "a", "bc") != derive_seed(0, "ab", "c")
    assert derive_seed(0, 1) != derive_seed(0, "1")


def test_seeds_suit_every_generator():
    for number in range(200):
        assert 0 <= derive_seed(number, "x") < 2**63


def test_equal_keys_give_equal_numbers_in_every_process_and_version():
    assert derive_seed(7, "batch", 3) == 2916983932280346604


def test_generators_are_independent_of_each_other_and_of_the_global_one():
    first = generator_for(0, "a")
    expected = numbers(generator_for(0, "a"))
    torch.rand(10)
    numbers(generator_for(0, "b"))
    assert numbers(first) == expected


def test_the_global_generator_is_seeded_inside_and_restored_after():
    torch.manual_seed(1)
    expected = torch.rand(3).tolist()
    torch.manual_seed(1)
    with seeded(0, "init", 2):
        inside = torch.rand(3).tolist()
    assert torch.rand(3).tolist() == expected
    with seeded(0, "init", 2):
        assert torch.rand(3).tolist() == inside
    with seeded(0, "init", 3):
        assert torch.rand(3).tolist() != inside


def test_the_global_generator_is_restored_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(KeyError), seeded(0, "init"):
        torch.rand(3)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)
