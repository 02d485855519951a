"""Variational inference with a low-rank plus diagonal covariance over the weights."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from linear_operator import LinearOperator
from torch import Tensor

from bayeskit.bnn.networks.functional import call, flatten, parameters, unflatten, with_parameters
from bayeskit.bnn.networks.layers import check_frozen
from bayeskit.bnn.pushforward.bayes_net import BayesNet, exact_or_monte_carlo
from bayeskit.bnn.training.map_training import QUICK_TRAINING, prepare
from bayeskit.bnn.training.training_pass import TrainingPass
from bayeskit.bnn.weights.weight_posterior import GaussianWeights
from bayeskit.core import operators
from bayeskit.core.inference import Fit, Inference, Kind
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.optimize import Training, minimize
from bayeskit.core.posterior import Posterior
from bayeskit.core.types import Data


@dataclass(eq=False, repr=False)
class LowRankVI(Inference):
    """q(w) = N(m, V V' + diag(s^2)) by stochastic gradients of `E_q[log p(y, w)] + H(q)`.

    Args:
        rank: Columns of V.
        initial_scale: Standard deviations of q at the start, in units of the prior's.
        training: Settings of the training loop; None for 500 epochs of Adam.

    References:
        Tomczak, Swaroop and Turner (2020), "Efficient Low Rank Gaussian Variational Inference for Neural Networks".
    """

    rank: int = 4
    initial_scale: float = 0.1
    training: Training | None = None

    priors: ClassVar[tuple[type[Posterior], ...]] = (BayesNet,)
    kind: ClassVar[Kind] = "weights"
    quick: ClassVar[Mapping[str, Any]] = {"training": QUICK_TRAINING}

    def infer(self, prior: Posterior, likelihood: Likelihood, data: Data, *, generator: torch.Generator) -> Fit:
        """Train m, V and s, with the parameters of a copy of the likelihood."""
        self.check(prior, likelihood, data)
        before, network, data = prepare(prior, data)
        check_frozen(network)
        likelihood, forward = copy.deepcopy(likelihood), TrainingPass(network, data, generator=generator)
        mean = flatten(parameters(network, before.mean), before.mean).requires_grad_()
        log_scale = (self.initial_scale * before.covariance.diagonal().sqrt()).log().to(mean).requires_grad_()
        root = mean.new_zeros(len(mean), self.rank).requires_grad_()

        def covariance() -> LinearOperator:
            return operators.low_rank_plus_diagonal(root, (2 * log_scale).exp())

        def loss(batch: Data) -> Tensor:
            w = mean + operators.draw(covariance(), 1, generator=generator)[0]
            with forward(len(batch)):
                f = call(network, unflatten(w, before.mean), batch.x[:])
            entropy = operators.logdet(covariance()) / 2  # up to a constant
            return -batch.total(likelihood.log_prob(f, batch.y)) - before.log_density(w) - entropy

        own = [value for value in likelihood.parameters() if value.requires_grad]
        training = self.training or Training(lr=1e-2, max_epochs=500, schedule="cosine")
        history = minimize(loss, [mean, root, log_scale, *own], data, training, generator=generator)
        q = GaussianWeights(unflatten(mean.detach(), before.mean), covariance().detach())
        return Fit(exact_or_monte_carlo(with_parameters(network, q.mean), q, data.x), likelihood, history=history)
