"""Learning curves of active learning: a score against the number of labels, with its spread over seeds."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bayeskit.core import checks
from bayeskit.plots.style import new_axes, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def learning_curve(
    curves: Mapping[str, tuple[Any, Any]],
    *,
    score: str = "score",
    xlabel: str = "labels",
    band: Literal["std", "error", "range"] = "error",
    ax: "Axes | None" = None,
) -> "Axes":
    """Mean score over seeds against the number of labels, strategy by strategy, with a band.

    Args:
        curves: Name to (numbers of labels (r,), scores (seeds, r)).
        score: Label of the vertical axis.
        xlabel: Label of the horizontal axis.
        band: What the band shows: "error", two standard errors of the mean to either side; "std", one standard
            deviation over seeds; "range", from the worst seed to the best. One seed has no band.
        ax: Where to draw.

    Raises:
        ValueError: Scores do not have one column for each number of labels.

    >>> ax = learning_curve({"bald": ([10, 20], [[0.5, 0.8], [0.6, 0.9]])}, score="accuracy")
    >>> ax.get_ylabel()
    'accuracy'
    >>> import matplotlib.pyplot as plt; plt.close("all")
    """
    checks.choice(band, name="band", options=("std", "error", "range"))
    ax = new_axes(ax)
    for index, (name, curve) in enumerate(curves.items()):
        labels, scores = np.asarray(curve[0]), np.atleast_2d(np.asarray(curve[1], dtype=float))
        if scores.shape[1:] != labels.shape:
            raise ValueError(
                f"`curves`: {name!r} must have scores (seeds, {len(labels)}), one for each number of labels; "
                f"got {scores.shape}"
            )
        look = style(index)
        ax.plot(labels, scores.mean(0), label=name, **look)
        if len(scores) > 1:
            low, high = _ends(scores, band)
            ax.fill_between(labels, low, high, color=look["color"], alpha=0.15, linewidth=0)
    ax.set(xlabel=xlabel, ylabel=score)
    ax.legend(frameon=False, fontsize="small")
    return ax


def _ends(scores: np.ndarray, band: str) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of the band, (r,) each."""
    if band == "range":
        return scores.min(0), scores.max(0)
    half = scores.std(0, ddof=1) * (1.0 if band == "std" else 2 / np.sqrt(len(scores)))
    return scores.mean(0) - half, scores.mean(0) + half
