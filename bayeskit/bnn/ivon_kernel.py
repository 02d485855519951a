"""The C functions behind `IVONOptimizer`: compiled when first needed, where there is a compiler, and kept for later.

They draw the very normals that torch draws, bit for bit in the generator and to rounding in the numbers, and do in one
pass what `ivon_rule` does in some twenty. Where they cannot be built, or do not agree with torch, `load` says None.
"""

import ctypes
import hashlib
import math
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("ivon_kernel.c")

FLAGS = ("-O3", "-std=c11", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")

VECTORS = {
    "AVX512": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"),
    "AVX2": ("-mavx2", "-mfma"),
}
"""Flags by what torch has found the processor to be able to do."""

PATIENCE = 30
"""Seconds after which a compiler is given up; it takes about one."""

# Of the bytes of `torch.Generator.get_state()`: where the Mersenne Twister's counters and its 624 words are.
_LEFT, _NEXT, _WORDS, _COUNT = 8, 16, 24, 624


class _Twister(ctypes.Structure):
    _fields_ = [("left", ctypes.c_int32), ("next", ctypes.c_int32), ("words", ctypes.c_uint32 * _COUNT)]


class _Settings(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_float) for name in ("n", "decay", "step_size", "beta1", "forget", "bias", "clip_radius")),
        ("price", ctypes.c_int32),
    ]


class Kernel:
    """The compiled functions, for contiguous float32 tensors on a CPU.

    Args:
        library: Where they are.
    """

    def __init__(self, library: ctypes.CDLL):
        pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
        self._normals, self._perturb, self._update = (
            getattr(library, f"ivon_{name}") for name in ("normals", "perturb", "update")
        )
        self._normals.argtypes = [pointer, pointer, size]
        self._perturb.argtypes = [size, *[pointer] * 4, number, number]
        self._update.argtypes = [size, *[pointer] * 5, pointer]
        for function in (self._normals, self._perturb, self._update):
            function.restype = None

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
        """Noise scaled by `scale_noise_`, and the means plus it put into `params`."""
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
        """What `ivon_rule.update_` does, with the last two lists left as they are."""
        settings = _Settings(n, decay, step_size, betas[0], 1 - betas[1], 1 / bias, clip_radius, price)
        for tensors in zip(means, momenta, hessians, gradients, products, strict=True):
            self._update(tensors[0].numel(), *(t.data_ptr() for t in tensors), ctypes.byref(settings))


@cache
def load() -> Kernel | None:
    """The compiled functions, or None where there is no compiler or they do not agree with torch."""
    try:
        kernel = Kernel(ctypes.CDLL(str(_library())))
        return kernel if _agrees(kernel) else None
    except (OSError, subprocess.SubprocessError, AttributeError, RuntimeError):
        return None


def _library() -> Path:
    """The shared library of this source, these flags and this compiler; compiled if it is not there yet."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise FileNotFoundError("no C compiler")
    flags = [*FLAGS, *VECTORS.get(torch.backends.cpu.get_cpu_capability(), ())]
    identity = [SOURCE.read_text(), compiler, str(Path(compiler).stat().st_mtime), *flags, platform.platform()]
    name = f"ivon-{hashlib.sha256(repr(identity).encode()).hexdigest()[:16]}.so"
    folder = _folder()
    if not (folder / name).exists():
        handle, scratch = tempfile.mkstemp(suffix=".so", dir=folder)
        os.close(handle)
        command = [compiler, *flags, str(SOURCE), "-o", scratch, "-lm"]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
            os.replace(scratch, folder / name)  # at once, whoever else is compiling
        finally:
            Path(scratch).unlink(missing_ok=True)
    return folder / name


def _folder() -> Path:
    """A folder of the user's own that lasts, or else one for this process."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bayeskit"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(home, os.W_OK) and home.stat().st_uid == os.getuid():
            return home
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="bayeskit-"))


def _agrees(kernel: Kernel) -> bool:
    """Whether the normals and the generator afterwards are torch's: this reads a state that torch does not document."""
    ours, theirs = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    for size in (1000, 37, 1600):
        found = torch.empty(size)
        kernel.normal_(found, ours)
        expected: Any = torch.empty(size).normal_(generator=theirs)
        if not torch.allclose(found, expected, rtol=1e-5, atol=1e-5):
            return False
    return torch.equal(ours.get_state(), theirs.get_state())
