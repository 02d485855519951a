"""Stochastic-gradient Langevin dynamics."""

from dataclasses import dataclass

import torch

from bayeskit.mcmc.base.log_density import Position
from bayeskit.mcmc.base.schedules import Schedule
from bayeskit.mcmc.sgmcmc.stochastic_kernel import StochasticKernel, add_noise, moved_along, precondition


@dataclass(frozen=True, eq=False)
class SGLDState:
    """The state of the chains.

    Args:
        position: Leaves (c, *shape).
        lr: Step size before the schedule's multiplier.
        count: Steps taken.
    """

    position: Position
    lr: float
    count: int = 0


@dataclass(frozen=True, eq=False)
class SGLD(StochasticKernel):
    """Stochastic-gradient Langevin dynamics: gradient ascent on the log density with injected Gaussian noise.

    With full-scale gradients `g` of the log density, exact or from mini-batches, a step is

        q <- q + h g + N(0, h (2 T - h V))

    There is no accept/reject step: on a Gaussian with precision `l` the stationary variance is
    `(T + h V' / 2) / (l (1 - h l / 2))`, with `V'` the gradient noise not accounted for, so the step size has to be
    well below `2 / l` for the largest curvature eigenvalue. Authors who use gradients per datum write `lr / N` for `h`.

    Args:
        lr: Step size `h` for the log density of the full data. None measures the largest curvature where the
            chains start (`curvature`) and takes `0.25 / curvature`: an eighth of the stability limit, the variance in
            the direction of largest curvature 14 % too large and the others nearly exact. Start near a mode, or give a
            number. Mini-batch noise requires a smaller one, by about the share of the data in a batch.
        temperature: T of the tempered density `exp(log density / T)`; 1 is the posterior, 0 is gradient ascent.
        schedule: Multiplier of `lr` as a function of the number of steps taken, such as `polynomial_decay`; None keeps
            it. With a decreasing one, weigh draws by the reported "step_size".
        gradient_noise: Known variance V of the preconditioned gradient's noise, subtracted from the injected noise.
        preconditioner: Diagonal S, leaves that broadcast with the position's, or None for 1: the step becomes
            `q <- q + h S^2 g + S N(0, 2 h T)`, so that directions of different scales mix equally fast.
        relative_lr: With `lr=None`, the step size times the largest curvature.
        gradient_clip: Gradient clipping: `sqrt(lr) |g|` is clipped at `gradient_clip sqrt(T)`, which a Gaussian never
            reaches in equilibrium. None is 10 with a measured step size, and no clipping with a given one.

    References:
        Welling and Teh (2011), Bayesian learning via stochastic gradient Langevin dynamics, equation 4 (their step is
        `2 h`); Ahn, Korattikara and Welling (2012) for subtracting the gradient noise.

    Examples:
        >>> from bayeskit import mcmc
        >>> g = torch.Generator().manual_seed(0)
        >>> start = {"x": torch.zeros(500)}
        >>> chain = mcmc.run(
        ...     SGLD(lr=0.1), lambda q: -0.5 * q["x"] ** 2, start, num_samples=20, burn_in=50, generator=g
        ... )
        >>> bool(abs(chain.samples["x"].var() - 1 / 0.95) < 0.05)
        True
    """

    lr: float | None = None
    temperature: float = 1.0
    schedule: Schedule | None = None
    gradient_noise: float = 0.0
    preconditioner: Position | None = None
    relative_lr: float = 0.25
    gradient_clip: float | None = None

    def begin(self, position: Position, lr: float, *, generator: torch.Generator) -> SGLDState:
        """The chains at `position`."""
        return SGLDState(position, lr)

    def update(self, state: SGLDState, gradients: Position, *, generator: torch.Generator) -> SGLDState:
        """A preconditioned gradient step, and noise."""
        size, temperature = self.step_size_and_temperature(state)
        position = moved_along(
            state.position, precondition(gradients, self.preconditioner), self.preconditioner, alpha=size
        )
        variance = size * (2 * temperature - size * self.gradient_noise)
        add_noise(position, variance, temperature=temperature, generator=generator, preconditioner=self.preconditioner)
        return SGLDState(position, state.lr, state.count + 1)
