"""Hyperparameters of mean, kernel and likelihood, learned under weak priors."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from gpytorch.kernels import Kernel
from gpytorch.means import ConstantMean, Mean
from gpytorch.priors import NormalPrior
from gpytorch.priors.prior import Prior
from torch import Tensor, nn
from torch.linalg import LinAlgError  # pyright: ignore[reportAttributeAccessIssue]

from bayeskit.core import generators
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.normals import LOG_2PI
from bayeskit.core.types import History
from bayeskit.gp.kernels import mixed_likelihood
from bayeskit.gp.kernels.deep import is_frozen, network_weights
from bayeskit.gp.kernels.evaluate import mean_rows
from bayeskit.gp.process.gaussian_process import GaussianProcess

NOISE_SPREAD = 3.0
"""Standard deviation of the logarithm of the noise variance (above its floor) around its starting value."""

M = TypeVar("M", bound=nn.Module)


@dataclass
class Model:
    """Float64 copies of a prior's mean and kernel and of a likelihood, whose hyperparameters are learned in place.

    Args:
        mean: The mean function.
        kernel: The kernel.
        likelihood: The likelihood of the observations.
        num_latents: Number of independent latent functions g, q.
        mixing: W, (k, q), where the outputs are f = W g; None where they are g itself.
    """

    mean: Mean
    kernel: Kernel
    likelihood: Likelihood
    num_latents: int
    mixing: Tensor | None = None

    def __post_init__(self) -> None:
        noise = self.likelihood.noise_parameter
        self._noise_start = None if noise is None else noise.detach().clone()
        named = [entry for module in (self.mean, self.kernel) for entry in module.named_priors()]
        self._priors = [
            (owner, _log_density(prior), closure)
            for _, owner, prior, closure, _ in named
            if any(p.requires_grad for p in owner.parameters(recurse=False))
        ]

    @property
    def num_outputs(self) -> int:
        """Number of functions that an inference has a posterior over: the independent latent ones, q."""
        return self.num_latents

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters to learn: all that require a gradient, each once."""
        modules = (self.mean, self.kernel, self.likelihood)
        found = [p for module in modules for p in module.parameters()]
        found += [self.mixing] if isinstance(self.mixing, nn.Parameter) else []
        return list({id(p): p for p in found if p.requires_grad}.values())

    def process(self) -> GaussianProcess:
        """The prior at the current hyperparameters, frozen."""
        num_outputs = self.num_latents if self.mixing is None else len(self.mixing)
        return GaussianProcess(self.mean, self.kernel, num_outputs, self.mixing).frozen()

    def frozen_likelihood(self) -> Likelihood:
        """The likelihood with its parameters frozen, so that a further inference learns nothing."""
        return copy.deepcopy(self.likelihood).requires_grad_(False)

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        """Targets minus mean function, one row per output, (k, n), for methods that model outputs independently."""
        if self.mixing is not None:
            raise ValueError(
                "this method models outputs independently and would drop the `mixing` of the prior; use `gp.SVGP`, or "
                "`gp.Exact` for Gaussian noise"
            )
        return y.mT - mean_rows(self.mean, x, self.num_latents)

    def expected_log_prob(self, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
        """E log p(y_i | f_i), (n,), for independent latents g_ip ~ N(mean_ip, variance_ip), each (n, q)."""
        if self.mixing is not None:
            return mixed_likelihood.expected_log_prob(self.likelihood, self.mixing, mean, variance, y)
        return self.likelihood.expected_log_prob(mean, variance, y)

    def site_gradients(self, mean: Tensor, variance: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """First and negated second derivatives of `expected_log_prob` in the means of the latents, each (n, q)."""
        if self.mixing is not None:
            return mixed_likelihood.site_gradients(self.likelihood, self.mixing, mean, variance, y)
        return self.likelihood.site_gradients(mean, variance, y)

    def couplings(self, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
        """Negative second derivatives of log p(y_i | W g) among the latents that a mixing couples, (n, q, q)."""
        assert self.mixing is not None
        return mixed_likelihood.couplings(self.likelihood, self.mixing, mean, variance, y)

    def log_prior(self) -> Tensor:
        """Log prior density: the priors registered on mean and kernel, and a log-normal one on the noise.

        The entries of a learned mixing have a normal one, without which W could grow as the kernel's scale shrinks.
        """
        total = torch.zeros((), dtype=torch.float64, device=_device(self))
        for owner, density, closure in self._priors:
            total = total + density(closure(owner))
        noise = self.likelihood.noise_parameter
        if noise is not None and self._noise_start is not None and noise.requires_grad:
            # On the raw scale, whose gradient remains where a step has made the noise equal to its floor.
            total = total - 0.5 * ((noise - self._noise_start) / NOISE_SPREAD).square().sum()
        if self.mixing is not None and self.mixing.requires_grad:
            total = total - 0.5 * (self.mixing / mixed_likelihood.MIXING_SPREAD).square().sum()
        return total

    def center(self, y: Tensor, weights: Tensor | None) -> None:
        """Set a learnable constant mean to the mean of the targets (n, k), without missing ones (NaN)."""
        if type(self.mean) is ConstantMean and self.mean.raw_constant.requires_grad:
            seen = ~y.isnan()
            w = seen.to(y) if weights is None else seen * weights.unsqueeze(-1)
            average = (w * y.nan_to_num()).sum(0) / w.sum(0).clamp_min(torch.finfo(y.dtype).tiny)  # (k,)
            constant: Any = self.mean.raw_constant
            with torch.no_grad():
                if self.mixing is not None:  # the constants c of the latents with W c nearest to it
                    weight = self.mixing if constant.numel() > 1 else self.mixing.sum(-1, keepdim=True)
                    average = torch.linalg.pinv(weight) @ average
                constant.copy_(average.reshape(constant.shape) if constant.numel() == len(average) else average.mean())

    def values(self) -> list[Tensor]:
        """Copies of the current values of `parameters`."""
        return [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def set(self, values: list[Tensor]) -> None:
        """Restore values returned by `values`."""
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    @torch.no_grad()
    def scatter(self, generator: torch.Generator) -> None:
        """Add a standard normal step to every unconstrained parameter, for a random restart.

        The weights of networks stay: on their scale such a step would erase their initialization.
        """
        kept = {id(p) for p in network_weights(self.kernel)}
        for parameter in self.parameters:
            if id(parameter) not in kept:
                parameter.add_(generators.normal(tuple(parameter.shape), like=parameter, generator=generator))


def learnable(prior: GaussianProcess, likelihood: Likelihood, *, learn: bool) -> Model:
    """A model with copies of prior and likelihood; with `learn=False` none of its parameters requires a gradient."""
    shared: dict[int, Any] = {}  # a parameter of both mean and kernel stays a single one
    mean, kernel = _copied(prior.mean, learn, shared), _copied(prior.kernel, learn, shared)
    mixed = None
    if prior.mixing is not None:
        mixed = nn.Parameter(prior.mixing.detach().double().clone(), learn and prior.mixing.requires_grad)
    return Model(mean, kernel, _copied(likelihood, learn, {}), prior.num_latents, mixed)


def _log_density(prior: Prior) -> Callable[[Any], Tensor]:
    """Log density of independent values, with a fast path for normal priors."""
    if type(prior) is not NormalPrior:
        return lambda value: prior.log_prob(value).sum()
    transform, loc, scale = prior._transform, prior.loc, prior.scale
    offset = scale.log() + LOG_2PI / 2

    def density(value: Tensor) -> Tensor:
        point: Any = value if transform is None else transform(value)
        return -(((point - loc) / scale).square() * 0.5 + offset).sum()

    return density


def _copied(module: M, learn: bool, shared: dict[int, Any]) -> M:
    if any(True for _ in module.parameters()) and is_frozen(module):
        return module  # frozen, and a conditioned kernel holds large tensors
    copied = copy.deepcopy(module, shared).double()
    return copied if learn else copied.requires_grad_(False)


def _device(model: Model) -> torch.device:
    tensors = [*model.kernel.parameters(), *model.kernel.buffers(), *model.likelihood.parameters()]
    return tensors[0].device if tensors else torch.device("cpu")


def best_of_starts(
    model: Model, search: Callable[[], History], *, restarts: int, generator: torch.Generator
) -> History:
    """Optimize from the current hyperparameters and from random ones, and keep the best optimum in `model`.

    Args:
        model: The model, changed in place.
        search: Optimizes the hyperparameters from their current values; its curve "loss" is compared.
        restarts: Number of further random starts.
        generator: Source of randomness.

    Returns:
        The curves of the best search.

    Raises:
        torch.linalg.LinAlgError: A factorization fails in the search from the current hyperparameters.
    """
    start, found = model.values(), []
    for attempt in range(1 + restarts):
        model.set(start)
        if attempt:
            model.scatter(generator)
        try:
            history = search()
        except (LinAlgError, FloatingPointError):
            if not attempt:
                raise
            continue  # at a random start a factorization may fail
        found.append((min(history["loss"]), attempt, model.values(), history))
    _, _, values, history = min(found, key=lambda one: one[:2])
    model.set(values)
    return history
