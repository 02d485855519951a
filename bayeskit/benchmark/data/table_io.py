"""Tables and archives from files, with notes on the decisions made while reading."""

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

TABLES = (".csv", ".tsv", ".parquet", ".pq")
"""Suffixes of files that hold a table."""

_PARQUET = (".parquet", ".pq")
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def table(path: Path) -> "tuple[pd.DataFrame, tuple[str, ...]]":
    """A whole table from a CSV or Parquet file, columns of dates read as dates, with notes.

    Raises:
        ValueError: The file cannot be read as a table, or has no rows.
        FileNotFoundError: There is no such file.
    """
    import pandas as pd

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        found, notes = (pd.read_parquet(path), ()) if path.suffix.lower() in _PARQUET else _text(path)
    except ImportError:
        raise ValueError(f"reading {path} needs pyarrow; install it with `pip install 'bayeskit[parquet]'`") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} could not be read as a table: {str(error).splitlines()[0]}") from None
    if not len(found):
        raise ValueError(f"{path} has no rows, only the names of {len(found.columns)} columns")
    return _with_dates(found), notes


def arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file by name.

    Raises:
        ValueError: The file is not such an archive, or holds Python objects.
    """
    try:
        with open(path, "rb") as file:
            stored = np.load(file, allow_pickle=False)
            if isinstance(stored, np.ndarray):
                raise ValueError("one array and not an archive")
            return {key: stored[key] for key in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        raise ValueError(
            f"{path.name} must be an archive of number arrays as `numpy.savez` writes it; it cannot be read as one"
        ) from None


def _text(path: Path) -> "tuple[pd.DataFrame, tuple[str, ...]]":
    """A text file of columns; the separator is inferred from a header without a comma."""
    import pandas as pd

    if path.suffix.lower() == ".tsv":
        return pd.read_csv(path, sep="\t", skipinitialspace=True), ()
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        head = file.readline()
    other = "" if "," in head else max(_SEPARATORS, key=head.count)
    if other not in head or not other:
        return pd.read_csv(path, skipinitialspace=True), ()
    found, decimals = pd.read_csv(path, sep=other, skipinitialspace=True), ""
    with_commas = pd.read_csv(path, sep=other, skipinitialspace=True, decimal=",")
    if _num_numeric(with_commas) > _num_numeric(found):
        found, decimals = with_commas, ", decimals by commas"
    return found, (f"Columns were taken to be separated by {_SEPARATORS[other]}{decimals}.",)


def _num_numeric(found: "pd.DataFrame") -> int:
    return len(found.select_dtypes("number").columns)


def _with_dates(found: "pd.DataFrame") -> "pd.DataFrame":
    """Columns of text that are dates throughout (as in 2024-05-31), read as dates."""
    import pandas as pd

    for name in found.columns:
        column: Any = found[name]
        if pd.api.types.infer_dtype(column, skipna=True) in ("string", "date") and column.notna().any():
            try:
                dates: Any = pd.to_datetime(column, format="ISO8601", errors="coerce")
            except ValueError:  # several time zones in one column
                continue
            found[name] = dates if dates.notna().equals(column.notna()) else column
    return found
