"""A Bayesian last layer for classes, generative: a Gaussian in feature space for each class."""

import math

import torch
from torch import Tensor, nn

from bayeskit.bnn.vbll.bayesian_head import LastLayer
from bayeskit.bnn.vbll.inverse_wishart import InverseWishart
from bayeskit.bnn.vbll.row_gaussians import DiagonalRows
from bayeskit.bnn.vbll.row_prior import RowPrior
from bayeskit.core import checks
from bayeskit.core.likelihood import Categorical
from bayeskit.core.normals import LOG_2PI
from bayeskit.core.predictive import CategoricalPredictive

ROUNDS = 50
"""Rounds at most of centers and noise in `fit`; each raises the bound, and a few suffice."""

TOLERANCE = 1e-6
"""Average change of a log noise variance that ends the rounds."""


class VBLLGenerative(LastLayer):
    """`phi | y = k ~ N(mu_k, diag s)`, `mu_k ~ N(0, prior_scale)`, `q(mu_k) = N(m_k, diag v_k)`; labels by Bayes' rule.

    With a diagonal s the posterior of the centers is diagonal, so no other covariance is offered. The objective is that
    of the labels given the features, with `N_k = N(phi; m_k, s + v_k)` and class probabilities r:

        E log p(y | phi) >= log N(phi; m_y, s) - sum_d v_yd / (2 s_d) + log r_y - log sum_k r_k N_k.

    Prediction is exact, `p(y = k | phi) = r_k N_k / sum_j r_j N_j`. `forward` and `values` give the moments of the
    scores `log r_k + log N(phi; mu_k, s)`, jointly over inputs; they are exact, though the scores are not Gaussian.

    Args:
        in_features: Number d of features.
        num_classes: Number of classes.
        num_data: Size of the whole data set.
        prior_scale: Prior variance of a coordinate of a center.
        noise: Variance s of every feature where it starts.
        noise_prior: A prior of s, or None for none.
        kl_weight: Factor on the divergence; 1 for the evidence lower bound.
        dtype: Floating type of the parameters; torch's default if None.

    References:
        Harrison, Willes, Snoek. Variational Bayesian last layers. ICLR 2024, section 3.

    >>> layer = VBLLGenerative(4, 3, num_data=10)
    >>> layer.predictive(torch.randn(5, 4)).probs.shape, layer.log_density(torch.randn(5, 4)).shape
    (torch.Size([5, 3]), torch.Size([5]))
    """

    counts: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        num_data: int,
        prior_scale: float = 1.0,
        noise: float = 1.0,
        noise_prior: InverseWishart | None = None,
        kl_weight: float = 1.0,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(num_data, kl_weight)
        checks.positive(num_classes, name="num_classes", integer=True)
        checks.positive(prior_scale, name="prior_scale")
        checks.positive(noise, name="noise")
        mean = 0.1 * torch.randn(num_classes, in_features, dtype=dtype)
        self.rows = DiagonalRows(mean, torch.full_like(mean, math.log(0.1 * math.sqrt(prior_scale))))
        self.prior = RowPrior(torch.zeros_like(mean), torch.full_like(mean, 1 / prior_scale))
        self.log_noise = nn.Parameter(torch.full((in_features,), math.log(noise), dtype=dtype))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=dtype))
        self.noise_prior = noise_prior

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Moments of the scores: means (n, k), and R (n, k, d + 1) with `cov = R_i . R_j`."""
        with torch.autocast(features.device.type, enabled=False):
            step = self._step(features)  # (n, k, d)
            precision, (_, variances) = (-self.log_noise).exp(), self.rows.parts()
            constant = self.log_class_probs() - 0.5 * (variances * precision + self.log_noise + LOG_2PI).sum(-1)
            mean = constant - 0.5 * step.square() @ precision
            linear = step * precision * variances.sqrt()
            quadratic = (0.5 * (variances * precision).square().sum(-1)).sqrt()  # common to all the inputs
            return mean, torch.cat([linear, quadratic[:, None].expand(*mean.shape, 1)], dim=-1)

    def scores(self, features: Tensor) -> Tensor:
        """`log r_k + log N(phi; m_k, s + v_k)`, (n, k): their softmax is the prediction."""
        with torch.autocast(features.device.type, enabled=False):
            total = self.log_noise.exp() + self.rows.parts()[1]  # (k, d)
            squares = (self._step(features).square() / total).sum(-1)
            return self.log_class_probs() - 0.5 * (squares + (total.log() + LOG_2PI).sum(-1))

    def expected_log_prob(self, features: Tensor, y: Tensor) -> Tensor:
        """The bound on `E log p(y_i | phi_i)`, (n,)."""
        return self._joint(features, y) - self.scores(features).logsumexp(-1)

    def penalty(self) -> Tensor:
        """The divergence of the centers minus the log prior of the noise, ()."""
        log_prior = 0.0 if self.noise_prior is None else self.noise_prior.log_density(self.log_noise.exp())
        return self.prior.divergence(self.rows).sum() - log_prior

    @torch.no_grad()
    def predictive(self, features: Tensor) -> CategoricalPredictive:
        """Class probabilities by Bayes' rule, exact; entropies given the centers by the moments of the scores.

        The expected entropy is that of Gaussian scores with these moments, by fixed draws.
        """
        by_moments = Categorical(len(self.counts)).predictive(self.values(features))
        assert isinstance(by_moments, CategoricalPredictive)
        return CategoricalPredictive(self.scores(features).log_softmax(-1), by_moments.expected_entropy)

    def log_density(self, features: Tensor) -> Tensor:
        """`log p(phi)`, (n,): low where the features are unlike those of every class."""
        return self.scores(features).logsumexp(-1)

    def log_class_probs(self) -> Tensor:
        """`log r_k = log (n_k + 1) / (n + K)`: uniform before `fit` has counted the labels."""
        return ((self.counts + 1) / (self.counts.sum() + len(self.counts))).log()

    @torch.no_grad()
    def fit(self, features: Tensor, y: Tensor) -> float:
        """The exact posterior of the centers and the noise of the largest evidence, of features and labels jointly.

        This is the generative optimum; that of the loss, which is a bound given the features, lies nearby.

        Returns:
            `log p(Phi, y)` at that noise.
        """
        self.counts.copy_(torch.bincount(y, minlength=len(self.counts)))
        old = math.inf
        for _ in range(ROUNDS):
            self._condition(features, y)
            squares = self._step(features)[torch.arange(len(y)), y].square() + self.rows.parts()[1][y]
            scale = 0.0 if self.noise_prior is None else self.noise_prior.scale
            extra = 0.0 if self.noise_prior is None else self.noise_prior.dof + len(self.log_noise) + 1
            self.log_noise.copy_(((squares.sum(0) + scale) / (len(y) + extra)).log())
            change, old = abs(float(self.log_noise.sum()) - old), float(self.log_noise.sum())
            if change < TOLERANCE * len(self.log_noise):
                break
        self._condition(features, y)
        return self._log_evidence(features, y)

    @torch.no_grad()
    def partial_fit(self, features: Tensor, y: Tensor) -> float:
        """Condition the present distribution of the centers on further data; the noise is fixed."""
        self.prior = RowPrior(self.rows.mean, 1 / self.rows.parts()[1])
        self.counts += torch.bincount(y, minlength=len(self.counts))
        self._condition(features, y)
        return self._log_evidence(features, y)

    def _joint(self, features: Tensor, y: Tensor) -> Tensor:
        """`E log p(phi_i, y_i)`, (n,)."""
        mean, _ = self(features)
        return mean.gather(-1, y.long().reshape(-1, 1)).squeeze(-1)

    def _step(self, features: Tensor) -> Tensor:
        """`phi_i - m_k`, (n, k, d)."""
        return features.to(self.rows.mean.dtype).unsqueeze(1) - self.rows.mean

    def _condition(self, features: Tensor, y: Tensor) -> None:
        """`v_k = (P_k + n_k / s)^-1`, `m_k = v_k (P_k m0_k + sum_i phi_i / s)`."""
        labels = torch.nn.functional.one_hot(y.long(), len(self.counts)).to(self.rows.mean.dtype)
        noise = (-self.log_noise).exp()
        precision = self.prior.precision + labels.sum(0)[:, None] * noise
        rhs = self.prior.precision * self.prior.mean + labels.mT @ features.to(labels.dtype) * noise
        self.rows.assign(rhs / precision, torch.diag_embed(precision))

    def _log_evidence(self, features: Tensor, y: Tensor) -> float:
        """`log p(Phi, y)`, of centers at their posterior."""
        return float(self._joint(features, y).sum() - self.prior.divergence(self.rows).sum())
