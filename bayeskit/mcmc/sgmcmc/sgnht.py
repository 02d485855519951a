"""Stochastic-gradient Nose-Hoover thermostats."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bayeskit.core import checks
from bayeskit.mcmc.base.log_density import Position
from bayeskit.mcmc.base.schedules import Schedule
from bayeskit.mcmc.sgmcmc.momentum import duration_and_friction, start
from bayeskit.mcmc.sgmcmc.stochastic_kernel import StochasticKernel, add_noise, in_units, lists, uphill


@dataclass(frozen=True, eq=False)
class SGNHTState:
    """Where the chains are, where they are going, and what slows them.

    Args:
        position: Leaves (c, *shape).
        momentum: Leaves (c, *shape), of law N(0, T) in equilibrium, in the units of the kernel's `scale`.
        friction: Of each chain, in time, (c,); `friction sqrt(lr)` is what a step takes away.
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
    """SGHMC whose friction answers to the temperature it finds, so that it absorbs gradient noise of unknown size.

    With full-scale gradients `g` of the log density, `h = sqrt(lr)`, `a = 1 - momentum` and d numbers a chain,

        p <- exp(-h f) p + h g + N(0, 2 a T)
        q <- q + h p
        f <- f + r h (|p|^2 / d - T)

    f starts at a / h and grows while the momenta are hotter than T. It settles near `a / h + h V / (2 T)` for gradient
    noise of variance V, which is what a tuned SGHMC would have to know. What is left is the bias of the step: on a
    Gaussian with precision `l` the variance is `T / l (1 + exp(-h f)) / 2` for large d. One friction serves all numbers
    of a chain, so it suits noise that is alike in all directions, and wants some ten of them or more.

    Args:
        lr: Step size `h^2` for the log density of the full data; that for the mean loss of N rows, over N. None
            measures the curvature where the chains start and takes `relative_lr / curvature`.
        momentum: Share of the momentum that a step keeps if gradients have no noise.
        temperature: T of the tempered law `exp(log density / T)`; 1 is the posterior, 0 an optimizer.
        schedule: Multiplier of `lr` as a function of the number of steps taken. Durations of steps go with its square
            root and friction in time stays.
        thermostat: How fast friction answers, r; the papers have 1. None takes `(1 - momentum)^2 / (lr T)`, with which
            it settles in some `1 / (1 - momentum)` steps whatever the units of the log density, and stays at T = 0.
        scale: Units in which chains move, leaves that broadcast with the position's; their squares are an inverse mass.
        relative_lr: With `lr=None`, the step size times the largest curvature.
        max_kick: Where gradients are cut off, `sqrt(lr) |g| = max_kick sqrt(T)`: never in equilibrium of a Gaussian.
            None is 10 with a measured step, nowhere with one that is given.

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
    scale: Position | None = None
    relative_lr: float = 0.25
    max_kick: float | None = None

    def begin(self, position: Position, lr: float, *, generator: torch.Generator) -> SGNHTState:
        """The chains at `position`, with momenta from their law and the friction that `momentum` says."""
        if self.thermostat is not None:
            checks.positive(self.thermostat, name="thermostat")
        first = start(position, lr, momentum=self.momentum, temperature=self.temperature, generator=generator)
        leaf = next(iter(position.values()))
        return SGNHTState(position, first.momentum, leaf.new_full((len(leaf),), (1 - self.momentum) / lr**0.5), lr)

    def update(self, state: SGNHTState, slopes: Position, *, generator: torch.Generator) -> SGNHTState:
        """Momentum, position, friction."""
        size, temperature = self.pace(state)
        h, noise = duration_and_friction(size, state.lr, self.momentum)
        keep = (-h * state.friction).exp()
        momentum = {name: leaf * keep.reshape(-1, *(1,) * (leaf.ndim - 1)) for name, leaf in state.momentum.items()}
        lists._foreach_add_(list(momentum.values()), list(in_units(slopes, self.scale).values()), alpha=h)
        add_noise(momentum, 2 * noise * temperature, temperature=temperature, generator=generator)
        position = uphill(state.position, momentum, self.scale, alpha=h)
        heat = torch.stack([leaf.square().reshape(len(leaf), -1).sum(-1) for leaf in momentum.values()]).sum(0)
        number = sum(leaf[0].numel() for leaf in momentum.values())
        friction = state.friction + self._rate(state.lr, temperature) * h * (heat / number - temperature)
        return SGNHTState(position, momentum, friction, state.lr, state.count + 1)

    def _rate(self, lr: float, temperature: float) -> float:
        if self.thermostat is not None:
            return self.thermostat
        return (1 - self.momentum) ** 2 / (lr * temperature) if temperature > 0 else 0.0
