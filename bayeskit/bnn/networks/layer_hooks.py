"""Inputs and outputs of layers, recorded by forward hooks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def passing(layers: dict[str, nn.Module]) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """Record the (input, output) pairs of each layer while the network runs; a layer may run more than once."""
    passed: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}
    handles = []
    for name, layer in layers.items():

        def remember(layer: nn.Module, inputs: Any, named: Any, output: Tensor, name: str = name) -> Tensor:
            passed[name].append((next(iter((*inputs, *named.values()))).detach(), output))
            return output.clone()  # an in-place activation must not change the recorded output

        handles.append(layer.register_forward_hook(remember, with_kwargs=True))
    try:
        yield passed
    finally:
        for handle in handles:
            handle.remove()
