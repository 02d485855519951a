"""Tests with other seeds: which seeds are shifted, and that the tests then draw other numbers."""

import torch
from sklearn.utils import check_random_state

from . import seeds


def test_seeds_of_tests_are_shifted_and_others_are_not(monkeypatch):
    monkeypatch.setattr(seeds, "offset", 2)
    shift = 2 * seeds.STRIDE
    assert seeds.Generator().manual_seed(3).initial_seed() == 3 + shift
    assert seeds.RandomState(3).randint(2**31) == seeds.RandomState.__base__(3 + shift).randint(2**31)
    library = compile("seed(3)", "library.py", "eval")
    assert eval(library, {"seed": seeds.Generator().manual_seed}).initial_seed() == 3


def test_without_a_shift_nothing_changes(monkeypatch):
    monkeypatch.setattr(seeds, "offset", 0)
    one, two = (torch.randn(5, generator=cls().manual_seed(7)) for cls in (seeds.Generator, seeds.Generator.__base__))
    assert torch.equal(one, two)
    assert seeds.RandomState(7).randint(2**31) == check_random_state(7).randint(2**31)
