"""Weights, prior precision and noise of a Laplace approximation while they are refitted together."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from linear_operator import LinearOperator
from torch import Tensor

from bayeskit.bnn.curvature.ggn import Curvature
from bayeskit.bnn.curvature.linearized_evidence import Expansion, Noise, maximize
from bayeskit.bnn.laplace_approximation.log_joint import Problem, observed
from bayeskit.bnn.networks.functional import at_least_single
from bayeskit.core import operators
from bayeskit.core.likelihood import Likelihood

HALVINGS = 6
"""How often a step is halved, down to 1/64, before it is given up."""

EXACT = 1e-10
"""Accuracy of a predicted log joint density that counts as exact, relative to the larger one of here and there.

The prediction is a difference of numbers as large as the density here; this is well above the rounding of their sums.
"""


@dataclass(eq=False)
class RefitState:
    """The unknowns, changed in place, and which of them the evidence chooses.

    Args:
        problem: The log joint density.
        likelihood: A copy, whose noise changes.
        weights: (p,), float64.
        log_precision: Log factors on the prior precision, (g,).
        learnt: Which of those the evidence chooses, (g,).
        learns_noise: Whether it chooses the noise of a Gaussian likelihood.
    """

    problem: Problem
    likelihood: Likelihood
    weights: Tensor
    log_precision: Tensor
    learnt: Tensor
    learns_noise: bool

    def copy(self) -> "RefitState":
        """A copy, unaffected by later changes of this state."""
        return replace(self, likelihood=copy.deepcopy(self.likelihood))

    def expand(self) -> tuple[Curvature, Expansion]:
        """The log joint density to second order about the weights."""
        curvature, noise = self.problem.curvature(self.weights, self.likelihood), None
        if self.learns_noise:
            variance = self._noise
            squares = self.problem.squared_residuals(self.weights)
            lowest = torch.log(self.likelihood.noise_floor * (1 + 1e-6) / variance.min())
            noise = Noise(float(self.problem.counts.sum()), (squares / variance).sum(), float(lowest))
        return curvature, self.problem.expansion(self.weights, self.likelihood, noise)

    def maximize(self, evidence: Callable[[Tensor, Tensor], Tensor], noise: Noise | None) -> Tensor:
        """Set precisions and noise to those of the largest evidence; the log of the noise's factor, ()."""
        log_noise = torch.zeros_like(self.log_precision[0])
        if self.learnt.any() or self.learns_noise:
            self.log_precision, log_noise = maximize(evidence, self.log_precision, learnt=self.learnt, noise=noise)
        if self.learns_noise:
            self.likelihood.set_noise_variance(self._noise * log_noise.exp())
        return log_noise

    def log_joint(self, weights: Tensor) -> Tensor:
        """The log joint density at other weights, ()."""
        with torch.no_grad():
            return self.problem.log_joint(weights, self.likelihood, self.log_precision)

    def step(self, goal: Tensor, predicted: Tensor) -> bool:
        """Move towards a mode by a step that is halved until the log joint density rises; not at all if it never does.

        Args:
            goal: The mode of the expansion.
            predicted: Its log joint density there.

        Returns:
            Whether the prediction is exact, so that the goal is the mode of the log joint density itself.
        """
        here, reached = self.log_joint(self.weights), self.log_joint(goal)
        if (reached - predicted).abs() <= EXACT * torch.maximum(here.abs(), predicted.abs()).clamp_min(1):
            self.weights = goal
            return True
        for _ in range(HALVINGS):
            if reached > here:
                self.weights = goal
                break
            goal = (self.weights + goal) / 2
            reached = self.log_joint(goal)
        return False

    def covariance(self, curvature: Curvature, log_noise: Tensor, dtype: torch.dtype) -> LinearOperator:
        """`(H + P)^-1`, (p, p), for a curvature and the log factor by which the noise has changed since."""
        return curvature.covariance(self.problem.prior, self.log_precision, torch.exp(-log_noise), dtype=dtype)

    def separate_noise(self, curvature: Curvature, log_noise: Tensor, tolerance: float) -> bool:
        """Set the noise by output to `r_j / (N - g_j)`, g_j the number of parameters that output j determines.

        The evidence has already found the common factor; nothing remains to be done for a single variance.

        Returns:
            Whether no variance changed by more than the tolerance, in relative terms.

        References:
            MacKay. Bayesian interpolation. Neural Computation 1992, equation 32.
        """
        problem, old = self.problem, self._noise.double()
        if len(old) == 1:
            return True
        covariance = self.covariance(curvature, log_noise, problem.dtype)
        flat, variances = self.weights.to(problem.dtype), torch.zeros_like(old)
        for batch in problem.batches():
            own = operators.Linearized(flat, covariance, batch.x[:], function=problem.function).diagonal()
            variances += batch.total((own.detach().reshape(len(batch), -1) * observed(batch)).mT).double()
        new = problem.squared_residuals(self.weights) / (problem.counts - variances / old).clamp_min(1)
        new = torch.where(problem.counts > 0, new, old)  # an output without observations keeps its noise
        self.likelihood.set_noise_variance(new)
        return bool(((new / old).log().abs() < tolerance).all())

    @property
    def _noise(self) -> Tensor:
        """The noise variance of a Gaussian likelihood, (1,) or (k,)."""
        assert self.likelihood.noise_variance is not None
        return self.likelihood.noise_variance.detach()


@dataclass(frozen=True, eq=False)
class Refit:
    """The state at the end of the rounds.

    Args:
        state: Weights w*, precisions and noise.
        curvature: H, up to `exp(-log_noise)`.
        log_noise: The log of the factor by which the noise has changed since.
        occam: `-(log |H + P| - log |P|) / 2`.
        steps: Number of rounds.
    """

    state: RefitState
    curvature: Curvature
    log_noise: Tensor
    occam: Tensor
    steps: int

    def log_evidence(self) -> float:
        """`log p(y | w*) - (w* - m)' P (w* - m) / 2 - (log |H + P| - log |P|) / 2`."""
        return float(self.state.log_joint(self.state.weights) + self.occam)

    def covariance(self) -> LinearOperator:
        """`(H + P)^-1` in the dtype of the weights, in single precision at least."""
        dtype = at_least_single(next(iter(self.state.problem.like.values())).dtype)
        return self.state.covariance(self.curvature, self.log_noise, dtype)
