"""The generalized Gauss-Newton curvature of a log-likelihood over weights, in three structures.

    H = sum_i w_i J_i' Lambda_i J_i,  J_i = d f(x_i; w) / d w (k, p),  Lambda_i = likelihood.curvature(f_i, y_i) (k, k)

`full` keeps H; `diagonal` its diagonal; `kronecker` (in a file of its own) one product `G (x) A` a layer, A from what
enters the layer and G from the gradients that reach its output. Everything is summed over chunks of rows: no (n, k, p)
array is ever alive.

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

from bayeskit.bnn.curvature.eigenbasis import Basis, BlockBasis, DenseBasis
from bayeskit.bnn.curvature.linearized_evidence import (
    LocalEvidence,
    MovingEvidence,
    Noise,
    SeparableEvidence,
    WeightEvidence,
)
from bayeskit.bnn.curvature.ntk import is_by_rows, separates, sides
from bayeskit.bnn.curvature.prior_precision import PriorPrecision
from bayeskit.bnn.networks.functional import NetworkFunction
from bayeskit.bnn.networks.layers import is_plain
from bayeskit.core import operators
from bayeskit.core.inputs import Batch, one_tensor
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.operators import CHUNK_ELEMENTS
from bayeskit.core.types import Data


@dataclass(frozen=True, eq=False)
class Expansion:
    """What else the log joint density to second order about weights w0 consists of.

    Args:
        offset: w0 - m from the prior mean, (p,), float64.
        gradient: Of the log-likelihood, (p,), float64.
        log_likelihood: At w0.
        noise: Of a Gaussian likelihood whose noise is learnt, else None.
        prior: Its precision.
    """

    offset: Tensor
    gradient: Tensor
    log_likelihood: Tensor
    noise: Noise | None
    prior: PriorPrecision


class Curvature(ABC):
    """H in some structure, over p weights.

    Laws: `covariance(P, d, h)` inverts `h H + P(d)`, of which `evidence` takes the log determinant.
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

    def evidence(self, expansion: Expansion) -> MovingEvidence:
        """By eigenvalues; by a factorization at each value where groups of weights have precisions of their own."""
        base, groups = expansion.prior.base, expansion.prior.groups
        assert isinstance(base, Tensor)
        if len(expansion.prior.names) == 1:
            return separable(self.basis(base), expansion)
        scale = base.rsqrt()
        white = scale[:, None] * self.matrix * scale
        start, gradient = expansion.offset / scale, expansion.gradient * scale
        return WeightEvidence(expansion.log_likelihood, expansion.noise, scale, groups, white, start, gradient)

    def basis(self, precision: Tensor) -> DenseBasis:
        """Eigenvectors of `L^-1 H L^-T`, where the precision is `L L'`."""
        tril = operators.factorize(_dense(precision), name="the prior precision").tril
        half = torch.linalg.solve_triangular(tril, self.matrix, upper=False)
        white = torch.linalg.solve_triangular(tril, half.mT, upper=False)
        values, vectors = torch.linalg.eigh((white + white.mT) / 2)
        groups = torch.zeros(len(values), dtype=torch.long, device=values.device)
        return DenseBasis(values.clamp_min(0), groups, tril, vectors)

    def covariance(
        self, prior: PriorPrecision, log_precision: Tensor, factor: Tensor, *, dtype: torch.dtype
    ) -> LinearOperator:
        """The inverse of a dense precision, factorized once."""
        return operators.Inverse((factor * self.matrix + _dense(prior.scaled(log_precision))).to(dtype))


@dataclass(frozen=True, eq=False)
class DiagonalCurvature(Curvature):
    """The diagonal of H, as if every weight were alone.

    Args:
        diagonal: (p,), float64.
    """

    diagonal: Tensor

    def evidence(self, expansion: Expansion) -> MovingEvidence:
        """By weights."""
        assert isinstance(expansion.prior.base, Tensor)
        return separable(self.basis(expansion.prior.base, expansion.prior.groups), expansion)

    def basis(self, precision: Tensor, groups: Tensor) -> BlockBasis:
        """Each weight in units of its prior standard deviation."""
        index = torch.arange(len(self.diagonal), device=self.diagonal.device)
        return BlockBasis(self.diagonal / precision, groups, ((index, precision.rsqrt(), ()),))

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
    for rows in _weighted_jacobians(function, weights, data, likelihood):
        matrix += rows.mT @ rows
    return FullCurvature(matrix)


