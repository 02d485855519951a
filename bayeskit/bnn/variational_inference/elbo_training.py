"""Maximizing the evidence lower bound of a mean-field law over a network's weights."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from bayeskit.bnn.networks.functional import is_random
from bayeskit.bnn.networks.layers import normalizes, set_training
from bayeskit.bnn.training.map_training import calibrate, seeded_by
from bayeskit.bnn.training.validation_search import Search, check_precision
from bayeskit.bnn.variational_inference.support_updates import Subspace
from bayeskit.bnn.variational_inference.variational_module import Variational
from bayeskit.core import checks, operators
from bayeskit.core.inference import Evidence, Fit
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.optimize import Callback, History, Training, minimize
from bayeskit.core.posterior import SampledValues
from bayeskit.core.types import Data

DEFAULT_TRAINING = Training(lr=1e-2, max_epochs=500, batch_size=128, patience=20, validation_fraction=0.15)
"""Adam with early stopping: gentler and more patient than for one network, because the objective is noisy."""

WATCHED_DRAWS = 8
"""Draws of the weights by which held-out rows judge."""

EVIDENCE_RUNS = 30_000
"""Rows times draws spent on the estimate of the bound, unless there are more rows than that."""


class Settings(Protocol):
    """What the inferences by a mean-field law share; see `MeanFieldVI`."""

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


@dataclass(frozen=True, eq=False)
class Exchange:
    """How the active weights of a sparse law change while it is trained (see `Subspace`).

    Args:
        every: Steps between exchanges; None for 100, or a twentieth of the training if that is less.
        fraction: Share of the active weights exchanged at first.
        block: Shape of the units.
    """

    every: int | None = None
    fraction: float = 0.3
    block: Sequence[int] = (1, 1)

    def start(self, q: Variational, num_steps: int) -> Subspace:
        """The exchanges of a training of so many steps: they end after three quarters of them."""
        every = self.every or max(1, min(100, num_steps // 20))
        until = max(1, round(0.75 * num_steps))
        return Subspace(q, every=every, until=until, fraction=self.fraction, block=self.block)


class Ascent:
    """Maximizes the bound over means, scales and the likelihood's own parameters, changing a law in place.

    Args:
        q: The law, holding its prior.
        likelihood: Law of the observations; copied.
        data: Inputs and targets, in the network's dtype.
        settings: Of the inference: draws, KL weight, prior precision, training.
        exchange: Of active weights, for a sparse law.
        generator: Source of all randomness.
    """

    def __init__(
        self,
        q: Variational,
        likelihood: Likelihood,
        data: Data,
        settings: Settings,
        *,
        exchange: Exchange | None = None,
        generator: torch.Generator,
    ):
        self.q, self.likelihood, self.data = q, copy.deepcopy(likelihood), data
        self.settings, self.exchange, self.generator = settings, exchange, generator
        self.normalizes = normalizes(q.network, q.support.shapes)
        self.source = generator if is_random(q.network, data.x[:2]) else None
        self.buffers = [*q.network.buffers(), *q.support.buffers()]

    def fit(self) -> Fit:
        """Train, at falling prior precisions if held-out rows are to choose one."""
        training, precision = self.settings.training or DEFAULT_TRAINING, self.settings.prior_precision
        known = self.q.prior.scale_known
        search = Search.plan(self.data, training, precision, known=known, generator=self.generator)
        own = search.learnt(self.likelihood)

        def climb(settings: Training, factor: float) -> History:
            return self.climb(search, own, settings, factor)

        with operators.recording() as notes:
            state = [self.q.mean, self.q.log_scale, *own, *self.buffers]
            history, self.q.factor = search.descend(climb, self.score, state)
            self.q.network.eval()
            self.q.gradients = None
            if search.held_out is not None:
                calibrate(self.likelihood, self.draws(search.held_out), search.held_out)
            evidence = Evidence(self.bound(), "lower bound")
            posterior = self.q.posterior(self.data.x[:2], num_samples=self.settings.num_draws)
        diagnostics = {
            "prior precision": self.q.factor,
            "held-out rows": search.num_held_out,
            "KL": float(self.q.kl().detach()),
            "active weights": len(self.q.mean),
            **notes,
        }
        return Fit(posterior, self.likelihood, evidence, history, diagnostics)

    def climb(self, search: Search, own: list[Tensor], training: Training, factor: float) -> History:
        """One training at a prior precision, from where the law stands, with these parameters of the likelihood."""
        q, rows = self.q, search.rows
        q.factor = factor
        num_steps = training.max_epochs * math.ceil(len(rows) / (training.batch_size or len(rows)))
        subspace = None if self.exchange is None else self.exchange.start(q, num_steps)

        def loss(batch: Data) -> Tensor:
            # One row alone has no spread to be normalized by.
            set_training(q.network, not self.normalizes or len(batch) > 1, names=q.support.shapes)
            if subspace is not None:
                subspace.watch()
            with seeded_by(self.source):
                return q.loss(
                    self.likelihood,
                    batch,
                    num_samples=self.settings.num_samples,
                    kl_weight=self.settings.kl_weight,
                    generator=self.generator,
                )

        return minimize(
            loss,
            [q.mean, q.log_scale, *own],
            rows,
            training,
            generator=self.generator,
            validation=None if training.patience is None else search.validation(self.score),
            buffers=self.buffers if subspace is None else [*self.buffers, subspace.count],
            callbacks=() if subspace is None else [Callback(after_step=lambda run: subspace.step(run.optimizer))],
        )

    def score(self, rows: Data) -> Tensor:
        """The log density of each row under the mixture of some draws, (m,)."""
        self.q.network.eval()
        terms = self.likelihood.log_prob(self.draws(rows, WATCHED_DRAWS), rows.y)  # (s, m)
        return (terms.logsumexp(0) - math.log(len(terms))).detach()

    def draws(self, rows: Data, num_samples: int | None = None) -> Tensor:
        """The same draws of the function every time, (s, n, k)."""
        values = self.q.posterior(num_samples=num_samples)(rows.x)
        assert isinstance(values, SampledValues)
        return values.draws.detach()

    @torch.no_grad()
    def bound(self) -> float:
        """An unbiased estimate of the evidence lower bound over all rows: the more draws, the fewer rows there are."""
        num_samples = max(1, min(32, EVIDENCE_RUNS // len(self.data)))
        total = 0.0
        for batch in self.data.batches(4096):
            f = self.q(batch.x[:], num_samples=num_samples, generator=self.generator)
            total += float(replace(batch, scale=self.data.scale).total(self.likelihood.log_prob(f, batch.y)).mean())
        return total - float(self.q.kl())
