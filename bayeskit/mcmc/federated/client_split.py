"""Simulated clients: the data of one log density split among them."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from bayeskit.core import checks, generators
from bayeskit.mcmc.base.log_density import LogDensity, Position


@runtime_checkable
class Divisible(Protocol):
    """A log density that is the sum of a prior and the log likelihoods of data points, such as that of `bnn.MCMC`.

    Called, it is the log density of all the data.
    """

    def __call__(self, position: Position, /) -> Tensor:
        """Log density of c positions, (c,)."""
        ...

    @property
    def order(self) -> Tensor:
        """A value for each data point, (n,), by which heterogeneous clients are formed: the target."""
        ...

    def log_prior(self, position: Position) -> Tensor:
        """Log density of the prior, (c,)."""
        ...

    def of_rows(self, rows: Tensor) -> LogDensity:
        """The log likelihood of the data points with these indices."""
        ...


def deal(order: Tensor, clients: int | Tensor, *, skew: float, generator: torch.Generator) -> Tensor:
    """The client of each of n data points, (n,), numbered consecutively from 0.

    Data points are sorted and split into parts of equal size (up to one): at random for a `skew` of 0, by `order` for
    1, and in between by the weighted mean of the rank in `order` and a random rank.

    Args:
        order: A value for each data point, (n,).
        clients: Their number (at most n), or the client of each data point.
        skew: Heterogeneity of the clients, from 0 to 1.
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
