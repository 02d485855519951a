"""The evidence lower bound with a Gaussian site of every row held fixed, while hyperparameters and Z move.

q is the prior times the rows' sites exp(a_i f_i - b_i f_i^2 / 2), and follows the prior as hyperparameters change: for
Gaussian noise the bound is then the collapsed one at any of them. `Earlier` holds, beside the rows' sites, what data
that are gone said of f at other inducing points: one site exp(l' u - u' P u / 2) on u = f(Z) - m(Z).

References:
    Adam, Chang, Khan and Solin (2021), "Dual Parameterization of Sparse Variational Gaussian Processes", section 3.3.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayeskit.core.likelihood import Gaussian
from bayeskit.core.operators import factorize
from bayeskit.core.optimize import minimize_lbfgs
from bayeskit.core.types import Data
from bayeskit.gp.conditioned import floored
from bayeskit.gp.gram import gram, gram_diagonal, mean_rows
from bayeskit.gp.hyperparameters import Model
from bayeskit.gp.marginals import projected
from bayeskit.gp.sites import Sites
from bayeskit.gp.training_set import inputs
from bayeskit.gp.variational import settle

ROUND = 8
"""L-BFGS iterations with the rows' sites held, before q is settled again."""

History = dict[str, list[float]]


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
        mean, root = sites.moments()
        projection = torch.linalg.solve_triangular(tril, gram(model.kernel, z, inputs(rows)), upper=False)
        before = gram_diagonal(model.kernel, inputs(rows))
        variance = floored(before - projection.square().sum(-2), before) + (root.mT @ projection).square().sum(-2)
        location = mean_rows(model.mean, inputs(rows), model.num_outputs) + projected(projection, mean)
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


@dataclass(frozen=True, eq=False)
class Earlier:
    """What data that are gone said of f at inducing points that stay, as a site on u = f(Z) - m(Z).

    Args:
        tril: L that the sites are given at, (m, m) or (k, m, m).
        sites: Sites on v = L^-1 u.
        mean: m(Z) then, (k, m).
        noise: As for `RowSites`.
    """

    tril: Tensor
    sites: Sites
    mean: Tensor
    noise: Tensor | None

    @classmethod
    @torch.no_grad()
    def at(cls, model: Model, tril: Tensor, z: Tensor, sites: Sites) -> "Earlier":
        """These sites, held from where the model stands."""
        return cls(tril, sites, mean_rows(model.mean, z, model.num_outputs).clone(), noise_of(model))

    def now(self, model: Model, tril: Tensor, z: Tensor) -> Sites:
        """The same site where L is `tril`, differentiable in the model.

        With F = L_then^-1 L, and m(Z) higher by d than then, l <- F' (l - P L_then^-1 d) and P <- F' P F.
        """
        forward = torch.linalg.solve_triangular(self.tril, tril, upper=False)
        risen = (mean_rows(model.mean, z, model.num_outputs) - self.mean).unsqueeze(-1)
        back = torch.linalg.solve_triangular(self.tril.expand(len(risen), -1, -1), risen, upper=False)
        shift = self.sites.shift.unsqueeze(-1) - self.sites.precision @ back
        ratio = noise_ratio(self.noise, model)
        precision = ratio.unsqueeze(-1) * (forward.mT @ self.sites.precision @ forward)
        return Sites(ratio * (forward.mT @ shift).squeeze(-1), precision)


def rows_bound(
    model: Model, z: Tensor, rows: Data, sites: RowSites, earlier: Earlier | None = None
) -> tuple[Tensor, Sites]:
    """The bound at q proportional to the prior times all sites, and the rows' own on v = L^-1 u.

    Args:
        model: Mean, kernel and any likelihood.
        z: Inducing points (m, d).
        rows: All rows, weighted as they count in the bound.
        sites: Theirs, which stay.
        earlier: Sites of data that are gone; Z stays then.

    Returns:
        The bound, differentiable in the model and in z, and the sites.
    """
    x = inputs(rows)
    tril = factorize(gram(model.kernel, z, z), name="K_zz").tril
    projection = torch.linalg.solve_triangular(tril, gram(model.kernel, z, x), upper=False)  # (m, n) or (k, m, n)
    before, base = gram_diagonal(model.kernel, x), mean_rows(model.mean, x, model.num_outputs)
    held = sites.on(model, projection, x)
    every = held if earlier is None else held + earlier.now(model, tril, z)
    eye = torch.eye(len(z), dtype=z.dtype, device=z.device)
    factor = factorize(eye + every.precision, name="precision of q(v)")
    mean = factor.solve(every.shift.unsqueeze(-1)).squeeze(-1)
    variance = floored(before - projection.square().sum(-2), before) + factor.half_solve(projection).square().sum(-2)
    location = base + projected(projection, mean)
    expected = rows.total(model.expected_log_prob(location.mT, variance.mT, rows.y))
    spread = factor.half_solve(eye.expand_as(every.precision)).square().sum()
    return expected - 0.5 * (spread + mean.square().sum() - mean.numel() + factor.logdet().sum()), held


def learn_by_rows(
    model: Model,
    z: Callable[[], Tensor],
    rows: Data,
    learnt: Sequence[Tensor],
    *,
    max_iter: int,
    description: str,
    start: Sites | None = None,
    earlier: Earlier | None = None,
    counted: Tensor | None = None,
) -> tuple[Sites, History]:
    """Settle q, then learn with the rows' sites held, in turn; one round is all for Gaussian noise.

    Args:
        model: Mean, kernel and any likelihood, changed in place.
        z: The inducing points as they stand; with `earlier` they stay.
        rows: The rows.
        learnt: What to learn.
        max_iter: L-BFGS iterations at most.
        description: For the progress bar.
        start: The rows' sites to start from; None for none.
        earlier: Sites of data that are gone.
        counted: Weights (n,) that the rows have in the bound that is climbed, in place of their own.

    Returns:
        The rows' sites where the search ends, and its curve.
    """
    closed = isinstance(model.likelihood, Gaussian)
    sites = Sites.none(model.num_outputs, z()) if start is None else start
    objective = rows if counted is None else replace(rows, weights=counted)
    history: History = {"loss": []}
    last = -math.inf
    for _ in range(1 if closed else math.ceil(max_iter / ROUND)):
        with torch.no_grad():
            at = z()
            tril = factorize(gram(model.kernel, at, at), name="K_zz").tril
            before = None if earlier is None else earlier.now(model, tril, at)
            sites, value = settle(model, tril, at, rows, sites, before=before, max_steps=1 if closed else 100)
            held = RowSites.at(model, tril, at, rows, sites if before is None else before + sites)
            if objective is not rows:
                value = float(rows_bound(model, at, objective, held, earlier)[0])
            value += float(model.log_prior())
        if value - last <= 1e-4 * (1 + abs(value)):
            break
        last = value
        part = minimize_lbfgs(
            lambda held=held: -(rows_bound(model, z(), objective, held, earlier)[0] + model.log_prior()),
            learnt,
            max_iter=max_iter if closed else min(ROUND, max_iter),
            description=description,
        )
        history["loss"] += part["loss"]
        with torch.no_grad():
            sites = rows_bound(model, z(), objective, held, earlier)[1]
    return sites, history


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
