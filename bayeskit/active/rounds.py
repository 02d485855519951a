"""The active learning loop: fit, query, fit again, as a generator."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import clone, is_classifier
from sklearn.utils import check_random_state
from sklearn.utils.validation import _num_samples

from bayeskit.active.pool import Score, check_acquisition, query
from bayeskit.active.validation import last_step, positions
from bayeskit.core import checks, progress
from bayeskit.core.inputs import take

Labels = Callable[[np.ndarray], Any]
"""The oracle: from positions in the pool (b,) to labels (b,) or (b, k)."""


@dataclass(frozen=True, eq=False)
class Round:
    """One round: a batch of labels was queried, and the estimator was fitted to all labels so far.

    Args:
        number: 0 for the labels at the start.
        estimator: Fitted to the rows `labeled`; its own object in every round.
        labeled: Positions in the pool of all rows with a label, in the order queried.
        queried: Those queried in this round, best first; in round 0 all of them.
        scores: Their acquisition scores; NaN in round 0.
        seconds: Time of querying and fitting, without that of labeling.
    """

    number: int
    estimator: Any
    labeled: np.ndarray
    queried: np.ndarray
    scores: np.ndarray
    seconds: float

    @property
    def num_labels(self) -> int:
        """How many rows have a label."""
        return len(self.labeled)


def run(
    estimator: Any,
    X: Any,
    y: Any,
    *,
    acquisition: str | Score = "bald",
    initial: Any = 10,
    batch_size: int = 1,
    rounds: int | None = None,
    candidates: int | None = None,
    targets: Any = None,
    random_state: Any = None,
    verbose: bool = False,
) -> Iterator[Round]:
    """Pool-based active learning, round by round.

    Rounds are computed lazily: the next batch is chosen, labeled and learned when the caller asks for the next round. A
    loop can stop anywhere and be continued later by `run(..., initial=round.labeled)` with the same integer
    `random_state`: it repeats that fit and continues as the first loop would have.

    Args:
        estimator: A GPRegressor, GPClassifier, BNNRegressor or BNNClassifier, or a pipeline that ends in one; cloned
            and fitted anew to all labels in every round.
        X: The pool, n rows: array, DataFrame or tensor.
        y: Labels of all its rows, (n,) or (n, k), or a function from positions (b,) to their labels, called for
            queried positions alone.
        acquisition: As for `query`.
        initial: How many rows, drawn at random, have their labels at the start; or their positions.
        batch_size: Labels queried in a round; fewer in the last if the pool ends.
        rounds: How many rounds, that at the start included; None until the pool is empty.
        candidates: As for `query`.
        targets: As for `query`.
        random_state: Seed of the rows at the start and of all choices.
        verbose: Show progress bars where there is a terminal.

    Yields:
        A `Round` for each.

    Raises:
        ValueError: An argument is out of range, before the first round; or what `y` returned is not a label for each
            row, or the labels at the start are all of one class.
        TypeError: The estimator has no joint distribution of the function; before the first round.

    Examples:
        >>> from bayeskit import GPRegressor
        >>> x = np.linspace(0, 1, 50)[:, None]
        >>> loop = run(GPRegressor(random_state=0), x, np.sin(6 * x[:, 0]), initial=5, rounds=3, random_state=0)
        >>> [r.num_labels for r in loop]
        [5, 6, 7]
    """
    check_acquisition(acquisition)
    last_step(estimator)
    if acquisition == "margin" and not is_classifier(estimator):
        raise ValueError("`acquisition` 'margin' compares the probabilities of labels: use 'variance' or 'bald'")
    checks.positive(batch_size, name="batch_size", integer=True)
    if rounds is not None:
        checks.positive(rounds, name="rounds", integer=True)
    n = _num_samples(X)
    if not callable(y):
        checks.same_length(np.arange(n), y, names=("X", "y"))
    seed = int(check_random_state(random_state).randint(2**31 - 1))
    start = _start(initial, n, seed)
    options = {"acquisition": acquisition, "candidates": candidates, "targets": targets, "batch_size": batch_size}
    return _rounds(estimator, X, y, start, rounds=rounds, seed=seed, verbose=verbose, options=options)


def _rounds(
    estimator: Any, X: Any, y: Any, start: np.ndarray, *, rounds: int | None, seed: int, verbose: bool, options: dict
) -> Iterator[Round]:
    labeled, labels = start, _ask(y, start)
    if is_classifier(estimator) and len(np.unique(labels)) == 1:
        raise ValueError(
            f"`initial`: the {len(start)} labels at the start are all {labels[0]!r}, and a classifier needs two "
            "classes. Ask for more rows, or give the positions of some of another class."
        )
    queried, scores, spent, number = start, np.full(len(start), np.nan), 0.0, 0
    while True:
        began = time.perf_counter()
        with progress.shown(verbose):
            fresh: Any = clone(estimator)
            fitted = fresh.fit(take(X, labeled), labels)
        yield Round(number, fitted, labeled, queried, scores, spent + time.perf_counter() - began)
        number += 1
        if number == rounds or len(labeled) == _num_samples(X):
            return
        began = time.perf_counter()
        # A choice depends on the seed and on what is labeled, not on how the loop came here.
        choice = np.random.RandomState(np.random.SeedSequence([seed, len(labeled)]).generate_state(4))
        batch = query(fitted, X, exclude=labeled, random_state=choice, verbose=verbose, **options)
        spent = time.perf_counter() - began
        queried, scores = batch.indices.numpy(), batch.scores.numpy()
        labeled, labels = np.concatenate([labeled, queried]), np.concatenate([labels, _ask(y, queried, labels)])


def _start(initial: Any, n: int, seed: int) -> np.ndarray:
    """Positions labeled at the start."""
    if np.ndim(initial) == 0:
        checks.positive(initial, name="initial", integer=True)
        if initial > n:
            raise ValueError(f"`initial` must be at most the number of rows of the pool, {n}; got {initial}")
        return np.random.default_rng(seed).choice(n, initial, replace=False)
    rows = positions(initial, n, name="initial")
    if not len(rows) or len(np.unique(rows)) < len(rows):
        raise ValueError("`initial` must hold at least one position, and none twice")
    return rows


def _ask(y: Any, rows: np.ndarray, before: np.ndarray | None = None) -> np.ndarray:
    """The labels of some rows, of the shape of those `before`."""
    labels = np.asarray(y(rows) if callable(y) else take(y, rows))
    if labels.shape[:1] != (len(rows),):
        got = f"{len(labels)} for {len(rows)} positions" if labels.ndim else f"{labels.item()!r}"
        raise ValueError(f"`y` must return a label for each position; got {got}")
    if before is not None and labels.shape[1:] != before.shape[1:]:
        raise ValueError(
            f"`y` must return labels of one shape; got {labels.shape} for {len(rows)} positions, and {before.shape} "
            f"for the {len(before)} before"
        )
    return labels
