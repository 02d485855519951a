"""Targets and probability levels of any array type, read with the shape, dtype and device of predictions."""

from typing import Any

import torch
from torch import Tensor

from bayeskit.core import checks


def targets(y: Any, *, like: Tensor) -> Tensor:
    """Targets (*s, n, k) with the type and device of `like` (*b, n, k), read from any array; (n,) becomes (n, 1).

    Raises:
        ValueError: The last two axes are not (n, k).
    """
    values = columns(y, like=like)
    n, k = like.shape[-2:]
    if values.shape[-2:] != (n, k):
        raise ValueError(f"`y` must have shape (n, k) = ({n}, {k}) like the predictions; got {tuple(values.shape)}")
    return values


def thresholds(y: Any, *, like: Tensor) -> Tensor:
    """Arguments of a cdf: read like `targets` or broadcast against `like`, (*s, n, k)."""
    values = columns(y, like=like)
    return values.expand(torch.broadcast_shapes(values.shape, like.shape))


def columns(y: Any, *, like: Tensor) -> Tensor:
    """Numbers with the type and device of `like` (*b, n, k); with one output, (*s, n) becomes (*s, n, 1)."""
    values = checks.tensor(y, name="y", like=like)
    n, k = like.shape[-2:]
    short = k == 1 and values.ndim and values.shape[-1] == n and values.shape[-2:] != (n, 1)
    return values.unsqueeze(-1) if short else values


def levels(q: Any, *, like: Tensor) -> Tensor:
    """Probability levels (*j,) in float64, shaped to broadcast in front of `like`: (*j, 1, ..., 1).

    Raises:
        ValueError: A level is not strictly between 0 and 1.
    """
    q = checks.tensor(q, name="q").to(device=like.device, dtype=torch.float64)
    if not bool(((q > 0) & (q < 1)).all()):
        raise ValueError(f"`q` must lie strictly between 0 and 1; got {q.tolist()}")
    return q.reshape(*q.shape, *(1 for _ in like.shape))
