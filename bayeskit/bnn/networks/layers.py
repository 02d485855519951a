"""What the layers of a network are: BatchNorm, frozen, plain ones of torch, or sharing parameters."""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized


def batch_norms(network: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorm layers, by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm)}


def normalizes(network: nn.Module, names: Iterable[str] | None = None) -> bool:
    """Whether any BatchNorm layer learns its statistics while parameters train: those named, or all with a gradient."""
    return len(_kept(network, names)) < len(batch_norms(network))


def is_frozen(module: nn.Module) -> bool:
    """Whether a module has parameters, and none of them, its parts' included, requires a gradient."""
    values = list(module.parameters())
    return bool(values) and not any(value.requires_grad for value in values)


def set_training(network: nn.Module, mode: bool = True, *, names: Iterable[str] | None = None) -> None:
    """Training mode on or off, except that a frozen BatchNorm layer keeps its statistics: it is part of what stays.

    Args:
        network: Changed in place.
        mode: On or off.
        names: Parameters that are learnt; None for those that require a gradient.
    """
    network.train(mode)
    for layer in _kept(network, names) if mode else ():
        layer.eval()


def _kept(network: nn.Module, names: Iterable[str] | None) -> list[_BatchNorm]:
    """The BatchNorm layers that have parameters of which none is learnt."""
    layers = batch_norms(network)
    if names is None:
        return [layer for layer in layers.values() if is_frozen(layer)]
    owners = {name.rpartition(".")[0] for name in names}
    return [layer for name, layer in layers.items() if list(layer.parameters()) and name not in owners]


def check_frozen(network: nn.Module) -> None:
    """Refuse a network whose outputs at one input would depend on the other rows.

    Raises:
        ValueError: A BatchNorm layer keeps no running statistics, so it normalizes by the batch even in evaluation.
    """
    for name, module in batch_norms(network).items():
        if not getattr(module, "track_running_stats", True) or module.running_mean is None:
            raise ValueError(
                f"`{name}` ({type(module).__name__}) keeps no running statistics, so what the network returns for one "
                "input depends on the others and is no function of the input. Build it with "
                "`track_running_stats=True`, or use GroupNorm or LayerNorm."
            )


def is_plain(layer: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a layer does what these classes of torch do, with its own weights.

    Not so a subclass with another `forward` (a low-rank adapter), nor a layer whose weight is itself computed, by
    `torch.nn.utils.parametrize` or in a hook.
    """
    return (
        isinstance(layer, kinds)
        and any(type(layer).forward is kind.forward for kind in kinds)
        and not (is_parametrized(layer) or layer._forward_pre_hooks)
    )


def aliases(network: nn.Module) -> dict[str, list[str]]:
    """Further names of the parameters that distinct modules share, by the name that `named_parameters` gives."""
    names: dict[Tensor, list[str]] = {}
    for prefix, module in network.named_modules():
        for key, value in module._parameters.items():
            if value is not None:
                names.setdefault(value, []).append(f"{prefix}.{key}" if prefix else key)
    return {first: others for first, *others in names.values() if others}
