"""Kernel and mean of a Gaussian process conditioned on data or on inducing points.

With inputs z, a lower-triangular L and A(x) = L^-1 k(z, x), every conditioned process has the covariance

    k(x1, x2) - A(x1)' A(x2) + (R' A(x1))' (R' A(x2))        and the mean        m(x) + k(x, z) w.

- Exact regression: z holds the data, L L' = k(z, z) + noise, R is absent, w = (L L')^-1 (y - m(z)).
- Inducing points with u = L v, v ~ N(q, R R'): L L' = k(z, z), w = L^-T q.

Conditioning such a process again, at z2 with factor L2 and R2, has the same form over the *first* kernel, with

    z = [z1; z2],    L = [[L1, 0], [C (I - R1 R1'), L2]],    R = diag(R1, R2),    C = A1(z2)',

because k1(z2, x) = k(z2, x) - C (I - R1 R1') A1(x). So sequential conditioning costs as much as one joint fit.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from gpytorch.kernels import Kernel
from gpytorch.means import Mean
from torch import Tensor

from bayeskit.core import operators
from bayeskit.core.operators import block_triangular
from bayeskit.gp.kernels.evaluate import gram, gram_diagonal, gram_pairs, mean_rows

SMALLEST_PIVOT = 1e-4
"""Smallest pivot of L relative to the largest at which L^-1 is formed, as its rounding errors enter the variance."""


class Conditioned(Kernel):
    """The covariance `k(x1, x2) - A(x1)' A(x2) + (R' A(x1))' (R' A(x2))` with `A(x) = L^-1 k(z, x)`.

    Evaluated in float64. The variance is a difference, so it is raised to rounding level (1e-14 of the prior variance)
    where it is below, which is noted in the diagnostics.

    Args:
        base: The kernel before conditioning, of batch shape *b or none.
        z: Inputs conditioned on, (m, d).
        tril: Lower-triangular L, (*b, m, m).
        root: R with R R' the covariance of v = L^-1 f(z), (*b, m, r); None where v is known.
        noise: Variances of the observation noise inside L L', (*b, m); None for none. Only `sample_functions` uses it.
        blocks: Number of inputs in z from each conditioning, in order; None for a single one.

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> known_at_one = Conditioned(RBFKernel().requires_grad_(False), one, one)
        >>> bool(gram_diagonal(known_at_one, one) < 1e-12)
        True

    References:
        Titsias (2009), "Variational Learning of Inducing Variables in Sparse Gaussian Processes", equation 10.
    """

    def __init__(
        self,
        base: Kernel,
        z: Tensor,
        tril: Tensor,
        *,
        root: Tensor | None = None,
        noise: Tensor | None = None,
        blocks: tuple[int, ...] | None = None,
    ):
        shapes = [base.batch_shape, tril.shape[:-2]]
        shapes += [] if root is None else [root.shape[:-2]]
        super().__init__(batch_shape=torch.broadcast_shapes(*shapes))
        self.base = base
        self.z: Tensor
        self.tril: Tensor
        self.root: Tensor | None
        self.noise: Tensor | None
        self.register_buffer("z", z)
        self.register_buffer("tril", tril)
        self.register_buffer("root", root)
        self.register_buffer("noise", noise)
        self.blocks = (len(z),) if blocks is None else tuple(blocks)

    @property
    def batch_shape(self) -> torch.Size:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Broadcast from `base`, L and R alone; gpytorch would include all nested kernels."""
        return self._batch_shape

    def projection(self, x: Tensor) -> Tensor:
        """A(x) = L^-1 k(z, x), (*b, m, n)."""
        return self._projected(gram(self.base, self.z, x.double()))

    def _projected(self, cross: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.tril, cross, upper=False)

    def deflated(self, projection: Tensor) -> Tensor:
        """(I - R R') A, the part of A that conditioning explains: (*b, m, n)."""
        return projection if self.root is None else projection - self.root @ (self.root.mT @ projection)

    @cached_property
    def _reduction(self) -> Tensor | None:
        """A lower-triangular F (*b, m, m) with F' F = L^-T (I - R R') L^-1: the variance is k(x, x) - |F k(z, x)|^2.

        This is one product instead of a solve and a product. None where it does not help or is inaccurate: where there
        is no R, where pivots of L are so small that L^-1 amplifies rounding, or where R R' exceeds I.
        """
        pivots = self.tril.diagonal(dim1=-2, dim2=-1)
        if self.root is None or not pivots.numel() or bool(pivots.amin() < SMALLEST_PIVOT * pivots.amax()):
            return None
        excess = torch.eye(len(self.z), dtype=self.tril.dtype, device=self.tril.device) - self.root @ self.root.mT
        # The lower factor of the matrix with rows and columns reversed gives the upper one, U U' = I - R R'.
        reverse, failed = torch.linalg.cholesky_ex(excess.flip(-1, -2))
        if bool(failed.any()):
            return None
        return block_triangular.lower_matmul(
            reverse.flip(-1, -2).mT.contiguous(), block_triangular.lower_inverse(self.tril.expand(reverse.shape))
        )

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.__dict__.pop("_reduction", None)  # recomputed from the moved tensors
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *arguments: Any, **named: Any) -> None:
        self.__dict__.pop("_reduction", None)
        super()._load_from_state_dict(*arguments, **named)

    def __getstate__(self) -> dict[str, Any]:
        """Without the cached reduction."""
        return {name: value for name, value in self.__dict__.items() if name != "_reduction"}

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False
    ) -> Tensor:
        """Covariances (*b, n1, n2), or variances (*b, n) with `diag` (gpytorch's calling convention)."""
        if last_dim_is_batch:
            raise ValueError("a Conditioned kernel does not support `last_dim_is_batch=True`")
        same = identical(x1, x2)
        if diag and same:
            pieces = ((self._variance(x),) for x in _pieces(x1, self.width))
            return _joined(pieces, x1.shape[-2])[0]
        if diag:
            first, second = (operators.pieces(x, self.width, dim=-2) for x in (x1, x2))
            return torch.cat([self._pairs(a, b) for a, b in zip(first, second, strict=True)], dim=-1)
        first = self.projection(x1)
        second = first if same else self.projection(x2)
        value = gram(self.base, x1, x1 if same else x2) - first.mT @ second
        if self.root is not None:
            half = self.root.mT @ first
            value = value + half.mT @ (half if same else self.root.mT @ second)
        return _raised(value, gram_diagonal(self.base, x1)) if same else value

    def _variance(self, x: Tensor) -> Tensor:
        return self.variance_given(x, gram(self.base, self.z, x.double()))

    def variance_given(self, x: Tensor, cross: Tensor) -> Tensor:
        """k(x_i, x_i) - |A(x_i)|^2 + |R' A(x_i)|^2, at least rounding level: (*b, n), given `cross` = k(z, x)."""
        before = gram_diagonal(self.base, x)
        factor = self._reduction
        if factor is not None:
            if cross.requires_grad:
                left = factor @ cross
            else:
                batch = torch.broadcast_shapes(factor.shape[:-2], cross.shape[:-2])
                left = block_triangular.lower_matmul(factor.expand(*batch, -1, -1), cross.expand(*batch, -1, -1))
            return floored(before - left.square().sum(-2), before)
        projection = self._projected(cross)
        value = before - projection.square().sum(-2)
        if self.root is not None:
            value = value + (self.root.mT @ projection).square().sum(-2)
        return floored(value, before)

    def _pairs(self, x1: Tensor, x2: Tensor) -> Tensor:
        """The covariance of each row of x1 with the same row of x2."""
        first, second = self.projection(x1), self.projection(x2)
        return gram_pairs(self.base, x1, x2) - (first * self.deflated(second)).sum(-2)

    @property
    def width(self) -> int:
        """Numbers in k(z, x) for one input x."""
        return len(self.z) * self.batch_shape.numel()


