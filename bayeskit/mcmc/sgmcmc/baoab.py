"""Underdamped Langevin dynamics by the BAOAB splitting, with one gradient a step."""

from dataclasses import dataclass

import torch

from bayeskit.mcmc.base.log_density import Position
from bayeskit.mcmc.base.schedules import Schedule
from bayeskit.mcmc.sgmcmc.momentum import MomentumState, start
from bayeskit.mcmc.sgmcmc.stochastic_kernel import StochasticKernel, add_noise, lists, moved_along, precondition


@dataclass(frozen=True, eq=False)
class BAOAB(StochasticKernel):
    """Underdamped Langevin dynamics by the BAOAB splitting, each of whose parts is solved exactly.

    With full-scale gradients `g` of the log density, `h = sqrt(lr)` and `c = momentum`,

        B:  p <- p + h / 2 g        A:  q <- q + h / 2 p        O:  p <- c p + N(0, (1 - c^2) T)

    in the order B A O A B. The last B of a step and the first of the next share a position, so a step makes both at
    once, with the gradient of one mini-batch: the positions are those of BAOAB, the momenta those before the last B
    (the order B A O A). On a Gaussian with precision `l` the stationary variance of the position is *exactly* T / l
    wherever `h^2 l < 4`; gradient noise V' not accounted for adds `V' h^2 (1 + c) / (l (1 - c) (4 - h^2 l))`.

    Args:
        lr: Step size `h^2` for the log density of the full data; that for the mean loss of N rows, over N. None
            measures the largest curvature where the chains start and takes `relative_lr / curvature`.
        momentum: Fraction c of the momentum that a step keeps, `exp(-friction h)`.
        temperature: T of the tempered density `exp(log density / T)`; 1 is the posterior, 0 an optimizer with momentum.
        schedule: Multiplier of `lr` as a function of the number of steps taken. Durations of steps scale with its
            square root; the friction per unit of time is unchanged.
        gradient_noise: Known variance V of the preconditioned gradient's noise; its contribution to the position's
            variance, to second order in h, is subtracted from the injected noise.
        preconditioner: Diagonal S, leaves that broadcast with the position's; S^2 is an inverse mass. None for 1.
        relative_lr: With `lr=None`, the step size times the largest curvature, an eighth of the stability limit.
        gradient_clip: Gradient clipping: `sqrt(lr) |g|` is clipped at `gradient_clip sqrt(T)`, which a Gaussian never
            reaches in equilibrium. None is 10 with a measured step size, and no clipping with a given one.

    References:
        Leimkuhler and Matthews (2013), Rational construction of stochastic numerical methods for molecular sampling,
        section 2; (2015), Molecular dynamics, section 7.4, for the error of the configurational distribution.

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
    preconditioner: Position | None = None
    relative_lr: float = 0.5
    gradient_clip: float | None = None

    def begin(self, position: Position, lr: float, *, generator: torch.Generator) -> MomentumState:
        """The chains at `position`, with momenta from their stationary distribution."""
        return start(position, lr, momentum=self.momentum, temperature=self.temperature, generator=generator)

    def update(self, state: MomentumState, gradients: Position, *, generator: torch.Generator) -> MomentumState:
        """B of the previous step and of this one, then A, O and A."""
        size, temperature = self.step_size_and_temperature(state)
        h, keep = size**0.5, self.momentum ** ((size / state.lr) ** 0.5)
        duration = h if state.count else h / 2  # the first step has no previous one
        force = list(precondition(gradients, self.preconditioner).values())
        pushed = lists._foreach_add(list(state.momentum.values()), force, alpha=duration)
        momentum = dict(zip(state.momentum, pushed, strict=True))
        position = moved_along(state.position, momentum, self.preconditioner, alpha=h / 2)
        lists._foreach_mul_(pushed, keep)
        variance = (1 - keep**2) * temperature - size * self.gradient_noise * (1 + keep) ** 2 / 4
        add_noise(momentum, variance, temperature=temperature, generator=generator)
        position = moved_along(position, momentum, self.preconditioner, alpha=h / 2)
        return MomentumState(position, momentum, state.lr, state.count + 1)
