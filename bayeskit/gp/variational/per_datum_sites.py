"""A Gaussian site for each data point: what its likelihood term contributes to q."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bayeskit.core.types import Data
from bayeskit.gp.kernels.evaluate import mean_rows
from bayeskit.gp.model.hyperparameters import Model
from bayeskit.gp.variational.projected_data import ProjectedData
from bayeskit.gp.variational.whitened_gaussian import Sites, WhitenedGaussian


@dataclass(frozen=True, eq=False)
class RowSites:
    """exp(a_ij f_ij - b_ij f_ij^2 / 2) on the latent values f_j(x_i), case weights included.

    Args:
        pull: a, (k, n).
        precision: b, (k, n).
        noise: Variance of the Gaussian noise they were formed at, or None for another likelihood; a and b are rescaled
            as the noise changes.
        leverage: sum_j b_ij var f_j(x_i) where they were formed, (n,), the Bayesian leverage scores.
    """

    pull: Tensor
    precision: Tensor
    noise: Tensor | None
    leverage: Tensor

    @classmethod
    @torch.no_grad()
    def at(cls, model: Model, tril: Tensor, z: Tensor, rows: Data, sites: Sites) -> "RowSites":
        """The sites of data points where q is that of `sites`, at L and Z."""
        block = ProjectedData.build(model, tril, z, rows)
        location, variance = block.marginals(WhitenedGaussian.from_sites(sites))
        alpha, precision = block.site_gradients(model, location, variance)
        return cls(alpha + precision * location, precision, noise_of(model), (precision * variance).sum(0))

    def rows(self, index: Tensor) -> "RowSites":
        """Those of some of the data points."""
        return RowSites(self.pull[:, index], self.precision[:, index], self.noise, self.leverage[index])

    def on(self, model: Model, projection: Tensor, x: Tensor) -> Sites:
        """Their product as sites on v = L^-1 u, at the model's mean and noise.

        Args:
            model: Mean and likelihood.
            projection: A = L^-1 k(Z, x), (m, n) or (k, m, n).
            x: The inputs (n, d).
        """
        ratio = noise_ratio(self.noise, model)
        precision = self.precision * ratio
        pull = self.pull * ratio - precision * mean_rows(model.mean, x, model.num_outputs)
        return Sites.of_points(projection, pull, precision)


def noise_of(model: Model) -> Tensor | None:
    """The variance of Gaussian noise, (1,) or (k,); None for another likelihood."""
    noise = model.likelihood.noise_variance
    return None if noise is None else noise.detach().clone()


def noise_ratio(noise: Tensor | None, model: Model) -> Tensor:
    """Precision of the noise now over the precision then, (1, 1) or (k, 1): how sites of Gaussian noise rescale."""
    present = model.likelihood.noise_variance
    if noise is None or present is None:
        return torch.ones(1, 1, dtype=torch.float64)
    ratio = noise / present
    of_latents = model.mixing is None and len(ratio) == model.num_outputs
    return (ratio if of_latents else ratio.mean(0, keepdim=True)).unsqueeze(-1)
