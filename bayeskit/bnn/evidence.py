"""Prior precision and noise by evidence, in coordinates where every weight is alone.

About weights w0 the log-likelihood is replaced by its Gauss-Newton expansion. In the coordinates u of a `Basis`, with
prior mean at 0, gradient b and curvature values v at u0, prior precision d (one a layer) and the noise variance
multiplied by t (h = 1 / t; h = 1 where there is no Gaussian noise to learn),

    log Z(d, t) = l(t) + h (b' D - D' V D / 2) - sum d u*^2 / 2 - sum log(1 + h v / d) / 2,
    u* = h (b + v u0) / (h v + d),   D = u* - u0,

where l(t) is the log-likelihood at w0 under noise scaled by t. For a linear network this is the exact log evidence.

References:
    MacKay. A practical Bayesian framework for backpropagation networks. Neural Computation 1992, section 2.
    Immer, Bauer, Fortuin, Ratsch, Khan. Scalable marginal likelihood estimation for model selection in deep learning.
    ICML 2021, equation 8.
    Antoran et al. Adapting the linearized Laplace model evidence for modern deep learning. ICML 2022, section 4.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bayeskit.bnn.basis import Basis
from bayeskit.core.optimize import minimize_lbfgs

WIDEST = 13.8
"""Precisions are kept within exp(+-WIDEST), six decades either way, where the evidence no longer depends on them."""


@dataclass(frozen=True, eq=False)
class Noise:
    """What the Gaussian log-likelihood at w0 needs to be rescaled.

    Args:
        count: Number of weighted observations (rows times outputs).
        squares: Their sum of squared residuals over the noise variance.
        lowest: The log of the smallest factor allowed.
    """

    count: float
    squares: Tensor
    lowest: float


@dataclass(frozen=True, eq=False)
class QuadraticEvidence:
    """log Z as a function of log precisions and of the log noise factor.

    Args:
        basis: The coordinates, with the curvature values v.
        start: u0, (p,).
        gradient: b, (p,).
        log_likelihood: At w0.
        noise: For a Gaussian likelihood whose noise is learnt, else None.
    """

    basis: Basis
    start: Tensor
    gradient: Tensor
    log_likelihood: Tensor
    noise: Noise | None

    def mode(self, log_precision: Tensor, log_noise: Tensor) -> Tensor:
        """u*, (p,), for log precisions (groups,) and a log noise factor ()."""
        h, v = torch.exp(-log_noise), self.basis.values
        return h * (self.gradient + v * self.start) / (h * v + log_precision.exp()[self.basis.groups])

    def log_joint(self, coordinates: Tensor, log_precision: Tensor, log_noise: Tensor) -> Tensor:
        """`l(t) + h (b' D - D' V D / 2) - sum d u^2 / 2` at coordinates u, ()."""
        step, d = coordinates - self.start, log_precision.exp()[self.basis.groups]
        fit = (self.gradient * step - 0.5 * self.basis.values * step.square()).sum()
        return self._likelihood(log_noise) + torch.exp(-log_noise) * fit - 0.5 * (d * coordinates.square()).sum()

    def occam(self, log_precision: Tensor, log_noise: Tensor) -> Tensor:
        """`-sum log(1 + h v / d) / 2`: what the weights' posterior has narrowed from the prior, ()."""
        d = log_precision.exp()[self.basis.groups]
        return -0.5 * torch.log1p(torch.exp(-log_noise) * self.basis.values / d).sum()

    def value(self, log_precision: Tensor, log_noise: Tensor, *, moving: bool) -> Tensor:
        """The log evidence, (): at its mode if the weights are `moving` there, else at u0."""
        point = self.mode(log_precision, log_noise) if moving else self.start
        return self.log_joint(point, log_precision, log_noise) + self.occam(log_precision, log_noise)

    def maximize(self, log_precision: Tensor, *, learn_precision: bool, moving: bool) -> tuple[Tensor, Tensor]:
        """The log precisions and the log noise factor of the largest evidence, from these precisions and factor 1.

        Precisions are learnt if asked, the noise if there is one.
        """
        precision = log_precision.clone().requires_grad_(learn_precision)
        noise = log_precision.new_zeros(()).requires_grad_(self.noise is not None)

        def bounded() -> tuple[Tensor, Tensor]:
            lowest = -WIDEST if self.noise is None else self.noise.lowest
            return precision.clamp(-WIDEST, WIDEST), noise.clamp(min=lowest)

        def loss() -> Tensor:
            return -self.value(*bounded(), moving=moving)

        minimize_lbfgs(loss, [precision, noise], tolerance=1e-15, description="evidence")
        best_precision, best_noise = bounded()
        return best_precision.detach(), best_noise.detach()

    def _likelihood(self, log_noise: Tensor) -> Tensor:
        if self.noise is None:
            return self.log_likelihood
        shrunk = self.noise.squares * (1 - torch.exp(-log_noise)) - self.noise.count * log_noise
        return self.log_likelihood + 0.5 * shrunk
