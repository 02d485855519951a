"""What is learnt besides the function: parameters of mean, kernel and likelihood, held by weak priors."""

import copy
import math
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from gpytorch.kernels import Kernel
from gpytorch.means import ConstantMean, Mean
from gpytorch.priors import NormalPrior
from gpytorch.priors.prior import Prior
from torch import Tensor, nn

from bayeskit.core import random
from bayeskit.core.likelihood import Gaussian, Likelihood
from bayeskit.gp.gram import mean_rows
from bayeskit.gp.process import GaussianProcess

NOISE_SPREAD = 3.0
"""Standard deviation of the logarithm of the noise variance (above its floor) around its starting value."""

LOG_ROOT_TWO_PI = 0.5 * math.log(2 * math.pi)

M = TypeVar("M", bound=nn.Module)


@dataclass
class Model:
    """Copies of a prior's mean and kernel and of a likelihood, in float64, to be changed by learning.

    Args:
        mean: The mean function.
        kernel: The kernel.
        likelihood: The law of the observations.
        num_outputs: k.
    """

    mean: Mean
    kernel: Kernel
    likelihood: Likelihood
    num_outputs: int

    def __post_init__(self) -> None:
        self._noise_start = (
            self.likelihood.raw_noise.detach().clone() if isinstance(self.likelihood, Gaussian) else None
        )

        named = [entry for module in (self.mean, self.kernel) for entry in module.named_priors()]
        self._priors = [
            (owner, prior, closure)
            for _, owner, prior, closure, _ in named
            if any(p.requires_grad for p in owner.parameters(recurse=False))
        ]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is to be learnt: everything that needs a gradient."""
        modules = (self.mean, self.kernel, self.likelihood)
        return [p for module in modules for p in module.parameters() if p.requires_grad]

    def process(self) -> GaussianProcess:
        """The prior at the present hyperparameters, frozen."""
        return GaussianProcess(self.mean, self.kernel, self.num_outputs).frozen()

    def frozen_likelihood(self) -> Likelihood:
        """The likelihood with its parameters frozen, so that a further inference only conditions."""
        return copy.deepcopy(self.likelihood).requires_grad_(False)

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        """Targets minus mean function, one row an output: (k, n)."""
        return y.mT - mean_rows(self.mean, x, self.num_outputs)

    def expected_log_prob(self, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
        """E log p(y_i | f_i), (n,), for independent latents f_ij ~ N(mean_ij, variance_ij), each (n, k)."""
        return self.likelihood.expected_log_prob(mean, variance, y)

    def site_gradients(self, mean: Tensor, variance: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """First and negated second derivatives of `expected_log_prob` in the means of the latents, each (n, k)."""
        return self.likelihood.site_gradients(mean, variance, y)

    def log_prior(self) -> Tensor:
        """Log density of what is learnt: priors registered on mean and kernel, and a log-normal one on the noise."""
        total = torch.zeros((), dtype=torch.float64, device=_device(self))
        for owner, prior, closure in self._priors:
            total = total + _log_density(prior, closure(owner))
        noise = self.likelihood.raw_noise if isinstance(self.likelihood, Gaussian) else None
        if noise is not None and noise.requires_grad:
            # On the raw scale, which also pulls back a search that stepped so far down that noise = floor to rounding.
            shift = noise - self._noise_start  # pyright: ignore[reportOperatorIssue]
            total = total - 0.5 * (shift / NOISE_SPREAD).square().sum()
        return total

    def center(self, y: Tensor, weights: Tensor | None) -> None:
        """Start a learnable constant mean at the mean of the targets (n, k)."""
        if type(self.mean) is ConstantMean and self.mean.raw_constant.requires_grad:
            w = torch.ones_like(y[:, 0]) if weights is None else weights
            average = (w.unsqueeze(-1) * y).sum(0) / w.sum()  # (k,)
            constant: Any = self.mean.raw_constant
            with torch.no_grad():
                constant.copy_(average.reshape(constant.shape) if constant.numel() == len(average) else average.mean())

    def values(self) -> list[Tensor]:
        """Copies of the present values of `parameters`."""
        return [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def set(self, values: list[Tensor]) -> None:
        """Put values kept by `values` back."""
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    @torch.no_grad()
    def scatter(self, generator: torch.Generator) -> None:
        """Move every parameter by a standard normal step in its unconstrained form, for another start."""
        for parameter in self.parameters:
            parameter.add_(random.normal(tuple(parameter.shape), like=parameter, generator=generator))


def learnable(prior: GaussianProcess, likelihood: Likelihood, *, learn: bool) -> Model:
    """Copies to learn on; with `learn=False`, or where all is frozen already, nothing in them needs a gradient."""
    mean, kernel = _copied(prior.mean, learn), _copied(prior.kernel, learn)
    return Model(mean, kernel, _copied(likelihood, learn), prior.num_outputs)


def _log_density(prior: Prior, value: Tensor) -> Tensor:
    """Log density of independent values, without the layers of torch's distributions for the usual one."""
    if type(prior) is NormalPrior:
        point: Any = value if prior._transform is None else prior._transform(value)
        return (-0.5 * ((point - prior.loc) / prior.scale).square() - prior.scale.log() - LOG_ROOT_TWO_PI).sum()
    return prior.log_prob(value).sum()


def _copied(module: M, learn: bool) -> M:
    parameters = list(module.parameters())
    if (
        parameters
        and not any(p.requires_grad for p in parameters)
        and all(p.dtype == torch.float64 for p in parameters)
    ):
        return module  # nothing will change it, and a conditioned kernel carries large tensors
    copied = copy.deepcopy(module).double()
    return copied if learn else copied.requires_grad_(False)


def _device(model: Model) -> torch.device:
    tensors = [*model.kernel.parameters(), *model.kernel.buffers(), *model.likelihood.parameters()]
    return tensors[0].device if tensors else torch.device("cpu")
