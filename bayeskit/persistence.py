"""Save and load fitted estimators without running code from the file.

A file is a safetensors file: its tensors are the arrays, its header a JSON tree that says how they fit together. Only
classes of bayeskit, torch.nn, GPyTorch and linear_operator are rebuilt, by setting their attributes; a class of the
user's own is rebuilt by the factory that the caller of `load` hands over. Nothing is ever unpickled.
"""

import copy
import json
import re
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import gpytorch
import numpy as np
import torch
from gpytorch.utils.transforms import inv_sigmoid, inv_softplus
from linear_operator import LinearOperator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from bayeskit.core.likelihood import Likelihood

FORMAT = 1
_TRUSTED = ("bayeskit.", "gpytorch.kernels.", "gpytorch.means.", "gpytorch.constraints.", "torch.nn.modules.")
_ESTIMATORS = ("bayeskit.", "sklearn.frozen.")
_BUILDER = re.compile(r"estimator(\.estimator_?)*\.network")  # that of the estimator, or of one inside it
_OPERATORS = ("bayeskit.", "linear_operator.operators.")
# The functions that GPyTorch's constraints hold; no other function is ever read from a file.
_FUNCTIONS = {
    "softplus": nn.functional.softplus,
    "inv_softplus": inv_softplus,
    "sigmoid": torch.sigmoid,
    "inv_sigmoid": inv_sigmoid,
    "exp": torch.exp,
    "log": torch.log,
}

_NODES = frozenset(
    "tensor array torch list tuple set dict operator dataclass estimator function module same user".split()
)


def save(estimator: BaseEstimator, path: str | Path) -> None:
    """Write a fitted estimator to one file.

    What predictions need is written. Priors over the hyperparameters of a kernel are not: to learn them anew, build
    the kernel anew.

    Args:
        estimator: A fitted bayeskit estimator.
        path: Where to write; an existing file is replaced only when the new one is complete.

    Raises:
        TypeError: Some part of the estimator cannot be written; the message says which.

    Examples:
        >>> import tempfile, os
        >>> from bayeskit import GPRegressor
        >>> model = GPRegressor(random_state=0).fit([[0.0], [1.0], [2.0]], [0.0, 1.0, 0.5])
        >>> path = os.path.join(tempfile.mkdtemp(), "model.bayeskit")
        >>> save(model, path)
        >>> bool((load(path).predict([[0.5]]) == model.predict([[0.5]])).all())
        True
    """
    if not isinstance(estimator, BaseEstimator) or not type(estimator).__module__.startswith("bayeskit."):
        raise TypeError(f"`estimator` must be a bayeskit estimator; got {type(estimator).__name__}")
    writer = _Writer()
    tree = writer.encode(estimator, "estimator")
    header = {"bayeskit": json.dumps({"format": FORMAT, "tree": tree})}
    path = Path(path)
    partial_file = path.with_name(path.name + ".part")
    save_file(writer.tensors, partial_file, metadata=header)
    partial_file.replace(path)


def load(path: str | Path, *, network: Any = None, kernel: Any = None, likelihood: Any = None) -> Any:
    """Read an estimator written by `save`; its predictions are the same to the bit on the same machine.

    Args:
        path: The file.
        network: For a network of the user's own class: the callable `(in_features, out_features) -> Module` that
            built it, or a module of the same architecture.
        kernel: For a kernel of the user's own class: a kernel like it, or a callable without arguments.
        likelihood: For a likelihood of the user's own class: likewise.

    Returns:
        The fitted estimator.

    Raises:
        ValueError: The file is not one of bayeskit's, is of a newer format, or needs a factory that was not given.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("bayeskit")
            if header is None:
                raise ValueError(f"{path} is a safetensors file, but was not written by bayeskit.save")
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a file written by bayeskit.save, or it is damaged: {error}") from None
    document = json.loads(header)
    if document["format"] > FORMAT:
        raise ValueError(f"{path} has format {document['format']}; this version reads up to {FORMAT}: update bayeskit")
    factories = {"network": network, "kernel": kernel, "likelihood": likelihood}
    return _Reader(tensors, factories).decode(document["tree"])


class _Writer:
    """Turns objects into a JSON tree and a dictionary of tensors."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._written: dict[int, tuple[Any, Any]] = {}  # what was written under which name, by identity
        self._arguments: list[int] | None = None

    def encode(self, value: Any, where: str) -> Any:  # noqa: PLR0911 (a line a kind of value)
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

    def _object(self, value: Any, where: str) -> dict[str, Any]:
        cls, path = type(value), _path(value)
        if isinstance(value, LinearOperator) and cls.__module__.startswith(_OPERATORS):
            return {
                "operator": path,
                "args": self.encode(value._args, where),
                "kwargs": self.encode(value._kwargs, where),
            }
        if isinstance(value, nn.Module):
            return self._module(value, path, where)
        if isinstance(value, BaseEstimator) and not is_dataclass(value) and path.startswith(_ESTIMATORS):
            return self._estimator(value, path, where)
        if is_dataclass(value) and path.startswith("bayeskit."):
            state = {f.name: getattr(value, f.name) for f in fields(value)}
            return {"dataclass": path, "fields": self.encode(state, where)}
        for name, function in _FUNCTIONS.items():
            if value is function:
                return {"function": name}
        if callable(value) and _BUILDER.fullmatch(where):  # the builder itself: the caller of `load` has it
            return {"user": "network"}
        raise TypeError(f"{where} of type {cls.__name__} cannot be saved: use plain values, arrays or torch modules")

    def _module(self, value: nn.Module, path: str, where: str) -> dict[str, Any]:
        known = path.startswith(_TRUSTED)
        if known and not isinstance(value, gpytorch.Module | Likelihood):
            # A network that holds a class of the user's own anywhere is rebuilt as a whole by the user's factory.
            # So is one whose weights are computed by parametrizations, which torch rebuilds from their state alone.
            known = all(_path(inner).startswith(_TRUSTED) for inner in value.modules())
        if not known:
            role = "kernel" if isinstance(value, gpytorch.kernels.Kernel) else "network"
            role = "likelihood" if isinstance(value, Likelihood) else role
            state = {name: tensor for name, tensor in value.state_dict().items()}
            return {"user": role, "class": path, "weights": self.encode(state, where), "arguments": self._arguments}
        if id(value) in self._written:  # a module used twice is one module
            return {"same": self._written[id(value)][1]}
        self._written[id(value)] = (value, len(self._written))
        blank = set(vars(_blank(type(value))))
        skip = {"_priors"} | {key for key in blank if "hook" in key}
        state = {key: item for key, item in vars(value).items() if key not in skip}
        # Priors over hyperparameters matter while they are learnt, which is over.
        inner = value._modules.items()
        state["_modules"] = {name: module for name, module in inner if not isinstance(module, gpytorch.priors.Prior)}
        label = self._written[id(value)][1]
        return {"module": path, "state": self.encode(state, f"{where}.{type(value).__name__}"), "label": label}

    def _estimator(self, value: BaseEstimator, path: str, where: str) -> dict[str, Any]:
        if id(value) in self._written:  # a frozen estimator is the argument and the fitted one
            return {"same": self._written[id(value)][1]}
        label = len(self._written)
        self._written[id(value)] = (value, label)
        return {"estimator": path, "state": self.encode(self._state(value), where), "label": label}

    def _state(self, estimator: BaseEstimator) -> dict[str, Any]:
        state = dict(vars(estimator))
        if not isinstance(state.get("random_state"), int | None):
            state["random_state"] = None  # the seed used is kept in seed_
        fitted: Any = estimator
        while "posterior_" not in vars(fitted) and {"estimator_", "estimator"} & vars(fitted).keys():
            fitted = vars(fitted).get("estimator_", fitted.estimator)  # what was fitted inside knows its shape
        if "posterior_" in vars(fitted):
            self._arguments = [int(fitted.n_features_in_), int(fitted.num_outputs_)]
        return state


