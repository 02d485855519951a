"""Prior precision and noise by the evidence of a network linearized about some weights.

About weights w0 the log-likelihood is replaced by its Gauss-Newton expansion, with gradient g and curvature H. With
prior mean m, prior precision P(d), a factor d for each group of weights, and the noise variance multiplied by t
(h = 1 / t; h = 1 where there is no Gaussian noise to learn),

    log Z(d, t) = l(t) + h (g' D - D' H D / 2) - (w* - m)' P (w* - m) / 2 - (log |h H + P| - log |P|) / 2,
    w* = m + (h H + P)^-1 h (g + H (w0 - m)),   D = w* - w0,

where l(t) is the log-likelihood at w0 under noise scaled by t. The last term is the Occam factor. For a linear network
this is the exact log evidence. It is computed in whichever coordinates are cheapest: those that separate all weights
(`SeparableEvidence`), the weights' own (`WeightEvidence`), or those of the function at the data
(`ntk_curvature.FunctionEvidence`).

References:
    MacKay. A practical Bayesian framework for backpropagation networks. Neural Computation 1992, section 2.
    Immer, Bauer, Fortuin, Ratsch, Khan. Scalable marginal likelihood estimation for model selection in deep learning.
    ICML 2021, equation 8.
    Antoran et al. Adapting the linearized Laplace model evidence for modern deep learning. ICML 2022, section 4.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bayeskit.bnn.curvature.eigenbasis import Basis
from bayeskit.bnn.curvature.prior_precision import PriorPrecision
from bayeskit.core import operators
from bayeskit.core.optimize import minimize_lbfgs

WIDEST = 13.8
"""Precisions are kept within exp(+-WIDEST), six decades either way, where the evidence no longer depends on them."""


@dataclass(frozen=True, eq=False)
class Noise:
    """What the Gaussian log-likelihood at w0 needs to be rescaled.

    Args:
        count: Number of weighted observations (data points times outputs).
        squares: Their sum of squared residuals over the noise variance.
        lowest: The log of the smallest factor allowed.
    """

    count: float
    squares: Tensor
    lowest: float


@dataclass(frozen=True, eq=False)
class Expansion:
    """The log joint density to second order about weights w0, without the curvature.

    Args:
        offset: w0 - m from the prior mean, (p,), float64.
        gradient: Of the log-likelihood, (p,), float64.
        log_likelihood: At w0.
        noise: Of a Gaussian likelihood whose noise is learnt, else None.
        prior: Its precision.
    """

    offset: Tensor
    gradient: Tensor
    log_likelihood: Tensor
    noise: Noise | None
    prior: PriorPrecision

    def rescaled_log_likelihood(self, log_noise: Tensor) -> Tensor:
        """`l(t)`, ()."""
        if self.noise is None:
            return self.log_likelihood
        shrunk = self.noise.squares * (1 - torch.exp(-log_noise)) - self.noise.count * log_noise
        return self.log_likelihood + 0.5 * shrunk

    def log_prior(self, log_precision: Tensor) -> Tensor:
        """`-(w0 - m)' P (w0 - m) / 2`, ()."""
        return -0.5 * self.penalties @ log_precision.exp()

    @cached_property
    def penalties(self) -> Tensor:
        """`(w0 - m)' P0 (w0 - m)` by group, (g,)."""
        return self.prior.quadratics(self.offset)


class LocalEvidence(ABC):
    """log Z as a function of log precisions d (g,) and of the log noise factor t (), with the weights fixed at w0."""

    expansion: Expansion

    @abstractmethod
    def occam(self, log_precision: Tensor, log_noise: Tensor) -> Tensor:
        """`-(log |h H + P| - log |P|) / 2`, ()."""

    def value(self, log_precision: Tensor, log_noise: Tensor) -> Tensor:
        """The log evidence at w0, (): D = 0."""
        fit = self.expansion.rescaled_log_likelihood(log_noise) + self.expansion.log_prior(log_precision)
        return fit + self.occam(log_precision, log_noise)


class ModeEvidence(LocalEvidence):
    """An evidence that also knows the mode w* of the expansion."""

    @abstractmethod
    def mode(self, log_precision: Tensor, log_noise: Tensor) -> Tensor:
        """`w* - m`, (p,)."""

    @abstractmethod
    def terms_at_mode(self, log_precision: Tensor, log_noise: Tensor) -> tuple[Tensor, Tensor]:
        """`h (g' D - D' H D / 2) - (w* - m)' P (w* - m) / 2` and the Occam factor, each ()."""

    def value_at_mode(self, log_precision: Tensor, log_noise: Tensor) -> Tensor:
        """The log evidence, ()."""
        fit, occam = self.terms_at_mode(log_precision, log_noise)
        return self.expansion.rescaled_log_likelihood(log_noise) + fit + occam

    def predicted_log_joint(self, log_precision: Tensor, log_noise: Tensor) -> Tensor:
        """The log joint density of the expansion at its mode, ()."""
        return self.expansion.rescaled_log_likelihood(log_noise) + self.terms_at_mode(log_precision, log_noise)[0]


def maximize(
    evidence: Callable[[Tensor, Tensor], Tensor], log_precision: Tensor, *, learnt: Tensor, noise: Noise | None
) -> tuple[Tensor, Tensor]:
    """The log precisions and the log noise factor of the largest evidence, from these precisions and factor 1.

    Args:
        evidence: The log evidence as a function of both.
        log_precision: Where to start, (g,).
        learnt: Which precisions may change, (g,).
        noise: The noise may change if there is one.
    """
    free = log_precision[learnt].clone().requires_grad_(bool(learnt.any()))
    log_noise = log_precision.new_zeros(()).requires_grad_(noise is not None)

    def bounded() -> tuple[Tensor, Tensor]:
        lowest = -WIDEST if noise is None else noise.lowest
        return log_precision.masked_scatter(learnt, free.clamp(-WIDEST, WIDEST)), log_noise.clamp(min=lowest)

    minimize_lbfgs(lambda: -evidence(*bounded()), [free, log_noise], tolerance=1e-15, description="evidence")
    best_precision, best_noise = bounded()
    return best_precision.detach(), best_noise.detach()


@dataclass(frozen=True, eq=False)
class SeparableEvidence(ModeEvidence):
    """In coordinates u of a `Basis`, where P0 is the identity, H is diag(v), and every one is alone.

    Args:
        expansion: About w0.
        basis: The coordinates, with the curvature values v.
    """

    expansion: Expansion
    basis: Basis

    def mode(self, log_precision: Tensor, log_noise: Tensor) -> Tensor:
        """`u* = h (b + v u0) / (h v + d)`, back among the weights."""
        return self.basis.back(self._mode(log_precision, log_noise))

    def occam(self, log_precision: Tensor, log_noise: Tensor) -> Tensor:
        """`-sum log(1 + h v / d) / 2`."""
        d = log_precision.exp()[self.basis.groups]
        return -0.5 * torch.log1p(torch.exp(-log_noise) * self.basis.values / d).sum()

    def terms_at_mode(self, log_precision: Tensor, log_noise: Tensor) -> tuple[Tensor, Tensor]:
        """`h (b' D - D' V D / 2) - sum d u*^2 / 2`, and the Occam factor."""
        u, d = self._mode(log_precision, log_noise), log_precision.exp()[self.basis.groups]
        step = u - self._start
        gain = (self._gradient * step - 0.5 * self.basis.values * step.square()).sum()
        fit = torch.exp(-log_noise) * gain - 0.5 * (d * u.square()).sum()
        return fit, self.occam(log_precision, log_noise)

    def _mode(self, log_precision: Tensor, log_noise: Tensor) -> Tensor:
        h, v = torch.exp(-log_noise), self.basis.values
        return h * (self._gradient + v * self._start) / (h * v + log_precision.exp()[self.basis.groups])

    @cached_property
    def _start(self) -> Tensor:
        """u0, (p,)."""
        return self.basis.coordinates(self.expansion.offset)

    @cached_property
    def _gradient(self) -> Tensor:
        """b, (p,)."""
        return self.basis.dual(self.expansion.gradient)


@dataclass(frozen=True, eq=False)
class WeightEvidence(ModeEvidence):
    """With a matrix H over the weights and several groups, for which no coordinates separate H and P(d) at every d.

    Every value is a Cholesky factorization, in units of the prior's standard deviations.

    Args:
        expansion: About w0, with a diagonal prior precision P0.
        matrix: `P0^-1/2 H P0^-1/2`, (p, p).
    """

    expansion: Expansion
    matrix: Tensor

    def mode(self, log_precision: Tensor, log_noise: Tensor) -> Tensor:
        """`w* - m` by one solve."""
        factor, rhs, narrowed = self._system(log_precision, log_noise)
        return self._scale * narrowed * factor.solve(rhs)

    def occam(self, log_precision: Tensor, log_noise: Tensor) -> Tensor:
        """By the log determinant of the factor."""
        return -0.5 * self._system(log_precision, log_noise)[0].logdet()

    def terms_at_mode(self, log_precision: Tensor, log_noise: Tensor) -> tuple[Tensor, Tensor]:
        """`c' (h H + P)^-1 c / 2 - h g' s - h s' H s / 2`, with s = w0 - m and `c = h (g + H s)`."""
        factor, rhs, _ = self._system(log_precision, log_noise)
        constant = self._gradient @ self._start + 0.5 * self._start @ self.matrix @ self._start
        fit = 0.5 * factor.half_solve(rhs).square().sum() - torch.exp(-log_noise) * constant
        return fit, -0.5 * factor.logdet()

    def _system(self, log_precision: Tensor, log_noise: Tensor) -> tuple[operators.Factor, Tensor, Tensor]:
        """The factor of `I + h P^-1/2 H P^-1/2`, `P^-1/2 c`, and `d^-1/2` of each weight."""
        h, narrowed = torch.exp(-log_noise), (-0.5 * log_precision).exp()[self.expansion.prior.groups]
        eye = torch.eye(len(narrowed), dtype=narrowed.dtype, device=narrowed.device)
        inner = eye + h * narrowed[:, None] * self.matrix * narrowed
        rhs = h * narrowed * (self._gradient + self.matrix @ self._start)
        return operators.factorize(inner, name="the precision of the weights"), rhs, narrowed

    @cached_property
    def _scale(self) -> Tensor:
        """Prior standard deviations `P0^-1/2`, (p,)."""
        assert isinstance(self.expansion.prior.base, Tensor)
        return self.expansion.prior.base.rsqrt()

    @cached_property
    def _start(self) -> Tensor:
        """`P0^1/2 (w0 - m)`, (p,)."""
        return self.expansion.offset / self._scale

    @cached_property
    def _gradient(self) -> Tensor:
        """`P0^-1/2 g`, (p,)."""
        return self.expansion.gradient * self._scale
