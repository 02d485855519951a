"""Training a network towards its most probable weights: what MAP is, and where Laplace starts from."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from linear_operator import to_linear_operator
from linear_operator.operators import BlockDiagLinearOperator
from torch import Tensor, nn

from bayeskit.bnn.networks.functional import call, evaluate, flatten, is_random, parameters, unflatten, with_parameters
from bayeskit.bnn.networks.layers import normalizes, set_training
from bayeskit.bnn.pushforward.bayes_net import BayesNet
from bayeskit.bnn.training.validation_search import Search, average
from bayeskit.bnn.weights.weight_posterior import GaussianWeights
from bayeskit.core import generators
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.likelihood.support import check_support
from bayeskit.core.optimize import History, Training, minimize, minimize_lbfgs
from bayeskit.core.posterior import GaussianValues, Posterior
from bayeskit.core.types import Data, Params

DEFAULT_TRAINING = Training(lr=2e-2, max_epochs=300, batch_size=128, patience=10, validation_fraction=0.15)
"""Adam with early stopping on held-out rows: made for some hundred to some thousand noisy rows."""

QUICK_TRAINING = Training(lr=2e-2, max_epochs=15, batch_size=64, patience=5, validation_fraction=0.15)
"""A tenth of a second for a hundred rows."""


@dataclass(frozen=True, eq=False)
class Trained:
    """What training leaves.

    Args:
        network: In evaluation mode, holding the trained weights.
        params: Those weights, by name.
        likelihood: With its parameters learnt.
        held_out: The rows that early stopping watched, or None.
        history: Curves of the training.
        precision: The factor on the prior's precision that was used.
        rows: The rows that it was trained on.
    """

    network: nn.Module
    params: Params
    likelihood: Likelihood
    held_out: Data | None
    history: History
    precision: float
    rows: Data

    @property
    def num_held_out(self) -> int:
        """How many rows were held out."""
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
    """Maximize `log p(y | f(.; w)) + log p(w)` over the weights that the prior names, from where its network stands.

    Rows held out (`training.validation_fraction`) choose the epoch, and afterwards the likelihood's own parameters.

    Args:
        prior: A `BayesNet` with Gaussian weights; untouched.
        likelihood: Law of the observations; copied.
        data: Inputs and targets.
        training: Settings of the loop.
        precision: A factor on the prior's precision, or "validation": lowered while the held-out rows gain. A prior
            whose scale is known is taken as it is.
        generator: Splits and shuffles the rows, and drops units where the network does.
    """
    weights, network, data = prepare(prior, likelihood, data)
    set_training(network)
    likelihood = copy.deepcopy(likelihood)
    like = parameters(network, weights.mean)
    flat = flatten(like, like).requires_grad_()
    search = Search.plan(data, training, precision, known=weights.scale_known, generator=generator)
    own, source = search.learnt(likelihood), generator if is_random(network, data.x[:2]) else None

    def score(held_out: Data) -> Tensor:
        network.eval()
        with torch.no_grad():
            f = evaluate(network, one_draw(unflatten(flat, like)), held_out.x)[0]
        set_training(network)
        return likelihood.log_prob(f, held_out.y)

    def run(settings: Training, factor: float) -> History:
        law = weights.sharpened(factor)
        loss = log_joint_loss(network, flat, like, likelihood=likelihood, law=law, generator=source)
        watched, buffers = search.validation(score), network.buffers()
        rows = search.rows
        return minimize(loss, [flat, *own], rows, settings, generator=generator, validation=watched, buffers=buffers)

    history, factor = search.descend(run, score, [flat, *own, *network.buffers()])
    params = {name: value.detach() for name, value in unflatten(flat, like).items()}
    network = with_parameters(network, params)
    if search.held_out is not None:
        calibrate(likelihood, evaluate(network, one_draw(params), search.held_out.x), search.held_out)
    return Trained(network, parameters(network, params), likelihood, search.held_out, history, factor, search.rows)


def log_joint_loss(
    network: nn.Module,
    flat: Tensor,
    like: Params,
    *,
    likelihood: Likelihood,
    law: GaussianWeights,
    generator: torch.Generator | None,
) -> Callable[[Data], Tensor]:
    """`-log p(y | f(.; w)) - log p(w)` of a mini-batch, on the scale of the full data.

    Args:
        network: In training mode.
        flat: The weights w, (p,).
        like: Their names and shapes.
        likelihood: Law of the observations.
        law: Prior p(w).
        generator: Source of what the network draws while it trains; None if it draws nothing.
    """
    learns_statistics = normalizes(network)

    def loss(batch: Data) -> Tensor:
        if learns_statistics:  # one row alone has no spread to be normalized by
            set_training(network, len(batch) > 1)
        with seeded_by(generator):
            f = call(network, unflatten(flat, like), batch.x[:])
        return -batch.total(likelihood.log_prob(f, batch.y)) - law.log_density(flat)

    return loss


def prepare(prior: Posterior, likelihood: Likelihood, data: Data) -> tuple[GaussianWeights, nn.Module, Data]:
    """The prior's weights, a copy of its network on the data's device, and the data in the weights' dtype.

    Raises:
        TypeError: The prior's weights are not Gaussian, so they have no density to multiply the likelihood by.
        ValueError: A target lies outside the support of the likelihood.
    """
    assert isinstance(prior, BayesNet)
    if not isinstance(prior.weights, GaussianWeights):
        raise TypeError(
            f"`prior` must have Gaussian weights; got {type(prior.weights).__name__}, which has no density. Start from "
            "`bnn.gaussian_prior(network)`, or continue from a method whose posterior over weights is Gaussian, such "
            "as Laplace."
        )
    network, data = beside(prior, likelihood, data)
    return prior.weights.to(data.y.device), network, data


def beside(prior: BayesNet, likelihood: Likelihood, data: Data) -> tuple[nn.Module, Data]:
    """A copy of the prior's network on the data's device, and the data in the network's dtype.

    Raises:
        ValueError: A target lies outside the support of the likelihood.
    """
    check_support(likelihood, data.y, name="data.y")
    network, mean = copy.deepcopy(prior.network).to(data.y.device), prior.weights.mean
    for name, value in network.named_parameters():
        value.requires_grad_(name in mean)
    return network, data.to(dtype=prior.weights.flat_mean.dtype)


def calibrate(likelihood: Likelihood, values: Tensor | GaussianValues, data: Data) -> None:
    """Set the likelihood's own parameters by the predictive density of rows that the weights have not seen.

    Args:
        likelihood: Changed in place.
        values: Function values at those rows: draws (s, n, k), of which the mixture is judged, or a Gaussian law, of
            which rows are judged that were observed in full.
        data: Those rows.
    """
    own = [value for value in likelihood.parameters() if value.requires_grad]
    if not own or not len(data):
        return
    if isinstance(values, Tensor):
        draws, share = values.detach().double(), math.log(len(values))

        def density() -> Tensor:
            return likelihood.log_prob(draws, data.y).logsumexp(0) - share
    else:
        full = ~data.y.isnan().reshape(len(data), -1).any(-1)
        if not full.any():
            return
        data = replace(data.rows(full), scale=data.scale)
        blocks = BlockDiagLinearOperator(to_linear_operator(values.output_covariance()[full].detach().double()))
        marginals = GaussianValues(values.mean[full].detach().double(), blocks)

        def density() -> Tensor:
            return likelihood.gaussian_predictive(marginals).log_prob(data.y)

    minimize_lbfgs(lambda: -average(density(), data), own, description="calibration")


@contextmanager
def seeded_by(generator: torch.Generator | None) -> Iterator[None]:
    """Lend the global generator for a while; nothing with None, for a network that does not draw from it."""
    if generator is None:
        yield
    elif torch.cuda.is_initialized():
        with generators.seeded(generator):
            yield
    else:  # the same numbers; `torch.manual_seed` would format a stack trace for the devices that it has yet to seed
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(generators.seed(generator))
        try:
            yield
        finally:
            torch.set_rng_state(state)


def one_draw(params: Params) -> Params:
    """Leaves (*shape) as leaves (1, *shape)."""
    return {name: value.detach().unsqueeze(0) for name, value in params.items()}
