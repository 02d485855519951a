"""Scaled RBF and Matern kernels with a fused forward and a hand-written backward pass.

With a = x1 / lengthscale, b = x2 / lengthscale and r^2 = |a - b|^2,

    K = s phi(r^2),    dK/dr^2 = s phi'(r^2),
    phi = exp(-r^2 / 2)                                    phi' = -phi / 2                        (RBF)
    phi = (1 + u) exp(-u),            u = sqrt(3) r        phi' = -3/2 exp(-u)                    (Matern-3/2)
    phi = (1 + u + u^2/3) exp(-u),    u = sqrt(5) r        phi' = -5/6 (1 + u) exp(-u)            (Matern-5/2)

so that the backward pass is one product W = G * dK/dr^2, of G the incoming gradient, and thin matrix products:

    da_i = 2 sum_j W_ij (a_i - b_j),        dlengthscale = -2 sum_ij W_ij (a_i - b_j)^2 / lengthscale.

phi' is finite at r = 0, hence so are the gradients at coinciding points.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from gpytorch.kernels import Kernel, MaternKernel, RBFKernel, ScaleKernel
from torch import Tensor

SLOPES = {math.inf: -0.5, 1.5: -1.5, 2.5: -5 / 6}
"""Constants in phi' for each smoothness."""

CANCELLATION = 1e-8
"""Largest error of a squared distance, in squared lengthscales, that |a|^2 + |b|^2 - 2ab may make by cancellation."""


@dataclass(frozen=True, eq=False)
class Stationary:
    """The parameters of a (scaled) RBF, Matern-3/2 or -5/2 kernel.

    Args:
        lengthscale: (*k, 1, d) or (*k, 1, 1).
        scale: s, (*k,); None for 1.
        smoothness: 1.5, 2.5 or infinity.
    """

    lengthscale: Tensor
    scale: Tensor | None
    smoothness: float


def stationary(kernel: Kernel) -> Stationary | None:
    """The parameters of a kernel with a fused path; None for all others.

    Examples:
        >>> stationary(RBFKernel()).smoothness, stationary(MaternKernel(0.5))
        (inf, None)
    """
    scale = None
    if type(kernel) is ScaleKernel and kernel.active_dims is None:
        scale, kernel = kernel.outputscale, kernel.base_kernel
    if kernel.active_dims is not None:
        return None
    if type(kernel) is RBFKernel:
        return Stationary(kernel.lengthscale, scale, math.inf)
    if type(kernel) is MaternKernel and kernel.nu in (1.5, 2.5):
        return Stationary(kernel.lengthscale, scale, kernel.nu)
    return None


