"""Results of a comparison: scores of every trial, means with standard errors, significance tests and distances."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from bayeskit.benchmark.data.datasets import Task
from bayeskit.benchmark.run import posterior_distances
from bayeskit.benchmark.run.metric_definitions import NLL, Metric, table_metrics
from bayeskit.benchmark.run.store import Store

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Summary:
    """One metric of one method over the seeds that finished.

    Args:
        mean: Mean over seeds.
        error: Standard error of the mean over seeds, NaN with one seed.
        best: No other complete method has a lower mean loss over seeds; the loss of a coverage is its distance to the
            target, seed by seed.
        not_significant: Not the best, and not significantly different from it at the 5 % level.
    """

    mean: float
    error: float
    best: bool = False
    not_significant: bool = False


@dataclass(frozen=True, eq=False)
class Results:
    """Scores of several methods on one data set over seeds, and the statistics computed from them.

    Args:
        name: Of the data.
        task: "regression" or "classification".
        methods: Names, in the order given.
        seeds: Seeds given.
        store: The folder with the rows and arrays.
        ood: Name of the out-of-distribution data, or None.
        notes: Sentences on how the data were read and prepared.
        baseline: By seed, the NLL of a prediction that ignores the inputs; see `bayeskit.benchmark.run.baseline`.
    """

    name: str
    task: Task
    methods: Sequence[str]
    seeds: Sequence[int]
    store: Store = field(repr=False)
    ood: str | None = None
    notes: Sequence[str] = field(default=(), repr=False)
    baseline: Sequence[float] = field(default=(), repr=False)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """One row for each trial that was run, seeds within methods."""
        keys = [(method, seed) for method in self.methods for seed in self.seeds]
        return [self.store.rows[key] for key in keys if key in self.store.rows]

    @cached_property
    def frame(self) -> "pd.DataFrame":
        """The rows as a DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The columns of the table."""
        return table_metrics(self.task, ood=self.ood is not None)

    @cached_property
    def failures(self) -> list[dict[str, Any]]:
        """The rows of trials that ended in an error or at the time limit."""
        return [row for row in self.rows if row["status"] != "ok"]

    def done(self, method: str) -> list[dict[str, Any]]:
        """The rows of a method that finished."""
        return [row for row in self.rows if row["method"] == method and row["status"] == "ok"]

    @cached_property
    def complete(self) -> list[str]:
        """The methods that finished every seed; only these can be best."""
        return [method for method in self.methods if len(self.done(method)) == len(self.seeds)]

    @cached_property
    def summary(self) -> Mapping[str, Mapping[str, Summary]]:
        """`summary[method][metric.key]`, for methods with at least one finished seed, sorted by NLL."""
        table: dict[str, dict[str, Summary]] = {method: {} for method in self.methods if self.done(method)}
        for metric in self.metrics:
            values = {method: self._values(method, metric) for method in table}
            best = self._best(metric)
            for method, v in values.items():
                error = float(v.std(ddof=1) / np.sqrt(len(v))) if len(v) > 1 else float("nan")
                mean = float(v.mean()) if len(v) else float("nan")
                compared = method in self.complete and best not in (None, method)
                not_significant = compared and self._not_significant(str(best), method, metric)
                table[method][metric.key] = Summary(mean, error, method == best, not_significant)
        order = sorted(table, key=lambda m: (m not in self.complete, table[m][NLL.key].mean))
        return {method: table[method] for method in order}

    @cached_property
    def distances(self) -> "pd.DataFrame":
        """Distances between the methods' posteriors, averaged over seeds; see `posterior_distances`."""
        import pandas as pd

        names, matrix = self.distance_matrix
        return pd.DataFrame(matrix, index=names, columns=names)

    @cached_property
    def distance_matrix(self) -> tuple[list[str], np.ndarray]:
        """The methods that have a distance, and the symmetric matrix."""
        stored = {m: [self.store.arrays((m, s)) for s in self.seeds] for m in self.complete}
        return posterior_distances.pairwise(stored, self.task)

    def _values(self, method: str, metric: Metric) -> np.ndarray:
        found = [row.get(metric.key) for row in self.done(method)]
        return np.array([value for value in found if value is not None], dtype=float)

    def _losses(self, method: str, metric: Metric) -> np.ndarray:
        return np.array([metric.loss(value) for value in self._values(method, metric)])

    def _not_significant(self, best: str, method: str, metric: Metric) -> bool:
        losses = self._losses(best, metric), self._losses(method, metric)
        return metric.quality and len(self.seeds) > 1 and not significantly_different(*losses, self._ratio)

    def _best(self, metric: Metric) -> str | None:
        losses = {m: self._losses(m, metric) for m in self.complete}
        means = {m: float(loss.mean()) for m, loss in losses.items() if len(loss)}
        means = {m: loss for m, loss in means.items() if np.isfinite(loss)}
        return min(means, key=lambda m: means[m]) if len(means) > 1 else None

    @property
    def _ratio(self) -> float:
        """Number of test points over number of training points."""
        row = next(row for row in self.rows if row["status"] == "ok")
        return row["num_test"] / row["num_train"]


def significantly_different(first: np.ndarray, second: np.ndarray, ratio: float, *, level: float = 0.05) -> bool:
    """Whether two methods' losses, paired by seed, differ significantly.

    The corrected resampled t-test: with d the differences over J seeds, t = mean(d) / sqrt((1 / J + ratio) var(d)) on
    J - 1 degrees of freedom. The added ratio of test to training points accounts for training sets that overlap. With
    one seed there is no test, and the result is False.

    Args:
        first: Losses (J,).
        second: Losses (J,), the same seeds.
        ratio: Number of test points over number of training points.
        level: Significance level, the probability of a false positive.

    References:
        Nadeau and Bengio (2003), Inference for the generalization error, section 4.

    >>> significantly_different(np.array([0.1, 0.11, 0.1]), np.array([0.5, 0.52, 0.5]), 0.25)
    True
    >>> significantly_different(np.array([0.1, 0.3, 0.2]), np.array([0.2, 0.2, 0.3]), 0.25)
    False
    """
    from scipy.stats import t

    if len(first) != len(second) or len(first) < 2:
        return False
    with np.errstate(invalid="ignore"):  # infinite losses leave a NaN, which counts as different
        difference = first - second
        spread = np.sqrt((1 / len(difference) + ratio) * difference.var(ddof=1))
        size = abs(difference.mean())
    return not size <= spread * t.ppf(1 - level / 2, len(difference) - 1)
