"""Kernels that learn the units they move in while they burn in, and keep them from then on."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Self

import torch

from bayeskit.mcmc.base.log_density import LogDensity, Position, value_and_gradient
from bayeskit.mcmc.base.transition_kernel import AdaptiveKernel
from bayeskit.mcmc.sgmcmc.stochastic_kernel import KICK, StochasticKernel, measured_lr

MEASUREMENTS = 4
"""How often in a burn-in the step size is measured anew, for the units change on the way."""


class ScaleLearner(StochasticKernel, AdaptiveKernel, ABC):
    """A stochastic-gradient kernel whose `update` learns a scale as long as it has none.

    While the scale is learnt, the law of a position depends on the path, whatever is done about it: (position,
    statistics) is a Markov chain, the position alone is not. Tuned, it is a kernel with a fixed scale. Its state has a
    field `square`, averages of squared gradients.
    """

    @abstractmethod
    def learn(self, state: Any, slopes: Position) -> Any:
        """The state with its statistics brought up to date by gradients at its position."""

    @abstractmethod
    def units(self, state: Any) -> Position:
        """The scale that the state's statistics suggest, leaves (c, *shape)."""

    def init(self, position: Position, log_density: LogDensity, *, generator: torch.Generator) -> Any:
        """The chains at `position`, with a step size measured in the units that the first gradients suggest."""
        settings: Any = self
        self.check()
        state = self.begin(position, self.lr or 1.0, generator=generator)
        if self.scale is None:
            state = self.learn(state, value_and_gradient(log_density, position)[1])
        if self.lr is not None:
            return state
        there = self if self.scale is not None else replace(settings, scale=self.units(state))
        return replace(state, lr=measured_lr(there, log_density, position, generator=generator))

    def prepared(
        self, log_density: LogDensity, position: Position, *, share: float = 1.0, generator: torch.Generator
    ) -> Self:
        """The kernel that bears the noise of mini-batches; it measures its step size on the way.

        Where a model fits, that noise has a variance of about `curvature / share`. A step size of this share, and of
        the friction in a step, keeps what it adds to the temperature where it was for a batch of all rows drawn with
        replacement, in every direction: in units that are learnt, directions are alike.
        """
        settings: Any = self
        friction = 1 - getattr(self, "momentum", 0.0)
        return self if share >= 1 else replace(settings, relative_lr=self.relative_lr * share * friction)

    def adapt(
        self, position: Position, densities: Iterator[LogDensity], *, num_steps: int, generator: torch.Generator
    ) -> tuple[Self, Any]:
        """Run `num_steps` steps that learn; return the kernel with the scale and the step size they ended with."""
        settings: Any = self
        state = self.init(position, next(densities), generator=generator)
        if self.scale is not None:
            for _ in range(num_steps):
                state, _ = self.step(state, next(densities), generator=generator)
            return self, state
        every = max(1, num_steps // MEASUREMENTS)
        for count in range(1, num_steps + 1):
            state, _ = self.step(state, next(densities), generator=generator)
            if self.lr is None and (count % every == 0 or count == num_steps):
                there = replace(settings, scale=self.pooled_units(state))
                state = replace(state, lr=measured_lr(there, next(densities), state.position, generator=generator))
        kick = KICK if self.max_kick is None and self.lr is None else self.max_kick
        return replace(settings, lr=state.lr, scale=self.pooled_units(state), max_kick=kick), state

    def pooled_units(self, state: Any) -> Position:
        """The scale that the squares of all chains suggest together, leaves (1, *shape): one chain's may be small."""
        squares = {name: leaf.mean(0, keepdim=True) for name, leaf in state.square.items()}
        return self.units(replace(state, square=squares))

    def current_scale(self, state: Any) -> Position:
        """The units that are given, or what the chains have learnt so far."""
        return self.units(state) if self.scale is None else self.scale


def leafwise_squares(slopes: Position) -> Position:
    """The mean square of each leaf of each chain in all its places: where to start, for one gradient may be near zero.

    >>> leafwise_squares({"x": torch.tensor([[3.0, 4.0]])})["x"]
    tensor([[12.5000, 12.5000]])
    """
    return {
        name: g.square().reshape(len(g), -1).mean(-1).reshape(-1, *(1,) * (g.ndim - 1)).expand_as(g)
        for name, g in slopes.items()
    }
