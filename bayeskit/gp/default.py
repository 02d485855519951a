"""The prior of an estimator that was given a kernel, or none."""

import copy

import torch
from gpytorch.kernels import Kernel
from gpytorch.means import ConstantMean

from bayeskit.core.types import Inputs
from bayeskit.gp.process import GaussianProcess, default_prior


def kernel_prior(
    kernel: Kernel | None,
    x: Inputs,
    num_outputs: int,
    *,
    dtype: torch.dtype | None = None,
    generator: torch.Generator,
) -> GaussianProcess:
    """A process with a learnt constant mean and a user's kernel, or that of `default_prior`.

    Args:
        kernel: A gpytorch kernel (copied), or None.
        x: Inputs (n, d).
        num_outputs: Latent functions k.
        dtype: Floating type of the hyperparameters, float64 if None; values are formed in float64 whatever it is.
        generator: Unused: nothing here is random. Every builder of priors takes it.

    Raises:
        TypeError: `kernel` is not a gpytorch kernel.

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> kernel_prior(RBFKernel(), torch.zeros(3, 1), 2, generator=torch.Generator()).num_outputs
        2
    """
    del generator
    if kernel is None:
        process = default_prior(x[:], num_outputs)
    elif isinstance(kernel, Kernel):
        process = GaussianProcess(
            ConstantMean(batch_shape=torch.Size([num_outputs])), copy.deepcopy(kernel), num_outputs
        )
    else:
        raise TypeError(f"`kernel` must be a gpytorch.kernels.Kernel or None; got {type(kernel).__name__}")
    for module in (process.mean, process.kernel):
        module.to(device=x.device, dtype=dtype or torch.float64)
    return process
