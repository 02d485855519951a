"""Variational inference with a full covariance over the weights, for small networks or last layers."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from linear_operator.operators import RootLinearOperator
from torch import Tensor

from bayeskit.bnn.networks.functional import call, flatten, parameters, unflatten, with_parameters
from bayeskit.bnn.networks.layers import check_frozen
from bayeskit.bnn.pushforward.bayes_net import BayesNet, exact_or_monte_carlo
from bayeskit.bnn.training.map_training import QUICK_TRAINING, prepare
from bayeskit.bnn.training.training_pass import TrainingPass
from bayeskit.bnn.weights.weight_posterior import GaussianWeights
from bayeskit.core import generators
from bayeskit.core.inference import Fit, Inference, Kind
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.optimize import Training, minimize
from bayeskit.core.posterior import Posterior
from bayeskit.core.types import Data


@dataclass(eq=False, repr=False)
class FullCovarianceVI(Inference):
    """q(w) = N(m, R R') with R lower triangular, by stochastic gradients of `E_q[log p(y, w)] + H(q)`.

    Args:
        training: Settings of the training loop; None for 500 epochs of Adam.
        initial_scale: Standard deviations of q at the start, in units of the prior's.
    """

    training: Training | None = None
    initial_scale: float = 0.1

    priors: ClassVar[tuple[type[Posterior], ...]] = (BayesNet,)
    kind: ClassVar[Kind] = "weights"
    quick: ClassVar[Mapping[str, Any]] = {"training": QUICK_TRAINING}

    def infer(self, prior: Posterior, likelihood: Likelihood, data: Data, *, generator: torch.Generator) -> Fit:
        """Train m and R, with the parameters of a copy of the likelihood."""
        self.check(prior, likelihood, data)
        before, network, data = prepare(prior, likelihood, data)
        check_frozen(network)
        likelihood, forward = copy.deepcopy(likelihood), TrainingPass(network, data, generator=generator)
        mean = flatten(parameters(network, before.mean), before.mean).requires_grad_()
        root = (self.initial_scale * before.covariance.diagonal().sqrt()).diag_embed().to(mean).requires_grad_()

        def loss(batch: Data) -> Tensor:
            w = mean + root.tril() @ generators.normal(mean.shape, like=mean, generator=generator)
            with forward(len(batch)):
                f = call(network, unflatten(w, before.mean), batch.x[:])
            entropy = root.diagonal().abs().log().sum()  # up to a constant
            return -batch.total(likelihood.log_prob(f, batch.y)) - before.log_density(w) - entropy

        own = [value for value in likelihood.parameters() if value.requires_grad]
        training = self.training or Training(lr=1e-2, max_epochs=500, schedule="cosine")
        history = minimize(loss, [mean, root, *own], data, training, generator=generator)
        q = GaussianWeights(unflatten(mean.detach(), before.mean), RootLinearOperator(root.detach().tril()))
        return Fit(exact_or_monte_carlo(with_parameters(network, q.mean), q, data.x), likelihood, history=history)
