"""The Kronecker factors of the curvature, from the inputs and output gradients of each layer."""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, unfold

from bayeskit.bnn.curvature.ggn import curvature_root, kronecker_order, with_one
from bayeskit.bnn.curvature.kfac import KroneckerCurvature
from bayeskit.bnn.networks.functional import NetworkFunction, call, unflatten
from bayeskit.bnn.networks.layer_hooks import passing
from bayeskit.bnn.networks.layers import aliases, is_plain
from bayeskit.core import operators
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.types import Data


def kronecker(function: NetworkFunction, weights: Tensor, data: Data, likelihood: Likelihood) -> KroneckerCurvature:
    """`G (x) A` for each layer: `A = sum w a a'` over inputs a, `G = sum s s' / count` over the columns of `R' J`.

    Exact for one linear layer whose curvature is the same at every data point. A layer applied at many places
    (convolutions, sequences) counts each place as a data point of its own.

    Raises:
        ValueError: A parameter belongs to a layer that has no such factors, or a layer mixes data points.
    """
    layers = _layers(function)
    orders = {name: kronecker_order(function, name) for name in layers}
    options = {"dtype": torch.float64, "device": weights.device}
    inputs = {name: torch.zeros(order.shape[1], order.shape[1], **options) for name, order in orders.items()}
    outputs = {name: torch.zeros(len(order), len(order), **options) for name, order in orders.items()}
    places = dict.fromkeys(layers, 0.0)
    params = {name: value.detach().requires_grad_() for name, value in unflatten(weights, function.like).items()}
    for part in operators.chunks(len(data), 256 * data.x.shape[1:].numel()):
        batch = data.rows(part)
        case_weights = torch.ones(len(batch), **options) if batch.weights is None else batch.weights.double()
        with torch.enable_grad(), passing(layers) as passed:
            f = call(function.network, params, batch.x[:])
        _check_called(passed, len(batch))
        for name, calls in passed.items():
            for entered, _ in calls:
                columns = with_one(_locations(layers[name], entered).double(), len(inputs[name]))  # (c, T, b)
                inputs[name] += torch.einsum("n,nti,ntj->ij", case_weights, columns, columns)
                places[name] += float(case_weights.sum()) * columns.shape[1]
        left = [(name, value) for name, calls in passed.items() for _, value in calls]
        root = curvature_root(likelihood, f.detach(), batch)  # (c, k, k), case weights included
        for column in root.unbind(-1):
            gradients = torch.autograd.grad(f, [value for _, value in left], column.to(f.dtype), retain_graph=True)
            for (name, _), gradient in zip(left, gradients, strict=True):
                flat = _output_locations(layers[name], gradient).double().flatten(0, 1)  # (c * T, a)
                outputs[name] += flat.mT @ flat
    blocks = [(orders[n].flatten(), outputs[n] / max(places[n], 1e-300), inputs[n], n) for n in layers]
    return KroneckerCurvature(tuple(blocks))


def _layers(function: NetworkFunction) -> dict[str, nn.Module]:
    """The layers that own the weights, by name."""
    layers: dict[str, nn.Module] = {}
    modules, shared = dict(function.network.named_modules()), aliases(function.network)
    for name in function.like:
        owner, _, own = name.rpartition(".")
        layer = modules[owner]
        plain = is_plain(layer, nn.Linear) or (
            is_plain(layer, nn.Conv1d, nn.Conv2d) and layer.groups == 1 and not layer.transposed
        )
        if not plain or own not in ("weight", "bias") or f"{owner}.weight".lstrip(".") not in function.like:
            raise ValueError(
                f"`structure='kronecker'` handles the weights of nn.Linear, nn.Conv1d and nn.Conv2d (one group); "
                f"{name!r} belongs to {type(layer).__name__}. Leave it out by `subset=[...]`, or use "
                "structure='diagonal'."
            )
        if name in shared:
            raise ValueError(
                f"`structure='kronecker'` handles weights of one layer each; {name!r} is also {shared[name][0]!r}. "
                "Leave it out by `subset=[...]`, or use structure='diagonal'."
            )
        layers[owner] = layer
    return layers


def _check_called(passed: dict[str, list[tuple[Tensor, Tensor]]], num_data: int) -> None:
    """Refuse a layer without calls, as in `nn.MultiheadAttention`, or without one input for each data point."""
    unused = [name for name, calls in passed.items() if not calls]
    if unused:
        raise ValueError(
            f"`structure='kronecker'` needs the inputs and outputs of each layer, and the network never calls "
            f"{unused[0]!r}: it uses the layer's weights by themselves. Leave it out by `subset=[...]`, or use "
            "structure='diagonal'."
        )
    for name, calls in passed.items():
        for entered, _ in calls:
            if len(entered) != num_data:
                raise ValueError(
                    f"`structure='kronecker'` needs layer inputs (n, ..., d), one for each data point; {name!r} got "
                    f"{len(entered)} inputs for {num_data} data points. Use structure='diagonal' or 'full'."
                )


def _locations(layer: nn.Module, inputs: Tensor) -> Tensor:
    """The vectors that a layer's weight matrix multiplies, (n, T, b): its inputs, or the patches of a convolution."""
    if isinstance(layer, nn.Linear):
        return inputs.reshape(len(inputs), -1, inputs.shape[-1])
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
    kernel, dilation, stride = layer.kernel_size, layer.dilation, layer.stride
    if isinstance(layer, nn.Conv1d):
        padded, kernel, dilation, stride = padded.unsqueeze(-2), (1, *kernel), (1, *dilation), (1, *stride)
    return unfold(padded, kernel, dilation=dilation, stride=stride).mT  # type: ignore[arg-type]


def _output_locations(layer: nn.Module, gradient: Tensor) -> Tensor:
    """Gradients at a layer's outputs, (n, T, a)."""
    if isinstance(layer, nn.Linear):
        return gradient.reshape(len(gradient), -1, gradient.shape[-1])
    return gradient.flatten(2).mT
