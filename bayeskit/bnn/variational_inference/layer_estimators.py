"""Estimators that draw the outputs of a layer in place of its weights, and the layers for which they are valid.

A `Linear` or convolution whose weights are independent Gaussians has Gaussian outputs at given inputs. `local` draws
those; `flipout` multiplies one draw of the weights by random signs for each input.

References:
    Kingma, Salimans, Welling. Variational dropout and the local reparameterization trick. NeurIPS 2015, section 2.2.
    Wen, Vicol, Ba, Tran, Grosse. Flipout: efficient pseudo-independent weight perturbations on mini-batches. ICLR 2018,
        equation 4.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from bayeskit.bnn.networks.functional import call, evaluating
from bayeskit.bnn.networks.layers import aliases
from bayeskit.core import generators
from bayeskit.core.inputs import Batch
from bayeskit.core.types import Params

FLOOR = 1e-16
"""Smallest variance of an output whose square root is differentiated: its slope is infinite at zero."""

Apply = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Forward = Callable[[Tensor], Tensor]


def operation(layer: nn.Module) -> Apply:
    """The layer as a function of (inputs, weight, bias), linear in each of them but for the bias."""
    if isinstance(layer, nn.Linear):
        return functional.linear
    assert isinstance(layer, _ConvNd)
    return layer._conv_forward  # type: ignore[attr-defined]


def local(mean: Forward, variance: Forward, x: Tensor, generator: torch.Generator) -> Tensor:
    """A draw of the outputs, `mean(x) + sqrt(variance(x^2)) e`, with independent noise for each of them.

    This is the exact marginal distribution of each output. Outputs of one input that share weights (the positions of a
    convolution, the tokens of a linear layer) are drawn as if independent.
    """
    center, spread = mean(x), variance(x.square())
    return center + spread.clamp_min(FLOOR).sqrt() * generators.normal(center.shape, like=center, generator=generator)


def flipout(layer: nn.Module, mean: Forward, perturbed: Forward, x: Tensor, generator: torch.Generator) -> Tensor:
    """`mean(x) + s * perturbed(x * r)` with random signs r and s for each input, by input and output feature.

    The perturbation is one draw of zero-mean weights. With any signs it has the same marginal distribution for each
    input; between inputs the perturbations are uncorrelated.
    """
    center = mean(x)
    axis = -1 if isinstance(layer, nn.Linear) else 1  # of the features or channels
    return center + perturbed(x * _signs(x, axis, generator)) * _signs(center, axis, generator)


def _signs(like: Tensor, axis: int, generator: torch.Generator) -> Tensor:
    """Signs for each input and feature, the same at all positions: (b, 1, ..., c) or (b, c, 1, ...)."""
    shape = [1] * like.ndim
    shape[0], shape[axis] = like.shape[0], like.shape[axis]
    coins = torch.randint(2, shape, generator=generator, device=generator.device)
    return (2 * coins - 1).to(like)


@contextmanager
def replaced(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Replace the `forward` of these layers within the context."""
    try:
        for layer, forward in forwards.items():
            layer.forward = forward
        yield
    finally:
        for layer in forwards:
            layer.__dict__.pop("forward", None)


def obstacles(network: nn.Module, params: Params, x: Batch) -> dict[str, str]:
    """Why the forward of each layer cannot be replaced, by name; an empty string where it can.

    Found by running the network at `x`. The layers are the `Linear` and convolution ones (with the forward of their
    class) whose weight `params` names. One that does not run, because another module uses its weight (as attention
    does), is omitted.
    """
    found = {name: layer for name, layer in network.named_modules() if _linear(name, layer, params)}
    runs: Counter[str] = Counter()
    handles = [
        layer.register_forward_pre_hook(lambda *_, name=name: runs.update([name])) for name, layer in found.items()
    ]
    try:
        with torch.no_grad(), evaluating(network):
            plain = call(network, params, x)
    finally:
        for handle in handles:
            handle.remove()
    shared = {name for first, others in aliases(network).items() for name in (first, *others)}
    why = {}
    for name, layer in found.items():
        if runs[name] > 1:
            why[name] = f"runs {runs[name]} times in one pass with the same weight"
        elif shared & set(names(name, layer).values()):
            why[name] = "shares its weight with another module"
        elif runs[name] == 1:
            aside = not torch.equal(_spoiled(network, params, name, x).isnan(), plain.isnan())
            why[name] = "has its weight used outside its own forward" if aside else ""
    return why


def refuse(network: nn.Module, why: Mapping[str, str], estimator: str) -> None:
    """Raise for the first layer whose forward cannot be replaced: noise of its outputs is not noise of its weights.

    Raises:
        ValueError: By name, with the remedy.
    """
    for name, reason in why.items():
        if reason:
            raise ValueError(
                f"estimator={estimator!r} cannot replace the forward of `{name or 'network'}` "
                f"({type(network.get_submodule(name)).__name__}), which {reason}. Use estimator='weight', which draws "
                "the weights themselves."
            )


def _linear(name: str, layer: nn.Module, like: Params) -> bool:
    own = type(layer).forward in (nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)
    return own and "forward" not in layer.__dict__ and names(name, layer)["weight"] in like


def names(name: str, layer: nn.Module) -> dict[str, str]:
    """A layer's parameters as the network names them, by the layer's own names."""
    return {key: f"{name}.{key}" if name else key for key, _ in layer.named_parameters(recurse=False)}


def _spoiled(network: nn.Module, params: Params, name: str, x: Batch) -> Tensor:
    """The outputs where every use of the layer's parameters outside its own forward sees NaN."""
    layer = network.get_submodule(name)
    own = {key: full for key, full in names(name, layer).items() if full in params}
    weight, bias = params[own["weight"]], params[own["bias"]] if "bias" in own else layer.bias
    nan = {full: torch.full_like(params[full], math.nan) for full in own.values()}
    apply = operation(layer)
    with torch.no_grad(), evaluating(network), replaced({layer: lambda rows: apply(rows, weight, bias)}):  # type: ignore[arg-type]
        return call(network, {**params, **nan}, x)
