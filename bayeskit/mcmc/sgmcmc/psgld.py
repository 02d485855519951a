"""SGLD with the preconditioner of RMSprop."""

from dataclasses import dataclass, replace
from typing import Literal

import torch

from bayeskit.core import checks
from bayeskit.mcmc.base.log_density import LogDensity, Position, hessian_diagonal
from bayeskit.mcmc.base.schedules import Schedule
from bayeskit.mcmc.base.transition_kernel import Info
from bayeskit.mcmc.sgmcmc.preconditioner_warmup import ScaleLearner, leafwise_squares
from bayeskit.mcmc.sgmcmc.sgld import SGLD, SGLDState


@dataclass(frozen=True, eq=False)
class PSGLDState:
    """Where the chains are, and what their gradients were like.

    Args:
        position: Leaves (c, *shape).
        square: Moving average V of the squared gradients, leaves (c, *shape).
        lr: Step size before the schedule's multiplier.
        count: Steps taken.
    """

    position: Position
    square: Position
    lr: float
    count: int = 0


@dataclass(frozen=True, eq=False)
class PSGLD(ScaleLearner):
    """SGLD in units learnt from the size of the gradients, and fixed after the burn-in.

    With full-scale gradients `g` of the log density and `G = 1 / (d + sqrt(V))`,

        V <- b V + (1 - b) g^2,    q <- q + h (G g + T C) + N(0, 2 h T G),    C_i = dG_i / dq_i

    during the burn-in; then V stays, C is zero, and this is SGLD with `scale = sqrt(G)`, whose law is known. A
    preconditioner that goes on learning has no such law: on a standard normal, with C and without, its variance is
    between 1.3 and 1.9.

    Args:
        lr: Step size h, in the units of G. Where a paper takes `epsilon / 2` of the gradient and a preconditioner of
            the *mean* gradient of N rows, h is `N epsilon / 2` and `damping` N times theirs. None measures the
            curvature in those units, when the burn-in begins, on its way and at its end.
        decay: b, the memory of V, an average of all steps until there are `1 / (1 - b)` of them.
        damping: d, on the scale of gradients of the full data.
        temperature: T of the tempered law `exp(log density / T)`; 1 is the posterior, 0 an optimizer.
        schedule: Multiplier of `lr` as a function of the number of steps taken, burn-in included.
        correction: What to do about C in the burn-in: "drop" it, as is usual, or estimate it by "hutchinson", with
            second derivatives along random signs, which triples the cost of a step.
        scale: Units sqrt(G), leaves that broadcast with the position's; None before they are learnt.
        relative_lr: With `lr=None`, the step size times the largest curvature in the units of G.
        max_kick: Where gradients are cut off, `sqrt(lr G) |g| = max_kick sqrt(T)`: never in equilibrium of a Gaussian.
            None is 10 with a measured step, nowhere with one that is given.

    References:
        Li, Chen, Carlson and Carin (2016), Preconditioned stochastic gradient Langevin dynamics for deep neural
        networks, algorithm 1 and equation 9 for C.

    Examples:
        >>> from bayeskit import mcmc
        >>> g, precisions = torch.Generator().manual_seed(0), torch.tensor([1.0, 10_000.0])
        >>> start = {"x": torch.zeros(100, 2)}
        >>> chain = mcmc.run(
        ...     PSGLD(), lambda q: -0.5 * (q["x"] ** 2 * precisions).sum(-1), start,
        ...     num_samples=20, burn_in=300, thin=20, generator=g,
        ... )
        >>> bool((chain.samples["x"].var((0, 1)) * precisions - 1).abs().max() < 0.2)
        True
    """

    lr: float | None = None
    decay: float = 0.99
    damping: float = 1e-5
    temperature: float = 1.0
    schedule: Schedule | None = None
    correction: Literal["drop", "hutchinson"] = "drop"
    scale: Position | None = None
    relative_lr: float = 0.25
    max_kick: float | None = None

    def begin(self, position: Position, lr: float, *, generator: torch.Generator) -> PSGLDState:
        """The chains at `position`, with nothing known of their gradients."""
        checks.fraction(self.decay, name="decay")
        checks.positive(self.damping, name="damping")
        checks.choice(self.correction, name="correction", options=("drop", "hutchinson"))
        return PSGLDState(position, {}, lr)

    def learn(self, state: PSGLDState, slopes: Position) -> PSGLDState:
        """The average of the squared gradients, moved towards these."""
        if not state.square:
            return replace(state, square=leafwise_squares(slopes))
        share = self._share(state)
        square = {name: old.lerp(slopes[name].square(), share) for name, old in state.square.items()}
        return replace(state, square=square)

    def units(self, state: PSGLDState) -> Position:
        """The square root of G."""
        return {name: (self.damping + square.sqrt()).rsqrt() for name, square in state.square.items()}

    def step(
        self, state: PSGLDState, log_density: LogDensity, *, generator: torch.Generator
    ) -> tuple[PSGLDState, Info]:
        """One gradient, and in the burn-in what `correction` says."""
        slopes, info = self.gradient(state, log_density)
        if self.scale is not None or self.correction == "drop":
            return self.update(state, slopes, generator=generator), info
        learnt = self.learn(state, slopes)
        bends = hessian_diagonal(log_density, state.position, num_probes=1, generator=generator)
        weight = -self.temperature * self._share(state)  # C / G, with dV_i / dq_i = 2 (1 - b) g_i H_ii
        roots = {name: square.sqrt() for name, square in learnt.square.items()}
        pushes = {
            name: g + weight * g * bends[name] / (roots[name] * (self.damping + roots[name]))
            for name, g in slopes.items()
        }
        return self._move(learnt, pushes, generator=generator), info

    def update(self, state: PSGLDState, slopes: Position, *, generator: torch.Generator) -> PSGLDState:
        """Learn from the gradients unless that is over, and a step of SGLD in the units learnt."""
        learnt = state if self.scale is not None else self.learn(state, slopes)
        return self._move(learnt, slopes, generator=generator)

    def _move(self, state: PSGLDState, slopes: Position, *, generator: torch.Generator) -> PSGLDState:
        kernel = SGLD(self.lr, self.temperature, self.schedule, scale=self.current_scale(state))
        moved = kernel.update(SGLDState(state.position, state.lr, state.count), slopes, generator=generator)
        return replace(state, position=moved.position, count=moved.count)

    def _share(self, state: PSGLDState) -> float:
        """1 - b, or more while there are too few steps for so long a memory: then all count alike."""
        return max(1 - self.decay, 1 / (state.count + 2))
