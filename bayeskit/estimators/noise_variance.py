"""The `noise_variance` of a fit: known variances, one for each target, as further columns of the targets."""

from typing import Any

import torch
from torch import Tensor

from bayeskit.core import checks
from bayeskit.core.likelihood import KnownNoise, Likelihood
from bayeskit.core.likelihood.known_noise import with_known_noise
from bayeskit.estimators.scaling import Standardizer

SMALLEST = 1e-10
"""Smallest noise variance, in that of the targets: an exact observation has this one."""


def with_variances(target: Tensor, noise_variance: Any) -> Tensor:
    """Targets (n, k) followed by their noise variances, (n, 2 k), NaN where the target is.

    Args:
        target: In the user's units.
        noise_variance: A number, or (n,) or (n, k) numbers.

    Raises:
        ValueError: Another shape, or a value that is negative, infinite or NaN.

    Examples:
        >>> with_variances(torch.tensor([[1.0], [2.0]]), [0.1, 0.4]).tolist()
        [[1.0, 0.10000000149011612], [2.0, 0.4000000059604645]]
    """
    noise = checks.tensor(noise_variance, name="noise_variance").to(target)
    noise = noise.unsqueeze(-1) if noise.ndim == 1 else noise
    n, k = target.shape
    if noise.ndim and tuple(noise.shape) not in ((n, 1), (n, k)):
        raise ValueError(
            f"`noise_variance` must be a number, or have shape ({n},) or the shape of `y`; got "
            f"{tuple(torch.as_tensor(noise_variance).shape)}"
        )
    noise = noise.expand(n, k).masked_fill(target.isnan(), 0.0)
    if not bool(((noise >= 0) & noise.isfinite()).all()):
        raise ValueError(
            "`noise_variance` must not be negative, infinite or NaN; it is a variance, in the squared unit of y"
        )
    return torch.cat([target, noise.masked_fill(target.isnan(), torch.nan)], dim=-1)


def standardized(scaler: Standardizer, target: Tensor) -> Tensor:
    """Targets (n, k), or with variances (n, 2 k), in standardized units.

    Examples:
        >>> scaler = Standardizer(torch.tensor([1.0]), torch.tensor([2.0]))
        >>> standardized(scaler, torch.tensor([[5.0, 8.0]])).tolist()
        [[2.0, 2.0]]
    """
    k = len(scaler.scale)
    values = scaler(target[:, :k])
    if target.shape[-1] == k:
        return values
    noise = target[:, k:] / scaler.scale.square().to(target.device)
    return torch.cat([values, noise.clamp_min(SMALLEST)], dim=-1)


def noisy(likelihood: Likelihood, known_noise: bool) -> Likelihood:
    """The likelihood of targets with or without known variances.

    Args:
        likelihood: As given by the user, or as a fit has learned it.
        known_noise: Whether `noise_variance` was given with the targets.

    Raises:
        ValueError: It was not, and there is no other noise; or the likelihood is not Gaussian.

    Examples:
        >>> from bayeskit.core.likelihood import Gaussian
        >>> [type(noisy(Gaussian(), known)).__name__ for known in (True, False)]
        ['KnownNoise', 'Gaussian']
    """
    if known_noise:
        return with_known_noise(likelihood)
    if isinstance((*likelihood.components, likelihood)[0], KnownNoise):
        raise ValueError(
            "`noise_variance` must be given in every call, as in the first; start with `likelihood=Gaussian()` to "
            "learn a noise for calls without it"
        )
    return likelihood
