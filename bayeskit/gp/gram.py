"""Kernel matrices and mean vectors: the one place of this package where kernels and means are evaluated.

Any gpytorch kernel is accepted. The usual ones, a scaled RBF or Matern kernel, take a fused path whose derivative is
written by hand: with a = x1 / lengthscale, b = x2 / lengthscale and r^2 = |a - b|^2,

    K = s phi(r^2),    dK/dr^2 = s phi'(r^2),
    phi = exp(-r^2 / 2)                                    phi' = -phi / 2                        (RBF)
    phi = (1 + u) exp(-u),            u = sqrt(3) r        phi' = -3/2 exp(-u)                    (Matern-3/2)
    phi = (1 + u + u^2/3) exp(-u),    u = sqrt(5) r        phi' = -5/6 (1 + u) exp(-u)            (Matern-5/2)

so that the backward pass is one product W = G * dK/dr^2 and two thin matrix products. phi' is finite at r = 0, hence
so are the gradients at coinciding points.
"""

import math
from typing import Any, cast

import torch
from gpytorch.kernels import AdditiveKernel, Kernel, MaternKernel, ProductKernel, RBFKernel, ScaleKernel
from gpytorch.means import Mean
from torch import Tensor

from bayeskit.gp.deep_kernel import DeepKernel

SLOPES = {math.inf: -0.5, 1.5: -1.5, 2.5: -5 / 6}
"""Constants in phi' for each smoothness."""

CANCELLATION = 1e-8
"""Largest error of a squared distance, in squared lengthscales, that |a|^2 + |b|^2 - 2ab may make by cancellation."""


