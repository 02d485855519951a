"""A curvature with one Kronecker product a layer, on top of a prior of independent weights or of such products.

A prior with precision `D^-1 (G0 (x) A0 + I) D^-1`, the posterior of earlier data, and a curvature `G1 (x) A1` make a
sum of two products, which is no product. It is replaced by the nearest one (see `nearest_product`), so that the next
posterior has the form of the last. The prior scales D, chosen before any data, stay exactly as they were.

References:
    Ritter, Botev, Barber. Online structured Laplace approximations for overcoming catastrophic forgetting. NeurIPS
    2018.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from linear_operator import LinearOperator
from torch import Tensor

from bayeskit.bnn.curvature.eigenbasis import BlockBasis
from bayeskit.bnn.curvature.ggn import Curvature
from bayeskit.bnn.curvature.linearized_evidence import Expansion, LocalEvidence, SeparableEvidence
from bayeskit.bnn.curvature.prior_precision import PriorPrecision
from bayeskit.bnn.weights.layer_block_covariance import LayerBlocks, factored_blocks
from bayeskit.bnn.weights.low_rank_update import Precision
from bayeskit.core import operators

Factors = tuple[Tensor, Tensor]
"""G (a, a) and A (b, b) of a product `G (x) A`."""

Layer = tuple[Tensor, Tensor, Factors]
"""Positions (a * b,) of a layer's weights, the prior's scales D by input (b,), and the factors between two D."""


@dataclass(frozen=True, eq=False)
class KroneckerCurvature(Curvature):
    """One block `G (x) A` for each layer.

    Args:
        layers: In turn (index, G, A, name): positions (a * b,) of the layer's weights, output by output with the bias
            last, the factors (a, a) and (b, b) in float64, and the layer's name.
    """

    layers: tuple[tuple[Tensor, Tensor, Tensor, str], ...]

    def evidence(self, expansion: Expansion) -> LocalEvidence:
        """By products of eigenvalues."""
        prior = expansion.prior
        if isinstance(prior.base, Tensor):
            return SeparableEvidence(expansion, self.basis(prior.base, prior.groups))
        return ProductEvidence(expansion, self)

    def basis(self, precision: Tensor, groups: Tensor) -> BlockBasis:
        """Products of the eigenvectors of the factors, layer by layer."""
        values, numbers, blocks = [], [], []
        for index, scale, factors in self.added_to(precision, precision.new_ones(())):
            (lam_g, q_g), (lam_a, q_a) = map(_eigh, factors)
            values.append(torch.outer(lam_g, lam_a).flatten())
            numbers.append(groups[index])
            blocks.append((index, scale.repeat(len(lam_g)), (q_g, q_a)))
        return BlockBasis(torch.cat(values), torch.cat(numbers), tuple(blocks))

    def covariance(
        self, prior: PriorPrecision, log_precision: Tensor, factor: Tensor, *, dtype: torch.dtype
    ) -> LinearOperator:
        """Independent layers, each kept in the eigenbasis of its factors."""
        parts: list[LinearOperator | Tensor] = []
        for index, scale, factors in self.added_to(prior.scaled(log_precision), factor):
            (lam_g, q_g), (lam_a, q_a) = map(_eigh, factors)
            pieces = (q_g, lam_g, q_a, lam_a, torch.ones_like(factor))
            middle = operators.KroneckerInverse(*(piece.to(dtype) for piece in pieces))
            parts += [middle, index, scale.repeat(len(lam_g)).to(dtype)]
        return LayerBlocks(*parts)

    def added_to(self, precision: Tensor | Precision, factor: Tensor) -> Iterator[Layer]:
        """A prior's precision plus `factor` times this curvature, `D^-1 (G (x) A + I) D^-1` layer by layer."""
        for index, output, inputs, name in self.layers:
            scale, earlier = _prior_of(precision, index, len(output), name)
            new = factor * output, inputs * scale[:, None] * scale
            yield index, scale, new if earlier is None else nearest_product(earlier, new)


