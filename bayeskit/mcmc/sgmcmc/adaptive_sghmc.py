"""SGHMC that learns its units in the burn-in."""

from dataclasses import dataclass, replace

import torch

from bayeskit.mcmc.base.log_density import Position
from bayeskit.mcmc.base.schedules import Schedule
from bayeskit.mcmc.sgmcmc.momentum import MomentumState, start
from bayeskit.mcmc.sgmcmc.preconditioner_warmup import ScaleLearner, leafwise_squares
from bayeskit.mcmc.sgmcmc.sghmc import SGHMC

WINDOW = 50
"""Steps that an average covers at least, as soon as there are so many. The paper has no such bound: without noise a
gradient that changes slowly is all direction, the window shrinks to one step, and V vanishes where it does."""


@dataclass(frozen=True, eq=False)
class AdaptiveSGHMCState:
    """Where the chains are and where they are going, and what their gradients were like.

    Args:
        position: Leaves (c, *shape).
        momentum: Leaves (c, *shape), of law N(0, T) in equilibrium, in the units learnt.
        window: Steps that the averages remember, t, leaves (c, *shape).
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
class AdaptiveSGHMC(ScaleLearner):
    """SGHMC whose inverse mass `1 / sqrt(V)` is learnt in the burn-in from the squared gradients, and fixed after it.

    Each coordinate averages over a window of its own, which shrinks while its gradients have a direction and grows
    while they are noise:

        t <- t (1 - m^2 / V) + 1,    m <- m + (g - m) / t,    V <- V + (g^2 - V) / t

    with t at least `WINDOW` (the paper has no such bound). What follows the burn-in is `SGHMC(scale=V^(-1/4))`, its law
    is known. The paper also takes `h^2 V` for the variance of the gradient noise and injects that much less; V holds
    the gradient's own square as well, which makes the chain cold where gradients are exact, so it is not done here.

    Args:
        lr: Squared duration h^2 of a step in the units learnt, the square of the paper's epsilon. None measures the
            curvature in those units, when the burn-in begins, on its way and at its end.
        momentum: Share of the momentum that a step keeps.
        temperature: T of the tempered law `exp(log density / T)`; 1 is the posterior, 0 an optimizer.
        schedule: Multiplier of `lr` as a function of the number of steps taken, burn-in included.
        scale: Units V^(-1/4), leaves that broadcast with the position's; None before they are learnt.
        relative_lr: With `lr=None`, the step size times the largest curvature in those units.
        max_kick: Where gradients are cut off, `sqrt(lr) |g| = max_kick sqrt(T)`: never in equilibrium of a Gaussian.
            None is 10 with a measured step, nowhere with one that is given.

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
    scale: Position | None = None
    relative_lr: float = 0.25
    max_kick: float | None = None

    def begin(self, position: Position, lr: float, *, generator: torch.Generator) -> AdaptiveSGHMCState:
        """The chains at `position`, with momenta from their law and nothing known of their gradients."""
        first = start(position, lr, momentum=self.momentum, temperature=self.temperature, generator=generator)
        return AdaptiveSGHMCState(position, first.momentum, {}, {}, {}, lr)

    def learn(self, state: AdaptiveSGHMCState, slopes: Position) -> AdaptiveSGHMCState:
        """The window and the two averages, moved on; at first each coordinate has the squares of its whole leaf."""
        if not state.window:
            square = leafwise_squares(slopes)
            window = {name: torch.ones_like(g) for name, g in slopes.items()}
            return replace(state, window=window, mean=dict(slopes), square=square)
        window, mean, square = {}, {}, {}
        for name, g in slopes.items():
            share = state.mean[name].square() / state.square[name].clamp_min(torch.finfo(g.dtype).tiny)
            shortest = min(state.count + 2, WINDOW)
            window[name] = (state.window[name] * (1 - share) + 1).clamp_min(shortest)
            mean[name] = state.mean[name] + (g - state.mean[name]) / window[name]
            square[name] = state.square[name] + (g.square() - state.square[name]) / window[name]
        return replace(state, window=window, mean=mean, square=square)

    def units(self, state: AdaptiveSGHMCState) -> Position:
        """The fourth root of 1 / V."""
        return {name: torch.where(v > 0, v, 1.0).pow(-0.25) for name, v in state.square.items()}

    def update(self, state: AdaptiveSGHMCState, slopes: Position, *, generator: torch.Generator) -> AdaptiveSGHMCState:
        """Learn from the gradients unless that is over, and a step of SGHMC in the units learnt."""
        learnt = state if self.scale is not None else self.learn(state, slopes)
        kernel = SGHMC(self.lr, self.momentum, self.temperature, self.schedule, scale=self.current_scale(learnt))
        place = MomentumState(state.position, state.momentum, state.lr, state.count)
        moved = kernel.update(place, slopes, generator=generator)
        return replace(learnt, position=moved.position, momentum=moved.momentum, count=moved.count)
