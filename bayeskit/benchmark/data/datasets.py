"""Data sets by name or by file: inputs, target, task and splits, with notes on the decisions made while reading.

A name is one of scikit-learn's shipped sets, some of its classes (`digits-0-4`; `digits-5-9` then serves as
out-of-distribution data), the stem of an `.npz` file in the folder named by the environment variable BAYESKIT_DATA,
or `openml:NAME`. A file is CSV, Parquet or `.npz`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bayeskit.benchmark.data import dataset_sources
from bayeskit.benchmark.data.division import TEST_FRACTION, Division, Split
from bayeskit.core import checks

if TYPE_CHECKING:
    import pandas as pd

Task = Literal["regression", "classification"]

RARE = 5  # a class with fewer rows than this cannot be split, trained and tested


@dataclass(frozen=True, eq=False)
class Dataset:
    """Inputs and a target, not yet split or encoded.

    Args:
        name: Name in tables and figures.
        X: (n, d) numbers, or a DataFrame of n rows.
        y: Targets (n,) or (n, k) for regression; integer codes (n,) for classification.
        task: "regression" or "classification".
        classes: The classes' own names in the order of the codes; empty for regression.
        splits: The splits provided with the data, as (train rows, test rows); empty if there are none.
        notes: Sentences on decisions made while reading.
        columns: Names of the columns of an array; empty if there are none.
        division: How each seed divides the rows, before `splits`; see `bayeskit.benchmark.data.division`.
    """

    name: str
    X: "np.ndarray | pd.DataFrame"
    y: np.ndarray
    task: Task
    classes: tuple[str, ...] = ()
    splits: Sequence[Split] = ()
    notes: tuple[str, ...] = field(default=())
    columns: tuple[str, ...] = ()
    division: Division | None = None

    def split(self, seed: int) -> Split:
        """Row numbers of the training and the test set, stratified by class, by seed.

        Args:
            seed: A number from 0; provided splits are used in turn.
        """
        if self.division is not None:
            return self.division.split(self.y, self.task == "classification", seed)
        if self.splits:
            return self.splits[seed % len(self.splits)]
        from sklearn.model_selection import train_test_split

        groups = self.y if self.task == "classification" else None
        rows = np.arange(len(self.y))
        train, test = train_test_split(rows, test_size=TEST_FRACTION, random_state=seed, stratify=groups)
        return np.asarray(train), np.asarray(test)

    def fingerprint(self) -> str:
        """A string that changes when the data, the task or the splits do."""
        import joblib

        if isinstance(self.X, np.ndarray):
            inputs: Any = self.X
        else:
            import pandas as pd

            hashes: Any = pd.util.hash_pandas_object(self.X, index=False)  # type: ignore[attr-defined]
            inputs = ([str(c) for c in self.X.columns], hashes.to_numpy())
        content: tuple[Any, ...] = (inputs, self.y, self.task, self.classes, [list(pair) for pair in self.splits])
        if self.division is not None:
            content += (self.division.folds, self.division.by, self.division.codes)
        return str(joblib.hash(content))


def names() -> list[str]:
    """The names that `load` accepts: scikit-learn's shipped sets, then the stems in the BAYESKIT_DATA folder.

    >>> "diabetes" in names()
    True
    """
    return [*dataset_sources.SHIPPED, *sorted(set(dataset_sources.folder()) - set(dataset_sources.SHIPPED))]


def load(name: str, *, target: str | None = None, task: Task | None = None) -> Dataset:
    """Read data by name or by file.

    Args:
        name: A name (see `names`), `NAME-A-B` for the classes A to B of a shipped classification set, `openml:NAME`,
            or the path of a CSV, Parquet or `.npz` file.
        target: The target's column (or array, in an `.npz` file); the last column (or the array `y`) if None.
        task: "regression" or "classification"; inferred from the target if None, with a note.

    Raises:
        ValueError: The name, the column or the layout of the file is not known; the message lists the valid ones.
        FileNotFoundError: There is no such file.

    >>> data = load("digits-0-4")
    >>> data.X.shape, data.task, data.classes
    ((901, 64), 'classification', ('0', '1', '2', '3', '4'))
    """
    if task is not None:
        checks.choice(task, name="task", options=("regression", "classification"))
    return _finish(name, dataset_sources.read(name, target), task)


def load_inputs(name: str, like: Dataset) -> "np.ndarray | pd.DataFrame":
    """Inputs alone, with the columns of another data set: out-of-distribution data for it.

    Args:
        name: As for `load`.
        like: The data set in distribution.

    Raises:
        ValueError: The columns do not fit.
    """
    if not isinstance(like.X, np.ndarray):
        frame = dataset_sources.inputs(name)
        if isinstance(frame, np.ndarray):
            return _named(name, frame, like)
        missing = [str(c) for c in like.X.columns if c not in frame.columns]
        if missing:
            raise ValueError(f"`ood` must have the columns of {like.name}; {name} lacks {missing[:5]}")
        return frame.reindex(columns=like.X.columns)
    X = dataset_sources.read(name, None, argument="ood").X
    if not isinstance(X, np.ndarray):
        raise ValueError(f"`ood` must be numbers like {like.name}; {name} has columns with names")
    if X.shape[1] != like.X.shape[1]:
        raise ValueError(f"`ood` must have {like.X.shape[1]} columns like {like.name}; {name} has {X.shape[1]}")
    return X


def guess_task(y: np.ndarray) -> tuple[Task, str]:
    """The task inferred from a target, and the reason in words.

    >>> guess_task(np.array(["a", "b", "a"]))
    ('classification', 'the target holds names')
    >>> guess_task(np.array([0.5, 1.0]))[0]
    'regression'
    """
    if y.ndim == 2:
        return "regression", f"there are {y.shape[1]} targets"
    if y.dtype.kind == "b":
        return "classification", "the target is true or false"
    if y.dtype.kind not in "iuf":
        return "classification", "the target holds names"
    distinct = len(np.unique(y))
    if y.dtype.kind in "iu" and distinct <= max(2, min(20, len(y) // 10)):
        return "classification", f"the target holds whole numbers with {distinct} different values"
    if y.dtype.kind in "iu":
        return "regression", f"the target holds whole numbers with as many as {distinct} different values"
    return "regression", "the target holds real numbers"


def _named(name: str, X: np.ndarray, like: Dataset) -> "pd.DataFrame":
    """Numbers without names under the names of a table's columns, which must be numbers too and as many."""
    import pandas as pd

    assert isinstance(like.X, pd.DataFrame)
    numeric = all(pd.api.types.is_numeric_dtype(kind) for kind in like.X.dtypes)
    if not numeric or X.shape[1] != like.X.shape[1]:
        kinds = f"{like.X.shape[1]} columns{'' if numeric else ', not all of them numbers'}"
        raise ValueError(
            f"`ood` must have the columns of {like.name} ({kinds}); {name} has {X.shape[1]} columns of numbers"
        )
    return pd.DataFrame(X, columns=like.X.columns)