def diagonal(function: NetworkFunction, weights: Tensor, data: Data, likelihood: Likelihood) -> DiagonalCurvature:
    """The diagonal of H, from what enters and leaves linear layers; by rows of the Jacobian for other networks."""
    total = torch.zeros(len(weights), dtype=torch.float64, device=weights.device)
    first = data.x[:1]
    if is_by_rows(function, weights, first) and separates(function, weights, data.x[:2]):
        for rows in pieces(data, 8 * function(weights, first).shape[-1] * _width(function)):
            total += _squares(function, weights, rows, likelihood)
        return DiagonalCurvature(total)
    for jacobian in _weighted_jacobians(function, weights, data, likelihood):
        total += jacobian.square().sum(0)
    return DiagonalCurvature(total)


def likelihood_root(likelihood: Likelihood, f: Tensor, rows: Data) -> Tensor:
    """R with `R R' = w Lambda` at each row, (n, k, k) in float64; rounding below zero is cut off."""
    curvature = likelihood.curvature(f, rows.y).detach().double()
    if rows.weights is not None:
        curvature = curvature * rows.weights.double()[:, None, None]
    if curvature.shape[-1] == 1:
        return curvature.clamp_min(0).sqrt()
    values, vectors = torch.linalg.eigh(curvature)
    return vectors * values.clamp_min(0).sqrt().unsqueeze(-2)


def pieces(data: Data, row_elements: int) -> Iterator[Data]:
    """The rows a few at a time, such that `row_elements` numbers a row stay within `CHUNK_ELEMENTS`."""
    count = max(1, CHUNK_ELEMENTS // max(1, row_elements))
    for start in range(0, len(data), count):
        yield data.rows(slice(start, start + count))


def _weighted_jacobians(
    function: NetworkFunction, weights: Tensor, data: Data, likelihood: Likelihood
) -> Iterator[Tensor]:
    """`R_i' J_i` for some rows of data at a time, (c * k, p) in float64, so that H is the sum of their products."""
    outputs = function(weights, data.x[:1]).shape[-1]

    def values(w: Tensor, x: Batch) -> tuple[Tensor, Tensor]:
        f = function(w, x.unsqueeze(0)).squeeze(0)
        return f, f

    jacobians = vmap(jacrev(values, has_aux=True), in_dims=(None, 0))
    for rows in pieces(data, 4 * outputs * function.num_weights):
        try:
            jacobian, f = jacobians(weights, rows.x[:])  # (c, k, p), (c, k)
        except RuntimeError as error:
            raise ValueError(
                f"torch.func cannot differentiate {type(function.network).__name__} row by row ({error}). Avoid "
                "control flow that looks at values and in-place changes, or use `subset='last_layer'`."
            ) from error
        root = likelihood_root(likelihood, f, rows)
        yield torch.einsum("cij,cip->cjp", root, jacobian.double()).flatten(0, 1)


def _squares(function: NetworkFunction, weights: Tensor, rows: Data, likelihood: Likelihood) -> Tensor:
    """What some rows add to the diagonal of H, (p,): a gradient `s a'` squared is a square by a square."""
    own, parts = sides(function, weights, rows.x[:]), []
    assert own is not None
    root = likelihood_root(likelihood, function(weights, rows.x[:]), rows)
    for name in function.like:
        layer, _, part = name.rpartition(".")
        entered, left = own[layer]
        squares = (root.mT @ left).square().sum(1)  # (c, a)
        parts.append((squares.mT @ entered.square()).flatten() if part == "weight" else squares.sum(0))
    return torch.cat(parts)


def _width(function: NetworkFunction) -> int:
    """Numbers that enter and leave the layers at a row."""
    return sum(sum(value.shape) for value in function.like.values())


def _linear_layer(function: NetworkFunction, weights: Tensor, data: Data, likelihood: Likelihood) -> Tensor:
    """For `f = W phi`, block (a, b) of H is `sum_i Lambda_i[a, b] phi_i phi_i'`; phi ends in 1 if there is a bias."""
    order = kronecker_order(function)
    outputs, inputs = order.shape
    total = torch.zeros(outputs, inputs, outputs, inputs, dtype=torch.float64, device=weights.device)
    for rows in pieces(data, 4 * outputs * inputs + outputs**2):
        x = one_tensor(rows.x)
        features = with_one(x, inputs).double()
        f = function(weights, x)
        curvature = likelihood.curvature(f, rows.y).detach().double()
        if rows.weights is not None:
            curvature = curvature * rows.weights.double()[:, None, None]
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


def separable(basis: Basis, expansion: Expansion) -> SeparableEvidence:
    """The evidence in coordinates in which every weight is alone."""
    start, gradient = basis.coordinates(expansion.offset), basis.dual(expansion.gradient)
    return SeparableEvidence(expansion.log_likelihood, expansion.noise, basis, start, gradient)


def _dense(precision: Tensor | LinearOperator) -> Tensor:
    assert isinstance(precision, Tensor)
    return torch.diag(precision) if precision.ndim == 1 else precision