class ConditionedMean(Mean):
    """The mean `m(x) + k(x, z) w`, in float64.

    Args:
        base_mean: The mean before conditioning, of batch shape (), (1,) or (k,).
        base_kernel: The kernel before conditioning, of batch shape () or (k,).
        z: Inputs conditioned on, (m, d).
        weights: w for each output, (k, m).

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> from gpytorch.means import ZeroMean
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> ConditionedMean(ZeroMean(), RBFKernel().requires_grad_(False), one, weights=2 * one)(one)
        tensor([[2.]], dtype=torch.float64)
    """

    def __init__(self, base_mean: Mean, base_kernel: Kernel, z: Tensor, weights: Tensor):
        super().__init__()
        self.base_mean, self.base_kernel = base_mean, base_kernel
        self.z: Tensor
        self.weights: Tensor
        self.register_buffer("z", z)
        self.register_buffer("weights", weights)

    def forward(self, x: Tensor) -> Tensor:
        """Means (k, n) at inputs (n, d)."""
        width = len(self.z) * self.base_kernel.batch_shape.numel()
        pieces = ((self._values(part),) for part in _pieces(x.double(), width))
        return _joined(pieces, x.shape[-2])[0]

    def _values(self, x: Tensor) -> Tensor:
        return self.values_given(x, gram(self.base_kernel, self.z, x))

    def values_given(self, x: Tensor, cross: Tensor) -> Tensor:
        """Means (k, n) given `cross` = k(z, x), (m, n) or (k, m, n)."""
        rows = self.weights if cross.dim() == 2 else self.weights.unsqueeze(-2)
        shift = rows @ cross
        return mean_rows(self.base_mean, x, len(self.weights)) + (shift if cross.dim() == 2 else shift.squeeze(-2))


