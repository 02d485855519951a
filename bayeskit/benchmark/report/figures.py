"""The figures of a report: panels with one method each, and figures that several methods share.

Figures are drawn without a background and in one ink color that the report replaces by the page's own text color, so
that they are legible in light and dark mode; the PNG files get a white background.
"""

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bayeskit import plots
from bayeskit.benchmark.report import summary_text
from bayeskit.benchmark.run.results import Results

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
        text: Caption: what it shows and how to read it.
        svg: The figure as an `<svg>` element in the page's text color.
    """

    name: str
    title: str
    text: str
    svg: str


def draw(results: Results, folder: Path) -> list[Picture]:
    """Draw every figure that the results have data for, and write the PNG files into `folder`."""
    from matplotlib import rc_context

    folder.mkdir(parents=True, exist_ok=True)
    pooled = {method: _pooled(results, method) for method in results.complete}
    pooled = {method: arrays for method, arrays in pooled.items() if arrays}
    with rc_context(_LOOK):
        figures = (
            [make(results, pooled) for make in (_calibration, _coverage, _risk, _ood, _distances)] if pooled else []
        )
        return [_finish(folder, *figure) for figure in figures if figure is not None]


Drawn = tuple[str, str, str, "Figure"]


def _calibration(results: Results, pooled: Mapping[str, Arrays]) -> Drawn:
    if results.task == "classification":
        figure = _panels(pooled, lambda a, ax: plots.reliability_diagram(a["probs"], a["labels"], num_bins=15, ax=ax))
        text = (
            "Reliability diagram: accuracy of the most probable class against its predicted probability "
            "(confidence). A calibrated method lies on the diagonal, an over-confident one below it. Gray bars give "
            "the fraction of the test points in each bin; the curve over a short bar rests on few points. Seeds are "
            "pooled, also in the expected calibration error (ECE) above each panel."
        )
        return "reliability", "Reliability diagrams", text, figure
    figure = _panels(pooled, lambda a, ax: plots.pit_histogram(a["pit"], ax=ax))
    text = (
        "Probability integral transform: the value of each test target's predictive distribution function at the "
        "target. For a calibrated method it is uniform, and 95 % of the bars lie inside the gray band; a peak in the "
        "middle means under-confidence, peaks at the ends mean over-confidence, a slope means bias. Seeds are "
        "pooled; test points shared by several seeds make the band slightly too narrow."
    )
    return "pit", "PIT histograms", text, figure


def _coverage(results: Results, pooled: Mapping[str, Arrays]) -> Drawn | None:
    if results.task == "classification":
        return None
    figure, ax = _single()
    plots.coverage_curve({method: a["pit"] for method, a in pooled.items()}, ax=ax)
    _legend_beside(ax)
    text = (
        "Empirical coverage of central predictive intervals against their nominal coverage. Above the diagonal a "
        "method is under-confident (intervals too wide), below it over-confident (intervals too narrow)."
    )
    return "coverage", "Empirical against nominal coverage", text, figure


def _risk(results: Results, pooled: Mapping[str, Arrays]) -> Drawn:
    figure, ax = _single()
    risk = "error rate" if results.task == "classification" else "mean squared error"
    plots.risk_coverage_curve({m: (a["losses"], a["uncertainty"]) for m, a in pooled.items()}, risk=risk, ax=ax)
    _legend_beside(ax)
    text = (
        f"Selective prediction: {risk} on the fraction of test points with the lowest predictive uncertainty "
        "(coverage). A curve that starts low means that uncertainty ranks the errors well; a flat curve means that "
        "it is not related to the error."
    )
    return "risk_coverage", "Risk-coverage curves", text, figure


def _ood(results: Results, pooled: Mapping[str, Arrays]) -> Drawn | None:
    pooled = {m: a for m, a in pooled.items() if "ood_uncertainty" in a}
    if not pooled:
        return None
    figure = _panels(
        pooled, lambda a, ax: plots.ood_histogram(a["uncertainty"], a["ood_uncertainty"], ax=ax), share_x=False
    )
    unit = "entropy of the class probabilities, in nats" if results.task == "classification" else "predictive variance"
    text = (
        f"The score is the total predictive uncertainty ({unit}). Filled: in-distribution test inputs of "
        f"{results.name}; outlined: out-of-distribution inputs of {results.ood}. The less they overlap, the better. "
        "Seeds are pooled, so the AUROC differs slightly from the mean over seeds in the table."
    )
    return "ood", "Out-of-distribution detection", text, figure


def _distances(results: Results, _: Mapping[str, Arrays]) -> Drawn | None:
    names, matrix = results.distance_matrix
    if len(names) < 2:
        return None
    side = 2.0 + 0.55 * len(names)
    figure, ax = _single(side, side - 0.3)
    plots.distance_map(matrix, names, ax=ax)
    if results.task == "regression":
        text = (
            "2-Wasserstein distance between two methods' joint Gaussian posteriors of the latent function at the "
            "same test inputs (at most 200), divided by the standard deviation of the training target and by the "
            "square root of the number of values, hence a root-mean-square difference in units of that standard "
            "deviation. Point estimates (MAP) have zero covariance, so their distance to another posterior is at "
            "least its root-mean-square standard deviation."
        )
        points = sorted({row["method"] for row in results.rows if row.get("kind") == "point"})
        point_estimates = f" Point estimates here: {', '.join(points)}." if points else ""
    else:
        text = (
            "Mean total variation distance between two methods' class probabilities at the same test inputs (at most "
            "200): half the summed absolute difference, from 0 (equal) to 1 (probability one for different classes)."
        )
        point_estimates = ""
    text = f"{text} Averaged over seeds. {summary_text.closest(results)}{point_estimates}"
    return "distances", "Distances between posteriors", text, figure


def _pooled(results: Results, method: str) -> Arrays:
    """A method's arrays concatenated over seeds, without the joint posteriors, which cannot be pooled."""
    trials = [results.store.arrays((method, seed)) for seed in results.seeds]
    names = [name for name in trials[0] if not name.startswith("latent_")] if all(trials) else []
    return {name: np.concatenate([arrays[name] for arrays in trials]) for name in names}


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
