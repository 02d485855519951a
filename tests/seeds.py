"""Other seeds for the same tests: `BAYESKIT_TEST_SEED=3 pytest ...` shifts every seed that a test file states."""

import os
import sys
from pathlib import Path

import numpy as np
import torch

OFFSET = int(os.environ.get("BAYESKIT_TEST_SEED", "0"))
"""0 for the seeds as they are written; 1, 2, ... for others."""

SHIFT = 10_007 * OFFSET  # farther than the seeds of one test are from each other

TESTS = str(Path(__file__).parent)


def shifted(seed):
    """The seed to use in place of `seed`, if it is an integer that a file of the tests wrote."""
    caller = sys._getframe(2).f_code.co_filename
    return seed + SHIFT if type(seed) is int and caller.startswith(TESTS) else seed


class Generator(torch.Generator):
    def manual_seed(self, seed):
        return super().manual_seed(shifted(seed))


class RandomState(np.random.RandomState):
    """What scikit-learn makes of `random_state=0`, which is a seed of the tests wherever it is read."""

    def __init__(self, seed=None):
        super().__init__(seed + SHIFT if type(seed) is int else seed)


def shift_seeds():
    """Seeds of `torch.Generator`, `torch.manual_seed`, NumPy's generators and every `random_state` are shifted."""
    plain, numpy_plain = torch.manual_seed, np.random.default_rng
    torch.Generator, np.random.RandomState = Generator, RandomState
    torch.manual_seed = lambda seed: plain(shifted(seed))
    np.random.default_rng = lambda seed=None: numpy_plain(shifted(seed))
