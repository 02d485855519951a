"""The data of one seed as every method receives it: split, encoded as numbers, with what was decided in sentences."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bayeskit.benchmark.data import division, encoding, leakage
from bayeskit.benchmark.data.datasets import Dataset, Task

MAX_OOD = 2_000
"""Out-of-distribution inputs to predict at, sampled at random from more."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Training, test and out-of-distribution data of one seed, encoded as numbers.

    Args:
        task: "regression" or "classification".
        X_train: (n, d).
        y_train: (n,) or (n, k) numbers, or (n,) codes.
        X_test: (t, d).
        y_test: (t,) or (t, k).
        num_classes: Number of classes, 0 for regression.
        X_ood: Out-of-distribution inputs (o, d), or None.
    """

    task: Task
    X_train: np.ndarray
    y_train: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray
    num_classes: int = 0
    X_ood: np.ndarray | None = None


def problems(dataset: Dataset, outside: Any, seeds: int) -> tuple[Callable[[int], Problem], list[str]]:
    """A function from a seed to its problem, and every sentence about the preparation of the data.

    Args:
        dataset: The data.
        outside: Out-of-distribution inputs as `datasets.load_inputs` returns them, or None.
        seeds: Number of seeds.
    """
    notes = list(dataset.notes)
    if dataset.division is not None:
        notes.append(dataset.division.sentence(seeds))
    elif dataset.splits and seeds > len(dataset.splits):
        count = f"{len(dataset.splits)} split{'s' if len(dataset.splits) > 1 else ''}"
        notes.append(f"The data came with {count}; further seeds use them again with another initialization.")
    elif dataset.splits:
        notes.append("The splits are those that came with the data.")
    else:
        notes.append(f"Each seed holds out {100 * division.TEST_FRACTION:.0f} % of the data at random as a test set.")
    encoders: dict[int, tuple[np.ndarray, np.ndarray, encoding.Encoder]] = {}
    seeds_of: dict[str, list[int]] = {}
    leaks: list[str] = []
    for seed in range(seeds):
        train, test = split(dataset, seed)
        encoder = encoding.learn(_take(dataset.X, train))
        for sentence in encoder.sentences:
            seeds_of.setdefault(sentence, []).append(seed)
        encoders[seed] = train, test, encoder
        if seed == 0:
            encoded = encoder(_take(dataset.X, train)), encoder(_take(dataset.X, test))
            leaks = leakage.signs(dataset, *encoded)
    notes += leaks
    for sentence, where in seeds_of.items():
        splits = f"In split{'s' if len(where) > 1 else ''} {', '.join(map(str, where))}: "
        notes.append(sentence if len(where) == seeds else splits + sentence)
    if outside is not None and len(outside) > MAX_OOD:
        notes.append(f"{MAX_OOD} of the {len(outside)} out-of-distribution inputs were sampled for each seed.")

    def problem(seed: int) -> Problem:
        train, test, encoder = encoders[seed]
        X_ood = None
        if outside is not None:
            X_ood = encoder(_take(outside, np.random.default_rng(seed).permutation(len(outside))[:MAX_OOD]))
        X_train, X_test = encoder(_take(dataset.X, train)), encoder(_take(dataset.X, test))
        return Problem(dataset.task, X_train, dataset.y[train], X_test, dataset.y[test], len(dataset.classes), X_ood)

    return problem, notes


def split(dataset: Dataset, seed: int) -> division.Split:
    """Training and test indices of a seed; test points of a class absent from training are left out."""
    train, test = dataset.split(seed)
    if dataset.task == "classification":
        test = test[np.isin(dataset.y[test], dataset.y[train])]
    return train, test


def _take(X: Any, rows: np.ndarray) -> Any:
    return X[rows] if isinstance(X, np.ndarray) else X.iloc[rows]
