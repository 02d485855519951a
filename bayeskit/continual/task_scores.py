"""Scores of predictions on the test data of one task."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from bayeskit import metrics
from bayeskit.core import checks
from bayeskit.core.inputs import take
from bayeskit.core.predictive import CategoricalPredictive, Predictive

ROWS = 2_000
"""Rows predicted at a time, so that memory does not grow with the test set."""

LEVEL = 0.9
"""Probability of the intervals whose coverage is measured."""


def score(learner: Any, x: Any, y: Any) -> dict[str, float]:
    """Accuracy, NLL and expected calibration error for labels; RMSE, NLL and coverage at 90 % for numbers.

    Args:
        learner: Anything with `predictive`.
        x: Inputs (n, *input_shape).
        y: Targets (n,) or (n, k), in the units of the learner; labels in its own coding.

    Raises:
        ValueError: A label is none of the learner's classes.
    """
    parts = list(_parts(learner, x, y))
    if isinstance(parts[0][0], CategoricalPredictive):
        return _of_classes(parts)
    return _of_numbers(parts)


def _parts(learner: Any, x: Any, y: Any) -> Iterator[tuple[Any, Any]]:
    for start in range(0, len(y), ROWS):
        rows = np.arange(start, min(start + ROWS, len(y)))
        yield learner.predictive(take(x, rows)), take(y, rows)


def _of_classes(parts: list[tuple[CategoricalPredictive, Any]]) -> dict[str, float]:
    probs = np.concatenate([predictive.probs.double().cpu().numpy() for predictive, _ in parts])
    labels, classes = np.concatenate([np.asarray(y) for _, y in parts]), parts[0][0].classes
    if classes is not None:
        checks.known_labels(labels, classes)
    codes = labels if classes is None else np.searchsorted(classes, labels)
    return {
        "accuracy": metrics.accuracy(probs, codes),
        "nll": metrics.negative_log_likelihood(probs, codes),
        "ece": metrics.expected_calibration_error(probs, codes),
    }


def _of_numbers(parts: list[tuple[Predictive, Any]]) -> dict[str, float]:
    rows = [len(y) for _, y in parts]
    squares, nll, coverage = np.average([_numbers(predictive, y) for predictive, y in parts], axis=0, weights=rows)
    return {"rmse": float(squares**0.5), "nll": float(nll), "coverage_90": float(coverage)}


def _numbers(predictive: Any, y: Any) -> tuple[float, float, float]:
    squares = metrics.rmse(predictive.mean, y) ** 2
    return squares, metrics.negative_log_likelihood(predictive, y), metrics.coverage(predictive, y, LEVEL)
