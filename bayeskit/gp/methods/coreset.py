"""Sparse Gaussian processes conditioned on a learned coreset."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bayeskit.core import checks, operators
from bayeskit.core.inference import Evidence, Fit
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.optimize import History, Training, minimize, minimize_lbfgs
from bayeskit.core.posterior import Posterior
from bayeskit.core.types import Data
from bayeskit.gp.methods.subset_hyperparameters import learn_on_subset
from bayeskit.gp.model.hyperparameters import Model
from bayeskit.gp.model.inducing_points import STARTS, MovingPoints, spread, starting_points
from bayeskit.gp.model.process_inference import ProcessInference
from bayeskit.gp.model.training_set import inputs
from bayeskit.gp.process.gaussian_process import GaussianProcess
from bayeskit.gp.variational.collapsed_bound import collapsed
from bayeskit.gp.variational.pseudo_data import PseudoObservations, bound, nearest
from bayeskit.gp.variational.whitened_gaussian import WhitenedGaussian
from bayeskit.gp.variational.whitened_posterior import optimal_q

LEARNING_ROWS = 2_000
"""Size of the subset whose exact evidence gives the initial hyperparameters, at most."""

DEFAULT_STEPS = 3000
DEFAULT_BATCH = 512


@dataclass(eq=False, repr=False)
class CoresetGP(ProcessInference):
    r"""A learned coreset: weighted pseudo observations (z_m, y_m) on which the prior is conditioned.

        q(f) is proportional to p(f) prod_m N(y_m; f(z_m), s / weight_m)

    (for noise s; other likelihoods have precisions in place of weight_m / s) maximizes the evidence lower bound. That
    is O(m) numbers where `SVGP` has O(m^2), and a prediction solves one triangular system.

    Hyperparameters start from the exact evidence of at most 2,000 data points and are, with the points, learned on a
    larger random subset by the collapsed bound (both for Gaussian noise only), then together with outputs and weights
    by Adam on mini-batches; last, over all data, outputs are set to match the means of the optimal Gaussian at z, and
    weights to minimize the KL divergence to it.

    Args:
        num_points: m.
        start: "kmeans" or "greedy"; see `starting_points`.
        subset: Size of the random subset of the first phase, at most; 0 skips the phase.
        max_iter: L-BFGS iterations of the first phase.
        training: Settings of the mini-batch phase; None for about 3000 steps of Adam at a learning rate that falls to
            zero, from 0.01 in batches of 512 after a first phase (and none if that had all data), else from 0.05.
        learn: Whether to learn hyperparameters; those of a conditioned prior are frozen and stay.
        learn_points: Whether to move z.

    References:
        Ketenci, Perotte, Elhadad and Urteaga (2025), "A Coreset-based, Tempered Variational Posterior for Accurate and
        Scalable Stochastic Gaussian Process Inference", for the family and its bound.

    Examples:
        >>> from bayeskit.core.likelihood import Gaussian
        >>> from bayeskit.gp import default_prior
        >>> x = torch.linspace(0, 6, 60, dtype=torch.float64).unsqueeze(-1)
        >>> prior, data, generator = default_prior(x), Data(x, x.sin()), torch.Generator()
        >>> fit = CoresetGP(num_points=10).infer(prior, Gaussian(), data, generator=generator)
        >>> bool((fit.posterior(x).mean - x.sin()).abs().max() < 1e-2), len(fit.posterior.kernel.z)
        (True, 10)
    """

    quick: ClassVar[Mapping[str, Any]] = {
        "num_points": 20,
        "max_iter": 10,
        "training": Training(lr=0.05, max_epochs=10, batch_size=256),
    }

    num_points: int = 128
    start: str = "kmeans"
    subset: int = 10_000
    max_iter: int = 150
    training: Training | None = None
    learn: bool = True
    learn_points: bool = True

    def infer(self, prior: Posterior, likelihood: Likelihood, data: Data, *, generator: torch.Generator) -> Fit:
        """The prior conditioned on the coreset of `data`, at learned hyperparameters."""
        if isinstance(prior, GaussianProcess) and prior.mixing is not None:
            raise ValueError(
                "a coreset observes functions that are independent of each other and would drop the `mixing` of the "
                "prior; use `gp.SVGP`, or `gp.Exact` for Gaussian noise"
            )
        return super().infer(prior, likelihood, data, generator=generator)

    def _fit(self, model: Model, rows: Data, generator: torch.Generator) -> Fit:
        found, history = self._learn(model, rows, generator)
        with torch.no_grad():
            value, posterior = float(bound(model, found, rows)), found.posterior(model)
        diagnostics = {"inducing points": len(found.z)}
        return Fit(posterior, model.frozen_likelihood(), Evidence(value, "lower bound"), history, diagnostics)

    def _validate(self) -> None:
        checks.positive(self.num_points, name="num_points", integer=True)
        checks.positive(self.max_iter, name="max_iter", integer=True)
        checks.choice(self.start, name="start", options=STARTS)
        if self.subset:
            checks.positive(self.subset, name="subset", integer=True)

    def _learn(self, model: Model, rows: Data, generator: torch.Generator) -> tuple[PseudoObservations, History]:
        """The three phases; the pseudo observations and the last training curve."""
        gaussian = model.likelihood.noise_variance is not None
        if model.parameters and self.subset and gaussian:
            learning_rows = min(LEARNING_ROWS, self.subset)
            learn_on_subset(model, rows, learning_rows, max_iter=self.max_iter, restarts=0, generator=generator)
        z, complete = starting_points(
            model.kernel, inputs(rows), self.num_points, start=self.start, generator=generator
        )
        points = MovingPoints(z, inputs(rows), move=self.learn_points and not complete)
        learned = [*model.parameters, *points.parameters]
        history: History = {}
        training = self.training
        if learned and self.subset and gaussian:
            some = self._subset(rows, generator)
            history = minimize_lbfgs(
                lambda: -(collapsed(model, points(), some).bound + model.log_prior()),
                learned,
                max_iter=self.max_iter,
                description="CoresetGP, subset",
            )
            if training is None and len(rows) > self.subset:
                training = Training.of_steps(DEFAULT_STEPS, len(rows), lr=0.01, batch_size=DEFAULT_BATCH)
        elif learned and training is None:
            training = Training.of_steps(DEFAULT_STEPS, len(rows), lr=0.05, batch_size=DEFAULT_BATCH)
        moved = points().detach()
        found = _over_all_rows(model, moved, _cluster_sizes(model, moved, rows), rows)
        if not learned or training is None:
            return found, history
        log_weights, whitened = (t.clone().requires_grad_(True) for t in (found.weights.log(), found.whitened))

        def present() -> PseudoObservations:
            return PseudoObservations(points(), log_weights.exp(), whitened)

        def loss(batch: Data) -> Tensor:
            return -(bound(model, present(), batch) + model.log_prior())

        before, start = _value(model, found, rows), [value.detach().clone() for value in learned]
        parameters = [*learned, log_weights, whitened]
        history = minimize(loss, parameters, rows, training, generator=generator, description="CoresetGP")
        with torch.no_grad():
            trained = PseudoObservations(present().z.clone(), log_weights.exp(), whitened.detach())
        best = _over_all_rows(model, trained.z, trained.weights, rows)
        # `best` is the better one for a Gaussian likelihood; for others nearly always, hence the comparison.
        value, winner = max(((_value(model, one, rows), one) for one in (best, trained)), key=lambda pair: pair[0])
        if value >= before:
            return winner, history
        operators.note("bound lost by training, which was therefore taken back", before - value)
        with torch.no_grad():  # its steps were too long
            for parameter, known in zip(learned, start, strict=True):
                parameter.copy_(known)
        return found, history

    def _subset(self, rows: Data, generator: torch.Generator) -> Data:
        """The data of the first phase."""
        if len(rows) <= self.subset:
            return rows
        operators.note("rows of the first phase", self.subset)
        order = torch.randperm(len(rows), generator=generator, device=generator.device)[: self.subset]
        return rows.rows(order.to(rows.y.device))


@torch.no_grad()
def _value(model: Model, found: PseudoObservations, rows: Data) -> float:
    """Bound plus log prior, over all data."""
    return float(bound(model, found, rows) + model.log_prior())


def _cluster_sizes(model: Model, z: Tensor, rows: Data) -> Tensor:
    """The weight of the data nearest to each point: (1, m) where all outputs can share the weights, else (k, m)."""
    x, unit = inputs(rows), spread(inputs(rows))
    closest = torch.cat([torch.cdist(part / unit, z / unit).argmin(-1) for part in operators.pieces(x, len(z))])
    weights = torch.ones_like(x[:, 0]) if rows.weights is None else rows.weights
    sizes = torch.zeros_like(z[:, 0]).index_add(0, closest, weights).clamp_min(0.1)
    gaussian, complete = model.likelihood.noise_variance is not None, bool(rows.y.isfinite().all())
    shared = gaussian and complete and not model.kernel.batch_shape
    return sizes.expand(1 if shared else model.num_outputs, -1)


def _over_all_rows(model: Model, z: Tensor, weights: Tensor, rows: Data) -> PseudoObservations:
    """The pseudo observations at z that are nearest to the optimal Gaussian there."""
    with torch.no_grad():
        start = WhitenedGaussian.prior(model.num_outputs, z)
        q, _ = optimal_q(model, z, start, rows, max_steps=100)
    return nearest(model, z, q, weights)
