"""Expectations and curvatures of log-likelihoods."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch import distributions as td

from bayeskit.core import generators
from bayeskit.core.predictive.quadrature import NUM_DRAWS, gauss_hermite, sobol_normals

NUM_LABELS = 256
"""Draws of y in an estimated Fisher information: a relative standard error of about 9 %, (2 / 256)^(1/2)."""


def points(like: Tensor, *, shared: bool) -> tuple[Tensor, Tensor]:
    """Standard normal points for latents (*b, n, k), and their weights (q,).

    Args:
        like: A tensor of the shape and type of the latents.
        shared: Whether one Gauss-Hermite rule serves all the latents, because each has its own output: points
            (q, 1, ..., 1). Otherwise Sobol points in k dimensions, (q, 1, ..., 1, k).
    """
    if shared:
        z, weights = gauss_hermite()
        return z.to(like).reshape(-1, *(1 for _ in like.shape)), weights.to(like)
    z = sobol_normals(NUM_DRAWS, like.shape[-1]).to(like)
    return z.reshape(len(z), *(1 for _ in like.shape[:-1]), -1), torch.full_like(z[:, 0], 1 / len(z))


def average(weights: Tensor, values: Tensor) -> Tensor:
    """The weighted sum of `values` (q, *shape), by weights (q,), or (q, *shape) of their own for every element."""
    if weights.dim() == 1:
        return torch.einsum("q,q...->...", weights, values)
    return ((weights.squeeze(-1) if weights.dim() > values.dim() else weights) * values).sum(0)  # a label has no output


def curvature(
    log_prob: Callable[[Tensor, Tensor], Tensor],
    distribution: Callable[[Tensor], td.Distribution],
    f: Tensor,
    y: Tensor,
) -> Tensor:
    """Negative Hessian (n, k, k) of `log_prob(f, y)`, the Fisher information where that is not positive definite."""
    hessian = _negative_hessian(log_prob, f, y)
    eigenvalues = torch.linalg.eigvalsh(hessian)
    bad = eigenvalues[..., 0] <= 1e-10 * eigenvalues[..., -1].clamp(min=0)
    if bool(bad.any()):
        hessian = torch.where(bad[..., None, None], _fisher(log_prob, distribution, f), hessian)
    return hessian


def _negative_hessian(log_prob: Callable[[Tensor, Tensor], Tensor], f: Tensor, y: Tensor) -> Tensor:
    with torch.enable_grad():
        f = f.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(log_prob(f, y).sum(), f, create_graph=True)
        rows = [_slope_of(slope[..., j].sum(), f) for j in range(f.shape[-1])]
    hessian = -torch.stack(rows, dim=-2)
    return (hessian + hessian.mT) / 2


def _slope_of(value: Tensor, f: Tensor) -> Tensor:
    """Gradient of `value` in `f`, zero where it does not depend on it."""
    if not value.requires_grad:
        return torch.zeros_like(f)
    (slope,) = torch.autograd.grad(value, f, retain_graph=True, allow_unused=True)
    return torch.zeros_like(f) if slope is None else slope


def _fisher(
    log_prob: Callable[[Tensor, Tensor], Tensor], distribution: Callable[[Tensor], td.Distribution], f: Tensor
) -> Tensor:
    with generators.seeded(torch.Generator().manual_seed(0)), torch.no_grad():
        y = distribution(f).sample((NUM_LABELS,))
    with torch.enable_grad():
        copies = f.detach().expand(NUM_LABELS, *f.shape).clone().requires_grad_()
        (score,) = torch.autograd.grad(log_prob(copies, y).sum(), copies)
    return torch.einsum("s...i,s...j->...ij", score, score) / NUM_LABELS
