"""Function values as BoTorch posteriors."""

import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from linear_operator import to_linear_operator
from torch import Tensor

from bayeskit.core import generators, operators
from bayeskit.core.operators.algebra import dense_blocks
from bayeskit.core.posterior import FunctionValues, GaussianValues, MixtureValues, SampledValues
from bayeskit.integrations.botorch_observations import variances
from bayeskit.integrations.optional_import import needed

with needed("BoTorch", extra="botorch"):
    from botorch.posteriors import GPyTorchPosterior
    from botorch.posteriors.ensemble import EnsemblePosterior

NUM_DRAWS = 256
"""Samples in the ensemble posterior of a mixture; their mean has an error of 6 % of the standard deviation."""


NOT_GAUSSIAN = (
    "the posterior is one of fixed functions; use an acquisition function that draws from `model.posterior`, or a "
    "method with a Gaussian posterior"
)


class NotGaussian(NotImplementedError, AttributeError):
    """There is no such property: not supported, and for `hasattr` not there."""


class FunctionsPosterior(EnsemblePosterior):
    """Fixed functions (*b, s, q, m), equally likely; entropy searches, which need a Gaussian, are told so."""

    @property
    def distribution(self) -> MultivariateNormal:
        """None.

        Raises:
            NotGaussian: Always.
        """
        raise NotGaussian(f"no Gaussian distribution: {NOT_GAUSSIAN}")


def blocks(values: FunctionValues, q: int) -> "tuple[Tensor, Tensor] | Tensor":
    """The joint distribution at each block of q inputs.

    Args:
        values: The function values at b q inputs.
        q: The number of inputs per block.

    Returns:
        Mean (b, q, m) and covariance (b, q m, q m), point-major; or functions (b, s, q, m).
    """
    m = values.mean.shape[-1]
    if isinstance(values, SampledValues):
        return values.draws.unflatten(1, (-1, q)).movedim(0, 1)
    if isinstance(values, GaussianValues):
        mean, variance = values.moments
        covariance = variance.unsqueeze(-1) if q * m == 1 else dense_blocks(values.covariance.to_dense(), q * m)
        return mean.unflatten(0, (-1, q)), covariance
    assert isinstance(values, MixtureValues)
    counts = (values.weights * NUM_DRAWS).round().clamp(min=1).long().tolist()
    functions = []
    for part, count in zip(values.components, counts, strict=True):
        found = blocks(part, q)
        functions.append(_drawn(*found, count) if isinstance(found, tuple) else found)
    return torch.cat(functions, 1)


def _drawn(mean: Tensor, covariance: Tensor, count: int) -> Tensor:
    """Fixed samples (b, s, q, m), from the same normal numbers for every block."""
    z = generators.normal((count, covariance.shape[-1]), like=mean, generator=torch.Generator().manual_seed(0))
    tril = operators.factorize(covariance, name="the covariance of q inputs").tril.to(mean)
    return mean.unsqueeze(1) + torch.einsum("bij,sj->bsi", tril, z).unflatten(-1, mean.shape[1:])


def gaussian(moments: tuple[Tensor, Tensor], noise: Tensor | None, outputs: list[int] | None) -> GPyTorchPosterior:
    """A Gaussian, with noise on the diagonal and of selected outputs, as BoTorch's posterior.

    Args:
        moments: Mean (*b, q, m) and covariance (*b, q m, q m).
        noise: Variances that broadcast against the mean, or None.
        outputs: Which outputs, 0 to m - 1; None for all.
    """
    mean, covariance = moments
    if noise is not None:
        covariance = covariance + torch.diag_embed(variances(noise, mean.shape).flatten(-2))
    if outputs is not None:
        mean, covariance = selected((mean, covariance), outputs)
    if mean.shape[-1] == 1:
        return GPyTorchPosterior(MultivariateNormal(mean.squeeze(-1), to_linear_operator(covariance)))
    return GPyTorchPosterior(MultitaskMultivariateNormal(mean, to_linear_operator(covariance)))


def selected(moments: tuple[Tensor, Tensor], outputs: list[int]) -> tuple[Tensor, Tensor]:
    """The moments of some outputs.

    Args:
        moments: Mean (*b, q, m) and covariance (*b, q m, q m).
        outputs: Which, 0 to m - 1.
    """
    mean, covariance = moments
    rows = torch.arange(mean.shape[-2], device=mean.device)[:, None] * mean.shape[-1]
    rows = (rows + torch.as_tensor(outputs, device=mean.device)).flatten()
    return mean[..., outputs], covariance[..., rows, :][..., rows]


def noisy(functions: Tensor, noise: Tensor) -> Tensor:
    """Functions (*b, s, q, m) with fixed noise added, each repeated up to `NUM_DRAWS` in all."""
    repeats = max(1, NUM_DRAWS // functions.shape[-3])
    wide = functions.repeat_interleave(repeats, dim=-3)
    z = generators.normal(tuple(wide.shape[-3:]), like=wide, generator=torch.Generator().manual_seed(0))
    spread = variances(noise.to(wide), torch.Size([*functions.shape[:-3], *functions.shape[-2:]])).sqrt()
    return wide + spread.unsqueeze(-3) * z
