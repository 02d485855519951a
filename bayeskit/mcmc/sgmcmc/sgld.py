"""Stochastic-gradient Langevin dynamics."""

from dataclasses import dataclass

import torch

from bayeskit.mcmc.base.log_density import Position
from bayeskit.mcmc.base.schedules import Schedule
from bayeskit.mcmc.sgmcmc.stochastic_kernel import StochasticKernel, add_noise, in_units, uphill


@dataclass(frozen=True, eq=False)
class SGLDState:
    """Where the chains are.

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
    """Gradient ascent on the log density with noise that turns it into a sampler.

    With full-scale gradients `g` of the log density, exact or from mini-batches, a step is

        q <- q + h g + N(0, h (2 T - h V))

    There is no accept/reject step: on a Gaussian with precision `l` the stationary variance is
    `(T + h V' / 2) / (l (1 - h l / 2))`, with `V'` the gradient noise not accounted for, so a step size well below
    `2 / l` in the stiffest direction is what makes the draws right. Authors who use gradients per datum write `lr / N`
    for `h`.

    Args:
        lr: Step size `h` for the log density of the full data. None measures the curvature where the chains start
            (`curvature`) and takes `0.25 / curvature`: an eighth of the stability limit, the variance of the stiffest
            direction 14 % too large and the others nearly exact. Start near a mode, or give a number. Mini-batch noise
            asks for a smaller one, by about the share of the data in a batch.
        temperature: T of the tempered law `exp(log density / T)`; 1 is the posterior, 0 is gradient ascent.
        schedule: Multiplier of `lr` as a function of the number of steps taken, such as `polynomial_decay`; None keeps
            it. With a decreasing one, weigh draws by the reported "step_size".
        gradient_noise: Known variance V of the gradient noise in units of `scale`, subtracted from the noise that is
            injected.
        scale: Units s in which chains move, leaves that broadcast with the position's: the step becomes
            `q <- q + h s^2 g + s N(0, 2 h T)`, so that directions of unlike spread are explored alike.
        relative_lr: With `lr=None`, the step size times the largest curvature.
        max_kick: Where gradients are cut off, `sqrt(lr) |g| = max_kick sqrt(T)`: never in equilibrium of a Gaussian.
            None is 10 with a measured step, nowhere with one that is given.

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
    scale: Position | None = None
    relative_lr: float = 0.25
    max_kick: float | None = None

    def begin(self, position: Position, lr: float, *, generator: torch.Generator) -> SGLDState:
        """The chains at `position`."""
        if self.gradient_noise < 0:
            raise ValueError(f"`gradient_noise` must not be negative; got {self.gradient_noise!r}")
        return SGLDState(position, lr)

    def update(self, state: SGLDState, slopes: Position, *, generator: torch.Generator) -> SGLDState:
        """One step uphill, and noise."""
        size, temperature = self.pace(state)
        position = uphill(state.position, in_units(slopes, self.scale), self.scale, alpha=size)
        variance = size * (2 * temperature - size * self.gradient_noise)
        add_noise(position, variance, temperature=temperature, generator=generator, scale=self.scale)
        return SGLDState(position, state.lr, state.count + 1)
