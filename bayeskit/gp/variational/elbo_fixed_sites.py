"""The evidence lower bound with the sites on inducing values held fixed, while hyperparameters and Z move.

A Gaussian q is the prior times sites. If the sites stay where hyperparameters change, q follows the prior, and the
bound stays close to its optimum over q: closer than with the moments of q fixed. `elbo_row_sites.py` has one site per
data point; here, for mini-batches, there is one on u = f(Z) - m(Z), exp(u' l - u' P u / 2). It is stored for
v = L^-1 u, and transformed to other hyperparameters by F = L_old^-1 L_new: l <- F' l and P <- F' P F. Where Z moves
too, it stays a site on the function at the old Z, as far as the new inducing values determine it:
F = L_old^-1 k(Z_old, Z_new) L_new^-T, which at equal hyperparameters lengthens no vector. (Held as a site on the
values wherever Z went, it would claim at new points what was learned at old ones, and where points are close F grows
without limit.)

References:
    Adam, Chang, Khan and Solin (2021), "Dual Parameterization of Sparse Variational Gaussian Processes", section 3.3.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayeskit.core.operators import LinAlgError, block_triangular, note
from bayeskit.core.types import Data
from bayeskit.gp.kernels.evaluate import gram, gram_diagonal, grams, mean_rows
from bayeskit.gp.model.hyperparameters import Model
from bayeskit.gp.model.training_set import inputs
from bayeskit.gp.process.conditioned_kernel import floored
from bayeskit.gp.variational.marginal_moments import inducing_factor, projected, slope_of_square, weighted_square
from bayeskit.gp.variational.per_datum_sites import noise_of, noise_ratio
from bayeskit.gp.variational.whitened_gaussian import Sites, dense_moments


class InducingSites:
    """Sites on the inducing values, moved by natural-gradient steps over mini-batches while hyperparameters change.

    Sites and factors are in float64; the products of a step are in the type it is asked for.

    Args:
        z: Z at which the sites are given, (m, d).
        tril: L there.
        sites: The sites.
        noise: As for `RowSites`.
    """

    def __init__(self, z: Tensor, tril: Tensor, sites: Sites, noise: Tensor | None):
        self.z, self.tril, self.noise = z.detach().clone(), tril.clone(), noise
        self.inverse, self.shift = block_triangular.lower_inverse(tril), sites.shift.clone()
        self.precision = sites.precision.clone()

    @property
    def buffers(self) -> list[Tensor]:
        """The tensors that steps change in place."""
        kept = [self.z, self.tril, self.inverse, self.shift, self.precision]
        return kept if self.noise is None else [*kept, self.noise]

    @property
    def sites(self) -> Sites:
        """The present sites."""
        return Sites(self.shift, self.precision)

    @torch.no_grad()
    def move(
        self, model: Model, z: Tensor, tril: Tensor, *, jitter: float = 0.0, dtype: torch.dtype = torch.float64
    ) -> None:
        """Express the sites at other hyperparameters and another Z, where L is `tril`, in units of the noise.

        With E = F - I, F' P F = P + P E + (P E)' + E' P E: rounding errors of single precision are in proportion to
        the move.

        Args:
            model: Mean, kernel and any likelihood.
            z: The new Z.
            tril: The new L.
            jitter: What L L' has on its diagonal beyond k(Z, Z), in units of its mean. It stays part of the inducing
                values where Z moves: sites in directions that hardly vary would fade with every step otherwise.
            dtype: Of the products.
        """
        inverse, cross = block_triangular.lower_inverse(tril), tril
        if not torch.equal(z, self.z):
            cross = gram(model.kernel, self.z, z)
            if jitter:
                nugget = jitter * gram_diagonal(model.kernel, z).mean(-1, keepdim=True)
                cross.diagonal(dim1=-2, dim2=-1).add_(nugget)
            cross = block_triangular.lower_matmul(inverse, cross.mT).mT
        step = block_triangular.lower_matmul(self.inverse.to(dtype), (cross - self.tril).to(dtype))  # E
        half = self.precision.to(dtype) @ step
        back = half.mT + block_triangular.symmetric_product(step.mT.expand(half.shape), half.mT)
        self.precision.add_(half).add_(back)
        self.shift += (step.mT.double() @ self.shift.unsqueeze(-1)).squeeze(-1)
        self.z.copy_(z)
        self.tril.copy_(tril)
        self.inverse.copy_(inverse)
        if self.noise is not None:
            ratio = noise_ratio(self.noise, model)
            self.precision *= ratio.unsqueeze(-1)
            self.shift *= ratio
            self.noise.copy_(noise_of(model))  # pyright: ignore[reportArgumentType]

    def bound(
        self, model: Model, z: Tensor, batch: Data, *, length: float, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        """The bound of a mini-batch with the sites held fixed; then a natural-gradient step of the sites.

        Both come from one pass. With S = (I + P)^-1, q = S l, A = L^-1 k(Z, x), D = (I - S) A and the derivatives a,
        -b/2 of the expected log-likelihood in the means and variances of f(x), the derivatives of the bound are

            in k(Z, x):  L^-T (q a' + D diag(b)),           in k(x, x):  -b / 2,          in m(x):  a,
            in k(Z, Z):  -1/2 L^-T ((I - S) (I + A diag(b) A') (I - S) + c q' + q c') L^-1,
            where c = D a - (I - S) q + q / 2.

        Args:
            model: Mean, kernel and any likelihood.
            z: Inducing points (m, d).
            batch: A mini-batch.
            length: Of the step, in (0, 1].
            dtype: Type of the products; see `marginals_of_grams`.

        Returns:
            The bound, differentiable in the model and in z.
        """
        x = inputs(batch)
        matrices = grams(model.kernel, z, x, dtype=dtype)
        base = mean_rows(model.mean, x, model.num_outputs)
        with torch.no_grad():
            factor = inducing_factor(matrices[0], dtype)
            self.move(model, z, factor.tril, jitter=factor.jitter, dtype=dtype)
            q = self._at_batch(matrices[1], matrices[2])
        expected, slopes = _expected(model, base + q.shift, q.variance, batch)
        with torch.no_grad():
            target, slopes_of_grams = q.step(*slopes, like=matrices)
            self.shift.lerp_(target.shift.double(), length)
            self.precision.lerp_(target.precision.double(), length)
            value = expected.detach() - q.divergence
        slopes = (*slopes_of_grams, slopes[0])
        return _KnownGradient.apply(value, slopes, *matrices, base) + (expected - expected.detach())

    def _at_batch(self, cross: Tensor, before: Tensor) -> "_BatchMarginals":
        """The present q; sites that rounding made improper are dropped, and the next steps accumulate them anew."""
        try:
            return _BatchMarginals.of(self.sites, self.inverse, cross, before)
        except LinAlgError:
            note("sites given up for rounding", 1)
            self.shift.zero_()
            self.precision.zero_()
            return _BatchMarginals.of(self.sites, self.inverse, cross, before)


@dataclass(frozen=True, eq=False)
class _BatchMarginals:
    """q(v) and its marginals at a batch; shapes as in `InducingSites.bound`, in the type of the batch.

    Args:
        inverse: L^-1, (m, m) or (k, m, m).
        mean: q, (k, m).
        removed: I - S, (k, m, m).
        projection: A, (m, n) or (k, m, n).
        left: D = (I - S) A, (k, m, n).
        shift: A' q, (k, n).
        variance: k(x, x) - A' (I - S) A, (k, n).
        divergence: KL[q(v) || N(0, I)].
    """

    inverse: Tensor
    mean: Tensor
    removed: Tensor
    projection: Tensor
    left: Tensor
    shift: Tensor
    variance: Tensor
    divergence: Tensor

    @classmethod
    def of(cls, sites: Sites, inverse: Tensor, cross: Tensor, before: Tensor) -> "_BatchMarginals":
        precision = sites.precision.clone()
        precision.diagonal(dim1=-2, dim2=-1).add_(1)
        mean, covariance, divergence = dense_moments(precision, sites.shift, dtype=cross.dtype)
        removed = covariance.neg_()
        removed.diagonal(dim1=-2, dim2=-1).add_(1)
        inverse, mean, before = (part.to(cross.dtype) for part in (inverse, mean, before))
        projection = block_triangular.lower_matmul(inverse, cross)
        left = removed @ projection
        variance = floored(before - (projection * left).sum(-2), before)
        return cls(inverse, mean, removed, projection, left, projected(projection, mean), variance, divergence)

    def step(self, slope: Tensor, half: Tensor, *, like: tuple[Tensor, ...]) -> tuple[Sites, list[Tensor]]:
        """The target of a full natural-gradient step, and the gradient in k(Z, Z), k(Z, x) and k(x, x).

        Both come from the derivatives `slope` and `half` in the means and variances (k, n), weights included.
        """
        slope, beta = slope.to(self.mean), -2 * half.to(self.mean)
        weighted = weighted_square(self.projection, beta)
        proper = beta.clamp(min=0)  # data points that would take from the precision of v have no site of their own
        precision = weighted if torch.equal(proper, beta) else weighted_square(self.projection, proper)
        pull = (self.projection @ (slope + proper * self.shift).unsqueeze(-1)).squeeze(-1)
        mean = self.mean.unsqueeze(-1)
        c = self.left @ slope.unsqueeze(-1) - self.removed @ mean + mean / 2
        product = block_triangular.lower_product(self.removed @ weighted + self.removed, self.removed)
        product += (c @ mean.mT + mean @ c.mT).tril_()
        square = slope_of_square(self.inverse, _summed(product, like[0]))
        cross = _summed(torch.addcmul(self.left * beta.unsqueeze(-2), mean, slope.unsqueeze(-2)), like[1])
        cross = block_triangular.upper_matmul(self.inverse.mT, cross)
        return Sites(pull, precision), [square, cross, _summed(half, like[2])]


class _KnownGradient(torch.autograd.Function):
    """A scalar whose derivatives in some tensors are known."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, slopes: tuple[Tensor, ...], *tensors: Tensor) -> Tensor:
        """The value itself."""
        ctx.slopes = [slope.to(tensor.dtype) for slope, tensor in zip(slopes, tensors, strict=True)]
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The slopes times the incoming gradient."""
        return None, None, *(slope * grads[0].to(slope.dtype) for slope in ctx.slopes)


def _expected(model: Model, mean: Tensor, variance: Tensor, batch: Data) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The batch's expected log-likelihood, differentiable in the likelihood, and its slopes in mean and variance."""
    with torch.enable_grad():
        mean, variance = mean.detach().requires_grad_(), variance.to(mean).expand(mean.shape).clone().requires_grad_()
        expected = batch.total(model.expected_log_prob(mean.mT, variance.mT, batch.y))
        slopes = torch.autograd.grad(expected, (mean, variance), retain_graph=True)
    return expected, slopes  # type: ignore[return-value]


def _summed(value: Tensor, like: Tensor) -> Tensor:
    """Summed over the outputs where they share the tensor that this is the gradient in."""
    return value.sum(0) if value.dim() > like.dim() else value
