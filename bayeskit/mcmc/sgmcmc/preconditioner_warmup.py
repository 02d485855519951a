"""Kernels whose diagonal preconditioner is learnt in the burn-in and fixed after it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Self

import torch

from bayeskit.mcmc.base.log_density import LogDensity, Position, value_and_gradient
from bayeskit.mcmc.base.transition_kernel import AdaptiveKernel
from bayeskit.mcmc.sgmcmc.stochastic_kernel import GRADIENT_CLIP, StochasticKernel, measured_lr

MEASUREMENTS = 4
"""How often in a burn-in the step size is measured again as the preconditioner changes."""


class AdaptivePreconditionerKernel(StochasticKernel, AdaptiveKernel, ABC):
    """A stochastic-gradient kernel whose `update` learns a preconditioner as long as none is given.

    During learning only the pair (position, statistics) is a Markov chain, so the distribution of the position is
    biased. After the burn-in the preconditioner is fixed. The state has a field `square`, averages of squared
    gradients.
    """

    @abstractmethod
    def learn(self, state: Any, gradients: Position) -> Any:
        """The state with its statistics updated by the gradients at its position."""

    @abstractmethod
    def learnt_preconditioner(self, state: Any) -> Position:
        """The preconditioner computed from the state's statistics, leaves (c, *shape)."""

    def init(self, position: Position, log_density: LogDensity, *, generator: torch.Generator) -> Any:
        """The chains at `position`, with a step size measured under the preconditioner of the first gradients."""
        settings: Any = self
        self.check()
        state = self.begin(position, self.lr or 1.0, generator=generator)
        if self.preconditioner is None:
            state = self.learn(state, value_and_gradient(log_density, position)[1])
        if self.lr is not None:
            return state
        known = self.preconditioner is not None
        measured = self if known else replace(settings, preconditioner=self.learnt_preconditioner(state))
        return replace(state, lr=measured_lr(measured, log_density, position, generator=generator))

    def prepared(
        self, log_density: LogDensity, position: Position, *, share: float = 1.0, generator: torch.Generator
    ) -> Self:
        """The kernel with a `relative_lr` small enough for mini-batch noise; the step size is measured in the burn-in.

        If the model fits, that noise has a variance of about `curvature / share`. A `relative_lr` multiplied by the
        share, and by the friction in a step, limits the excess variance to that of a batch of all data points drawn
        with replacement, in every direction, because the learnt preconditioner equalizes the curvature.
        """
        settings: Any = self
        friction = 1 - getattr(self, "momentum", 0.0)
        return self if share >= 1 else replace(settings, relative_lr=self.relative_lr * share * friction)

    def adapt(
        self, position: Position, densities: Iterator[LogDensity], *, num_steps: int, generator: torch.Generator
    ) -> tuple[Self, Any]:
        """Run `num_steps` learning steps; return the kernel with the final preconditioner and step size."""
        settings: Any = self
        state = self.init(position, next(densities), generator=generator)
        if self.preconditioner is not None:
            for _ in range(num_steps):
                state, _ = self.step(state, next(densities), generator=generator)
            return self, state
        every = max(1, num_steps // MEASUREMENTS)
        for count in range(1, num_steps + 1):
            state, _ = self.step(state, next(densities), generator=generator)
            if self.lr is None and (count % every == 0 or count == num_steps):
                measured = replace(settings, preconditioner=self.pooled_preconditioner(state))
                state = replace(state, lr=measured_lr(measured, next(densities), state.position, generator=generator))
        clip = GRADIENT_CLIP if self.gradient_clip is None and self.lr is None else self.gradient_clip
        return replace(
            settings, lr=state.lr, preconditioner=self.pooled_preconditioner(state), gradient_clip=clip
        ), state

    def pooled_preconditioner(self, state: Any) -> Position:
        """The preconditioner from the squared gradients averaged over chains, leaves (1, *shape)."""
        squares = {name: leaf.mean(0, keepdim=True) for name, leaf in state.square.items()}
        return self.learnt_preconditioner(replace(state, square=squares))

    def current_preconditioner(self, state: Any) -> Position:
        """The given preconditioner, or the one learnt so far."""
        return self.learnt_preconditioner(state) if self.preconditioner is None else self.preconditioner


def leafwise_squares(gradients: Position) -> Position:
    """The mean square of each leaf of each chain, at every entry: the initial value of the averages.

    >>> leafwise_squares({"x": torch.tensor([[3.0, 4.0]])})["x"]
    tensor([[12.5000, 12.5000]])
    """
    return {
        name: g.square().reshape(len(g), -1).mean(-1).reshape(-1, *(1,) * (g.ndim - 1)).expand_as(g)
        for name, g in gradients.items()
    }
