"""Validation of the arguments of active learning."""

from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from bayeskit.core.inputs import take


def positions(rows: Any, n: int, *, name: str) -> np.ndarray:
    """Positions in a pool of n rows, as integers (m,).

    Raises:
        ValueError: They are not positions, such as a mask, or one lies outside the pool.
    """
    found = np.asarray(rows)
    if not found.size:
        return np.empty(0, dtype=int)
    if found.ndim != 1 or found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= n:
        raise ValueError(
            f"`{name}` must hold positions between 0 and {n - 1}, integers in one row; got an array of {found.dtype} "
            f"with shape {found.shape}. Of a mask take `np.flatnonzero(mask)`."
        )
    return found.astype(int)


def last_step(estimator: Any) -> Any:
    """The estimator itself, or the one at the end of a pipeline.

    Raises:
        TypeError: It has no joint distribution of the function.
    """
    last = estimator[-1] if hasattr(estimator, "steps") else estimator
    if not hasattr(last, "standardized"):
        raise TypeError(
            "`estimator` must be a GPRegressor, GPClassifier, BNNRegressor or BNNClassifier, which have a joint "
            f"distribution of the function, or a pipeline that ends in one; got {type(last).__name__}"
        )
    return last


def unwrapped(estimator: Any, X: Any, targets: Any) -> tuple[Any, Any, Any]:
    """The fitted estimator at the end of a pipeline, and inputs as it gets them."""
    last = last_step(estimator)
    check_is_fitted(last)
    if last is not estimator and len(estimator.steps) > 1:
        before = estimator[:-1]
        X, targets = before.transform(X), None if targets is None else before.transform(targets)
    return last, X, targets


def check_targets(X: Any, targets: Any) -> None:
    """Raise unless the targets are inputs like the rows of the pool.

    Raises:
        ValueError: There are none, their shape is another, or a column of the pool's table is not among theirs.
    """
    row = take(X, np.arange(1))
    if hasattr(row, "columns") and hasattr(targets, "columns"):
        missing = [name for name in row.columns if name not in targets.columns]
        if missing:
            raise ValueError(f"`targets` must have the columns of `X`; {missing} are not among {list(targets.columns)}")
    asked, wanted = np.shape(targets), np.shape(row)[1:]
    if asked[1:] != wanted or not asked or not asked[0]:
        raise ValueError(
            f"`targets` must be inputs like the rows of `X`, {('m', *wanted)} with m of at least 1; got shape {asked}"
        )


def stacked(first: Any, second: Any) -> Any:
    """Rows of the same kind one after the other."""
    if isinstance(first, Tensor):
        return torch.cat([first, torch.as_tensor(second).to(first)])
    if hasattr(first, "iloc"):
        import pandas as pd

        return pd.concat([first, pd.DataFrame(second, columns=first.columns)], ignore_index=True)
    return np.concatenate([np.asarray(first), np.asarray(second)])


def one_number_each(found: Any, n: int) -> Tensor:
    """The scores of n inputs, in float64 on the CPU, (n,).

    Raises:
        ValueError: It is anything else than one real number for each input.
    """
    numbers = None if found is None else torch.as_tensor(found).detach().cpu()
    if numbers is None or numbers.shape != (n,) or numbers.is_complex() or bool(numbers.isnan().any()):
        got = "None" if numbers is None else f"shape {tuple(numbers.shape)} of {numbers.dtype}"
        nans = 0 if numbers is None else int(numbers.isnan().sum())
        raise ValueError(
            f"`acquisition` must give one number for each input, none of them NaN; got {got} for {n} inputs, with "
            f"{nans} NaN"
        )
    return numbers.double()
