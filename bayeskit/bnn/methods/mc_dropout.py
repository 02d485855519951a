"""Monte Carlo dropout, with masks that are drawn once, at fit."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from bayeskit.bnn.methods.dropout_masks import (
    DropoutMasks,
    dropout_layers,
    dropping_inputs,
    layer_masks,
    linear_layers,
    masked_weights,
)
from bayeskit.bnn.networks.functional import MLP, frozen
from bayeskit.bnn.networks.layers import check_frozen
from bayeskit.bnn.pushforward.bayes_net import BayesNet, MonteCarlo
from bayeskit.bnn.training.map_training import QUICK_TRAINING, prepare, train
from bayeskit.bnn.training.validation_search import calibrate, check_precision
from bayeskit.bnn.weights.weight_posterior import PointWeights, SampledWeights
from bayeskit.core import checks, operators
from bayeskit.core.inference import Fit, Inference, Kind
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.optimize import Training
from bayeskit.core.posterior import Posterior
from bayeskit.core.types import Data

DEFAULT_TRAINING = Training(lr=1e-2, max_epochs=1000, batch_size=128, patience=50, validation_fraction=0.15)
"""Adam with early stopping and a long patience: with the noise of dropout a short one stops too early."""

DEFAULT_RATE = 0.05
"""Share of hidden units dropped in an `MLP` of the library, small because the layers have 50 units."""


@dataclass(eq=False, repr=False)
class MCDropout(Inference):
    """Dropout as approximate inference: training with dropout, prediction with masks drawn once, at fit.

    Training maximizes `log p(y | f(.; w, z)) + log p(w)` over w with new masks z for every input and step, on the scale
    of the full data. The posterior is the uniform distribution over `num_samples` functions, each the network with one
    mask for every layer, the same for all inputs: predictions are a function of the inputs, and draws are consistent
    across them. BatchNorm layers predict in evaluation mode, with the statistics of training.

    A network with dropout layers (`nn.Dropout`, `nn.Dropout1d`, ...) uses them. In an `MLP` of the library, and where
    `rate` is given for a network without dropout, the inputs of all linear layers but a first one are dropped; this is
    a distribution over weights, `W diag(z)`.

    Args:
        rate: Share of units dropped at the inputs of linear layers, for networks without dropout layers; None for 0.05
            in an `MLP` of the library, and an error for other networks without dropout.
        num_samples: Number of masks, and so of draws.
        training: Settings of the training loop; None for Adam with early stopping on 15 % of the data.
        prior_precision: A factor on the prior's precision, or "validation", as in `MAP`.

    References:
        Gal, Ghahramani. Dropout as a Bayesian approximation: representing model uncertainty in deep learning. ICML
        2016.

    >>> from bayeskit.bnn import gaussian_prior
    >>> from bayeskit.core.likelihood import Gaussian
    >>> x, g = torch.linspace(-1, 1, 40)[:, None], torch.Generator().manual_seed(0)
    >>> inference = MCDropout(num_samples=8, training=Training(max_epochs=9))
    >>> fit = inference.infer(gaussian_prior(MLP(1, 1)), Gaussian(), Data(x, 2 * x), generator=g)
    >>> fit.posterior(x).draws.shape
    torch.Size([8, 40, 1])
    """

    rate: float | None = None
    num_samples: int = 50
    training: Training | None = None
    prior_precision: float | str = "validation"

    priors: ClassVar[tuple[type[Posterior], ...]] = (BayesNet,)
    kind: ClassVar[Kind] = "draws"
    quick: ClassVar[Mapping[str, Any]] = {"rate": 0.1, "num_samples": 8, "training": QUICK_TRAINING}

    def infer(self, prior: Posterior, likelihood: Likelihood, data: Data, *, generator: torch.Generator) -> Fit:
        """Train with dropout, draw the masks, and set the likelihood's own parameters by the held-out data."""
        self.check(prior, likelihood, data)
        checks.positive(self.num_samples, name="num_samples", integer=True)
        check_precision(self.prior_precision, "validation")
        assert isinstance(prior, BayesNet)
        _, network, given = prepare(prior, data)
        check_frozen(network)
        training = DEFAULT_TRAINING if self.training is None else self.training
        inserted = [] if dropout_layers(network) else self._layers(network)
        rate = DEFAULT_RATE if self.rate is None else self.rate
        trainee = replace(prior, network=dropping_inputs(prior.network, inserted, rate))
        with operators.recording() as notes:
            trained = train(trainee, likelihood, data, training, precision=self.prior_precision, generator=generator)
            network.load_state_dict(trained.network.state_dict())
            network = frozen(network)
            if inserted:
                draws = masked_weights(network, trained.params, inserted, rate, self.num_samples, generator=generator)
                posterior = BayesNet(network, SampledWeights(draws), MonteCarlo())
            else:
                masks = layer_masks(network, given.x[:1], self.num_samples, generator=generator)
                posterior = BayesNet(network, PointWeights(trained.params), DropoutMasks(masks))
            if trained.held_out is not None:
                calibrate(trained.likelihood, posterior(trained.held_out.x), trained.held_out)
        diagnostics = {
            "dropped": inserted or list(dropout_layers(network)),
            "prior precision": trained.precision,
            "held-out data": trained.num_held_out,
            **notes,
        }
        return Fit(posterior, trained.likelihood, history=trained.history, diagnostics=diagnostics)

    def _layers(self, network: nn.Module) -> list[str]:
        """The linear layers whose inputs are dropped."""
        if self.rate is not None:
            checks.fraction(self.rate, name="rate")
        names = linear_layers(network)
        if (self.rate is None and not isinstance(network, MLP)) or not names:
            raise ValueError(
                f"{type(network).__name__} has no dropout layer, so there is nothing to draw. Put `nn.Dropout` layers "
                "where units should be dropped"
                + (", or set `rate` to drop inputs of its linear layers." if names else ".")
            )
        return names
