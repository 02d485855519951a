"""Mean-field variational inference."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from bayeskit.bnn.networks.layers import check_frozen
from bayeskit.bnn.pushforward.bayes_net import BayesNet
from bayeskit.bnn.training.map_training import QUICK_TRAINING, prepare
from bayeskit.bnn.variational_inference.elbo_training import ELBOTraining, validate
from bayeskit.bnn.variational_inference.variational_module import INITIAL_SCALE, Variational
from bayeskit.core.inference import Fit, Inference, Kind
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.optimize import Training
from bayeskit.core.posterior import Posterior
from bayeskit.core.types import Data


@dataclass(eq=False, repr=False)
class MeanFieldVI(Inference):
    """Independent Gaussians over the weights that maximize `E_q log p(y | f(.; w)) - kl_weight KL(q || p)`.

    The KL divergence from the prior is analytic; the expectation is estimated at each step by draws of weights or of
    outputs. The estimators "weight", "local" and "flipout" are all unbiased and differ in variance. The posterior can
    be the prior of further data.

    Args:
        estimator: "local" draws outputs of linear and convolution layers independently for each input, "flipout"
            multiplies one draw of the weights by random signs for each input, "weight" draws the weights once a step.
            Weights of other layers are always drawn as weights.
        num_samples: Draws at each step.
        num_draws: Draws of the weights at prediction; None for 32.
        initial_scale: Initial standard deviations, in units of the prior's; with a posterior of earlier data as prior,
            its own.
        kl_weight: Factor on the divergence.
        prior_precision: A factor on the prior's precision, or "validation": 1, then 0.1 and 0.01 as long as the
            held-out log-likelihood gains. A prior that is the posterior of earlier data is used unchanged.
        training: Settings of the training loop; None for Adam with early stopping on 15 % of the data.

    References:
        Graves. Practical variational inference for neural networks. NeurIPS 2011.
        Blundell, Cornebise, Kavukcuoglu, Wierstra. Weight uncertainty in neural networks. ICML 2015.
        Kingma, Salimans, Welling. Variational dropout and the local reparameterization trick. NeurIPS 2015.

    >>> from bayeskit.bnn import gaussian_prior
    >>> from bayeskit.core.likelihood import Gaussian
    >>> x, g = torch.linspace(-1, 1, 40)[:, None], torch.Generator().manual_seed(0)
    >>> prior, method = gaussian_prior(torch.nn.Linear(1, 1)), MeanFieldVI(training=Training(max_epochs=9))
    >>> fit = method.infer(prior, Gaussian(), Data(x, 2 * x), generator=g)
    >>> fit.log_evidence.kind, fit.posterior(x).variance.shape
    ('lower bound', torch.Size([40, 1]))
    """

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
        """Train means and scales of the weights."""
        self.check(prior, likelihood, data)
        validate(self)
        weights, network, data = prepare(prior, data)
        check_frozen(network)
        q = Variational(network, weights, estimator=self.estimator, initial_scale=self.initial_scale)
        return ELBOTraining(q, likelihood, data, self, generator=generator).fit()
