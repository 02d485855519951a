"""Influence of each observation on a fitted network, from the posterior of its weights without refitting."""

from dataclasses import replace

import torch
from torch import Tensor

from bayeskit.bnn.pushforward.bayes_net import BayesNet, linearize
from bayeskit.bnn.weights.weight_posterior import GaussianWeights
from bayeskit.core import checks
from bayeskit.core.inference import Fit
from bayeskit.core.posterior import GaussianValues
from bayeskit.core.predictive import Predictive
from bayeskit.core.types import Data


def sensitivity(fit: Fit, data: Data) -> Tensor:
    """The change of the function at each training input if that observation is left out, to first order.

    With weights N(m, S), leaving out observation i of weight c_i changes the mean by `-c_i S J_i' a_i`, where
    `a_i = d log p(y_i | f) / d f` at the mean and J_i is the derivative of the outputs. The function there changes by

        f_-i(x_i) - f(x_i) = -c_i J_i S J_i' a_i.

    Exact as a derivative in c_i for a linear network with Gaussian noise and the full covariance; with a diagonal one,
    such as that of IVON, the influence through correlations between weights is neglected.

    Args:
        fit: Of a method with a Gaussian posterior over the weights: `IVON`, `Laplace`.
        data: The training data.

    Returns:
        (n, k).

    Raises:
        TypeError: The fit holds no Gaussian over weights.

    References:
        Nickl, Xu, Tailor, Möllenhoff, Khan. The memory-perturbation equation: understanding model's sensitivity to
        data. NeurIPS 2023, equation 12.

    >>> from bayeskit.bnn import Laplace, gaussian_prior
    >>> from bayeskit.core.likelihood import Gaussian
    >>> x, g = torch.linspace(-1, 1, 40)[:, None], torch.Generator().manual_seed(0)
    >>> y = 2 * x
    >>> y[7] += 3.0
    >>> data = Data(x, y)
    >>> fit = Laplace().infer(gaussian_prior(torch.nn.Linear(1, 1)), Gaussian(), data, generator=g)
    >>> int(sensitivity(fit, data).abs().argmax())  # the outlier
    7
    """
    return _left_out(fit, data).mean - _values(fit, data).mean


def leave_one_out(fit: Fit, data: Data) -> Predictive:
    """The leave-one-out predictive distribution of each observation, estimated from one fit.

    The mean of the function is changed by `sensitivity`; its variance is that with the observation, slightly too small.
    Hyperparameters are not refitted, so they depend on every observation.

    Args:
        fit: As for `sensitivity`.
        data: The training data.

    Returns:
        One distribution for each observation; the sum of its `log_prob(data.y)` estimates the expected log predictive
        density.

    >>> from bayeskit.bnn import Laplace, gaussian_prior
    >>> from bayeskit.core.likelihood import Gaussian
    >>> x, g = torch.linspace(-1, 1, 40)[:, None], torch.Generator().manual_seed(0)
    >>> data = Data(x, 2 * x)
    >>> fit = Laplace().infer(gaussian_prior(torch.nn.Linear(1, 1)), Gaussian(), data, generator=g)
    >>> leave_one_out(fit, data).log_prob(data.y).shape
    torch.Size([40])
    """
    return fit.likelihood.predictive(_left_out(fit, data))


def _values(fit: Fit, data: Data) -> GaussianValues:
    """The Gaussian values of the linearized network at the training inputs."""
    checks.same_length(data.x, data.y, names=("data.x", "data.y"))
    posterior = fit.posterior
    if not isinstance(posterior, BayesNet) or not isinstance(posterior.weights, GaussianWeights):
        raise TypeError(
            "`fit` must hold a network with Gaussian weights, as that of `bnn.IVON` or `bnn.Laplace`; got "
            f"{type(getattr(posterior, 'weights', posterior)).__name__}"
        )
    return linearize(posterior.network, posterior.weights, data.x)


def _left_out(fit: Fit, data: Data) -> GaussianValues:
    """The values with the mean of each observation as if it was left out."""
    with torch.no_grad():
        values = _values(fit, data)
        blocks = values.output_covariance().to(values.mean)  # (n, k, k)
    with torch.enable_grad():
        f = values.mean.detach().requires_grad_()
        (slope,) = torch.autograd.grad(fit.likelihood.log_prob(f, data.y).sum(), f)  # a, (n, k)
    if data.weights is not None:
        slope = slope * data.weights.to(slope).unsqueeze(-1)
    return replace(values, mean=values.mean - (blocks @ slope.unsqueeze(-1)).squeeze(-1))
