"""Building networks from their sizes, and reinitializing them."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import is_parametrized

from bayeskit.bnn.networks.functional import MLP
from bayeskit.bnn.networks.layers import is_frozen
from bayeskit.core import generators


def build(network: Any, in_features: int, out_features: int, *, generator: torch.Generator) -> nn.Module:
    """A network: a copy of a module, the result of a callable for the two sizes, or an `MLP` for None.

    Layers draw their initial values from torch's global generator, so a callable runs inside `generators.seeded`.

    Args:
        network: An `nn.Module`, a callable `(in_features, out_features) -> nn.Module`, or None.
        in_features: Number of features of one input.
        out_features: Outputs k that the likelihood needs.
        generator: Seeds the initial values.

    Raises:
        TypeError: `network` is none of these, or the callable returns something else.

    >>> build(None, 3, 1, generator=torch.Generator().manual_seed(0))[-1]
    Linear(in_features=50, out_features=1, bias=True)
    """
    if isinstance(network, nn.Module):
        return copy.deepcopy(network)
    if network is not None and not callable(network):
        raise TypeError(
            "`network` must be a torch.nn.Module, a callable (in_features, out_features) -> Module, or None; "
            f"got {type(network).__name__}"
        )
    with generators.seeded(generator):
        built = MLP(in_features, out_features) if network is None else network(in_features, out_features)
    if not isinstance(built, nn.Module):
        raise TypeError(f"`network` must return a torch.nn.Module; got {type(built).__name__}")
    return built


def reinitialize(network: nn.Module, *, generator: torch.Generator) -> nn.Module:
    """A copy with new initial values, by each layer's own `reset_parameters`; frozen layers are unchanged.

    Raises:
        ValueError: A module has parameters but no `reset_parameters`.
    """
    fresh = copy.deepcopy(network)
    with generators.seeded(generator):
        for name, module in fresh.named_modules():
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if is_frozen(module) or _is_invertible(module):
                continue
            if callable(reset):
                _reset(module, reset)
            elif any(value.requires_grad for value in module.parameters(recurse=False)):
                raise ValueError(
                    f"`{name or 'network'}` ({type(module).__name__}) has parameters but no `reset_parameters()`; "
                    "add that method, so that every member of an ensemble starts from other values."
                )
    return fresh


def _reset(module: nn.Module, reset: Callable[[], Any]) -> None:
    """Reset a module; the new value of a parametrized tensor is assigned to it, which inverts the parametrization."""
    parametrizations: Any = module.parametrizations if is_parametrized(module) else {}
    with parametrize.cached():
        reset()
        drawn: dict[str, Tensor] = {
            name: getattr(module, name).detach().clone()
            for name, steps in parametrizations.items()
            if _is_invertible(steps)
        }
    for name, value in drawn.items():
        setattr(module, name, value)


def _is_invertible(module: nn.Module) -> bool:
    """Whether a module is a list of parametrizations that all have a right inverse."""
    return isinstance(module, parametrize.ParametrizationList) and all(hasattr(s, "right_inverse") for s in module)
