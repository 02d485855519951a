"""Optional C functions for `IVONOptimizer`, compiled at first use if there is a compiler, and cached.

They compute in one pass over memory what `update_rule` computes in some twenty, and draw normals as `core.normals`.
Without a compiler, or if they do not agree with torch, `load` returns None and torch is used.
"""

import ctypes
import math
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from bayeskit.core import compiled, normals

SOURCE = Path(__file__).with_name("fused_kernel.c")


class _Settings(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_float) for name in ("n", "decay", "step_size", "beta1", "forget", "bias", "clip_radius")),
        ("price", ctypes.c_int32),
    ]


class Kernel:
    """The compiled functions, for contiguous float32 tensors on a CPU.

    Args:
        library: The shared library.
        draws: The compiled normals.
    """

    def __init__(self, library: ctypes.CDLL, draws: normals.Normals):
        pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
        self._normals, self._perturb, self._update = draws, library.ivon_perturb, library.ivon_update
        self._perturb.argtypes = [size, *[pointer] * 4, number, number]
        self._update.argtypes = [size, *[pointer] * 5, pointer]
        for function in (self._perturb, self._update):
            function.restype = None

    def normal_(self, out: Tensor, generator: torch.Generator) -> None:
        """What `out.normal_(generator=generator)` does, for at least 16 numbers."""
        self._normals.normal_(out, generator)

    def perturb_(
        self,
        params: list[Tensor],
        means: list[Tensor],
        noise: list[Tensor],
        hessians: list[Tensor],
        *,
        n: float,
        decay: float,
    ) -> None:
        """Scale the noise as `scale_noise_` does, and write the means plus the noise to `params`."""
        for p, m, z, h in zip(params, means, noise, hessians, strict=True):
            self._perturb(p.numel(), p.data_ptr(), m.data_ptr(), z.data_ptr(), h.data_ptr(), n, decay)

    def update_(
        self,
        means: list[Tensor],
        momenta: list[Tensor],
        hessians: list[Tensor],
        gradients: list[Tensor],
        products: list[Tensor],
        *,
        n: float,
        decay: float,
        step_size: float,
        betas: tuple[float, float],
        bias: float = 1.0,
        clip_radius: float = math.inf,
        price: bool = True,
    ) -> None:
        """What `update_rule.update_` does, without overwriting the last two lists."""
        settings = _Settings(n, decay, step_size, betas[0], 1 - betas[1], 1 / bias, clip_radius, price)
        for tensors in zip(means, momenta, hessians, gradients, products, strict=True):
            self._update(tensors[0].numel(), *(t.data_ptr() for t in tensors), ctypes.byref(settings))


@cache
def load() -> Kernel | None:
    """The compiled functions, or None where there is no compiler or they do not agree with torch."""
    try:
        library = compiled.library(SOURCE)
        draws = normals.load()
        return None if draws is None else Kernel(library, draws)
    except (*compiled.FAILURES, AttributeError):
        return None
