"""Recursive Bayesian updating with a prior, a likelihood and an inference rather than an estimator."""

import copy
from typing import Any, Self

import torch

from bayeskit.core.inference import Inference
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.posterior import Posterior
from bayeskit.core.predictive import Predictive
from bayeskit.core.types import Data


class Fold:
    """Bayes' rule batch after batch: `posterior = infer(posterior, likelihood, batch)`.

    Args:
        inference: The method; its posterior must be a valid prior of it.
        prior: Distribution of the function before any data.
        likelihood: Distribution of the observations given the function; learned parameters carry over to later batches.
        random_state: Seed of all batches' randomness.

    Attributes:
        posterior: The current posterior; the prior at first.
        likelihood: The current likelihood.

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> from gpytorch.means import ZeroMean
        >>> from bayeskit import gp
        >>> from bayeskit.core.likelihood import Gaussian
        >>> prior = gp.GaussianProcess(ZeroMean(), RBFKernel().requires_grad_(False))
        >>> fold = Fold(gp.Exact(), prior, Gaussian(0.01).requires_grad_(False))
        >>> x = torch.linspace(0, 1, 6, dtype=torch.float64)[:, None]
        >>> fold = fold.partial_fit(x[:3], x[:3].sin()).partial_fit(x[3:], x[3:].sin())
        >>> round(float(fold.predictive(x[5:]).mean), 2)
        0.82
    """

    def __init__(self, inference: Inference, prior: Posterior, likelihood: Likelihood, *, random_state: int = 0):
        self.inference, self.posterior, self.likelihood = inference, prior, copy.deepcopy(likelihood)
        self.random_state = random_state

    def partial_fit(self, x: Any, y: Any) -> Self:
        """Learn from a batch.

        Args:
            x: Inputs (n, *input_shape), as tensors or what `Data` takes.
            y: Targets (n, k), or integer codes (n,).
        """
        generator = torch.Generator().manual_seed(self.random_state)
        data = Data(x if torch.is_tensor(x) else torch.as_tensor(x), torch.as_tensor(y))
        fit = self.inference.infer(self.posterior, self.likelihood, data, generator=generator)
        self.posterior, self.likelihood = fit.posterior, fit.likelihood
        return self

    def predictive(self, x: Any) -> Predictive:
        """The predictive distribution at each input."""
        with torch.no_grad():
            return self.likelihood.predictive(self.posterior(torch.as_tensor(x)))
