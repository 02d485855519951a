"""The optimum of a last layer for fixed features, by steps of natural gradients.

With `alpha_i = dE_i / df_i` and `beta_i = -2 dE_i / dv_i` of the expected log-likelihoods at the present moments of the
outputs, the evidence lower bound is stationary where, for every row o of the weights,

    S_o^-1 = P_o + Phi' diag(beta_o) Phi,      Phi' alpha_o = P_o (m_o - m0_o).

A step takes `S^-1` there, and m along `S` times the gradient, or for classes, whose logits pull on each other, along
the Newton step of all the means (`heads.coupled`); it is halved until the bound rises. For Gaussian noise
one step is the exact posterior and the bound is the log evidence. Families other than the dense ones take the member
next to that law.

References:
    Khan, Lin. Conjugate-computation variational inference. AISTATS 2017, section 3.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bayeskit.bnn.vbll.multiclass_newton import newton_step
from bayeskit.bnn.vbll.noise_evidence import set_best_noise
from bayeskit.bnn.vbll.row_gaussians import precision_of
from bayeskit.core import operators
from bayeskit.core.likelihood import Categorical, Gaussian
from bayeskit.core.optimize import minimize_lbfgs
from bayeskit.core.types import Data

if TYPE_CHECKING:
    from bayeskit.bnn.vbll.likelihood_layer import LikelihoodLayer

STEPS = 100
"""Steps at most."""

HALVINGS = 8
"""How often a step is halved before it is given up."""

SETTLED = 1e-8
"""A relative gain of the bound below this ends the steps."""


@dataclass(frozen=True)
class Settled:
    """Where the steps have ended.

    Args:
        elbo: The evidence lower bound, at KL weight 1.
        steps: Their number.
    """

    elbo: float
    steps: int


@torch.no_grad()
def settle(layer: "LikelihoodLayer", data: Data, *, learn_noise: bool) -> Settled:
    """Move the rows of a layer, and its noise if asked, to the optimum for these features.

    Args:
        layer: Changed in place; the work is done in float64.
        data: Features (n, d), targets, case weights.
        learn_noise: Whether the likelihood's own parameters are learnt, those that can be.
    """
    work = copy.deepcopy(layer).double()
    data = data.to(dtype=torch.float64)
    own = [value for value in work.likelihood.parameters() if value.requires_grad] if learn_noise else []
    gaussian = isinstance(work.likelihood, Gaussian)
    if own and gaussian:
        set_best_noise(work, data)
    state = _State(work, data)
    while state.steps < STEPS:
        before = state.objective
        state.step()
        if gaussian:  # alpha is linear and beta constant: one step is the optimum
            break
        if own:  # where the bound is largest for the present law of the weights
            minimize_lbfgs(lambda: -state.expected(), own, description="noise")
            state.objective = state.reached()
        if abs(float(state.objective - before)) <= SETTLED * max(1.0, abs(float(state.objective))):
            break
    layer.load_state_dict(work.state_dict())
    return Settled(float(state.expected() - work.divergence()), state.steps)


def bound(layer: "LikelihoodLayer", data: Data) -> Tensor:
    """The evidence lower bound on these features and targets, ()."""
    return data.total(layer.expected_log_prob(_features(data), data.y)) - layer.divergence()


def _features(data: Data) -> Tensor:
    """What reached the layer, (n, d)."""
    assert isinstance(data.x, Tensor)
    return data.x


class _State:
    """A layer on its way, with the moments of its outputs where it stands."""

    def __init__(self, work: "LikelihoodLayer", data: Data):
        self.work, self.data, self.features = work, data, _features(data)
        self.precision = precision_of(work.rows.operator())
        self.moments = work.moments(self.features)
        self.objective = self.reached()
        self.steps = 0

    def expected(self) -> Tensor:
        """The expected log-likelihood of all the rows."""
        return self.data.total(self.work.expectation.value(*self.moments, self.data.y))

    def reached(self) -> Tensor:
        """What rises."""
        return self.expected() - self.work.kl_weight * self.work.divergence()

    def step(self) -> None:
        """One step, halved until the objective rises; none if it does not."""
        work, rows, prior = self.work, self.work.rows, self.work.prior
        weights = 1.0 if self.data.weights is None else self.data.weights[:, None]
        alpha, beta = (weights * site for site in work.expectation.sites(*self.moments, self.data.y))
        new = prior.matrices() + _gram(self.features, beta) / work.kl_weight
        gradient = alpha.mT @ self.features / work.kl_weight - prior.pull(rows.mean)
        factor = operators.factorize(new, name="the precision of the last layer")
        direction = self._direction(alpha, gradient, lambda g: factor.solve(g.unsqueeze(-1)).squeeze(-1))
        before = copy.deepcopy(rows.state_dict()), self.moments, self.objective
        center, size = rows.mean.clone(), 1.0
        self.steps += 1
        for _ in range(HALVINGS):
            precision = new if size == 1 else (1 - size) * self.precision + size * new
            rows.assign(center + size * direction, precision)
            self.moments = work.moments(self.features)
            self.objective = self.reached()
            if self.objective >= before[2] - SETTLED * before[2].abs():  # at the optimum the gain is rounding
                self.precision = precision
                return
            size /= 2
        rows.load_state_dict(before[0])
        _, self.moments, self.objective = before

    def _direction(self, alpha: Tensor, gradient: Tensor, apart: Callable[[Tensor], Tensor]) -> Tensor:
        """Where the means go: for classes by the curvature of all of them, otherwise each output by its own."""
        work, classes = self.work, alpha.shape[-1]
        if not isinstance(work.likelihood, Categorical):
            return apart(gradient)
        labels = torch.nn.functional.one_hot(self.data.y.long(), classes).to(alpha.dtype)
        weights = 1.0 if self.data.weights is None else self.data.weights[:, None]
        probs = (weights * labels - alpha) / work.kl_weight  # alpha is the label minus the probability
        return newton_step(work.prior, self.features, probs, gradient, precondition=apart)


def _gram(features: Tensor, beta: Tensor) -> Tensor:
    """`Phi' diag(beta_o) Phi` for each output o, (k, d, d)."""
    if (beta == beta[:1]).all():  # all rows alike: one product for all the outputs
        return beta[0, :, None, None] * (features.mT @ features)
    return torch.stack([(features * column.unsqueeze(-1)).mT @ features for column in beta.unbind(-1)])
