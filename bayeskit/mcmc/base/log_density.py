"""Log densities on named tensors: values, gradients and curvature, many chains at a time."""

from collections.abc import Callable

import torch
from torch import Tensor

from bayeskit.core import generators

Position = dict[str, Tensor]
"""Leaves (c, *shape), chains first."""

LogDensity = Callable[[Position], Tensor]
"""Maps leaves (c, *shape) to (c,); each chain's value depends on that chain alone."""


def value_and_gradient(log_density: LogDensity, position: Position) -> tuple[Tensor, Position]:
    """The log densities (c,) of the chains, and their gradients, leaves (c, *shape).

    Examples:
        >>> value, gradient = value_and_gradient(lambda q: -0.5 * q["x"] ** 2, {"x": torch.tensor([1.0, 2.0])})
        >>> gradient["x"]
        tensor([-1., -2.])
    """
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in position.items()}
    with torch.enable_grad():
        value = log_density(leaves)
    gradients = torch.autograd.grad(value.sum(), list(leaves.values()))
    return value.detach(), dict(zip(leaves, gradients, strict=True))


def curvature(
    log_density: LogDensity, position: Position, *, generator: torch.Generator, num_iterations: int = 16
) -> Tensor:
    """The largest curvature of each chain's log density: the largest absolute eigenvalue of its Hessian.

    Power iteration; Hessian-vector products are finite differences of gradients.

    Args:
        log_density: Maps leaves (c, *shape) to (c,).
        position: Where to evaluate it, leaves (c, *shape).
        generator: Draws the starting directions.
        num_iterations: Number of gradient evaluations.

    Returns:
        (c,).

    Examples:
        >>> g = torch.Generator().manual_seed(0)
        >>> precisions = torch.tensor([1.0, 9.0])
        >>> top = curvature(lambda q: -0.5 * (q["x"] ** 2 * precisions).sum(-1), {"x": torch.ones(1, 2)}, generator=g)
        >>> round(top.item(), 2)
        9.0
    """
    point = ravel(position)  # (c, p)
    here = ravel(value_and_gradient(log_density, position)[1])
    step = torch.finfo(point.dtype).eps ** 0.5 * (1 + point.norm(dim=-1, keepdim=True))
    product = generators.normal(point.shape, like=point, generator=generator)
    for _ in range(num_iterations):
        direction = product / product.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(point.dtype).tiny)
        there = unravel(point + step * direction, position)
        product = (ravel(value_and_gradient(log_density, there)[1]) - here) / step
    return product.norm(dim=-1)


def hessian_diagonal(
    log_density: LogDensity, position: Position, *, num_probes: int = 32, generator: torch.Generator
) -> Position:
    """The diagonal of the Hessian of each chain's log density, estimated by the mean of `z * (H z)` over signs z.

    Unbiased, and exact for a diagonal Hessian; Hessian-vector products are finite differences of gradients.

    Args:
        log_density: Maps leaves (c, *shape) to (c,).
        position: Where to evaluate it, leaves (c, *shape).
        num_probes: Number of gradient evaluations.
        generator: Draws the signs.

    Returns:
        Leaves (c, *shape).

    References:
        Bekas, Kokiopoulou and Saad (2007), An estimator for the diagonal of a matrix.

    Examples:
        >>> g, precisions = torch.Generator().manual_seed(0), torch.tensor([1.0, 9.0], dtype=torch.float64)
        >>> start = {"x": torch.ones(1, 2, dtype=torch.float64)}
        >>> hessian = hessian_diagonal(lambda q: -0.5 * (q["x"] ** 2 * precisions).sum(-1), start, generator=g)
        >>> hessian["x"].round(decimals=4)
        tensor([[-1., -9.]], dtype=torch.float64)
    """
    point = ravel(position)
    here = ravel(value_and_gradient(log_density, position)[1])
    step = torch.finfo(point.dtype).eps ** 0.5 * (1 + point.abs().mean(dim=-1, keepdim=True))
    total = torch.zeros_like(point)
    for _ in range(num_probes):
        signs = generators.normal(point.shape, like=point, generator=generator).sign()
        there = unravel(point + step * signs, position)
        total += signs * (ravel(value_and_gradient(log_density, there)[1]) - here) / step
    return unravel(total / num_probes, position)


def ravel(position: Position) -> Tensor:
    """All parameters of each chain in one vector: leaves (c, *shape) become (c, p)."""
    return torch.cat([leaf.reshape(len(leaf), -1) for leaf in position.values()], dim=-1)


def unravel(flat: Tensor, like: Position) -> Position:
    """The inverse of `ravel` for any number of chains: (c, p) becomes leaves shaped like those of `like`."""
    parts = flat.split([leaf[0].numel() for leaf in like.values()], dim=-1)
    return {
        name: part.reshape(len(flat), *leaf.shape[1:]).to(leaf.dtype)
        for (name, leaf), part in zip(like.items(), parts, strict=True)
    }
