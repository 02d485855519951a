"""SGLD with the diagonal preconditioner of RMSprop."""

from dataclasses import dataclass, replace
from typing import Literal

import torch

from bayeskit.core import checks
from bayeskit.mcmc.base.log_density import LogDensity, Position, hessian_diagonal
from bayeskit.mcmc.base.schedules import Schedule
from bayeskit.mcmc.base.transition_kernel import Info
from bayeskit.mcmc.sgmcmc.preconditioner_warmup import AdaptivePreconditionerKernel, leafwise_squares
from bayeskit.mcmc.sgmcmc.sgld import SGLD, SGLDState


@dataclass(frozen=True, eq=False)
class PSGLDState:
    """Positions of the chains, and averages of their squared gradients.

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
class PSGLD(AdaptivePreconditionerKernel):
    """SGLD with a diagonal preconditioner learnt from squared gradients in the burn-in, and fixed after it.

    With full-scale gradients `g` of the log density and `G = 1 / (d + sqrt(V))`,

        V <- b V + (1 - b) g^2,    q <- q + h (G g + T C) + N(0, 2 h T G),    C_i = dG_i / dq_i

    during the burn-in; then V is fixed, C is zero, and this is SGLD with `preconditioner = sqrt(G)`, whose stationary
    distribution is known. If the preconditioner kept changing, the distribution would be biased: the variance of a
    standard normal, with C or without, would be between 1.3 and 1.9.

    Args:
        lr: Step size h, preconditioned by G. Where a paper takes `epsilon / 2` of the gradient and a preconditioner of
            the *mean* gradient of N rows, h is `N epsilon / 2` and `damping` N times theirs. None measures the
            preconditioned curvature, at the beginning of the burn-in, during it and at its end.
        decay: b, the decay of V, which averages all steps until there are `1 / (1 - b)` of them.
        damping: d, on the scale of gradients of the full data.
        temperature: T of the tempered density `exp(log density / T)`; 1 is the posterior, 0 an optimizer.
        schedule: Multiplier of `lr` as a function of the number of steps taken, burn-in included.
        correction: Treatment of C in the burn-in: "drop" it, as is usual, or estimate it by "hutchinson", from
            Hessian products with random signs, which triples the cost of a step.
        preconditioner: sqrt(G), leaves that broadcast with the position's; None before it is learnt.
        relative_lr: With `lr=None`, the step size times the largest preconditioned curvature.
        gradient_clip: Gradient clipping: `sqrt(lr G) |g|` is clipped at `gradient_clip sqrt(T)`, which a Gaussian never
            reaches in equilibrium. None is 10 with a measured step size, and no clipping with a given one.

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
    preconditioner: Position | None = None
    relative_lr: float = 0.25
    gradient_clip: float | None = None

    def begin(self, position: Position, lr: float, *, generator: torch.Generator) -> PSGLDState:
        """The chains at `position`, with no gradient statistics."""
        checks.fraction(self.decay, name="decay")
        checks.positive(self.damping, name="damping")
        checks.choice(self.correction, name="correction", options=("drop", "hutchinson"))
        return PSGLDState(position, {}, lr)

    def learn(self, state: PSGLDState, gradients: Position) -> PSGLDState:
        """Update the average of the squared gradients."""
        if not state.square:
            return replace(state, square=leafwise_squares(gradients))
        share = self._share(state)
        square = {name: old.lerp(gradients[name].square(), share) for name, old in state.square.items()}
        return replace(state, square=square)

    def learnt_preconditioner(self, state: PSGLDState) -> Position:
        """`sqrt(G)`."""
        return {name: (self.damping + square.sqrt()).rsqrt() for name, square in state.square.items()}

    def step(
        self, state: PSGLDState, log_density: LogDensity, *, generator: torch.Generator
    ) -> tuple[PSGLDState, Info]:
        """One gradient step, in the burn-in with the `correction`."""
        gradients, info = self.gradient(state, log_density)
        if self.preconditioner is not None or self.correction == "drop":
            return self.update(state, gradients, generator=generator), info
        learnt = self.learn(state, gradients)
        hessian = hessian_diagonal(log_density, state.position, num_probes=1, generator=generator)
        weight = -self.temperature * self._share(state)  # C / G, with dV_i / dq_i = 2 (1 - b) g_i H_ii
        roots = {name: square.sqrt() for name, square in learnt.square.items()}
        drifts = {
            name: g + weight * g * hessian[name] / (roots[name] * (self.damping + roots[name]))
            for name, g in gradients.items()
        }
        return self._move(learnt, drifts, generator=generator), info

    def update(self, state: PSGLDState, gradients: Position, *, generator: torch.Generator) -> PSGLDState:
        """Update the statistics during the burn-in, then take a preconditioned step of SGLD."""
        learnt = state if self.preconditioner is not None else self.learn(state, gradients)
        return self._move(learnt, gradients, generator=generator)

    def _move(self, state: PSGLDState, gradients: Position, *, generator: torch.Generator) -> PSGLDState:
        kernel = SGLD(self.lr, self.temperature, self.schedule, preconditioner=self.current_preconditioner(state))
        moved = kernel.update(SGLDState(state.position, state.lr, state.count), gradients, generator=generator)
        return replace(state, position=moved.position, count=moved.count)

    def _share(self, state: PSGLDState) -> float:
        """The weight of the next gradient: 1 - b, or more in the first steps, whose average is uniform."""
        return max(1 - self.decay, 1 / (state.count + 2))
