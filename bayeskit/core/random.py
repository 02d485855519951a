"""Randomness: always an explicit `torch.Generator`, never the global one.

Code that cannot be told which generator to use (layer initialization, pyro) runs inside `seeded`, which lends it the
global generator and puts everything back afterwards.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def normal(shape: tuple[int, ...], *, like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal draws with the dtype and device of `like`, made on the generator's own device.

    Examples:
        >>> normal((2, 3), like=torch.ones(1, dtype=torch.float64), generator=torch.Generator()).dtype
        torch.float64
    """
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
    """The generator given, or one that starts at seed 0: at the public door, no generator means the same draws.

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
