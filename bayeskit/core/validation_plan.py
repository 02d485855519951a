"""What a user says about validation data, and the division of the data that follows.

`validation_split` of an estimator or of `Training` is a share, a splitter of scikit-learn, a mask, or a validation set.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bayeskit.core import checks
from bayeskit.core.inputs import Rows
from bayeskit.core.types import Data, Validation
from bayeskit.core.validation_split import independent_folds, inseparable

TRAINED, HELD_OUT = 1, 2
"""The codes of `Validation.splits`."""

MOST_SPLITS = 50
"""Splits of a splitter that are kept, the last ones."""

Form = Literal["default", "share", "set", "mask", "splitter"]


def form_of(validation_split: Any) -> Form:
    """What a `validation_split` is: the default, a share, a validation set, a mask or a splitter.

    Raises:
        ValueError: It is none of these.

    Examples:
        >>> form_of(0.2), form_of(np.array([True, False])), form_of((np.zeros((3, 1)), np.zeros(3)))
        ('share', 'mask', 'set')
    """
    value = validation_split
    if value is None:
        return "default"
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool) and 0 <= value < 1:
        return "share"
    if isinstance(value, Data):
        return "set"
    if isinstance(value, tuple | list) and len(value) == 2 and not all(isinstance(v, bool | np.bool_) for v in value):
        return "set"
    if isinstance(value, list | Tensor) or callable(getattr(value, "__array__", None)):
        if np.asarray(value.cpu() if isinstance(value, Tensor) else value).dtype == bool:
            return "mask"
    elif callable(getattr(value, "split", None)) and not isinstance(value, type | str):
        return "splitter"
    shown = repr(value) if isinstance(value, str | int | float | type) else f"a {type(value).__name__}"
    raise ValueError(
        "`validation_split` must be None, a share of at least 0 and below 1, a splitter of scikit-learn such as "
        f"`TimeSeriesSplit()`, a boolean mask of the rows to hold out, or a validation set `(X, y)`; got {shown}"
    )


def planned(data: Data, validation_split: Any, groups: Any = None) -> Data:
    """The data with what `validation_split` and `groups` say; rows that a mask holds out are in `validation.data`.

    Args:
        data: All the data. Where it knows its validation data already, `validation_split` is not regarded.
        validation_split: See `form_of`; a validation set is in the units of `data`.
        groups: (n,) values of any kind, equal for rows that must stay together, or None.

    Raises:
        ValueError: An argument is out of range, or does not fit the data.

    Examples:
        >>> data = planned(Data(torch.arange(4.0)[:, None], torch.zeros(4, 1)), [False, False, False, True])
        >>> len(data), data.validation.data.x.tolist()
        (3, [[3.0]])
    """
    form = form_of(validation_split)
    if groups is not None:
        data = replace(data, validation=replace(data.validation or Validation(), groups=_codes(groups, data)))
    known = data.validation or Validation()
    if form == "default" or known.decided:
        return data
    if form == "share":
        return replace(data, validation=replace(known, fraction=float(validation_split)))
    if form == "set":
        return replace(data, validation=Validation(data=_given(validation_split, data)))
    if form == "splitter":
        return replace(data, validation=replace(known, splits=_splits(validation_split, data, groups)))
    mask = checks.tensor(validation_split, name="validation_split").to(data.y.device)
    if mask.shape != (len(data),) or bool(mask.all()) or not bool(mask.any()):
        raise ValueError(
            f"`validation_split` as a mask must have shape ({len(data)},), one entry for each row of `X`, with some "
            f"True and some False; got shape {tuple(mask.shape)} with {int(mask.sum())} True"
        )
    held_out, kept = replace(data.rows(mask), validation=None), replace(data.rows(~mask), validation=None)
    if data.y.ndim == 1 and len(np.setdiff1d(held_out.y.cpu(), kept.y.cpu())):
        raise ValueError("`validation_split` holds out every row of a class; leave at least one to train on")
    return replace(kept, validation=Validation(data=held_out))


@dataclass(frozen=True, eq=False)
class Divisions:
    """Divisions of data into rows to train on and rows held out.

    Args:
        source: What the held-out rows are rows of: the data themselves, or a validation set of its own.
        pairs: Rows of the data to train on, and rows of `source`.
    """

    source: Data
    pairs: list[tuple[Tensor, Tensor]]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)


def division(data: Data, share: float, *, generator: torch.Generator) -> Divisions:
    """One division of the data, or none where nothing is to be held out or can be.

    Args:
        data: All the data, with what is known about validation.
        share: Of the rows to hold out where that is not known.
        generator: Draws the rows.
    """
    found = _known_divisions(data)
    if found is not None:
        return Divisions(found.source, found.pairs[:1])
    share = _share(data, share)
    if round(share * len(data)) in (0, len(data)):
        return Divisions(data, [])
    return _divided(data, independent_folds(data, share, 1, generator=generator))


def divisions(data: Data, share: float, *, generator: torch.Generator) -> Divisions:
    """Several divisions whose held-out rows are disjoint and together all rows, as far as that is possible.

    Args:
        data: All the data, with what is known about validation.
        share: Of the rows to hold out in each, at most a half, where that is not known.
        generator: Draws the rows.
    """
    found, share = _known_divisions(data), _share(data, share)
    if found is not None or share == 0:
        return found or Divisions(data, [])
    count = max(2, int(1 / share + 1e-9))
    return _divided(data, independent_folds(data, 1 / count, count, generator=generator))


def holds_out(data: Data, share: float) -> bool:
    """Whether data are to be held out."""
    known = data.validation or Validation()
    return known.data is not None or known.splits is not None or _share(data, share) > 0


def grouped(held_out: Data) -> Validation | None:
    """The groups of held-out data, which are not independent observations; None if there are none."""
    groups = None if held_out.validation is None else held_out.validation.groups
    return None if groups is None else Validation(groups=groups)


def _share(data: Data, share: float) -> float:
    known = None if data.validation is None else data.validation.fraction
    return share if known is None else known


def _known_divisions(data: Data) -> Divisions | None:
    known = data.validation or Validation()
    everything = torch.arange(len(data), device=data.y.device)
    if known.data is not None:
        return Divisions(known.data, [(everything, torch.arange(len(known.data), device=data.y.device))])
    if known.splits is None:
        return None
    pairs = [(everything[column == TRAINED], everything[column == HELD_OUT]) for column in known.splits.mT.flip(0)]
    return Divisions(data, [pair for pair in pairs if all(map(len, pair))])


def _divided(data: Data, folds: list[Tensor]) -> Divisions:
    pairs = []
    for fold in folds:
        kept = torch.ones(len(data), dtype=torch.bool, device=fold.device)
        kept[fold] = False
        pairs += [(kept.nonzero()[:, 0], fold)] if len(fold) else []
    return Divisions(data, pairs)


def _codes(groups: Any, data: Data) -> Tensor:
    values = groups.numpy(force=True) if isinstance(groups, Tensor) else np.asarray(groups)
    if values.shape != (len(data),):
        raise ValueError(f"`groups` must have shape ({len(data)},), one entry for each row of `X`; got {values.shape}")
    missing = values != values if values.dtype.kind in "fcmMO" else np.zeros(len(values), dtype=bool)  # noqa: PLR0124
    missing = missing | np.array([value is None for value in values]) if values.dtype.kind == "O" else missing
    if np.asarray(missing, dtype=bool).any():
        raise ValueError("`groups` must name the group of every row; got missing values")
    values = values.astype(str) if values.dtype.kind == "O" else values
    return torch.from_numpy(np.unique(values, return_inverse=True)[1]).to(data.y.device)


def _given(validation_split: Any, data: Data) -> Data:
    """A validation set in the form of the data."""
    given = validation_split
    if not isinstance(given, Data):
        x, y = given
        y = checks.tensor(y, name="validation_split[1]")
        given = Data(x, y.unsqueeze(-1) if data.y.ndim > y.ndim else y)
    shapes = [(d.x.shape[1:], d.y.shape[1:]) for d in (given, data)]
    if not len(given) or len(given.x) != len(given.y) or shapes[0] != shapes[1]:
        raise ValueError(
            f"`validation_split` as a validation set (X, y) must have rows like the data; got X {tuple(given.x.shape)} "
            f"and y {tuple(given.y.shape)} for data of {tuple(data.x.shape)} and {tuple(data.y.shape)}"
        )
    return given.to(device=data.y.device, dtype=data.x.dtype if data.x.is_floating_point() else None)


def _splits(splitter: Any, data: Data, groups: Any) -> Tensor:
    """The splits of all rows that a splitter makes, or its last one where none is of all rows: (n, f) codes.

    Where a class would be held out as a whole, its first row and those inseparable from it are trained on.
    """
    n, y = len(data), data.y.cpu().numpy()
    x = np.zeros((n, 1)) if isinstance(data.x, Rows) or not isinstance(data.x, Tensor) else data.x.cpu().numpy()
    given = None if data.validation is None else data.validation.groups
    groups = groups if given is None else given.cpu().numpy()
    together = inseparable(data)
    kept: deque[tuple[bool, Tensor]] = deque(maxlen=MOST_SPLITS)
    try:
        for train, test in splitter.split(x, y[:, 0] if y.ndim > 1 and y.shape[1] == 1 else y, groups):
            code = torch.zeros(n, dtype=torch.int8)
            code[train], code[test] = TRAINED, HELD_OUT
            kept.append((len(train) + len(test) == n, code))
    except (ValueError, TypeError, IndexError) as error:
        raise ValueError(f"`validation_split` cannot split these {n} rows: {error}") from error
    complete = [code for whole, code in kept if whole] or [code for _, code in kept][-1:]
    if not complete:
        raise ValueError("`validation_split` gave no split")
    for code in complete if y.ndim == 1 else ():
        held = (code == HELD_OUT).nonzero()[:, 0].numpy()
        for label in np.setdiff1d(y[held], y[(code == TRAINED).numpy()]):  # a class must be learnt from some
            code[together == together[held[y[held] == label][0]]] = TRAINED
    return torch.stack(complete, dim=1).to(data.y.device)
