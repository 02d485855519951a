"""What a comparison found: rows, summary with its uncertainty, ties, distances, table, report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bayeskit.benchmark.data.datasets import Task
from bayeskit.benchmark.run import posterior_distances
from bayeskit.benchmark.run.metric_definitions import NLL, Measure, measures
from bayeskit.benchmark.run.store import Store

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Summary:
    """One measure of one method over the seeds that finished.

    Args:
        mean: Mean over seeds.
        error: Standard error of the mean over seeds, NaN with one seed.
        best: No other complete method has a better mean.
        tied: Not the best, but not told apart from it at the 5 % level.
    """

    mean: float
    error: float
    best: bool = False
    tied: bool = False


@dataclass(frozen=True, eq=False)
class Comparison:
    """The answer to one question put to several methods.

    Args:
        name: Of the data.
        task: "regression" or "classification".
        methods: Names, in the order asked.
        seeds: Seeds asked.
        store: The folder with the rows and arrays.
        ood: Name of the out-of-distribution partner, or None.
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
        """One row a cell, seeds within methods; cells that were never run are absent."""
        keys = [(method, seed) for method in self.methods for seed in self.seeds]
        return [self.store.rows[key] for key in keys if key in self.store.rows]

    @cached_property
    def frame(self) -> "pd.DataFrame":
        """The rows as a DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The columns of the table."""
        return measures(self.task, ood=self.ood is not None)

    @cached_property
    def failures(self) -> list[dict[str, Any]]:
        """The rows of cells that ended in an error or at the time limit."""
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
        """`summary[method][measure.key]`, for methods with at least one finished seed, the best likelihood first."""
        table: dict[str, dict[str, Summary]] = {method: {} for method in self.methods if self.done(method)}
        for measure in self.measures:
            values = {method: self._values(method, measure) for method in table}
            best = self._best(values, measure)
            for method, v in values.items():
                error = float(v.std(ddof=1) / np.sqrt(len(v))) if len(v) > 1 else float("nan")
                tied = (
                    best is not None
                    and method in self.complete
                    and method != best
                    and self._tied(best, method, measure)
                )
                mean = float(v.mean()) if len(v) else float("nan")
                table[method][measure.key] = Summary(mean, error, method == best, tied)
        order = sorted(table, key=lambda m: (m not in self.complete, table[m][NLL.key].mean))
        return {method: table[method] for method in order}

    @cached_property
    def distances(self) -> "pd.DataFrame":
        """How far the methods' beliefs lie from each other, averaged over seeds; see `posterior_distances`."""
        import pandas as pd

        names, matrix = self.distance_matrix
        return pd.DataFrame(matrix, index=names, columns=names)

    @cached_property
    def distance_matrix(self) -> tuple[list[str], np.ndarray]:
        """The methods that have a distance, and the symmetric matrix."""
        stored = {m: [self.store.arrays((m, s)) for s in self.seeds] for m in self.complete}
        return posterior_distances.pairwise(stored, self.task)

    @property
    def report(self) -> Path:
        """The path of `report.html`."""
        return self.store.folder / "report.html"

    def to_markdown(self) -> str:
        """The table: mean and standard error over seeds, best in bold, ties marked, and what the marks mean."""
        from bayeskit.benchmark.report import result_tables

        return result_tables.markdown(self)

    def __str__(self) -> str:
        return self.to_markdown()

    def _repr_html_(self) -> str:
        from bayeskit.benchmark.report import result_tables

        return result_tables.html(self)

    def _values(self, method: str, measure: Measure) -> np.ndarray:
        found = [row.get(measure.key) for row in self.done(method)]
        return np.array([value for value in found if value is not None], dtype=float)

    def _losses(self, method: str, measure: Measure) -> np.ndarray:
        return np.array([measure.loss(value) for value in self._values(method, measure)])

    def _tied(self, best: str, method: str, measure: Measure) -> bool:
        losses = self._losses(best, measure), self._losses(method, measure)
        return measure.quality and len(self.seeds) > 1 and not told_apart(*losses, self._ratio)

    def _best(self, values: Mapping[str, np.ndarray], measure: Measure) -> str | None:
        means = {m: measure.loss(float(values[m].mean())) for m in self.complete if len(values[m])}
        means = {m: loss for m, loss in means.items() if np.isfinite(loss)}
        return min(means, key=lambda m: means[m]) if len(means) > 1 else None

    @property
    def _ratio(self) -> float:
        """Test rows for each training row."""
        row = next(row for row in self.rows if row["status"] == "ok")
        return row["num_test"] / row["num_train"]


def told_apart(first: np.ndarray, second: np.ndarray, ratio: float, *, level: float = 0.05) -> bool:
    """Whether two methods' losses, paired by seed, differ by more than chance.

    The corrected resampled t-test: with d the differences over J seeds, t = mean(d) / sqrt((1 / J + ratio) var(d)) on
    J - 1 degrees of freedom. The added ratio of test to training rows accounts for training sets that overlap. One
    seed tells nothing apart from anything but itself, and gives False.

    Args:
        first: Losses (J,).
        second: Losses (J,), the same seeds.
        ratio: Test rows for each training row.
        level: Probability of seeing a difference where there is none.

    References:
        Nadeau and Bengio (2003), Inference for the generalization error, section 4.

    >>> told_apart(np.array([0.1, 0.11, 0.1]), np.array([0.5, 0.52, 0.5]), 0.25)
    True
    >>> told_apart(np.array([0.1, 0.3, 0.2]), np.array([0.2, 0.2, 0.3]), 0.25)
    False
    """
    from scipy.stats import t

    if len(first) != len(second) or len(first) < 2:
        return False
    with np.errstate(invalid="ignore"):  # infinite losses leave a NaN, which is not a tie
        difference = first - second
        spread = np.sqrt((1 / len(difference) + ratio) * difference.var(ddof=1))
        size = abs(difference.mean())
    return not size <= spread * t.ppf(1 - level / 2, len(difference) - 1)
