"""The evidence lower bound with a Gaussian site of every data point held fixed, while hyperparameters and Z move.

q is the prior times the sites exp(a_i f_i - b_i f_i^2 / 2), and follows the prior as hyperparameters change: for
Gaussian noise the bound is then the collapsed one at any of them. Discarded data may count too, by the site that they
left (`past_data.py`).

References:
    Adam, Chang, Khan and Solin (2021), "Dual Parameterization of Sparse Variational Gaussian Processes", section 3.3.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bayeskit.core.operators import factorize
from bayeskit.core.optimize import minimize_lbfgs
from bayeskit.core.types import Data, History
from bayeskit.gp.kernels.evaluate import gram
from bayeskit.gp.model.hyperparameters import Model
from bayeskit.gp.model.training_set import inputs
from bayeskit.gp.variational.marginal_moments import projected
from bayeskit.gp.variational.past_data import PastDataTerm
from bayeskit.gp.variational.per_datum_sites import RowSites
from bayeskit.gp.variational.projected_data import ProjectedData
from bayeskit.gp.variational.whitened_gaussian import Sites
from bayeskit.gp.variational.whitened_posterior import optimal_sites

ITERATIONS_PER_ROUND = 8
"""L-BFGS iterations with the sites held, before q is optimized again."""

TOLERANCE = 1e-6
"""Natural-gradient steps end where one gains less than this share of the bound. With softmax, all that they do beyond
that is to pull the sum of the latent functions, which no label sees, to its prior, a little each time."""


def rows_bound(
    model: Model, z: Tensor, rows: Data, sites: RowSites, past: PastDataTerm | None = None
) -> tuple[Tensor, Sites]:
    """The bound at q proportional to the prior times all sites, and those of `rows` as sites on v = L^-1 u.

    Args:
        model: Mean, kernel and any likelihood.
        z: Inducing points (m, d).
        rows: All data, or those that are kept.
        sites: Theirs, which stay.
        past: Discarded data.

    Returns:
        The bound, differentiable in the model and in z, and the sites.
    """
    tril = factorize(gram(model.kernel, z, z), name="K_zz").tril
    block = ProjectedData.build(model, tril, z, rows)
    own = sites.on(model, block.projection, inputs(rows))
    present = None if past is None else past.sites_at(model, tril, z)
    every = own if present is None else own + present[0]
    eye = torch.eye(len(z), dtype=z.dtype, device=z.device)
    factor = factorize(eye + every.precision, name="precision of q(v)")
    mean = factor.solve(every.shift.unsqueeze(-1)).squeeze(-1)
    variance = block.variance + factor.half_solve(block.projection).square().sum(-2)
    location = block.mean + projected(block.projection, mean)
    expected = rows.total(model.expected_log_prob(location.mT, variance.mT, rows.y))
    if past is not None and present is not None:
        expected = expected + past.value(model, present, mean, factor, sites.precision * block.variance)
    spread = factor.half_solve(eye.expand_as(every.precision)).square().sum()
    return expected - 0.5 * (spread + mean.square().sum() - mean.numel() + factor.logdet().sum()), own


def learn_by_rows(
    model: Model,
    z: Callable[[], Tensor],
    rows: Data,
    learned: Sequence[Tensor],
    *,
    max_iter: int,
    description: str,
    start: Sites | None = None,
    past: PastDataTerm | None = None,
) -> tuple[Sites, History]:
    """Optimize q, then hyperparameters with the sites held, in turn; one round is enough for Gaussian noise.

    Args:
        model: Mean, kernel and any likelihood, changed in place.
        z: The present inducing points.
        rows: The data.
        learned: What to learn.
        max_iter: L-BFGS iterations at most.
        description: For the progress bar.
        start: The sites of `rows` to start from; None for none.
        past: Discarded data.

    Returns:
        The sites of `rows` where the search ends, and its curve.
    """
    noise = model.likelihood.noise_variance
    closed = noise is not None and (model.mixing is None or noise.numel() == 1)
    sites = Sites.none(model.num_outputs, z()) if start is None else start
    history: History = {"loss": []}
    last = -math.inf
    for _ in range(1 if closed else math.ceil(max_iter / ITERATIONS_PER_ROUND)):
        with torch.no_grad():
            at = z()
            tril = factorize(gram(model.kernel, at, at), name="K_zz").tril
            before = None if past is None else past.sites_at(model, tril, at)[0]
            steps = 1 if closed else 100
            sites, value = optimal_sites(
                model, tril, at, rows, sites, before=before, max_steps=steps, tolerance=TOLERANCE
            )
            held = RowSites.at(model, tril, at, rows, sites if before is None else before + sites)
            if past is not None and before is not None:
                value = float(rows_bound(model, at, rows, held, past)[0])
            value += float(model.log_prior())
        if value - last <= 1e-4 * (1 + abs(value)):
            break
        last = value
        part = minimize_lbfgs(
            lambda held=held, past=past: -(rows_bound(model, z(), rows, held, past)[0] + model.log_prior()),
            learned,
            max_iter=max_iter if closed else min(ITERATIONS_PER_ROUND, max_iter),
            description=description,
        )
        history["loss"] += part["loss"]
        with torch.no_grad():
            sites = rows_bound(model, z(), rows, held, past)[1]
    return sites, history
