"""Other seeds for the same tests.

`BAYESKIT_TEST_SEED=3 pytest ...` shifts every seed that a test file states; `pytest --seeds 20` runs each test marked
`monte_carlo` with 20 shifts, beginning with that one. A shift of 0 leaves the seeds as they are written.
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch

FIRST = int(os.environ.get("BAYESKIT_TEST_SEED", "0"))

STRIDE = 10_007
"""Shifts are multiples of this, so that the seeds of one test do not coincide with shifted ones."""

TESTS = str(Path(__file__).parent)

offset = FIRST
"""By how many strides seeds are shifted now."""


def shifted(seed):
    """The seed to use in place of `seed`, if it is an integer stated in a file of the tests."""
    caller = sys._getframe(2).f_code.co_filename
    return seed + STRIDE * offset if type(seed) is int and caller.startswith(TESTS) else seed


class Generator(torch.Generator):
    """`torch.Generator` with shifted seeds."""

    def manual_seed(self, seed):
        return super().manual_seed(shifted(seed))


class RandomState(np.random.RandomState):
    """What scikit-learn makes of an integer `random_state`, shifted wherever it is called from."""

    def __init__(self, seed=None):
        super().__init__(seed + STRIDE * offset if type(seed) is int else seed)


def install():
    """Shift the seeds of torch's generators, of `numpy.random.default_rng`, and every `random_state`."""
    manual_seed, default_rng = torch.manual_seed, np.random.default_rng
    torch.Generator, np.random.RandomState = Generator, RandomState
    torch.manual_seed = lambda seed: manual_seed(shifted(seed))
    np.random.default_rng = lambda seed=None: default_rng(shifted(seed))