def shared_conditioning(mean: Mean, kernel: Kernel) -> tuple[ConditionedMean, Conditioned] | None:
    """Mean and kernel if both use the same k(z, x), as after conditioning a process; else None."""
    if not isinstance(mean, ConditionedMean) or not isinstance(kernel, Conditioned):
        return None
    return (mean, kernel) if mean.base_kernel is kernel.base and identical(mean.z, kernel.z) else None


def moments(mean: ConditionedMean, kernel: Conditioned, x: Tensor) -> tuple[Tensor, Tensor]:
    """Means (k, n) and variances (n,) or (k, n) at inputs (n, d), with each k(z, x) formed only once."""

    def pieces() -> Iterator[tuple[Tensor, Tensor]]:
        for part in _pieces(x.double(), kernel.width):
            cross = gram(kernel.base, kernel.z, part)
            yield mean.values_given(part, cross), kernel.variance_given(part, cross)

    means, variances = _joined(pieces(), len(x))
    return means, variances


def _joined(pieces: Iterator[tuple[Tensor, ...]], size: int) -> tuple[Tensor, ...]:
    """Concatenate results (..., n_i) of successive chunks along the last axis, (..., size), in preallocated memory.

    A list of small results between large temporary blocks fragments the memory: 0.4 GiB at a million inputs.
    """
    whole: tuple[Tensor, ...] = ()
    start = 0
    for piece in pieces:
        whole = whole or tuple(part.new_empty(*part.shape[:-1], size) for part in piece)
        stop = start + piece[0].shape[-1]
        for part, results in zip(piece, whole, strict=True):
            results[..., start:stop] = part
        start = stop
    return whole


def identical(x1: Tensor, x2: Tensor) -> bool:
    """Whether two tensors of inputs are equal."""
    return x1 is x2 or (x1.shape == x2.shape and torch.equal(x1, x2))


def places(z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """A row of z equal to each row of x, (n,), and whether there is one.

    Examples:
        >>> place, known = places(torch.tensor([[1.0], [2.0]]), torch.tensor([[2.0], [3.0]]))
        >>> place[0].item(), known.tolist()
        (1, [True, False])
    """
    _, codes = torch.unique(torch.cat([z, x]), dim=0, return_inverse=True)
    table = torch.full((len(codes),), len(z), device=x.device)
    table.scatter_reduce_(0, codes[: len(z)], torch.arange(len(z), device=x.device), "amin")
    place = table[codes[len(z) :]]
    return place.clamp(max=len(z) - 1), place < len(z)


def _pieces(x: Tensor, width: int) -> Iterator[Tensor]:
    """Inputs so few at a time that k(z, x), of `width` numbers an input, and a product with it stay in the cache."""
    return operators.pieces(x, 2 * width, dim=-2, cached=True)


def _raised(covariance: Tensor, before: Tensor) -> Tensor:
    """A covariance (*b, n, n) with its diagonal raised to rounding level where it is below, as in `floored`."""
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    return covariance + torch.diag_embed(floored(variance, before) - variance)


def floored(variance: Tensor, before: Tensor) -> Tensor:
    """A variance formed as a difference from `before`, raised to rounding level where it is below, which is noted."""
    floor = 64 * torch.finfo(variance.dtype).eps * before
    if bool((variance < floor).any()):
        shift = (floor - variance) / before.clamp_min(torch.finfo(before.dtype).tiny)
        operators.note(
            "variances floored at rounding, largest shift relative to the prior variance", float(shift.detach().max())
        )
    return torch.maximum(variance, floor)
