"""Training data as Gaussian observations of the latent functions, with a noise variance for each entry."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bayeskit.core.types import Data
from bayeskit.gp.model.hyperparameters import Model
from bayeskit.gp.model.training_set import inputs

MISSING_NOISE = 1e300
"""A finite stand-in for infinite noise variance, whose square root times itself is still finite."""


@dataclass(frozen=True, eq=False)
class Observations:
    """Values v_ji = f_j(x_i) + N(0, s_ji) of k functions at n inputs, each with weight w_i.

    An entry of noise s and weight w equals one of noise D = s / w up to a constant, and a missing one has infinite D:

        N(v; f, s)^w = N(v; f, D) sqrt(2 pi D) / (2 pi s)^(w / 2).

    D is stored as `scale / weights`, which vary over outputs and over inputs.

    Args:
        residual: v - m(x), (k, n), zero where missing.
        scale: (1,) if it is the same for all outputs, else (k,).
        weights: Positive, (n,) if all outputs share them, else (k, n); None for ones.
        seen: Mask of the entries that are not missing, (k, n); None for all.
        normalizer: Sum of w log(2 pi s) over the observed entries.
    """

    residual: Tensor
    scale: Tensor
    weights: Tensor | None
    seen: Tensor | None
    normalizer: Tensor

    @classmethod
    def build(cls, model: Model, rows: Data) -> "Observations":
        """The observations at the current hyperparameters of a model, differentiable in these.

        Args:
            model: Mean, kernel and conjugate likelihood.
            rows: Inputs (n, d), targets, positive weights or None.
        """
        values, variance = model.likelihood.observations(rows.y)  # (n, k); (1,), (k,) or (n, k)
        residual = model.residual(inputs(rows), values.double())
        seen = ~residual.isnan() if bool(residual.isnan().any()) else None
        by_entry = variance.dim() > 1
        variance = variance.double().mT if by_entry else variance.double()
        counts = torch.ones_like(residual[0]) if rows.weights is None else rows.weights
        weights = counts / variance if by_entry else rows.weights
        if weights is not None and len(residual) == 1:
            weights = weights.reshape(-1)  # a single output has one system whatever its noise
        logs = counts * (2 * torch.pi * (variance if by_entry else variance.unsqueeze(-1))).log().expand_as(residual)
        return cls(
            residual=residual if seen is None else torch.where(seen, residual, 0.0),
            scale=torch.ones_like(residual[0, :1]) if by_entry else variance,
            weights=weights,
            seen=seen,
            normalizer=logs.sum() if seen is None else torch.where(seen, logs, 0.0).sum(),
        )

    @property
    def shared(self) -> bool:
        """Whether all outputs have the same noise and the same observed inputs."""
        return len(self.scale) == 1 and self.seen is None and (self.weights is None or self.weights.dim() == 1)

    @property
    def noise(self) -> Tensor:
        """D: (n,) if shared by all outputs, else (k, n); `MISSING_NOISE` where missing."""
        spread = self.scale.unsqueeze(-1).expand(len(self.scale), self.residual.shape[-1])
        spread = spread if self.weights is None else spread / self.weights
        if self.shared:
            return spread[0]
        spread = spread.expand_as(self.residual)
        return spread if self.seen is None else torch.where(self.seen, spread, MISSING_NOISE)

    @property
    def roots(self) -> Tensor | None:
        """sqrt(weights), zero where missing: (n,) or (k, n), or None for ones."""
        roots = None if self.weights is None else self.weights.sqrt()
        if self.seen is None:
            return roots
        return torch.where(self.seen, torch.ones_like(self.residual[0]) if roots is None else roots, 0.0)

    @property
    def log_constant(self) -> Tensor:
        """The constant that turns -(r' C^-1 r + log|C|) / 2 into the log evidence, C = K + D over observed entries."""
        logs = self.noise.log().expand_as(self.residual)
        logs = logs if self.seen is None else torch.where(self.seen, logs, 0.0)
        return 0.5 * (logs.sum() - self.normalizer)

    def noisy(self, covariance: Tensor) -> Tensor:
        """C = K + D with rows and columns of the identity where missing: (n, n) if shared, else (k, n, n).

        Args:
            covariance: K, (n, n) or (k, n, n).
        """
        if self.seen is None:
            return covariance + torch.diag_embed(self.noise)
        both = self.seen.unsqueeze(-1) & self.seen.unsqueeze(-2)
        noisy = covariance + torch.diag_embed(torch.where(self.seen, self.noise, 1.0))
        return torch.where(both, noisy, torch.eye(len(both[0]), dtype=noisy.dtype, device=noisy.device))

    def with_infinite_noise(self, tril: Tensor) -> Tensor:
        """The factor of C with infinite noise where missing, from that with rows of the identity there."""
        if self.seen is None:
            return tril
        return tril + torch.diag_embed(torch.zeros_like(self.residual).masked_fill(~self.seen, MISSING_NOISE**0.5))
