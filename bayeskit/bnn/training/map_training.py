"""MAP training of a network: the basis of MAP, Laplace, SWAG and MC dropout."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bayeskit.bnn.networks.functional import call, evaluate_at, flatten, parameters, unflatten, with_parameters
from bayeskit.bnn.pushforward.bayes_net import BayesNet
from bayeskit.bnn.training.training_pass import TrainingPass
from bayeskit.bnn.training.validation_search import ValidationSearch, calibrate
from bayeskit.bnn.weights.weight_posterior import GaussianWeights
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.optimize import History, Training, minimize
from bayeskit.core.posterior import Posterior, SampledValues
from bayeskit.core.types import Data, Params

DEFAULT_TRAINING = Training(lr=2e-2, max_epochs=300, batch_size=128, patience=10, validation_fraction=0.15)
"""Adam with early stopping, for some hundred to some thousand noisy observations."""

QUICK_TRAINING = Training(lr=2e-2, max_epochs=15, batch_size=64, patience=5, validation_fraction=0.15)
"""A tenth of a second for a hundred observations, for the quick settings of every method that trains a network."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network.

    Args:
        network: In evaluation mode, holding the trained weights.
        params: Those weights, by name.
        likelihood: With its parameters learnt.
        held_out: The validation data, or None.
        history: Curves of the training.
        precision: The factor on the prior's precision that was used.
        train_data: The training data.
    """

    network: nn.Module
    params: Params
    likelihood: Likelihood
    held_out: Data | None
    history: History
    precision: float
    train_data: Data

    @property
    def num_held_out(self) -> int:
        """Number of held-out observations."""
        return 0 if self.held_out is None else len(self.held_out)


def train(
    prior: Posterior,
    likelihood: Likelihood,
    data: Data,
    training: Training,
    *,
    precision: float | str,
    generator: torch.Generator,
) -> Trained:
    """Maximize `log p(y | f(.; w)) + log p(w)` over the weights that the prior names, starting at its network's values.

    Held-out data (`training.validation_fraction`) choose the epoch, and afterwards the likelihood's own parameters.

    Args:
        prior: A `BayesNet` with Gaussian weights; untouched.
        likelihood: Copied.
        data: Inputs and targets.
        training: Settings of the loop.
        precision: A factor on the prior's precision, or "validation": lowered while the held-out data gain. A prior
            whose scale is known is used unchanged.
        generator: Source of the split, the mini-batches, and the network's dropout.
    """
    weights, network, data = prepare(prior, data)
    likelihood = copy.deepcopy(likelihood)
    like = parameters(network, weights.mean)
    flat = flatten(like, like).requires_grad_()
    search = ValidationSearch.plan(data, training, precision, known=weights.scale_known, generator=generator)
    own, training_pass = search.learnt(likelihood), TrainingPass(network, data, generator=generator)

    def score(held_out: Data) -> Tensor:
        network.eval()
        with torch.no_grad():
            return likelihood.log_prob(evaluate_at(network, unflatten(flat, like), held_out.x), held_out.y)

    def run(settings: Training, factor: float) -> History:
        loss = log_joint_loss(training_pass, flat, like, likelihood=likelihood, prior=weights.sharpened(factor))
        watched, buffers = search.validation(score), network.buffers()
        rows = search.train_data
        return minimize(loss, [flat, *own], rows, settings, generator=generator, validation=watched, buffers=buffers)

    history, factor = search.run(run, score, [flat, *own, *network.buffers()])
    params = {name: value.detach() for name, value in unflatten(flat, like).items()}
    network = with_parameters(network, params)
    if search.held_out is not None:
        f = evaluate_at(network, params, search.held_out.x)
        calibrate(likelihood, SampledValues(f.unsqueeze(0)), search.held_out)
    return Trained(
        network, parameters(network, params), likelihood, search.held_out, history, factor, search.train_data
    )


def log_joint_loss(
    training_pass: TrainingPass, flat: Tensor, like: Params, *, likelihood: Likelihood, prior: GaussianWeights
) -> Callable[[Data], Tensor]:
    """`-log p(y | f(.; w)) - log p(w)` of a mini-batch, on the scale of the full data.

    Args:
        training_pass: The network.
        flat: The weights w, (p,).
        like: Their names and shapes.
        likelihood: Distribution of y given f.
        prior: p(w).
    """

    def loss(batch: Data) -> Tensor:
        with training_pass(len(batch)):
            f = call(training_pass.network, unflatten(flat, like), batch.x[:])
        return -batch.total(likelihood.log_prob(f, batch.y)) - prior.log_density(flat)

    return loss


def prepare(prior: Posterior, data: Data) -> tuple[GaussianWeights, nn.Module, Data]:
    """The prior's weights, a copy of its network on the data's device, and the data in the weights' dtype.

    Raises:
        TypeError: The prior's weights are not Gaussian, so they have no density to multiply the likelihood by.
    """
    assert isinstance(prior, BayesNet)
    if not isinstance(prior.weights, GaussianWeights):
        raise TypeError(
            f"`prior` must have Gaussian weights; got {type(prior.weights).__name__}, which has no density. Start from "
            "`bnn.gaussian_prior(network)`, or continue from a method whose posterior over weights is Gaussian, such "
            "as Laplace."
        )
    network, data = prepare_network(prior, data)
    return prior.weights.to(data.y.device), network, data


def prepare_network(prior: BayesNet, data: Data) -> tuple[nn.Module, Data]:
    """A copy of the prior's network on the data's device, and the data in the network's dtype."""
    network, mean = copy.deepcopy(prior.network).to(data.y.device), prior.weights.mean
    for name, value in network.named_parameters():
        value.requires_grad_(name in mean)
    return network, data.to(dtype=prior.weights.flat_mean.dtype)
