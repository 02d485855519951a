"""The normal distribution: its constant, and torch's normal draws by compiled functions.

The draws are those of torch, bit for bit in the generator and to rounding in the numbers.
Most of the time of a sampler's noise goes into torch's Mersenne Twister, one number at a time; here loops are
vectorized. Where the functions cannot be built, or do not agree with torch, `load` says None.
"""

import ctypes
import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayeskit.core import compiled

LOG_2PI = math.log(2 * math.pi)
"""Minus twice the log density of a standard normal variable at zero."""

SOURCE = Path(__file__).with_name("normals.c")

# Of the bytes of `torch.Generator.get_state()`: where the Mersenne Twister's counters and its 624 words are.
_LEFT, _NEXT, _WORDS, _COUNT = 8, 16, 24, 624


class _Twister(ctypes.Structure):
    _fields_ = [("left", ctypes.c_int32), ("next", ctypes.c_int32), ("words", ctypes.c_uint32 * _COUNT)]


class Normals:
    """The compiled function, for contiguous float32 tensors on a CPU.

    Args:
        library: Where it is.
    """

    def __init__(self, library: ctypes.CDLL):
        self._normals = library.normals
        self._normals.argtypes, self._normals.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None

    def normal_(self, out: Tensor, generator: torch.Generator) -> None:
        """What `out.normal_(generator=generator)` does, for at least 16 numbers."""
        state = generator.get_state()
        counters, words = state[_LEFT:_WORDS].view(torch.int32), state[_WORDS : _WORDS + 8 * _COUNT].view(torch.int64)
        twister = _Twister(left=int(counters[0]), next=int(counters[2]))
        own = torch.frombuffer(twister.words, dtype=torch.int32)
        own.copy_(words)  # the lower halves: each word is kept in eight bytes
        self._normals(ctypes.byref(twister), out.data_ptr(), out.numel())
        counters[0], counters[2] = twister.left, twister.next
        words.copy_(own).bitwise_and_(0xFFFFFFFF)
        generator.set_state(state)


@cache
def load() -> Normals | None:
    """The compiled function, or None where there is no compiler or it does not agree with torch."""
    try:
        normals = Normals(compiled.library(SOURCE))
        return normals if _agrees(normals) else None
    except (*compiled.FAILURES, AttributeError, RuntimeError):
        return None


def _agrees(normals: Normals) -> bool:
    """Whether the normals and the generator afterwards are torch's: this reads a state that torch does not document."""
    ours, theirs = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    for size in (1000, 37, 1600):
        found = torch.empty(size)
        normals.normal_(found, ours)
        expected: Any = torch.empty(size).normal_(generator=theirs)
        if not torch.allclose(found, expected, rtol=1e-5, atol=1e-5):
            return False
    return torch.equal(ours.get_state(), theirs.get_state())
