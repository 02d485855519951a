"""Where networks come from: built from their sizes, or started anew."""

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
    """A network to work on: a copy of a module, what a callable makes of the two sizes, or an `MLP` for None.

    Layers draw their starting values from torch's global generator, so a callable runs inside `random.seeded`.

    Args:
        network: An `nn.Module`, a callable `(in_features, out_features) -> nn.Module`, or None.
        in_features: Numbers in one input.
        out_features: Outputs k that the likelihood needs.
        generator: Seeds the starting values.

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
    """A copy whose layers have drawn new starting values by their own `reset_parameters`; what is frozen stays.

    Raises:
        ValueError: A module holds parameters and cannot redraw them.
    """
    fresh = copy.deepcopy(network)
    with generators.seeded(generator):
        for name, module in fresh.named_modules():
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if is_frozen(module) or _follows(module):
                continue
            if callable(reset):
                _reset(module, reset)
            elif any(value.requires_grad for value in module.parameters(recurse=False)):
                raise ValueError(
                    f"`{name or 'network'}` ({type(module).__name__}) has parameters but no `reset_parameters()`; "
                    "add that method, so that every member of an ensemble can start elsewhere."
                )
    return fresh


def _reset(module: nn.Module, reset: Callable[[], Any]) -> None:
    """New values; one that a parametrization computes is drawn, and handed to it to find what it comes from."""
    chains: Any = module.parametrizations if is_parametrized(module) else {}
    with parametrize.cached():
        reset()
        drawn: dict[str, Tensor] = {
            name: getattr(module, name).detach().clone() for name, chain in chains.items() if _follows(chain)
        }
    for name, value in drawn.items():
        setattr(module, name, value)


def _follows(module: nn.Module) -> bool:
    """Whether a module is the chain of parametrizations of a tensor, and can be set to a value of that tensor."""
    chain = isinstance(module, parametrize.ParametrizationList)
    return chain and all(hasattr(step, "right_inverse") for step in module)
