"""A last layer under any likelihood, and its optimum for fixed features by steps of natural gradients.

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

from bayeskit.bnn.vbll.bayesian_head import LastLayer
from bayeskit.bnn.vbll.inverse_wishart import InverseWishart
from bayeskit.bnn.vbll.multiclass_newton import newton_step
from bayeskit.bnn.vbll.noise_evidence import set_best_noise
from bayeskit.bnn.vbll.row_gaussians import Rows, precision_of
from bayeskit.bnn.vbll.row_prior import RowPrior, weighted_grams
from bayeskit.bnn.vbll.softmax_bounds import Expectation
from bayeskit.core import operators
from bayeskit.core.inputs import one_tensor
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.optimize import minimize_lbfgs, natural_gradient_ascent
from bayeskit.core.predictive import Predictive
from bayeskit.core.types import Data

STEPS = 100
"""Steps at most, a bound on the time."""

TOLERANCE = 1e-8
"""A relative gain of the bound below this ends the steps; a relative loss below this is rounding."""


class LikelihoodLayer(LastLayer):
    """`y_i ~ p(y | f(x_i))`, `f_o(x) = c_o + w_o' phi(x)`, with Gaussian distributions of the rows w_o.

    Args:
        rows: The distribution of the weights.
        prior: Their prior.
        likelihood: Of y given f; its parameters are parameters of the layer.
        num_data: Size of the whole data set.
        kl_weight: Factor on the divergence from the prior.
        bound: See `Expectation`.
        offset: Constants c, (k,), or None for zeros.
        noise_prior: Of the variances of a Gaussian likelihood, or None.
    """

    offset: Tensor | None

    def __init__(
        self,
        rows: Rows,
        prior: RowPrior,
        likelihood: Likelihood,
        *,
        num_data: int,
        kl_weight: float = 1.0,
        bound: str = "expectation",
        offset: Tensor | None = None,
        noise_prior: InverseWishart | None = None,
    ):
        super().__init__(num_data, kl_weight)
        self.rows, self.prior, self.likelihood, self.noise_prior = rows, prior, likelihood, noise_prior
        self.expectation = Expectation(likelihood, bound)
        self.register_buffer("offset", None if offset is None else offset.detach().clone())

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The mean (n, k), and R (n, k, r)."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.rows.mean.dtype)
            return self.rows.means(features, self.offset), self.rows.root(features)

    def moments(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances of the outputs, each (n, k)."""
        with torch.autocast(features.device.type, enabled=False):
            return self.rows.moments(features.to(self.rows.mean.dtype), self.offset)

    def expected_log_prob(self, features: Tensor, y: Tensor) -> Tensor:
        """`E log p(y_i | f(x_i))`, or the chosen bound, (n,)."""
        return self.expectation.value(*self.moments(features), y)

    def divergence(self) -> Tensor:
        """`KL(q || p)` of all the rows, ()."""
        return self.prior.divergence(self.rows).sum()

    def penalty(self) -> Tensor:
        """The divergence minus the log prior of the noise, ()."""
        if self.noise_prior is None:
            return self.divergence()
        noise = self.likelihood.noise_variance
        assert noise is not None
        log_prior = self.noise_prior.log_density(noise.expand(len(self.rows.mean)))
        return self.divergence() - log_prior.to(self.rows.mean.dtype)

    @torch.no_grad()
    def predictive(self, features: Tensor) -> Predictive:
        """The posterior predictive distribution: deterministic, by the likelihood's closed form or quadrature."""
        return self.likelihood.predictive(self.values(features))

    @torch.no_grad()
    def fit(self, features: Tensor, y: Tensor) -> float:
        """The optimum for these features, the noise of a Gaussian likelihood included if it is learnt."""
        return self.optimize(Data(features, y), learn_noise=True)[0]

    @torch.no_grad()
    def partial_fit(self, features: Tensor, y: Tensor) -> float:
        """Condition the present distribution on further data."""
        self.prior = RowPrior(self.rows.mean, precision_of(self.rows.operator()))
        return self.optimize(Data(features, y), learn_noise=False)[0]

    def elbo(self, data: Data) -> Tensor:
        """The evidence lower bound on features (n, d) and targets, ()."""
        return data.total(self.expected_log_prob(one_tensor(data.x), data.y)) - self.divergence()

    @torch.no_grad()
    def optimize(self, data: Data, *, learn_noise: bool) -> tuple[float, int]:
        """Set the rows, and the noise if asked, to their optimum for these features; the work is done in float64.

        Args:
            data: Features (n, d), targets, case weights.
            learn_noise: Whether the likelihood's own parameters are learnt, those that can be.

        Returns:
            The evidence lower bound at KL weight 1, and the number of natural-gradient steps.
        """
        work, data = copy.deepcopy(self).double(), data.to(dtype=torch.float64)
        learnt = [value for value in work.likelihood.parameters() if value.requires_grad] if learn_noise else []
        gaussian = work.likelihood.noise_variance is not None
        if learnt and gaussian:
            set_best_noise(work.likelihood, work.prior, data, offset=work.offset, kl_weight=work.kl_weight)
        state = _State.at(work, data, work.rows, precision_of(work.rows.operator()))
        if gaussian:  # alpha is linear, beta constant: one step is the optimum
            state, steps = state.propose(1.0), 1
        else:
            state, steps = _ascend(state, learnt)
        work.rows = state.rows
        self.load_state_dict(work.state_dict())
        return float(state.expected()) - state.divergence, steps


