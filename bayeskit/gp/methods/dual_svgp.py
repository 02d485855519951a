"""Sparse variational inference in the dual parametrization: natural gradients for the sites of q."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from bayeskit.core import checks, operators
from bayeskit.core.inference import Evidence, Fit
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.likelihood.indexed import needs_order
from bayeskit.core.operators import factorize
from bayeskit.core.optimize import Training, minimize
from bayeskit.core.posterior import Posterior
from bayeskit.core.types import Data
from bayeskit.gp.kernels.evaluate import gram
from bayeskit.gp.model.hyperparameters import Model, learnable
from bayeskit.gp.model.inducing_points import STARTS, MovingPoints, starting_points
from bayeskit.gp.model.minibatches import DEFAULT_BATCH, PRECISIONS, default_training, product_type
from bayeskit.gp.model.process_inference import ProcessInference, in_order
from bayeskit.gp.model.training_set import inputs, training_set
from bayeskit.gp.variational.elbo_fixed_sites import InducingSites
from bayeskit.gp.variational.elbo_row_sites import History, learn_by_rows
from bayeskit.gp.variational.marginal_moments import inducing_factor
from bayeskit.gp.variational.per_datum_sites import noise_of
from bayeskit.gp.variational.site_posterior import DualProcess
from bayeskit.gp.variational.whitened_gaussian import Sites
from bayeskit.gp.variational.whitened_posterior import affordable_steps, optimal_sites

SHORTEST_STEP = 0.1
"""Length of the sites' steps where a mini-batch is a smaller share of the data."""


@dataclass(eq=False, repr=False)
class DualSVGP(ProcessInference):
    r"""Sparse variational inference whose Gaussian is kept as the prior times sites (t-SVGP).

    With f_j(Z) - m_j(Z) = L v_j, q(v_j) is proportional to N(v_j; 0, I) exp(l_j' v_j - v_j' P_j v_j / 2). A
    natural-gradient step of length t needs no inverse of its covariance:

        P  <-  (1 - t) P + t sum_i w_i b_i A_i A_i',
        l  <-  (1 - t) l + t sum_i w_i (a_i + b_i A_i' q) A_i,          A_i = L^-1 k(Z, x_i),

    a_i and b_i being the first and negated second derivatives of E_q[log p(y_i | f)]. While hyperparameters and Z are
    learned the sites are held, and q follows the prior: up to `by_rows` data points with one site each, by L-BFGS over
    all data (for Gaussian noise exactly the collapsed bound); beyond, with one site on f(Z), a step of the sites and
    one of Adam for each mini-batch. Last, q is optimized over all data.

    The posterior is a `DualProcess`. Given to `infer` as prior, it keeps Z and hyperparameters, and the sites of new
    data are added to its own: for Gaussian noise the same posterior as for all data at once, without growth in memory.

    Args:
        num_inducing: m.
        start: "kmeans" or "greedy"; see `starting_points`.
        by_rows: Number of data points (times latent functions) up to which each has its own site and every step takes
            all of them: a hundred passes over so many take about the time of the mini-batch phase.
        max_iter: L-BFGS iterations at most, in that case; for other than Gaussian noise in rounds of 8, with q
            optimized between them.
        training: Settings of the mini-batch phase; None for about 400 steps of Adam at a learning rate of 0.05 that
            falls to zero, in batches of 1,024.
        length: Length t of the sites' steps over mini-batches; None for the batch's share of the data, at least 0.1.
        precision: "single", "double" or "auto" (single from 8,192 data points on), the type of the products of the
            mini-batch phase, as for `SVGP`; sites and factors, and everything after this phase, are in float64.
        learn: Whether to learn hyperparameters; those of a conditioned prior are frozen and stay.
        learn_inducing: Whether to move Z.

    References:
        Adam, Chang, Khan and Solin (2021), "Dual Parameterization of Sparse Variational Gaussian Processes".
        Khan and Lin (2017), "Conjugate-Computation Variational Inference", section 3.

    Examples:
        >>> from bayeskit.core.likelihood import Bernoulli
        >>> from bayeskit.gp import default_prior
        >>> x = torch.linspace(-1, 1, 40, dtype=torch.float64).unsqueeze(-1)
        >>> data, method, generator = Data(x, (x[:, 0] > 0).long()), DualSVGP(num_inducing=10), torch.Generator()
        >>> fit = method.infer(default_prior(x), Bernoulli(), data, generator=generator)
        >>> bool((fit.posterior(x).mean[:, 0] > 0).long().eq(data.y).all())
        True
        >>> more = method.infer(fit.posterior, fit.likelihood, data, generator=generator)  # at the same Z
        >>> len(more.posterior.z)
        10
    """

    quick: ClassVar[Mapping[str, Any]] = {"num_inducing": 20, "max_iter": 15}

    num_inducing: int = 128
    start: str = "kmeans"
    by_rows: int = 2_000
    max_iter: int = 100
    training: Training | None = None
    length: float | None = None
    precision: str = "auto"
    learn: bool = True
    learn_inducing: bool = True

    def infer(self, prior: Posterior, likelihood: Likelihood, data: Data, *, generator: torch.Generator) -> Fit:
        """The posterior process given `data`, at learned hyperparameters and Z or those of a `DualProcess`."""
        if not isinstance(prior, DualProcess) or not len(data):
            return super().infer(prior, likelihood, data, generator=generator)
        self.check(prior, likelihood, data)
        self._validate()
        if needs_order(likelihood, data.y):
            return in_order(self, prior, likelihood, data, generator)
        return _conditioned(prior, likelihood, training_set(prior, likelihood, data))

    def _fit(self, model: Model, rows: Data, generator: torch.Generator) -> Fit:
        z, complete = starting_points(
            model.kernel, inputs(rows), self.num_inducing, start=self.start, generator=generator
        )
        points = MovingPoints(z, inputs(rows), move=self.learn_inducing and not complete)
        with torch.enable_grad():
            sites, history = self._learn(model, points, rows, generator)
        with torch.no_grad():
            z = points()
            tril = factorize(gram(model.kernel, z, z), name="K_zz").tril
            sites, value = optimal_sites(model, tril, z, rows, sites, max_steps=_steps(model, len(rows)))
            posterior = DualProcess.of(model.process(), z, tril, sites)
        diagnostics = {"inducing points": len(z)}
        return Fit(posterior, model.frozen_likelihood(), Evidence(value, "lower bound"), history, diagnostics)

    def _validate(self) -> None:
        for name in ("num_inducing", "max_iter"):
            checks.positive(getattr(self, name), name=name, integer=True)
        checks.choice(self.start, name="start", options=STARTS)
        checks.choice(self.precision, name="precision", options=PRECISIONS)
        if self.length is not None:
            checks.positive(self.length, name="length")
            if self.length > 1:
                raise ValueError(f"`length` must be at most 1; got {self.length}")

    def _learn(
        self, model: Model, points: MovingPoints, rows: Data, generator: torch.Generator
    ) -> tuple[Sites, History]:
        """Learn hyperparameters and Z; the sites and the training curve."""
        learned = [*model.parameters, *points.parameters]
        if not learned:
            return Sites.none(model.num_outputs, points()), {}
        if len(rows) * model.num_outputs <= self.by_rows:
            return learn_by_rows(model, points, rows, learned, max_iter=self.max_iter, description="DualSVGP")
        training, dtype = self.training or default_training(len(rows)), product_type(self.precision, len(rows))
        inducing = initial_sites(model, points().detach(), rows, dtype)

        def loss(batch: Data) -> Tensor:
            length = self.length or max(1 / batch.scale, SHORTEST_STEP)
            return -(inducing.bound(model, points(), batch, length=length, dtype=dtype) + model.log_prior())

        history = minimize(
            loss, learned, rows, training, generator=generator, description="DualSVGP", buffers=inducing.buffers
        )
        z = points().detach()
        inducing.move(model, z, factorize(gram(model.kernel, z, z), name="K_zz").tril.detach())
        return inducing.sites, history


