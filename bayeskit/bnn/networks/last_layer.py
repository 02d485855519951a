"""The last layer of a network, and its features: the inputs of that layer.

If only the weights of the last layer are uncertain, the rest of the network is a fixed feature map: it runs once, and
only the layer as a function of its weights and the features is differentiated.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from bayeskit.bnn.networks.functional import NetworkFunction, call, call_plainly, evaluating
from bayeskit.bnn.networks.layers import is_plain
from bayeskit.core import operators
from bayeskit.core.inputs import Batch, as_inputs
from bayeskit.core.types import Inputs, Params


@dataclass(frozen=True, eq=False)
class Head:
    """The layer whose output a network returns.

    Args:
        name: Its name in the network, "" if it is the whole network.
        layer: The layer.
        network: The network.
    """

    name: str
    layer: nn.Module
    network: nn.Module

    @property
    def names(self) -> list[str]:
        """The layer's parameters, as the network names them."""
        return [f"{self.name}.{key}" if self.name else key for key, _ in self.layer.named_parameters()]

    def local(self, params: Params) -> Params:
        """The layer's own parameters, under its own names."""
        prefix = f"{self.name}." if self.name else ""
        return {key.removeprefix(prefix): value for key, value in params.items()}

    def features(self, x: Inputs) -> Tensor:
        """The features in evaluation mode, (n, *feature_shape)."""
        with evaluating(self.network):
            return torch.cat(
                [
                    self._captured(lambda rows=rows: call_plainly(self.network, rows))
                    for rows in operators.pieces(x, 64 * x.shape[1:].numel())
                ]
            )

    def features_at(self, params: Params, x: Batch) -> Tensor:
        """The features with these parameters in place of the network's own, differentiable in them."""
        return self._captured(lambda: call(self.network, params, x))

    def _captured(self, run: Callable[[], Any]) -> Tensor:
        """The input of the layer while the network runs."""
        seen: list[Tensor] = []

        def remember(layer: nn.Module, inputs: Any, named: Any, output: Any) -> None:
            seen.extend((*inputs, *named.values()))

        handle = self.layer.register_forward_hook(remember, with_kwargs=True)
        try:
            run()
        finally:
            handle.remove()
        return seen[-1]


def find_head(network: nn.Module, x: Inputs) -> Head | None:
    """The layer whose output the network returns at `x`, found by running it, or None if there is none."""
    seen: list[tuple[Head, Tensor, int]] = []
    runs: Counter[nn.Module] = Counter()
    handles = []
    for name, module in network.named_modules():
        if is_parametrized(module) or any(True for _ in module.parameters(recurse=False)):

            def remember(layer: nn.Module, inputs: Any, named: Any, output: Any, name: str = name) -> None:
                runs[layer] += 1
                entered = (*inputs, *named.values())
                if isinstance(output, Tensor) and len(entered) == 1 and isinstance(entered[0], Tensor):
                    seen.append((Head(name, layer, network), output, output._version))

            handles.append(module.register_forward_hook(remember, with_kwargs=True))
    try:
        with torch.inference_mode(False), torch.no_grad(), evaluating(network):  # inference tensors have no version
            result = call_plainly(network, x[:1])
    finally:
        for handle in handles:
            handle.remove()
    for found, output, version in reversed(seen):
        squeezed = result.ndim == 1 and output.ndim == 2 and output.data_ptr() == result.data_ptr()
        if (output is result or squeezed) and output._version == version:  # an in-place activation changes the version
            whole = output.numel() == result.numel()  # a slice starts where the output does
            return found if whole and runs[found.layer] == 1 and not _shares_parameters(found) else None
    return None


def _shares_parameters(head: Head) -> bool:
    """Whether a parameter of the layer is used elsewhere too: the features would depend on it."""
    inside = set(head.layer.modules())
    others = {
        value for module in head.network.modules() if module not in inside for value in module._parameters.values()
    }
    return not others.isdisjoint(head.layer.parameters())


def head_of(network: nn.Module, names: Iterable[str], x: Inputs) -> Head | None:
    """The last layer if all these parameters belong to it, else None."""
    found = find_head(network, x)
    return found if found is not None and set(names) <= set(found.names) else None


def last_layer(network: nn.Module, x: Inputs) -> list[str]:
    """The names of the parameters of the last layer.

    Raises:
        ValueError: The output of the network is not that of a layer with parameters.

    >>> last_layer(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)), torch.zeros(2, 3))
    ['2.weight', '2.bias']
    """
    found = find_head(network, x)
    if found is None:
        raise ValueError(
            f"What {type(network).__name__} returns is not the output of a layer with parameters that runs once and "
            "shares none, so it has no last layer. Name the parameters yourself (`subset=['head.weight', "
            "'head.bias']`), or use `subset='all'`."
        )
    return found.names


def local_function(network: nn.Module, params: Params, x: Inputs) -> tuple[NetworkFunction, Batch]:
    """The network as a function of these parameters, and the inputs of that function.

    If the parameters are the last layer's, the function is that layer and its inputs are the features.
    """
    x = as_inputs(x)
    closing = head_of(network, params, x)
    if closing is None:
        return NetworkFunction(network, params), x[:]
    return NetworkFunction(closing.layer, closing.local(params)), closing.features(x)


def scale_outputs(network: nn.Module, factor: float, x: Inputs) -> nn.Module:
    """A copy of the network whose outputs are multiplied by `factor`, in the weights of its last layer.

    Raises:
        ValueError: The last layer is not linear in its weights.
    """
    fixed = copy.deepcopy(network)
    found = find_head(fixed, x)
    if found is None or not is_plain(found.layer, nn.Linear):
        raise ValueError(
            f"The outputs of {type(network).__name__} cannot be rescaled, because it does not end in an nn.Linear. End "
            "it in one, or set `temperature_scaling=False`."
        )
    with torch.no_grad():
        for value in found.layer.parameters():
            value.mul_(factor)
    return fixed
