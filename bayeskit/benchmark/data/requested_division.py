"""The division of a data set that is asked for: a column of groups or of time, a number of folds."""

from dataclasses import replace
from typing import Any

import numpy as np

from bayeskit.benchmark.data.datasets import Dataset
from bayeskit.benchmark.data.division import Division
from bayeskit.core import checks


def divided(dataset: Dataset, groups: Any, time: Any, folds: int | None) -> Dataset:
    """The data set with its division; a column of groups is no longer among its inputs.

    Args:
        dataset: The data.
        groups: Column (or values, (n,)) whose equal rows stay on one side, or None.
        time: Column (or values, (n,)) in whose order the rows are, or None.
        folds: Number of folds, or None.

    Raises:
        ValueError: There is no such column, it has missing values, or the rows cannot be divided so.
    """
    if groups is None and time is None and folds is None:
        return dataset
    if groups is not None and time is not None:
        raise ValueError("`groups` and `time` must not both be given: test rows are either of other groups or later")
    if folds is not None:
        checks.positive(folds, name="folds", integer=True)
        if not 2 <= folds <= len(dataset.y):
            raise ValueError(f"`folds` must be at least 2 and at most the {len(dataset.y)} rows; got {folds}")
    if groups is not None:
        column, values = _column(dataset, groups, "groups")
        codes = np.unique(values.astype(str) if values.dtype.kind == "O" else values, return_inverse=True)[1]
        count = codes.max() + 1
        if count < (folds or 2):
            raise ValueError(f"`groups` must have at least {folds or 2} groups to divide; {column} has {count}")
        kept = _without(dataset, groups)
        dropped = " is not among the inputs, because test rows are of other groups."
        notes = (*dataset.notes, f"Column {column}{dropped}") if kept is not dataset else dataset.notes
        return replace(kept, division=Division(folds, "groups", codes, column), notes=notes)
    if time is not None:
        column, values = _column(dataset, time, "time")
        if values.dtype.kind not in "iufM":
            raise ValueError(f"`time` must be a column of numbers or dates; {column} holds {type(values[0]).__name__}")
        codes = np.unique(values, return_inverse=True)[1]
        if codes.max() < (folds or 1):
            raise ValueError(f"`time` must have at least {(folds or 1) + 1} different values; {column} has fewer")
        return replace(dataset, division=Division(folds, "time", codes, column))
    return replace(dataset, division=Division(folds))


def _column(dataset: Dataset, given: Any, argument: str) -> tuple[str, np.ndarray]:
    """The name and the values of a column, or values as they are given."""
    import pandas as pd

    names = list(dataset.columns) if isinstance(dataset.X, np.ndarray) else [str(c) for c in dataset.X.columns]
    if not isinstance(given, str):
        column, values = f"`{argument}`", pd.Series(np.asarray(given))
        if len(values) != len(dataset.y):
            raise ValueError(f"`{argument}` must have one value for each of {len(dataset.y)} rows; got {len(values)}")
    elif given in names:
        X: Any = dataset.X
        column, values = given, pd.Series(X[:, names.index(given)] if isinstance(X, np.ndarray) else X[given])
    else:
        shown = ", ".join(names[:20]) + (" ..." if len(names) > 20 else "") or "its columns have no names"
        raise ValueError(
            f"`{argument}` must be a column of the inputs of {dataset.name} ({shown}); "
            f"got {given!r}{checks.suggest(given, names)}"
        )
    if values.isna().any():
        count = int(values.isna().sum())
        raise ValueError(f"`{argument}` must have a value in every row; {column} has {count} missing")
    return column, values.dt.tz_localize(None).to_numpy() if values.dtype.kind == "M" else values.to_numpy()


def _without(dataset: Dataset, given: Any) -> Dataset:
    """The data set without a named column."""
    if not isinstance(given, str):
        return dataset
    if isinstance(dataset.X, np.ndarray):
        rest = [i for i, name in enumerate(dataset.columns) if name != given]
        kept = replace(dataset, X=dataset.X[:, rest], columns=tuple(dataset.columns[i] for i in rest))
    else:
        kept = replace(dataset, X=dataset.X.drop(columns=given))
    if not kept.X.shape[1]:
        raise ValueError(f"`groups` must leave a column of inputs; {given!r} is the only one")
    return kept
