"""Signs that a split leaks: copies on both sides, a row index among the inputs, an input that is the target."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from bayeskit.benchmark.data.datasets import Dataset
from bayeskit.core.validation_split import duplicate_groups

NEAR_PERFECT = 0.99
"""Share of the variance, or of the labels, that one input alone explains where it may be the target."""

_ROWS = 1_000
"""Rows, at most, that a prediction from one input is learnt from, and tried on."""

_FEWEST = 20
"""Rows below which nothing is said of single columns."""

_INDEX = re.compile(r"(unnamed: ?\d+|index|idx|id|row|row_?(id|index|number|nr))", re.IGNORECASE)


def signs(dataset: Dataset, X_train: np.ndarray, X_test: np.ndarray) -> list[str]:
    """A sentence for each sign of a leak.

    Args:
        dataset: The data.
        X_train: Encoded inputs of the training rows of a split, (n, d).
        X_test: Encoded inputs of its test rows, (t, d).

    Examples:
        >>> x, y = np.arange(40.0)[:, None] ** [1, 2], np.arange(40.0) % 7
        >>> signs(Dataset("count", x, y, "regression"), x[:30], x[30:])[0][:40]
        'Warning: column 1 looks like a row index'
    """
    return [*_copies(dataset, X_train, X_test), *_indices(dataset), *_targets(dataset)]


def _copies(dataset: Dataset, X_train: np.ndarray, X_test: np.ndarray) -> list[str]:
    codes = duplicate_groups(torch.from_numpy(np.concatenate([X_train, X_test])))
    count = int(np.isin(codes[len(X_train) :], codes[: len(X_train)]).sum())
    if not count:
        return []
    have = f"{count} of {len(X_test)} test points {'has' if count == 1 else 'have'}"
    remedy = "" if dataset.division is not None else ", or keep copies together by `groups`"
    return [
        f"Warning: {have} the inputs of a training point (copies, up to rounding), so their scores may measure memory; "
        f"remove copies{remedy}."
    ]


def _indices(dataset: Dataset) -> list[str]:
    """Columns of whole numbers that count the rows, or that are named like such a column."""
    time = dataset.division.column if dataset.division is not None and dataset.division.by == "time" else None
    found = [name for name, values in _columns(dataset) if name != time and _counts_rows(name, values)]
    return [
        f"Warning: {name} looks like a row index, which says nothing of new data; remove it, or give it as `time` if "
        "rows are in the order of time."
        for name in found
    ]


def _counts_rows(name: str, values: np.ndarray) -> bool:
    if values.dtype.kind not in "iuf" or len(values) < _FEWEST or not np.isfinite(values).all() or (values % 1).any():
        return False
    distinct = len(np.unique(values))
    dense = distinct == len(values) and values.max() - values.min() < 1.25 * len(values)
    return bool(dense or (_INDEX.fullmatch(name) and distinct > 0.5 * len(values)))


def _targets(dataset: Dataset) -> list[str]:
    """Columns from which alone the targets of other rows are predicted almost perfectly."""
    rows, columns = np.random.default_rng(0).permutation(len(dataset.y))[: 2 * _ROWS], list(_columns(dataset))
    if len(columns) < 2 or len(rows) < 2 * _FEWEST or dataset.y.ndim > 1:
        return []
    labels, y = dataset.task == "classification", dataset.y
    train, test = np.array_split(rows, 2)
    sentences = []
    for name, values in columns:
        x = values.astype(float)
        if not np.isfinite(x[rows]).all():
            continue
        explained = (_labels_explained if labels else _variance_explained)(x[train], y[train], x[test], y[test])
        if explained >= NEAR_PERFECT:
            share = f"{100 * explained:.1f} % of the {'labels' if labels else 'variance'} of other rows"
            sentences.append(f"Warning: {name} alone predicts {share}; check that it is known before the target is.")
    return sentences


def _variance_explained(x: np.ndarray, y: np.ndarray, x_new: np.ndarray, y_new: np.ndarray) -> float:
    """R squared of a line through the training points in the order of one input."""
    if not y_new.std() > 0:
        return 0.0
    knots, code, counts = np.unique(x, return_inverse=True, return_counts=True)
    means = np.bincount(code, y) / counts
    return 1 - float(((np.interp(x_new, knots, means) - y_new) ** 2).mean() / y_new.var())


def _labels_explained(x: np.ndarray, y: np.ndarray, x_new: np.ndarray, y_new: np.ndarray) -> float:
    """Accuracy of a tree of one input with few leaves; 0 where the commonest class is nearly as good."""
    from sklearn.tree import DecisionTreeClassifier

    classes, counts = np.unique(y, return_counts=True)
    commonest = float((y_new == classes[counts.argmax()]).mean())
    tree = DecisionTreeClassifier(max_leaf_nodes=2 * len(classes), random_state=0).fit(x[:, None], y)
    accuracy = float(tree.score(x_new[:, None], y_new))
    return accuracy if 1 - accuracy <= 0.1 * (1 - commonest) else 0.0


def _columns(dataset: Dataset) -> Iterator[tuple[str, np.ndarray]]:
    """Names and values of the columns; the values of those that are not numbers are codes, as objects."""
    if isinstance(dataset.X, np.ndarray):
        names = dataset.columns or [f"column {j + 1}" for j in range(dataset.X.shape[1])]
        yield from zip(names, dataset.X.T, strict=True)
        return
    import pandas as pd

    for name in dataset.X.columns:
        column: Any = dataset.X[name]
        numeric = pd.api.types.is_numeric_dtype(column)
        yield str(name), column.to_numpy(float, na_value=np.nan) if numeric else pd.factorize(column)[0].astype(object)
