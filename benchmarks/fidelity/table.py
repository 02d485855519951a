"""The table of all trials, and the figure."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bayeskit.plots import PALETTE
from fidelity.reference import Reference
from fidelity.rows import ROWS
from fidelity.trials import compared

Trials = Mapping[str, Mapping[str, Any]]
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


def judged(results: Trials, name: str, reference: Reference) -> dict[str, list[dict[str, Any]]]:
    """The trials of each row, seed by seed, with their errors."""
    found = {row: [] for row in ROWS}
    for key, trial in results.items():
        at, row, seed = key.split("/")
        if at == name and row in ROWS and seed != "count":
            found[row].append({**trial, **compared(trial, reference)})
    return {row: trials for row, trials in found.items() if trials}


def print_table(results: Trials, name: str, reference: Reference):
    """Rows in the order of their distance."""
    about, scale = reference.about, np.sqrt(reference.variance)
    print(f"\n### {name}\n")
    rhat, size = ([about[f"{key} of f, {which}"] for which in whiches] for key, whiches in SUMMARIES.items())
    print(f"Reference: {about['draws']} draws of {about['chains']} chains; R-hat of f at most {rhat[0]:.3f}, median")
    print(f"{rhat[1]:.3f}; effective draws at least {size[0]:.0f}, median {size[1]:.0f}; halves of the chains")
    print(f"{reference.floor:.4f} apart; sd of f {scale.mean():.4f}, with a standard error of the mean of")
    print(f"{reference.mean_error.mean():.4f}.\n")
    print("| row | W2 | W2 / sd | mean off by (sd) | sd ratio | RMSE | R-hat | gradients | s | seeds | what it is |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    found = judged(results, name, reference)
    for row in sorted(found, key=lambda row: np.mean([trial["W2"] for trial in found[row]])):
        trials = found[row]
        w2, off, ratio = (spread([trial[key] for trial in trials]) for key in ("W2", "mean off", "sd ratio"))
        relative = np.mean([trial["W2"] for trial in trials]) / scale.mean()
        rhat = "" if trials[0]["R-hat"] is None else f"{max(trial['R-hat'] for trial in trials):.2f}"
        count = results.get(f"{name}/{row}/count")
        gradients = "" if count is None else f"{count['gradients']:,.0f}"
        rmse, seconds = (np.mean([trial[key] for trial in trials]) for key in ("RMSE", "seconds"))
        shown = [row, w2, f"{relative:.2f}", off, ratio, f"{rmse:.3f}", rhat, gradients, f"{seconds:.0f}", len(trials)]
        print("| " + " | ".join(map(str, [*shown, ROWS[row].note])) + " |")


def spread(values: list[float]) -> str:
    """Mean and standard deviation over the seeds."""
    error = "" if len(values) < 2 else f" ± {np.std(values, ddof=1):.3f}"
    return f"{np.mean(values):.3f}{error}"


def draw(results: Trials, references: Mapping[str, Reference], file: str | Path):
    """Distance against seconds, a panel a table and a dot a row; the line is that of the reference's halves."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        1, len(references), figsize=(5.5 * len(references), 5), layout="constrained", squeeze=False
    )
    for ax, (name, reference) in zip(panels[0], references.items(), strict=True):
        for k, (family, methods) in enumerate(FAMILIES.items()):
            points = [
                (row, np.mean([c["seconds"] for c in trials]), np.mean([c["W2"] for c in trials]))
                for row, trials in judged(results, name, reference).items()
                if ROWS[row].method in methods
            ]
            for i, (row, seconds, w2) in enumerate(points):
                label = family if i == 0 else None
                ax.plot(seconds, w2, MARKERS[k], color=PALETTE[k], markersize=5, label=label)
                ax.annotate(row, (seconds, w2), xytext=(4, 2), textcoords="offset points", fontsize=6)
        ax.axhline(reference.floor, color="#8C8C8C", linestyle=":", linewidth=1)
        ax.set(
            xscale="log", yscale="log", title=name, xlabel="seconds", ylabel="mean W2 from the reference, a test point"
        )
        ax.spines[["top", "right"]].set_visible(False)
    panels[0][0].legend(frameon=False, fontsize="small")
    figure.savefig(file, dpi=150)