def gram(kernel: Kernel, x1: Tensor, x2: Tensor, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """The dense matrix of covariances between two sets of inputs.

    Distances are formed in float64 whatever comes out; what the function of the distance is evaluated in is `dtype`.

    Args:
        kernel: A kernel of batch shape *b.
        x1: (n1, d), or (*b, n1, d) with one set of inputs for each kernel of the batch.
        x2: (n2, d) or (*b, n2, d); the same object as `x1` gives a diagonal without rounding.
        dtype: Type of the matrix. float32 is for steps that are noisy anyway; what is kept is float64.

    Returns:
        (*b, n1, n2).

    Raises:
        ValueError: The two have different numbers of columns, or the kernel has lengthscales for another number.

    Examples:
        >>> x = torch.zeros(3, 2)
        >>> gram(RBFKernel(), x, x).sum().item()
        9.0
    """
    same = x1 is x2
    _check_columns(kernel, x1, x2)
    x1 = x1.double()
    x2 = x1 if same else x2.double()
    if isinstance(kernel, DeepKernel):
        first = kernel.features(x1)
        return gram(kernel.base_kernel, first, first if same else kernel.features(x2), dtype=dtype)
    known = _stationary(kernel)
    if known is not None:
        a, b, scale, smoothness = _in_lengthscales(known, x1, x2)
        return _Stationary.apply(a, b, scale, (smoothness, same, dtype))  # type: ignore[return-value]
    parts = _parts(kernel)
    if parts is not None:
        # gpytorch would add a low-rank kernel to another by way of a Cholesky factor, with jitter.
        matrices = torch.broadcast_tensors(*(gram(part, x1, x1 if same else x2, dtype=dtype) for part in parts))
        stacked = torch.stack(matrices)
        return stacked.sum(0) if isinstance(kernel, AdditiveKernel) else stacked.prod(0)
    if type(kernel) is ScaleKernel:
        dims = outer_dims(kernel)
        if dims is not None:
            x1 = x1.index_select(-1, dims)
            x2 = x1 if same else x2.index_select(-1, dims)
        scale = kernel.outputscale[..., None, None].to(dtype)
        return scale * gram(kernel.base_kernel, x1, x1 if same else x2, dtype=dtype)
    batch = kernel.batch_shape
    x1 = x1.expand(*batch, *x1.shape[-2:]) if x1.dim() == 2 else x1
    x2 = x1 if same else (x2.expand(*batch, *x2.shape[-2:]) if x2.dim() == 2 else x2)
    return kernel(x1, x2).to_dense().to(dtype)


def grams(kernel: Kernel, z: Tensor, x: Tensor, *, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """k(z, z) in float64, k(z, x) in `dtype` and the variances k(x_i, x_i) in float64: `gram` thrice, at less cost.

    Examples:
        >>> square, cross, diagonal = grams(RBFKernel(), torch.zeros(2, 1), torch.zeros(3, 1), dtype=torch.float32)
        >>> square.sum().item(), cross.sum().item(), diagonal.sum().item()
        (4.0, 6.0, 3.0)
    """
    _check_columns(kernel, z, x)
    known = _stationary(kernel)
    if known is None:
        return gram(kernel, z, z), gram(kernel, z, x, dtype=dtype), gram_diagonal(kernel, x)
    a, b, scale, smoothness = _in_lengthscales(known, z.double(), x.double())
    square: Any = _Stationary.apply(a, a, scale, (smoothness, True, torch.float64))
    cross: Any = _Stationary.apply(a, b, scale, (smoothness, False, dtype))
    return square, cross, scale.unsqueeze(-1).expand(*scale.shape, x.shape[-2])


def gram_diagonal(kernel: Kernel, x: Tensor) -> Tensor:
    """The variances k(x_i, x_i), (*b, n), in float64.

    Args:
        kernel: A kernel of batch shape *b.
        x: (n, d) or (*b, n, d).

    Examples:
        >>> gram_diagonal(RBFKernel(), torch.zeros(3, 2))
        tensor([1., 1., 1.], dtype=torch.float64)
    """
    x = x.double()
    known = _stationary(kernel)
    if known is not None:
        outputscale = torch.ones((), dtype=x.dtype, device=x.device) if known[1] is None else known[1].to(x)
        batch = torch.broadcast_shapes(kernel.batch_shape, x.shape[:-2])
        return outputscale.unsqueeze(-1).expand(*batch, x.shape[-2])
    if isinstance(kernel, DeepKernel) and _stationary(kernel.base_kernel) is None:
        return gram_diagonal(kernel.base_kernel, kernel.features(x))
    if isinstance(kernel, DeepKernel):
        return gram_diagonal(kernel.base_kernel, x)  # the same everywhere, whatever the features
    return gram_pairs(kernel, x, x)


def gram_pairs(kernel: Kernel, x1: Tensor, x2: Tensor) -> Tensor:
    """The covariances k(x1_i, x2_i) of inputs in pairs, (*b, n), in float64.

    Args:
        kernel: A kernel of batch shape *b.
        x1: (n, d) or (*b, n, d).
        x2: As x1.

    Examples:
        >>> gram_pairs(RBFKernel().requires_grad_(False), torch.zeros(1, 1), torch.ones(1, 1)).round(decimals=2)
        tensor([0.3500], dtype=torch.float64)
    """
    _check_columns(kernel, x1, x2)
    # A batched kernel gets batched inputs: with n inputs and n kernels gpytorch would take (n, n) for a matrix.
    batch = torch.broadcast_shapes(kernel.batch_shape, x1.shape[:-2])
    x1 = x1.double().expand(*batch, *x1.shape[-2:])
    x2 = x2.double().expand(*batch, *x2.shape[-2:])
    value: Any = kernel(x1, x2, diag=True)
    return value.double()


class Evaluated(Kernel):
    """A kernel that is evaluated by `gram` wherever gpytorch or linear_operator ask for its values.

    Args:
        base: Any kernel.

    Examples:
        >>> x = torch.zeros(2, 1)
        >>> Evaluated(RBFKernel().requires_grad_(False))(x).to_dense().sum().item()
        4.0
    """

    def __init__(self, base: Kernel):
        super().__init__()
        self.base = base

    @property
    def batch_shape(self) -> torch.Size:  # pyright: ignore[reportIncompatibleMethodOverride]
        """That of `base`; gpytorch would broadcast it with those of all kernels inside."""
        return self.base.batch_shape

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False
    ) -> Tensor:
        """Covariances (*b, n1, n2), or of pairs (*b, n) with `diag` (gpytorch's calling convention)."""
        if last_dim_is_batch:
            raise ValueError("an Evaluated kernel has no meaning with `last_dim_is_batch=True`")
        return gram_pairs(self.base, x1, x2) if diag else gram(self.base, x1, x2)


def mean_rows(mean: Mean, x: Tensor, num_outputs: int) -> Tensor:
    """A mean function at inputs (n, d), one row an output whether they share it or not: (k, n), in float64.

    Examples:
        >>> from gpytorch.means import ZeroMean
        >>> mean_rows(ZeroMean(), torch.zeros(3, 2), 2).shape
        torch.Size([2, 3])
    """
    value: Any = mean(x.double())
    return value.double().expand(num_outputs, x.shape[-2])


def outer_dims(kernel: ScaleKernel) -> Tensor | None:
    """The columns that a scaled kernel selects for a base that selects none by itself; None for all.

    gpytorch copies `active_dims` from the base to the scaled kernel, never the other way.

    Examples:
        >>> outer_dims(ScaleKernel(RBFKernel(), active_dims=[1])), outer_dims(ScaleKernel(RBFKernel(active_dims=[1])))
        (tensor([1]), None)
    """
    return kernel.active_dims if kernel.base_kernel.active_dims is None else None  # type: ignore[return-value]


def _check_columns(kernel: Kernel, x1: Tensor, x2: Tensor) -> None:
    """Refuse what broadcasting would let pass: inputs, or inputs and lengthscales, of different numbers of columns."""
    if x2.shape[-1] != x1.shape[-1]:
        raise ValueError(
            f"the inputs have {x2.shape[-1]} columns where those of the process have {x1.shape[-1]}: give all columns "
            "it was built for, in their order"
        )
    _check_lengthscales(kernel, x1.shape[-1])


def _check_lengthscales(kernel: Kernel, columns: int) -> None:
    if type(kernel) is ScaleKernel:
        dims = outer_dims(kernel)
        _check_lengthscales(kernel.base_kernel, columns if dims is None else len(dims))
    if isinstance(kernel.active_dims, Tensor):
        columns = len(kernel.active_dims)
    for part in _parts(kernel) or ():
        _check_lengthscales(part, columns)
    if kernel.has_lengthscale and kernel.ard_num_dims not in (None, 1, columns):
        raise ValueError(
            f"{type(kernel).__name__} has `ard_num_dims={kernel.ard_num_dims}`, and its inputs have {columns} columns: "
            f"use `ard_num_dims={columns}`, or choose columns by `active_dims`"
        )


def _parts(kernel: Kernel) -> list[Kernel] | None:
    """The terms of a sum or the factors of a product of kernels; None for all others."""
    if type(kernel) in (AdditiveKernel, ProductKernel) and kernel.active_dims is None:
        return list(cast(Any, kernel.kernels))
    return None


def _stationary(kernel: Kernel) -> tuple[Tensor, Tensor | None, float] | None:
    """Lengthscale, output scale and smoothness of a (scaled) RBF, Matern-3/2 or -5/2 kernel; None for all others."""
    scale = None
    if type(kernel) is ScaleKernel and kernel.active_dims is None:
        scale, kernel = kernel.outputscale, kernel.base_kernel
    if kernel.active_dims is not None:
        return None
    if type(kernel) is RBFKernel:
        return kernel.lengthscale, scale, math.inf
    if type(kernel) is MaternKernel and kernel.nu in (1.5, 2.5):
        return kernel.lengthscale, scale, kernel.nu
    return None


def _in_lengthscales(
    known: tuple[Tensor, Tensor | None, float], x1: Tensor, x2: Tensor
) -> tuple[Tensor, Tensor, Tensor, float]:
    """The inputs of a stationary kernel in units of its lengthscales, its output scale, all batched, its smoothness."""
    lengthscale, outputscale, smoothness = known
    center = x1.detach().mean(-2, keepdim=True)  # far from the origin, |a|^2 + |b|^2 - 2ab cancels
    a = (x1 - center) / lengthscale
    b = a if x1 is x2 else (x2 - center) / lengthscale
    scale = torch.ones((), dtype=a.dtype, device=a.device) if outputscale is None else outputscale.to(a)
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2], scale.shape)
    if batch:
        same, a = a is b, a.expand(*batch, *a.shape[-2:])
        b, scale = a if same else b.expand(*batch, *b.shape[-2:]), scale.expand(batch)
    return a, b, scale, smoothness


