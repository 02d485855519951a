"""Results of a comparison: scores of every trial, means with standard errors, significance tests and distances."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from bayeskit.benchmark.data.datasets import Task
from bayeskit.benchmark.run import posterior_distances, significance
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
        not_significant: Not the best, and not significantly different from it at the 5 % level, corrected for the
            number of methods; see `bayeskit.benchmark.run.significance`.
    """

    mean: float
    error: float
    best: bool = False
    not_significant: bool = False

    @property
    def tied(self) -> bool:
        """Another name of `not_significant`."""
        return self.not_significant


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
        splits: By seed, the number of its split; empty if every seed has a split of its own.
    """

    name: str
    task: Task
    methods: Sequence[str]
    seeds: Sequence[int]
    store: Store = field(repr=False)
    ood: str | None = None
    notes: Sequence[str] = field(default=(), repr=False)
    baseline: Sequence[float] = field(default=(), repr=False)
    splits: Sequence[int] = field(default=(), repr=False)

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
            adjusted = {} if best is None else self._adjusted(best, metric)
            for method, v in values.items():
                error = float(v.std(ddof=1) / np.sqrt(len(v))) if len(v) > 1 else float("nan")
                mean = float(v.mean()) if len(v) else float("nan")
                not_significant = adjusted.get(method, 0.0) >= significance.LEVEL
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

    @property
    def num_splits(self) -> int:
        """How many different splits the seeds have."""
        return len(set(self.splits)) if self.splits else len(self.seeds)

    @property
    def paired_by(self) -> str:
        """What losses are paired by in tests: "split", "test point" where all seeds share one, "" for one seed."""
        if len(self.seeds) < 2:
            return ""
        return "split" if self.num_splits > 1 else "test point"

    def smallest_detectable(self, best: str, methods: Sequence[str]) -> float:
        """The difference in NLL from the best below which none of these methods could be significant, in nats."""
        count = (len(self.complete) - 1) * (len(self.complete) / 2 if self.paired_by == "test point" else 1)
        pairs = [self._pairs(best, method, NLL) for method in methods]
        factor = self._ratio if self.paired_by == "split" else 0.0
        found = [significance.smallest_detectable(*p, 1 / len(p[0]) + factor, count) for p in pairs if len(p[0]) > 1]
        return min(found, default=float("nan"))

    def _adjusted(self, best: str, metric: Metric) -> dict[str, float]:
        """Adjusted p-values of the differences from the best; none for costs and for a single seed."""
        if not metric.quality or not self.paired_by:
            return {}
        found = {method: self._pairs(best, method, metric) for method in self.complete if method != best}
        if self.paired_by == "split":
            return significance.holm({m: significance.by_split(*pair, self._ratio) for m, pair in found.items()})
        # The best was picked from all, for which no overlap of training sets is allowed for here: all pairs count.
        chosen_from = len(self.complete) / 2
        return significance.holm({m: min(1.0, chosen_from * significance.by_point(*p)) for m, p in found.items()})

    def _pairs(self, first: str, second: str, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
        """Losses of two methods, by split, or by point of the only split where they are stored; each over its seeds."""
        if self.paired_by == "split":
            return self._by_split(first, metric), self._by_split(second, metric)
        if metric.key != NLL.key:  # the others are no means over points
            return np.empty(0), np.empty(0)
        return self._by_point(first), self._by_point(second)

    def _by_split(self, method: str, metric: Metric) -> np.ndarray:
        losses, splits = self._losses(method, metric), np.asarray(self.splits)
        if not len(splits) or len(losses) != len(splits):
            return losses
        return np.array([losses[splits == split].mean() for split in dict.fromkeys(self.splits)])

    def _by_point(self, method: str) -> np.ndarray:
        stored = [self.store.arrays((method, seed)).get("nll") for seed in self.seeds]
        return np.mean([s for s in stored if s is not None], 0) if all(s is not None for s in stored) else np.empty(0)

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
