"""What a file may name: the classes and functions that are rebuilt from it, and no others."""

import re
from importlib import import_module
from typing import Any

import gpytorch
import torch
from gpytorch.utils.transforms import inv_sigmoid, inv_softplus
from torch import nn

from bayeskit.persistence.moved_classes import current_path

TRUSTED = (
    "bayeskit.",
    "gpytorch.kernels.",
    "gpytorch.means.",
    "gpytorch.constraints.",
    "gpytorch.priors.",
    "torch.nn.modules.",
)
ESTIMATORS = ("bayeskit.", "sklearn.frozen.")
SPLITTERS = ("sklearn.model_selection._split.",)
OPERATORS = ("bayeskit.", "linear_operator.operators.")
# The functions that GPyTorch's constraints hold; no other function is ever read from a file.
FUNCTIONS = {
    "softplus": nn.functional.softplus,
    "inv_softplus": inv_softplus,
    "sigmoid": torch.sigmoid,
    "inv_sigmoid": inv_sigmoid,
    "exp": torch.exp,
    "log": torch.log,
}

# The methods by which GPyTorch's modules hand a parameter to its prior, and set it.
CLOSURE = re.compile(r"_\w+_(param|closure)")


def path_of(value: Any) -> str:
    """The class of an object, as "module:name"."""
    return f"{type(value).__module__}:{type(value).__qualname__}"


def class_at(path: str, trusted: tuple[str, ...], base: type) -> Any:
    """The class at "module:name", from trusted modules alone."""
    module, name = current_path(path).split(":")
    if not (module + ".").startswith(trusted):
        raise ValueError(f"the file asks for {path}, which is not a class that bayeskit loads")
    cls: Any = getattr(import_module(module), name, None)
    # Its own class, not something that the module merely imports.
    if not (isinstance(cls, type) and cls.__module__ == module and issubclass(cls, base)):
        raise ValueError(f"the file asks for {path}, which is not a class that bayeskit loads")
    return cls


def blank(cls: type[nn.Module]) -> nn.Module:
    """A module of this class before its own constructor has run."""
    module = cls.__new__(cls)
    if isinstance(module, gpytorch.Module):
        gpytorch.Module.__init__(module)
    else:
        nn.Module.__init__(module)
    return module