def _largest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


def _squared_distances(a: Tensor, b: Tensor, factor: float) -> tuple[Tensor, bool]:
    """The products factor |a_i - b_j|^2, (*b, n1, n2), and whether they were formed by differences of coordinates."""
    a_squared, b_squared = a.square().sum(-1, keepdim=True), b.square().sum(-1, keepdim=True)
    if torch.finfo(a.dtype).eps * max(_largest(a_squared), _largest(b_squared)) > CANCELLATION:
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square_().mul_(factor), True
    left = torch.cat([a * -2, a_squared, torch.ones_like(a_squared)], dim=-1) * factor
    right = torch.cat([b, torch.ones_like(b_squared), b_squared], dim=-1)
    return left @ right.mT, False


def _pull(weight: Tensor, a: Tensor, b: Tensor, factor: float) -> Tensor:
    """The gradient 2 factor sum_j weight_ij (a_i - b_j), (*b, n1, d): one product has the sums of the weights too."""
    sums = (weight @ torch.cat([b, torch.ones_like(b[..., :1])], dim=-1).to(weight.dtype)).to(a.dtype)
    return (sums[..., -1:] * a - sums[..., :-1]).mul_(2 * factor)


def _inner(left: Tensor, right: Tensor) -> Tensor:
    """sum_ij left_ij right_ij, (*b,)."""
    if left.dim() == 2:
        return torch.dot(left.reshape(-1), right.reshape(-1))
    return (left * right).sum((-2, -1))


