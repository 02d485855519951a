"""Sources of data sets: scikit-learn's shipped sets, a folder of `.npz` files, OpenML, and files."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bayeskit.benchmark.data import table_io
from bayeskit.core import checks

if TYPE_CHECKING:
    import pandas as pd

SHIPPED = ("breast_cancer", "diabetes", "digits", "iris", "linnerud", "wine")
_HELD_OUT = "some classes of one such as digits-0-4, with digits-5-9 held out"


@dataclass(frozen=True, eq=False)
class Raw:
    """Data as read: inputs, a target if there is one, provided splits, notes and column names."""

    X: "np.ndarray | pd.DataFrame"
    y: Any = None
    splits: Sequence[tuple[np.ndarray, np.ndarray]] = ()
    notes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


def read(name: str, target: str | None, *, argument: str = "data") -> Raw:
    """Data by name or file, not yet checked; see `bayeskit.benchmark.data.datasets.load`.

    Args:
        name: A name or a file.
        target: The target's column or array, or None for the usual one.
        argument: What a message about the name calls it.
    """
    if name.startswith("openml:"):
        return _table(_openml(name), target, name)
    path = Path(name).expanduser()
    if path.suffix.lower() == ".npz":
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {name}")
        return _npz(path, target)
    if path.suffix.lower() in table_io.TABLES:
        found, notes = table_io.table(path)
        return _table(found, target, name, notes)
    if name in SHIPPED:
        return _shipped(name)
    part = re.fullmatch(r"(\w+)-(\d+)-(\d+)", name)
    if part and part[1] in SHIPPED:
        return _some_classes(part[1], int(part[2]), int(part[3]), argument)
    known = folder()
    if name in known:
        return _npz(known[name], target)
    raise ValueError(_unknown(name, known, argument))


def folder() -> dict[str, Path]:
    """The `.npz` files under BAYESKIT_DATA by stem, and by their path in the folder (`uci/wine`)."""
    root = os.environ.get("BAYESKIT_DATA")
    if not root:
        return {}
    found = sorted(Path(root).expanduser().rglob("*.npz"))
    return {f.relative_to(Path(root).expanduser()).with_suffix("").as_posix(): f for f in found} | {
        f.stem: f for f in found
    }


def inputs(name: str) -> "np.ndarray | pd.DataFrame":
    """Inputs for a data set that is a table: a table too, perhaps with its target, or numbers without names."""
    if name.startswith("openml:"):
        return _openml(name)
    path = Path(name).expanduser()
    if path.suffix.lower() in table_io.TABLES:
        return table_io.table(path)[0]
    raw = read(name, None, argument="ood")
    if not raw.columns:
        return raw.X
    import pandas as pd

    return pd.DataFrame(np.asarray(raw.X), columns=list(raw.columns))


def _unknown(name: str, known: dict[str, Path], argument: str) -> str:
    hint = checks.suggest(name, [*SHIPPED, *known, "digits-0-4", "digits-5-9"])
    where = "" if known else "; set BAYESKIT_DATA to a folder of .npz files for more names"
    return (
        f"`{argument}` must be a file (CSV, Parquet, npz), `openml:NAME`, one of "
        f"{sorted({*SHIPPED, *(k for k in known if '/' not in k)})}, or {_HELD_OUT}; got {name!r}{hint}{where}"
    )


def _shipped(name: str) -> Raw:
    from sklearn import datasets

    bunch: Any = getattr(datasets, f"load_{name}")()
    other = folder().get(name)
    notes = (f"The name is also that of {other.name} in BAYESKIT_DATA; scikit-learn's set was taken.",) if other else ()
    y = bunch.target
    if name in ("breast_cancer", "iris", "wine"):
        y = np.asarray(bunch.target_names)[y]
    columns = tuple(map(str, bunch.feature_names))
    return Raw(np.asarray(bunch.data, dtype=float), y, notes=notes, columns=columns)


def _some_classes(name: str, first: int, last: int, argument: str) -> Raw:
    raw = _shipped(name)
    values = np.unique(raw.y)
    if len(values) > 20 or not 0 <= first <= last < len(values):
        limit = f"classes 0 to {len(values) - 1}" if len(values) <= 20 else "no classes"
        raise ValueError(f"`{argument}` {name}-{first}-{last} must pick classes that exist; {name} has {limit}")
    keep, X = np.isin(raw.y, values[first : last + 1]), np.asarray(raw.X)
    notes = (f"Classes {first} to {last} of {name} alone.",)
    return Raw(X[keep], raw.y[keep], notes=notes, columns=raw.columns)


def _openml(name: str) -> "pd.DataFrame":
    from sklearn.datasets import fetch_openml

    key = name.removeprefix("openml:")
    try:
        bunch: Any = (
            fetch_openml(data_id=int(key), as_frame=True) if key.isdigit() else fetch_openml(key, as_frame=True)
        )
    except Exception as error:  # the network, the server and the parser each have their own exceptions
        raise ValueError(f"{name} could not be fetched from OpenML: {str(error).splitlines()[0]}") from None
    wanted = [c for c in (bunch.target_names or []) if c in bunch.frame.columns]
    return bunch.frame[[c for c in bunch.frame.columns if c not in wanted] + wanted]  # the target comes last


def _table(table: "pd.DataFrame", target: str | None, name: str, notes: tuple[str, ...] = ()) -> Raw:
    columns = [str(c) for c in table.columns]
    table = table.set_axis(columns, axis="columns")
    if target is not None and target not in columns:
        shown = ", ".join(columns[:20]) + (" ..." if len(columns) > 20 else "")
        raise ValueError(
            f"`target` must be a column of {name} ({shown}); got {target!r}{checks.suggest(target, columns)}"
        )
    if len(columns) < 2:
        raise ValueError(f"{name} must have at least two columns, inputs and a target; got {columns}")
    notes += () if target else (f"The target was taken to be the last column, {columns[-1]}.",)
    target = target or columns[-1]
    y = table[target]
    plain = y.dtype.kind in "biuf" if isinstance(y.dtype, np.dtype) else False
    inputs: Any = table.drop(columns=target)
    return Raw(inputs, y.to_numpy() if plain else y.to_numpy(dtype=object), notes=notes)


def _npz(path: Path, target: str | None) -> Raw:
    stored = table_io.arrays(path)
    if target is not None and target not in stored:
        hint = checks.suggest(target, stored)
        raise ValueError(f"`target` must be an array of {path.name} ({', '.join(stored)}); got {target!r}{hint}")
    for x in ("X", "x"):
        parts = (f"{x}_train", "y_train", f"{x}_test", "y_test")
        if all(part in stored for part in parts):
            x_train, y_train, x_test, y_test = (stored[part] for part in parts)
            rows = np.arange(len(x_train) + len(x_test))
            split = (rows[: len(x_train)], rows[len(x_train) :])
            X = _flat(np.concatenate([x_train, x_test]))
            return Raw(X, np.concatenate([y_train, y_test]), (split,), _image_note(x_train))
    y = stored.get(target or "y")
    if "X" not in stored or (y is not None and len(y) != len(stored["X"])):
        raise ValueError(
            f"{path.name} must hold arrays `X` and `y` of as many rows, or `X_train`, `y_train`, `X_test`, `y_test`; "
            f"it holds {', '.join(stored)}"
        )
    return Raw(_flat(stored["X"]), y, _splits(stored), _image_note(stored["X"]))


def _splits(stored: dict[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    if "train_idx" in stored and "test_idx" in stored:
        return list(zip(np.atleast_2d(stored["train_idx"]), np.atleast_2d(stored["test_idx"]), strict=True))
    if "test_fold" in stored:
        fold = stored["test_fold"]
        return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in np.unique(fold[fold >= 0])]
    return []


def _flat(x: np.ndarray) -> np.ndarray:
    flat = x.reshape(len(x), -1)
    return flat if flat.dtype.kind == "f" else flat.astype(np.float32)


def _image_note(x: np.ndarray) -> tuple[str, ...]:
    shape = " x ".join(map(str, x.shape[1:]))
    return (f"Images of {shape} pixels were flattened.",) if x.ndim > 2 else ()
