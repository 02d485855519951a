"""A likelihood of your own is five lines: the distribution of y given f. Everything else is derived from it.

The targets are positive and their spread grows with their size, so the noise is Gamma. A Gaussian on the same Gaussian
process is the comparison: the printed numbers are held-out negative log likelihoods and the fraction of its
90 % intervals that contain negative values.
"""

import numpy as np
import torch

from bayeskit import GPRegressor, gp, metrics
from bayeskit.core.likelihood import Gaussian, Likelihood


class Gamma(Likelihood):
    """y ~ Gamma with mean exp(f) and a fixed shape."""

    target = "count"  # positive numbers that must not be standardized

    def distribution(self, f):
        shape = f.new_tensor(4.0)
        return torch.distributions.Independent(torch.distributions.Gamma(shape, shape * (-f).exp()), 1)


rng = np.random.default_rng(0)
x = rng.uniform(-3, 3, (240, 1))
y = rng.gamma(4.0, np.exp(1 + np.sin(2 * x[:, 0])) / 4)

for likelihood in (Gamma(), Gaussian()):
    model = GPRegressor(inference=gp.SVGP(num_inducing=20), likelihood=likelihood, random_state=0).fit(x[:160], y[:160])
    predictive = model.predictive(x[160:])
    low, _ = predictive.interval(0.9)
    nll = metrics.negative_log_likelihood(predictive, y[160:])
    print(
        f"{type(likelihood).__name__:9s} negative log likelihood {nll:.3f}"
        f"   90 % coverage {metrics.coverage(predictive, y[160:], level=0.9):.2f}"
        f"   intervals below zero {float((low < 0).double().mean()):.0%}"
        f"   predictive: {predictive.rule}"
    )
