"""Plots of how uncertainty ranks points: risk-coverage curves and OOD scores."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bayeskit import metrics
from bayeskit.plots.style import BLUE, ORANGE, new_axes, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def risk_coverage_curve(
    curves: Mapping[str, tuple[Any, Any]], *, risk: str = "risk", ax: "Axes | None" = None
) -> "Axes":
    """Mean loss over the fraction of points with the lowest uncertainty, method by method.

    Args:
        curves: Name of a method to (losses, uncertainty), each (n,), as `metrics.risk_coverage` takes them.
        risk: Label of the vertical axis.
        ax: Where to draw.

    >>> ax = risk_coverage_curve({"a": ([0.0, 1.0], [0.1, 0.2])})
    >>> import matplotlib.pyplot as plt; plt.close("all")
    """
    ax = new_axes(ax)
    for index, (name, (losses, uncertainty)) in enumerate(curves.items()):
        ax.plot(*metrics.risk_coverage(losses, uncertainty), label=name, **style(index))
    ax.set(xlim=(0, 1), xlabel="coverage (fraction of points, most certain first)", ylabel=risk)
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, fontsize="small")
    return ax


def ood_histogram(in_scores: Any, out_scores: Any, *, num_bins: int = 25, ax: "Axes | None" = None) -> "Axes":
    """Histograms of a score over in-distribution and out-of-distribution inputs.

    Args:
        in_scores: Scores of in-distribution inputs (n,).
        out_scores: Scores of OOD inputs (m,).
        num_bins: Number of bars.
        ax: Where to draw.

    >>> ax = ood_histogram([0.1, 0.2, 0.3], [0.5, 0.6])
    >>> import matplotlib.pyplot as plt; plt.close("all")
    """
    ax = new_axes(ax)
    both = [np.asarray(scores, dtype=float).ravel() for scores in (in_scores, out_scores)]
    low, high = np.concatenate(both).min(), np.concatenate(both).max()
    bins = np.linspace(low, high if high > low else low + 1, num_bins + 1)
    for scores, name, color, filled in zip(
        both, ("in-distribution", "OOD"), (BLUE, ORANGE), ("stepfilled", "step"), strict=True
    ):
        share = np.full(len(scores), 1 / len(scores))
        ax.hist(
            scores,
            bins=bins,
            weights=share,
            histtype=filled,
            color=color,
            alpha=0.7 if filled == "stepfilled" else 1,
            label=name,
        )  # type: ignore[arg-type]
    auroc = f"AUROC {metrics.ood_auroc(*both):.3f}"
    ax.text(1, 1.03, auroc, transform=ax.transAxes, ha="right", va="bottom", fontsize="small")
    ax.set(xlabel="OOD score", ylabel="fraction of points")
    return ax
