"""The update equations of IVON, on lists of tensors in place.

q = N(m, diag(s^2)) with s^2 = 1 / (n (h + d)). With g' and f' the gradient and the curvature of
the loss per observation at draws from q,

    g <- b1 g + (1 - b1) g'
    h <- b2 h + (1 - b2) f' + (1 - b2)^2 (h - f')^2 / (2 (h + d))
    m <- m - a clip((g / bias + d m) / (h + d), -r, r)

The quadratic term keeps h + d positive: a step at most halves it, for any f'.

References:
    Shen, Daheim, Cong, Nickl, Marconi, Bazan, Yokota, Gurevych, Cremers, Khan, Möllenhoff. Variational learning is
    effective for large deep networks. ICML 2024, algorithm 1.
    Lin, Schmidt, Khan. Handling the positive-definite constraint in the Bayesian learning rule. ICML 2020.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Torch's operations on lists of tensors, which fuse over the list on a GPU; they are not in its type stubs.
_lists: Any = torch

BLOCK = 2**15
"""Elements of each list processed at a time on a CPU: five lists of 128 KiB in float32 stay in the L2 cache."""


def blocks(*lists: list[Tensor]) -> Iterator[tuple[list[Tensor], ...]]:
    """Lists of tensors of the same shapes as lists of views of about `BLOCK` elements each; not split on a GPU.

    >>> first, second = [torch.zeros(300, 200), torch.zeros(7)], [torch.ones(300, 200), torch.ones(7)]
    >>> [sum(t.numel() for t in part) for part, _ in blocks(first, second)]
    [32768, 27239]
    """
    if not lists[0] or lists[0][0].device.type != "cpu":
        yield lists
        return
    group: list[tuple[Tensor, ...]] = []
    for tensors in zip(*lists, strict=True):
        size = tensors[0].numel()
        if size > BLOCK and all(t.is_contiguous() for t in tensors):
            parts = list(zip(*(t.view(-1).split(BLOCK) for t in tensors), strict=True))
        else:
            parts = [tensors]
        for part in parts:
            if group and sum(views[0].numel() for views in group) + part[0].numel() > BLOCK:
                yield tuple(list(column) for column in zip(*group, strict=True))
                group = []
            group.append(part)
    yield tuple(list(column) for column in zip(*group, strict=True))


def scale_noise_(noise: list[Tensor], hessians: list[Tensor], scratch: list[Tensor], *, n: float, decay: float) -> None:
    """Standard normals become draws of N(0, s^2), `s = (n (h + d))^-1/2`.

    Args:
        noise: Changed in place.
        hessians: h.
        scratch: Overwritten; shapes of `noise`.
        n: Effective number of observations.
        decay: d.
    """
    _lists._foreach_copy_(scratch, hessians)
    _lists._foreach_add_(scratch, decay)
    _lists._foreach_mul_(scratch, n)
    _lists._foreach_rsqrt_(scratch)
    _lists._foreach_mul_(noise, scratch)


def update_(
    means: list[Tensor],
    momenta: list[Tensor],
    hessians: list[Tensor],
    gradients: list[Tensor],
    products: list[Tensor],
    *,
    n: float,
    decay: float,
    step_size: float,
    betas: tuple[float, float],
    bias: float = 1.0,
    clip_radius: float = math.inf,
    price: bool = True,
) -> None:
    """One step of m, g and h.

    Args:
        means: m.
        momenta: g.
        hessians: h.
        gradients: g', averaged over draws; overwritten.
        products: With `price` the average of g' times noise, from which `f' = n (h + d) g' noise` is unbiased for the
            expected diagonal of the Hessian (Price's theorem); otherwise f' itself. Overwritten.
        n: Effective number of observations.
        decay: d, the prior's precision over n.
        step_size: a.
        betas: b1 and b2.
        bias: What the momentum is divided by, 1 - b1^t.
        clip_radius: r.
        price: See `products`.
    """
    forget = 1 - betas[1]
    _lists._foreach_lerp_(momenta, gradients, 1 - betas[0])
    total = gradients  # from here on h + d
    _lists._foreach_copy_(total, hessians)
    _lists._foreach_add_(total, decay)
    if price:
        _lists._foreach_mul_(products, total)
        _lists._foreach_mul_(products, n)
    _lists._foreach_sub_(products, hessians)  # f' - h
    _lists._foreach_add_(hessians, products, alpha=forget)
    _lists._foreach_mul_(products, products)
    _lists._foreach_addcdiv_(hessians, products, total, value=0.5 * forget**2)
    _lists._foreach_copy_(total, hessians)  # the new h is the one that scales the step
    _lists._foreach_add_(total, decay)
    direction = products
    _lists._foreach_copy_(direction, momenta)
    _lists._foreach_mul_(direction, 1 / bias)
    _lists._foreach_add_(direction, means, alpha=decay)
    if math.isinf(clip_radius):
        _lists._foreach_addcdiv_(means, direction, total, value=-step_size)
    else:
        _lists._foreach_div_(direction, total)
        _lists._foreach_clamp_max_(direction, clip_radius)
        _lists._foreach_clamp_min_(direction, -clip_radius)
        _lists._foreach_add_(means, direction, alpha=-step_size)
