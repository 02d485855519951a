"""The evidence lower bound with a Gaussian site of every row held fixed, while hyperparameters and Z move.

q is the prior times the rows' sites exp(a_i f_i - b_i f_i^2 / 2), and follows the prior as hyperparameters change: for
Gaussian noise the bound is then the collapsed one at any of them. Rows that are gone may count beside them, by the site
that they left (`earlier.py`).

References:
    Adam, Chang, Khan and Solin (2021), "Dual Parameterization of Sparse Variational Gaussian Processes", section 3.3.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bayeskit.core.likelihood import Gaussian
from bayeskit.core.operators import factorize
from bayeskit.core.optimize import minimize_lbfgs
from bayeskit.core.types import Data, History
from bayeskit.gp.kernels.evaluate import gram, gram_diagonal, mean_rows
from bayeskit.gp.model.hyperparameters import Model
from bayeskit.gp.model.training_set import inputs
from bayeskit.gp.process.conditioned_kernel import floored
from bayeskit.gp.variational.marginal_moments import projected
from bayeskit.gp.variational.past_data import Earlier
from bayeskit.gp.variational.per_datum_sites import RowSites
from bayeskit.gp.variational.sites import Sites
from bayeskit.gp.variational.whitened_posterior import settle

ROUND = 8
"""L-BFGS iterations with the rows' sites held, before q is settled again."""

SETTLED = 1e-6
"""Natural-gradient steps end where one gains less than this share of the bound. With softmax, all that they do beyond
that is to pull the sum of the latent functions, which no label sees, to its prior, a little each time."""


def rows_bound(
    model: Model, z: Tensor, rows: Data, sites: RowSites, earlier: Earlier | None = None
) -> tuple[Tensor, Sites]:
    """The bound at q proportional to the prior times all sites, and the rows' own on v = L^-1 u.

    Args:
        model: Mean, kernel and any likelihood.
        z: Inducing points (m, d).
        rows: All rows, or those that are still held.
        sites: Theirs, which stay.
        earlier: The rows that are gone.

    Returns:
        The bound, differentiable in the model and in z, and the sites.
    """
    x = inputs(rows)
    tril = factorize(gram(model.kernel, z, z), name="K_zz").tril
    projection = torch.linalg.solve_triangular(tril, gram(model.kernel, z, x), upper=False)  # (m, n) or (k, m, n)
    before, base = gram_diagonal(model.kernel, x), mean_rows(model.mean, x, model.num_outputs)
    held = sites.on(model, projection, x)
    gone = None if earlier is None else earlier.now(model, tril, z)
    every = held if gone is None else held + gone[0]
    eye = torch.eye(len(z), dtype=z.dtype, device=z.device)
    factor = factorize(eye + every.precision, name="precision of q(v)")
    mean = factor.solve(every.shift.unsqueeze(-1)).squeeze(-1)
    open_ = floored(before - projection.square().sum(-2), before)
    variance = open_ + factor.half_solve(projection).square().sum(-2)
    location = base + projected(projection, mean)
    expected = rows.total(model.expected_log_prob(location.mT, variance.mT, rows.y))
    if earlier is not None and gone is not None:
        expected = expected + earlier.term(model, gone, mean, factor, sites.precision * open_)
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
) -> tuple[Sites, History]:
    """Settle q, then learn with the rows' sites held, in turn; one round is all for Gaussian noise.

    Args:
        model: Mean, kernel and any likelihood, changed in place.
        z: The inducing points as they stand.
        rows: The rows.
        learnt: What to learn.
        max_iter: L-BFGS iterations at most.
        description: For the progress bar.
        start: The rows' sites to start from; None for none.
        earlier: The rows that are gone.

    Returns:
        The rows' sites where the search ends, and its curve.
    """
    closed = isinstance(model.likelihood, Gaussian)
    sites = Sites.none(model.num_outputs, z()) if start is None else start
    history: History = {"loss": []}
    last = -math.inf
    for _ in range(1 if closed else math.ceil(max_iter / ROUND)):
        with torch.no_grad():
            at = z()
            tril = factorize(gram(model.kernel, at, at), name="K_zz").tril
            before = None if earlier is None else earlier.now(model, tril, at)[0]
            steps = 1 if closed else 100
            sites, value = settle(model, tril, at, rows, sites, before=before, max_steps=steps, tolerance=SETTLED)
            held = RowSites.at(model, tril, at, rows, sites if before is None else before + sites)
            if earlier is not None and before is not None:
                value = float(rows_bound(model, at, rows, held, earlier)[0])
            value += float(model.log_prior())
        if value - last <= 1e-4 * (1 + abs(value)):
            break
        last = value
        part = minimize_lbfgs(
            lambda held=held, earlier=earlier: -(rows_bound(model, z(), rows, held, earlier)[0] + model.log_prior()),
            learnt,
            max_iter=max_iter if closed else min(ROUND, max_iter),
            description=description,
        )
        history["loss"] += part["loss"]
        with torch.no_grad():
            sites = rows_bound(model, z(), rows, held, earlier)[1]
    return sites, history
