"""Monte Carlo push-forward of sparse weights, by sparse products."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bayeskit.bnn.networks.functional import call, frozen
from bayeskit.bnn.pushforward.bayes_net import DEFAULT_DRAWS, PushForward
from bayeskit.bnn.variational_inference.layer_estimators import Forward, names, replaced
from bayeskit.bnn.variational_inference.sparse_linear import Pattern
from bayeskit.bnn.variational_inference.sparse_support import Support
from bayeskit.bnn.variational_inference.sparse_weights import SparseWeights
from bayeskit.bnn.weights.weight_posterior import WeightPosterior
from bayeskit.core import operators
from bayeskit.core.inputs import Batch
from bayeskit.core.posterior import SampledValues
from bayeskit.core.types import Inputs

ROWS = 512
"""Inputs of a sparse product at a time: with a thousand outputs 4 MB in float64, which stays in the cache."""


@dataclass(frozen=True)
class SparseMonteCarlo(PushForward):
    """`MonteCarlo` for `SparseWeights`: the same functions, with sparse products in the layers named.

    Args:
        num_samples: Number s of draws; None for 32.
        seed: Fixes the draws.
        layers: Names of `Linear` layers whose weight is used by nothing else.
    """

    num_samples: int | None = None
    seed: int = 0
    layers: tuple[str, ...] = ()

    def values(self, network: nn.Module, weights: WeightPosterior, x: Inputs) -> SampledValues:
        """The network's outputs at each draw, (s, n, k)."""
        return SampledValues(self._functions(network, weights, self._draws(weights))(x))

    def sample_functions(
        self, network: nn.Module, weights: WeightPosterior, num_samples: int, *, generator: torch.Generator
    ) -> "SparseFunctions":
        """The network at s draws, picked with replacement from those of `values`."""
        draws = self._draws(weights)
        index = torch.randint(len(draws), (num_samples,), generator=generator, device=generator.device)
        return self._functions(network, weights, draws[index.to(draws.device)])

    def _draws(self, weights: WeightPosterior) -> Tensor:
        assert isinstance(weights, SparseWeights)
        generator = torch.Generator(weights.values.device).manual_seed(self.seed)
        return weights.draw(self.num_samples or DEFAULT_DRAWS, generator=generator)

    def _functions(self, network: nn.Module, weights: WeightPosterior, draws: Tensor) -> "SparseFunctions":
        assert isinstance(weights, SparseWeights)
        return SparseFunctions(frozen(network), weights.support, draws, self.layers)


@dataclass(frozen=True, eq=False)
class SparseFunctions:
    """The network at fixed draws of its active weights.

    Args:
        network: In evaluation mode.
        support: Which weights are active.
        draws: (c, s).
        layers: Names of the layers that take sparse products.
    """

    network: nn.Module
    support: Support
    draws: Tensor
    layers: tuple[str, ...]

    def __call__(self, x: Inputs) -> Tensor:
        """Outputs (c, n, k) at inputs (n, *input_shape)."""
        patterns = {}
        for name in self.layers:
            weight = names(name, self.network.get_submodule(name))["weight"]
            positions = self.support.positions(weight)
            assert positions is not None
            patterns[weight] = Pattern(positions, self.support.shapes[weight])
        pieces = []
        for rows in operators.pieces(x, 64 * max(1, x.shape[1:].numel())):
            pieces.append(torch.stack([self._at(draw, rows, patterns) for draw in self.draws]))
        return torch.cat(pieces, dim=1)

    def _at(self, draw: Tensor, x: Batch, patterns: dict[str, Pattern]) -> Tensor:
        parts = self.support.split(draw)
        forwards: dict[nn.Module, Forward] = {}
        for name in self.layers:
            layer = self.network.get_submodule(name)
            own = names(name, layer)
            values, bias = parts.pop(own["weight"]), parts.pop(own.get("bias", ""), layer.bias)
            pattern = patterns[own["weight"]]
            forwards[layer] = lambda rows, p=pattern, v=values, b=bias: p.linear(rows, v, b)  # type: ignore[misc]
        params = {name: self.support.leaf(name, values) for name, values in parts.items()}
        params = params or dict(self.network.named_parameters())
        with replaced(forwards):
            return torch.cat([call(self.network, params, rows) for rows in x.split(ROWS)])
