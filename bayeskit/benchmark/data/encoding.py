"""Encoding of tables as numbers, learnt on the training rows alone, with a sentence for each decision.

Numbers keep their scale (the estimators standardize); missing ones become the training median, with an indicator
column; categories are one-hot encoded; constant columns are dropped.
"""

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

MAX_CATEGORIES = 20
"""Columns that one categorical column may become; rarer categories share the last of them."""


@dataclass(eq=False)
class Encoder:
    """A fitted encoding; made by `learn`.

    Args:
        transformer: scikit-learn's transformers over the columns that are kept.
        columns: The columns that are kept.
        sentences: The decisions, for the report.
    """

    transformer: Any
    columns: list[Any]
    sentences: list[str] = field(default_factory=list)

    def __call__(self, X: "np.ndarray | pd.DataFrame") -> np.ndarray:
        """Other rows of the same table as numbers, (n, d)."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found unknown categories")  # a sentence says that they are zeros
            return np.ascontiguousarray(self.transformer.transform(_select(X, self.columns)))


def learn(X: "np.ndarray | pd.DataFrame") -> Encoder:
    """Learn from training rows how to encode the columns of a table as numbers.

    Args:
        X: (n, d) numbers, or a DataFrame of numbers, truth values, dates and categories.

    Returns:
        A callable `Encoder` for these and other rows.

    Raises:
        ValueError: Nothing is left once columns without information are dropped.

    >>> encoder = learn(np.array([[1.0, 7.0], [np.nan, 7.0], [3.0, 7.0]]))
    >>> encoder(np.array([[np.nan, 7.0]])).tolist()
    [[2.0, 1.0]]
    >>> encoder.sentences[0]
    'A column without information in the training rows was dropped: column 2.'
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.feature_selection import VarianceThreshold
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    kept, dropped = _informative(X)
    unique = [column for column in kept if _identifies(X, column)]
    kept = [column for column in kept if column not in unique]
    if not kept:
        raise ValueError("every column is constant in the training rows; there is nothing to learn from")
    sentences = [_sentence("column without information in the training rows was dropped", dropped)] if dropped else []
    if unique:
        sentences.append(_sentence("text column was dropped, being different in every row", [_name(c) for c in unique]))
    table: Any = _select(X, kept)
    positions = range(len(kept))
    plain = isinstance(X, np.ndarray)
    text = [] if plain else [i for i in positions if table.dtypes.iloc[i].kind == "O"]
    numeric = [i for i in positions if i not in text]
    names = [_name(column) for column in kept]
    if text:
        sentences.append(_sentence("categorical column was one-hot encoded", [names[i] for i in text]))
        sentences.append("A category not seen in training has zeros in all its columns; a missing one is a category.")
        wide = [names[i] for i in text if table.iloc[:, i].nunique(dropna=False) > MAX_CATEGORIES]
        if wide:
            what = f"categorical column kept its {MAX_CATEGORIES - 1} commonest categories, the others sharing one"
            sentences.append(_sentence(what, wide))
    dates = [name for name, column in zip(names, kept, strict=True) if not plain and X[column].dtype.kind == "M"]
    if dates:
        sentences.append(_sentence("date column was converted to days since 1970", dates))
    values = table if plain else table.iloc[:, numeric].to_numpy(dtype=float)
    missing = np.isnan(values).any(0)
    if missing.any():
        what = "column had missing values, filled with the training median and marked in a column of its own"
        sentences.append(_sentence(what, [names[numeric[i]] for i in np.flatnonzero(missing)]))
    one_hot = OneHotEncoder(
        handle_unknown="infrequent_if_exist", max_categories=MAX_CATEGORIES, sparse_output=False, dtype=np.float64
    )
    fill = SimpleImputer(strategy="median", add_indicator=True)
    columns = ColumnTransformer([("numbers", fill, numeric), ("categories", one_hot, text)])
    transformer = make_pipeline(columns, VarianceThreshold())
    return Encoder(transformer.fit(table), kept, sentences)


def _select(X: "np.ndarray | pd.DataFrame", columns: list[Any]) -> "np.ndarray | pd.DataFrame":
    """The kept columns with numbers as floats (infinities as missing), dates as days, and all else as text."""
    if isinstance(X, np.ndarray):
        X = X[:, columns]
        return X if np.isfinite(X).all() else np.where(np.isfinite(X), X, np.nan)
    import pandas as pd

    plain = {}
    for name in columns:
        column = X[name]
        if pd.api.types.is_datetime64_any_dtype(column):
            plain[name] = (column - pd.Timestamp(0, tz=column.dt.tz)) / pd.Timedelta(days=1)
        elif pd.api.types.is_numeric_dtype(column):  # truth values included
            plain[name] = column.astype(float).replace([np.inf, -np.inf], np.nan)
        else:
            text = column.astype(object)
            plain[name] = text.where(text.isna(), text.astype(str)).where(~text.isna(), None)
    return pd.DataFrame(plain, index=X.index)


def _informative(X: "np.ndarray | pd.DataFrame") -> tuple[list[Any], list[str]]:
    """The columns with more than one value (missing counts as one), and the names of the others."""
    if isinstance(X, np.ndarray):
        constant = (np.isnan(X) == np.isnan(X[:1])).all(0) & ((X == X[:1]) | np.isnan(X)).all(0)
        kept, dropped = np.flatnonzero(~constant).tolist(), np.flatnonzero(constant).tolist()
    else:
        distinct = {column: int(X[column].nunique(dropna=False)) for column in X.columns}  # type: ignore[arg-type]
        kept = [column for column, count in distinct.items() if count > 1]
        dropped = [column for column, count in distinct.items() if count <= 1]
    return kept, [_name(column) for column in dropped]


def _identifies(X: "np.ndarray | pd.DataFrame", column: Any) -> bool:
    """Whether a column of text has a different value in every row, as an identifier has."""
    if isinstance(X, np.ndarray):
        return False
    import pandas as pd

    values: Any = X[column]
    numeric = pd.api.types.is_numeric_dtype(values) or pd.api.types.is_datetime64_any_dtype(values)
    return not numeric and values.notna().all() and values.nunique() == len(values)


def _name(column: Any) -> str:
    return f"column {column + 1}" if isinstance(column, int) else str(column)


def _sentence(what: str, columns: list[str]) -> str:
    """`what` about one or several columns, of which ten are named."""
    shown = ", ".join(columns[:10]) + (f" and {len(columns) - 10} more" if len(columns) > 10 else "")
    if len(columns) == 1:
        return f"A {what}: {shown}."
    plural = what.replace("column ", "columns ", 1).replace(" was ", " were ", 1).replace(" its ", " their ", 1)
    return f"{len(columns)} {plural}: {shown}."
