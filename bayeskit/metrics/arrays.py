"""Validation of array-likes, as float64 NumPy arrays."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayeskit.core import checks


def numbers(value: Any, *, name: str, ndim: int | None = None, finite: bool = True) -> np.ndarray:
    """An array-like of numbers as a float64 array with at least one row.

    Raises:
        TypeError: The values are not numbers.
        ValueError: No rows, the wrong number of axes, or a NaN (an infinity too, with `finite`).
    """
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()  # NumPy has no bfloat16
    try:
        array = np.asarray(value, dtype=float)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{name}` must be numeric; got {type(value).__name__} that is not: {error}") from None
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"`{name}` must have {ndim} axes; got shape {array.shape}")
    if array.ndim and not len(array):
        raise ValueError(f"`{name}` must have at least one row; got shape {array.shape}")
    bad = ~np.isfinite(array) if finite else np.isnan(array)
    if bad.any():
        raise ValueError(f"`{name}` must be finite; got {int(bad.sum())} NaN or infinite values")
    return array


def probabilities(value: Any, *, name: str = "p") -> np.ndarray:
    """Class probabilities (n, c); a vector (n,) is read as the probability of class 1 of two."""
    p = numbers(value, name=name)
    p = np.stack([1 - p, p], -1) if p.ndim == 1 else p
    atol = max(1e-4, 4 * resolution(value))  # each p_j is rounded by at most resolution * p_j, and the p_j sum to 1
    if p.ndim != 2 or (p < -1e-6).any() or not np.allclose(p.sum(-1), 1, atol=atol):
        raise ValueError(
            f"`{name}` must hold probabilities of shape (n, c) with rows that sum to 1; got shape {p.shape}"
        )
    return p / p.sum(-1, keepdims=True) if atol > 1e-4 else p


def resolution(value: Any) -> float:
    """The relative rounding of an array's floating type: 1e-3 for float16, 8e-3 for bfloat16, 0 where it has none.

    >>> resolution(np.zeros(1, np.float16)), resolution([0.1])
    (0.0009765625, 0.0)
    """
    if isinstance(value, Tensor):
        return torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
    dtype = getattr(value, "dtype", None)
    return float(np.finfo(dtype).eps) if isinstance(dtype, np.dtype) and dtype.kind == "f" else 0.0


def labels(value: Any, *, num_classes: int, num_rows: int, name: str = "labels") -> np.ndarray:
    """Integer class codes (n,) that index the columns of the probabilities."""
    if not isinstance(value, Tensor) and np.asarray(value).dtype.kind in "OUS":
        raise TypeError(f"`{name}` must be integer codes; encode names with np.searchsorted(model.classes_, {name})")
    codes = numbers(value, name=name, ndim=1)
    if len(codes) != num_rows:
        raise ValueError(f"`p` and `{name}` must have the same number of rows; got {num_rows} and {len(codes)}")
    if (codes != np.round(codes)).any() or codes.min() < 0 or codes.max() >= num_classes:
        raise ValueError(f"`{name}` must be integers from 0 to {num_classes - 1}; got {np.unique(codes)[:5]}")
    return codes.astype(int)


def paired(first: Any, second: Any, *, names: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays of one shape; (n,) and (n, 1) are interchangeable, any other difference is an error."""
    a, b = numbers(first, name=names[0]), numbers(second, name=names[1])
    if a.shape != b.shape and a.size == b.size and len(a) == len(b):
        b = b.reshape(a.shape)
    if a.shape != b.shape:
        raise ValueError(f"`{names[0]}` and `{names[1]}` must have the same shape; got {a.shape} and {b.shape}")
    return a, b


def like_predictive(y: Any, predictive: Any) -> Any:
    """Targets as a tensor with the dtype and shape (n,) or (n, k) of a continuous predictive's mean."""
    mean = predictive.mean
    values = checks.tensor(y, name="y", like=mean)
    if values.shape != mean.shape and values.numel() == mean.numel() and len(values) == len(mean):
        values = values.reshape(mean.shape)
    if values.shape != mean.shape:
        raise ValueError(f"`y` must have shape {tuple(mean.shape)} like the predictive mean; got {tuple(values.shape)}")
    checks.finite(values, name="y")
    return values
