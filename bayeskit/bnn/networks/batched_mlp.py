"""Chains of linear layers and elementwise functions at many draws of their weights, with one product a layer.

`torch.func.vmap` would do, but adds biases in passes of their own and takes a tenth of a millisecond a layer.
"""

import torch
from torch import Tensor, nn

from bayeskit.bnn.networks.layers import aliases, is_plain
from bayeskit.core.inputs import Batch
from bayeskit.core.types import Params

ELEMENTWISE = (nn.ELU, nn.GELU, nn.Identity, nn.LeakyReLU, nn.ReLU, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.Tanh)

CACHED_ELEMENTS = 2**17
"""Outputs of the widest layer for the draws that run together: what stays in a processor's cache."""

HELD_ELEMENTS = 2**24
"""The same on other devices, whose memory is the limit."""

Layers = list[tuple[str, nn.Module]]


def chain(network: nn.Module, draws: Params, x: Batch) -> Layers:
    """The named layers of a network in order, if it is a chain for these inputs with these weights drawn; else none.

    Every linear layer has all its parameters drawn or none. A leading `nn.Flatten` is left out.

    Args:
        network: Any module, in evaluation mode.
        draws: Leaves (s, *shape).
        x: Inputs (n, *input_shape).
    """
    if not _alone(network, nn.Sequential) or not isinstance(x, Tensor) or not x.is_floating_point():
        return []
    layers = [(name, layer) for name, layer in network._modules.items() if layer is not None]
    if layers and _flattens(layers[0][1]):
        layers = layers[1:]
    elif x.ndim != 2:
        return []
    if aliases(network) or len({layer for _, layer in layers}) < len(layers):  # weights at two places
        return []
    known: set[str] = set()
    for name, layer in layers:
        own = {f"{name}.{key}" for key, value in layer._parameters.items() if value is not None}
        if not _alone(layer, nn.Linear, *ELEMENTWISE) or len(own & draws.keys()) not in (0, len(own)):
            return []
        known |= own
    return layers if draws.keys() <= known else []


def run_chain(layers: Layers, draws: Params, x: Batch) -> Tensor:
    """Its outputs (s, n, k) at s draws for inputs (n, *input_shape)."""
    assert isinstance(x, Tensor)
    linear = [(name, layer) for name, layer in layers if isinstance(layer, nn.Linear)]
    first = linear[0][0] + ".weight"
    h = x.flatten(1).to((draws[first] if first in draws else linear[0][1].weight).dtype)
    shared = next(i for i, (name, _) in enumerate(layers) if f"{name}.weight" in draws)
    for _, layer in layers[:shared]:  # before the first weights drawn all draws agree
        h = layer(h)
    widest = max(layer.out_features for _, layer in linear)
    limit = CACHED_ELEMENTS if x.device.type == "cpu" else HELD_ELEMENTS
    count, together = len(next(iter(draws.values()))), max(1, limit // max(1, len(x) * widest))
    parts = [
        _side_by_side(layers[shared:], {key: value[i : i + together] for key, value in draws.items()}, h)
        for i in range(0, count, together)
    ]
    return torch.cat(parts)


def _side_by_side(layers: Layers, draws: Params, h: Tensor) -> Tensor:
    """(c, n, k) for c draws and inputs (n, d) to the first of these layers, whose weights are drawn."""
    for name, layer in layers:
        weight, bias = draws.get(f"{name}.weight"), draws.get(f"{name}.bias")
        if weight is None:
            h = layer(h)
            continue
        h = h.expand(len(weight), *h.shape[-2:])
        h = torch.bmm(h, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), h, weight.mT)
    return h


def _flattens(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Flatten) and _alone(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (1, -1)


def _alone(layer: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a layer does what these classes do, and nothing else runs with it."""
    return is_plain(layer, *kinds) and not layer._forward_hooks
