"""What a prediction that ignores the inputs scores: the level that every method has to beat."""

import numpy as np

from bayeskit.benchmark.data.datasets import Task


def nll(task: Task, y_train: np.ndarray, y_test: np.ndarray) -> float:
    """Mean negative log-likelihood of the test targets under what the training targets alone say.

    For classification that is the frequencies of the classes; for regression a Gaussian with the mean and standard
    deviation of the targets, several outputs taken as independent and their terms added.

    Args:
        task: "regression" or "classification".
        y_train: (n,) or (n, k) numbers, or (n,) codes.
        y_test: The same of the test rows; every class is among the training rows.

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
