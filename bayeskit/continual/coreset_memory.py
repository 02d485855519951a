"""Coresets of past tasks: a few data points of each task, held out of the recursion and learned last."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bayeskit.core import checks
from bayeskit.core.inputs import take


@dataclass(frozen=True)
class Coreset:
    """The number and choice of the data points of each task that are kept in memory.

    The coreset C_t of task t is held out of the recursion, and the predictive posterior p_t is updated by it last:

        q_t = infer(q_{t-1}, D_t without C_t),    p_t = infer(q_t, C_1, ..., C_t),

    so that every data point counts once, and the coresets are the most recent data.

    Args:
        size: Data points per task.
        choice: "random", or "k_center": each the farthest from those chosen before it (Gonzalez, 1985).

    References:
        Nguyen et al. (2018), Variational continual learning, algorithm 1.

    Examples:
        >>> x = np.array([[0.0], [0.1], [5.0], [9.0]])
        >>> rows = Coreset(2, choice="k_center").rows(x, np.random.default_rng(0))
        >>> bool((np.abs(x[rows[0]] - x[rows[1]]) > 4).all())
        True
    """

    size: int
    choice: Literal["random", "k_center"] = "random"

    def __post_init__(self) -> None:
        checks.positive(self.size, name="size", integer=True)
        checks.choice(self.choice, name="choice", options=("random", "k_center"))

    def rows(self, x: Any, random: np.random.Generator) -> np.ndarray:
        """Positions of the coreset of a task, sorted; at least one data point is left out of it.

        Args:
            x: Inputs (n, *input_shape).
            random: Source of randomness.
        """
        size = min(self.size, len(x) - 1)
        if self.choice == "random":
            return np.sort(random.choice(len(x), size, replace=False))
        return np.sort(_farthest_first(np.asarray(x, dtype=float).reshape(len(x), -1), size, random))

    def divide(self, x: Any, y: Any, random: np.random.Generator) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        """The data of a task without its coreset, and the coreset."""
        kept = self.rows(x, random)
        rest = np.setdiff1d(np.arange(len(x)), kept)
        return (take(x, rest), take(y, rest)), (take(x, kept), take(y, kept))


def _farthest_first(x: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """Greedy k-center: the row whose nearest chosen row is the farthest, from a random first row on; O(n size d)."""
    chosen = np.empty(size, dtype=int)
    distance = np.full(len(x), np.inf)
    for i in range(size):
        chosen[i] = random.integers(len(x)) if i == 0 else distance.argmax()
        distance = np.minimum(distance, np.square(x - x[chosen[i]]).sum(1))
    return chosen
