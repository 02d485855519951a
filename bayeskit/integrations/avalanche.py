"""Bayesian continual learning in Avalanche: the posterior after each experience is the prior of the next one.

    bayes = PosteriorPlugin(network, Categorical(10))
    strategy = Naive(model=network, ..., plugins=[bayes])
    for experience in benchmark.train_stream:
        strategy.train(experience)      # loss - log q_{t-1}(w) / n, then q_t = infer(q_{t-1}, experience)
    bayes.predictive(x)                 # given all experiences so far

With the Laplace approximation, which is the default, this is online Laplace (Ritter et al., 2018).
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bayeskit.bnn import BayesNet, Laplace, gaussian_prior
from bayeskit.bnn.weights.weight_posterior import GaussianWeights
from bayeskit.core.inference import Inference
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.predictive import Predictive
from bayeskit.core.types import Data
from bayeskit.integrations.optional_import import needed

with needed("avalanche-lib", extra="avalanche"):
    from avalanche.core import SupervisedPlugin  # pyright: ignore[reportMissingImports]


class PosteriorPlugin(SupervisedPlugin):
    """Adds `-log q(w) / n` to the loss of an experience of n rows, q being the posterior of those before it.

    After each experience `inference` computes the next posterior at the weights that the strategy has trained. A loss
    that is a mean of -log p(y | x, w), such as cross entropy, thereby becomes -log p(w | all data) / n under the
    Gaussian approximation of the previous posterior.

    Args:
        network: The strategy's model.
        likelihood: The likelihood whose negative logarithm is the strategy's criterion.
        inference: `bnn.Laplace` over all weights with a diagonal covariance if None. It must use the weights as they
            are trained, and return a Gaussian posterior over them.
        prior_precision: Factor on the precision of the first prior.
        random_state: Seed of the inference.

    Attributes:
        posterior: The current posterior, a `BayesNet`; the prior at first.

    References:
        Ritter, Botev, Barber. Online structured Laplace approximations for overcoming catastrophic forgetting.
        NeurIPS 2018.
    """

    def __init__(
        self,
        network: nn.Module,
        likelihood: Likelihood,
        inference: Inference | None = None,
        *,
        prior_precision: float = 1.0,
        random_state: int = 0,
    ):
        super().__init__()
        online = Laplace(subset="all", structure="diagonal", prior_precision=1.0, pretrained=True)
        self.inference = online if inference is None else inference
        self.posterior: BayesNet = gaussian_prior(network, precision=prior_precision)
        self.likelihood, self.random_state = likelihood, random_state

    def before_backward(self, strategy: Any, **_: Any) -> None:
        """Add the negative log prior to the loss."""
        weights = self.posterior.weights
        assert isinstance(weights, GaussianWeights)
        live = dict(strategy.model.named_parameters())
        here = {name: live[name] for name in weights.mean}  # no copies, so that the optimizer sees the gradient
        strategy.loss = strategy.loss - weights.log_prob(here) / len(strategy.experience.dataset)

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        """Compute the posterior after an experience."""
        rows = [row[:2] for row in strategy.experience.dataset]
        x, y = torch.stack([torch.as_tensor(x) for x, _ in rows]), torch.tensor([y for _, y in rows])
        prior = replace(self.posterior, network=strategy.model)
        generator = torch.Generator(strategy.device).manual_seed(self.random_state)
        data = Data(x, y).to(device=strategy.device)
        fit = self.inference.infer(prior, self.likelihood, data, generator=generator)
        assert isinstance(fit.posterior, BayesNet)
        self.posterior, self.likelihood = fit.posterior, fit.likelihood

    def predictive(self, x: Tensor) -> Predictive:
        """The predictive distribution of the label at each input, given all experiences so far."""
        with torch.no_grad():
            return self.likelihood.predictive(self.posterior(x))
