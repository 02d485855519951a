"""Negative log-likelihood of a prediction that ignores the inputs, as a baseline for every method."""

import numpy as np

from bayeskit.benchmark.data.datasets import Task


def nll(task: Task, y_train: np.ndarray, y_test: np.ndarray) -> float:
    """Mean negative log-likelihood of the test targets under the marginal distribution of the training targets.

    For classification this is the class frequencies; for regression a Gaussian with the mean and standard deviation of
    the targets, with several outputs taken as independent.

    Args:
        task: "regression" or "classification".
        y_train: (n,) or (n, k) numbers, or (n,) codes.
        y_test: The same for the test set; every class occurs in the training set.

    Returns:
        Nats per test point; NaN where the training targets do not vary.

    >>> nll("classification", np.array([0, 0, 1, 1]), np.array([0, 1]))  # log 2
    0.6931471805599453
    """
    if task == "classification":
        shares = np.bincount(y_train) / len(y_train)
        return float(-np.log(shares[y_test]).mean())
    spread = y_train.std(0)
    if not np.all(spread > 0):
        return float("nan")
    terms = 0.5 * np.log(2 * np.pi * spread**2) + 0.5 * ((y_test - y_train.mean(0)) / spread) ** 2
    return float(terms.reshape(len(y_test), -1).sum(1).mean())
