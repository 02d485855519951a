"""The division of a data set into training and test rows: by groups, by time, in folds."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from bayeskit.benchmark.data.datasets import TEST_FRACTION, Dataset, Split
from bayeskit.core import checks


@dataclass(frozen=True, eq=False)
class Division:
    """How each seed divides the rows; `dataset.division`.

    Args:
        folds: Number of folds, of which seed s holds out fold s mod `folds`; None for one test set of a fifth per seed.
        by: "rows", "groups" (rows of one group are on one side) or "time" (test rows are later than training rows).
        codes: The group of each row, or the rank of its time, (n,); empty for "rows".
        column: Name of the column of groups or times.
    """

    folds: int | None
    by: Literal["rows", "groups", "time"] = "rows"
    codes: np.ndarray | None = None
    column: str = ""

    def split(self, y: np.ndarray, labels: bool, seed: int) -> Split:
        """Training and test rows of a seed.

        Args:
            y: Targets, by which classes are stratified.
            labels: Whether these are class codes.
            seed: A number from 0.
        """
        if self.by == "time":
            return self._by_time(seed)
        from sklearn import model_selection

        count = self.folds or round(1 / TEST_FRACTION)
        if self.by == "groups":
            assert self.codes is not None
            count = min(count, len(np.unique(self.codes)))
            make: Any = model_selection.StratifiedGroupKFold if labels else model_selection.GroupKFold
        else:
            make = model_selection.StratifiedKFold if labels else model_selection.KFold
        repetition, fold = (seed, 0) if self.folds is None else divmod(seed, self.folds)
        splits = make(count, shuffle=True, random_state=repetition).split(y, y if labels else None, self.codes)
        return list(splits)[fold]

    def sentence(self, seeds: int) -> str:
        """How the rows are divided, for the terminal and the report."""
        share, fold = f"{100 * TEST_FRACTION:.0f} %", f"one of {self.folds} folds" if self.folds else ""
        if self.by == "time":
            what = f"the rows are in the order of {self.column}, and each test set is later than its training set"
            if self.folds:
                return f"Seed by seed {what}: of {self.folds + 1} blocks of time, one of the last {self.folds} in turn."
            return f"The test set is the last {share} of the rows by {self.column}, the same for every seed."
        if self.by == "groups":
            assert self.codes is not None
            groups = f"rows of one group of {self.column} ({len(np.unique(self.codes))} groups) are never on both sides"
            return f"Each seed holds out {fold or f'about {share} of the data at random'} as a test set, and {groups}."
        again = "" if not self.folds or seeds <= self.folds else ", which are drawn anew once all were used"
        return f"Each seed holds out {fold} as a test set in turn{again}."

    def _by_time(self, seed: int) -> Split:
        """Cuts between different times next to the ends of equal blocks of rows."""
        assert self.codes is not None
        n, order = len(self.codes), np.sort(self.codes)
        if self.folds is None:
            start, end = order[min(int((1 - TEST_FRACTION) * n), n - 1)], order[-1] + 1
            start = max(start, order[0] + 1)
        else:
            edges = [int(n * (k + 1) / (self.folds + 1)) for k in range(self.folds)]
            cuts = np.unique(np.maximum(order[edges], order[0] + 1))
            cuts = [*cuts, order[-1] + 1]
            fold = seed % self.folds % (len(cuts) - 1)
            start, end = cuts[fold], cuts[fold + 1]
        return np.flatnonzero(self.codes < start), np.flatnonzero((self.codes >= start) & (self.codes < end))


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
