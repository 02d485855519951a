"""What rows that are gone said, and how it counts while hyperparameters go on learning.

Their sites make one on v = L^-1 u, u = f(Z) - m(Z), with logarithm g(v) = l' v - v' P v / 2. Up to a constant, their
expected log-likelihood is taken for

    E_q[g(v)] - 1/2 sum_j c_j b_j (k(x_j, x_j) - |A_j|^2) - sum_o (misfit_o s_then^2 / s^2 + count_o log(s^2) / 2).

The first term is what the site says of the values at Z. The second is the variance that these leave open, read off the
rows j in memory, each of which stands for c_j that are gone. The third is there for Gaussian noise s^2 alone: `misfit`
is half the sum of E (y_i - f_i)^2 / s^2 over the rows, each as it was let go. Only afterwards are the sites brought to
the noise that was learnt.

References:
    Bui, Nguyen and Turner (2017), "Streaming Sparse Gaussian Process Approximations", section 3, for the first term.
    Titsias (2009), "Variational Learning of Inducing Variables in Sparse Gaussian Processes", for the second.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayeskit.core.likelihood import Gaussian
from bayeskit.core.operators import Factor, factorize
from bayeskit.core.types import Data
from bayeskit.gp.kernels.evaluate import gram, mean_rows
from bayeskit.gp.model.hyperparameters import Model
from bayeskit.gp.variational.per_datum_sites import noise_of, noise_ratio
from bayeskit.gp.variational.projected_data import ProjectedData
from bayeskit.gp.variational.site_transfer import Transfer, transferred
from bayeskit.gp.variational.whitened_gaussian import Sites, WhitenedGaussian


@dataclass(frozen=True, eq=False)
class Rest:
    """Rows that are gone.

    Args:
        sites: Their sites on v = L^-1 u.
        count: How many there were of each output, as sums of case weights, (t,); counted for Gaussian noise alone.
        misfit: Half the sum of E (y_i - f_i)^2 / s^2 over them, (t,); likewise.
    """

    sites: Sites
    count: Tensor
    misfit: Tensor

    @classmethod
    def none(cls, num_outputs: int, z: Tensor) -> "Rest":
        """No rows."""
        return cls(Sites.none(num_outputs, z), z.new_zeros(1), z.new_zeros(1))

    @torch.no_grad()
    def joined(self, model: Model, at: tuple[Tensor, Tensor], total: Sites, rows: Data, sites: Sites) -> "Rest":
        """These and some rows more.

        Args:
            model: Mean, kernel and likelihood.
            at: Z and L.
            total: q.
            rows: The rows.
            sites: Theirs, on v.
        """
        if not isinstance(model.likelihood, Gaussian) or not len(rows):
            return replace(self, sites=self.sites + sites)
        z, tril = at
        q = WhitenedGaussian.from_sites(total)
        mean, variance = (t.mT for t in ProjectedData.build(model, tril, z, rows).marginals(q))  # (n, k)
        if model.mixing is not None:
            mean, variance = mean @ model.mixing.mT, variance @ model.mixing.square().mT
        weights = (~rows.y.isnan()).to(mean) if rows.weights is None else (~rows.y.isnan()) * rows.weights.unsqueeze(-1)
        squares = ((rows.y - mean).square() + variance).nan_to_num(0.0)
        misfit = 0.5 * (weights * squares).sum(0) / model.likelihood.noise
        return Rest(self.sites + sites, self.count + weights.sum(0), self.misfit + misfit)


@dataclass(frozen=True, eq=False)
class Earlier:
    """A `Rest`, held from where the model stood.

    Args:
        rest: The rows.
        z: Z that their site is on, (m_then, d).
        tril: L there, (m_then, m_then) or (k, m_then, m_then).
        mean: m(Z) there, (k, m_then).
        noise: Variance of the Gaussian noise there, or None.
        spare: c, how many rows that are gone each of those that are held stands for, (n,).
    """

    rest: Rest
    z: Tensor
    tril: Tensor
    mean: Tensor
    noise: Tensor | None
    spare: Tensor

    @classmethod
    @torch.no_grad()
    def at(cls, model: Model, at: tuple[Tensor, Tensor], rest: Rest, spare: Tensor) -> "Earlier":
        """These rows, held from where the model stands, at Z and L."""
        z, tril = at
        return cls(rest, z, tril, mean_rows(model.mean, z, model.num_outputs).clone(), noise_of(model), spare)

    def now(self, model: Model, tril: Tensor, z: Tensor) -> tuple[Sites, Tensor]:
        """The site as one on v = L^-1 (f(Z) - m(Z)), and the logarithm of its height; differentiable in model and Z.

        With w = L_then^-1 (f(Z_then) - m_then(Z_then)), w | v ~ N(G v + d, R), it is E[log t(w) | v]:

            l <- G' (l - P d),        P <- G' P G,        height l' d - d' P d / 2 - tr(P R) / 2,
            G = L_then^-1 k(Z_then, Z) L^-T,        R = L_then^-1 k(Z_then, Z_then) L_then^-T - G G',

        and d = L_then^-1 (m - m_then)(Z_then); at the same Z, G = L_then^-1 L and R = 0.
        """
        sites, still = self.rest.sites, z is self.z or torch.equal(z, self.z)
        seen = tril if still else _half_solve(tril, gram(model.kernel, z, self.z)).mT
        forward = _half_solve(self.tril, seen)  # G
        risen = (mean_rows(model.mean, self.z, model.num_outputs) - self.mean).unsqueeze(-1)
        back = _half_solve(self.tril.expand(len(risen), -1, -1), risen)  # d
        pressed = sites.precision @ back
        shift = sites.shift.unsqueeze(-1) - pressed
        height = (back * (sites.shift.unsqueeze(-1) - 0.5 * pressed)).sum()
        precision = forward.mT @ sites.precision @ forward
        if not still:
            half = _half_solve(self.tril, gram(model.kernel, self.z, self.z))
            left = _half_solve(self.tril, half.mT) - forward @ forward.mT  # R
            height = height - 0.5 * (sites.precision * left).sum()
        return Sites((forward.mT @ shift).squeeze(-1), precision), height

    @torch.no_grad()
    def rest_now(self, model: Model, at: tuple[Tensor, Tensor], how: Transfer) -> Rest:
        """The rows where the model stands now, at its noise, their site transferred to Z and L."""
        tril = factorize(gram(model.kernel, self.z, self.z), name="K_zz").tril
        sites, ratio = self.now(model, tril, self.z)[0], noise_ratio(self.noise, model)
        sites = Sites(ratio * sites.shift, ratio.unsqueeze(-1) * sites.precision)
        sites = transferred(sites, model.kernel, (self.z, tril), at, how)
        return Rest(sites, self.rest.count, self.rest.misfit * self._ratio(model))

    def term(self, model: Model, now: tuple[Sites, Tensor], mean: Tensor, factor: Factor, left_open: Tensor) -> Tensor:
        """The equation at the top of the file, differentiable in the model.

        Args:
            model: Mean, kernel and likelihood.
            now: The site of these rows on v, and its height.
            mean: E_q v, (k, m).
            factor: Of the precision of q(v).
            left_open: b_j (k(x_j, x_j) - |A_j|^2) of the rows that are held, (k, n).
        """
        sites, height = now
        spread = factor.solve(sites.precision).diagonal(dim1=-2, dim2=-1).sum()
        pressed = (mean.unsqueeze(-2) @ sites.precision @ mean.unsqueeze(-1)).sum()
        total = height + (sites.shift * mean).sum() - 0.5 * (pressed + spread + (self.spare * left_open).sum())
        if not isinstance(model.likelihood, Gaussian):
            return total
        logs = 0.5 * self.rest.count * model.likelihood.noise.log()
        return total - (self._ratio(model) * self.rest.misfit).sum() - logs.sum()

    def _ratio(self, model: Model) -> Tensor:
        """Precision of the noise of each output now over that then, (1,) or (t,)."""
        if self.noise is None or not isinstance(model.likelihood, Gaussian):
            return torch.ones_like(self.rest.misfit[:1])
        return self.noise / model.likelihood.noise


def _half_solve(tril: Tensor, right: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(tril, right, upper=False)
