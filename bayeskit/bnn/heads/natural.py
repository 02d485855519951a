"""The optimum of a last layer for fixed features, by steps of natural gradients.

With `alpha_i = dE_i / df_i` and `beta_i = -2 dE_i / dv_i` of the expected log-likelihoods at the present moments of the
outputs, the evidence lower bound is stationary where, for every row o of the weights,

    S_o^-1 = P_o + Phi' diag(beta_o) Phi,      Phi' alpha_o = P_o (m_o - m0_o).

A step takes `S^-1` there, and m along `S` times the gradient; it is halved until the bound rises. For Gaussian noise
one step is the exact posterior and the bound is the log evidence. Families other than the dense ones take the member
next to that law.

References:
    Khan, Lin. Conjugate-computation variational inference. AISTATS 2017, section 3.
    MacKay. Bayesian interpolation. Neural Computation 1992, equation 32 (the noise).
"""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bayeskit.bnn.heads.rows import precision_of
from bayeskit.bnn.refit import set_noise
from bayeskit.core import operators
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.likelihood.gaussian import outputs
from bayeskit.core.optimize import minimize_lbfgs
from bayeskit.core.types import Data

if TYPE_CHECKING:
    from bayeskit.bnn.heads.likelihood_layer import LikelihoodLayer

STEPS = 100
"""Steps at most."""

HALVINGS = 8
"""How often a step is halved before it is given up."""

SETTLED = 1e-11
"""A relative gain of the bound below this ends the steps: rounding in float64 at a thousand rows and more."""


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
    """Move the rows of a layer, and its Gaussian noise if asked, to the optimum for these features.

    Args:
        layer: Changed in place; the work is done in float64.
        data: Features (n, d), targets, case weights.
        learn_noise: Whether the likelihood's own parameters are learnt, those that can be.
    """
    work = copy.deepcopy(layer).double()
    data = data.to(dtype=torch.float64)
    learn = learn_noise and any(value.requires_grad for value in work.likelihood.parameters())
    precision = precision_of(work.rows.operator())
    reached = _objective(work, data)
    steps = 0
    while steps < STEPS:
        before = reached
        precision, reached = _step(work, data, precision, reached)
        steps += 1
        if learn:
            _learn_noise(work, data)
            reached = _objective(work, data)
        if abs(float(reached - before)) <= SETTLED * max(1.0, abs(float(reached))):
            break
    layer.load_state_dict(work.state_dict())
    return Settled(float(bound(work, data)), steps)


def bound(layer: "LikelihoodLayer", data: Data) -> Tensor:
    """The evidence lower bound on these features and targets, ()."""
    return data.total(layer.expected_log_prob(_features(data), data.y)) - layer.divergence()


def _features(data: Data) -> Tensor:
    """What reached the layer, (n, d)."""
    assert isinstance(data.x, Tensor)
    return data.x


def _objective(work: "LikelihoodLayer", data: Data) -> Tensor:
    return data.total(work.expected_log_prob(_features(data), data.y)) - work.kl_weight * work.divergence()


def _step(work: "LikelihoodLayer", data: Data, old: Tensor, reached: Tensor) -> tuple[Tensor, Tensor]:
    """One step, halved until the objective rises: the precision (k, d, d) and the objective reached."""
    rows, prior, features = work.rows, work.prior, _features(data)
    alpha, beta = work.expectation.sites(*work.moments(features), data.y)
    if data.weights is not None:
        alpha, beta = alpha * data.weights[:, None], beta * data.weights[:, None]
    new = prior.matrices() + _gram(features, beta) / work.kl_weight
    gradient = alpha.mT @ features / work.kl_weight - prior.pull(rows.mean)
    factor = operators.factorize(new, name="the precision of the last layer")
    direction = factor.solve(gradient.unsqueeze(-1)).squeeze(-1)
    start, center = copy.deepcopy(rows.state_dict()), rows.mean.clone()
    size = 1.0
    for _ in range(HALVINGS):
        precision = new if size == 1 else (1 - size) * old + size * new
        rows.assign(center + size * direction, precision)
        value = _objective(work, data)
        if value >= reached - SETTLED * reached.abs():  # at the optimum the gain is rounding
            return precision, value
        size /= 2
    rows.load_state_dict(start)
    return old, reached


def _gram(features: Tensor, beta: Tensor) -> Tensor:
    """`Phi' diag(beta_o) Phi` for each output o, (k, d, d)."""
    if (beta == beta[:1]).all():  # Gaussian noise, all rows alike: one product for all the outputs
        return beta[0, :, None, None] * (features.mT @ features)
    return torch.stack([(features * column.unsqueeze(-1)).mT @ features for column in beta.unbind(-1)])


def _learn_noise(work: "LikelihoodLayer", data: Data) -> None:
    """Gaussian: `r_o / (N_o - g_o)`, with g_o the number of weights of output o that the data have determined.

    The parameters of other likelihoods go where the bound is largest for the present law of the weights.
    """
    likelihood = work.likelihood
    mean, variance = work.moments(_features(data))
    if not isinstance(likelihood, Gaussian):
        own = [value for value in likelihood.parameters() if value.requires_grad]
        minimize_lbfgs(lambda: -data.total(work.expectation.value(mean, variance, data.y)), own, description="noise")
        return
    target = outputs(data.y, mean)
    seen = ~target.isnan()
    squares = data.total(torch.where(seen, target - mean, 0.0).square().mT)
    spread, count = data.total((variance * seen).mT), data.total(seen.to(mean.dtype).mT)
    old = likelihood.noise.to(mean.dtype).expand_as(squares)
    if len(likelihood.noise) == 1:
        squares, spread, count = squares.sum(0, True), spread.sum(0, True), count.sum(0, True)
        old = old[:1]
    new = squares / (count - spread / old).clamp_min(1)
    set_noise(likelihood, torch.where(count > 0, new, old))
