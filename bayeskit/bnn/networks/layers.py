"""Queries about the layers of a network: BatchNorm, frozen, unmodified torch layers, shared parameters."""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized


def batch_norms(network: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorm layers, by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm)}


def normalizes(network: nn.Module, names: Iterable[str] | None = None) -> bool:
    """Whether a BatchNorm layer updates its statistics in training of these parameters (None: all with a gradient)."""
    return len(_frozen_norms(network, names)) < len(batch_norms(network))


def is_frozen(module: nn.Module) -> bool:
    """Whether a module has parameters, none of which requires a gradient."""
    values = list(module.parameters())
    return bool(values) and not any(value.requires_grad for value in values)


def set_training(network: nn.Module, mode: bool = True, *, names: Iterable[str] | None = None) -> None:
    """Switch training mode on or off; frozen BatchNorm layers stay in evaluation mode.

    Args:
        network: Changed in place.
        mode: On or off.
        names: Parameters that are trained; None for those that require a gradient.
    """
    network.train(mode)
    for layer in _frozen_norms(network, names) if mode else ():
        layer.eval()


def _frozen_norms(network: nn.Module, names: Iterable[str] | None) -> list[_BatchNorm]:
    """The BatchNorm layers that have parameters, none of which is trained."""
    layers = batch_norms(network)
    if names is None:
        return [layer for layer in layers.values() if is_frozen(layer)]
    owners = {name.rpartition(".")[0] for name in names}
    return [layer for name, layer in layers.items() if list(layer.parameters()) and name not in owners]


def check_frozen(network: nn.Module) -> None:
    """Refuse a network whose output at one input depends on the other inputs of the batch.

    Raises:
        ValueError: A BatchNorm layer has no running statistics, so it normalizes by the batch in evaluation mode too.
    """
    for name, module in batch_norms(network).items():
        if not getattr(module, "track_running_stats", True) or module.running_mean is None:
            raise ValueError(
                f"`{name}` ({type(module).__name__}) keeps no running statistics, so the output of the network at one "
                "input depends on the other inputs of the batch. Build it with `track_running_stats=True`, or use "
                "GroupNorm or LayerNorm."
            )


def is_plain(layer: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a layer computes what one of these torch classes computes, with its own weights.

    False for a subclass with another `forward` (a low-rank adapter) and for a layer whose weight is computed by
    `torch.nn.utils.parametrize` or in a hook.
    """
    return (
        isinstance(layer, kinds)
        and any(type(layer).forward is kind.forward for kind in kinds)
        and not (is_parametrized(layer) or layer._forward_pre_hooks)
    )


def aliases(network: nn.Module) -> dict[str, list[str]]:
    """The other names of parameters shared between modules, keyed by the name that `named_parameters` gives."""
    names: dict[Tensor, list[str]] = {}
    for prefix, module in network.named_modules():
        for key, value in module._parameters.items():
            if value is not None:
                names.setdefault(value, []).append(f"{prefix}.{key}" if prefix else key)
    return {first: others for first, *others in names.values() if others}
