"""The optimum of a last layer for fixed features, by steps of natural gradients.

With `alpha_i = dE_i / df_i` and `beta_i = -2 dE_i / dv_i` of the expected log-likelihoods at the present moments of the
outputs, the evidence lower bound is stationary where, for every row o of the weights,

    S_o^-1 = P_o + Phi' diag(beta_o) Phi,      Phi' alpha_o = P_o (m_o - m0_o).

A full step takes `S^-1` there, and m along `S` times the gradient, or for classes, whose logits are coupled, along the
Newton step of all the means (`multiclass_newton`). For Gaussian noise one step is the exact posterior and the bound is
the log evidence. Families other than the dense ones take the member of least divergence from that posterior.

References:
    Khan, Lin. Conjugate-computation variational inference. AISTATS 2017, section 3.
"""

import copy
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from bayeskit.bnn.vbll.multiclass_newton import newton_step
from bayeskit.bnn.vbll.row_gaussians import Rows, precision_of
from bayeskit.bnn.vbll.row_prior import RowPrior, weighted_grams
from bayeskit.bnn.vbll.softmax_bounds import Expectation
from bayeskit.core import operators
from bayeskit.core.optimize import minimize_lbfgs, natural_gradient_ascent
from bayeskit.core.types import Data

STEPS = 100
"""Steps at most, a bound on the time."""

TOLERANCE = 1e-8
"""A relative gain of the bound below this ends the steps; a relative loss below this is rounding."""


@dataclass(frozen=True, eq=False)
class Layer:
    """The parts of a last layer and its data, all in float64.

    Args:
        prior: Of the rows.
        expectation: Of the log-likelihood.
        offset: Constants of the outputs, (k,), or None for zeros.
        kl_weight: Factor on the divergence from the prior.
        data: Features (n, d), targets, case weights.
    """

    prior: RowPrior
    expectation: Expectation
    offset: Tensor | None
    kl_weight: float
    data: Data

    @property
    def features(self) -> Tensor:
        """The inputs of the layer, (n, d)."""
        assert isinstance(self.data.x, Tensor)
        return self.data.x


@dataclass(frozen=True, eq=False)
class RowState:
    """Rows and the evidence lower bound at them, a state of `natural_gradient_ascent`.

    Args:
        layer: The problem.
        rows: The distribution of the weights.
        precision: `S^-1`, or what a smaller family approximates, (k, d, d).
        moments: Means and variances of the outputs, each (n, k).
    """

    layer: Layer
    rows: Rows
    precision: Tensor
    moments: tuple[Tensor, Tensor]

    @classmethod
    def at(cls, layer: Layer, rows: Rows, precision: Tensor | None = None) -> "RowState":
        """The state with these rows."""
        precision = precision_of(rows.operator()) if precision is None else precision
        return cls(layer, rows, precision, rows.moments(layer.features, layer.offset))

    def expected(self) -> Tensor:
        """The expected log-likelihood of all the data, ()."""
        return self.layer.data.total(self.layer.expectation.value(*self.moments, self.layer.data.y))

    @cached_property
    def divergence(self) -> float:
        """`KL(q || p)` of all the rows."""
        return float(self.layer.prior.divergence(self.rows).sum())

    @property
    def value(self) -> float:
        """The evidence lower bound, its divergence weighted."""
        return self._expected - self.layer.kl_weight * self.divergence

    @cached_property
    def _expected(self) -> float:
        return float(self.expected())

    def propose(self, length: float) -> "RowState":
        """Means and precisions by a share of the way to the target of a full step."""
        target, direction = self._target
        precision = target if length == 1 else (1 - length) * self.precision + length * target
        rows = copy.deepcopy(self.rows)
        rows.assign(self.rows.mean + length * direction, precision)
        return RowState.at(self.layer, rows, precision)

    @cached_property
    def _target(self) -> tuple[Tensor, Tensor]:
        """The precisions of a full step, (k, d, d), and the step of the means, (k, d)."""
        layer, features, y = self.layer, self.layer.features, self.layer.data.y
        prior, likelihood = layer.prior, layer.expectation.likelihood
        weights = 1.0 if layer.data.weights is None else layer.data.weights[:, None]
        alpha, beta = (weights * site for site in layer.expectation.sites(*self.moments, y))
        target = prior.matrices() + weighted_grams(features, beta) / layer.kl_weight
        gradient = alpha.mT @ features / layer.kl_weight - prior.gradient(self.rows.mean)
        factor = operators.factorize(target, name="the precision of the last layer")

        def each(g: Tensor) -> Tensor:
            return factor.solve(g.unsqueeze(-1)).squeeze(-1)

        if not (likelihood.has_logits and alpha.shape[-1] > 1):
            return target, each(gradient)
        labels = torch.nn.functional.one_hot(y.long(), alpha.shape[-1]).to(alpha.dtype)
        probs = (weights * labels - alpha) / layer.kl_weight  # alpha is the label minus the probability
        return target, newton_step(prior, features, probs, gradient, precondition=each)


@torch.no_grad()
def optimize(layer: Layer, rows: Rows, learnt: list[torch.nn.Parameter]) -> tuple[RowState, int]:
    """The rows of the largest evidence lower bound.

    Args:
        layer: The problem; changed in the learnt parameters of its likelihood alone.
        rows: Where to start.
        learnt: Parameters of a likelihood that is not Gaussian, learnt along with the rows.

    Returns:
        The state, and the number of steps.
    """
    state = RowState.at(layer, rows)
    if layer.expectation.likelihood.noise_variance is not None:  # alpha is linear, beta constant: a step is the optimum
        return state.propose(1.0), 1
    if not learnt:
        found = natural_gradient_ascent(state, max_steps=STEPS, tolerance=TOLERANCE, rounding=TOLERANCE)
        return found.state, found.steps
    for step in range(1, STEPS + 1):
        before = state.value
        found = natural_gradient_ascent(state, max_steps=1, tolerance=TOLERANCE, rounding=TOLERANCE).state
        minimize_lbfgs(lambda found=found: -found.expected(), learnt, description="noise")
        state = replace(found)  # its bound has changed with the likelihood
        if abs(state.value - before) <= TOLERANCE * max(1.0, abs(state.value)):
            return state, step
    return state, STEPS
