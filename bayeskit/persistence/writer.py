"""Objects into a tree and tensors."""

import re
from dataclasses import fields, is_dataclass
from typing import Any

import gpytorch
import numpy as np
import torch
from linear_operator import LinearOperator
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from bayeskit.core.likelihood import Likelihood
from bayeskit.persistence.trust import CLOSURE, ESTIMATORS, FUNCTIONS, OPERATORS, SPLITTERS, TRUSTED, blank, path_of

_BUILDER = re.compile(r"estimator(\.estimator_?)*\.network")  # that of the estimator, or of one inside it
_PARTS = (gpytorch.Module, gpytorch.constraints.Interval)  # of a kernel; networks have a factory of their own


class Writer:
    """Turns objects into a JSON tree and a dictionary of tensors."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._written: dict[int, tuple[Any, Any]] = {}  # what was written under which name, by identity
        self._arguments: list[int] | None = None

    def encode(self, value: Any, where: str) -> Any:  # noqa: PLR0911 (a line a kind of value)
        """The node that `value` is rebuilt from; `where` is its place, for messages."""
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, np.ndarray):
            return self._array(value)
        if isinstance(value, torch.dtype | torch.device):
            return {"torch": str(value).removeprefix("torch."), "kind": type(value).__name__}
        if isinstance(value, list | tuple):  # torch.Size is a tuple
            items = [self.encode(v, f"{where}[{i}]") for i, v in enumerate(value)]
            return {"tuple" if isinstance(value, tuple) else "list": items, "size": isinstance(value, torch.Size)}
        if isinstance(value, dict):
            pairs = [[self.encode(k, where), self.encode(v, f"{where}.{k}")] for k, v in value.items()]
            return {"dict": pairs}
        if isinstance(value, set):
            return {"set": [self.encode(v, where) for v in value]}
        return self._object(value, where)

    def _tensor(self, value: Tensor) -> dict[str, Any]:
        if id(value) in self._written:  # weights shared by two modules stay shared
            return self._written[id(value)][1]
        if value.numel() > 1 and not any(value.stride()):  # one number repeated, as for weights that nothing is kept of
            return {**self._tensor(value.detach().flatten()[0].clone()), "shape": list(value.shape)} | (
                {"parameter": value.requires_grad} if isinstance(value, nn.Parameter) else {}
            )
        # The axes keep their order in memory (Cholesky factors are column-major), so that products repeat to the bit.
        axes = sorted(range(value.ndim), key=lambda axis: -value.stride(axis))
        key = f"t{len(self.tensors)}"
        self.tensors[key] = value.detach().cpu().permute(axes).clone(memory_format=torch.contiguous_format)
        node: dict[str, Any] = {"tensor": key, "device": value.device.type}
        if axes != list(range(value.ndim)):
            node["axes"] = axes
        if isinstance(value, nn.Parameter):
            node["parameter"] = value.requires_grad
        self._written[id(value)] = (value, node)
        return node

    def _array(self, value: np.ndarray) -> dict[str, Any]:
        if value.dtype.kind in "biuf":
            return {"array": self._tensor(torch.tensor(value)), "dtype": value.dtype.str}
        return {"array": value.tolist(), "dtype": "object" if value.dtype.kind == "O" else value.dtype.str}

    def _object(self, value: Any, where: str) -> dict[str, Any]:  # noqa: PLR0911 (a line a kind of value)
        cls, path = type(value), path_of(value)
        if isinstance(value, LinearOperator) and cls.__module__.startswith(OPERATORS):
            return {
                "operator": path,
                "args": self.encode(value._args, where),
                "kwargs": self.encode(value._kwargs, where),
            }
        if isinstance(value, nn.Module):
            return self._module(value, path, where)
        if isinstance(value, BaseEstimator) and not is_dataclass(value) and path.startswith(ESTIMATORS):
            return self._estimator(value, path, where)
        if is_dataclass(value) and path.startswith("bayeskit."):
            state = _lasting({f.name: getattr(value, f.name) for f in fields(value)})
            return {"dataclass": path, "fields": self.encode(state, where)}
        if path.replace(":", ".").startswith(SPLITTERS):
            return {"splitter": path, "state": self.encode(vars(value), where)}
        for name, function in FUNCTIONS.items():
            if value is function:
                return {"function": name}
        if callable(value) and _BUILDER.fullmatch(where):  # the builder itself: the caller of `load` has it
            return {"user": "network"}
        raise TypeError(f"{where} of type {cls.__name__} cannot be saved: use plain values, arrays or torch modules")

    def _module(self, value: nn.Module, path: str, where: str) -> dict[str, Any]:
        known = path.startswith(TRUSTED) and not _holds_own_kernel(value)
        if known and not isinstance(value, gpytorch.Module | Likelihood) and not _is_list_of_kernels(value):
            # A network that holds a class of the user's own anywhere is rebuilt as a whole by the user's factory.
            # So is one whose weights are computed by parametrizations, which torch rebuilds from their state alone.
            known = all(path_of(inner).startswith(TRUSTED) for inner in value.modules())
        if not known:
            role = "kernel" if isinstance(value, gpytorch.kernels.Kernel) else "network"
            role = "likelihood" if isinstance(value, Likelihood) else role
            state = {name: tensor for name, tensor in value.state_dict().items()}
            node = {"user": role, "class": path, "weights": self.encode(state, where), "arguments": self._arguments}
            learnt = [name for name, p in value.named_parameters() if p.requires_grad and role == "kernel"]
            return node | ({"learnt": learnt} if learnt else {})
        if id(value) in self._written:  # a module used twice is one module
            return {"same": self._written[id(value)][1]}
        self._written[id(value)] = (value, len(self._written))
        empty = set(vars(blank(type(value))))
        skip = {"_priors"} | {key for key in empty if "hook" in key}
        state = {key: item for key, item in vars(value).items() if key not in skip}
        # Priors over hyperparameters matter while these are learned.
        inner = value._modules.items()
        state["_modules"] = {name: module for name, module in inner if not isinstance(module, gpytorch.priors.Prior)}
        label, place = self._written[id(value)][1], f"{where}.{type(value).__name__}"
        node = {"module": path, "state": self.encode(state, place), "label": label}
        if any(p.requires_grad for p in value.parameters(recurse=False)):
            priors = [self._prior(value, name, f"{place}.{name}") for name in getattr(value, "_priors", {})]
            node |= {"priors": [prior for prior in priors if prior]} if priors else {}
        return node

    def _prior(self, owner: Any, name: str, where: str) -> list[Any]:
        """A prior over a parameter that is still learned, and the names of the methods that read and set it.

        One that cannot be written is an error in a posterior, which continues to learn, and left out of an argument.
        """
        prior, *closures = owner._priors[name]
        methods = [getattr(closure, "__name__", "") for closure in closures]
        known = path_of(prior).startswith(TRUSTED) and all(CLOSURE.fullmatch(method) for method in methods)
        if not known and "posterior_" not in where:
            return []
        if not known:
            raise TypeError(
                f"{where} cannot be saved while its parameter is learned: register a prior of gpytorch.priors by the "
                "argument of the kernel or mean, or freeze the parameter with `requires_grad_(False)`"
            )
        return [name, self.encode(prior, where), *methods]

    def _estimator(self, value: BaseEstimator, path: str, where: str) -> dict[str, Any]:
        if id(value) in self._written:  # a frozen estimator is the argument and the fitted one
            return {"same": self._written[id(value)][1]}
        label = len(self._written)
        self._written[id(value)] = (value, label)
        return {"estimator": path, "state": self.encode(self._state(value), where), "label": label}

    def _state(self, estimator: BaseEstimator) -> dict[str, Any]:
        state = _lasting(dict(vars(estimator)))
        if not isinstance(state.get("random_state"), int | None):
            state["random_state"] = None  # the seed used is kept in seed_
        fitted: Any = estimator
        while "posterior_" not in vars(fitted) and {"estimator_", "estimator"} & vars(fitted).keys():
            fitted = vars(fitted).get("estimator_", fitted.estimator)  # what was fitted inside knows its shape
        if "posterior_" in vars(fitted):
            self._arguments = [int(fitted.n_features_in_), int(fitted.num_outputs_)]
        return state


def _lasting(state: dict[str, Any]) -> dict[str, Any]:
    """The state without a `validation_split` given as rows or as code: a file holds no training data."""
    value = state.get("validation_split")
    lasting = value is None or isinstance(value, int | float) or path_of(value).replace(":", ".").startswith(SPLITTERS)
    return state if lasting else state | {"validation_split": None}


def _holds_own_kernel(value: nn.Module) -> bool:
    """Whether a kernel of gpytorch has parts of the user's or of another library, and none of this one.

    The user's factory builds such a kernel as a whole. A kernel with parts of this library may have been built around
    that of the user, so its parts are written one by one.
    """
    if not isinstance(value, gpytorch.kernels.Kernel) or not path_of(value).startswith("gpytorch."):
        return False
    parts = [part for part in value.modules() if not isinstance(part, gpytorch.priors.Prior)]
    own = any(isinstance(part, _PARTS) and not path_of(part).startswith(TRUSTED) for part in parts)
    return own and not any(path_of(part).startswith("bayeskit.") for part in parts)


def _is_list_of_kernels(value: nn.Module) -> bool:
    return isinstance(value, nn.ModuleList) and all(isinstance(part, gpytorch.kernels.Kernel) for part in value)
