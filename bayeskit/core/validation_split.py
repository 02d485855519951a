"""Which rows may be held out: validation data must be independent of the training data.

A copy of a training row in the validation set rewards overfitting, and a class that is only in the validation set
cannot be learnt. So rows of (nearly) the same inputs, and those of one group, stay on one side, and every class keeps a
row to train on. What a user asks for instead is read by `validation_plan`.
"""

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from bayeskit.core.inputs import Batch, Rows, parts
from bayeskit.core.types import Data

_ROUNDING = 1e-6
"""Inputs that differ by less than this, relative to their distance from the column's median, are the same."""

_CENTER_ROWS = 1_000
"""At least so many rows, evenly spaced, give the medians, where there are more."""

_PROJECTIONS = 3
"""Random directions along which neighbors are compared; rows of equal inputs are neighbors along each, but for ties."""


def duplicate_groups(x: Batch | Rows) -> np.ndarray:
    """A code for each row, (n,), equal for rows whose inputs are equal up to rounding.

    Rows are sorted along random directions and neighbors compared, in O(n log n). Inputs that stay in a
    `torch.utils.data.Dataset` are not read, so each of their rows is a group of its own.

    Args:
        x: Inputs of n rows.

    Examples:
        >>> duplicate_groups(torch.tensor([[0.0], [1.0], [0.0], [1.0 + 1e-7], [2.0]])).tolist()
        [0, 1, 0, 1, 2]
    """
    n = len(x)
    if isinstance(x, Rows) or n < 2:
        return np.arange(n)
    flat = np.concatenate([part.detach().cpu().double().reshape(n, -1).numpy() for part in parts(x)], axis=1)
    flat -= np.median(flat[:: -(-n // _CENTER_ROWS)], axis=0)
    typical = np.median(np.abs(flat[:: -(-n // _CENTER_ROWS)]), axis=0)
    spread = flat.std(axis=0)
    directions = np.random.default_rng(0).normal(size=(flat.shape[1], _PROJECTIONS))
    directions /= np.where(spread > 0, spread, 1.0)[:, None]
    positions = flat @ directions
    # How far rounding can move a row along each direction, and rows that are neighbors within that distance.
    reach = _ROUNDING * (np.abs(flat) @ np.abs(directions) + typical @ np.abs(directions))
    pairs = []
    for order, position, tolerance in zip(
        np.argsort(positions, axis=0, kind="stable").T, positions.T, reach.T, strict=True
    ):
        close = np.flatnonzero(np.diff(position[order]) <= tolerance[order[:-1]] + tolerance[order[1:]])
        left, right = order[close], order[close + 1]
        size = np.maximum(np.maximum(np.abs(flat[left]), np.abs(flat[right])), typical)
        same = (np.abs(flat[left] - flat[right]) <= _ROUNDING * size).all(1)
        pairs.append(np.stack([left[same], right[same]]))
    i, j = np.concatenate(pairs, axis=1)
    return connected_components(coo_array((np.ones(len(i)), (i, j)), shape=(n, n)), directed=False)[1]


def independent_folds(data: Data, share: float, num_folds: int, *, generator: torch.Generator) -> list[Tensor]:
    """Disjoint sets of rows to hold out, each of about a `share` of the case weight; some may be empty.

    Rows of equal inputs, and those of one group of `data.validation`, are in one fold. The folds are drawn from these
    sets of rows, so that a row of weight two is held out where two copies of it would be. Class codes are stratified. A
    class that would be held out as a whole keeps a row in the training data, and copies of one row, or a group, that
    make up more than half of the data stay there.

    Args:
        data: All the data; targets of shape (n,) are class codes.
        share: Of the weight, in a fold; a single fold has a whole number of average sets of rows.
        num_folds: Number of folds.
        generator: Draws the order of the rows.

    Examples:
        >>> data = Data(torch.arange(5.0).repeat_interleave(2)[:, None], torch.zeros(10, 1))
        >>> folds = independent_folds(data, 0.4, 2, generator=torch.Generator().manual_seed(0))
        >>> [len(fold) for fold in folds], [len(data.x[fold].unique()) for fold in folds]
        ([4, 4], [2, 2])
    """
    n, labels = len(data), data.y.cpu().numpy() if data.y.ndim == 1 else None
    firsts, groups = np.unique(inseparable(data), return_index=True, return_inverse=True)[1:]
    appearance = np.argsort(np.argsort(firsts))  # sets of rows are numbered as they first appear
    firsts, groups = np.sort(firsts), appearance[groups]
    weight = np.bincount(groups, None if data.weights is None else data.weights.double().cpu().numpy())
    order = torch.randperm(len(firsts), generator=generator, device=generator.device).cpu().numpy()
    if labels is not None:
        order = order[_stratified(labels[firsts][order])]
    average = weight.sum() / len(firsts)
    size = (max(1, round(share * len(firsts))) if num_folds == 1 else share * len(firsts)) * average
    eligible = weight <= weight.sum() / 2
    if size <= 0 or not eligible.any():
        return [torch.zeros(0, dtype=torch.long, device=data.y.device) for _ in range(num_folds)]
    # Sets larger than a fold come last, so that they are held out only where there are too few others.
    order = order[np.argsort(weight[order] > size, kind="stable")]
    middle = np.empty(len(firsts))
    middle[order] = np.cumsum(weight[order]) - (weight[order] + average) / 2  # 0, 1, 2, ... times an equal weight
    fold = np.where(eligible, np.floor(middle / size + _ROUNDING), num_folds).clip(min=0)
    if (fold >= num_folds).all():
        fold[np.flatnonzero(eligible)[np.argmin(weight[eligible])]] = 0
    held = [np.flatnonzero(fold[groups] == k) for k in range(num_folds)]
    if labels is not None:
        held = [_without_whole_classes(rows, labels, groups) for rows in held]
    return [torch.from_numpy(rows if len(rows) < n else rows[:0]).to(data.y.device) for rows in held]


def inseparable(data: Data) -> np.ndarray:
    """A code for each row, (n,), equal for rows of equal inputs and for rows of one group, and for chains of both."""
    groups = duplicate_groups(data.x)
    if data.validation is None or data.validation.groups is None:
        return groups
    given = np.unique(data.validation.groups.cpu().numpy(), return_inverse=True)[1] + len(groups)
    links = coo_array((np.ones(len(groups)), (groups, given)), shape=(2 * len(groups), 2 * len(groups)))
    joined = connected_components(links, directed=False)[1][groups]
    return np.unique(joined, return_inverse=True)[1]


def _stratified(labels: np.ndarray) -> np.ndarray:
    """An order in which the members of every class are evenly spread."""
    codes, counts = np.unique(labels, return_inverse=True, return_counts=True)[1:]
    by_class = np.argsort(codes, kind="stable")
    rank = np.empty(len(codes))
    rank[by_class] = np.arange(len(codes)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.argsort((rank + 0.5) / counts[codes], kind="stable")


def _without_whole_classes(rows: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The rows, without one group of each class that would have no other row to train on."""
    outside = np.setdiff1d(labels[rows], np.delete(labels, rows))
    kept = [groups[rows[labels[rows] == label][-1]] for label in outside]
    return rows[~np.isin(groups[rows], kept)]
