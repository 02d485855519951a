"""A tree and tensors into objects, which nothing is executed for."""

import copy
from typing import Any

import numpy as np
import torch
from linear_operator import LinearOperator
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from bayeskit.persistence.moved_classes import current_fields
from bayeskit.persistence.trust import (
    CLOSURE,
    ESTIMATORS,
    FUNCTIONS,
    OPERATORS,
    SPLITTERS,
    TRUSTED,
    blank,
    class_at,
    path_of,
)

_NODES = frozenset(
    "tensor array torch list tuple set dict operator dataclass estimator splitter function module same user".split()
)


class Reader:
    """Rebuilds objects from a tree and its tensors."""

    def __init__(self, tensors: dict[str, Tensor], factories: dict[str, Any]) -> None:
        self.tensors, self.factories = tensors, factories
        self._parameters: dict[str, nn.Parameter] = {}
        self._modules: dict[int, Any] = {}  # and estimators, by label

    def decode(self, node: Any) -> Any:
        """The object that a node of the tree stands for."""
        if not isinstance(node, dict):
            return node
        kind = next(iter(node))
        if kind not in _NODES:
            raise ValueError(
                f"the file has a part of unknown kind {kind!r}: it is damaged or was written by a newer version"
            )
        return getattr(self, f"_{kind}")(node)

    def _tensor(self, node: dict[str, Any]) -> Tensor:
        value = self.tensors[node["tensor"]].clone()  # aligned memory of its own
        if "axes" in node:
            value = value.permute([node["axes"].index(axis) for axis in range(value.ndim)])
        value = value.to(_available(node["device"])).expand(node.get("shape", value.shape))
        if "parameter" not in node:
            return value
        made = nn.Parameter(value, requires_grad=node["parameter"])
        return self._parameters.setdefault(node["tensor"], made)

    def _array(self, node: dict[str, Any]) -> np.ndarray:
        inner = node["array"]
        plain = self._tensor(inner).numpy() if isinstance(inner, dict) else inner
        return np.array(plain, dtype=object if node["dtype"] == "object" else np.dtype(node["dtype"]))

    def _torch(self, node: dict[str, Any]) -> Any:
        if node["kind"] == "device":
            return torch.device(_available(node["torch"]))
        dtype = getattr(torch, node["torch"], None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"the file asks for torch.{node['torch']}, which is not a dtype")
        return dtype

    def _list(self, node: dict[str, Any]) -> list[Any]:
        return [self.decode(item) for item in node["list"]]

    def _tuple(self, node: dict[str, Any]) -> Any:
        items = tuple(self.decode(item) for item in node["tuple"])
        return torch.Size(items) if node["size"] else items

    def _set(self, node: dict[str, Any]) -> set[Any]:
        return {self.decode(item) for item in node["set"]}

    def _dict(self, node: dict[str, Any]) -> dict[Any, Any]:
        return {self.decode(key): self.decode(value) for key, value in node["dict"]}

    def _operator(self, node: dict[str, Any]) -> LinearOperator:
        cls = class_at(node["operator"], OPERATORS, LinearOperator)
        return cls(*self.decode(node["args"]), **self.decode(node["kwargs"]))

    def _dataclass(self, node: dict[str, Any]) -> Any:
        cls = class_at(node["dataclass"], ("bayeskit.",), object)
        if not hasattr(cls, "__dataclass_fields__"):
            raise ValueError(f"the file asks for {node['dataclass']}, which is not a class that bayeskit loads")
        return cls(**current_fields(cls, self.decode(node["fields"])))

    def _estimator(self, node: dict[str, Any]) -> BaseEstimator:
        cls = class_at(node["estimator"], ESTIMATORS, BaseEstimator)
        estimator = self._modules[node.get("label", -1)] = cls.__new__(cls)
        estimator.__dict__.update(self.decode(node["state"]))
        return estimator

    def _splitter(self, node: dict[str, Any]) -> Any:
        cls = class_at(node["splitter"], SPLITTERS, object)
        splitter = cls.__new__(cls)
        vars(splitter).update(self.decode(node["state"]))
        return splitter

    def _function(self, node: dict[str, Any]) -> Any:
        return FUNCTIONS[node["function"]]

    def _module(self, node: dict[str, Any]) -> nn.Module:
        cls = class_at(node["module"], TRUSTED, nn.Module)
        state = self.decode(node["state"])
        hidden = sorted(key for key in state if "hook" in key or callable(getattr(cls, key, None)))
        if hidden:  # an attribute that would stand in for a method
            raise ValueError(f"the file replaces {', '.join(hidden)} of {node['module']}, which bayeskit does not load")
        module = self._modules[node.get("label", -1)] = blank(cls)
        module.__dict__.update(state)
        for name, prior, *methods in node.get("priors", []):
            if not all(CLOSURE.fullmatch(method) for method in methods):
                raise ValueError(f"the file reads a parameter by {methods[0]}, which bayeskit does not do")
            registered: Any = module
            registered.register_prior(name, self.decode(prior), *(getattr(module, method) for method in methods))
        return module

    def _same(self, node: dict[str, Any]) -> Any:
        return self._modules[node["same"]]

    def _user(self, node: dict[str, Any]) -> Any:
        role = node["user"]
        factory = self.factories[role]
        if "weights" not in node:  # the constructor argument itself
            return factory
        if factory is None:
            raise ValueError(f"the file holds a {role} of class {node['class']}: call load(path, {role}=...) with it")
        arguments = node["arguments"] if role == "network" else []
        module = copy.deepcopy(factory) if isinstance(factory, nn.Module) else factory(*arguments)
        weights = self.decode(node["weights"])
        module = _with_weights(module, weights, node["class"])
        floating = [w for w in weights.values() if w.is_floating_point()]
        module = module.to(device=floating[0].device, dtype=floating[0].dtype) if floating else module
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(
                f"`{role}` does not have the structure of the {role} of class {node['class']} in the file; build it as "
                f"for training: {error}"
            ) from error
        module.eval().requires_grad_(False)
        for name in node.get("learnt", []):  # of a posterior that continues to learn
            module.get_parameter(name).requires_grad_(True)
        return module


def _available(device: str) -> str:
    return device if torch.device(device).type != "cuda" or torch.cuda.is_available() else "cpu"


def _with_weights(module: nn.Module, weights: dict[str, Any], path: str) -> nn.Module:
    """The module, or the part of it of the class at `path`, that has the weights in the file by name."""
    parts = (part for part in module.modules() if part is module or path_of(part) == path)
    return next((part for part in parts if part.state_dict().keys() == weights.keys()), module)