@dataclass(frozen=True, eq=False)
class _State:
    """Rows and the evidence lower bound at them, a state of `natural_gradient_ascent`.

    Args:
        layer: The layer, in float64; its own rows do not matter.
        data: Features (n, d), targets, case weights.
        rows: The distribution of the weights.
        precision: `S^-1`, or what a smaller family approximates, (k, d, d).
        moments: Means and variances of the outputs, each (n, k).
    """

    layer: LikelihoodLayer
    data: Data
    rows: Rows
    precision: Tensor
    moments: tuple[Tensor, Tensor]

    @classmethod
    def at(cls, layer: LikelihoodLayer, data: Data, rows: Rows, precision: Tensor) -> "_State":
        """The state with these rows."""
        return cls(layer, data, rows, precision, rows.moments(one_tensor(data.x), layer.offset))

    def expected(self) -> Tensor:
        """The expected log-likelihood of all the data, ()."""
        return self.data.total(self.layer.expectation.value(*self.moments, self.data.y))

    @cached_property
    def divergence(self) -> float:
        """`KL(q || p)` of all the rows."""
        return float(self.layer.prior.divergence(self.rows).sum())

    @property
    def value(self) -> float:
        """The evidence lower bound, its divergence weighted."""
        return self._expected - self.layer.kl_weight * self.divergence

    def propose(self, length: float) -> "_State":
        """Means and precisions by a share of the way to the target of a full step."""
        target, direction = self._target
        precision = target if length == 1 else (1 - length) * self.precision + length * target
        rows = copy.deepcopy(self.rows)
        rows.assign(self.rows.mean + length * direction, precision)
        return _State.at(self.layer, self.data, rows, precision)

    @cached_property
    def _expected(self) -> float:
        return float(self.expected())

    @cached_property
    def _target(self) -> tuple[Tensor, Tensor]:
        """The precisions of a full step, (k, d, d), and the step of the means, (k, d)."""
        features, y, prior, kl_weight = one_tensor(self.data.x), self.data.y, self.layer.prior, self.layer.kl_weight
        weights = 1.0 if self.data.weights is None else self.data.weights[:, None]
        alpha, beta = (weights * site for site in self.layer.expectation.sites(*self.moments, y))
        target = prior.matrices() + weighted_grams(features, beta) / kl_weight
        gradient = alpha.mT @ features / kl_weight - prior.gradient(self.rows.mean)
        factor = operators.factorize(target, name="the precision of the last layer")

        def each(g: Tensor) -> Tensor:
            return factor.solve(g.unsqueeze(-1)).squeeze(-1)

        if not (self.layer.likelihood.has_logits and alpha.shape[-1] > 1):
            return target, each(gradient)
        labels = torch.nn.functional.one_hot(y.long(), alpha.shape[-1]).to(alpha.dtype)
        probs = (weights * labels - alpha) / kl_weight  # alpha is the label minus the probability
        return target, newton_step(prior, features, probs, gradient, precondition=each)


def _ascend(state: _State, learnt: list[torch.nn.Parameter]) -> tuple[_State, int]:
    """The state of the largest bound and the number of steps, the likelihood's parameters learnt between them."""
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
