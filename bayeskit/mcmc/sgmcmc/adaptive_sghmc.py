"""SGHMC with a diagonal preconditioner that is learnt in the burn-in."""

from dataclasses import dataclass, replace

import torch

from bayeskit.mcmc.base.log_density import Position
from bayeskit.mcmc.base.schedules import Schedule
from bayeskit.mcmc.sgmcmc.momentum import MomentumState, start
from bayeskit.mcmc.sgmcmc.preconditioner_warmup import AdaptivePreconditionerKernel, leafwise_squares
from bayeskit.mcmc.sgmcmc.sghmc import SGHMC

WINDOW = 50
"""Smallest window of the averages, once there are so many steps. The paper has no such bound: with noise-free gradients
that change slowly the window shrinks to one step, and V vanishes where the gradient does."""


@dataclass(frozen=True, eq=False)
class AdaptiveSGHMCState:
    """Positions and momenta of the chains, and averages of their gradients.

    Args:
        position: Leaves (c, *shape).
        momentum: Leaves (c, *shape), N(0, T) in equilibrium, preconditioned.
        window: Window t of the averages in steps, leaves (c, *shape).
        mean: Average gradient.
        square: Average squared gradient, V.
        lr: The squared duration of a step before the schedule's multiplier.
        count: Steps taken.
    """

    position: Position
    momentum: Position
    window: Position
    mean: Position
    square: Position
    lr: float
    count: int = 0


@dataclass(frozen=True, eq=False)
class AdaptiveSGHMC(AdaptivePreconditionerKernel):
    """SGHMC with inverse mass `1 / sqrt(V)` estimated from squared gradients in the burn-in, and fixed after it.

    Each coordinate has its own averaging window, which shrinks while its gradients agree in sign and grows while they
    are dominated by noise:

        t <- t (1 - m^2 / V) + 1,    m <- m + (g - m) / t,    V <- V + (g^2 - V) / t

    with t at least `WINDOW` (the paper has no such bound). After the burn-in it is
    `SGHMC(preconditioner=V^(-1/4))`, whose stationary distribution is known. The paper also subtracts `h^2 V` from the
    injected noise as the variance of the gradient noise; V includes the squared mean gradient, so with exact gradients
    the temperature would be too low, and it is not done here.

    Args:
        lr: Squared duration h^2 of a preconditioned step, the square of the paper's epsilon. None measures the
            preconditioned curvature, at the beginning of the burn-in, during it and at its end.
        momentum: Fraction of the momentum that a step keeps.
        temperature: T of the tempered density `exp(log density / T)`; 1 is the posterior, 0 an optimizer.
        schedule: Multiplier of `lr` as a function of the number of steps taken, burn-in included.
        preconditioner: V^(-1/4), leaves that broadcast with the position's; None before it is learnt.
        relative_lr: With `lr=None`, the step size times the largest preconditioned curvature.
        gradient_clip: Gradient clipping: `sqrt(lr) |g|` is clipped at `gradient_clip sqrt(T)`, which a Gaussian never
            reaches in equilibrium. None is 10 with a measured step size, and no clipping with a given one.

    References:
        Springenberg, Klein, Falkner and Hutter (2016), Bayesian optimization with robust Bayesian neural networks,
        section 4 and equations 8 to 10.

    Examples:
        >>> from bayeskit import mcmc
        >>> g, precisions = torch.Generator().manual_seed(0), torch.tensor([1.0, 10_000.0])
        >>> start = {"x": torch.zeros(100, 2)}
        >>> chain = mcmc.run(
        ...     AdaptiveSGHMC(), lambda q: -0.5 * (q["x"] ** 2 * precisions).sum(-1), start,
        ...     num_samples=20, burn_in=300, thin=20, generator=g,
        ... )
        >>> bool((chain.samples["x"].var((0, 1)) * precisions - 1).abs().max() < 0.2)
        True
    """

    lr: float | None = None
    momentum: float = 0.9
    temperature: float = 1.0
    schedule: Schedule | None = None
    preconditioner: Position | None = None
    relative_lr: float = 0.25
    gradient_clip: float | None = None

    def begin(self, position: Position, lr: float, *, generator: torch.Generator) -> AdaptiveSGHMCState:
        """The chains at `position`, with momenta from their stationary distribution and no gradient statistics."""
        first = start(position, lr, momentum=self.momentum, temperature=self.temperature, generator=generator)
        return AdaptiveSGHMCState(position, first.momentum, {}, {}, {}, lr)

    def learn(self, state: AdaptiveSGHMCState, gradients: Position) -> AdaptiveSGHMCState:
        """Update the window and the two averages, which begin at the mean square of each leaf."""
        if not state.window:
            square = leafwise_squares(gradients)
            window = {name: torch.ones_like(g) for name, g in gradients.items()}
            return replace(state, window=window, mean=dict(gradients), square=square)
        window, mean, square = {}, {}, {}
        for name, g in gradients.items():
            share = state.mean[name].square() / state.square[name].clamp_min(torch.finfo(g.dtype).tiny)
            shortest = min(state.count + 2, WINDOW)
            window[name] = (state.window[name] * (1 - share) + 1).clamp_min(shortest)
            mean[name] = state.mean[name] + (g - state.mean[name]) / window[name]
            square[name] = state.square[name] + (g.square() - state.square[name]) / window[name]
        return replace(state, window=window, mean=mean, square=square)

    def learnt_preconditioner(self, state: AdaptiveSGHMCState) -> Position:
        """`V^(-1/4)`."""
        return {name: torch.where(v > 0, v, 1.0).pow(-0.25) for name, v in state.square.items()}

    def update(
        self, state: AdaptiveSGHMCState, gradients: Position, *, generator: torch.Generator
    ) -> AdaptiveSGHMCState:
        """Update the statistics during the burn-in, then take a preconditioned step of SGHMC."""
        learnt = state if self.preconditioner is not None else self.learn(state, gradients)
        kernel = SGHMC(
            self.lr, self.momentum, self.temperature, self.schedule, preconditioner=self.current_preconditioner(learnt)
        )
        inner = MomentumState(state.position, state.momentum, state.lr, state.count)
        moved = kernel.update(inner, gradients, generator=generator)
        return replace(learnt, position=moved.position, momentum=moved.momentum, count=moved.count)
