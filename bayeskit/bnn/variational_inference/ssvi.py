"""Sparse subspace variational inference."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from bayeskit.bnn.networks.functional import parameters
from bayeskit.bnn.networks.layers import check_frozen
from bayeskit.bnn.pushforward.bayes_net import BayesNet
from bayeskit.bnn.training.map_training import QUICK_TRAINING, prepare, prepare_network
from bayeskit.bnn.variational_inference.elbo_training import ELBOTraining, validate
from bayeskit.bnn.variational_inference.sparse_support import WHOLE, random_support
from bayeskit.bnn.variational_inference.sparse_weights import SparseWeights
from bayeskit.bnn.variational_inference.support_updates import Subspace
from bayeskit.bnn.variational_inference.variational_module import INITIAL_SCALE, Variational
from bayeskit.core import checks
from bayeskit.core.inference import Fit, Inference, Kind
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.optimize import Training
from bayeskit.core.posterior import Posterior
from bayeskit.core.types import Data


@dataclass(eq=False, repr=False)
class SSVI(Inference):
    """Mean-field variational inference over a few weights of a network, which are selected during training.

    Of each weight matrix or convolution the share `density` is active and has a mean and a scale; the rest is exactly
    zero, without storage in the posterior or the optimizer. Every so many steps the active weights of smallest
    |mean| / scale are deactivated and as many others of largest gradient activated: a share that falls by a cosine, to
    zero in the last quarter. The number of active weights is constant. At density 1 this is `MeanFieldVI`, to the bit.

    Large weights of low density use sparse products. The variances of the library's prior are divided by the density,
    so that functions have the same prior variance as under a dense network. With a sparse posterior of earlier data as
    prior, its active weights are kept.

    Args:
        density: Share of active weights, of each tensor of two or more dimensions with more than `whole` entries.
        block: Shape of the groups (rows and columns of a weight) that are active or not together; sides are shortened
            to what divides the weight's.
        every: Steps between exchanges; None for 100, or a twentieth of the training if that is less.
        fraction: Share of the active weights in the first exchange.
        whole: Entries of a tensor up to which all are active.
        estimator: "local", "flipout" or "weight", as in `MeanFieldVI`.
        num_samples: Draws at each step.
        num_draws: Draws of the weights at prediction; None for 32.
        initial_scale: Initial standard deviations, in units of the prior's; with a posterior of earlier data as prior,
            its own.
        kl_weight: Factor on the divergence.
        prior_precision: A factor on the prior's precision, or "validation", as in `MeanFieldVI`.
        training: Settings of the training loop; None for Adam with early stopping on 15 % of the data.

    References:
        Li, Miao, Qiu, Zhang. Training Bayesian neural networks with sparse subspace variational inference. ICLR 2024.

    >>> from bayeskit.bnn import MLP, gaussian_prior
    >>> from bayeskit.core.likelihood import Gaussian
    >>> x, g = torch.linspace(-1, 1, 40)[:, None], torch.Generator().manual_seed(0)
    >>> prior, method = gaussian_prior(MLP(1, 1)), SSVI(training=Training(max_epochs=9))
    >>> fit = method.infer(prior, Gaussian(), Data(x, 2 * x), generator=g)
    >>> fit.diagnostics["active weights"]  # of 2,701: a tenth of 50 x 50, and two small layers
    451
    """

    density: float = 0.1
    block: tuple[int, int] = (1, 1)
    every: int | None = None
    fraction: float = 0.3
    whole: int = WHOLE
    estimator: str = "local"
    num_samples: int = 1
    num_draws: int | None = None
    initial_scale: float = INITIAL_SCALE
    kl_weight: float = 1.0
    prior_precision: float | str = "validation"
    training: Training | None = None

    priors: ClassVar[tuple[type[Posterior], ...]] = (BayesNet,)
    kind: ClassVar[Kind] = "weights"
    quick: ClassVar[Mapping[str, Any]] = {"training": QUICK_TRAINING}

    def infer(self, prior: Posterior, likelihood: Likelihood, data: Data, *, generator: torch.Generator) -> Fit:
        """Train means, scales and the selection of weights."""
        self.check(prior, likelihood, data)
        validate(self)
        if self.every is not None:
            checks.positive(self.every, name="every", integer=True)
        checks.fraction(self.fraction, name="fraction")
        assert isinstance(prior, BayesNet)
        if isinstance(prior.weights, SparseWeights):
            weights = prior.weights.to(data.y.device)
            network, data = prepare_network(prior, data)
            support, exchange = weights.support, None
        else:
            weights, network, data = prepare(prior, data)
            like = parameters(network, weights.mean)
            exchange = self._exchange
            support = random_support(like, self.density, block=self.block, whole=self.whole, generator=generator)
        check_frozen(network)
        q = Variational(network, weights, estimator=self.estimator, initial_scale=self.initial_scale, support=support)
        return ELBOTraining(q, likelihood, data, self, exchange=exchange, generator=generator).fit()

    def _exchange(self, q: Variational, num_steps: int) -> Subspace:
        """The exchanges in a training of so many steps; they end after three quarters of it."""
        every = self.every or max(1, min(100, num_steps // 20))
        until = max(1, round(0.75 * num_steps))
        return Subspace(q, every=every, until=until, fraction=self.fraction, block=self.block)