def _finish(name: str, raw: dataset_sources.Raw, task: Task | None) -> Dataset:
    if raw.y is None:
        raise ValueError(f"{name} has no target; pass `target`, the name of the column or array to predict")
    notes = list(raw.notes)
    y = np.asarray(raw.y)
    keep = ~_missing(y)
    if not keep.all():
        count = int((~keep).sum())
        notes.append(f"{count} row{'s' if count > 1 else ''} without a target left out.")
        y = _without_gaps(y, keep)
    if task is None:
        task, reason = guess_task(y[keep])
        notes.append(f"The task was taken to be {task}, because {reason}.")
    classes: tuple[str, ...] = ()
    if task == "classification":
        if y.ndim == 2:
            raise ValueError(f"`task` cannot be classification: {name} has {y.shape[1]} targets")
        if y.dtype.kind == "f" and (y[keep] % 1 != 0).any():
            raise ValueError(
                f"`task` cannot be classification: the target of {name} holds real numbers, with as many as "
                f"{len(np.unique(y[keep]))} different values; leave `task` out for regression, or give another `target`"
            )
        y, classes, keep = _encode(y, keep, notes)
    else:
        y = _real(name, y)
        keep &= np.isfinite(y.reshape(len(y), -1)).all(1)
    if keep.sum() < 10:
        raise ValueError(f"{name} must have at least 10 rows with a target; got {keep.sum()}")
    new_row = np.cumsum(keep) - 1
    splits = [(new_row[train[keep[train]]], new_row[test[keep[test]]]) for train, test in raw.splits]
    stem = re.sub(r"\.(csv|tsv|parquet|pq|npz)$", "", re.split(r"[\\/]", name)[-1])
    X: Any = raw.X
    return Dataset(stem, X[keep], y[keep], task, classes, splits, tuple(notes), tuple(raw.columns))


def _missing(y: np.ndarray) -> np.ndarray:
    if y.dtype.kind == "f":
        return np.asarray(np.isnan(y.reshape(len(y), -1)).any(1))
    if y.dtype.kind != "O":
        return np.zeros(len(y), bool)
    import pandas as pd

    return np.asarray(pd.isna(y))


def _without_gaps(y: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The target in the type it has without its missing values, for which whole numbers were read as floats or objects.

    The values of rows not kept are zeros where the type changes.
    """
    values = y[keep]
    if y.ndim > 1 or not len(values):
        return y
    if y.dtype.kind == "O":
        values = np.array(values.tolist())  # the type that the values have in common
    if values.dtype.kind == "f" and np.isfinite(values).all() and (values % 1 == 0).all() and abs(values).max() < 2**53:
        values = values.astype(int)
    if values.dtype.kind not in "iufb" or values.dtype == y.dtype:
        return y
    filled = np.zeros(len(y), values.dtype)
    filled[keep] = values
    return filled


def _real(name: str, y: np.ndarray) -> np.ndarray:
    try:
        return np.asarray(y, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"the target of {name} must be numbers for regression; pass `task='classification'`") from None


def _encode(y: np.ndarray, keep: np.ndarray, notes: list[str]) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
    """Integer codes, the classes' names, and the rows to keep once classes too rare to split are removed."""
    values = y.astype(str) if y.dtype.kind == "O" else y
    found, counts = np.unique(values[keep], return_counts=True)
    rare = found[counts < RARE]
    if len(rare):
        shown = ", ".join(map(str, rare[:5]))
        notes.append(f"Classes with fewer than {RARE} rows were left out: {shown}{' ...' if len(rare) > 5 else ''}.")
        keep = keep & ~np.isin(values, rare)
        found = found[counts >= RARE]
    if len(found) < 2:
        raise ValueError(f"classification needs a target with at least two classes of {RARE} rows; got {len(found)}")
    codes = np.searchsorted(found, values).clip(max=len(found) - 1)
    return codes, tuple(str(c) for c in found), keep
