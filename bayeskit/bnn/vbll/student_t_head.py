"""A Bayesian last layer for regression with the noise integrated out: the normal-gamma model."""

import copy

import torch
from torch import Tensor, nn

from bayeskit.bnn.vbll.bayesian_head import LastLayer, start
from bayeskit.bnn.vbll.row_gaussians import precision_of
from bayeskit.bnn.vbll.row_prior import RowPrior
from bayeskit.core import checks, operators
from bayeskit.core.likelihood.gaussian import outputs
from bayeskit.core.normals import LOG_2PI
from bayeskit.core.predictive import StudentTPredictive


class VBLLStudentT(LastLayer):
    """`y_io = w_o' phi_i + N(0, 1 / l_o)`, `w_o ~ N(0, prior_scale / (d l_o))`, `l_o ~ Gamma(a0, b0)`.

    The variational distribution is `q(l_o) = Gamma(a_o, b_o)`, `q(w_o | l_o) = N(m_o, S_o / l_o)`, the conjugate
    family: for fixed features `fit` is the exact posterior, and the loss there is minus the log evidence per data
    point. The posterior predictive distribution is a Student-t with `2 a_o` degrees of freedom.

    Args:
        in_features: Number d of features.
        out_features: Number k of outputs.
        num_data: Size of the whole data set.
        covariance: Of the weights of an output: "diagonal", "dense", "low_rank" or "dense_precision".
        rank: Columns of the factor of "low_rank".
        prior_scale: d times the prior variance of a weight, relative to the noise.
        shape: a0 of the prior of the precisions.
        rate: b0 of it: `b0 / a0` is the expected noise variance.
        kl_weight: Factor on the divergence; 1 for the bound.
        dtype: Floating type of the parameters; torch's default if None.

    References:
        Bishop. Pattern recognition and machine learning. 2006, exercise 3.12.
        Harrison, Willes, Snoek. Variational Bayesian last layers. ICLR 2024.

    >>> layer = VBLLStudentT(4, 2, num_data=10)
    >>> layer.predictive(torch.randn(5, 4)).df.shape
    torch.Size([2])
    """

    shape: Tensor
    rate: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        num_data: int,
        covariance: str = "dense",
        rank: int = 8,
        prior_scale: float = 1.0,
        shape: float = 2.0,
        rate: float = 0.2,
        kl_weight: float = 1.0,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(num_data, kl_weight)
        checks.positive(shape, name="shape")
        checks.positive(rate, name="rate")
        self.rows, self.prior = start(
            in_features, out_features, covariance, prior_scale=prior_scale, rank=rank, dtype=dtype
        )
        self.register_buffer("shape", torch.full((out_features,), shape, dtype=dtype))
        self.register_buffer("rate", torch.full((out_features,), rate, dtype=dtype))
        self.log_shape = nn.Parameter(self.shape.log())
        self.log_rate = nn.Parameter(self.rate.log())

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The mean (n, k), and R (n, k, r) with the noise integrated out: `S_o E[1 / l_o]`, infinite for a <= 1."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.rows.mean.dtype)
            above = self.log_shape.exp() - 1
            variance = torch.where(above > 0, self.log_rate.exp() / above.clamp_min(1e-30), torch.inf)
            return features @ self.rows.mean.mT, self.rows.root(features) * variance.sqrt().unsqueeze(-1)

    def expected_log_prob(self, features: Tensor, y: Tensor) -> Tensor:
        """`-1/2 sum_o [ a/b (y - m' phi)^2 + phi' S phi - psi(a) + log b + log 2 pi ]`, (n,)."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.rows.mean.dtype)
            residual = outputs(y, features) - features @ self.rows.mean.mT
            a, b = self.log_shape.exp(), self.log_rate.exp()
            log_precision = torch.digamma(a) - self.log_rate
            terms = a / b * residual.square() + self.rows.variance(features) - log_precision + LOG_2PI
            return -0.5 * terms.sum(-1)

    def penalty(self) -> Tensor:
        """`KL(q(w | l) || p(w | l))` averaged over l, plus `KL(q(l) || p(l))`, ()."""
        a, b = self.log_shape.exp(), self.log_rate.exp()
        # The divergence of the rows at precision 1, but with the squared distance of the means times E l = a / b.
        rows = self.prior.divergence(self.rows) + 0.5 * (a / b - 1) * self.prior.quadratic(self.rows.mean)
        gamma = (
            (a - self.shape) * torch.digamma(a)
            - torch.lgamma(a)
            + torch.lgamma(self.shape)
            + self.shape * (self.log_rate - self.rate.log())
            + a * (self.rate / b - 1)
        )
        return (rows + gamma).sum()

    def predictive(self, features: Tensor) -> StudentTPredictive:
        """`StudentT(2 a, m' phi, sqrt((phi' S phi + 1) b / a))`."""
        features = features.detach().to(self.rows.mean.dtype)
        a, b = self.log_shape.detach().exp(), self.log_rate.detach().exp()
        with torch.no_grad():
            mean, variance = features @ self.rows.mean.mT, self.rows.variance(features)
        expected = torch.where(a > 1, b / (a - 1).clamp_min(1e-30), torch.inf)
        return StudentTPredictive(mean, ((variance + 1) * b / a).sqrt(), 2 * a, variance * expected)

    @torch.no_grad()
    def fit(self, features: Tensor, y: Tensor) -> float:
        """The exact posterior, or the family's member of least divergence from it, in closed form."""
        return self._condition(features, y)

    @torch.no_grad()
    def partial_fit(self, features: Tensor, y: Tensor) -> float:
        """Condition the present distribution on further data."""
        self.prior = RowPrior(self.rows.mean, precision_of(self.rows.operator()))
        self.shape.copy_(self.log_shape.exp())
        self.rate.copy_(self.log_rate.exp())
        return self._condition(features, y)

    def _condition(self, features: Tensor, y: Tensor) -> float:
        """`P = P0 + Phi'Phi`, `m = P^-1 (P0 m0 + Phi'y)`, `a = a0 + n/2`, `b = b0 + (y'y + m0'P0 m0 - m'P m) / 2`.

        The sum of squares in b is that of the residuals, `|y - Phi m|^2 + (m - m0)' P0 (m - m0)`, which rounds better.
        """
        features = features.double()
        target = outputs(y, features)
        prior = RowPrior(self.prior.mean.double(), self.prior.precision.double())
        precision = prior.matrices() + features.mT @ features
        rhs = target.mT @ features - prior.gradient(torch.zeros_like(prior.mean))
        factor = operators.factorize(precision, name="the precision of the last layer")
        mean = factor.solve(rhs.unsqueeze(-1)).squeeze(-1)
        squares = (target - features @ mean.mT).square().sum(0) + prior.quadratic(mean)
        work = copy.deepcopy(self.rows).double()
        work.assign(mean, precision)
        self.rows.load_state_dict(work.state_dict())
        self.log_shape.copy_((self.shape + len(target) / 2).log())
        self.log_rate.copy_((self.rate + squares / 2).log())
        dtype = self.rows.mean.dtype
        return float(self.expected_log_prob(features.to(dtype), y).sum() - self.penalty())
