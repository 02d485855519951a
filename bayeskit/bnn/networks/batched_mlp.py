"""Evaluation of a multilayer perceptron at many draws of its weights, with one batched product per layer.

`torch.func.vmap` computes the same, but adds biases in separate passes and has an overhead of 0.1 ms per layer.
"""

import torch
from torch import Tensor, nn

from bayeskit.bnn.networks.layers import aliases, is_plain
from bayeskit.core.inputs import Batch
from bayeskit.core.operators import CHUNK_ELEMENTS
from bayeskit.core.types import Params

ELEMENTWISE = (nn.ELU, nn.GELU, nn.Identity, nn.LeakyReLU, nn.ReLU, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.Tanh)

CACHED_ELEMENTS = 2**17
"""Activations of the widest layer computed at a time on a CPU: 1 MiB in float64, which stays in the L2 cache."""

Layers = list[tuple[str, nn.Module]]


def mlp_layers(network: nn.Module, draws: Params, x: Batch) -> Layers:
    """The named layers of a network that is an MLP for these inputs, in order; empty for any other network.

    Of every linear layer all parameters must be drawn, or none. A leading `nn.Flatten` is omitted.

    Args:
        network: Any module, in evaluation mode.
        draws: Leaves (s, *shape).
        x: Inputs (n, *input_shape).
    """
    if not _unmodified(network, nn.Sequential) or not isinstance(x, Tensor) or not x.is_floating_point():
        return []
    layers = [(name, layer) for name, layer in network._modules.items() if layer is not None]
    if layers and _flattens(layers[0][1]):
        layers = layers[1:]
    elif x.ndim != 2:
        return []
    if aliases(network) or len({layer for _, layer in layers}) < len(layers):  # shared weights
        return []
    known: set[str] = set()
    for name, layer in layers:
        own = {f"{name}.{key}" for key, value in layer._parameters.items() if value is not None}
        if not _unmodified(layer, nn.Linear, *ELEMENTWISE) or len(own & draws.keys()) not in (0, len(own)):
            return []
        known |= own
    return layers if draws.keys() <= known else []


def run_mlp(layers: Layers, draws: Params, x: Batch) -> Tensor:
    """Outputs (s, n, k) of an MLP at s draws of its weights for inputs (n, *input_shape)."""
    assert isinstance(x, Tensor)
    linear = [(name, layer) for name, layer in layers if isinstance(layer, nn.Linear)]
    first = linear[0][0] + ".weight"
    h = x.flatten(1).to((draws[first] if first in draws else linear[0][1].weight).dtype)
    shared = next(i for i, (name, _) in enumerate(layers) if f"{name}.weight" in draws)
    for _, layer in layers[:shared]:  # the layers before the first drawn weight are the same for all draws
        h = layer(h)
    widest = max(layer.out_features for _, layer in linear)
    limit = CACHED_ELEMENTS if x.device.type == "cpu" else CHUNK_ELEMENTS
    num_draws, step = len(next(iter(draws.values()))), max(1, limit // max(1, len(x) * widest))
    parts = [
        _run_drawn(layers[shared:], {key: value[i : i + step] for key, value in draws.items()}, h)
        for i in range(0, num_draws, step)
    ]
    return torch.cat(parts)


def _run_drawn(layers: Layers, draws: Params, h: Tensor) -> Tensor:
    """(c, n, k) for c draws and inputs (n, d) of the first of these layers, whose weights are drawn."""
    for name, layer in layers:
        weight, bias = draws.get(f"{name}.weight"), draws.get(f"{name}.bias")
        if weight is None:
            h = layer(h)
            continue
        h = h.expand(len(weight), *h.shape[-2:])
        h = torch.bmm(h, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), h, weight.mT)
    return h


def _flattens(layer: nn.Module) -> bool:
    whole = isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (1, -1)
    return whole and _unmodified(layer, nn.Flatten)


def _unmodified(layer: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a layer computes what one of these classes computes, and has no hooks."""
    return is_plain(layer, *kinds) and not layer._forward_hooks
