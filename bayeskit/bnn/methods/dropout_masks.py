"""Dropout with fixed masks: a distribution over functions.

Units are dropped in the dropout layers of a network, or at the inputs of its linear layers. A mask is one factor 0 or
1 / (1 - rate) for each unit and draw, fixed once, so that a draw is a function of the inputs.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from bayeskit.bnn.networks.functional import call_plainly, evaluate, frozen, parameters
from bayeskit.bnn.pushforward.bayes_net import BayesNet, PushForward
from bayeskit.bnn.weights.weight_posterior import PointWeights, WeightPosterior
from bayeskit.core import checks, generators
from bayeskit.core.inputs import Batch
from bayeskit.core.posterior import Functions, SampledValues
from bayeskit.core.types import Inputs, Params

WHOLE_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def dropout_layers(network: nn.Module) -> dict[str, _DropoutNd]:
    """The dropout layers of nonzero rate, by name."""
    return {name: m for name, m in network.named_modules() if isinstance(m, _DropoutNd) and m.p > 0}


def linear_layers(network: nn.Module) -> list[str]:
    """The linear layers whose inputs are hidden units: all but the first layer, or that one if there is no other."""
    weighted = [(name, m) for name, m in network.named_modules() if "weight" in m._parameters]
    linear = [name for name, module in weighted if isinstance(module, nn.Linear)]
    inner = [name for name in linear if name != weighted[0][0]]
    return inner or linear


@dataclass(frozen=True)
class InputDropout:
    """A forward pre-hook that drops inputs of a layer in training mode, each with probability `rate`."""

    rate: float

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The inputs, with dropout of the first one."""
        return (nn.functional.dropout(inputs[0], self.rate, module.training), *inputs[1:])


def dropping_inputs(network: nn.Module, names: Iterable[str], rate: float) -> nn.Module:
    """A copy of the network that drops the inputs of these layers in training mode; its parameters keep their names."""
    network = copy.deepcopy(network)
    for name in names:
        network.get_submodule(name).register_forward_pre_hook(InputDropout(rate))
    return network


def masked_weights(
    network: nn.Module,
    params: Params,
    names: Iterable[str],
    rate: float,
    num_samples: int,
    *,
    generator: torch.Generator,
) -> Params:
    """Draws `W diag(z)` of the weights of linear layers whose inputs are dropped, leaves (s, *shape).

    A layer whose inputs are multiplied by z, z_j = Bernoulli(1 - rate) / (1 - rate), has the weights `W diag(z)`, so
    dropout is a distribution over weights. Other parameters are repeated.

    References:
        Gal, Ghahramani. Dropout as a Bayesian approximation. ICML 2016, section 3.
    """
    own = dict(network.named_parameters())
    draws = {name: value.expand(num_samples, *value.shape) for name, value in params.items()}
    for name in names:
        key = f"{name}.weight" if name else "weight"
        weight = params.get(key, own[key].detach())
        draws[key] = weight * bernoulli_mask((num_samples, 1, weight.shape[1]), rate, like=weight, generator=generator)
    return draws


def bernoulli_mask(shape: tuple[int, ...], rate: float, *, like: Tensor, generator: torch.Generator) -> Tensor:
    """Independent factors of mean one: 0 with probability `rate`, else `1 / (1 - rate)`; zeros for a rate of one."""
    kept = torch.rand(shape, generator=generator, device=generator.device) >= rate
    return kept.to(like) / (1 - rate) if rate < 1 else torch.zeros(shape).to(like)


def layer_masks(network: nn.Module, x: Batch, num_samples: int, *, generator: torch.Generator) -> Params:
    """One mask for each dropout layer and draw, leaves (s, 1, *shape) for hidden values of shape (n, *shape).

    Args:
        network: With dropout layers; untouched.
        x: Inputs (b, *input_shape) to run it on, which gives the shapes.
        num_samples: s.
        generator: Source of the masks.

    Raises:
        ValueError: A layer is used more than once, or is of a kind that does not multiply by a mask.
    """
    seen: dict[str, list[torch.Size]] = {}
    trial = frozen(copy.deepcopy(network))
    for name, layer in dropout_layers(trial).items():
        if not isinstance(layer, nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d):
            raise ValueError(
                f"`{name}` is {type(layer).__name__}, which does not multiply by a mask; MCDropout supports Dropout, "
                "Dropout1d, Dropout2d and Dropout3d."
            )
        layer.register_forward_pre_hook(_Recorder(seen.setdefault(name, [])))
    with torch.no_grad():
        call_plainly(trial, x)
    like, masks = next(iter(parameters(network, dict(network.named_parameters())).values())), {}
    for name, layer in dropout_layers(trial).items():
        if len(seen[name]) > 1:
            raise ValueError(
                f"The dropout layer `{name}` is used {len(seen[name])} times in one pass, and each use needs masks of "
                "its own; give every place a layer of its own."
            )
        for shape in seen[name]:
            units = (shape[1], *(1 for _ in shape[2:])) if isinstance(layer, WHOLE_CHANNELS) else shape[1:]
            masks[name] = bernoulli_mask((num_samples, 1, *units), layer.p, like=like, generator=generator)
    return masks


