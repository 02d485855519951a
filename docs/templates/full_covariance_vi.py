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
    """q(w) = N(m, R R') by stochastic gradients of `E_q[log p(y, w)] + H(q)`.

    R = diag(s) (I + T / sqrt(p)), T strictly lower triangular. The root of the number of weights p makes a step of Adam
    change a draw as much through T as through s.

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
        """Train m, s and T, with the parameters of a copy of the likelihood."""
        self.check(prior, likelihood, data)
        before, network, data = prepare(prior, likelihood, data)
        check_frozen(network)
        likelihood, forward = copy.deepcopy(likelihood), TrainingPass(network, data, generator=generator)
        mean = flatten(parameters(network, before.mean), before.mean).requires_grad_()
        log_scale = (self.initial_scale * before.covariance.diagonal().sqrt()).log().to(mean).requires_grad_()
        shape = mean.new_zeros(len(mean), len(mean)).requires_grad_()

        def root() -> Tensor:
            eye = torch.eye(len(mean)).to(mean)
            return log_scale.exp().unsqueeze(-1) * (eye + shape.tril(-1) / len(mean) ** 0.5)

        def loss(batch: Data) -> Tensor:
            w = mean + root() @ generators.normal(mean.shape, like=mean, generator=generator)
            with forward(len(batch)):
                f = call(network, unflatten(w, before.mean), batch.x[:])
            # H(q) = sum log s, up to a constant
            return -batch.total(likelihood.log_prob(f, batch.y)) - before.log_density(w) - log_scale.sum()

        own = [value for value in likelihood.parameters() if value.requires_grad]
        training = self.training or Training(lr=1e-2, max_epochs=500, schedule="cosine")
        history = minimize(loss, [mean, log_scale, shape, *own], data, training, generator=generator)
        q = GaussianWeights(unflatten(mean.detach(), before.mean), RootLinearOperator(root().detach()))
        return Fit(exact_or_monte_carlo(with_parameters(network, q.mean), q, data.x), likelihood, history=history)
