"""The forward pass of a network under random weights."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from bayeskit.bnn.networks.functional import call
from bayeskit.bnn.variational_inference.layer_estimators import (
    Apply,
    Forward,
    flipout,
    local,
    names,
    obstacles,
    operation,
    refuse,
    replaced,
)
from bayeskit.bnn.variational_inference.sparse_linear import Pattern, is_faster
from bayeskit.bnn.variational_inference.sparse_support import Support
from bayeskit.core import generators
from bayeskit.core.inputs import Batch
from bayeskit.core.types import Params

Leaf = Callable[[Tensor], Tensor]


class Passes:
    """Runs a network at draws of independent Gaussian weights, or of the outputs of its layers.

    Args:
        network: The module; values of the weights it holds itself are not used.
        support: Which of its weights are random.
        estimator: "weight", "local" or "flipout".
        params: Some values of the weights, by which one pass finds the layers.
        x: Some inputs (2, *input_shape).

    Raises:
        ValueError: The outputs of a layer cannot be drawn in place of its weights.
    """

    def __init__(self, network: nn.Module, support: Support, estimator: str, params: Params, x: Batch):
        self.network, self.support, self.estimator = network, support, estimator
        why = obstacles(network, params, x) if estimator != "weight" or support.sparse else {}
        if estimator != "weight":
            refuse(network, why, estimator)
        self.sparse = [name for name, reason in why.items() if not reason and self._sparse(name)]
        self.replaced = self.sparse if estimator == "weight" else list(why)
        self._patterns: dict[str, Pattern] = {}
        self._version = support.version

    def __call__(
        self, mean: Tensor, scale: Tensor, x: Batch, *, generator: torch.Generator, gradients: Params | None = None
    ) -> Tensor:
        """Outputs (n, k) for means and standard deviations (s,).

        With a dictionary `gradients` all layers use dense products, and a backward pass adds to it the gradients of all
        the weights of sparse tensors.
        """
        means, scales = self.support.split(mean), self.support.split(scale)
        forwards: dict[nn.Module, Forward] = {}
        for name in self.replaced:
            layer = self.network.get_submodule(name)
            own = {key: full for key, full in names(name, layer).items() if full in means}
            center = {key: means.pop(full) for key, full in own.items()}
            spread = {key: scales.pop(full) for key, full in own.items()}
            part = _Part(layer, center, spread, *self._operation(name, own["weight"], gradients))
            forwards[layer] = part.noisy(self.estimator, generator)
        params: Params = {}
        for name, value in means.items():
            noise = generators.normal(value.shape, like=value, generator=generator)
            params[name] = self._leaf(name, gradients, value + scales[name] * noise)
        with replaced(forwards):
            return call(self.network, params or dict(self.network.named_parameters()), x)

    def _sparse(self, name: str) -> bool:
        weight = f"{name}.weight" if name else "weight"
        positions = self.support.positions(weight)
        linear = isinstance(self.network.get_submodule(name), nn.Linear)
        return linear and positions is not None and is_faster(positions, self.support.shapes[weight])

    def _operation(self, name: str, weight: str, gradients: Params | None) -> tuple[Apply, Leaf, Leaf]:
        """A layer as a function of inputs, weight and bias, and two functions from active entries to such a weight.

        The second one is for means and records the gradient.
        """
        if name in self.sparse and gradients is None:
            return self._pattern(weight).linear, _itself, _itself
        layer = self.network.get_submodule(name)
        return operation(layer), partial(self._leaf, weight, None), partial(self._leaf, weight, gradients)

    def _leaf(self, name: str, gradients: Params | None, values: Tensor) -> Tensor:
        """A dense tensor; its gradient is added to `gradients` if given."""
        leaf = self.support.leaf(name, values)
        if gradients is not None and name in self.support.sparse and leaf.requires_grad:
            leaf.register_hook(partial(_add, gradients, name))
        return leaf

    def _pattern(self, weight: str) -> Pattern:
        if self._version != self.support.version:
            self._patterns, self._version = {}, self.support.version
        if weight not in self._patterns:
            positions = self.support.positions(weight)
            assert positions is not None
            self._patterns[weight] = Pattern(positions, self.support.shapes[weight])
        return self._patterns[weight]


@dataclass(frozen=True, eq=False)
class _Part:
    """A layer with random parameters.

    Args:
        layer: The layer.
        center: Means of the active entries of its weight and, if it is random, its bias.
        spread: Their standard deviations.
        apply: The layer as a function of inputs, weight and bias.
        leaf: Maps active entries to a weight as `apply` takes it.
        watched: The same for a mean, with its gradient recorded.
    """

    layer: nn.Module
    center: Params
    spread: Params
    apply: Apply
    leaf: Leaf
    watched: Leaf

    def noisy(self, estimator: str, generator: torch.Generator) -> Forward:
        """A forward with random outputs."""
        given: Tensor | None = self.layer.bias  # type: ignore[assignment]
        bias = None if "bias" in self.center else given
        if estimator == "local":
            variances = {key: value.square() for key, value in self.spread.items()}
            mean, variance = self._product(self.center, bias, self.watched), self._product(variances)
            return lambda x: local(mean, variance, x, generator)
        noise = {k: v * generators.normal(v.shape, like=v, generator=generator) for k, v in self.spread.items()}
        if estimator == "weight":
            return self._product({key: self.center[key] + value for key, value in noise.items()}, bias, self.watched)
        mean, perturbed = self._product(self.center, bias, self.watched), self._product(noise)
        return lambda x: flipout(self.layer, mean, perturbed, x, generator)

    def _product(self, params: Params, bias: Tensor | None = None, leaf: Leaf | None = None) -> Forward:
        weight = (leaf or self.leaf)(params["weight"])
        return lambda x: self.apply(x, weight, params.get("bias", bias))


def _itself(values: Tensor) -> Tensor:
    return values


def _add(gradients: Params, name: str, gradient: Tensor) -> None:
    gradients[name] = gradients[name] + gradient if name in gradients else gradient
