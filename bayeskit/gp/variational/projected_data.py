"""Data projected on whitened inducing values: the part of the bound that grows with the number of data points."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bayeskit.core.types import Data
from bayeskit.gp.kernels.evaluate import gram, gram_diagonal, mean_rows
from bayeskit.gp.model.hyperparameters import Model
from bayeskit.gp.model.training_set import inputs
from bayeskit.gp.process.conditioned_kernel import floored
from bayeskit.gp.variational.marginal_moments import projected
from bayeskit.gp.variational.whitened_gaussian import Sites, WhitenedGaussian


@dataclass(frozen=True, eq=False)
class ProjectedData:
    """f(x_i) given v: mean m(x_i) + A_i' v and variance k(x_i, x_i) - |A_i|^2, with A_i = L^-1 k(Z, x_i).

    Args:
        data: The data points.
        projection: A, (m, n) or (k, m, n).
        mean: m(x), (k, n).
        variance: k(x, x) - |A|^2, (k, n) or (n,).
    """

    data: Data
    projection: Tensor
    mean: Tensor
    variance: Tensor

    @classmethod
    def build(cls, model: Model, tril: Tensor, z: Tensor, data: Data) -> "ProjectedData":
        """From inducing points (m, d) and L, (m, m) or (k, m, m); differentiable in both and in the model."""
        x = inputs(data)
        projection = torch.linalg.solve_triangular(tril, gram(model.kernel, z, x), upper=False)
        before = gram_diagonal(model.kernel, x)
        variance = floored(before - projection.square().sum(-2), before)
        return cls(data, projection, mean_rows(model.mean, x, model.num_outputs), variance)

    def marginals(self, q: WhitenedGaussian) -> tuple[Tensor, Tensor]:
        """Means and variances of the latent functions under q, (k, n) each."""
        spread = (q.root.mT @ self.projection).square().sum(-2)
        return self.mean + projected(self.projection, q.mean), self.variance + spread

    def site_gradients(self, model: Model, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """First and negated second derivatives of E_q[log p(y_i | f)] in the means, weighted, (k, n) each."""
        alpha, beta = model.site_gradients(mean.mT, variance.mT, self.data.y)
        return self.weights * alpha.mT, self.weights * beta.mT

    def sites(self, model: Model, q_mean: Tensor, mean: Tensor, variance: Tensor) -> Sites:
        """The sites on v that a full natural-gradient step leads to, from q (k, m) and the marginals (k, n)."""
        alpha, beta = self.site_gradients(model, mean, variance)
        return Sites.of_points(self.projection, alpha + beta * projected(self.projection, q_mean), beta)

    @property
    def weights(self) -> Tensor | float:
        """Case weights times the scale of a mini-batch, (n,) or one number."""
        return self.data.scale if self.data.weights is None else self.data.scale * self.data.weights
