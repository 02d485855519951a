"""The conclusions of a comparison in sentences: the best method, the significance of its lead, and its cost."""

import numpy as np

from bayeskit.benchmark.report import result_tables
from bayeskit.benchmark.run.metric_definitions import NLL
from bayeskit.benchmark.run.results import Results

_TOO_NARROW = 0.85  # coverage of 90 % intervals below which they are reported as too narrow

REFERENCE = "nuts"  # the sampler whose posterior is the reference where it ran


def conclusions(results: Results) -> list[str]:
    """A few sentences, the first of which claims no more than the significance test supports.

    Methods are ranked by the negative log predictive density: a proper score of the whole predictive distribution.
    """
    if not results.complete:
        return ["No method finished every seed, so there is nothing to recommend; the reasons are listed below."]
    if len(results.complete) == 1:
        return [
            f"Only {results.complete[0]} finished every seed, so there is nothing to compare it with.",
            *_no_better(results),
        ]
    best = next((m for m, values in results.summary.items() if values[NLL.key].best), None)
    if best is None:
        return ["Every method assigned probability zero to some test point, so none can be recommended."]
    unfinished = [method for method in results.methods if method not in results.complete]
    last = [f"Not every seed finished for {_listed(unfinished)}; the reasons are listed below."] if unfinished else []
    others = [method for method in results.summary if results.summary[method][NLL.key].not_significant]
    ranking = [*_headline(results, best, others), _significance(results, best, others), _cost(results, best, others)]
    return [*ranking, *_no_better(results), *last]


def closest(results: Results) -> str:
    """A sentence on the methods' distances to the sampled reference posterior, or on the closest pair without one."""
    names, matrix = results.distance_matrix
    if len(names) < 2:
        return ""
    if REFERENCE in names and len(names) > 2:
        row = matrix[names.index(REFERENCE)].copy()
        row[names.index(REFERENCE)] = np.inf
        order = [f"{names[i]} ({row[i]:.2f})" for i in np.argsort(row)[:-1]]
        return f"Distances to the reference posterior sampled by {REFERENCE}: {', '.join(order)}."
    i, j = np.unravel_index(np.argmin(matrix + np.diag(np.full(len(names), np.inf))), matrix.shape)
    return f"The closest pair is {names[i]} and {names[j]} ({matrix[i, j]:.2f})."


def _headline(results: Results, best: str, others: list[str]) -> list[str]:
    """The best method with its scores; a sentence before it if others are not significantly different."""
    count, score = len(results.complete), results.summary[best][NLL.key]
    nats = f"{result_tables.mean_and_error(score, NLL)} nats per test point"
    if len(results.seeds) == 1:
        first = f"One seed only: on {results.name} {best} has the lowest negative log-likelihood of {count} methods"
        return [f"{first}, {nats}{_calibration(results, best)}."]
    if not others:
        first = f"On {results.name} {best} is significantly better than every other method: its negative log-likelihood"
        return [f"{first} of {nats} is the lowest of {count} methods{_calibration(results, best)}."]
    lead = min(results.summary[m][NLL.key].mean for m in results.complete if m != best) - score.mean
    return [
        f"On {results.name} no single method is significantly best: {_listed(others)} "
        f"{'is' if len(others) == 1 else 'are'} not significantly different from {best}, the best by "
        f"{f'{lead:.2g}' if lead >= 1e-3 else 'less than 0.001'} nats.",
        f"Recommended among them is {best}, which has the lowest mean: its negative log-likelihood is {nats}"
        f"{_calibration(results, best)}.",
    ]


def _calibration(results: Results, method: str) -> str:
    """The method's coverage or calibration error, as the end of a sentence."""
    values = results.summary[method]
    if results.task == "classification":
        accuracy, ece = values["accuracy"].mean, values["ece"].mean
        return f", with an accuracy of {100 * accuracy:.1f} % and an expected calibration error (ECE) of {ece:.3f}"
    covered = values["coverage_90"].mean
    if covered < _TOO_NARROW:
        return f"; but it is over-confident: its 90 % intervals cover only {_percent(covered)} of the test points"
    return f", and its 90 % intervals cover {_percent(covered)} of the test points"


def _significance(results: Results, best: str, others: list[str]) -> str:
    seeds = len(results.seeds)
    if seeds == 1:
        return "Significance: one seed permits no test; run several seeds before relying on the order."
    if others:
        smallest = results.smallest_detectable(best, others)
        power = f" {_counted(results)} cannot show a difference below {smallest:.2g} nats here." * (smallest > 0)
        return (
            f"Significance: a test paired by {results.paired_by}, over {_counted(results)} and corrected for "
            f"{len(results.complete)} methods, finds no difference between these at the 5 % level; the order "
            f"among them may be due to chance.{power}"
        )
    score = {method: results.summary[method][NLL.key].mean for method in results.complete}
    second = min((m for m in results.complete if m != best), key=lambda m: score[m])
    return (
        f"Significance: over {_counted(results)}, paired by {results.paired_by}, its difference from every other "
        f"method is significant at the 5 % level; the second best, {second}, is {score[second] - score[best]:.3g} nats "
        "behind."
    )


def _counted(results: Results) -> str:
    """What a test has seen."""
    if results.paired_by == "test point":
        count = next(row for row in results.rows if row["status"] == "ok")["num_test"]
        return f"{count} test points of one split"
    return f"{results.num_splits} splits"


def _cost(results: Results, best: str, others: list[str]) -> str:
    def fit(method: str) -> float:
        return results.summary[method]["fit_seconds"].mean

    values = results.summary[best]
    memory = values["peak_memory_mb"].mean
    sentence = f"Cost of {best}: {_seconds(fit(best))} to fit, {_seconds(values['predict_seconds'].mean)} to predict"
    sentence += f", {memory:.0f} MB peak memory" if np.isfinite(memory) else ""
    cheapest = min([best, *others], key=fit)
    if fit(cheapest) < 0.67 * fit(best):
        sentence += f". Of the methods not significantly different from it, {cheapest} is the fastest to fit "
        sentence += f"({_seconds(fit(cheapest))})"
        sentence += _calibration(results, cheapest)
    return sentence + "."


def _no_better(results: Results) -> list[str]:
    """A warning about methods whose score does not exceed that of a prediction that ignores the inputs."""
    if not results.baseline:
        return []
    level = {m: float(np.mean([results.baseline[r["seed"]] for r in results.done(m)])) for m in results.summary}
    poor = [m for m, values in results.summary.items() if values[NLL.key].mean >= level[m]]
    if not poor:
        return []
    trivial = "the class frequencies of the training set"
    if results.task == "regression":
        trivial = "a Gaussian with the mean and standard deviation of the training targets"
    verb = "score" if len(poor) > 1 else "scores"
    return [f"Warning: {_listed(poor)} {verb} no better than predicting {trivial} (NLL {level[poor[0]]:.3f})."]


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _seconds(value: float) -> str:
    return f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.1f} s" if value < 100 else f"{value / 60:.1f} min"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
