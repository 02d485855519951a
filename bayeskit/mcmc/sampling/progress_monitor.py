"""Convergence diagnostics during a run, from a bounded number of its draws."""

import torch
from torch import Tensor

from bayeskit.mcmc.base.convergence import agreement
from bayeskit.mcmc.base.log_density import Position, ravel

NUMBERS, DRAWS = 50, 1000
"""Largest number of parameters of each chain and of evenly spaced draws that are used."""


class Monitor:
    """Every k-th draw of some parameters of each chain, with k doubled whenever there are enough of them.

    Examples:
        >>> monitor = Monitor()
        >>> for i in range(2500):
        ...     monitor.add({"x": torch.tensor([[i % 7.0], [i % 11.0]])})
        >>> monitor.stride, len(monitor.draws)
        (4, 625)
    """

    def __init__(self):
        self.stride, self.count = 1, 0
        self.draws: list[Tensor] = []

    def add(self, position: Position) -> None:
        """Add the draws of all chains, leaves (c, *shape)."""
        if self.count % self.stride == 0:
            self.draws.append(ravel(position)[:, :NUMBERS].clone())
            if len(self.draws) >= DRAWS:
                self.draws, self.stride = self.draws[::2], 2 * self.stride
        self.count += 1

    def numbers(self) -> dict[str, float]:
        """The largest R-hat and the smallest effective sample size so far; empty while draws are few.

        The latter is that of the draws used, a lower bound for all draws.
        """
        if len(self.draws) < 4:
            return {}
        return agreement(torch.stack(self.draws, dim=1))
