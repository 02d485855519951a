"""Prior precision and noise by the evidence of a network linearized about some weights.

About weights w0 the log-likelihood is replaced by its Gauss-Newton expansion, with gradient g and curvature H. With
prior mean m, prior precision P(d), a factor d for each group of weights, and the noise variance multiplied by t
(h = 1 / t; h = 1 where there is no Gaussian noise to learn),

    log Z(d, t) = l(t) + h (g' D - D' H D / 2) - (w* - m)' P (w* - m) / 2 - (log |h H + P| - log |P|) / 2,
    w* = m + (h H + P)^-1 h (g + H (w0 - m)),   D = w* - w0,

where l(t) is the log-likelihood at w0 under noise scaled by t. For a linear network this is the exact log evidence. It
is computed in whichever coordinates are cheapest: those that separate all weights (`SeparableEvidence`), the weights'
own (`WeightEvidence`), or those of the function at the rows (`kernel.FunctionEvidence`).

References:
    MacKay. A practical Bayesian framework for backpropagation networks. Neural Computation 1992, section 2.
    Immer, Bauer, Fortuin, Ratsch, Khan. Scalable marginal likelihood estimation for model selection in deep learning.
    ICML 2021, equation 8.
    Antoran et al. Adapting the linearized Laplace model evidence for modern deep learning. ICML 2022, section 4.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from bayeskit.bnn.curvature.eigenbasis import Basis
from bayeskit.core import operators
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


class LocalEvidence(ABC):
    """log Z as a function of log precisions d (g,) and of the log noise factor t (), about some weights w0.

    Args:
        log_likelihood: At w0.
        noise: For a Gaussian likelihood whose noise is learnt, else None.
    """

    log_likelihood: Tensor
    noise: Noise | None

    @abstractmethod
    def terms(self, log_precision: Tensor, log_noise: Tensor, *, moving: bool) -> tuple[Tensor, Tensor]:
        """Two numbers that with l(t) make up log Z.

        Returns:
            fit: `h (g' D - D' H D / 2) - (w - m)' P (w - m) / 2`, at the mode if the weights are `moving` there, else
                at w0 (D = 0).
            occam: `-(log |h H + P| - log |P|) / 2`, what the posterior has narrowed from the prior.
        """

    def occam(self, log_precision: Tensor, log_noise: Tensor) -> Tensor:
        """The second of the `terms`, ()."""
        return self.terms(log_precision, log_noise, moving=False)[1]

    def value(self, log_precision: Tensor, log_noise: Tensor, *, moving: bool) -> Tensor:
        """The log evidence, (): at its mode if the weights are `moving` there, else at w0."""
        fit, occam = self.terms(log_precision, log_noise, moving=moving)
        return self._likelihood(log_noise) + fit + occam

    def maximize(self, log_precision: Tensor, *, learnt: Tensor, moving: bool) -> tuple[Tensor, Tensor]:
        """The log precisions and the log noise factor of the largest evidence, from these precisions and factor 1.

        Args:
            log_precision: Where to start, (g,).
            learnt: Which precisions may change, (g,); the noise may if there is one.
            moving: Whether the weights move along to the mode.
        """
        free = log_precision[learnt].clone().requires_grad_(bool(learnt.any()))
        noise = log_precision.new_zeros(()).requires_grad_(self.noise is not None)

        def bounded() -> tuple[Tensor, Tensor]:
            lowest = -WIDEST if self.noise is None else self.noise.lowest
            precision = log_precision.masked_scatter(learnt, free.clamp(-WIDEST, WIDEST))
            return precision, noise.clamp(min=lowest)

        def loss() -> Tensor:
            return -self.value(*bounded(), moving=moving)

        minimize_lbfgs(loss, [free, noise], tolerance=1e-15, description="evidence")
        best_precision, best_noise = bounded()
        return best_precision.detach(), best_noise.detach()

    def _likelihood(self, log_noise: Tensor) -> Tensor:
        if self.noise is None:
            return self.log_likelihood
        shrunk = self.noise.squares * (1 - torch.exp(-log_noise)) - self.noise.count * log_noise
        return self.log_likelihood + 0.5 * shrunk


class MovingEvidence(LocalEvidence):
    """An evidence that also says where the weights go."""

    @abstractmethod
    def mode(self, log_precision: Tensor, log_noise: Tensor) -> Tensor:
        """`w* - m`, (p,)."""

    def foretold(self, log_precision: Tensor, log_noise: Tensor) -> Tensor:
        """The log joint density at the mode, ()."""
        return self._likelihood(log_noise) + self.terms(log_precision, log_noise, moving=True)[0]


@dataclass(frozen=True, eq=False)
class SeparableEvidence(MovingEvidence):
    """In coordinates u of a `Basis`, where P0 is the identity, H is diag(v), and every one is alone.

    Args:
        log_likelihood: At w0.
        noise: Of a Gaussian likelihood, if it is learnt.
        basis: The coordinates, with the curvature values v.
        start: u0, (p,).
        gradient: b, (p,).
    """

    log_likelihood: Tensor
    noise: Noise | None
    basis: Basis
    start: Tensor
    gradient: Tensor

    def mode(self, log_precision: Tensor, log_noise: Tensor) -> Tensor:
        """`u* = h (b + v u0) / (h v + d)`, back among the weights."""
        return self.basis.back(self._mode(log_precision, log_noise))

    def terms(self, log_precision: Tensor, log_noise: Tensor, *, moving: bool) -> tuple[Tensor, Tensor]:
        """`h (b' D - D' V D / 2) - sum d u^2 / 2` and `-sum log(1 + h v / d) / 2`."""
        u = self._mode(log_precision, log_noise) if moving else self.start
        h, step, d = torch.exp(-log_noise), u - self.start, log_precision.exp()[self.basis.groups]
        gain = (self.gradient * step - 0.5 * self.basis.values * step.square()).sum()
        occam = -0.5 * torch.log1p(h * self.basis.values / d).sum()
        return h * gain - 0.5 * (d * u.square()).sum(), occam

    def _mode(self, log_precision: Tensor, log_noise: Tensor) -> Tensor:
        h, v = torch.exp(-log_noise), self.basis.values
        return h * (self.gradient + v * self.start) / (h * v + log_precision.exp()[self.basis.groups])


@dataclass(frozen=True, eq=False)
class WeightEvidence(MovingEvidence):
    """With a matrix H over the weights and several groups, for which no coordinates separate H and P(d) at every d.

    Every value is a Cholesky factorization, in units of the prior's standard deviations.

    Args:
        log_likelihood: At w0.
        noise: Of a Gaussian likelihood, if it is learnt.
        scale: Prior standard deviations `P0^-1/2`, (p,).
        groups: The group of each weight, (p,).
        matrix: `P0^-1/2 H P0^-1/2`, (p, p).
        start: `P0^1/2 (w0 - m)`, (p,).
        gradient: `P0^-1/2 g`, (p,).
    """

    log_likelihood: Tensor
    noise: Noise | None
    scale: Tensor
    groups: Tensor
    matrix: Tensor
    start: Tensor
    gradient: Tensor

    def mode(self, log_precision: Tensor, log_noise: Tensor) -> Tensor:
        """`w* - m` by one solve."""
        factor, pull, narrowed = self._system(log_precision, log_noise)
        return self.scale * narrowed * factor.solve(pull)

    def terms(self, log_precision: Tensor, log_noise: Tensor, *, moving: bool) -> tuple[Tensor, Tensor]:
        """At the mode `c' (h H + P)^-1 c / 2 - h g' s - h s' H s / 2`, with s = w0 - m and `c = h (g + H s)`."""
        factor, pull, _ = self._system(log_precision, log_noise)
        occam = -0.5 * factor.logdet()
        if not moving:
            return -0.5 * (log_precision.exp()[self.groups] * self.start.square()).sum(), occam
        constant = self.gradient @ self.start + 0.5 * self.start @ self.matrix @ self.start
        return 0.5 * factor.half_solve(pull).square().sum() - torch.exp(-log_noise) * constant, occam

    def _system(self, log_precision: Tensor, log_noise: Tensor) -> tuple[operators.Factor, Tensor, Tensor]:
        """The factor of `I + h P^-1/2 H P^-1/2`, `P^-1/2 c`, and `d^-1/2` of each weight."""
        h, narrowed = torch.exp(-log_noise), (-0.5 * log_precision).exp()[self.groups]
        eye = torch.eye(len(narrowed), dtype=narrowed.dtype, device=narrowed.device)
        inner = eye + h * narrowed[:, None] * self.matrix * narrowed
        pull = h * narrowed * (self.gradient + self.matrix @ self.start)
        return operators.factorize(inner, name="the precision of the weights"), pull, narrowed
