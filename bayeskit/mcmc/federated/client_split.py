"""The rows of one log density dealt out to clients: a network is sampled as if its data lay in many places."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from bayeskit.core import checks, generators
from bayeskit.mcmc.base.log_density import LogDensity, Position


@runtime_checkable
class Divisible(Protocol):
    """A log density that comes apart into a prior and the likelihoods of rows, `bnn.MCMC`'s for one.

    Called, it is the log density of all the data.
    """

    def __call__(self, position: Position, /) -> Tensor:
        """Log density of c positions, (c,)."""
        ...

    @property
    def order(self) -> Tensor:
        """A number a row, (n,), by which clients whose data are unlike may be told apart: the target."""
        ...

    def log_prior(self, position: Position) -> Tensor:
        """What is known before the data, (c,)."""
        ...

    def of_rows(self, rows: Tensor) -> LogDensity:
        """The log likelihood of the rows with these numbers alone."""
        ...


def deal(order: Tensor, clients: int | Tensor, *, skew: float, generator: torch.Generator) -> Tensor:
    """The client that has each of n rows, (n,), numbered from 0 without a gap.

    Rows are laid in a row and cut into parts of one length (up to one): at random for a `skew` of 0, by `order` for 1,
    and in between by as much of their rank in `order` as of one at random.

    Args:
        order: A number a row, (n,).
        clients: How many (no more than rows), or the client of each row as one knows it.
        skew: How unlike the clients are to be, from 0 to 1.
        generator: Source of the random ranks.

    Examples:
        >>> g = torch.Generator().manual_seed(0)
        >>> deal(torch.tensor([3.0, 1.0, 2.0, 0.0]), 2, skew=1.0, generator=g)
        tensor([1, 0, 1, 0])
    """
    number = len(order)
    if isinstance(clients, Tensor):
        if clients.shape != (number,) or clients.is_floating_point():
            raise ValueError(f"`clients` must be {number} whole numbers, one a row; got {tuple(clients.shape)}")
        return clients.unique(return_inverse=True)[1].cpu()
    checks.positive(clients, name="clients", integer=True)
    if not 0 <= skew <= 1:
        raise ValueError(f"`skew` must be from 0 to 1; got {skew!r}")
    by_target = order.cpu().argsort(stable=True).argsort().double()
    by_chance = torch.randperm(number, generator=generators.spawn(generator), device=generator.device).cpu().double()
    place = (skew * by_target + (1 - skew) * by_chance).argsort(stable=True).argsort()
    return place * min(clients, number) // number
