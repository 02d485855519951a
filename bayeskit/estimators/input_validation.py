"""Reading what users hand over: arrays, DataFrames, tensors and `torch.utils.data.Dataset`s become tensors.

scikit-learn's own validation does the work (feature names, shapes, NaN, dtypes), so its messages are the ones that
its users know.
"""

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_array
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, validate_data
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from bayeskit.core import checks
from bayeskit.core.inputs import Inputs, NamedInputs, Rows, as_inputs

MEMORY_BUDGET = 2**30
"""Bytes: the inputs of a `Dataset` below this size are read once and held, beyond it they are read when needed."""


def split_dataset(X: Any, y: Any) -> tuple[Any, Any]:
    """A `Dataset` of `(x, y)` as inputs and targets; anything else as it came.

    Raises:
        ValueError: `y` is given beside a data set that brings its own, or the data set is empty.
    """
    if not isinstance(X, Dataset):
        return X, y
    if y is not None:
        raise ValueError("`y` must be None when `X` is a Dataset of (x, y) pairs, which brings its own targets")
    if len(X) == 0:  # type: ignore[arg-type]
        raise ValueError("`X` must hold at least one item; got an empty Dataset")
    if isinstance(X, TensorDataset):
        return X.tensors[0], X.tensors[1].numpy(force=True) if len(X.tensors) > 1 else None
    rows = Rows(X, dtype=torch.get_default_dtype(), device=torch.device("cpu"))
    first = X[0]
    targets = None
    if isinstance(first, tuple | list):
        targets = np.stack([np.asarray(X[i][1]) for i in range(len(rows))])
    size = rows.shape.numel() * torch.empty((), dtype=rows.dtype).element_size()
    return (rows[:] if size <= MEMORY_BUDGET else rows), targets


def read(
    estimator: BaseEstimator,
    X: Any,
    y: Any,
    sample_weight: Any,
    *,
    reset: bool,
    tables_only: bool,
    tokens: bool = False,
    classes: bool = False,
) -> tuple[Inputs, Any, Tensor | None]:
    """Check inputs, targets and case weights.

    Args:
        estimator: Whose `n_features_in_` and `feature_names_in_` are set (`reset`) or compared with.
        X: (n, d) table, or an array or tensor of more axes for a user's own network, or a dictionary of arrays, or
            `Rows`.
        y: (n,) or (n, k) targets as an array-like, or None; NaN for what was not observed, if k is 2 or more.
        sample_weight: (n,) non-negative numbers, or None.
        reset: Whether this is the first data seen.
        tables_only: Refuse anything but two axes.
        tokens: Leave a tensor of integers as it is instead of reading a table of numbers: a network may embed it.
        classes: Targets are labels rather than numbers.

    Returns:
        Inputs as a tensor or `Rows`, targets as a NumPy array, weights as a float64 tensor or None.

    Raises:
        ValueError: One sentence on what is wrong with which argument.
    """
    X = as_inputs(X, name="X")
    if isinstance(X, NamedInputs) and not tokens:
        raise TypeError(
            f"`X` names several inputs, {list(X.leaves)}, which only a network that takes them can use: give "
            "BNNRegressor or BNNClassifier one as `network`, or hand over one table"
        )
    # Tensors of a shape or a type of their own (images, token ids) reach a network as they are.
    items = isinstance(X, Tensor) and not tables_only and (X.ndim != 2 or (tokens and not X.is_floating_point()))
    if items or isinstance(X, NamedInputs | Rows):
        x, y = _read_items(estimator, X, y, reset=reset)
    else:
        x, y = _read_table(estimator, X, y, reset=reset, tables_only=tables_only, classes=classes)
    if classes and y is not None:
        check_classification_targets(y)
    if sample_weight is None:
        return x, y, None
    weights = _check_sample_weight(sample_weight, np.empty((len(x), 1)), dtype=np.float64, ensure_non_negative=True)
    if not weights.any():
        raise ValueError("`sample_weight` must have at least one weight above zero; got all weights zero")
    return x, y, torch.tensor(weights)


def _read_table(
    estimator: BaseEstimator, X: Any, y: Any, *, reset: bool, tables_only: bool, classes: bool
) -> tuple[Tensor, Any]:
    X, y = array(X), array(y)
    settings: dict[str, Any] = {
        "dtype": np.float64 if tables_only else [np.float64, np.float32],
        "allow_nd": not tables_only,
        "reset": reset,
    }
    try:
        y, gaps = (y, None) if classes else _filled(y)
        targets = {} if y is None else {"y": y} if classes else {"y": y, "multi_output": True, "y_numeric": True}
        checked = validate_data(estimator, X, **targets, **settings)
    except ValueError as error:
        if "could not convert string" not in str(error):
            raise
        raise ValueError(
            f"`X` (and `y`, for regression) must hold numbers: {error}. Encode text columns first, for example with "
            "sklearn.preprocessing.OneHotEncoder; `bayeskit.compare` does it by itself"
        ) from None
    X, y = (checked, None) if y is None else checked
    if gaps is not None:
        y = np.where(gaps, np.nan, y)
    return checks.tensor(X, name="X"), y  # a copy: the caller's array may be read-only


def _filled(y: Any) -> tuple[Any, np.ndarray | None]:
    """Targets of several outputs with zeros for what is missing, and where (n, k); others as they are, and None.

    For scikit-learn a NaN in `y` is an error; that of a single output stays one, for its row could be left out.
    """
    array = np.asarray(y)
    if array.ndim != 2 or array.shape[1] < 2 or array.dtype.kind not in "fO":
        return y, None
    settings: dict[str, Any] = {"dtype": np.float64, "ensure_all_finite": "allow-nan", "input_name": "y"}
    numbers = check_array(y, **settings)
    gaps = np.isnan(numbers)
    return (np.where(gaps, 0, numbers), gaps) if gaps.any() else (y, None)


def array(value: Any) -> Any:
    """A tensor as a NumPy array, which has no bfloat16; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy(force=True)


def _read_items(estimator: Any, X: Inputs, y: Any, *, reset: bool) -> tuple[Inputs, Any]:
    """Inputs of any shape: images, sequences, several tensors, or a data set too large to hold."""
    shape = _shape(X)
    if reset:
        estimator.n_features_in_ = X.shape[1:].numel()
        estimator.input_shape_ = shape
    elif shape != estimator.input_shape_:
        raise ValueError(f"`X` must have rows of shape {estimator.input_shape_} as in fit; got {shape}")
    for name, leaf in _held(X).items():
        checks.finite(leaf, name=name)
    if y is None:
        return X, None
    y = np.asarray(array(y))
    checks.same_length(X, y, names=("X", "y"))
    return X, y


def _shape(X: Inputs) -> tuple[Any, ...]:
    """What must be the same in all data: the shape of a row, or the names of inputs, whose padding may vary."""
    named = X if isinstance(X, NamedInputs) else X[:1]
    return tuple(named.leaves) if isinstance(named, NamedInputs) else tuple(X.shape[1:])


def _held(X: Inputs) -> dict[str, Tensor]:
    """The tensors in memory, by what an error should call them."""
    if isinstance(X, NamedInputs):
        return {f"X[{name!r}]": leaf for name, leaf in X.leaves.items()}
    return {"X": X} if isinstance(X, Tensor) else {}
