"""What is measured: each number's name, its definition in words, and which way is better."""

from dataclasses import dataclass
from typing import Literal

from bayeskit.benchmark.data.datasets import Task


@dataclass(frozen=True)
class Measure:
    """A number that every cell reports.

    Args:
        key: Its name in `results.jsonl`.
        title: Its column heading.
        meaning: Its definition for the report.
        better: "low", "high", or "target" for the nearest to `target`.
        digits: Decimals shown.
        target: The ideal value where `better` is "target".
        quality: Whether it is about the predictions; if not it is about cost.
    """

    key: str
    title: str
    meaning: str
    better: Literal["low", "high", "target"] = "low"
    digits: int = 3
    target: float = 0.0
    quality: bool = True

    def loss(self, value: float) -> float:
        """The value turned so that lower is better."""
        return {"low": value, "high": -value, "target": abs(value - self.target)}[self.better]


NLL = Measure(
    "nll",
    "NLL",
    "negative log predictive likelihood of a test point: the marginal law of the observation, noise included, in nats "
    "and in the target's own units",
)
_AURC = Measure(
    "aurc",
    "AURC",
    "area under the risk-coverage curve: mean loss (0/1 for classes, squared error for numbers) when only the most "
    "certain share of the points is answered, averaged over all shares",
)
_REGRESSION = (
    NLL,
    Measure("rmse", "RMSE", "root mean squared error of the predictive mean, in the target's units"),
    Measure("crps", "CRPS", "continuous ranked probability score of the predictive law, in the target's units"),
    Measure(
        "coverage_90",
        "coverage 90 %",
        "share of test points inside their 90 % predictive interval, the central one or the conformal one; the nearest "
        "to 0.90 is best",
        better="target",
        target=0.9,
    ),
    Measure(
        "interval_score_90",
        "interval score",
        "width of that interval, plus 20 times the distance by which a point outside misses it, in the target's units",
    ),
    _AURC,
)
_CLASSIFICATION = (
    NLL,
    Measure("accuracy", "accuracy", "share of test points whose most probable class is right", better="high"),
    Measure("brier", "Brier", "squared distance between class probabilities and outcome, summed over classes"),
    Measure("ece", "ECE", "expected calibration error, 15 bins of equal width, as a fraction"),
    Measure("ece_mass", "ECE equal mass", "the same with 15 bins of equal numbers of points"),
    Measure(
        "set_coverage_90",
        "set coverage 90 %",
        "share of test points whose class is in their 90 % set, the smallest one or the conformal one; a method that "
        "is right more often than that is above 0.90, as one class is often enough",
        better="target",
        target=0.9,
    ),
    Measure("set_size_90", "set size", "mean number of classes in that set, to be read beside its coverage"),
    _AURC,
)
_OOD = (
    Measure(
        "ood_auroc",
        "OOD AUROC",
        "probability that an out-of-distribution input has a larger total predictive uncertainty than a test input",
        better="high",
    ),
    Measure("ood_aupr", "OOD AUPR", "average precision with out-of-distribution inputs as positives", better="high"),
    Measure("ood_fpr95", "OOD FPR95", "share of test inputs flagged when 95 % of the out-of-distribution inputs are"),
)
COST = (
    Measure("fit_seconds", "fit s", "wall-clock seconds to fit, on one thread", digits=2, quality=False),
    Measure("predict_seconds", "predict s", "wall-clock seconds to predict all test points", digits=3, quality=False),
    Measure(
        "peak_memory_mb",
        "peak MB",
        "largest resident memory of the whole worker process during fit and prediction",
        digits=0,
        quality=False,
    ),
)


def measures(task: Task, *, ood: bool) -> tuple[Measure, ...]:
    """The columns of the table for a task: the first score, the seconds, the other scores, and memory last.

    >>> [m.key for m in measures("classification", ood=False)][:4]
    ['nll', 'fit_seconds', 'predict_seconds', 'accuracy']
    """
    first, *others = _REGRESSION if task == "regression" else _CLASSIFICATION
    *seconds, memory = COST
    return (first, *seconds, *others, *(_OOD if ood else ()), memory)
