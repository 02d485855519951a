"""The stochastic-gradient Nose-Hoover thermostat."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bayeskit.core import checks
from bayeskit.mcmc.base.log_density import Position
from bayeskit.mcmc.base.schedules import Schedule
from bayeskit.mcmc.sgmcmc.momentum import duration_and_friction, start
from bayeskit.mcmc.sgmcmc.stochastic_kernel import StochasticKernel, add_noise, lists, moved_along, precondition


@dataclass(frozen=True, eq=False)
class SGNHTState:
    """Positions, momenta and thermostats of the chains.

    Args:
        position: Leaves (c, *shape).
        momentum: Leaves (c, *shape), N(0, T) in equilibrium, preconditioned.
        friction: Thermostat of each chain, friction per unit of time, (c,); a step removes `friction sqrt(lr)`.
        lr: The squared duration of a step before the schedule's multiplier.
        count: Steps taken.
    """

    position: Position
    momentum: Position
    friction: Tensor
    lr: float
    count: int = 0


@dataclass(frozen=True, eq=False)
class SGNHT(StochasticKernel):
    """SGHMC with a thermostat: the friction adapts to the kinetic energy, which absorbs unknown gradient noise.

    With full-scale gradients `g` of the log density, `h = sqrt(lr)`, `a = 1 - momentum` and d numbers a chain,

        p <- exp(-h f) p + h g + N(0, 2 a T)
        q <- q + h p
        f <- f + r h (|p|^2 / d - T)

    f starts at a / h and grows while the mean squared momentum is above T. It converges to about
    `a / h + h V / (2 T)` for gradient noise of variance V, which SGHMC would have to be given. The discretization bias
    remains: on a Gaussian with precision `l` the variance is `T / l (1 + exp(-h f)) / 2` for large d. All parameters of
    a chain share one friction, so the noise should be similar in all directions, and d at least about ten.

    Args:
        lr: Step size `h^2` for the log density of the full data; that for the mean loss of N rows, over N. None
            measures the largest curvature where the chains start and takes `relative_lr / curvature`.
        momentum: Fraction of the momentum that a step keeps if gradients have no noise.
        temperature: T of the tempered density `exp(log density / T)`; 1 is the posterior, 0 an optimizer.
        schedule: Multiplier of `lr` as a function of the number of steps taken. Durations of steps scale with its
            square root; the friction per unit of time is unchanged.
        thermostat: Rate r at which the friction adapts; 1 in the papers. None takes `(1 - momentum)^2 / (lr T)`, with
            which it converges in about `1 / (1 - momentum)` steps on any scale of the log density; 0 if T = 0.
        preconditioner: Diagonal S, leaves that broadcast with the position's; S^2 is an inverse mass. None for 1.
        relative_lr: With `lr=None`, the step size times the largest curvature.
        gradient_clip: Gradient clipping: `sqrt(lr) |g|` is clipped at `gradient_clip sqrt(T)`, which a Gaussian never
            reaches in equilibrium. None is 10 with a measured step size, and no clipping with a given one.

    References:
        Ding, Fang, Babbush, Chen, Skeel and Neven (2014), Bayesian sampling using stochastic gradient thermostats,
        algorithm 2, where `thermostat = 1`.

    Examples:
        >>> from bayeskit import mcmc
        >>> g = torch.Generator().manual_seed(0)
        >>> start = {"x": torch.zeros(20, 50)}
        >>> chain = mcmc.run(
        ...     SGNHT(lr=0.04), lambda q: -0.5 * (q["x"] ** 2).sum(-1), start, num_samples=20, burn_in=200, generator=g
        ... )
        >>> bool(abs(chain.samples["x"].var() - 0.95) < 0.05)
        True
    """

    lr: float | None = None
    momentum: float = 0.9
    temperature: float = 1.0
    schedule: Schedule | None = None
    thermostat: float | None = None
    preconditioner: Position | None = None
    relative_lr: float = 0.25
    gradient_clip: float | None = None

    def begin(self, position: Position, lr: float, *, generator: torch.Generator) -> SGNHTState:
        """The chains at `position`, with momenta from N(0, T) and the friction given by `momentum`."""
        if self.thermostat is not None:
            checks.positive(self.thermostat, name="thermostat")
        first = start(position, lr, momentum=self.momentum, temperature=self.temperature, generator=generator)
        leaf = next(iter(position.values()))
        return SGNHTState(position, first.momentum, leaf.new_full((len(leaf),), (1 - self.momentum) / lr**0.5), lr)

    def update(self, state: SGNHTState, gradients: Position, *, generator: torch.Generator) -> SGNHTState:
        """Momentum, position, friction."""
        size, temperature = self.step_size_and_temperature(state)
        h, noise = duration_and_friction(size, state.lr, self.momentum)
        keep = (-h * state.friction).exp()
        momentum = {name: leaf * keep.reshape(-1, *(1,) * (leaf.ndim - 1)) for name, leaf in state.momentum.items()}
        lists._foreach_add_(
            list(momentum.values()), list(precondition(gradients, self.preconditioner).values()), alpha=h
        )
        add_noise(momentum, 2 * noise * temperature, temperature=temperature, generator=generator)
        position = moved_along(state.position, momentum, self.preconditioner, alpha=h)
        squared = torch.stack([leaf.square().reshape(len(leaf), -1).sum(-1) for leaf in momentum.values()]).sum(0)
        number = sum(leaf[0].numel() for leaf in momentum.values())
        friction = state.friction + self._rate(state.lr, temperature) * h * (squared / number - temperature)
        return SGNHTState(position, momentum, friction, state.lr, state.count + 1)

    def _rate(self, lr: float, temperature: float) -> float:
        if self.thermostat is not None:
            return self.thermostat
        return (1 - self.momentum) ** 2 / (lr * temperature) if temperature > 0 else 0.0
