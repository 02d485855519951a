"""Randomness: always an explicit `torch.Generator`, never the global one.

Code without a generator argument (layer initialization, torch distributions) runs inside `seeded`, which seeds the
global generator and restores it afterwards.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from bayeskit.core import normals

COMPILED_FROM = 2**14
"""Number of normals from which on compiled functions draw them: below it the fixed cost of a call dominates."""


def normal(shape: tuple[int, ...], *, like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal draws with the dtype and device of `like`, made on the generator's own device.

    Many at once come from compiled functions where these can be built: the same numbers to rounding, in a quarter of
    the time.

    Examples:
        >>> normal((2, 3), like=torch.ones(1, dtype=torch.float64), generator=torch.Generator()).dtype
        torch.float64
    """
    if math.prod(shape) >= COMPILED_FROM and like.dtype == torch.float32 and generator.device.type == "cpu":
        draws = normals.load()
        if draws is not None:
            out = torch.empty(shape, dtype=torch.float32, device="cpu")
            draws.normal_(out, generator)
            return out.to(like.device)
    return torch.randn(shape, dtype=like.dtype, device=generator.device, generator=generator).to(like.device)


def categorical(weights: Tensor, num_samples: int, *, generator: torch.Generator) -> Tensor:
    """Positions drawn with replacement in proportion to `weights` (s,), made on the generator's own device.

    Examples:
        >>> categorical(torch.tensor([0.0, 1.0]), 3, generator=torch.Generator())
        tensor([1, 1, 1])
    """
    return torch.multinomial(weights.to(generator.device), num_samples, replacement=True, generator=generator)


def seed(generator: torch.Generator) -> int:
    """A seed drawn from `generator`, for things that take an integer.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> seed(generator) != seed(generator)
        True
    """
    return int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))


def fork(generator: torch.Generator) -> torch.Generator:
    """A generator that repeats what `generator` would draw next, leaving `generator` as it is.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> seed(fork(generator)) == seed(generator)
        True
    """
    copy = torch.Generator(generator.device)
    copy.set_state(generator.get_state())
    return copy


def spawn(generator: torch.Generator) -> torch.Generator:
    """A new generator seeded from `generator`, which moves on by one draw.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> seed(spawn(generator)) != seed(spawn(generator))
        True
    """
    return torch.Generator(generator.device).manual_seed(seed(generator))


def given_or_fixed(generator: torch.Generator | None) -> torch.Generator:
    """The generator given, or one that starts at seed 0: without one, a public function repeats its draws.

    >>> given_or_fixed(None).initial_seed()
    0
    """
    return torch.Generator().manual_seed(0) if generator is None else generator


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Run code that draws from the global generator as if it drew from `generator`, which moves on by one draw.

    Examples:
        >>> with seeded(torch.Generator().manual_seed(0)):
        ...     first = torch.nn.Linear(2, 1).weight
        >>> with seeded(torch.Generator().manual_seed(0)):
        ...     second = torch.nn.Linear(2, 1).weight
        >>> torch.equal(first, second)
        True
    """
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices, device_type="cuda"):
        torch.manual_seed(seed(generator))
        yield
