"""SWAG: a Gaussian fitted to the SGD iterates at a constant learning rate."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from bayeskit.bnn.methods.swag_averager import SWAGAverager
from bayeskit.bnn.networks.batch_norm import statistics_of_draws
from bayeskit.bnn.networks.functional import flatten, frozen, with_parameters
from bayeskit.bnn.networks.layers import batch_norms, check_frozen
from bayeskit.bnn.pushforward.bayes_net import BayesNet, Linearize, MonteCarlo
from bayeskit.bnn.training.map_training import (
    DEFAULT_TRAINING,
    QUICK_TRAINING,
    Trained,
    log_joint_loss,
    prepare,
    train,
)
from bayeskit.bnn.training.training_pass import TrainingPass
from bayeskit.bnn.training.validation_search import calibrate, check_precision
from bayeskit.bnn.weights.weight_posterior import GaussianWeights, SampledWeights
from bayeskit.core import checks, operators
from bayeskit.core.inference import Fit, Inference, Kind
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.optimize import Callback, Training, minimize
from bayeskit.core.posterior import Posterior
from bayeskit.core.types import Data

FEWEST_STEPS = 4
"""Steps in an epoch at least: without mini-batches there is no gradient noise, and so no spread of the weights."""


@dataclass(eq=False, repr=False)
class SWAG(Inference):
    """`N(m, diag(v) / 2 + D D' / (2 (K - 1)))`: mean, variance and last K deviations of the SGD iterates.

    The network is trained as by `MAP`. Then the same optimizer continues with a constant learning rate and without
    early stopping, and the weights are collected after every epoch (see `SWAGAverager`). The network is linearized
    about m, so functions are Gaussian with a covariance across inputs and outputs, and the posterior can be the prior
    of further data. A network with BatchNorm, or one that cannot be linearized, gets stored draws of the weights
    instead, each with BatchNorm statistics of its own from a pass over the training data.

    Args:
        num_collected: Epochs after which the weights are collected.
        num_deviations: K, the rank of the covariance beyond its diagonal; 0 for the diagonal alone.
        lr: The constant learning rate; None for that of `training`.
        training: Settings of the training loop; None for Adam with early stopping on 15 % of the data.
        prior_precision: A factor on the prior's precision, or "validation", as in `MAP`.
        num_samples: Draws to store where they are needed.

    References:
        Maddox, Izmailov, Garipov, Vetrov, Wilson. A simple baseline for Bayesian uncertainty in deep learning. NeurIPS
        2019, section 3.

    >>> from bayeskit.bnn import gaussian_prior
    >>> from bayeskit.core.likelihood import Gaussian
    >>> x, g = torch.linspace(-1, 1, 40)[:, None], torch.Generator().manual_seed(0)
    >>> fit = SWAG(num_collected=10).infer(gaussian_prior(nn.Linear(1, 1)), Gaussian(), Data(x, 2 * x), generator=g)
    >>> fit.posterior(x).covariance.shape
    torch.Size([40, 40])
    """

    num_collected: int = 40
    num_deviations: int = 20
    lr: float | None = None
    training: Training | None = None
    prior_precision: float | str = "validation"
    num_samples: int = 32

    priors: ClassVar[tuple[type[Posterior], ...]] = (BayesNet,)
    kind: ClassVar[Kind] = "weights"
    quick: ClassVar[Mapping[str, Any]] = {"num_collected": 8, "training": QUICK_TRAINING}

    def infer(self, prior: Posterior, likelihood: Likelihood, data: Data, *, generator: torch.Generator) -> Fit:
        """Train, collect, and set the likelihood's own parameters by the held-out data."""
        self.check(prior, likelihood, data)
        training = DEFAULT_TRAINING if self.training is None else self.training
        self._validate()
        weights, network, _ = prepare(prior, data)
        check_frozen(network)
        with operators.recording() as notes:
            trained = train(prior, likelihood, data, training, precision=self.prior_precision, generator=generator)
            prior_weights = weights.sharpened(trained.precision)
            network, gaussian, curve = self._collect(trained, prior_weights, training, generator=generator)
            posterior = self._posterior(network, gaussian, trained.train_data, generator=generator)
            if trained.held_out is not None:
                calibrate(trained.likelihood, posterior(trained.held_out.x), trained.held_out)
        diagnostics = {"prior precision": trained.precision, "held-out data": trained.num_held_out, **notes}
        history = {**trained.history, "collecting": curve}
        return Fit(posterior, trained.likelihood, history=history, diagnostics=diagnostics)

    def _validate(self) -> None:
        for name in ("num_collected", "num_samples"):
            checks.positive(getattr(self, name), name=name, integer=True)
        if self.lr is not None:
            checks.positive(self.lr, name="lr")
        check_precision(self.prior_precision, "validation")

    def _collect(
        self, trained: Trained, prior: GaussianWeights, training: Training, *, generator: torch.Generator
    ) -> tuple[nn.Module, GaussianWeights, list[float]]:
        """The network at the mean, the Gaussian, and the loss during the collection."""
        network, data = copy.deepcopy(trained.network), trained.train_data
        likelihood = copy.deepcopy(trained.likelihood).requires_grad_(False)
        flat = flatten(trained.params, trained.params).requires_grad_()
        averager = SWAGAverager(network, self.num_deviations, names=trained.params)
        size = min(training.batch_size or len(data), max(1, len(data) // FEWEST_STEPS))
        settings = replace(
            training,
            lr=training.lr if self.lr is None else self.lr,
            schedule="constant",
            patience=None,
            max_epochs=self.num_collected,
            batch_size=size,
            checkpoint=None if training.checkpoint is None else f"{training.checkpoint}.swag",
        )
        training_pass = TrainingPass(network, data, names=trained.params, generator=generator)
        history = minimize(
            log_joint_loss(training_pass, flat, trained.params, likelihood=likelihood, prior=prior),
            [flat],
            data,
            settings,
            generator=generator,
            description="collecting",
            buffers=[*network.buffers(), *averager.buffers()],
            callbacks=[Callback(after_epoch=lambda run: averager.add(flat.detach()))],
        )
        gaussian = averager.posterior()
        return with_parameters(network, gaussian.mean), gaussian, history["loss"]

    def _posterior(
        self, network: nn.Module, gaussian: GaussianWeights, data: Data, *, generator: torch.Generator
    ) -> BayesNet:
        """The Gaussian with the linearized network, or stored draws with BatchNorm statistics of their own."""
        if not batch_norms(network) and _linearizable(network, gaussian, data):
            return BayesNet(network, gaussian, Linearize())
        draws = gaussian.sample(self.num_samples, generator=generator)
        batches = (batch.x[:] for batch in data.batches(128) if len(batch) > 1)
        buffers = statistics_of_draws(copy.deepcopy(network), draws, batches)
        return BayesNet(frozen(network), SampledWeights(draws, buffers), MonteCarlo())


def _linearizable(network: nn.Module, weights: GaussianWeights, data: Data) -> bool:
    """Whether torch.func can differentiate the network."""
    try:
        return bool(Linearize().values(network, weights, data.x[:1]).variance.isfinite().all())
    except (RuntimeError, ValueError):
        return False
