"""Stochastic-gradient Hamiltonian Monte Carlo."""

from dataclasses import dataclass

import torch

from bayeskit.mcmc.base.log_density import Position
from bayeskit.mcmc.base.schedules import Schedule
from bayeskit.mcmc.sgmcmc.momentum import MomentumState, duration_and_friction, start
from bayeskit.mcmc.sgmcmc.stochastic_kernel import StochasticKernel, add_noise, lists, moved_along, precondition


@dataclass(frozen=True, eq=False)
class SGHMC(StochasticKernel):
    """Stochastic-gradient Hamiltonian Monte Carlo: momentum with friction, and noise that balances the friction.

    With full-scale gradients `g` of the log density, exact or from mini-batches, `h = sqrt(lr)` and `a = 1 - momentum`,

        p <- (1 - a) p + h g + N(0, 2 a T - h^2 V)
        q <- q + h p

    The position moves by the *new* momentum (symplectic Euler), which is stable up to `h^2 l < 4 - 2 a` on a Gaussian
    with precision `l`; moving by the old one (explicit Euler) diverges from `h^2 l = a` on. The stationary variance is
    `(2 T c + h V') (2 - a) / (c l (4 - 2 a - h^2 l))` with friction `c = a / h` and V' the gradient noise not accounted
    for: that noise raises the temperature by the factor `1 + lr V' / (2 a T)`, more with less friction.

    Args:
        lr: Step size `h^2` for the log density of the full data: what gradient descent with momentum calls its learning
            rate, over N if that is for the mean loss of N rows. None measures the largest curvature where the chains
            start and takes `relative_lr / curvature`.
        momentum: Fraction of the momentum that a step keeps. At 0 this is SGLD with the same `lr`.
        temperature: T of the tempered density `exp(log density / T)`; 1 is the posterior, 0 is gradient ascent with
            momentum.
        schedule: Multiplier of `lr` as a function of the number of steps taken. Durations of steps scale with its
            square root; the friction per unit of time is unchanged.
        gradient_noise: Known variance V of the preconditioned gradient's noise, subtracted from the injected noise.
        preconditioner: Diagonal S, leaves that broadcast with the position's; S^2 is an inverse mass. None for 1.
        relative_lr: With `lr=None`, the step size times the largest curvature: at 0.25 the variance in the
            direction of largest curvature is 7 % too large.
        gradient_clip: Gradient clipping: `sqrt(lr) |g|` is clipped at `gradient_clip sqrt(T)`, which a Gaussian never
            reaches in equilibrium. None is 10 with a measured step size, and no clipping with a given one.

    References:
        Chen, Fox and Guestrin (2014), Stochastic gradient Hamiltonian Monte Carlo, equation 15, with `lr` their eta and
        `1 - momentum` their alpha; Wenzel et al. (2020), How good is the Bayes posterior in deep neural networks
        really?, section 3, for the order of the updates and for schedules of time.

    Examples:
        >>> from bayeskit import mcmc
        >>> g = torch.Generator().manual_seed(0)
        >>> start = {"x": torch.zeros(500)}
        >>> chain = mcmc.run(
        ...     SGHMC(lr=0.1), lambda q: -0.5 * q["x"] ** 2, start, num_samples=20, burn_in=50, generator=g
        ... )
        >>> bool(abs(chain.samples["x"].var() - 1) < 0.07)
        True
    """

    lr: float | None = None
    momentum: float = 0.9
    temperature: float = 1.0
    schedule: Schedule | None = None
    gradient_noise: float = 0.0
    preconditioner: Position | None = None
    relative_lr: float = 0.25
    gradient_clip: float | None = None

    def begin(self, position: Position, lr: float, *, generator: torch.Generator) -> MomentumState:
        """The chains at `position`, with momenta from their stationary distribution."""
        return start(position, lr, momentum=self.momentum, temperature=self.temperature, generator=generator)

    def update(self, state: MomentumState, gradients: Position, *, generator: torch.Generator) -> MomentumState:
        """Momentum first, then the position by the new one."""
        size, temperature = self.step_size_and_temperature(state)
        h, friction = duration_and_friction(size, state.lr, self.momentum)
        pushed = lists._foreach_mul(list(state.momentum.values()), 1 - friction)
        lists._foreach_add_(pushed, list(precondition(gradients, self.preconditioner).values()), alpha=h)
        momentum = dict(zip(state.momentum, pushed, strict=True))
        variance = 2 * friction * temperature - size * self.gradient_noise
        add_noise(momentum, variance, temperature=temperature, generator=generator)
        position = moved_along(state.position, momentum, self.preconditioner, alpha=h)
        return MomentumState(position, momentum, state.lr, state.count + 1)
