"""gpytorch's likelihoods as those of this library."""

from typing import Any

import torch
from gpytorch import likelihoods as theirs
from torch import Tensor

from bayeskit.core.likelihood import Bernoulli, Categorical, Gaussian, Likelihood, StudentT


def likelihood_from_gpytorch(likelihood: Any) -> Likelihood:
    """The same likelihood in this library, with fixed parameters.

    Args:
        likelihood: `GaussianLikelihood`, `FixedNoiseGaussianLikelihood` with one noise for all rows,
            `MultitaskGaussianLikelihood` of rank 0, `BernoulliLikelihood` (a probit), `SoftmaxLikelihood` without
            mixing weights, or `StudentTLikelihood`.

    Raises:
        TypeError: There is no such likelihood here; the message says why.

    Examples:
        >>> likelihood_from_gpytorch(theirs.BernoulliLikelihood()).link
        'probit'
    """
    kind = type(likelihood)
    if kind is theirs.GaussianLikelihood:
        return _gaussian(likelihood.noise)
    if kind is theirs.FixedNoiseGaussianLikelihood and _constant(likelihood.noise):
        return _gaussian(likelihood.noise[..., :1])
    if kind is theirs.MultitaskGaussianLikelihood and likelihood.rank == 0:
        shared = likelihood.noise if likelihood.has_global_noise else 0.0
        own = likelihood.task_noises if likelihood.has_task_noise else torch.zeros(likelihood.num_tasks)
        return _gaussian(own + shared)
    if kind is theirs.BernoulliLikelihood:
        return Bernoulli("probit")
    if kind is theirs.SoftmaxLikelihood and likelihood.mixing_weights is None:
        return Categorical(likelihood.num_classes)
    if kind is theirs.StudentTLikelihood and likelihood.deg_free.numel() == 1:
        scale = likelihood.noise.detach().double().sqrt()
        return StudentT(df=float(likelihood.deg_free.detach()), scale=scale, learn=False)
    raise TypeError(f"`likelihood` of type {kind.__name__} has no counterpart here: {_reason(likelihood)}")


def _gaussian(noise: Tensor) -> Gaussian:
    return Gaussian(noise.detach().double().reshape(-1), learn=False)


def _constant(noise: Tensor) -> bool:
    return bool((noise == noise[..., :1]).all())


def _reason(likelihood: Any) -> str:
    """Why a likelihood is refused."""
    if isinstance(likelihood, theirs.FixedNoiseGaussianLikelihood):
        return "the noise at a new input is unknown where each data point has its own"
    if isinstance(likelihood, theirs.MultitaskGaussianLikelihood):
        return "the noise of the outputs is correlated, and outputs are independent here given the function"
    if isinstance(likelihood, theirs.SoftmaxLikelihood):
        return "it mixes the latents by learned weights; build it with `mixing_weights=False`"
    if isinstance(likelihood, theirs.PoissonLikelihood):
        return "its rate is softplus(f), and that of `Poisson` here is exp(f)"
    return "write a `Likelihood` with its `distribution`, a class of five lines"
