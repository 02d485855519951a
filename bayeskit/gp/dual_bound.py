"""The evidence lower bound with the sites held fixed, while hyperparameters and inducing points move.

A Gaussian q is the prior times sites. If the sites stay where hyperparameters change, q follows the prior, and the
bound stays close to its best value over q: closer than with the moments of q fixed. Two kinds of sites are held:

- `rows_bound`: one (a_i, b_i) a row. For Gaussian noise the bound is then the collapsed one at any hyperparameters.
- `Inducing`: one site on u = f(Z) - m(Z), exp(u' l - u' P u / 2), for mini-batches. It is stored for v = L^-1 u, and
  goes along to other hyperparameters by F = L_old^-1 L_new: l <- F' l and P <- F' P F. Where Z moves too, it stays a
  site on the function at the old Z, as far as the new inducing values tell it: F = L_old^-1 k(Z_old, Z_new) L_new^-T,
  which at equal hyperparameters lengthens no vector. (Held as a site on the values wherever Z went, it would say of f
  at new points what was learnt at old ones, and where points are close F grows without limit.)

References:
    Adam, Chang, Khan and Solin (2021), "Dual Parameterization of Sparse Variational Gaussian Processes", section 3.3.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bayeskit.core.likelihood import Gaussian
from bayeskit.core.operators import LinAlgError, factorize, note
from bayeskit.core.types import Data
from bayeskit.gp.conditioned import floored
from bayeskit.gp.gram import gram, gram_diagonal, mean_rows
from bayeskit.gp.hyperparameters import Model
from bayeskit.gp.marginals import projected
from bayeskit.gp.sites import Sites
from bayeskit.gp.training_set import inputs


@dataclass(frozen=True, eq=False)
class RowSites:
    """exp(a_ij f_ij - b_ij f_ij^2 / 2) on the values of the functions at each row, case weights included.

    Args:
        pull: a, (k, n).
        precision: b, (k, n).
        noise: Variance of the Gaussian noise they were formed at, or None for another likelihood; a and b are scaled
            along as the noise changes.
    """

    pull: Tensor
    precision: Tensor
    noise: Tensor | None

    @classmethod
    @torch.no_grad()
    def at(cls, model: Model, tril: Tensor, z: Tensor, rows: Data, sites: Sites) -> "RowSites":
        """The sites that the rows have where q is that of `sites`, at L and Z."""
        mean, root = sites.moments()
        projection = torch.linalg.solve_triangular(tril, gram(model.kernel, z, inputs(rows)), upper=False)
        before = gram_diagonal(model.kernel, inputs(rows))
        variance = floored(before - projection.square().sum(-2), before) + (root.mT @ projection).square().sum(-2)
        location = mean_rows(model.mean, inputs(rows), model.num_outputs) + projected(projection, mean)
        alpha, beta = (site.mT for site in model.site_gradients(location.mT, variance.mT, rows.y))
        weights = rows.scale if rows.weights is None else rows.scale * rows.weights
        return cls(weights * (alpha + beta * location), weights * beta, noise_of(model))


def rows_bound(model: Model, z: Tensor, rows: Data, sites: RowSites) -> tuple[Tensor, Sites]:
    """The bound at q proportional to the prior times the rows' sites, and those sites on v = L^-1 u.

    Args:
        model: Mean, kernel and any likelihood.
        z: Inducing points (m, d).
        rows: All rows.
        sites: Theirs, which stay.

    Returns:
        The bound, differentiable in the model and in z, and the sites.
    """
    x = inputs(rows)
    tril = factorize(gram(model.kernel, z, z), name="K_zz").tril
    projection = torch.linalg.solve_triangular(tril, gram(model.kernel, z, x), upper=False)  # (m, n) or (k, m, n)
    before, base = gram_diagonal(model.kernel, x), mean_rows(model.mean, x, model.num_outputs)
    ratio = _ratio(sites.noise, model)
    precision = sites.precision * ratio
    pull = sites.pull * ratio - precision * base
    held = Sites((projection @ pull.unsqueeze(-1)).squeeze(-1), (projection * precision.unsqueeze(-2)) @ projection.mT)
    eye = torch.eye(len(z), dtype=z.dtype, device=z.device)
    factor = factorize(eye + held.precision, name="precision of q(v)")
    mean = factor.solve(held.shift.unsqueeze(-1)).squeeze(-1)
    variance = floored(before - projection.square().sum(-2), before) + factor.half_solve(projection).square().sum(-2)
    location = base + projected(projection, mean)
    expected = rows.total(model.expected_log_prob(location.mT, variance.mT, rows.y))
    spread = factor.half_solve(eye.expand_as(held.precision)).square().sum()
    return expected - 0.5 * (spread + mean.square().sum() - mean.numel() + factor.logdet().sum()), held


class Inducing:
    """Sites on the inducing values, moved by natural-gradient steps over mini-batches while hyperparameters change.

    Args:
        z: Z at which the sites are given, (m, d).
        tril: L there.
        sites: The sites.
        noise: As for `RowSites`.
    """

    def __init__(self, z: Tensor, tril: Tensor, sites: Sites, noise: Tensor | None):
        self.z, self.tril, self.noise = z.detach().clone(), tril.clone(), noise
        self.inverse, self.shift, self.precision = _inverse(tril), sites.shift.clone(), sites.precision.clone()

    @property
    def buffers(self) -> list[Tensor]:
        """The tensors that steps change in place."""
        kept = [self.z, self.tril, self.inverse, self.shift, self.precision]
        return kept if self.noise is None else [*kept, self.noise]

    @property
    def sites(self) -> Sites:
        """The sites as they stand."""
        return Sites(self.shift, self.precision)

    @torch.no_grad()
    def take_along(self, model: Model, z: Tensor, tril: Tensor, *, dtype: torch.dtype = torch.float64) -> None:
        """Express the sites at other hyperparameters and another Z, where L is `tril`, in units of the noise.

        With E = F - I, F' P F = P + P E + (P E)' + E' P E: what single precision rounds off is in proportion to the
        move.
        """
        inverse, seen = _inverse(tril), tril
        if not torch.equal(z, self.z):
            seen = gram(model.kernel, self.z, z) @ inverse.mT
        step = self.inverse.to(dtype) @ (seen - self.tril).to(dtype)  # E
        half = self.precision.to(dtype) @ step
        ratio = _ratio(self.noise, model)
        self.precision += half + half.mT + step.mT @ half
        self.precision *= ratio.unsqueeze(-1)
        self.shift += (step.mT.double() @ self.shift.unsqueeze(-1)).squeeze(-1)
        self.shift *= ratio
        self.z.copy_(z)
        self.tril.copy_(tril)
        self.inverse.copy_(inverse)
        if self.noise is not None:
            self.noise.copy_(noise_of(model))  # pyright: ignore[reportArgumentType]

    def bound(self, model: Model, z: Tensor, batch: Data, *, length: float) -> Tensor:
        """The bound of a mini-batch with the sites held fixed; then a natural-gradient step of the sites.

        Both come from one pass. With S = (I + P)^-1, q = S l, A = L^-1 k(Z, x), D = (I - S) A and the derivatives a,
        -b/2 of the expected log-likelihood in the rows' means and variances, the derivatives of the bound are

            in k(Z, x):  L^-T (q a' + D diag(b)),           in k(x, x):  -b / 2,          in m(x):  a,
            in k(Z, Z):  -1/2 L^-T ((I - S) (I + A diag(b) A') (I - S) + c q' + q c') L^-1,
            where c = D a - (I - S) q + q / 2.

        Args:
            model: Mean, kernel and any likelihood.
            z: Inducing points (m, d).
            batch: Some rows.
            length: Of the step, in (0, 1].

        Returns:
            The bound, differentiable in the model and in z.
        """
        x = inputs(batch)
        grams = gram(model.kernel, z, z), gram(model.kernel, z, x), gram_diagonal(model.kernel, x)
        base = mean_rows(model.mean, x, model.num_outputs)
        with torch.no_grad():
            self.take_along(model, z, factorize(grams[0], name="K_zz").tril, dtype=grams[1].dtype)
            law = self._law(grams[1], grams[2])
            beta, target = law.target(model, base, batch)
        expected, slopes = _expected(model, base + law.shift, law.variance, batch)
        with torch.no_grad():
            known = target.precision if torch.allclose(beta, -2 * slopes[1], rtol=1e-5) else None
            slopes_of_grams = law.gradients(*slopes, known, like=grams)
            self.shift.lerp_(target.shift.double(), length)
            self.precision.lerp_(target.precision.double(), length)
        value = expected - law.divergence
        for tensor, slope in zip((*grams, base), (*slopes_of_grams, slopes[0]), strict=True):
            linear = (tensor * slope).sum()
            value = value + linear - linear.detach()
        return value

    def _law(self, cross: Tensor, before: Tensor) -> "_Law":
        """Q as it stands; sites that rounding has left improper are given up, and gathered anew by the next steps."""
        try:
            return _Law.of(self.sites, self.inverse, cross, before)
        except LinAlgError:
            note("sites given up for rounding", 1)
            self.shift.zero_()
            self.precision.zero_()
            return _Law.of(self.sites, self.inverse, cross, before)


@dataclass(frozen=True, eq=False)
class _Law:
    """q(v) and what it says at the rows of a batch; shapes as in `Inducing.bound`, in the type of the batch.

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
    def of(cls, sites: Sites, inverse: Tensor, cross: Tensor, before: Tensor) -> "_Law":
        eye = torch.eye(inverse.shape[-1], dtype=inverse.dtype, device=inverse.device)
        factor = factorize(eye + sites.precision, name="precision of q(v)")
        mean = factor.solve(sites.shift.unsqueeze(-1)).squeeze(-1)
        covariance = torch.cholesky_inverse(factor.tril)
        trace = covariance.diagonal(dim1=-2, dim2=-1).sum()
        divergence = 0.5 * (trace + mean.square().sum() - mean.numel() + factor.logdet().sum())
        inverse, mean, removed = (part.to(cross) for part in (inverse, mean, eye - covariance))
        projection = inverse @ cross
        left = removed @ projection
        variance = floored(before - torch.linalg.vecdot(projection, left, dim=-2), before)
        return cls(inverse, mean, removed, projection, left, projected(projection, mean), variance, divergence)

    def target(self, model: Model, base: Tensor, batch: Data) -> tuple[Tensor, Sites]:
        """Site precisions of the rows (k, n), and the sites that a full natural-gradient step leads to."""
        alpha, beta = model.site_gradients((base + self.shift).mT, self.variance.mT, batch.y)
        weights = batch.scale if batch.weights is None else batch.scale * batch.weights
        alpha, beta = (alpha.mT * weights).to(self.mean), (beta.mT * weights).to(self.mean)
        pull = (self.projection @ (alpha + beta * self.shift).unsqueeze(-1)).squeeze(-1)
        return beta, Sites(pull, self._weighted(beta))

    def gradients(
        self, slope: Tensor, half: Tensor, weighted: Tensor | None, *, like: tuple[Tensor, ...]
    ) -> list[Tensor]:
        """Derivatives of the bound in k(Z, Z), k(Z, x) and k(x, x), from those in the rows' means and variances (k, n).

        `weighted` is A diag(b) A' where it is known.
        """
        beta = -2 * half
        weighted = self._weighted(beta) if weighted is None else weighted
        mean, back = self.mean.unsqueeze(-1), self.inverse.mT
        c = self.left @ slope.unsqueeze(-1) - self.removed @ mean + mean / 2
        outer = (back @ c) @ (back @ mean).mT
        once = back @ self.removed
        square = _summed(-0.5 * ((once + once @ weighted) @ once.mT + outer + outer.mT), like[0])
        cross = back @ _summed(torch.addcmul(self.left * beta.unsqueeze(-2), mean, slope.unsqueeze(-2)), like[1])
        return [square, cross, _summed(half, like[2])]

    def _weighted(self, beta: Tensor) -> Tensor:
        """A diag(b) A', (k, m, m)."""
        return (self.projection * beta.unsqueeze(-2)) @ self.projection.mT


def _inverse(tril: Tensor) -> Tensor:
    """L^-1: with it every product is a plain one, which processors do twice as fast as a triangular solve."""
    eye = torch.eye(tril.shape[-1], dtype=tril.dtype, device=tril.device)
    return torch.linalg.solve_triangular(tril, eye.expand_as(tril), upper=False)


def noise_of(model: Model) -> Tensor | None:
    """The variance of Gaussian noise, (1,) or (k,); None for another likelihood."""
    return model.likelihood.noise.detach().clone() if isinstance(model.likelihood, Gaussian) else None


def _ratio(noise: Tensor | None, model: Model) -> Tensor:
    """Precision of the noise now over that then, (1, 1) or (k, 1): how sites of Gaussian noise change with it."""
    if noise is None:
        return torch.ones(1, 1, dtype=torch.float64)
    assert isinstance(model.likelihood, Gaussian)
    ratio = noise / model.likelihood.noise
    return (ratio if len(ratio) == model.num_outputs else ratio.mean(0, keepdim=True)).unsqueeze(-1)


def _expected(model: Model, mean: Tensor, variance: Tensor, batch: Data) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The batch's expected log-likelihood, differentiable in the likelihood, and its slopes in mean and variance."""
    with torch.enable_grad():
        mean, variance = mean.detach().requires_grad_(), variance.detach().expand(mean.shape).clone().requires_grad_()
        expected = batch.total(model.expected_log_prob(mean.mT, variance.mT, batch.y))
        slopes = torch.autograd.grad(expected, (mean, variance), retain_graph=True)
    return expected, slopes  # type: ignore[return-value]


def _summed(value: Tensor, like: Tensor) -> Tensor:
    """Summed over the outputs where they share what this is the derivative in."""
    return value.sum(0) if value.dim() > like.dim() else value
