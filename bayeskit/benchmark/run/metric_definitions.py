"""The metrics of a comparison: names, definitions in words, and which direction is better."""

from dataclasses import dataclass
from typing import Literal

from bayeskit.benchmark.data.datasets import Task


@dataclass(frozen=True)
class Metric:
    """A number that every trial reports.

    Args:
        key: Name in `results.jsonl`.
        title: Column heading.
        meaning: Definition for the report.
        better: "low", "high", or "target" for closeness to `target`.
        digits: Decimals shown.
        target: The ideal value where `better` is "target".
        quality: Whether it measures the predictions; if not, it measures cost.
    """

    key: str
    title: str
    meaning: str
    better: Literal["low", "high", "target"] = "low"
    digits: int = 3
    target: float = 0.0
    quality: bool = True

    def loss(self, value: float) -> float:
        """The value transformed so that lower is better."""
        return {"low": value, "high": -value, "target": abs(value - self.target)}[self.better]


NLL = Metric(
    "nll",
    "NLL",
    "mean negative log posterior predictive density (or probability) of a test point, observation noise included, in "
    "nats and in the target's own units",
)
_AURC = Metric(
    "aurc",
    "AURC",
    "area under the risk-coverage curve: mean loss (0/1 for classes, squared error for numbers) on the fraction of "
    "points with the lowest predictive uncertainty, averaged over all fractions",
)
_REGRESSION = (
    NLL,
    Metric("rmse", "RMSE", "root mean squared error of the predictive mean, in the target's units"),
    Metric(
        "crps",
        "CRPS",
        "continuous ranked probability score of the posterior predictive distribution, in the target's units",
    ),
    Metric(
        "coverage_90",
        "coverage 90 %",
        "fraction of test points inside their 90 % predictive interval, central or conformal; the one closest to "
        "0.90, on average over the seeds, is best",
        better="target",
        target=0.9,
    ),
    Metric(
        "interval_score_90",
        "interval score",
        "mean width of that interval, plus 20 times the distance to it of a point outside, in the target's units",
    ),
    _AURC,
)
_CLASSIFICATION = (
    NLL,
    Metric("accuracy", "accuracy", "fraction of test points whose most probable class is correct", better="high"),
    Metric("brier", "Brier", "squared distance between class probabilities and outcome, summed over classes"),
    Metric("ece", "ECE", "expected calibration error, 15 bins of equal width, as a fraction"),
    Metric("ece_mass", "ECE equal mass", "expected calibration error with 15 bins of equal numbers of points"),
    Metric(
        "set_coverage_90",
        "set coverage 90 %",
        "fraction of test points whose class is in their 90 % prediction set, highest-probability or conformal; a "
        "method with an accuracy above 90 % exceeds 0.90, because a set holds at least one class",
        better="target",
        target=0.9,
    ),
    Metric("set_size_90", "set size", "mean number of classes in that set, to be read with its coverage"),
    _AURC,
)
_OOD = (
    Metric(
        "ood_auroc",
        "OOD AUROC",
        "probability that an out-of-distribution input has a larger total predictive uncertainty than a test input",
        better="high",
    ),
    Metric("ood_aupr", "OOD AUPR", "average precision with out-of-distribution inputs as positives", better="high"),
    Metric(
        "ood_fpr95",
        "OOD FPR95",
        "fraction of test inputs flagged as out of distribution when 95 % of the out-of-distribution inputs are",
    ),
)
COST = (
    Metric("fit_seconds", "fit s", "wall-clock seconds to fit, on one thread", digits=2, quality=False),
    Metric("predict_seconds", "predict s", "wall-clock seconds to predict all test points", digits=3, quality=False),
    Metric(
        "peak_memory_mb",
        "peak MB",
        "peak resident memory of the worker process during fit and prediction",
        digits=0,
        quality=False,
    ),
)


def table_metrics(task: Task, *, ood: bool) -> tuple[Metric, ...]:
    """The columns of the table for a task: NLL, the times, the other scores, and memory last.

    >>> [m.key for m in table_metrics("classification", ood=False)][:4]
    ['nll', 'fit_seconds', 'predict_seconds', 'accuracy']
    """
    first, *others = _REGRESSION if task == "regression" else _CLASSIFICATION
    *seconds, memory = COST
    return (first, *seconds, *others, *(_OOD if ood else ()), memory)
