"""Groups of parameters, between which structured samplers drop the dependence."""

from collections.abc import Mapping

import torch
from torch import Tensor

from bayeskit.core import checks

Groups = str | Mapping[str, Tensor]
"""The name of a partition of the parameters ("layer", "neuron" ...), or integer labels for each tensor."""

PARTITIONS = ("leaf", "layer", "neuron", "parameter")


def group_labels(groups: Groups, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """A group label from 0 to M - 1 for every parameter.

    Args:
        groups: "leaf": each tensor by itself. "layer": tensors that share their name up to the last dot ("0.weight" and
            "0.bias"). "neuron": in each layer, what has the same index in the first axis, so a unit's incoming weights
            and its bias. "parameter": each parameter by itself. Or your own integer labels, a tensor for each name that
            broadcasts to its shape.
        shapes: The tensors' names and shapes, without an axis of chains.

    Returns:
        Integer labels of those shapes; each of 0 to M - 1 occurs.

    Raises:
        ValueError: An unknown name of a partition, or labels that do not fit the names and shapes.

    Examples:
        >>> shapes = {"0.weight": torch.Size([2, 3]), "0.bias": torch.Size([2])}
        >>> group_labels("neuron", shapes)
        {'0.weight': tensor([[0, 0, 0],
                [1, 1, 1]]), '0.bias': tensor([0, 1])}
    """
    raw = _named(groups, shapes) if isinstance(groups, str) else _own(groups, shapes)
    _, flat = torch.cat([label.reshape(-1) for label in raw.values()]).unique(return_inverse=True)
    parts = flat.split([shape.numel() for shape in shapes.values()])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _named(partition: str, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Labels of a named partition, with gaps."""
    checks.choice(partition, name="groups", options=PARTITIONS)
    labels, start = {}, 0
    layers = {name.rpartition(".")[0] if "." in name else name: 0 for name in shapes}
    for number, layer in enumerate(layers):
        layers[layer] = number
    most = max((shape[0] if shape else 1) for shape in shapes.values())
    for number, (name, shape) in enumerate(shapes.items()):
        layer = layers[name.rpartition(".")[0] if "." in name else name]
        if partition == "leaf":
            labels[name] = torch.full(shape, number)
        elif partition == "layer":
            labels[name] = torch.full(shape, layer)
        elif partition == "neuron":
            unit = torch.arange(shape[0] if shape else 1).reshape(-1, *[1] * (len(shape) - 1))
            labels[name] = (layer * most + unit).expand(shape).clone() if shape else (layer * most + unit).reshape(())
        else:
            labels[name] = torch.arange(start, start + shape.numel()).reshape(shape)
            start += shape.numel()
    return labels


def _own(groups: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    if set(groups) != set(shapes):
        raise ValueError(f"`groups` must have a tensor of labels for each of {sorted(shapes)}; got {sorted(groups)}")
    labels = {}
    for name, shape in shapes.items():
        given = groups[name]
        if not isinstance(given, Tensor) or given.is_floating_point():
            raise ValueError(f"`groups[{name!r}]` must be a tensor of integers; got {given!r}")
        try:
            labels[name] = given.cpu().expand(shape)
        except RuntimeError as error:
            raise ValueError(
                f"`groups[{name!r}]` must broadcast to the shape {tuple(shape)}; got {tuple(given.shape)}"
            ) from error
    return labels
