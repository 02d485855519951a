"""Calibration plots: reliability diagram, PIT histogram and coverage curve."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bayeskit import metrics
from bayeskit.core import checks
from bayeskit.metrics.calibration import Binning
from bayeskit.plots.style import BLUE, GRAY, new_axes, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def reliability_diagram(
    p: Any, labels: Any, *, num_bins: int = 10, binning: Binning = "width", color: str = BLUE, ax: "Axes | None" = None
) -> "Axes":
    """Accuracy against confidence, with the fraction of the points in each bin as gray bars.

    Args:
        p: Class probabilities (n, c), or (n,) for the probability of class 1 of two.
        labels: Integer codes (n,).
        num_bins: Number of bins.
        binning: "width" or "mass".
        color: Of the curve.
        ax: Where to draw.

    >>> ax = reliability_diagram([[0.9, 0.1], [0.3, 0.7]], [0, 1])
    >>> ax.get_xlabel()
    'confidence'
    >>> import matplotlib.pyplot as plt; plt.close("all")
    """
    ax = new_axes(ax)
    r = metrics.reliability(p, labels, num_bins=num_bins, binning=binning)
    ax.bar(
        r.edges[:-1],
        r.occupancy,
        width=np.diff(r.edges),
        align="edge",
        color=GRAY,
        alpha=0.35,
        label="fraction of points",
    )
    ax.plot([0, 1], [0, 1], color=GRAY, linewidth=1, label="calibrated")
    full = r.counts > 0
    ax.plot(r.confidence[full], r.accuracy[full], color=color, marker="o", markersize=4, label="accuracy")
    ax.text(1, 1.03, f"ECE {r.error:.3f}", transform=ax.transAxes, ha="right", va="bottom", fontsize="small")
    ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence", ylabel="accuracy, fraction of points")
    return ax


def pit_histogram(
    u: Any, *, num_bins: int = 10, level: float = 0.95, color: str = BLUE, ax: "Axes | None" = None
) -> "Axes":
    """Histogram of PIT values with the band in which the bars of uniform values lie.

    Each bar holds a Binomial(n, 1 / num_bins) number of points if the predictive distributions are calibrated; the band
    is the central interval of that distribution, bar by bar, so about one bar in twenty leaves a 95 % band by chance.

    Args:
        u: PIT values, any shape.
        num_bins: Number of bars.
        level: Probability of the band.
        color: Of the bars.
        ax: Where to draw.

    >>> ax = pit_histogram(np.linspace(0.01, 0.99, 50))
    >>> import matplotlib.pyplot as plt; plt.close("all")
    """
    from scipy.stats import binom

    ax, u = new_axes(ax), np.asarray(u, dtype=float).ravel()
    checks.fraction(level, name="level")
    low, high = binom.interval(level, len(u), 1 / num_bins)
    to_density = num_bins / len(u)
    ax.hist(
        u,
        bins=np.linspace(0, 1, num_bins + 1).tolist(),
        density=True,
        color=color,
        alpha=0.75,
        edgecolor="white",
        linewidth=0.5,
    )
    ax.axhspan(
        low * to_density,
        high * to_density,
        color=GRAY,
        alpha=0.3,
        linewidth=0,
        label=f"{100 * level:g} % band if uniform",
    )
    ax.axhline(1, color=GRAY, linewidth=1)
    ax.set(xlim=(0, 1), xlabel="PIT value", ylabel="density")
    return ax


def coverage_curve(u: Mapping[str, Any], *, ax: "Axes | None" = None) -> "Axes":
    """Empirical coverage of central intervals against their nominal coverage, method by method.

    Above the diagonal a method is under-confident, below it over-confident.

    Args:
        u: Name of a method to its PIT values (n,).
        ax: Where to draw.

    >>> ax = coverage_curve({"uniform": np.linspace(0.01, 0.99, 50)})
    >>> import matplotlib.pyplot as plt; plt.close("all")
    """
    ax, levels = new_axes(ax), np.linspace(0, 1, 101)
    ax.plot([0, 1], [0, 1], color=GRAY, linewidth=1)
    for index, (name, values) in enumerate(u.items()):
        depth = 2 * np.abs(np.asarray(values, dtype=float).ravel() - 0.5)  # the interval that just reaches the point
        ax.plot(levels, (depth[None] <= levels[:, None]).mean(1), label=name, **style(index))
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="nominal coverage", ylabel="empirical coverage")
    ax.legend(frameon=False, fontsize="small")
    return ax
