"""Continual-learning summaries of the accuracy matrix: average accuracy, backward transfer and forgetting.

R[i, j] is a score for which more is better (accuracy, say) on task j after learning task i.
"""

from typing import Any

import numpy as np

from bayeskit.metrics import arrays


def average_accuracy(R: Any) -> float:
    """The mean over all tasks of the score after the last one, (1 / T) sum_j R[T, j].

    Args:
        R: Scores (t, t).

    References:
        Lopez-Paz and Ranzato (2017), Gradient episodic memory for continual learning, equation 2.

    >>> average_accuracy([[0.9, 0.1], [0.5, 0.9]])
    0.7
    """
    return float(_matrix(R)[-1].mean())


def backward_transfer(R: Any) -> float:
    """Effect of later tasks on earlier ones, (1 / (T - 1)) sum_{j < T} R[T, j] - R[j, j]; negative is forgetting.

    Args:
        R: Scores (t, t), at least two tasks.

    References:
        Lopez-Paz and Ranzato (2017), Gradient episodic memory for continual learning, equation 3.

    >>> round(backward_transfer([[0.9, 0.1], [0.5, 0.9]]), 6)
    -0.4
    """
    R = _matrix(R, tasks=2)
    return float((R[-1] - R.diagonal())[:-1].mean())


def forgetting(R: Any) -> float:
    """Mean loss of earlier tasks since their best score, (1 / (T - 1)) sum_{j < T} max_{i < T} R[i, j] - R[T, j].

    Args:
        R: Scores (t, t), at least two tasks.

    References:
        Chaudhry et al. (2018), Riemannian walk for incremental learning, section 3.1.

    >>> round(forgetting([[0.9, 0.1], [0.5, 0.9]]), 6)
    0.4
    """
    R = _matrix(R, tasks=2)
    return float((R[:-1].max(0) - R[-1])[:-1].mean())


def _matrix(R: Any, tasks: int = 1) -> np.ndarray:
    R = arrays.numbers(R, name="R", ndim=2)
    if R.shape[0] != R.shape[1]:
        raise ValueError(f"`R` must be square, a stage and a column each task; got shape {R.shape}")
    if len(R) < tasks:
        raise ValueError(f"`R` must have at least {tasks} tasks; got {len(R)}")
    return R
