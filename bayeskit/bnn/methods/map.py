"""MAP: the weights of largest posterior density."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from bayeskit.bnn.networks.functional import evaluate_at, parameters
from bayeskit.bnn.networks.last_layer import scale_outputs
from bayeskit.bnn.pushforward.bayes_net import BayesNet, Linearize, MonteCarlo
from bayeskit.bnn.training.map_training import DEFAULT_TRAINING, QUICK_TRAINING, Trained, train
from bayeskit.bnn.training.validation_search import check_precision
from bayeskit.bnn.weights.weight_posterior import PointWeights
from bayeskit.core import operators
from bayeskit.core.inference import Fit, Inference, Kind
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.optimize import Training, temperature
from bayeskit.core.posterior import Posterior
from bayeskit.core.types import Data
from bayeskit.core.validation_plan import holds_out, planned


@dataclass(eq=False, repr=False)
class MAP(Inference):
    """One network: the weights that maximize `log p(y | f(.; w)) + log p(w)`, with early stopping on held-out data.

    A point estimate has no epistemic uncertainty: the posterior's covariance is zero. The distribution of y given f is
    calibrated on the held-out data: they re-estimate the parameters of the likelihood (the noise), and with
    `temperature_scaling` a temperature T by which the logits are divided.

    Args:
        training: Settings of the training loop; None for Adam with early stopping on 15 % of the data.
        prior_precision: A factor on the prior's precision, or "validation": 1, then 0.1 and 0.01 as long as the
            held-out log-likelihood gains. With fewer than 20 observations none are held out and it is 1, at which a
            network often underfits; give a number below 1 where data are few and nearly free of noise. A prior that is
            the posterior of earlier data is used unchanged.
        temperature_scaling: Fit T by the held-out log-likelihood; for classes only.

    References:
        Guo, Pleiss, Sun, Weinberger. On calibration of modern neural networks. ICML 2017, section 4.2.

    >>> from bayeskit.bnn import gaussian_prior
    >>> from bayeskit.core.likelihood import Gaussian
    >>> x, prior = torch.linspace(-1, 1, 40)[:, None], gaussian_prior(torch.nn.Linear(1, 1))
    >>> fit = MAP().infer(prior, Gaussian(), Data(x, 2 * x), generator=torch.Generator())
    >>> float(fit.posterior(x).variance.max())
    0.0
    """

    training: Training | None = None
    prior_precision: float | str = "validation"
    temperature_scaling: bool = False

    priors: ClassVar[tuple[type[Posterior], ...]] = (BayesNet,)
    kind: ClassVar[Kind] = "point"
    quick: ClassVar[Mapping[str, Any]] = {"training": QUICK_TRAINING}

    def infer(self, prior: Posterior, likelihood: Likelihood, data: Data, *, generator: torch.Generator) -> Fit:
        """Train; the posterior is a point mass."""
        self.check(prior, likelihood, data)
        training = DEFAULT_TRAINING if self.training is None else self.training
        check_precision(self.prior_precision, "validation")
        if self.temperature_scaling and not likelihood.has_labels:
            raise ValueError(
                f"`temperature_scaling` divides logits, and {type(likelihood).__name__} has none; set it to False."
            )
        held_out = holds_out(planned(data, training.validation_split), training.validation_fraction)
        if self.temperature_scaling and not held_out:
            raise ValueError("`temperature_scaling` needs held-out data; set `training.validation_fraction` above 0.")
        with operators.recording() as notes:
            trained = train(prior, likelihood, data, training, precision=self.prior_precision, generator=generator)
            network, diagnostics = trained.network, {"prior precision": trained.precision, **notes}
            diagnostics["held-out data"] = trained.num_held_out
            if self.temperature_scaling and trained.held_out is not None:
                t = diagnostics["temperature"] = _temperature(trained)
                network = scale_outputs(network, 1 / t, trained.held_out.x)
        weights = PointWeights(parameters(network, trained.params))
        exact = likelihood.noise_variance is not None  # then the predictive distribution is Gaussian in closed form
        push_forward = Linearize() if exact else MonteCarlo()
        posterior = BayesNet(network, weights, push_forward)
        return Fit(posterior, trained.likelihood, history=trained.history, diagnostics=diagnostics)


def _temperature(trained: Trained) -> float:
    """The T that maximizes `log p(y | f / T) - (log T)^2 / 2`; the weak prior keeps it finite on separable data."""
    likelihood, data = trained.likelihood, trained.held_out
    assert data is not None
    f = evaluate_at(trained.network, trained.params, data.x).detach().double()
    return temperature(lambda t: float(data.total(likelihood.log_prob(f / t, data.y))))
