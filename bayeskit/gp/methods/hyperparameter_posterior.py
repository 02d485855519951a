"""The posterior density of hyperparameters in their unconstrained values.

A gpytorch prior p is the density of u = t(g(raw)): g takes the raw value to the hyperparameter, t is the prior's own
transform. A sampler needs the density of raw itself, p(u) |du / draw|. For `default_prior` raw is the logarithm, and
so is t, so the volume |du / draw| is one; a Gamma prior on a softplus lengthscale has one that counts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gpytorch
import torch
from gpytorch.constraints import GreaterThan, Interval
from torch import Tensor, nn
from torch.linalg import LinAlgError  # pyright: ignore[reportAttributeAccessIssue]

from bayeskit.core.types import Data
from bayeskit.gp.model.hyperparameters import Model
from bayeskit.mcmc import Position

SPREAD = 3.0
"""Standard deviation of the default prior around the start: of the logarithm of a positive number, of a constant mean
in units of the targets' standard deviation, of other parameters in their raw form."""


class HyperparameterPosterior:
    """log p(y | theta) + log p(theta) over the raw values of a model's parameters, side by side.

    The priors are those of `Model.log_prior` (registered on mean and kernel, log-normal on the noise), each with the
    volume that turns it into a density of the raw value. A parameter without a prior would make the posterior
    improper: it gets a normal prior of standard deviation `SPREAD` around its start.

    Args:
        model: Mean, kernel and likelihood at their start; evaluating the density moves it.
        evidence: log p(y | theta) at the model's present values, differentiable.
        rows: The data; the standard deviation of the targets is the unit of a mean.

    Raises:
        ValueError: A prior is not on one parameter, elementwise.

    Examples:
        >>> from bayeskit.core.likelihood import Gaussian
        >>> from bayeskit.gp import default_prior
        >>> from bayeskit.gp.model.hyperparameters import learnable
        >>> rows = Data(torch.zeros(2, 1, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64))
        >>> model = learnable(default_prior(rows.x), Gaussian(), learn=True)
        >>> density = HyperparameterPosterior(model, lambda: torch.zeros(()), rows)
        >>> density({"raw": torch.zeros(3, 4, dtype=torch.float64)}).shape  # noise, scales, mean: four numbers
        torch.Size([3])
    """

    def __init__(self, model: Model, evidence: Callable[[], Tensor], rows: Data):
        self.model, self.evidence = model, evidence
        self.priors = list(_priors(model))
        covered = {id(one.parameter) for one in self.priors}
        covered.add(id(model.likelihood.noise_parameter))
        rest = [part for part in _parts(model) if id(part.parameter) not in covered]
        # A number that stands for function values is measured in units of the targets.
        unit = float(rows.y[~rows.y.isnan()].std(correction=0)) if len(rows) > 1 else 1.0
        self.weak = [(part, part.coordinate().detach(), SPREAD * (unit or 1.0 if part.mean else 1.0)) for part in rest]

    def __call__(self, position: Position) -> Tensor:
        """The log density of each chain, (c,), from raw values (c, p), differentiable in them."""
        return torch.stack([_At.apply(self, raw) for raw in position["raw"]])  # type: ignore[misc]

    def raw(self) -> Tensor:
        """The model's present raw values, (p,)."""
        return torch.cat([value.reshape(-1) for value in self.model.values()])

    def move(self, raw: Tensor) -> None:
        """Set the model's raw values (p,)."""
        shapes = [parameter.shape for parameter in self.model.parameters]
        parts = raw.detach().split([shape.numel() for shape in shapes])
        self.model.set([part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)])

    def present(self) -> Tensor:
        """The log density at the model's present values, differentiable in its parameters."""
        return self.evidence() + self.model.log_prior() + self._volume() + self._weak()

    def readable(self, draws: Tensor) -> dict[str, Tensor]:
        """Constrained hyperparameters at raw draws (s, p): name to (s, *shape)."""
        found: dict[str, list[Tensor]] = {}
        for raw in draws:
            self.move(raw)
            for name, value in self._named():
                found.setdefault(name, []).append(value.detach().clone())
        return {name: torch.stack(values) for name, values in found.items()}

    def _volume(self) -> Tensor:
        """The log Jacobians log |du / draw| of all priors, summed."""
        total = torch.zeros((), dtype=torch.float64, device=self.raw().device)
        for one in (*self.priors, *(part for part, _, _ in self.weak)):
            (slope,) = torch.autograd.grad(one.coordinate().sum(), one.parameter, create_graph=True)
            total = total + slope.abs().log().sum()
        return total

    def _weak(self) -> Tensor:
        """The normal densities of parameters without a prior, up to a constant."""
        total = torch.zeros((), dtype=torch.float64, device=self.raw().device)
        for part, start, spread in self.weak:
            total = total - 0.5 * ((part.coordinate() - start) / spread).square().sum()
        return total

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        for part in _parts(self.model):
            yield part.name, part.value()
        noise, parameter = self.model.likelihood.noise_variance, self.model.likelihood.noise_parameter
        if noise is not None and parameter is not None and parameter.requires_grad:
            yield "noise", noise


