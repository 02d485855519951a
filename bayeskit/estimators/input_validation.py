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
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from bayeskit.core import checks
from bayeskit.core.inputs import Inputs, NamedInputs, Rows, as_inputs, as_real, item_parts

MEMORY_BUDGET = 2**30
"""Bytes: the inputs of a `Dataset` below this size are read once and held, beyond it they are read when needed."""


def is_dataset(X: Any) -> bool:
    """Whether `X` brings its targets itself: a `Dataset`, or a `DataLoader` over one."""
    return isinstance(X, Dataset | DataLoader)


def split_dataset(X: Any, y: Any) -> tuple[Any, Any]:
    """A `Dataset` of `(x, y)`, or a `DataLoader` over one, as inputs and targets; anything else as it came.

    Raises:
        ValueError: `y` is given beside a data set that brings its own, or the data set is empty.
    """
    if not is_dataset(X):
        return X, y
    if isinstance(X, DataLoader):
        X = _dataset_of(X)
    elif isinstance(X, IterableDataset):
        X = list(X)
    if len(X) == 0:
        raise ValueError("`X` must hold at least one item; got an empty Dataset")
    tensors: Any = X.tensors if isinstance(X, TensorDataset) else ()
    if 1 <= len(tensors) <= 2:
        inputs, targets = tensors[0], tensors[1].numpy(force=True) if len(tensors) > 1 else None
    else:
        inputs = Rows(X, dtype=torch.get_default_dtype(), device=torch.device("cpu"))
        targets = _targets(X)
        size = inputs.shape.numel() * torch.empty((), dtype=inputs.dtype).element_size()
        inputs = inputs[:] if size <= MEMORY_BUDGET else inputs
    if y is not None and targets is not None:
        raise ValueError("`y` must be None when `X` is a Dataset of (x, y) pairs, which brings its own targets")
    return inputs, y if targets is None else targets


def _targets(dataset: Any) -> np.ndarray | None:
    """The targets of all items, None if they have none."""
    if item_parts(dataset[0])[1] is None:
        return None
    return np.stack([np.asarray(item_parts(dataset[i])[1]) for i in range(len(dataset))])


def _dataset_of(loader: DataLoader) -> Any:
    """The data set that a loader goes over in full, in its own order, else the items of one pass of the loader."""
    whole = type(loader.sampler) in (SequentialSampler, RandomSampler) and len(loader.sampler) == len(loader.dataset)  # type: ignore[arg-type]
    if whole and loader.collate_fn is default_collate and not isinstance(loader.dataset, IterableDataset):
        return loader.dataset
    items = []
    for batch in loader:
        inputs, targets = item_parts(batch)
        inputs = as_inputs(inputs)
        rows = [inputs[i] for i in range(len(inputs))]
        rows = [row.leaves if isinstance(row, NamedInputs) else row for row in rows]
        items += rows if targets is None else list(zip(rows, targets, strict=True))
    return items


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
    X = _like_fit(estimator, as_real(as_inputs(X, name="X")), reset=reset, tables_only=tables_only)
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


def _like_fit(estimator: Any, X: Any, *, reset: bool, tables_only: bool) -> Any:
    """Arrays of more than two axes (images), and those after a fit to tensors of a shape of their own, as tensors."""
    if reset:
        vars(estimator).pop("input_shape_", None)
    fitted = vars(estimator).get("input_shape_")
    if isinstance(X, NamedInputs) and len(X.leaves) == 1 and fitted and not isinstance(fitted[0], str):
        return next(iter(X.leaves.values()))  # a dictionary as in a Dataset of {"pixel_values": ..., "label": ...}
    if isinstance(X, np.ndarray) and not tables_only and X.dtype.kind in "biuf" and (X.ndim > 2 or fitted is not None):
        return as_real(checks.tensor(X, name="X"))
    return X


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