@dataclass(frozen=True, eq=False)
class ProductEvidence(LocalEvidence):
    """The evidence at fixed weights under a prior of products; the nearest product changes with the noise.

    Args:
        expansion: About the weights, with a prior of products.
        curvature: H.
    """

    expansion: Expansion
    curvature: KroneckerCurvature

    def occam(self, log_precision: Tensor, log_noise: Tensor) -> Tensor:
        """`-(sum log(1 + g a) - log |D P D|) / 2` over the products' eigenvalues."""
        precision = self.expansion.prior.base
        assert isinstance(precision, Precision)
        layers = self.curvature.added_to(precision, torch.exp(-log_noise))
        after = [torch.log1p(torch.outer(_eigvalsh(g), _eigvalsh(a))).sum() for _, _, (g, a) in layers]
        before = [
            (block.shift * block.eigenvalues()).double().log().sum()
            for block, _, _ in factored_blocks(precision.covariance)
        ]
        return -0.5 * (torch.stack(after).sum() + torch.stack(before).sum())


def nearest_product(first: Factors, second: Factors) -> Factors:
    """The product `G (x) A` that is nearest to `G0 (x) A0 + G1 (x) A1` in the Frobenius norm.

    Rearranged into `vec(G0) vec(A0)' + vec(G1) vec(A1)'` the sum is a matrix of rank two, and the nearest product its
    leading singular pair, which lies in the spans: `G = x0 G0 + x1 G1` with x the leading eigenvector of `K_A K_G`,
    `K_G[i, j] = tr(G_i G_j)` and K_A likewise, and `A = y0 A0 + y1 A1` with `y = K_G x / (x' K_G x)`. No entry of K is
    negative, so none of x and y is: the product is semi-definite, and it is the sum itself if either pair is parallel.

    Args:
        first: G0 (a, a) and A0 (b, b), symmetric and positive semi-definite.
        second: G1 and A1.

    References:
        Van Loan, Pitsianis. Approximation with Kronecker products. 1993, section 2.

    >>> one, two = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    >>> g, a = nearest_product((one, one), (one, two))
    >>> torch.kron(g, a).diagonal().tolist()
    [2.0, 1.0, 2.0, 1.0]
    """
    outputs, inputs = (torch.stack(pair) for pair in zip(first, second, strict=True))
    k_g, k_a = (torch.einsum("iab,jab->ij", pair, pair) for pair in (outputs, inputs))
    x = _leading(k_a @ k_g)
    y = k_g @ x / (x @ k_g @ x).clamp_min(torch.finfo(x.dtype).tiny)
    return torch.einsum("i,iab->ab", x, outputs), torch.einsum("i,iab->ab", y, inputs)


def _leading(matrix: Tensor) -> Tensor:
    """The leading eigenvector of a matrix (2, 2) without negative entries; its own are not negative either."""
    a, b, c, d = matrix.flatten().unbind()
    largest = (a + d + ((a - d).square() + 4 * b * c).sqrt()) / 2
    x = torch.stack([b + largest - d, largest - a + c]).clamp_min(0)  # (b, l - a) and (l - d, c) are multiples of it
    return x / x.sum() if x.sum() > 0 else torch.ones_like(x)  # of two equal pairs at right angles, any vector is one


def _prior_of(precision: Tensor | Precision, index: Tensor, outputs: int, name: str) -> tuple[Tensor, Factors | None]:
    """The scales D of a layer by input, (b,), and the factors between them if earlier data have left some."""
    if isinstance(precision, Tensor):
        return _input_scale(precision[index], outputs, name), None
    for block, own, scale in factored_blocks(precision.covariance):
        if torch.equal(own, index):
            output = (block.vectors_a * block.values_a) @ block.vectors_a.mT
            inputs = (block.vectors_g * block.values_g) @ block.vectors_g.mT
            shift = block.shift.double()  # D^-1 (G (x) A + shift I) D^-1, in units in which it is 1
            return scale[: len(inputs)].double() / shift.sqrt(), (output.double() / shift, inputs.double())
    raise ValueError(f"`prior` must have the factors of layer {name!r}, all of its weights in one block")


def _eigvalsh(matrix: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(matrix).clamp_min(0)


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(matrix)
    return values.clamp_min(0), vectors


def _input_scale(precision: Tensor, outputs: int, name: str) -> Tensor:
    """`1 / sqrt(precision)` by input of a layer, (b,); the factors stay factors only if outputs share it."""
    by_output = precision.reshape(outputs, -1)
    if not torch.allclose(by_output, by_output[:1].expand_as(by_output), rtol=1e-6):
        raise ValueError(
            f"`structure='kronecker'` needs a prior precision that is the same for all outputs of layer {name!r}, such "
            "as that of `bnn.gaussian_prior` or what this structure has made of it. The posterior of earlier data has "
            "another form: use structure='full' or 'diagonal', which add exactly."
        )
    return by_output[0].rsqrt()