def draw_dropout(
    network: nn.Module, x: Batch, *, num_samples: int = 50, generator: torch.Generator | None = None
) -> BayesNet:
    """The posterior of your own network, trained with dropout, under masks that are drawn here once.

    Args:
        network: With `nn.Dropout` layers; copied, and evaluated with frozen BatchNorm statistics.
        x: Some inputs (n, *input_shape), which show the shapes of what is dropped.
        num_samples: Number of masks, and of functions.
        generator: Source of the masks; None for one with seed 0.

    Raises:
        ValueError: There is no dropout layer, or one that is used more than once.

    >>> network = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2))
    >>> draw_dropout(network, torch.zeros(5, 3), num_samples=4)(torch.zeros(5, 3)).draws.shape
    torch.Size([4, 5, 2])
    """
    checks.positive(num_samples, name="num_samples", integer=True)
    if not dropout_layers(network):
        raise ValueError(
            f"{type(network).__name__} has no dropout layer, so there is nothing to draw. Put `nn.Dropout` layers "
            "where units should be dropped, and train it with them."
        )
    masks = layer_masks(network, x[:1], num_samples, generator=generators.given_or_fixed(generator))
    point = PointWeights(parameters(network, dict(network.named_parameters())))
    return BayesNet(frozen(network), point, DropoutMasks(masks))


@dataclass(frozen=True, eq=False)
class DropoutMasks(PushForward):
    """The network at the mean of its weights, its dropout layers replaced by s fixed masks each.

    Args:
        masks: By the name of the layer, leaves (s, 1, *shape) for hidden values (n, *shape).
    """

    masks: Params

    def values(self, network: nn.Module, weights: WeightPosterior, x: Inputs) -> SampledValues:
        """The outputs under each mask, (s, n, k)."""
        return SampledValues(MaskedFunctions(network, weights.mean, self.masks)(x))

    def sample_functions(
        self, network: nn.Module, weights: WeightPosterior, num_samples: int, *, generator: torch.Generator
    ) -> Functions:
        """The network under masks picked uniformly with replacement."""
        count = len(next(iter(self.masks.values())))
        index = torch.randint(count, (num_samples,), generator=generator, device=generator.device)
        picked = {name: mask[index.to(mask.device)] for name, mask in self.masks.items()}
        return MaskedFunctions(network, weights.mean, picked)


@dataclass(frozen=True, eq=False)
class MaskedFunctions:
    """The network with s fixed masks in place of its dropout layers."""

    network: nn.Module
    params: Params
    masks: Params

    def __call__(self, x: Inputs) -> Tensor:
        """Values (s, n, k)."""
        network = copy.deepcopy(frozen(self.network))
        for name, mask in self.masks.items():
            network.set_submodule(name, _Mask(mask[0]))
        count = len(next(iter(self.masks.values())))
        draws = {name: value.expand(count, *value.shape) for name, value in self.params.items()}
        return evaluate(network, {**draws, **{f"{name}.mask": mask for name, mask in self.masks.items()}}, x)


class _Mask(nn.Module):
    """Multiplies by a mask, a buffer that `evaluate` replaces for each draw."""

    mask: Tensor

    def __init__(self, mask: Tensor):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:].numel() and torch.broadcast_shapes(x.shape[1:], self.mask.shape[1:]) != x.shape[1:]:
            raise ValueError(
                f"A dropout layer has masks for hidden values of shape {tuple(self.mask.shape[1:])}, which were fixed "
                f"by the training inputs; got {tuple(x.shape[1:])}. Bring all inputs to one shape."
            )
        return x * self.mask


@dataclass(frozen=True)
class _Recorder:
    """A forward pre-hook that records the shapes of the inputs."""

    shapes: list[torch.Size]

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.shapes.append(inputs[0].shape)
