"""The generalized Gauss-Newton curvature of a log-likelihood over weights, in three structures.

    H = sum_i w_i J_i' Lambda_i J_i,  J_i = d f(x_i; w) / d w (k, p),  Lambda_i = likelihood.curvature(f_i, y_i) (k, k)

`full` keeps H; `diagonal` its diagonal; `kronecker` (in `kfac_factors`) one product `G (x) A` a layer, A from the
inputs of the layer and G from the gradients at its outputs. Everything is summed over chunks of data: no (n, k, p)
array is ever in memory.

References:
    Martens. New insights and perspectives on the natural gradient method. JMLR 2020, section 8.
    Martens, Grosse. Optimizing neural networks with Kronecker-factored approximate curvature. ICML 2015, section 3.
    Grosse, Martens. A Kronecker-factored approximate Fisher matrix for convolution layers. ICML 2016, theorem 1.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from linear_operator import LinearOperator
from linear_operator.operators import DiagLinearOperator
from torch import Tensor, nn
from torch.func import jacrev, vmap

from bayeskit.bnn.curvature.eigenbasis import BlockBasis, DenseBasis, whitened_eigh
from bayeskit.bnn.curvature.linearized_evidence import (
    Expansion,
    LocalEvidence,
    ModeEvidence,
    SeparableEvidence,
    WeightEvidence,
)
from bayeskit.bnn.curvature.ntk import is_pointwise, layer_gradients, separates
from bayeskit.bnn.curvature.prior_precision import PriorPrecision
from bayeskit.bnn.networks.functional import NetworkFunction
from bayeskit.bnn.networks.layers import is_plain
from bayeskit.core import operators
from bayeskit.core.inputs import Batch, one_tensor
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.types import Data


class Curvature(ABC):
    """H in some structure, over p weights.

    Invariant: `covariance(P, d, h)` inverts `h H + P(d)`, of which `evidence` takes the log determinant.
    """

    @abstractmethod
    def evidence(self, expansion: Expansion) -> LocalEvidence:
        """The evidence as a function of log precisions and noise, in the coordinates that are cheapest for H."""

    @abstractmethod
    def covariance(
        self, prior: PriorPrecision, log_precision: Tensor, factor: Tensor, *, dtype: torch.dtype
    ) -> LinearOperator:
        """`(factor * H + P(log_precision))^-1` as an operator (p, p) of this type."""


@dataclass(frozen=True, eq=False)
class FullCurvature(Curvature):
    """The matrix itself.

    Args:
        matrix: H, (p, p), float64.
    """

    matrix: Tensor

    def evidence(self, expansion: Expansion) -> ModeEvidence:
        """By eigenvalues; by a factorization at each value where groups of weights have precisions of their own."""
        base = expansion.prior.base
        assert isinstance(base, Tensor)
        if len(expansion.prior.names) == 1:
            return SeparableEvidence(expansion, DenseBasis(*whitened_eigh(self.matrix, _dense(base))))
        scale = base.rsqrt()
        return WeightEvidence(expansion, scale[:, None] * self.matrix * scale)

    def covariance(
        self, prior: PriorPrecision, log_precision: Tensor, factor: Tensor, *, dtype: torch.dtype
    ) -> LinearOperator:
        """The inverse of a dense precision, factorized once."""
        return operators.Inverse((factor * self.matrix + _dense(prior.scaled(log_precision))).to(dtype))


@dataclass(frozen=True, eq=False)
class DiagonalCurvature(Curvature):
    """The diagonal of H: correlations between weights are neglected.

    Args:
        diagonal: (p,), float64.
    """

    diagonal: Tensor

    def evidence(self, expansion: Expansion) -> ModeEvidence:
        """Weight by weight, each in units of its prior standard deviation."""
        precision, groups = expansion.prior.base, expansion.prior.groups
        assert isinstance(precision, Tensor)
        index = torch.arange(len(self.diagonal), device=self.diagonal.device)
        basis = BlockBasis(self.diagonal / precision, groups, ((index, precision.rsqrt(), ()),))
        return SeparableEvidence(expansion, basis)

    def covariance(
        self, prior: PriorPrecision, log_precision: Tensor, factor: Tensor, *, dtype: torch.dtype
    ) -> LinearOperator:
        """Independent weights."""
        precision = prior.scaled(log_precision)
        return DiagLinearOperator((1 / (factor * self.diagonal + precision)).to(dtype))  # type: ignore[arg-type]


def full(function: NetworkFunction, weights: Tensor, data: Data, likelihood: Likelihood) -> FullCurvature:
    """H itself; of an `nn.Linear` by weighted products of its inputs, without Jacobians."""
    table = isinstance(data.x[:1], Tensor) and len(data.x.shape) == 2
    if table and is_plain(function.network, nn.Linear) and "weight" in function.like:
        return FullCurvature(_linear_layer(function, weights, data, likelihood))
    matrix = torch.zeros(len(weights), len(weights), dtype=torch.float64, device=weights.device)
    for jacobian in _weighted_jacobians(function, weights, data, likelihood):
        matrix += jacobian.mT @ jacobian
    return FullCurvature(matrix)


def diagonal(function: NetworkFunction, weights: Tensor, data: Data, likelihood: Likelihood) -> DiagonalCurvature:
    """The diagonal of H, from the inputs and output gradients of linear layers; by Jacobians for other networks."""
    total = torch.zeros(len(weights), dtype=torch.float64, device=weights.device)
    first = data.x[:1]
    if is_pointwise(function, weights, first) and separates(function, weights, data.x[:2]):
        for part in operators.chunks(len(data), 8 * function(weights, first).shape[-1] * _width(function)):
            total += _squares(function, weights, data.rows(part), likelihood)
        return DiagonalCurvature(total)
    for jacobian in _weighted_jacobians(function, weights, data, likelihood):
        total += jacobian.square().sum(0)
    return DiagonalCurvature(total)


def curvature_root(likelihood: Likelihood, f: Tensor, data: Data) -> Tensor:
    """R with `R R' = w Lambda` at each data point, (n, k, k) in float64."""
    root = likelihood.curvature_root(f.double(), data.y).detach()
    return root if data.weights is None else root * data.weights.double().sqrt()[:, None, None]


def _weighted_curvature(likelihood: Likelihood, f: Tensor, data: Data) -> Tensor:
    """`w Lambda` at each data point, (n, k, k), float64."""
    curvature = likelihood.curvature(f, data.y).detach().double()
    return curvature if data.weights is None else curvature * data.weights.double()[:, None, None]


def _weighted_jacobians(
    function: NetworkFunction, weights: Tensor, data: Data, likelihood: Likelihood
) -> Iterator[Tensor]:
    """`R_i' J_i` for some data points at a time, (c * k, p) in float64, so that H is the sum of their products."""
    outputs = function(weights, data.x[:1]).shape[-1]

    def values(w: Tensor, x: Batch) -> tuple[Tensor, Tensor]:
        f = function(w, x.unsqueeze(0)).squeeze(0)
        return f, f

    jacobians = vmap(jacrev(values, has_aux=True), in_dims=(None, 0))
    for part in operators.chunks(len(data), 4 * outputs * function.num_weights):
        batch = data.rows(part)
        try:
            jacobian, f = jacobians(weights, batch.x[:])  # (c, k, p), (c, k)
        except RuntimeError as error:
            raise ValueError(
                f"torch.func cannot differentiate {type(function.network).__name__} input by input ({error}). Avoid "
                "control flow that looks at values and in-place changes, or use `subset='last_layer'`."
            ) from error
        root = curvature_root(likelihood, f, batch)
        yield torch.einsum("cij,cip->cjp", root, jacobian.double()).flatten(0, 1)


def _squares(function: NetworkFunction, weights: Tensor, data: Data, likelihood: Likelihood) -> Tensor:
    """The share of some data points in the diagonal of H, (p,): squares of `s a'` are those of s times those of a."""
    layers, parts = layer_gradients(function, weights, data.x[:]), []
    assert layers is not None
    root = curvature_root(likelihood, function(weights, data.x[:]), data)
    for name in function.like:
        layer, _, part = name.rpartition(".")
        inputs, slopes = layers[layer]
        squares = (root.mT @ slopes).square().sum(1)  # (c, a)
        parts.append((squares.mT @ inputs.square()).flatten() if part == "weight" else squares.sum(0))
    return torch.cat(parts)


def _width(function: NetworkFunction) -> int:
    """Numbers in the inputs and outputs of all layers at a data point."""
    return sum(sum(value.shape) for value in function.like.values())


def _linear_layer(function: NetworkFunction, weights: Tensor, data: Data, likelihood: Likelihood) -> Tensor:
    """For `f = W phi`, block (a, b) of H is `sum_i Lambda_i[a, b] phi_i phi_i'`; phi ends in 1 if there is a bias."""
    order = kronecker_order(function)
    outputs, inputs = order.shape
    total = torch.zeros(outputs, inputs, outputs, inputs, dtype=torch.float64, device=weights.device)
    for part in operators.chunks(len(data), 4 * outputs * inputs + outputs**2):
        batch = data.rows(part)
        x = one_tensor(batch.x)
        features = with_one(x, inputs).double()
        curvature = _weighted_curvature(likelihood, function(weights, x), batch)
        for i in range(outputs):
            weighted = (curvature[:, i, : i + 1, None] * features[:, None, :]).flatten(1)  # (c, (i+1) * inputs)
            total[i, :, : i + 1] += (features.mT @ weighted).unflatten(-1, (i + 1, inputs))
    for i in range(outputs):
        total[:i, :, i] = total[i, :, :i].permute(1, 2, 0)
    flat = order.flatten()
    matrix = torch.empty(len(flat), len(flat), dtype=torch.float64, device=weights.device)
    matrix[flat[:, None], flat] = total.reshape(len(flat), len(flat))
    return matrix


def kronecker_order(function: NetworkFunction, layer: str = "") -> Tensor:
    """Positions in the flat vector of a layer's weights as a matrix (outputs, inputs), its bias as the last column."""
    prefix = f"{layer}." if layer else ""
    start, columns = 0, {}
    for name, value in function.like.items():
        if name in (f"{prefix}weight", f"{prefix}bias"):
            index = torch.arange(start, start + value.numel(), device=value.device)
            columns[name.rpartition(".")[2]] = index.reshape(len(value), -1)
        start += value.numel()
    return torch.cat([columns[key] for key in ("weight", "bias") if key in columns], dim=1)


def with_one(inputs: Tensor, width: int) -> Tensor:
    """Inputs (..., d) with a last column of ones if the layer has a bias, that is if `width` is d + 1."""
    if inputs.shape[-1] == width:
        return inputs
    return torch.cat([inputs, inputs.new_ones(*inputs.shape[:-1], 1)], dim=-1)


def _dense(precision: Tensor | LinearOperator) -> Tensor:
    assert isinstance(precision, Tensor)
    return torch.diag(precision) if precision.ndim == 1 else precision
