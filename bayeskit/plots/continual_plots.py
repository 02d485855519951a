"""Continual-learning plots: the matrix of scores and the score of each task over time."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bayeskit.plots.style import new_axes, style, write_cells

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def score_matrix(
    R: Any, names: Sequence[str] | None = None, *, score: str = "accuracy", ax: "Axes | None" = None
) -> "Axes":
    """Heat map of a score on every task (columns) after every stage (rows), each number written in its cell.

    Entries right of the steps are of tasks not yet learnt.

    Args:
        R: Scores (stages, tasks); see `continual.scores`.
        names: Of the tasks.
        score: What the numbers are.
        ax: Where to draw.

    >>> ax = score_matrix([[0.9, 0.1], [0.5, 0.9]], ["0, 1", "2, 3"])
    >>> ax.get_ylabel()
    'after learning'
    >>> import matplotlib.pyplot as plt; plt.close("all")
    """
    ax, matrix, names = new_axes(ax), *_named(R, names)
    write_cells(ax, matrix)
    for i in range(min(matrix.shape) - 1):  # the steps between learnt and later tasks
        ax.plot([i + 0.5, i + 0.5, i + 1.5], [i - 0.5, i + 0.5, i + 0.5], color="white", linewidth=2.5)
    ax.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(matrix)), names[: len(matrix)])
    ax.set(xlabel="task", ylabel="after learning", title=score)
    return ax


def score_curves(
    R: Any, names: Sequence[str] | None = None, *, score: str = "accuracy", ax: "Axes | None" = None
) -> "Axes":
    """A score on each task over time, one line a task from the stage at which it was learnt.

    Args:
        R: Scores (stages, tasks); see `continual.scores`.
        names: Of the tasks.
        score: What the numbers are.
        ax: Where to draw.

    >>> ax = score_curves([[0.1, 0.3], [0.2, 0.1]], score="ECE")
    >>> [line.get_xdata().tolist() for line in ax.lines]
    [[0, 1], [1]]
    >>> import matplotlib.pyplot as plt; plt.close("all")
    """
    ax, matrix, names = new_axes(ax), *_named(R, names)
    for j, name in enumerate(names):
        stages = np.arange(j, len(matrix))
        ax.plot(stages, matrix[j:, j], marker="o", markersize=4, label=name, **style(j))
    ax.set_xticks(range(len(matrix)), names[: len(matrix)], rotation=45, ha="right", rotation_mode="anchor")
    ax.set(xlabel="after learning", ylabel=score, ylim=(0, None))
    return ax


def _named(R: Any, names: Sequence[str] | None) -> tuple[np.ndarray, list[str]]:
    """The scores (stages, tasks), and a name for each task."""
    matrix = np.asarray(R, dtype=float)
    if matrix.ndim != 2 or len(matrix) > matrix.shape[1]:
        raise ValueError(f"`R` must have shape (stages, tasks), with no more stages than tasks; got {matrix.shape}")
    names = [str(j + 1) for j in range(matrix.shape[1])] if names is None else list(names)
    if len(names) != matrix.shape[1]:
        raise ValueError(f"`names` must have one for each of {matrix.shape[1]} tasks; got {len(names)}")
    return matrix, names