@torch.no_grad()
def initial_sites(model: Model, z: Tensor, rows: Data, dtype: torch.dtype) -> InducingSites:
    """Initial sites of the mini-batch phase, fitted to a subset of the data."""
    tril = inducing_factor(gram(model.kernel, z, z), dtype).tril
    every = max(1, len(rows) // (4 * DEFAULT_BATCH))
    some = rows.rows(slice(0, None, every))
    some = replace(some, scale=len(rows) / len(some))
    sites, _ = optimal_sites(model, tril, z, some, Sites.none(model.num_outputs, z), max_steps=20)
    return InducingSites(z, tril, sites, noise_of(model))


def _steps(model: Model, n: int) -> int:
    """Natural-gradient steps at most over n data points; Gaussian noise needs one."""
    return affordable_steps(model, n) if model.likelihood.noise_variance is None else 1


@torch.no_grad()
def _conditioned(prior: DualProcess, likelihood: Likelihood, rows: Data) -> Fit:
    """The posterior given more data: the sites of the new data, with those of earlier data held, are added."""
    with operators.recording() as notes:
        model = learnable(prior.base, likelihood, learn=False)
        start = Sites.none(model.num_outputs, prior.z)
        steps = _steps(model, len(rows))
        sites, value = optimal_sites(model, prior.tril, prior.z, rows, start, before=prior.sites, max_steps=steps)
        posterior = DualProcess.of(prior.base, prior.z, prior.tril, prior.sites + sites)
    diagnostics = dict(notes) | {"inducing points": len(prior.z)}
    return Fit(posterior, model.frozen_likelihood(), Evidence(value, "lower bound"), {}, diagnostics)
