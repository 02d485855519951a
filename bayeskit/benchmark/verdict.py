"""The answer in sentences: which method to trust here, how sure that is, and what it cost."""

import numpy as np

from bayeskit.benchmark import tables
from bayeskit.benchmark.comparison import Comparison
from bayeskit.benchmark.measures import NLL

_TOO_NARROW = 0.85  # coverage of 90 % intervals below which the answer says so

TRUTH = "nuts"  # the sampler that others are held against where it ran


def verdict(comparison: Comparison) -> list[str]:
    """The answer in up to four sentences, the first of which names the method.

    The measure is the negative log predictive likelihood: a proper score of the whole predictive law.
    """
    if not comparison.complete:
        return ["No method finished every seed, so there is nothing to recommend; the reasons are listed below."]
    if len(comparison.complete) == 1:
        return [f"Only {comparison.complete[0]} finished every seed, so there is nothing to compare it with."]
    best = next((m for m, values in comparison.summary.items() if values[NLL.key].best), None)
    if best is None:
        return ["Every method gave some test point probability zero, so none can be recommended."]
    unfinished = [method for method in comparison.methods if method not in comparison.complete]
    last = [f"Not every seed finished for {_listed(unfinished)}; the reasons are listed below."] if unfinished else []
    return [_first(comparison, best), _how_sure(comparison, best), _cost(comparison, best), *last]


def closeness(comparison: Comparison) -> str:
    """A sentence on which methods believe the same, and who is nearest to the sampled posterior where it ran."""
    names, matrix = comparison.distance_matrix
    if len(names) < 2:
        return ""
    if TRUTH in names and len(names) > 2:
        row = matrix[names.index(TRUTH)].copy()
        row[names.index(TRUTH)] = np.inf
        order = [f"{names[i]} ({row[i]:.2f})" for i in np.argsort(row)[:-1]]
        return f"By distance to {TRUTH}, the sampled posterior, the methods are {', '.join(order)}."
    i, j = np.unravel_index(np.argmin(matrix + np.diag(np.full(len(names), np.inf))), matrix.shape)
    return f"The two methods that believe most nearly the same are {names[i]} and {names[j]} ({matrix[i, j]:.2f})."


def _first(comparison: Comparison, best: str) -> str:
    values = comparison.summary[best]
    score = f"{tables.cell(values[NLL.key], NLL)} nats per test point"
    sentence = f"On {comparison.name}, trust {best}: its negative log-likelihood of {score}"
    sentence += f" is the best of {len(comparison.complete)} methods"
    if comparison.task == "regression":
        held = values["coverage_90"].mean
        if held < _TOO_NARROW:
            sentence = f"{sentence}; but its intervals are too narrow: those of 90 % held only"
        else:
            sentence = f"{sentence}, and its 90 % intervals held"
        return f"{sentence} {_percent(held)} of the test points."
    accuracy, ece = values["accuracy"].mean, values["ece"].mean
    return f"{sentence}, with {100 * accuracy:.1f} % of the classes right and a calibration error of {ece:.3f}."


def _how_sure(comparison: Comparison, best: str) -> str:
    seeds, others = len(comparison.seeds), [m for m in comparison.complete if m != best]
    if seeds == 1:
        return "How sure: one seed says nothing about chance; run it with several seeds before relying on the order."
    score = {method: comparison.summary[method][NLL.key] for method in comparison.complete}
    tied = [method for method in others if score[method].tied]
    nearest = min(tied or others, key=lambda m: score[m].mean)
    behind = f"the nearest, {nearest}, is {score[nearest].mean - score[best].mean:.3g} nats behind"
    if not tied:
        return (
            f"How sure: over {seeds} seeds it is ahead of every other method by more than chance (5 % level); {behind}."
        )
    rivals = "any other method" if len(tied) == len(others) else _listed(tied)
    sentence = f"How sure: over {seeds} seeds it cannot be told from {rivals} at the 5 % level ({behind})"
    return f"{sentence}, so chance may have decided the order among these."


def _cost(comparison: Comparison, best: str) -> str:
    def fit(method: str) -> float:
        return comparison.summary[method]["fit_seconds"].mean

    values = comparison.summary[best]
    memory = values["peak_memory_mb"].mean
    sentence = f"Cost: {_seconds(fit(best))} to fit, {_seconds(values['predict_seconds'].mean)} to predict"
    sentence += f", {memory:.0f} MB at most" if np.isfinite(memory) else ""
    tied = [m for m, v in comparison.summary.items() if v[NLL.key].tied]
    cheapest = min([best, *tied], key=fit)
    if fit(cheapest) < 0.67 * fit(best):
        seconds = _seconds(fit(cheapest))
        return f"{sentence}. Of the methods that cannot be told from it, {cheapest} fits fastest ({seconds})."
    return sentence + "."


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _seconds(value: float) -> str:
    return f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.1f} s" if value < 100 else f"{value / 60:.1f} min"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
