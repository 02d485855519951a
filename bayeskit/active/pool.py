"""Queries of a pool by a fitted estimator."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import _num_samples
from torch import Tensor

from bayeskit.active import acquisition
from bayeskit.active.batch import Batch, batch_bald
from bayeskit.active.epig import epig
from bayeskit.active.validation import check_targets, one_number_each, positions, stacked, unwrapped
from bayeskit.core import checks, progress
from bayeskit.core.inputs import take
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.posterior import FunctionValues

Score = Callable[[FunctionValues, Likelihood], Tensor]
"""Acquisition function: from the distribution of f at n inputs and p(y | f) to n scores, the largest queried first."""

SCORES: dict[str, Callable[..., Tensor]] = {
    "variance": acquisition.variance,
    "entropy": acquisition.entropy,
    "margin": acquisition.margin,
    "bald": acquisition.bald,
    "epig": epig,
    "random": acquisition.uniform,
}
ACQUISITIONS = (*SCORES, "batch_bald")
"""The names that `query` and `run` know."""

NEED_DRAWS = ("variance", "bald", "epig", "batch_bald")
"""Those that are zero everywhere without epistemic uncertainty."""

ROWS = 1_024
"""Rows of the pool scored at a time, which bounds the memory."""

JOINT_ROWS = 2_048
"""Rows that "batch_bald" compares jointly: of a larger pool, those with the largest BALD score."""

TARGETS = 64
"""Rows drawn as the targets of "epig" where none are given."""


def query(
    estimator: Any,
    X: Any,
    *,
    batch_size: int = 1,
    acquisition: str | Score = "bald",
    exclude: Any = (),
    candidates: int | None = None,
    targets: Any = None,
    random_state: Any = None,
    verbose: bool = False,
) -> Batch:
    """The rows of a pool with the most informative labels.

    The pool is scored some thousand rows at a time. Ties are broken at random.

    Args:
        estimator: A fitted GPRegressor, GPClassifier, BNNRegressor or BNNClassifier, or a pipeline that ends in one.
        X: The pool, n rows: array, DataFrame, tensor, or anything that can be indexed by row.
        batch_size: b; all that are left if fewer are.
        acquisition: "variance", "entropy", "margin", "bald", "batch_bald", "epig", "random", or a function of
            (values, likelihood) that returns a score for each input. All but "batch_bald" take the b best,
            each by itself.
        exclude: Positions in the pool that are not to be chosen.
        candidates: Score only so many rows, drawn at random; None for all.
        targets: For "epig": inputs (m, d) to be predicted; None for 64 rows of the pool.
        random_state: Seed of ties, candidates and draws.
        verbose: Show a progress bar where there is a terminal.

    Returns:
        Positions in the pool (b,), best first and none twice, and their scores (b,), in nats or, of "variance", in
        standardized units.

    Raises:
        ValueError: The acquisition is not known, is not available for this method or gives no number for an input;
            `exclude` are no positions, or no rows are left; `targets` are not like the rows of the pool.
        TypeError: The estimator has no joint distribution of the function.

    Examples:
        >>> from bayeskit import GPRegressor
        >>> x = np.linspace(0, 1, 101)[:, None]
        >>> model = GPRegressor(random_state=0).fit(x[:50], np.sin(6 * x[:50, 0]))
        >>> int(query(model, x).indices[0])  # the farthest from the data
        100
    """
    from sklearn.utils import check_random_state

    check_acquisition(acquisition)
    checks.positive(batch_size, name="batch_size", integer=True)
    targets = targets if acquisition == "epig" else None
    if targets is not None:
        check_targets(X, targets)
    asked = positions(exclude, _num_samples(X), name="exclude")
    estimator, X, targets = unwrapped(estimator, X, targets)
    _refuse_points(estimator, acquisition)
    rng = check_random_state(random_state)
    left = rng.permutation(np.setdiff1d(np.arange(_num_samples(X)), asked))
    if not len(left):
        raise ValueError("`X` must have rows that are not in `exclude`; all have been asked for")
    if candidates is not None:
        checks.positive(candidates, name="candidates", integer=True)
        left = left[:candidates]
    generator = torch.Generator().manual_seed(int(rng.randint(2**31 - 1)))
    with torch.no_grad(), progress.shown(verbose):
        if acquisition == "batch_bald":
            return _together(estimator, X, left, min(batch_size, len(left)), generator)
        if acquisition == "epig" and targets is None:
            targets = take(X, rng.choice(_num_samples(X), min(TARGETS, _num_samples(X)), replace=False))
        found = _scored(estimator, X, left, _score(acquisition, targets, generator), targets)
    best = _best(found, batch_size)
    return Batch(torch.as_tensor(left)[best], found[best])


def check_acquisition(acquisition: Any) -> None:
    """Refuse what is neither a name that is known nor a function of (values, likelihood)."""
    for name, function in (("epig", epig), ("batch_bald", batch_bald)):
        if acquisition is function:
            raise ValueError(f"`acquisition` must be the name {name!r} here: the function takes further arguments")
    if not callable(acquisition):
        checks.choice(acquisition, name="acquisition", options=ACQUISITIONS)


def _refuse_points(estimator: Any, acquisition: Any) -> None:
    if acquisition in NEED_DRAWS and estimator.inference_.kind == "point":
        raise ValueError(
            f"`acquisition` {acquisition!r} needs a distribution of the function, and "
            f"{type(estimator.inference_).__name__} has a single one: use 'entropy', 'margin' or 'random', or another "
            "method"
        )


def _score(acquisition: str | Score, targets: Any, generator: torch.Generator) -> Score:
    """The acquisition as a function of values and likelihood alone."""
    if not isinstance(acquisition, str):
        return acquisition
    if acquisition == "epig":
        return partial(epig, num_targets=_num_samples(targets), generator=generator)
    return partial(SCORES[acquisition], generator=generator) if acquisition == "random" else SCORES[acquisition]


def _together(estimator: Any, X: Any, rows: np.ndarray, batch_size: int, generator: torch.Generator) -> Batch:
    """A batch by its joint information."""
    if len(rows) > JOINT_ROWS:  # no gain is larger after others than by itself
        rows = rows[_best(_scored(estimator, X, rows, acquisition.bald, None), max(JOINT_ROWS, batch_size)).numpy()]
    values = estimator.standardized(take(X, rows))
    chosen, found = batch_bald(values, estimator.likelihood_, batch_size, generator=generator)
    return Batch(torch.as_tensor(rows)[chosen], found)


def _scored(estimator: Any, X: Any, rows: np.ndarray, score: Score, targets: Any) -> Tensor:
    """Scores of some rows of the pool, in float64 on the CPU, (n,); `targets` stand behind the rows of each part."""
    parts = []
    with progress.track(len(rows), "scoring the pool") as bar:
        for start in range(0, len(rows), ROWS):
            x = take(X, rows[start : start + ROWS])
            values = estimator.standardized(x if targets is None else stacked(x, targets))
            parts.append(one_number_each(score(values, estimator.likelihood_), len(rows[start : start + ROWS])))
            bar.update(len(parts[-1]))
    return torch.cat(parts)


def _best(found: Tensor, count: int) -> Tensor:
    """Positions of the largest, best first; of equal ones the first."""
    return found.argsort(descending=True, stable=True)[:count]
