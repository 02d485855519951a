"""Discarded data of a stream: what they still contribute while hyperparameters go on learning.

Their sites make one on v = L^-1 u, u = f(Z) - m(Z), with logarithm g(v) = l' v - v' P v / 2. Up to a constant, their
expected log-likelihood is approximated by

    E_q[g(v)] - 1/2 sum_j c_j b_j (k(x_j, x_j) - |A_j|^2) - sum_o (misfit_o s_then^2 / s^2 + count_o log(s^2) / 2).

The first term is the site on the values at Z. The second is the variance that these leave unexplained, estimated by
the data points j in memory, each of which stands for c_j discarded ones. The third is there for Gaussian noise s^2
alone: `misfit` is half the sum of E (y_i - f_i)^2 / s^2 over the discarded data, at the time they were discarded. Only
afterwards are the sites rescaled to the noise that was learned.

References:
    Bui, Nguyen and Turner (2017), "Streaming Sparse Gaussian Process Approximations", section 3, for the first term.
    Titsias (2009), "Variational Learning of Inducing Variables in Sparse Gaussian Processes", for the second.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayeskit.core.operators import Factor, factorize
from bayeskit.core.types import Data
from bayeskit.gp.kernels.evaluate import gram, mean_rows
from bayeskit.gp.model.hyperparameters import Model
from bayeskit.gp.variational.per_datum_sites import noise_of, noise_ratio
from bayeskit.gp.variational.projected_data import ProjectedData
from bayeskit.gp.variational.site_transfer import Transfer, transferred
from bayeskit.gp.variational.whitened_gaussian import Sites, WhitenedGaussian


@dataclass(frozen=True, eq=False)
class PastData:
    """Summary of discarded data.

    Args:
        sites: Their sites on v = L^-1 u.
        count: Number of observations of each output, as sums of case weights, (t,); counted for Gaussian noise alone.
        misfit: Half the sum of E (y_i - f_i)^2 / s^2 over them, (t,); likewise.
    """

    sites: Sites
    count: Tensor
    misfit: Tensor

    @classmethod
    def none(cls, num_outputs: int, z: Tensor) -> "PastData":
        """No data."""
        return cls(Sites.none(num_outputs, z), z.new_zeros(1), z.new_zeros(1))

    @torch.no_grad()
    def joined(self, model: Model, at: tuple[Tensor, Tensor], total: Sites, rows: Data, sites: Sites) -> "PastData":
        """These and more discarded data.

        Args:
            model: Mean, kernel and likelihood.
            at: Z and L.
            total: The sites of q.
            rows: The data to add.
            sites: Theirs, on v.
        """
        noise = model.likelihood.noise_variance
        if noise is None or not len(rows):
            return replace(self, sites=self.sites + sites)
        z, tril = at
        q = WhitenedGaussian.from_sites(total)
        mean, variance = (t.mT for t in ProjectedData.build(model, tril, z, rows).marginals(q))  # (n, k)
        if model.mixing is not None:
            mean, variance = mean @ model.mixing.mT, variance @ model.mixing.square().mT
        weights = (~rows.y.isnan()).to(mean) if rows.weights is None else (~rows.y.isnan()) * rows.weights.unsqueeze(-1)
        squares = ((rows.y - mean).square() + variance).nan_to_num(0.0)
        misfit = 0.5 * (weights * squares).sum(0) / noise
        return PastData(self.sites + sites, self.count + weights.sum(0), self.misfit + misfit)


@dataclass(frozen=True, eq=False)
class PastDataTerm:
    """The term of discarded data in the bound, as a function of hyperparameters and Z.

    Args:
        past: The discarded data.
        z: Z that their site is on, (m_then, d).
        tril: L there, (m_then, m_then) or (k, m_then, m_then).
        mean: m(Z) there, (k, m_then).
        noise: Variance of the Gaussian noise there, or None.
        counts: c, how many discarded data points each of those in memory stands for, (n,).
    """

    past: PastData
    z: Tensor
    tril: Tensor
    mean: Tensor
    noise: Tensor | None
    counts: Tensor

    @classmethod
    @torch.no_grad()
    def at(cls, model: Model, at: tuple[Tensor, Tensor], past: PastData, counts: Tensor) -> "PastDataTerm":
        """From the model's present hyperparameters, Z and L."""
        z, tril = at
        return cls(past, z, tril, mean_rows(model.mean, z, model.num_outputs).clone(), noise_of(model), counts)

    def sites_at(self, model: Model, tril: Tensor, z: Tensor) -> tuple[Sites, Tensor]:
        """The site as one on v = L^-1 (f(Z) - m(Z)), and the logarithm of its height; differentiable in model and Z.

        With w = L_then^-1 (f(Z_then) - m_then(Z_then)), w | v ~ N(G v + d, R), it is E[log t(w) | v]:

            l <- G' (l - P d),        P <- G' P G,        height l' d - d' P d / 2 - tr(P R) / 2,
            G = L_then^-1 k(Z_then, Z) L^-T,        R = L_then^-1 k(Z_then, Z_then) L_then^-T - G G',

        and d = L_then^-1 (m - m_then)(Z_then); at the same Z, G = L_then^-1 L and R = 0.
        """
        sites, same = self.past.sites, z is self.z or torch.equal(z, self.z)
        cross = tril if same else _half_solve(tril, gram(model.kernel, z, self.z)).mT
        forward = _half_solve(self.tril, cross)  # G
        rise = (mean_rows(model.mean, self.z, model.num_outputs) - self.mean).unsqueeze(-1)
        offset = _half_solve(self.tril.expand(len(rise), -1, -1), rise)  # d
        product = sites.precision @ offset
        shift = sites.shift.unsqueeze(-1) - product
        height = (offset * (sites.shift.unsqueeze(-1) - 0.5 * product)).sum()
        precision = forward.mT @ sites.precision @ forward
        if not same:
            half = _half_solve(self.tril, gram(model.kernel, self.z, self.z))
            residual = _half_solve(self.tril, half.mT) - forward @ forward.mT  # R
            height = height - 0.5 * (sites.precision * residual).sum()
        return Sites((forward.mT @ shift).squeeze(-1), precision), height

    @torch.no_grad()
    def past_at(self, model: Model, at: tuple[Tensor, Tensor], how: Transfer) -> PastData:
        """The discarded data at the model's present hyperparameters and noise, their site transferred to Z and L."""
        tril = factorize(gram(model.kernel, self.z, self.z), name="K_zz").tril
        sites, ratio = self.sites_at(model, tril, self.z)[0], noise_ratio(self.noise, model)
        sites = Sites(ratio * sites.shift, ratio.unsqueeze(-1) * sites.precision)
        sites = transferred(sites, model.kernel, (self.z, tril), at, how)
        return PastData(sites, self.past.count, self.past.misfit * self._ratio(model))

    def value(
        self, model: Model, present: tuple[Sites, Tensor], mean: Tensor, factor: Factor, unexplained: Tensor
    ) -> Tensor:
        """The equation at the top of the file, differentiable in the model.

        Args:
            model: Mean, kernel and likelihood.
            present: What `sites_at` gives for the model.
            mean: E_q v, (k, m).
            factor: Of the precision of q(v).
            unexplained: b_j (k(x_j, x_j) - |A_j|^2) of the data in memory, (k, n).
        """
        sites, height = present
        spread = factor.solve(sites.precision).diagonal(dim1=-2, dim2=-1).sum()
        square = (mean.unsqueeze(-2) @ sites.precision @ mean.unsqueeze(-1)).sum()
        total = height + (sites.shift * mean).sum() - 0.5 * (square + spread + (self.counts * unexplained).sum())
        noise = model.likelihood.noise_variance
        if noise is None:
            return total
        logs = 0.5 * self.past.count * noise.log()
        return total - (self._ratio(model) * self.past.misfit).sum() - logs.sum()

    def _ratio(self, model: Model) -> Tensor:
        """Precision of the noise of each output now over that then, (1,) or (t,)."""
        noise = model.likelihood.noise_variance
        if self.noise is None or noise is None:
            return torch.ones_like(self.past.misfit[:1])
        return self.noise / noise


def _half_solve(tril: Tensor, right: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(tril, right, upper=False)