class _Reader:
    """Rebuilds objects from a tree and its tensors."""

    def __init__(self, tensors: dict[str, Tensor], factories: dict[str, Any]) -> None:
        self.tensors, self.factories = tensors, factories
        self._parameters: dict[str, nn.Parameter] = {}
        self._modules: dict[int, Any] = {}  # and estimators, by label

    def decode(self, node: Any) -> Any:
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
        cls = _class(node["operator"], _OPERATORS, LinearOperator)
        return cls(*self.decode(node["args"]), **self.decode(node["kwargs"]))

    def _dataclass(self, node: dict[str, Any]) -> Any:
        cls = _class(node["dataclass"], ("bayeskit.",), object)
        if not hasattr(cls, "__dataclass_fields__"):
            raise ValueError(f"the file asks for {node['dataclass']}, which is not a class that bayeskit loads")
        return cls(**self.decode(node["fields"]))

    def _estimator(self, node: dict[str, Any]) -> BaseEstimator:
        cls = _class(node["estimator"], _ESTIMATORS, BaseEstimator)
        estimator = self._modules[node.get("label", -1)] = cls.__new__(cls)
        estimator.__dict__.update(self.decode(node["state"]))
        return estimator

    def _function(self, node: dict[str, Any]) -> Any:
        return _FUNCTIONS[node["function"]]

    def _module(self, node: dict[str, Any]) -> nn.Module:
        cls = _class(node["module"], _TRUSTED, nn.Module)
        state = self.decode(node["state"])
        hidden = sorted(key for key in state if "hook" in key or callable(getattr(cls, key, None)))
        if hidden:  # an attribute that would stand in for a method
            raise ValueError(f"the file replaces {', '.join(hidden)} of {node['module']}, which bayeskit does not load")
        module = self._modules[node.get("label", -1)] = _blank(cls)
        module.__dict__.update(state)
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
        floating = [w for w in weights.values() if w.is_floating_point()]
        module = module.to(device=floating[0].device, dtype=floating[0].dtype) if floating else module
        module.load_state_dict(weights)
        return module.eval().requires_grad_(False)


def _path(value: Any) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"


def _class(path: str, trusted: tuple[str, ...], base: type) -> Any:
    """The class at "module:name", from trusted modules alone."""
    module, name = path.split(":")
    if not (module + ".").startswith(trusted):
        raise ValueError(f"the file asks for {path}, which is not a class that bayeskit loads")
    cls: Any = getattr(import_module(module), name, None)
    # Its own class, not something that the module merely imports.
    if not (isinstance(cls, type) and cls.__module__ == module and issubclass(cls, base)):
        raise ValueError(f"the file asks for {path}, which is not a class that bayeskit loads")
    return cls


def _blank(cls: type[nn.Module]) -> nn.Module:
    """A module of this class before its own constructor has run."""
    module = cls.__new__(cls)
    if isinstance(module, gpytorch.Module):
        gpytorch.Module.__init__(module)
    else:
        nn.Module.__init__(module)
    return module


def _available(device: str) -> str:
    return device if torch.device(device).type != "cuda" or torch.cuda.is_available() else "cpu"
