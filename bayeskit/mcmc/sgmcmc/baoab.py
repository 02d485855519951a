"""Langevin dynamics by the splitting BAOAB, at one gradient a step."""

from dataclasses import dataclass

import torch

from bayeskit.mcmc.base.log_density import Position
from bayeskit.mcmc.base.schedules import Schedule
from bayeskit.mcmc.sgmcmc.momentum import MomentumState, start
from bayeskit.mcmc.sgmcmc.stochastic_kernel import StochasticKernel, add_noise, in_units, lists, uphill


@dataclass(frozen=True, eq=False)
class BAOAB(StochasticKernel):
    """Langevin dynamics in parts that each are solved exactly: kick, drift, friction with noise, drift, kick.

    With full-scale gradients `g` of the log density, `h = sqrt(lr)` and `c = momentum`,

        B:  p <- p + h / 2 g        A:  q <- q + h / 2 p        O:  p <- c p + N(0, (1 - c^2) T)

    in the order B A O A B. The last kick of a step and the first of the next share a position, so a step makes both at
    once, with the gradient of one mini-batch: the positions are those of BAOAB, the momenta those before the last kick
    (the order B A O A). On a Gaussian with precision `l` the stationary variance of the position is *exactly* T / l
    wherever `h^2 l < 4`; gradient noise V' not accounted for adds `V' h^2 (1 + c) / (l (1 - c) (4 - h^2 l))`.

    Args:
        lr: Step size `h^2` for the log density of the full data; that for the mean loss of N rows, over N. None
            measures the curvature where the chains start and takes `relative_lr / curvature`.
        momentum: Share c of the momentum that a step keeps, `exp(-friction h)`.
        temperature: T of the tempered law `exp(log density / T)`; 1 is the posterior, 0 an optimizer with momentum.
        schedule: Multiplier of `lr` as a function of the number of steps taken. Durations of steps go with its square
            root and friction in time stays.
        gradient_noise: Known variance V of the gradient noise in units of `scale`; what it adds to the position's
            variance, to second order in h, is taken from the noise that is injected.
        scale: Units in which chains move, leaves that broadcast with the position's; their squares are an inverse mass.
        relative_lr: With `lr=None`, the step size times the largest curvature, an eighth of the stability limit.
        max_kick: Where gradients are cut off, `sqrt(lr) |g| = max_kick sqrt(T)`: never in equilibrium of a Gaussian.
            None is 10 with a measured step, nowhere with one that is given.

    References:
        Leimkuhler and Matthews (2013), Rational construction of stochastic numerical methods for molecular sampling,
        section 2; (2015), Molecular dynamics, section 7.4, for what it leaves of the configurational law.

    Examples:
        >>> from bayeskit import mcmc
        >>> g = torch.Generator().manual_seed(0)
        >>> start = {"x": torch.zeros(500)}
        >>> chain = mcmc.run(
        ...     BAOAB(1.0, momentum=0.3), lambda q: -0.5 * q["x"] ** 2, start, num_samples=20, burn_in=20, generator=g
        ... )
        >>> bool(abs(chain.samples["x"].var() - 1) < 0.05)
        True
    """

    lr: float | None = None
    momentum: float = 0.9
    temperature: float = 1.0
    schedule: Schedule | None = None
    gradient_noise: float = 0.0
    scale: Position | None = None
    relative_lr: float = 0.5
    max_kick: float | None = None

    def begin(self, position: Position, lr: float, *, generator: torch.Generator) -> MomentumState:
        """The chains at `position`, with momenta from their law."""
        if self.gradient_noise < 0:
            raise ValueError(f"`gradient_noise` must not be negative; got {self.gradient_noise!r}")
        return start(position, lr, momentum=self.momentum, temperature=self.temperature, generator=generator)

    def update(self, state: MomentumState, slopes: Position, *, generator: torch.Generator) -> MomentumState:
        """The kicks at this position, then half a drift, friction with noise, half a drift."""
        size, temperature = self.pace(state)
        h, keep = size**0.5, self.momentum ** ((size / state.lr) ** 0.5)
        kick = h if state.count else h / 2  # at the start there was no step before
        pushed = lists._foreach_add(
            list(state.momentum.values()), list(in_units(slopes, self.scale).values()), alpha=kick
        )
        momentum = dict(zip(state.momentum, pushed, strict=True))
        position = uphill(state.position, momentum, self.scale, alpha=h / 2)
        lists._foreach_mul_(pushed, keep)
        variance = (1 - keep**2) * temperature - size * self.gradient_noise * (1 + keep) ** 2 / 4
        add_noise(momentum, variance, temperature=temperature, generator=generator)
        position = uphill(position, momentum, self.scale, alpha=h / 2)
        return MomentumState(position, momentum, state.lr, state.count + 1)
