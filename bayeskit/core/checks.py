"""Checks of arguments: errors that say what was expected, what was given, and what to do.

Arguments are checked once, at entry points (`fit`, `infer`, a metric); inside, the code trusts its callers.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor


def suggest(name: str, known: Collection[str]) -> str:
    """`; did you mean 'x'?` when a known name is close to `name`, else an empty string.

    Examples:
        >>> suggest("lapalce", ["laplace", "svgp"])
        "; did you mean 'laplace'?"
    """
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def choice(value: Any, *, name: str, options: Collection[str]) -> None:
    """Raise `ValueError` unless `value` is one of `options`.

    Examples:
        >>> choice("ful", name="structure", options=["full", "diagonal"])
        Traceback (most recent call last):
        ValueError: `structure` must be one of ['diagonal', 'full']; got 'ful'; did you mean 'full'?
    """
    if value not in options:
        hint = suggest(value, options) if isinstance(value, str) else ""
        raise ValueError(f"`{name}` must be one of {sorted(options)}; got {value!r}{hint}")


def positive(value: Any, *, name: str, integer: bool = False) -> None:
    """Raise unless `value` is a finite number above zero (an integer of at least 1 with `integer`).

    Examples:
        >>> positive(0, name="num_samples", integer=True)
        Traceback (most recent call last):
        ValueError: `num_samples` must be a positive integer; got 0
    """
    kind = "a positive integer" if integer else "a positive number"
    numeric = isinstance(value, (int, np.integer) if integer else (int, float, np.number))
    if isinstance(value, bool) or not numeric:
        raise TypeError(f"`{name}` must be {kind}; got {value!r} of type {type(value).__name__}")
    if not (value > 0 and np.isfinite(value)):
        raise ValueError(f"`{name}` must be {kind}; got {value!r}")


def fraction(value: Any, *, name: str) -> None:
    """Raise `ValueError` unless `0 < value < 1`.

    Examples:
        >>> fraction(90, name="level")
        Traceback (most recent call last):
        ValueError: `level` must lie strictly between 0 and 1; got 90
    """
    if not isinstance(value, (int, float, np.number)) or not 0 < value < 1:
        raise ValueError(f"`{name}` must lie strictly between 0 and 1; got {value!r}")


def same_length(first: Any, second: Any, *, names: tuple[str, str]) -> None:
    """Raise `ValueError` unless the two have as many rows.

    Examples:
        >>> same_length([1, 2], [1], names=("X", "y"))
        Traceback (most recent call last):
        ValueError: `X` and `y` must have the same number of rows; got 2 and 1
    """
    if len(first) != len(second):
        raise ValueError(
            f"`{names[0]}` and `{names[1]}` must have the same number of rows; got {len(first)} and {len(second)}"
        )


def finite(value: Tensor, *, name: str) -> None:
    """Raise `ValueError` naming the first row of `value` with a NaN or an infinity.

    Examples:
        >>> finite(torch.tensor([1.0, float("nan")]), name="y")
        Traceback (most recent call last):
        ValueError: `y` must be finite; got 1 NaN or infinite values, the first in row 1. Drop or impute those rows.
    """
    bad = ~torch.isfinite(value)
    if bad.any():
        row = int(bad.reshape(len(value), -1).any(-1).nonzero()[0, 0])
        raise ValueError(
            f"`{name}` must be finite; got {int(bad.sum())} NaN or infinite values, the first in row {row}. "
            "Drop or impute those rows."
        )


def observed(value: Tensor, *, name: str) -> None:
    """Raise `ValueError` naming the first column of targets (n, t) or (n,) that is NaN, not observed, in all rows.

    Examples:
        >>> observed(torch.tensor([[1.0, float("nan")], [2.0, float("nan")]]), name="y")
        Traceback (most recent call last):
        ValueError: `y` must have an observation of every output; got only NaN in column 1. Drop that column.
    """
    empty = value.isnan().all(0).reshape(-1)
    if len(value) and bool(empty.any()):
        column = int(empty.nonzero()[0, 0])
        raise ValueError(
            f"`{name}` must have an observation of every output; got only NaN in column {column}. Drop that column."
        )


def tensor(value: Any, *, name: str, like: Tensor | None = None) -> Tensor:
    """Any array-like as a tensor (pandas, NumPy, lists), on the device and with the dtype of `like` if given.

    Examples:
        >>> tensor([1, 2], name="y", like=torch.ones(1))
        tensor([1., 2.])
    """
    if not isinstance(value, Tensor):
        try:
            array = np.array(value, order="C")  # a copy: PyTorch has no negative strides, and no foreign byte order
            value = torch.as_tensor(array.astype(array.dtype.newbyteorder("="), copy=False))
        except (TypeError, ValueError) as error:
            raise TypeError(f"`{name}` must be numeric; got {type(value).__name__} that is not: {error}") from None
    return value if like is None else value.to(device=like.device, dtype=like.dtype)


def known_labels(labels: Any, classes: Any, *, name: str = "y") -> None:
    """Raise `ValueError` naming the labels that are not among `classes`.

    Examples:
        >>> known_labels(["a", "x"], ["a", "b"])
        Traceback (most recent call last):
        ValueError: `y` must only have labels among ['a', 'b']; got ['x'] as well
    """
    unknown = np.setdiff1d(labels, classes)
    if len(unknown):
        raise ValueError(
            f"`{name}` must only have labels among {np.asarray(classes).tolist()}; got {unknown.tolist()} as well"
        )