def _by_differences(weight: Tensor, a: Tensor, b: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Gradients in a and b for dK/dr^2 times the incoming gradient, one feature at a time and without cancellation."""
    grad_a, grad_b = torch.empty_like(a), torch.empty_like(b)
    for j in range(a.shape[-1]):
        pull = (a[..., j].unsqueeze(-1) - b[..., j].unsqueeze(-2)).mul_(weight).mul_(2 * factor)  # (*b, n1, n2)
        grad_a[..., j], grad_b[..., j] = pull.sum(-1), -pull.sum(-2)
    return grad_a, grad_b


class _Stationary(torch.autograd.Function):
    """s phi(|a - b|^2) and its gradients in a, b and s; see the equations at the top of the file."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, scale: Tensor, law: tuple[float, bool, torch.dtype]) -> Tensor:
        """K of shape (*b, n1, n2); `law` is the smoothness, whether a and b are the same inputs, and the type of K."""
        smoothness, same, dtype = law
        squared, ctx.apart = _squared_distances(a, b, 0.5 if smoothness == math.inf else 2 * smoothness)
        if same:
            squared.diagonal(dim1=-2, dim2=-1).zero_()
        squared, s = squared.to(dtype).clamp_(min=0), scale[..., None, None].to(dtype)
        if smoothness == math.inf:
            matrix = slope = squared.neg_().exp_().mul_(s)
        else:
            u = squared.sqrt()
            slope = torch.neg(u).exp_().mul_(s)  # up to the factor of SLOPES
            matrix = torch.addcmul(slope, u, slope)
            if smoothness == 2.5:
                slope, matrix = matrix, torch.addcmul(matrix, squared, slope, value=1 / 3)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(a, b, scale, matrix, slope)
            ctx.factor = SLOPES[smoothness]
        return matrix

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients in a (*b, n1, d), b (*b, n2, d) and s (*b)."""
        (grad,) = grads
        a, b, scale, matrix, slope = ctx.saved_tensors
        need_a, need_b, need_scale = ctx.needs_input_grad[:3]
        grad_a = grad_b = grad_scale = None
        if need_a or need_b:
            weight = slope * grad
            if ctx.apart:
                grad_a, grad_b = _by_differences(weight.to(a.dtype), a, b, ctx.factor)
            else:
                grad_a = _pull(weight, a, b, ctx.factor) if need_a else None
                grad_b = _pull(weight.mT, b, a, ctx.factor) if need_b else None
        if need_scale:
            grad_scale = _inner(grad, matrix).to(scale) / scale
        return grad_a, grad_b, grad_scale, None
