"""The figures of a report: small panels, one a method, and pictures that several methods share.

Figures are drawn without a background and with one ink color that the report replaces by the page's own text color, so
that they read in light and in dark; the PNG files beside the report get a white background.
"""

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bayeskit import plots
from bayeskit.benchmark.run.comparison import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK = "#123454"  # stands for the page's text color; not used for anything else
_LOOK: dict[Any, Any] = {
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    "svg.hashsalt": "bayeskit",
}

Arrays = Mapping[str, np.ndarray]
Panel = Callable[[Arrays, "Axes"], object]


@dataclass(frozen=True)
class Picture:
    """A finished figure.

    Args:
        name: Stem of its PNG file.
        title: Heading in the report.
        text: What it shows and how to read it; also what a screen reader says.
        svg: The figure as an `<svg>` element in the page's text color.
    """

    name: str
    title: str
    text: str
    svg: str


def draw(comparison: Comparison, folder: Path) -> list[Picture]:
    """Draw every figure that the comparison has data for, and write the PNG files into `folder`."""
    from matplotlib import rc_context

    folder.mkdir(parents=True, exist_ok=True)
    pooled = {method: _pooled(comparison, method) for method in comparison.complete}
    pooled = {method: arrays for method, arrays in pooled.items() if arrays}
    with rc_context(_LOOK):
        figures = (
            [make(comparison, pooled) for make in (_calibration, _coverage, _risk, _ood, _distances)] if pooled else []
        )
        return [_finish(folder, *figure) for figure in figures if figure is not None]


Drawn = tuple[str, str, str, "Figure"]


def _calibration(comparison: Comparison, pooled: Mapping[str, Arrays]) -> Drawn:
    if comparison.task == "classification":
        figure = _panels(pooled, lambda a, ax: plots.reliability_diagram(a["probs"], a["labels"], num_bins=15, ax=ax))
        text = (
            "How often the most probable class was right, against how probable it was said to be; on the diagonal the "
            "method means what it says, below it is overconfident. Gray bars give the share of the test points in each "
            "bin: points of the curve over a short bar rest on few cases. All seeds together, in the "
            "error (ECE) above each panel too."
        )
        return "reliability", "Reliability", text, figure
    figure = _panels(pooled, lambda a, ax: plots.pit_histogram(a["pit"], ax=ax))
    text = (
        "Where each test target falls in its own predictive law. Bars inside the gray 95 % band are what a calibrated "
        "method gives; a hump in the middle means intervals too wide, heaps at the ends intervals too narrow, a slope "
        "a bias. All seeds together; test points shared by several seeds make the band a little too narrow."
    )
    return "pit", "PIT histograms", text, figure


def _coverage(comparison: Comparison, pooled: Mapping[str, Arrays]) -> Drawn | None:
    if comparison.task == "classification":
        return None
    figure, ax = _single()
    plots.coverage_curve({method: a["pit"] for method, a in pooled.items()}, ax=ax)
    _legend_beside(ax)
    text = (
        "Share of the test targets inside their central predictive interval against the probability that the interval "
        "was stated to have. Above the diagonal intervals are wider than need be, below they are too narrow."
    )
    return "coverage", "Coverage against nominal", text, figure


def _risk(comparison: Comparison, pooled: Mapping[str, Arrays]) -> Drawn:
    figure, ax = _single()
    risk = "error rate" if comparison.task == "classification" else "mean squared error"
    plots.risk_coverage_curve({m: (a["losses"], a["uncertainty"]) for m, a in pooled.items()}, risk=risk, ax=ax)
    _legend_beside(ax)
    text = (
        f"The {risk} when only the most certain share of the test points is answered and the rest are passed on. A "
        "method that knows when it is wrong starts low; a flat line says that its uncertainty does not tell."
    )
    return "risk_coverage", "Risk against coverage", text, figure


def _ood(comparison: Comparison, pooled: Mapping[str, Arrays]) -> Drawn | None:
    pooled = {m: a for m, a in pooled.items() if "ood_uncertainty" in a}
    if not pooled:
        return None
    figure = _panels(
        pooled, lambda a, ax: plots.ood_histogram(a["uncertainty"], a["ood_uncertainty"], ax=ax), share_x=False
    )
    unit = (
        "entropy of the class probabilities, in nats" if comparison.task == "classification" else "predictive variance"
    )
    text = (
        f"The score is the total predictive uncertainty ({unit}); larger means more out of distribution. Filled: test "
        f"inputs of {comparison.name}; outlined: inputs of {comparison.ood}. The less they overlap, the better. All "
        "seeds together, so the AUROC given differs a little from the mean over seeds in the table."
    )
    return "ood", "Out-of-distribution scores", text, figure


def _distances(comparison: Comparison, _: Mapping[str, Arrays]) -> Drawn | None:
    names, matrix = comparison.distance_matrix
    if len(names) < 2:
        return None
    side = 2.0 + 0.55 * len(names)
    figure, ax = _single(side, side - 0.3)
    plots.distance_map(matrix, names, ax=ax)
    if comparison.task == "regression":
        text = (
            "2-Wasserstein distance between two methods' joint Gaussian laws of the latent function at the same test "
            "inputs (at most 200), divided by the standard deviation of the training target and by the square root of "
            "the number of values: 0.10 means that one belief becomes the other by moving it, root mean square, a "
            "tenth of the target's spread. Point methods (MAP) have zero covariance, so methods that state uncertainty "
            "are at least as far from them as they are wide."
        )
    else:
        text = (
            "Mean total variation between two methods' class probabilities at the same test inputs (at most 200): half "
            "the summed absolute difference, between 0 (same probabilities) and 1 (certain of different classes)."
        )
    return "distances", "How far the methods' beliefs lie from each other", f"{text} Averaged over seeds.", figure


def _pooled(comparison: Comparison, method: str) -> Arrays:
    """A method's arrays with the seeds put together; laws of functions are left out, they do not add up."""
    cells = [comparison.store.arrays((method, seed)) for seed in comparison.seeds]
    names = [name for name in cells[0] if not name.startswith("latent_")] if all(cells) else []
    return {name: np.concatenate([cell[name] for cell in cells]) for name in names}


def _panels(pooled: Mapping[str, Arrays], panel: Panel, *, share_x: bool = True, columns: int = 4) -> "Figure":
    from matplotlib.figure import Figure

    columns = min(columns, len(pooled))
    rows = -(-len(pooled) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.5 * rows), layout="constrained")
    grid = np.atleast_2d(figure.subplots(rows, columns, sharex=share_x, sharey=True, squeeze=False))
    for ax in grid.flat[len(pooled) :]:
        ax.remove()
    for (name, arrays), ax in zip(pooled.items(), grid.flat, strict=False):
        panel(arrays, ax)
        ax.set_title(name, loc="left")
    for index, ax in enumerate(grid.flat[: len(pooled)]):
        if index % columns:
            ax.set_ylabel("")
        if index + columns < len(pooled):
            ax.set_xlabel("")
        elif share_x:
            ax.set_xticks([0, 0.5, 1])
            ax.tick_params(labelbottom=True)  # also where the panel below it is missing
    lines, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def _single(width: float = 6.8, height: float = 3.6) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _legend_beside(ax: "Axes") -> None:
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _finish(folder: Path, name: str, title: str, text: str, figure: "Figure") -> Picture:
    figure.savefig(folder / f"{name}.png", dpi=150, facecolor="white")
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(id="|url\(#|xlink:href="#)', rf"\g<1>{name}-", svg)  # ids are unique in the page
    return Picture(name, title, text, svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1))
