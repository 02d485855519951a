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

CANCELLATION = 1e-8
"""Largest error of a squared distance, in squared lengthscales, that |a|^2 + |b|^2 - 2ab may make by cancellation."""


def gram(kernel: Kernel, x1: Tensor, x2: Tensor) -> Tensor:
    """The dense matrix of covariances between two sets of inputs, in float64.

    Args:
        kernel: A kernel of batch shape *b.
        x1: (n1, d), or (*b, n1, d) with one set of inputs for each kernel of the batch.
        x2: (n2, d) or (*b, n2, d); the same object as `x1` gives a diagonal without rounding.

    Returns:
        (*b, n1, n2).

    Examples:
        >>> x = torch.zeros(3, 2)
        >>> gram(RBFKernel(), x, x).sum().item()
        9.0
    """
    same = x1 is x2
    x1 = x1.double()
    x2 = x1 if same else x2.double()
    if isinstance(kernel, DeepKernel):
        first = kernel.features(x1)
        return gram(kernel.base_kernel, first, first if same else kernel.features(x2))
    known = _stationary(kernel)
    if known is not None:
        lengthscale, outputscale, smoothness = known
        center = x1.detach().mean(-2, keepdim=True)  # far from the origin, |a|^2 + |b|^2 - 2ab cancels
        a = (x1 - center) / lengthscale
        b = a if same else (x2 - center) / lengthscale
        scale = torch.ones((), dtype=a.dtype, device=a.device) if outputscale is None else outputscale.to(a)
        batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2], scale.shape)
        a = a.expand(*batch, *a.shape[-2:])
        b = a if same else b.expand(*batch, *b.shape[-2:])
        return _Stationary.apply(a, b, scale.expand(batch), (smoothness, same))  # type: ignore[return-value]
    parts = _parts(kernel)
    if parts is not None:
        # gpytorch would add a low-rank kernel to another by way of a Cholesky factor, with jitter.
        matrices = torch.broadcast_tensors(*(gram(part, x1, x1 if same else x2) for part in parts))
        stacked = torch.stack(matrices)
        return stacked.sum(0) if isinstance(kernel, AdditiveKernel) else stacked.prod(0)
    if type(kernel) is ScaleKernel:
        dims = outer_dims(kernel)
        if dims is not None:
            x1 = x1.index_select(-1, dims)
            x2 = x1 if same else x2.index_select(-1, dims)
        return kernel.outputscale[..., None, None] * gram(kernel.base_kernel, x1, x1 if same else x2)
    batch = kernel.batch_shape
    x1 = x1.expand(*batch, *x1.shape[-2:]) if x1.dim() == 2 else x1
    x2 = x1 if same else (x2.expand(*batch, *x2.shape[-2:]) if x2.dim() == 2 else x2)
    return kernel(x1, x2).to_dense()


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


def _largest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


def _by_differences(weight: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients in a and b for dK/dr^2 times the incoming gradient, one feature at a time and without cancellation."""
    grad_a, grad_b = torch.empty_like(a), torch.empty_like(b)
    for j in range(a.shape[-1]):
        pull = (a[..., j].unsqueeze(-1) - b[..., j].unsqueeze(-2)).mul_(weight).mul_(2)  # (*b, n1, n2)
        grad_a[..., j], grad_b[..., j] = pull.sum(-1), -pull.sum(-2)
    return grad_a, grad_b


class _Stationary(torch.autograd.Function):
    """s phi(|a - b|^2) and its gradients in a, b and s; see the equations at the top of the file."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, scale: Tensor, law: tuple[float, bool]) -> Tensor:
        """K of shape (*b, n1, n2); `law` is the smoothness and whether a and b are the same inputs."""
        smoothness, same = law
        a_squared, b_squared = a.square().sum(-1), b.square().sum(-1)
        ctx.apart = torch.finfo(a.dtype).eps * max(_largest(a_squared), _largest(b_squared)) > CANCELLATION
        if ctx.apart:
            squared = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square_()
        else:
            squared = (a @ b.mT).mul_(-2).add_(a_squared.unsqueeze(-1)).add_(b_squared.unsqueeze(-2)).clamp_(min=0)
        if same:
            squared.diagonal(dim1=-2, dim2=-1).zero_()
        s = scale[..., None, None]
        if smoothness == math.inf:
            matrix = squared.mul_(-0.5).exp_().mul_(s)
            slope = matrix * -0.5 if any(ctx.needs_input_grad) else None
        else:
            u = squared.mul_(2 * smoothness).sqrt_()
            decay = torch.exp(-u).mul_(s)
            if smoothness == 1.5:
                matrix = (u + 1).mul_(decay)
                slope = decay.mul_(-1.5) if any(ctx.needs_input_grad) else None
            else:
                linear = u + 1
                matrix = u.square_().div_(3).add_(linear).mul_(decay)
                slope = linear.mul_(decay).mul_(-5 / 6) if any(ctx.needs_input_grad) else None
        if slope is not None:
            ctx.save_for_backward(a, b, scale, matrix, slope)
        return matrix

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients in a (*b, n1, d), b (*b, n2, d) and s (*b)."""
        (grad,) = grads
        a, b, scale, matrix, slope = ctx.saved_tensors
        need_a, need_b, need_scale = ctx.needs_input_grad[:3]
        grad_a = grad_b = grad_scale = None
        if need_a or need_b:
            weight = grad * slope
            if ctx.apart:
                grad_a, grad_b = _by_differences(weight, a, b)
            elif need_a:
                grad_a = (weight.sum(-1).unsqueeze(-1) * a - weight @ b).mul_(2)
            if need_b and not ctx.apart:
                grad_b = (weight.sum(-2).unsqueeze(-1) * b - weight.mT @ a).mul_(2)
        if need_scale:
            grad_scale = torch.linalg.vecdot(grad, matrix).sum(-1) / scale
        return grad_a, grad_b, grad_scale, None
