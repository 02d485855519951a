"""Maximizing the evidence lower bound of a mean-field law over a network's weights."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayeskit.bnn.network import batch_norms, is_random
from bayeskit.bnn.training import (
    DEFAULT_TRAINING,
    FEWEST_ROWS,
    average,
    calibrate,
    descend,
    holding_out,
    precisions,
    seeded_if,
)
from bayeskit.bnn.variational.network import Variational
from bayeskit.core.inference import Evidence
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.optimize import History, Training, minimize, split
from bayeskit.core.posterior import SampledValues
from bayeskit.core.types import Data

WATCHED_DRAWS = 8
"""Draws of the weights by which held-out rows judge."""

EVIDENCE_ROWS = 30_000
"""Network runs spent on the estimate of the bound, unless there are more rows than that."""


@dataclass(frozen=True, eq=False)
class Objective:
    """What is maximized, and how it is estimated.

    Args:
        num_samples: Draws at each step.
        kl_weight: Factor on the divergence; 1 for the evidence lower bound.
        precision: A factor on the prior's precision, or "validation".
    """

    num_samples: int = 1
    kl_weight: float = 1.0
    precision: float | str = "validation"


@dataclass(frozen=True, eq=False)
class Outcome:
    """What training leaves beside the trained law.

    Args:
        likelihood: With its parameters learnt.
        evidence: The evidence lower bound of all the rows.
        history: Curves of the training.
        precision: The factor on the prior's precision that was used.
        num_held_out: How many rows were held out.
    """

    likelihood: Likelihood
    evidence: Evidence
    history: History
    precision: float
    num_held_out: int


def maximize(
    q: Variational,
    likelihood: Likelihood,
    data: Data,
    training: Training,
    objective: Objective,
    *,
    generator: torch.Generator,
    stepped: Callable[[torch.optim.Optimizer], None] | None = None,
) -> Outcome:
    """Maximize the bound over means, scales and the likelihood's own parameters, changing `q` in place.

    Args:
        q: The law, holding its prior.
        likelihood: Law of the observations; copied.
        data: Inputs and targets, in the network's dtype.
        training: Settings of the loop.
        objective: Draws, KL weight, prior precision.
        generator: Source of all randomness.
        stepped: Called after each step (see `minimize`).
    """
    weights, network = q.prior, q.network
    likelihood = copy.deepcopy(likelihood)
    enough = len(data) >= FEWEST_ROWS
    search = isinstance(objective.precision, str) and not weights.scale_known
    training = holding_out(training, DEFAULT_TRAINING) if search else training
    rows, held_out = split(data, training, generator=generator) if enough else (data, None)
    own = [value for value in likelihood.parameters() if value.requires_grad] if enough else []
    normalizes, drops = bool(batch_norms(network)), is_random(network, data.x[:2])

    def score() -> Tensor:
        assert held_out is not None
        terms = likelihood.log_prob(_draws(q, held_out, WATCHED_DRAWS), held_out.y)  # (s, m)
        return terms.logsumexp(0) - math.log(len(terms))

    def validation() -> Tensor:
        assert held_out is not None
        return -average(score(), held_out)

    def run(settings: Training, factor: float) -> History:
        q.weigh(weights.sharpened(factor))

        def loss(batch: Data) -> Tensor:
            network.train(not normalizes or len(batch) > 1)  # one row alone has no spread to be normalized by
            with seeded_if(drops, generator):
                return q.loss(
                    likelihood,
                    batch,
                    num_samples=objective.num_samples,
                    kl_weight=objective.kl_weight,
                    generator=generator,
                )

        return minimize(
            loss,
            [q.mean, q.log_scale, *own],
            rows,
            settings,
            generator=generator,
            validation=None if held_out is None or settings.patience is None else validation,
            buffers=[*network.buffers(), *q.support.buffers()],
        )

    factors = precisions(objective.precision, search=search and held_out is not None)
    state = [q.mean, q.log_scale, *own, *network.buffers(), *q.support.buffers()]
    history, factor = descend(run, score, state, training, factors)
    q.weigh(weights.sharpened(factor))
    network.eval()
    if held_out is not None:
        calibrate(likelihood, _draws(q, held_out), held_out)
    evidence = Evidence(_bound(q, likelihood, data, generator=generator), "lower bound")
    return Outcome(likelihood, evidence, history, factor, 0 if held_out is None else len(held_out))


def _draws(q: Variational, data: Data, num_samples: int | None = None) -> Tensor:
    """The same draws of the function every time, (s, n, k)."""
    values = q.posterior(num_samples=num_samples)(data.x)
    assert isinstance(values, SampledValues)
    return values.draws.detach()


@torch.no_grad()
def _bound(q: Variational, likelihood: Likelihood, data: Data, *, generator: torch.Generator) -> float:
    """An unbiased estimate of the evidence lower bound over all rows: the more draws, the fewer rows there are."""
    num_samples = max(1, min(32, EVIDENCE_ROWS // len(data)))
    total = 0.0
    for batch in data.batches(4096):
        f = q(batch.x[:], num_samples=num_samples, generator=generator)
        total += float(replace(batch, scale=data.scale).total(likelihood.log_prob(f, batch.y)).mean())
    return total - float(q.kl())
