"""What `validation_split` and `groups` of an estimator say, as the `validation` of its data in their own units."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from bayeskit.core.inference import Inference
from bayeskit.core.inputs import Inputs
from bayeskit.core.types import Data
from bayeskit.core.validation_plan import form_of, planned
from bayeskit.estimators import input_validation


def divided(data: Data, validation_split: Any, groups: Any, *, read: Callable[[Any, Any], Data]) -> Data:
    """The data to train on, with what is said about validation data.

    Args:
        data: In the user's units and order.
        validation_split: The estimator's argument; see `bayeskit.core.validation_plan.form_of`.
        groups: (n,) values, equal for rows that must stay together, or None.
        read: Turns a validation set X, y into data.

    Raises:
        ValueError: An argument is out of range, or does not fit the data.
    """
    given = validation_split
    if input_validation.is_dataset(given):
        given = input_validation.split_dataset(given, None)
    if not isinstance(given, Data) and form_of(given) == "set":
        try:
            given = read(*given)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`validation_split` is no validation set (X, y) for these data: {error}") from error
    return present(planned(data, given, groups))


def present(data: Data) -> Data:
    """The rows of positive weight with at least one observed output; those of a validation set too."""
    keep = ~data.y.isnan().reshape(len(data), -1).all(-1)
    if data.weights is not None:
        keep &= data.weights > 0
    data = data if bool(keep.all()) else data.rows(keep)
    known = data.validation
    if known is None or known.data is None:
        return data
    kept = present(known.data)
    if not len(kept):
        raise ValueError("`validation_split` holds out no row of positive weight with an observed target")
    return replace(data, validation=replace(known, data=kept))


def transformed(data: Data, x: Callable[[Inputs], Inputs], y: Callable[[Tensor], Tensor]) -> Data:
    """The data with inputs and targets in other units; those of a validation set too."""
    known = data.validation
    if known is not None and known.data is not None:
        known = replace(known, data=transformed(known.data, x, y))
    return replace(data, x=x(data.x), y=y(data.y), validation=known)


def check_used(inference: Inference, validation_split: Any) -> None:
    """Raise if a method that holds out no data is given a `validation_split`."""
    if validation_split is not None and "training" not in inference.get_params(deep=False):
        raise ValueError(
            f"`validation_split` must be None for {type(inference).__name__}, which holds out no validation data"
        )
