"""The table of all cells, and the figure."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bayeskit.plots import PALETTE
from fidelity.cells import compared
from fidelity.rows import ROWS
from fidelity.truth import Truth

Cells = Mapping[str, Mapping[str, Any]]
"""What was found, by "table/row/seed"; gradients are under the seed "count"."""

FAMILIES = {
    "points and ensembles": ("map", "deep_ensemble", "mc_dropout"),
    "Gaussians about a mode": ("laplace", "vbll", "swag"),
    "independent weights": ("ivon", "mean_field", "ssvi"),
    "exact samplers": ("nuts", "hmc"),
    "stochastic-gradient samplers": (
        "sgld",
        "psgld",
        "sghmc",
        "sgnht",
        "baoab",
        "csgld",
        "csghmc",
        "entropy_mcmc",
        "federated_sgld",
    ),
    "other particles and chains": ("structured_sgld", "svgd"),
}
MARKERS = "osD*^v"
SUMMARIES = {"R-hat": ("most", "median"), "ESS": ("least", "median")}


def judged(results: Cells, name: str, truth: Truth) -> dict[str, list[dict[str, Any]]]:
    """The cells of each row, seed by seed, beside the truth."""
    found = {row: [] for row in ROWS}
    for key, cell in results.items():
        at, row, seed = key.split("/")
        if at == name and row in ROWS and seed != "count":
            found[row].append({**cell, **compared(cell, truth)})
    return {row: cells for row, cells in found.items() if cells}


def print_table(results: Cells, name: str, truth: Truth):
    """Rows in the order of their distance."""
    about, scale = truth.about, np.sqrt(truth.variance)
    print(f"\n### {name}\n")
    rhat, size = ([about[f"{key} of f, {which}"] for which in whiches] for key, whiches in SUMMARIES.items())
    print(f"Truth: {about['draws']} draws of {about['chains']} chains; R-hat of f at most {rhat[0]:.3f}, median")
    print(f"{rhat[1]:.3f}; effective draws at least {size[0]:.0f}, median {size[1]:.0f}; halves of the chains")
    print(f"{truth.floor:.4f} apart; sd of f {scale.mean():.4f}, with a standard error of the mean of")
    print(f"{truth.mean_error.mean():.4f}.\n")
    print("| row | W2 | W2 / sd | mean off by (sd) | sd ratio | RMSE | R-hat | gradients | s | seeds | what it is |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    found = judged(results, name, truth)
    for row in sorted(found, key=lambda row: np.mean([cell["W2"] for cell in found[row]])):
        cells = found[row]
        w2, off, ratio = (spread([cell[key] for cell in cells]) for key in ("W2", "mean off", "sd ratio"))
        relative = np.mean([cell["W2"] for cell in cells]) / scale.mean()
        rhat = "" if cells[0]["R-hat"] is None else f"{max(cell['R-hat'] for cell in cells):.2f}"
        count = results.get(f"{name}/{row}/count")
        gradients = "" if count is None else f"{count['gradients']:,.0f}"
        rmse, seconds = (np.mean([cell[key] for cell in cells]) for key in ("RMSE", "seconds"))
        shown = [row, w2, f"{relative:.2f}", off, ratio, f"{rmse:.3f}", rhat, gradients, f"{seconds:.0f}", len(cells)]
        print("| " + " | ".join(map(str, [*shown, ROWS[row].note])) + " |")


def spread(values: list[float]) -> str:
    """Mean and standard deviation over the seeds."""
    error = "" if len(values) < 2 else f" ± {np.std(values, ddof=1):.3f}"
    return f"{np.mean(values):.3f}{error}"


def draw(results: Cells, truths: Mapping[str, Truth], file: str | Path):
    """Distance against seconds, a panel a table and a dot a row; the line is what the truth itself is sure of."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(truths), figsize=(5.5 * len(truths), 5), layout="constrained", squeeze=False)
    for ax, (name, truth) in zip(panels[0], truths.items(), strict=True):
        for k, (family, methods) in enumerate(FAMILIES.items()):
            points = [
                (row, np.mean([c["seconds"] for c in cells]), np.mean([c["W2"] for c in cells]))
                for row, cells in judged(results, name, truth).items()
                if ROWS[row].method in methods
            ]
            for i, (row, seconds, w2) in enumerate(points):
                label = family if i == 0 else None
                ax.plot(seconds, w2, MARKERS[k], color=PALETTE[k], markersize=5, label=label)
                ax.annotate(row, (seconds, w2), xytext=(4, 2), textcoords="offset points", fontsize=6)
        ax.axhline(truth.floor, color="#8C8C8C", linestyle=":", linewidth=1)
        ax.set(xscale="log", yscale="log", title=name, xlabel="seconds", ylabel="mean W2 from the truth, a test point")
        ax.spines[["top", "right"]].set_visible(False)
    panels[0][0].legend(frameon=False, fontsize="small")
    figure.savefig(file, dpi=150)
