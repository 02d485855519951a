"""Maximizing the evidence lower bound of a mean-field Gaussian over a network's weights."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from bayeskit.bnn.training.training_pass import TrainingPass
from bayeskit.bnn.training.validation_search import ValidationSearch, calibrate, check_precision
from bayeskit.bnn.variational_inference.support_updates import Subspace
from bayeskit.bnn.variational_inference.variational_module import Variational
from bayeskit.core import checks, operators
from bayeskit.core.inference import Evidence, Fit
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.optimize import Callback, History, Training, minimize
from bayeskit.core.posterior import SampledValues
from bayeskit.core.types import Data
from bayeskit.core.validation_plan import planned

DEFAULT_TRAINING = Training(lr=1e-2, max_epochs=500, batch_size=128, patience=20, validation_fraction=0.15)
"""Adam with early stopping: a smaller rate and more patience than for MAP, because the objective is noisy."""

VALIDATION_DRAWS = 8
"""Draws of the weights for the validation loss of every epoch: each costs one pass over the held-out data."""

BOUND_EVALUATIONS = 30_000
"""Observations times draws for the estimate of the bound: at 1,000 observations 30 draws, from 15,000 on two."""


class Settings(Protocol):
    """The settings that `MeanFieldVI` and `SSVI` share; see there."""

    estimator: str
    num_samples: int
    num_draws: int | None
    initial_scale: float
    kl_weight: float
    prior_precision: float | str
    training: Training | None


def validate(settings: Settings) -> None:
    """Raise one clear sentence if a setting is out of range."""
    checks.positive(settings.num_samples, name="num_samples", integer=True)
    checks.positive(settings.kl_weight, name="kl_weight")
    check_precision(settings.prior_precision, "validation")
    if settings.num_draws is not None:
        checks.positive(settings.num_draws, name="num_draws", integer=True)


class ELBOTraining:
    """Maximizes the bound over means, scales and the likelihood's own parameters, changing q in place.

    Args:
        q: The variational distribution, with its prior.
        likelihood: Copied.
        data: Inputs and targets, in the network's dtype.
        settings: Of the inference: draws, KL weight, prior precision, training.
        exchange: Starts the exchanges of active weights in a training of so many steps; None if there are none.
        generator: Source of all randomness.
    """

    def __init__(
        self,
        q: Variational,
        likelihood: Likelihood,
        data: Data,
        settings: Settings,
        *,
        exchange: Callable[[Variational, int], Subspace] | None = None,
        generator: torch.Generator,
    ):
        training = settings.training or DEFAULT_TRAINING
        self.data = data = planned(data, training.validation_split)
        self.q, self.likelihood = q, copy.deepcopy(likelihood)
        self.settings, self.exchange, self.generator = settings, exchange, generator
        self.training_pass = TrainingPass(q.network, data, names=q.support.shapes, generator=generator)
        self.buffers = [*q.network.buffers(), *q.support.buffers()]
        precision, known = settings.prior_precision, q.prior.scale_known
        self.search = ValidationSearch.plan(data, training, precision, known=known, generator=generator)
        self.trained = [q.mean, q.log_scale, *self.search.learnt(self.likelihood)]

    def fit(self) -> Fit:
        """Train, at falling prior precisions if the held-out data choose one."""
        q, held_out = self.q, self.search.held_out
        with operators.recording() as notes:
            history, q.factor = self.search.run(self.run, self.score, [*self.trained, *self.buffers])
            q.network.eval()
            q.gradients = None
            if held_out is not None:
                calibrate(self.likelihood, q.posterior()(held_out.x), held_out)
            evidence = self.bound()
            posterior = q.posterior(self.data.x[:2], num_samples=self.settings.num_draws)
        diagnostics = {
            "prior precision": q.factor,
            "held-out data": self.search.num_held_out,
            "KL": float(q.kl().detach()),
            "active weights": len(q.mean),
            **notes,
        }
        return Fit(posterior, self.likelihood, evidence, history, diagnostics)

    def run(self, training: Training, factor: float) -> History:
        """Train with a factor on the prior's precision, starting from the current q."""
        q, rows, settings = self.q, self.search.train_data, self.settings
        q.factor = factor
        num_steps = training.max_epochs * math.ceil(len(rows) / (training.batch_size or len(rows)))
        subspace = None if self.exchange is None else self.exchange(q, num_steps)
        samples, weight = settings.num_samples, settings.kl_weight

        def loss(batch: Data) -> Tensor:
            if subspace is not None:
                subspace.watch()
            with self.training_pass(len(batch)):
                return q.loss(self.likelihood, batch, num_samples=samples, kl_weight=weight, generator=self.generator)

        return minimize(
            loss,
            self.trained,
            rows,
            training,
            generator=self.generator,
            validation=None if training.patience is None else self.search.validation(self.score),
            buffers=self.buffers if subspace is None else [*self.buffers, subspace.count],
            callbacks=() if subspace is None else [Callback(after_step=lambda run: subspace.step(run.optimizer))],
        )

    def score(self, held_out: Data) -> Tensor:
        """The log density of each observation under a mixture of some draws, (m,)."""
        self.q.network.eval()
        values = self.q.posterior(num_samples=VALIDATION_DRAWS)(held_out.x)
        assert isinstance(values, SampledValues)
        terms = self.likelihood.log_prob(values.draws, held_out.y)  # (s, m)
        return (terms.logsumexp(0) - math.log(len(terms))).detach()

    @torch.no_grad()
    def bound(self) -> Evidence:
        """An unbiased estimate of the evidence lower bound on all the data, with its Monte Carlo standard error."""
        num_samples = max(2, min(32, BOUND_EVALUATIONS // len(self.data)))
        totals = torch.zeros(num_samples, dtype=torch.float64)  # independent: every batch has draws of its own
        for batch in self.data.batches(4096):
            f = self.q(batch.x[:], num_samples=num_samples, generator=self.generator)
            terms = replace(batch, scale=self.data.scale).total(self.likelihood.log_prob(f, batch.y))
            totals += terms.double().cpu()
        error = float(totals.std()) / math.sqrt(num_samples)
        return Evidence(float(totals.mean()) - float(self.q.kl()), "lower bound", error)
