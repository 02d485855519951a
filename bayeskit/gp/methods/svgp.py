"""Sparse variational Gaussian processes: mini-batches and any likelihood."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bayeskit.core import checks
from bayeskit.core.inference import Evidence, Fit
from bayeskit.core.optimize import Training, minimize
from bayeskit.core.types import Data
from bayeskit.gp.model.hyperparameters import Model
from bayeskit.gp.model.inducing_points import STARTS, MovingPoints, starting_points
from bayeskit.gp.model.minibatches import DEFAULT_BATCH, PRECISIONS, default_training, product_type
from bayeskit.gp.model.process_inference import ProcessInference
from bayeskit.gp.model.training_set import inputs
from bayeskit.gp.process.gaussian_process import GaussianProcess
from bayeskit.gp.variational.collapsed_bound import collapsed
from bayeskit.gp.variational.natural_gradient import NaturalGradient
from bayeskit.gp.variational.whitened_gaussian import WhitenedGaussian
from bayeskit.gp.variational.whitened_posterior import affordable_steps, bound, data_term, optimal_q

START_ROWS = 8192
"""Data points, times latent functions, that the initial q of the mini-batch phase is fitted to (at least one batch)."""


@dataclass(eq=False, repr=False)
class SVGP(ProcessInference):
    r"""Sparse variational inference with a free Gaussian at inducing points.

    With f_j(Z) = L v_j and q(v_j) = N(q_j, R_j R_j'), the bound

        log p(y) >= sum_i w_i E_q[log p(y_i | f(x_i))] - sum_j KL[q(v_j) || N(0, I)]

    is maximized over q, hyperparameters and Z by mini-batches. Before and after, natural-gradient steps over all data
    maximize it over q alone; for a Gaussian likelihood that optimum has a closed form, and the result is SGPR at the
    hyperparameters and Z found.

    Args:
        num_inducing: m.
        start: "kmeans" or "greedy"; see `starting_points`.
        variational: Optimizer of q in the mini-batch phase: "natural" for natural-gradient steps beside Adam on the
            other parameters, or "adam" for all.
        natural_lr: Length of the natural-gradient steps: q averages over about the last 1 / natural_lr batches.
        precision: "single", "double" or "auto" (single from 8,192 data points on: fewer cost little, and then weights
            equal repeated data points to rounding), the type of the products of the mini-batch phase. Its gradients
            are noisy anyway; factors, and everything after this phase, are in float64.
        training: Settings of the mini-batch phase; None for about 400 steps of Adam at a learning rate of 0.05 that
            falls to zero, in batches of 1,024.
        learn: Whether to learn hyperparameters; those of a conditioned prior are frozen and stay.
        learn_inducing: Whether to move Z.

    References:
        Hensman, Matthews and Ghahramani (2015), "Scalable Variational Gaussian Process Classification", equation 19.
        Khan and Lin (2017), "Conjugate-Computation Variational Inference", for the steps that end the fit.

    Examples:
        >>> from bayeskit.core.likelihood import Bernoulli
        >>> from bayeskit.gp import default_prior
        >>> x = torch.linspace(-1, 1, 40, dtype=torch.float64).unsqueeze(-1)
        >>> data = Data(x, (x[:, 0] > 0).long())
        >>> fit = SVGP.quickly().infer(default_prior(x), Bernoulli(), data, generator=torch.Generator().manual_seed(0))
        >>> bool((fit.posterior(x).mean[:, 0] > 0).long().eq(data.y).all())
        True
    """

    quick: ClassVar[Mapping[str, Any]] = {
        "num_inducing": 20,
        "training": Training(lr=0.05, max_epochs=20, batch_size=256),
    }

    num_inducing: int = 128
    start: str = "kmeans"
    variational: str = "natural"
    natural_lr: float = 0.1
    precision: str = "auto"
    training: Training | None = None
    learn: bool = True
    learn_inducing: bool = True

    def _validate(self) -> None:
        checks.positive(self.num_inducing, name="num_inducing", integer=True)
        checks.choice(self.start, name="start", options=STARTS)
        checks.choice(self.variational, name="variational", options=("natural", "adam"))
        checks.positive(self.natural_lr, name="natural_lr")
        if self.natural_lr > 1:
            raise ValueError(f"`natural_lr` must be at most 1, a full step; got {self.natural_lr}")
        checks.choice(self.precision, name="precision", options=PRECISIONS)

    def _fit(self, model: Model, rows: Data, generator: torch.Generator) -> Fit:
        z, reached, history = self._train(model, rows, generator)
        with torch.no_grad():
            posterior, value = _optimum(model, z, reached, rows)
        diagnostics = {"inducing points": len(z)}
        return Fit(posterior, model.frozen_likelihood(), Evidence(value, "lower bound"), history, diagnostics)

    def _train(
        self, model: Model, rows: Data, generator: torch.Generator
    ) -> tuple[Tensor, WhitenedGaussian, dict[str, list[float]]]:
        """Learn hyperparameters and Z along with q; Z, q and the training curve."""
        z, complete = starting_points(
            model.kernel, inputs(rows), self.num_inducing, start=self.start, generator=generator
        )
        points = MovingPoints(z, inputs(rows), move=self.learn_inducing and not complete)
        learned = [*model.parameters, *points.parameters]
        start = WhitenedGaussian.prior(model.num_outputs, z)
        if not learned:
            return z, start, {}
        some, size = rows, max(DEFAULT_BATCH, START_ROWS // model.num_outputs)
        if self.variational == "natural" and len(rows) > size:
            some = next(iter(rows.batches(size, generator=generator)))
        with torch.no_grad():
            start, _ = optimal_q(model, z, start, some, max_steps=1 if model.likelihood.is_conjugate else 20)
        training, dtype = self.training or default_training(len(rows)), product_type(self.precision, len(rows))
        settings: Any = {"data": rows, "training": training, "generator": generator, "description": "SVGP"}
        if self.variational == "adam":
            leaves = start.leaves(dtype)

            def loss(batch: Data) -> Tensor:
                return -(bound(model, points(), WhitenedGaussian(*leaves), batch) + model.log_prior())

            history = minimize(loss, [*learned, *leaves], **settings)
            reached = WhitenedGaussian(*[leaf.detach().double() for leaf in leaves])
        else:
            covariance = start.root @ start.root.mT
            mean, covariance = (t.to(dtype).requires_grad_(True) for t in (start.mean, covariance))
            own = NaturalGradient(mean, covariance, num_rows=len(rows), lr=self.natural_lr)

            def loss(batch: Data) -> Tensor:
                fit = data_term(model, points(), mean, covariance, batch, form="sites")
                return own.divergence - fit - model.log_prior()

            history = minimize(loss, learned, second_optimizer=own, buffers=own.memory, **settings)
            reached = WhitenedGaussian.from_sites(own.sites)
        return points().detach(), reached, history


def _optimum(model: Model, z: Tensor, reached: WhitenedGaussian, rows: Data) -> tuple[GaussianProcess, float]:
    """The posterior at the best q(v) for the learned hyperparameters and Z, from the q reached, and its bound."""
    if model.likelihood.is_conjugate and model.mixing is None:
        result = collapsed(model, z, rows)
        return result.posterior(model.process(), z), float(result.bound)
    steps = affordable_steps(model, len(rows))
    q, value = optimal_q(model, z, reached, rows, max_steps=steps)
    return q.posterior(model, z), value