@dataclass(frozen=True, eq=False)
class _Prior:
    """A registered prior: a density of u = t(g(raw))."""

    parameter: nn.Parameter
    prior: Any
    owner: nn.Module
    closure: Callable[[nn.Module], Tensor]

    def coordinate(self) -> Tensor:
        """The number u that the prior is a density of."""
        return self.prior.transform(self.closure(self.owner))


@dataclass(frozen=True, eq=False)
class _Part:
    """A learned parameter of the mean or the kernel."""

    name: str
    parameter: nn.Parameter
    constraint: Interval | None
    mean: bool

    def value(self) -> Tensor:
        """The constrained hyperparameter."""
        return self.parameter if self.constraint is None else self.constraint.transform(self.parameter)

    def coordinate(self) -> Tensor:
        """The logarithm of a positive number, the raw form of anything else."""
        return self.value().log() if isinstance(self.constraint, GreaterThan) else self.parameter * 1.0


def _priors(model: Model) -> Iterator[_Prior]:
    """The priors of mean and kernel on learned parameters."""
    for module in (model.mean, model.kernel):
        for name, owner, prior, closure, _ in module.named_priors():
            u = prior.transform(closure(owner))
            if not u.requires_grad:
                continue
            parameters = [p for p in owner.parameters() if p.requires_grad]
            slopes = torch.autograd.grad(u.sum(), parameters, allow_unused=True)
            touched = [p for p, slope in zip(parameters, slopes, strict=True) if slope is not None]
            if len(touched) != 1 or touched[0].numel() != u.numel():
                raise ValueError(
                    f"the prior `{name}` must be on one parameter, elementwise, to be a density of it; it is on "
                    f"{u.numel()} numbers made of {sum(p.numel() for p in touched)}"
                )
            yield _Prior(touched[0], prior, owner, closure)


def _parts(model: Model) -> Iterator[_Part]:
    for label, module in (("mean", model.mean), ("kernel", model.kernel)):
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            path, _, leaf = name.rpartition(".")
            owner = module.get_submodule(path)
            constraint = owner.constraint_for_parameter_name(leaf) if isinstance(owner, gpytorch.Module) else None
            yield _Part(f"{label}.{name}".replace("raw_", ""), parameter, constraint, mean=label == "mean")


class _At(torch.autograd.Function):
    """The density at raw values (p,) as a differentiable function of them; -inf where a factorization fails."""

    @staticmethod
    def forward(ctx: Any, density: HyperparameterPosterior, raw: Tensor) -> Tensor:
        """The value; its gradient is kept for `backward`."""
        density.move(raw)
        ctx.slope = torch.zeros_like(raw)
        try:
            with torch.enable_grad():
                value = density.present()
                slopes = torch.autograd.grad(value, density.model.parameters)
        except (LinAlgError, FloatingPointError):
            return raw.new_tensor(-torch.inf)
        slope = torch.cat([part.reshape(-1) for part in slopes])
        if not bool(torch.isfinite(value)) or not bool(torch.isfinite(slope).all()):
            return raw.new_tensor(-torch.inf)
        ctx.slope = slope
        return value.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        """The gradient in the raw values."""
        return None, grads[0] * ctx.slope
