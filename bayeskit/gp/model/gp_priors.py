"""GP priors: the default for inputs of any scale, one with a user's kernel, and correlated outputs."""

import copy
import math
from typing import Any

import torch
from gpytorch.constraints import Positive
from gpytorch.kernels import Kernel, MaternKernel, ScaleKernel
from gpytorch.means import ConstantMean
from gpytorch.priors import NormalPrior
from torch import Tensor, nn

from bayeskit.core import checks
from bayeskit.core.inputs import one_tensor
from bayeskit.core.types import Inputs
from bayeskit.gp.kernels.mixed_likelihood import starting_mixing
from bayeskit.gp.model.inducing_points import spread
from bayeskit.gp.model.mean_functions import mean_function
from bayeskit.gp.process.gaussian_process import GaussianProcess


def kernel_prior(
    kernel: Kernel | None,
    x: Inputs,
    num_outputs: int,
    num_latents: int | None = None,
    *,
    own_kernels: bool = False,
    mean: Any = None,
    dtype: torch.dtype | None = None,
    generator: torch.Generator,
) -> GaussianProcess:
    """A process with a learned constant mean and a user's kernel, or that of `default_prior`.

    Args:
        kernel: A gpytorch kernel (copied), or None.
        x: Inputs (n, d).
        num_outputs: k, as many as the likelihood needs.
        num_latents: q for correlated outputs, mixtures of q functions; None for independent ones.
        mean: See `mean_function`; None for a learned constant.
        own_kernels: As in `default_prior`; a given kernel is shared unless it has a batch shape.
        dtype: Floating type of the hyperparameters, float64 if None; values are formed in float64 whatever it is.
        generator: Unused; part of the signature of every prior builder.

    Raises:
        TypeError: `kernel` is not a gpytorch kernel.
        ValueError: `num_latents` is not a positive integer.

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> kernel_prior(RBFKernel(), torch.zeros(3, 1), 2, generator=torch.Generator()).num_outputs
        2
    """
    del generator
    if num_latents is not None:
        checks.positive(num_latents, name="num_latents", integer=True)
    if kernel is None:
        process = default_prior(one_tensor(x), num_outputs, num_latents, own_kernels=own_kernels)
    elif isinstance(kernel, Kernel):
        functions = num_latents or num_outputs
        process = GaussianProcess(ConstantMean(batch_shape=torch.Size([functions])), copy.deepcopy(kernel), functions)
        process = process if num_latents is None else coregionalized(process, num_outputs)
    else:
        raise TypeError(f"`kernel` must be a gpytorch.kernels.Kernel or None; got {type(kernel).__name__}")
    if mean is not None:
        function = mean_function(mean, one_tensor(x).shape[-1], process.num_latents)
        process = GaussianProcess(function, process.kernel, process.num_outputs, process.mixing)
    for module in (process.mean, process.kernel):
        module.to(device=x.device, dtype=dtype or torch.float64)
    if process.mixing is not None:
        process.mixing.data = process.mixing.data.to(device=x.device, dtype=dtype or torch.float64)
    return process


def default_prior(
    x: Tensor, num_outputs: int = 1, num_latents: int | None = None, *, own_kernels: bool = False
) -> GaussianProcess:
    """A process for targets of about unit variance: constant mean, scaled Matern-5/2 kernel, a lengthscale a feature.

    Initial values come from the distinct inputs: lengthscale_j = sqrt(d) std(x_j), so that the distance between two
    inputs is about the same number of lengthscales for every d. Hyperparameters have weak priors instead of bounds:
    their logarithms are normal around the initial values, with standard deviation sqrt(3) for lengthscales and 3 for
    the output scale.

    With `num_latents=q` the outputs are correlated: mixtures f = W g of q functions, each with such a kernel of its own
    (the linear model of coregionalization), W learned from `kernels.mixed_likelihood.starting_mixing`.

    Args:
        x: The inputs to model, (n, d).
        num_outputs: k.
        num_latents: q; None for independent outputs.
        own_kernels: Whether independent outputs have a kernel each, and not one for all.

    Returns:
        A process with learnable hyperparameters.

    References:
        Hvarfner, Hellsten and Nardi (2024), "Vanilla Bayesian Optimization Performs Great in High Dimensions",
        section 4, for lengthscales that grow with sqrt(d).

    Examples:
        >>> prior = default_prior(torch.tensor([[0.0, 5.0], [2.0, 5.0]]))
        >>> prior.kernel.base_kernel.lengthscale.tolist()  # a constant column has no scale of its own
        [[1.4142135623730951, 1.4142135623730951]]
    """
    d = x.shape[-1]
    unit = spread(torch.unique(x.double(), dim=0)) if len(x) else torch.ones(d, dtype=torch.float64, device=x.device)
    start = (unit * math.sqrt(d)).log().unsqueeze(0)  # (1, d)
    kernels = num_latents or (num_outputs if own_kernels and num_outputs > 1 else None)
    batch = torch.Size([] if kernels is None else [kernels])
    base = MaternKernel(
        nu=2.5,
        ard_num_dims=d,
        batch_shape=batch,
        lengthscale_prior=NormalPrior(start, torch.full_like(start, math.sqrt(3)), transform=torch.log),
        lengthscale_constraint=_log_scale(),
    )
    zero = torch.zeros((), dtype=torch.float64, device=x.device)
    kernel = ScaleKernel(
        base,
        batch_shape=batch,
        outputscale_prior=NormalPrior(zero, zero + 3, transform=torch.log),
        outputscale_constraint=_log_scale(),
    )
    base.raw_lengthscale = nn.Parameter(start.expand(*batch, 1, d).clone())
    kernel.raw_outputscale = nn.Parameter(zero.expand(batch).clone())
    mean = ConstantMean(batch_shape=batch or torch.Size([num_outputs])).to(zero)
    latents = GaussianProcess(mean, kernel, num_latents or num_outputs)
    return latents if num_latents is None else coregionalized(latents, num_outputs)


def coregionalized(latents: GaussianProcess, num_outputs: int) -> GaussianProcess:
    """Correlated outputs f = W g of independent functions g, with a learned W.

    Args:
        latents: The process g of q independent outputs, with one kernel for all (the intrinsic coregionalization
            model) or one each (the linear model of coregionalization).
        num_outputs: k.

    Returns:
        The process f, with W from `kernels.mixed_likelihood.starting_mixing`.

    Examples:
        >>> latents = default_prior(torch.zeros(3, 1), num_outputs=2)
        >>> coregionalized(latents, num_outputs=5).mixing.shape
        torch.Size([5, 2])
    """
    if latents.mixing is not None:
        raise ValueError("`latents` must be independent functions; this process has a `mixing` already")
    device = next(iter(latents.kernel.parameters()), torch.zeros(())).device
    mixing = nn.Parameter(starting_mixing(num_outputs, latents.num_outputs).to(device))
    return GaussianProcess(latents.mean, latents.kernel, num_outputs, mixing)


def _log_scale() -> Positive:
    """A positive parameter optimized on the logarithmic scale, where a step is a relative change."""
    exponential: Any = torch.exp
    return Positive(transform=exponential, inv_transform=torch.log)
