"""Distances between the posteriors of two methods at shared test inputs.

Regression: both methods give a joint Gaussian posterior N(m, C) of the latent function at the same t <= 200 test
inputs, divided by the standard deviation of the training targets. Their 2-Wasserstein distance, divided by sqrt(t k)
for k outputs, is a root mean square per value in units of that standard deviation. A point estimate has zero
covariance, so its distance to another posterior is at least that posterior's root-mean-square standard deviation.

Classification: the mean over those inputs of the total variation distance between class probabilities; 0.1 says that
the probability of some event differs by 0.1.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from bayeskit import metrics
from bayeskit.benchmark.data.datasets import Task
from bayeskit.benchmark.run.trial import SHARED_INPUTS

Arrays = Mapping[str, np.ndarray]


def pairwise(stored: Mapping[str, Sequence[Arrays]], task: Task) -> tuple[list[str], np.ndarray]:
    """Distances between methods, averaged over seeds.

    Args:
        stored: For each method the arrays of its trials, seed by seed.
        task: "regression" or "classification".

    Returns:
        The m methods with a stored posterior for every seed, and their distances (m, m).

    >>> uniform, certain = {"probs": np.array([[0.5, 0.5]])}, {"probs": np.array([[1.0, 0.0]])}
    >>> pairwise({"a": [uniform], "b": [certain]}, "classification")[1].tolist()
    [[0.0, 0.5], [0.5, 0.0]]
    """
    needed = "latent_covariance" if task == "regression" else "probs"
    names = [method for method, trials in stored.items() if trials and all(needed in arrays for arrays in trials)]
    between = _joint if task == "regression" else _classes
    matrix = np.zeros((len(names), len(names)))
    for i, j in zip(*np.triu_indices(len(names), 1), strict=True):
        values = [between(a, b) for a, b in zip(stored[names[i]], stored[names[j]], strict=True)]
        matrix[i, j] = matrix[j, i] = np.mean(values)
    return names, matrix


def _joint(a: Arrays, b: Arrays) -> float:
    distance = metrics.wasserstein2(a["latent_mean"], a["latent_covariance"], b["latent_mean"], b["latent_covariance"])
    return distance / np.sqrt(len(a["latent_mean"]))


def _classes(a: Arrays, b: Arrays) -> float:
    return float(metrics.total_variation(a["probs"][:SHARED_INPUTS], b["probs"][:SHARED_INPUTS]).mean())
