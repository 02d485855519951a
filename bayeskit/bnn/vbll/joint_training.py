"""A body and its Bayesian last layer, trained together."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bayeskit.bnn.curvature.ggn import with_one
from bayeskit.bnn.networks.functional import flatten, parameters, unflatten, with_parameters
from bayeskit.bnn.networks.last_layer import Head
from bayeskit.bnn.training.training_pass import TrainingPass
from bayeskit.bnn.training.validation_search import ValidationSearch, average
from bayeskit.bnn.vbll.likelihood_layer import LikelihoodLayer
from bayeskit.bnn.vbll.row_prior import RowPrior
from bayeskit.bnn.weights.weight_posterior import GaussianWeights
from bayeskit.core.optimize import History, Training, minimize, minimize_lbfgs
from bayeskit.core.types import Data


@dataclass(frozen=True, eq=False)
class TrainedBody:
    """The result of `train_jointly`.

    Args:
        network: In evaluation mode, holding the trained weights of the body.
        history: Curves of the training.
        precision: The factor on the prior's precision that was used.
        num_held_out: Size of the validation set of early stopping.
    """

    network: nn.Module
    history: History
    precision: float
    num_held_out: int


def train_jointly(
    head: Head,
    layer: LikelihoodLayer,
    body: GaussianWeights | None,
    data: Data,
    training: Training,
    *,
    precision: float | str,
    generator: torch.Generator,
) -> TrainedBody:
    """Maximize the evidence lower bound of the last layer plus the log prior density of the body's weights.

    The layer is changed in place: its rows, its prior's precision, and the parameters of its likelihood.

    Args:
        head: The last layer and its network; the network's running statistics are changed in place.
        layer: Its Bayesian replacement; its prior is that at factor 1.
        body: Prior of the other weights; None where they are fixed.
        data: Inputs and targets.
        training: Settings of the loop.
        precision: A factor on the prior's precision, or "validation", for body and last layer alike.
        generator: Splits and shuffles the data, and draws dropout masks.
    """
    network, base, width = head.network, layer.prior, layer.rows.mean.shape[1]
    like = {} if body is None else parameters(network, body.mean)
    flat = flatten(like, like).requires_grad_() if like else torch.zeros(0)
    known = body is None or body.scale_known
    search = ValidationSearch.plan(data, training, precision, known=known, generator=generator)
    training_pass, learnt = TrainingPass(network, data, generator=generator), search.learnt(layer.likelihood)
    state = [flat, *layer.rows.parameters(), *learnt]

    def expected(batch: Data) -> Tensor:
        features = head.features_at(unflatten(flat, like), batch.x[:])
        return layer.expected_log_prob(with_one(features, width), batch.y)

    def score(held_out: Data) -> Tensor:
        network.eval()
        with torch.no_grad():
            return torch.cat([expected(part) for part in held_out.batches(4096)])

    def run(settings: Training, factor: float) -> History:
        prior = None if body is None else body.sharpened(factor)
        layer.prior = RowPrior(base.mean, base.precision * factor)
        loss = _minus_bound(training_pass, layer, expected, flat, prior=prior)
        watched, buffers = search.validation(score), network.buffers()
        return minimize(
            loss, state, search.train_data, settings, generator=generator, validation=watched, buffers=buffers
        )

    history, factor = search.run(run, score, [*state, *network.buffers()])
    layer.prior = RowPrior(base.mean, base.precision * factor)
    held_out = search.held_out
    if held_out is not None and learnt:  # the noise is estimated on validation data
        network.eval()
        minimize_lbfgs(lambda: -average(expected(held_out).double(), held_out), learnt, description="calibration")
    trained = with_parameters(network, {name: value.detach() for name, value in unflatten(flat, like).items()})
    return TrainedBody(trained, history, factor, search.num_held_out)


def _minus_bound(
    training_pass: TrainingPass,
    layer: LikelihoodLayer,
    expected: Callable[[Data], Tensor],
    flat: Tensor,
    *,
    prior: GaussianWeights | None,
) -> Callable[[Data], Tensor]:
    """Minus the bound of a mini-batch on the scale of the full data, for the body's weights (p,) under their prior."""

    def loss(batch: Data) -> Tensor:
        with training_pass(len(batch)):
            terms = expected(batch)
        bound = batch.total(terms) - layer.kl_weight * layer.divergence()
        return -bound if prior is None else -bound - prior.log_density(flat)

    return loss