def stationary_gram(known: Stationary, x1: Tensor, x2: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Covariances (*k, n1, n2) in `dtype` between inputs (n1, d) and (n2, d) in float64, or batches of them.

    Examples:
        >>> x = torch.zeros(3, 2, dtype=torch.float64)
        >>> stationary_gram(stationary(RBFKernel()), x, x, dtype=torch.float32).sum().item()
        9.0
    """
    a, b, scale = _in_lengthscales(known, x1, x2)
    norms = _norms(a, b)
    if _cancels(*norms):  # subtracting a distant center would round inputs, differently in each matrix
        (a, b, scale), norms = _in_lengthscales(known, x1, x2, centered=False), None
    return _Gram.apply(a, b, scale, (known.smoothness, norms, dtype))  # type: ignore[return-value]


def stationary_grams(known: Stationary, z: Tensor, x: Tensor, *, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """k(z, z) in float64, k(z, x) in `dtype` and k(x_i, x_i) in float64, from inputs in float64.

    Examples:
        >>> z, x = torch.zeros(2, 1, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
        >>> square, cross, diagonal = stationary_grams(stationary(RBFKernel()), z, x, dtype=torch.float32)
        >>> square.sum().item(), cross.sum().item(), diagonal.sum().item()
        (4.0, 6.0, 3.0)
    """
    with torch.no_grad():
        a, b, scale = _in_lengthscales(known, z, x)
        a_squared, b_squared = _norms(a, b)
    if _cancels(a_squared, b_squared):
        square, cross = stationary_gram(known, z, z, dtype=torch.float64), stationary_gram(known, z, x, dtype=dtype)
        _, _, scale = _in_lengthscales(known, z, x)
        return square, cross, scale.unsqueeze(-1).expand(*scale.shape, x.shape[-2])
    free = scale if known.scale is None else known.scale
    plan = (known.smoothness, dtype, a, b, a_squared, b_squared, scale)
    return _Grams.apply(plan, z, x, known.lengthscale, free)  # type: ignore[return-value]


def _in_lengthscales(
    known: Stationary, x1: Tensor, x2: Tensor, *, centered: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """The inputs in units of the lengthscales, and the output scale, all batched."""
    center = x1.detach().mean(-2, keepdim=True) if centered else 0.0  # far from 0, |a|^2 + |b|^2 - 2ab cancels
    a = (x1 - center) / known.lengthscale
    b = a if x1 is x2 else (x2 - center) / known.lengthscale
    scale = torch.ones((), dtype=a.dtype, device=a.device) if known.scale is None else known.scale.to(a)
    if a.dim() > 2 or b.dim() > 2 or scale.dim():
        batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2], scale.shape)
        same, a = a is b, a.expand(*batch, *a.shape[-2:])
        b, scale = a if same else b.expand(*batch, *b.shape[-2:]), scale.expand(batch)
    return a, b, scale


def _norms(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """|a_i|^2 and |b_j|^2, (*b, n1, 1) and (*b, n2, 1); the same tensor where a is b."""
    with torch.no_grad():
        a_squared = a.square().sum(-1, keepdim=True)
        return a_squared, a_squared if a is b else b.square().sum(-1, keepdim=True)


def _cancels(a_squared: Tensor, b_squared: Tensor) -> bool:
    """Whether squared distances have to be formed by differences of coordinates."""
    largest = [float(t.amax()) for t in (a_squared, b_squared) if t.numel()]
    return bool(largest) and torch.finfo(a_squared.dtype).eps * max(largest) > CANCELLATION


def _factor(smoothness: float) -> float:
    """What the squared distance is multiplied by: r^2 / 2 or u^2."""
    return 0.5 if smoothness == math.inf else 2 * smoothness


def _squared_distances(a: Tensor, b: Tensor, a_squared: Tensor, b_squared: Tensor, factor: float) -> Tensor:
    """The products factor |a_i - b_j|^2, (*b, n1, n2)."""
    left = torch.cat([a * (-2 * factor), a_squared * factor, torch.full_like(a_squared, factor)], dim=-1)
    return left @ torch.cat([b, torch.ones_like(b_squared), b_squared], dim=-1).mT


def _evaluated(squared: Tensor, scale: Tensor, smoothness: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """K, and dK/dr^2 up to the constant of `SLOPES`, from squared distances in units of `_factor`, overwritten."""
    squared, s = squared.to(dtype).clamp_(min=0), scale[..., None, None].to(dtype)
    if smoothness == math.inf:
        matrix = squared.neg_().exp_().mul_(s)
        return matrix, matrix
    u = squared.sqrt()
    slope = torch.neg(u).exp_().mul_(s)
    matrix = torch.addcmul(slope, u, slope)
    if smoothness == 1.5:
        return matrix, slope
    return matrix.addcmul(squared, slope, value=1 / 3), matrix


def _values(squared: Tensor, scale: Tensor, smoothness: float, dtype: torch.dtype) -> Tensor:
    """K alone, as prediction needs it: with less memory than `_evaluated`, whose time is that of its passes over it."""
    squared, s = squared.to(dtype).clamp_(min=0), scale[..., None, None].to(dtype)
    if smoothness == math.inf:
        return squared.neg_().exp_().mul_(s)
    u = squared.sqrt()
    polynomial = torch.add(u, squared, alpha=1 / 3, out=squared) if smoothness == 2.5 else squared.copy_(u)
    return polynomial.add_(1).mul_(u.neg_().exp_()).mul_(s)


def _sums(weight: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """sum_j weight_ij, (*b, n1, 1), and sum_j weight_ij b_j, (*b, n1, d), by one product and in the type of b."""
    sums = (weight @ torch.cat([b, torch.ones_like(b[..., :1])], dim=-1).to(weight.dtype)).to(b.dtype)
    return sums[..., -1:], sums[..., :-1]


def _pull(weight: Tensor, a: Tensor, b: Tensor, factor: float) -> Tensor:
    """The gradient 2 factor sum_j weight_ij (a_i - b_j), (*b, n1, d)."""
    total, product = _sums(weight, b)
    return torch.addcmul(product.neg(), total, a).mul_(2 * factor)


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


class _Gram(torch.autograd.Function):
    """s phi(|a - b|^2) and its gradients in a, b and s; see the equations at the top of the file."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, scale: Tensor, plan: tuple[float, Any, torch.dtype]) -> Tensor:
        """K of shape (*b, n1, n2); `plan` is the smoothness, the norms of a and b or None, and the type of K."""
        smoothness, norms, dtype = plan
        ctx.apart = norms is None
        if norms is None:
            distances = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
            squared = distances.square_().mul_(_factor(smoothness))
        else:
            a_squared, b_squared = norms
            squared = _squared_distances(a, b, a_squared, b_squared, _factor(smoothness))
        if a is b:
            squared.diagonal(dim1=-2, dim2=-1).zero_()
        if not any(ctx.needs_input_grad):
            return _values(squared, scale, smoothness, dtype)
        matrix, slope = _evaluated(squared, scale, smoothness, dtype)
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


class _Grams(torch.autograd.Function):
    """k(z, z), k(z, x) and k(x_i, x_i), and their gradients in z, x, lengthscale and s at once."""

    @staticmethod
    def forward(ctx: Any, plan: tuple[Any, ...], *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The matrices from precomputed scaled inputs and norms (`plan`); gradients go to `tensors`."""
        smoothness, dtype, a, b, a_squared, b_squared, scale = plan
        factor = _factor(smoothness)
        squared = _squared_distances(a, a, a_squared, a_squared, factor)
        squared.diagonal(dim1=-2, dim2=-1).zero_()
        square, square_slope = _evaluated(squared, scale, smoothness, torch.float64)
        squared = _squared_distances(a, b, a_squared, b_squared, factor)
        cross, cross_slope = _evaluated(squared, scale, smoothness, dtype)
        if any(ctx.needs_input_grad):
            z, x, lengthscale, free = tensors
            ctx.save_for_backward(a, b, scale, lengthscale, square, square_slope, cross, cross_slope)
            ctx.factor, ctx.shapes = SLOPES[smoothness], (z.shape, x.shape, lengthscale.shape, free.shape)
        return square, cross, scale.unsqueeze(-1).repeat(*(1 for _ in scale.shape), b.shape[-2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients in z, x, lengthscale and s."""
        a, b, scale, lengthscale, square, square_slope, cross, cross_slope = ctx.saved_tensors
        need_z, need_x, need_lengthscale, need_scale = ctx.needs_input_grad[1:]
        grad_z = grad_x = grad_lengthscale = grad_scale = None
        if need_z or need_x or need_lengthscale:
            own, other = square_slope * grads[0], cross_slope * grads[1]
            own_total, own_product = _sums(own + own.mT, a)
            total, product = _sums(other, b)
            pull = torch.addcmul(own_product.neg(), own_total, a)
            if need_lengthscale:
                # sum_ij W_ij (a_i - b_j)^2 for both matrices; that of k(z, z) counts each pair twice.
                spread = ((pull - 2 * product + total * a) * a).sum(-2, keepdim=True)
                spread += other.sum(-2).to(b.dtype).unsqueeze(-2) @ b.square()
                grad_lengthscale = (spread * (-2 * ctx.factor) / lengthscale).sum_to_size(ctx.shapes[2])
            if need_z:
                pull = (pull.addcmul_(total, a).sub_(product)).mul_(2 * ctx.factor)
                grad_z = (pull / lengthscale).sum_to_size(ctx.shapes[0])
            if need_x:
                grad_x = (_pull(other.mT, b, a, ctx.factor) / lengthscale).sum_to_size(ctx.shapes[1])
        if need_scale:
            inner = _inner(grads[0], square) + _inner(grads[1], cross).to(scale)
            grad_scale = (inner / scale + grads[2].sum(-1)).sum_to_size(ctx.shapes[3])
        return None, grad_z, grad_x, grad_lengthscale, grad_scale
