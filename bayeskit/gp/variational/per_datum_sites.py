"""A Gaussian site of every row: what one observation says of the functions where it was made."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bayeskit.core.likelihood import Gaussian
from bayeskit.core.types import Data
from bayeskit.gp.kernels.evaluate import gram, gram_diagonal, mean_rows
from bayeskit.gp.model.hyperparameters import Model
from bayeskit.gp.model.training_set import inputs
from bayeskit.gp.process.conditioned_kernel import floored
from bayeskit.gp.variational.marginal_moments import projected
from bayeskit.gp.variational.sites import Sites


@dataclass(frozen=True, eq=False)
class RowSites:
    """exp(a_ij f_ij - b_ij f_ij^2 / 2) on the values of the functions at each row, case weights included.

    Args:
        pull: a, (k, n).
        precision: b, (k, n).
        noise: Variance of the Gaussian noise they were formed at, or None for another likelihood; a and b are scaled
            along as the noise changes.
        leverage: sum_j b_ij var f_j(x_i) where they were formed, (n,): how much each row still tells.
    """

    pull: Tensor
    precision: Tensor
    noise: Tensor | None
    leverage: Tensor

    @classmethod
    @torch.no_grad()
    def at(cls, model: Model, tril: Tensor, z: Tensor, rows: Data, sites: Sites) -> "RowSites":
        """The sites that the rows have where q is that of `sites`, at L and Z."""
        location, variance = latents_at(model, tril, z, inputs(rows), sites)
        alpha, beta = (site.mT for site in model.site_gradients(location.mT, variance.mT, rows.y))
        weights = rows.scale if rows.weights is None else rows.scale * rows.weights
        precision = weights * beta
        leverage = (precision * variance).sum(0)
        return cls(weights * (alpha + beta * location), precision, noise_of(model), leverage)

    def rows(self, index: Tensor) -> "RowSites":
        """Those of some of the rows."""
        return RowSites(self.pull[:, index], self.precision[:, index], self.noise, self.leverage[index])

    def on(self, model: Model, projection: Tensor, x: Tensor) -> Sites:
        """Their product as sites on v = L^-1 u, at the model's mean and noise.

        Args:
            model: Mean and likelihood.
            projection: A = L^-1 k(Z, x), (m, n) or (k, m, n).
            x: The rows' inputs (n, d).
        """
        ratio = noise_ratio(self.noise, model)
        precision = self.precision * ratio
        pull = self.pull * ratio - precision * mean_rows(model.mean, x, model.num_outputs)
        shift = (projection @ pull.unsqueeze(-1)).squeeze(-1)
        return Sites(shift, (projection * precision.unsqueeze(-2)) @ projection.mT)


def latents_at(model: Model, tril: Tensor, z: Tensor, x: Tensor, sites: Sites) -> tuple[Tensor, Tensor]:
    """Means and variances of the latent functions at inputs (n, d) where q is that of `sites`, each (k, n)."""
    mean, root = sites.moments()
    projection = torch.linalg.solve_triangular(tril, gram(model.kernel, z, x), upper=False)
    before = gram_diagonal(model.kernel, x)
    variance = floored(before - projection.square().sum(-2), before) + (root.mT @ projection).square().sum(-2)
    return mean_rows(model.mean, x, model.num_outputs) + projected(projection, mean), variance


def noise_of(model: Model) -> Tensor | None:
    """The variance of Gaussian noise, (1,) or (k,); None for another likelihood."""
    return model.likelihood.noise.detach().clone() if isinstance(model.likelihood, Gaussian) else None


def noise_ratio(noise: Tensor | None, model: Model) -> Tensor:
    """Precision of the noise now over that then, (1, 1) or (k, 1): how sites of Gaussian noise change with it."""
    if noise is None:
        return torch.ones(1, 1, dtype=torch.float64)
    assert isinstance(model.likelihood, Gaussian)
    ratio = noise / model.likelihood.noise
    return (ratio if len(ratio) == model.num_outputs else ratio.mean(0, keepdim=True)).unsqueeze(-1)
