"""BoTorch's transforms of inputs and outcomes around a converted posterior."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bayeskit.core.inputs import one_tensor
from bayeskit.core.posterior import Functions, FunctionValues, Posterior
from bayeskit.core.types import Inputs

INPUT, OUTCOME = "input_transform", "outcome_transform"
"""The attributes in which a BoTorch model keeps its transforms."""


@dataclass(frozen=True, eq=False)
class TransformedPosterior(Posterior):
    """The posterior of `shift + scale f(t(x))` for a posterior of f: a model's function in the units of its user.

    Args:
        posterior: The posterior of f.
        inputs: The transform t, a module from inputs (n, d) to inputs (n, d') of f; None for the identity.
        shift: (k,), or (1,) for all outputs.
        scale: (k,), or (1,) for all outputs.

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> from gpytorch.means import ZeroMean
        >>> from bayeskit.gp.process.gaussian_process import GaussianProcess
        >>> process = GaussianProcess(ZeroMean(), RBFKernel())
        >>> degrees = TransformedPosterior(process, None, torch.tensor([20.0]), torch.tensor([3.0]))
        >>> degrees(torch.zeros(1, 1)).mean.item(), degrees(torch.zeros(1, 1)).variance.item()
        (20.0, 9.0)
    """

    posterior: Posterior
    inputs: nn.Module | None
    shift: Tensor
    scale: Tensor

    def __call__(self, x: Inputs) -> FunctionValues:
        """Joint distribution of the function at inputs (n, d)."""
        values = self.posterior(_transformed(self.inputs, x))
        k = values.mean.shape[-1]
        return values.affine(self.shift.expand(k), self.scale.expand(k))

    def sample_functions(self, num_samples: int, *, generator: torch.Generator) -> Functions:
        """S fixed functions, from inputs (n, d) to values (s, n, k); see the posterior transformed."""
        functions = self.posterior.sample_functions(num_samples, generator=generator)
        return partial(_in_units, self, functions)


def has_transforms(model: nn.Module) -> bool:
    """Whether a model, or a module in it, transforms its inputs or outcomes."""
    return any(_of(part, name) is not None for part in model.modules() for name in (INPUT, OUTCOME))


def in_units(posterior: Posterior, model: Any) -> Posterior:
    """The posterior of a model with transforms, in the units of the data that the user gave it.

    Args:
        posterior: That of the transformed function at transformed inputs.
        model: The model in float64, in evaluation mode.

    Raises:
        ValueError: A transform has no counterpart; the message names it.
    """
    inputs, outcome = _of(model, INPUT), _of(model, OUTCOME)
    for part in model.modules():
        for name in (INPUT, OUTCOME):
            inner = _of(part, name)
            if inner is not None and inner not in (inputs, outcome):
                raise ValueError(
                    f"`model` of type {type(model).__name__} holds a {type(part).__name__} with the transform "
                    f"{type(inner).__name__} of its own: convert that model"
                )
    if inputs is not None and getattr(inputs, "is_one_to_many", False):
        raise ValueError(
            f"the input transform {type(inputs).__name__} of `model` makes several inputs of one, which a posterior "
            "here has not: use the model in BoTorch"
        )
    shift, scale = (torch.zeros(1).double(), torch.ones(1).double()) if outcome is None else _affine(outcome)
    return TransformedPosterior(posterior, inputs, shift, scale)


def as_stated(posterior: Posterior, model: Any) -> Posterior:
    """The posterior, if it is what a BoTorch model in float64 itself states by `model.posterior` at some inputs.

    Raises:
        ValueError: The model means something else, such as preferences; the message names its class.
    """
    if not callable(getattr(model, "posterior", None)):
        return posterior
    name, x = type(model).__name__, getattr(model, "_original_train_inputs", None)
    if x is None:
        x = next(iter(getattr(model, "train_inputs", None) or ()), None)
    if x is None:  # any inputs do
        x = next((part.inducing_points for part in model.modules() if hasattr(part, "inducing_points")), None)
    try:
        if x is None or hasattr(model, "comparisons"):
            raise ValueError("it does not learn from values of a function at inputs; use it in BoTorch")
        x = x.detach().double().reshape(-1, *x.shape[-2:])[0, :3]
        stated, found = model.posterior(x), posterior(x)
        pairs = [(found.mean, stated.mean), (found.variance, stated.variance)]
    except Exception as error:
        raise ValueError(f"`model` of type {name} cannot be converted: {error}") from error
    scale = 1e-3 * float(found.variance.max().sqrt())
    if not all(_same(ours, theirs, scale) for ours, theirs in pairs):
        raise ValueError(
            f"`model` of type {name} states by `model.posterior` another distribution than its call gives, such as one "
            "of preferences: use it in BoTorch"
        )
    return posterior


def _same(ours: Tensor, theirs: Tensor, atol: float) -> bool:
    theirs = theirs if theirs.dim() == 2 else theirs.squeeze(-1).mT  # a batch of models is one of outputs here
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-3, atol=atol)


def _of(model: Any, name: str) -> Any:
    """A transform of a model, or None."""
    return model._modules.get(name)


def _affine(outcome: Any) -> tuple[Tensor, Tensor]:
    """Shift and scale (k,) of an outcome transform, from transformed to given units."""
    try:
        low, high = (outcome.untransform(torch.full((1, 1), end).double())[0].double().flatten() for end in (0.0, 1.0))
    except Exception:  # it wants to know the inputs, or has no way back
        low = high = None
    if low is None or high is None or not getattr(outcome, "_is_linear", False):
        raise ValueError(
            f"the outcome transform {type(outcome).__name__} of `model` is not one shift and scale for each outcome, "
            "so the function in the units of the data is not Gaussian here: use Standardize or none, or the model in "
            "BoTorch"
        )
    return low, high - low


def _transformed(inputs: nn.Module | None, x: Inputs) -> Tensor:
    rows = one_tensor(x)
    with torch.no_grad():
        return rows if inputs is None else inputs(rows.double())


def _in_units(posterior: TransformedPosterior, functions: Functions, x: Tensor) -> Tensor:
    return posterior.shift + posterior.scale * functions(_transformed(posterior.inputs, x))
