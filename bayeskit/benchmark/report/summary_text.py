"""The answer in sentences: which method to trust here, how sure that is, and what it cost."""

import numpy as np

from bayeskit.benchmark.report import result_tables
from bayeskit.benchmark.run.comparison import Comparison
from bayeskit.benchmark.run.metric_definitions import NLL

_TOO_NARROW = 0.85  # coverage of 90 % intervals below which the answer says so

TRUTH = "nuts"  # the sampler that others are held against where it ran


def verdict(comparison: Comparison) -> list[str]:
    """The answer in a few sentences, the first of which claims no more than the seeds show.

    The measure is the negative log predictive likelihood: a proper score of the whole predictive law.
    """
    if not comparison.complete:
        return ["No method finished every seed, so there is nothing to recommend; the reasons are listed below."]
    if len(comparison.complete) == 1:
        return [
            f"Only {comparison.complete[0]} finished every seed, so there is nothing to compare it with.",
            *_no_better(comparison),
        ]
    best = next((m for m, values in comparison.summary.items() if values[NLL.key].best), None)
    if best is None:
        return ["Every method gave some test point probability zero, so none can be recommended."]
    unfinished = [method for method in comparison.methods if method not in comparison.complete]
    last = [f"Not every seed finished for {_listed(unfinished)}; the reasons are listed below."] if unfinished else []
    tied = [method for method in comparison.summary if comparison.summary[method][NLL.key].tied]
    answer = [*_headline(comparison, best, tied), _how_sure(comparison, best, tied), _cost(comparison, best, tied)]
    return [*answer, *_no_better(comparison), *last]


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


def _headline(comparison: Comparison, best: str, tied: list[str]) -> list[str]:
    """What can be claimed, in the first sentence; where it is not the method's own scores, they follow in a second."""
    count, score = len(comparison.complete), comparison.summary[best][NLL.key]
    nats = f"{result_tables.cell(score, NLL)} nats per test point"
    if len(comparison.seeds) == 1:
        first = f"One seed only: on {comparison.name} {best} comes first of {count} methods, perhaps by chance"
        return [f"{first}; its negative log-likelihood is {nats}{_calibrated(comparison, best)}."]
    if not tied:
        first = f"On {comparison.name}, trust {best}: its negative log-likelihood of {nats} is the best of"
        return [f"{first} {count} methods{_calibrated(comparison, best)}."]
    lead = min(comparison.summary[m][NLL.key].mean for m in comparison.complete if m != best) - score.mean
    return [
        f"On {comparison.name} no method clearly wins: {_listed(tied)} cannot be told from {best}, the best by "
        f"{f'{lead:.2g}' if lead >= 1e-3 else 'less than 0.001'} nats.",
        f"Recommended among them is {best}, by the smallest mean: its negative log-likelihood is {nats}"
        f"{_calibrated(comparison, best)}.",
    ]


def _calibrated(comparison: Comparison, method: str) -> str:
    """How far the method's statements held, as the end of a sentence."""
    values = comparison.summary[method]
    if comparison.task == "classification":
        accuracy, ece = values["accuracy"].mean, values["ece"].mean
        return f", with {100 * accuracy:.1f} % of the classes right and a calibration error (ECE) of {ece:.3f}"
    held = values["coverage_90"].mean
    if held < _TOO_NARROW:
        return f"; but its intervals are too narrow: those of 90 % held only {_percent(held)} of the test points"
    return f", and its 90 % intervals held {_percent(held)} of the test points"


def _how_sure(comparison: Comparison, best: str, tied: list[str]) -> str:
    seeds, others = len(comparison.seeds), [m for m in comparison.complete if m != best]
    if seeds == 1:
        return "How sure: one seed says nothing about chance; run it with several seeds before relying on the order."
    if tied:
        return (
            f"How sure: over {seeds} seeds a test paired by seed does not tell these apart at the 5 % level, so chance "
            "may have decided the order among them."
        )
    score = {method: comparison.summary[method][NLL.key].mean for method in comparison.complete}
    nearest = min(others, key=lambda m: score[m])
    return (
        f"How sure: over {seeds} seeds it is ahead of every other method by more than chance (5 % level); the nearest, "
        f"{nearest}, is {score[nearest] - score[best]:.3g} nats behind."
    )


def _cost(comparison: Comparison, best: str, tied: list[str]) -> str:
    def fit(method: str) -> float:
        return comparison.summary[method]["fit_seconds"].mean

    values = comparison.summary[best]
    memory = values["peak_memory_mb"].mean
    sentence = f"Cost of {best}: {_seconds(fit(best))} to fit, {_seconds(values['predict_seconds'].mean)} to predict"
    sentence += f", {memory:.0f} MB at most" if np.isfinite(memory) else ""
    cheapest = min([best, *tied], key=fit)
    if fit(cheapest) < 0.67 * fit(best):
        sentence += f". Of the methods that cannot be told from it, {cheapest} fits fastest ({_seconds(fit(cheapest))})"
        sentence += _calibrated(comparison, cheapest)
    return sentence + "."


def _no_better(comparison: Comparison) -> list[str]:
    """A warning about the methods that learnt nothing: a prediction that ignores the inputs scores as well."""
    if not comparison.baseline:
        return []
    level = {
        m: float(np.mean([comparison.baseline[r["seed"]] for r in comparison.done(m)])) for m in comparison.summary
    }
    poor = [m for m, values in comparison.summary.items() if values[NLL.key].mean >= level[m]]
    if not poor:
        return []
    trivial = "the class frequencies of the training rows"
    if comparison.task == "regression":
        trivial = "a Gaussian with the mean and spread of the training targets"
    verb = "score" if len(poor) > 1 else "scores"
    return [f"Warning: {_listed(poor)} {verb} no better than predicting {trivial} (NLL {level[poor[0]]:.3f})."]


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _seconds(value: float) -> str:
    return f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.1f} s" if value < 100 else f"{value / 60:.1f} min"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
