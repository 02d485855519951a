"""`compare` runs every method on every seed and writes the report; `Comparison` is its result."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bayeskit.benchmark.data import datasets, requested_division
from bayeskit.benchmark.data.datasets import Dataset, Task
from bayeskit.benchmark.report import html_report, result_tables
from bayeskit.benchmark.run import baseline, runner
from bayeskit.benchmark.run.problem import problems, split
from bayeskit.benchmark.run.results import Results
from bayeskit.benchmark.run.runner import Methods
from bayeskit.benchmark.run.store import Store
from bayeskit.core import checks, progress


class Comparison(Results):
    """The scores of several methods on one data set, with the table and the report made of them."""

    @property
    def report(self) -> Path:
        """The path of `report.html`."""
        return html_report.path(self)

    def to_markdown(self) -> str:
        """The table: mean and standard error over seeds, the best in bold, and what the marks mean."""
        return result_tables.markdown(self)

    def __str__(self) -> str:
        return self.to_markdown()

    def _repr_html_(self) -> str:
        return html_report.table(self)


def compare(
    data: "str | Path | Dataset",
    *,
    target: str | None = None,
    task: Task | None = None,
    methods: Methods = "stable",
    seeds: int | None = None,
    groups: Any = None,
    time: Any = None,
    folds: int | None = None,
    ood: str | None = None,
    time_limit: float | None = None,
    out: str | Path | None = None,
    n_jobs: int | None = None,
    verbose: bool = False,
) -> Comparison:
    """Compare the posterior predictive distributions of several methods on one data set, and write a report.

    Every pair of a method and a seed is fitted in a process of its own with one thread, on the same split of the data.
    Results are written to `out` as they are computed; a second call with the same arguments only computes what is
    missing, ended in an error, or was computed by another version of the library.

    Args:
        data: A name or a file (see `bayeskit.benchmark.data.datasets`), or a `Dataset`.
        target: Column to predict; the last one if None.
        task: "regression" or "classification"; inferred from the target if None.
        methods: "stable" (all registered for the task but experimental ones), "all", "fast" (the stable ones that run
            no Markov chain), a name or several, or a mapping from names to estimators of your own. A suffix, as in
            "map+temperature", "map+isotonic" or "map+conformal", calibrates post hoc (`registry.POST_HOC`).
        seeds: Number of seeds; each has its own split and its own `random_state`. None for 3, or the number of folds.
        groups: Column (or values, one for each row) whose equal rows are never in both training and test set.
        time: Column (or values) in whose order the rows are: test rows are later than all training rows.
        folds: Number K of folds: each seed holds out one of them in turn; None holds out a fifth.
        ood: Data whose inputs are out of distribution, with the same columns.
        time_limit: Seconds that one fit with its predictions may take before it is stopped.
        out: Folder for results and report; `compare-NAME` if None.
        n_jobs: Processes; as many as there are processors if None.
        verbose: Show progress on stderr.

    Returns:
        A `Comparison`: `rows`, `frame`, `summary`, `distances`, `to_markdown()` and the path `report`.

    Raises:
        ValueError: An argument is invalid, or `out` holds the results of a comparison of other data.
        FileNotFoundError: There is no such file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = compare("linnerud", methods=["exact"], seeds=1, out=folder, n_jobs=1)
    ...     result.report.name, result.rows[0]["status"]
    ('report.html', 'ok')
    """
    seeds = (3 if folds is None else folds) if seeds is None else seeds
    checks.positive(seeds, name="seeds", integer=True)
    if time_limit is not None:
        checks.positive(time_limit, name="time_limit")
    dataset = data if isinstance(data, Dataset) else datasets.load(str(data), target=target, task=task)
    dataset = requested_division.divided(dataset, groups, time, folds)
    outside = None if ood is None else datasets.load_inputs(ood, dataset)
    estimators = runner.select(methods, dataset.task)
    store = Store(_folder(out, dataset, ood), _settings(dataset, target, ood, [groups, time, folds]))
    problem, notes = problems(dataset, outside, seeds)
    trials = runner.pending(estimators, dataset.task, seeds, store, time_limit)
    with progress.shown(verbose), progress.track(len(trials), f"comparing on {dataset.name}") as bar:
        for count, result in enumerate(runner.run(trials, problem, time_limit, n_jobs), 1):
            store.add(result)
            bar.update(1, **{k: result.row[k] for k in ("nll",) if k in result.row})
            if verbose and not sys.stderr.isatty():
                print(f"[{count}/{len(trials)}] {_line(result.row)}", file=sys.stderr, flush=True)
    trivial = [_baseline(dataset, seed) for seed in range(seeds)]
    known = {"ood": ood, "notes": notes, "baseline": trivial, "splits": _splits(dataset, seeds)}
    comparison = Comparison(dataset.name, dataset.task, list(estimators), range(seeds), store, **known)
    html_report.write(comparison)
    return comparison


def _splits(dataset: Dataset, seeds: int) -> list[int]:
    """The number of each seed's split: equal where seeds have the same test set."""
    tests = [sorted(dataset.split(seed)[1].tolist()) for seed in range(seeds)]
    return [tests.index(test) for test in tests]


def _folder(out: str | Path | None, dataset: Dataset, ood: str | None) -> Path:
    if out is not None:
        return Path(out).expanduser()
    return Path("compare-" + re.sub(r"[^\w.-]+", "-", dataset.name + (f"-vs-{Path(ood).stem}" if ood else "")))


def _settings(dataset: Dataset, target: str | None, ood: str | None, split: list[Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {"data": dataset.name, "task": dataset.task, "target": target, "ood": ood}
    for name, value in zip(("groups", "time", "folds"), split, strict=True):
        settings[name] = value if value is None or isinstance(value, str | int) else "values"
    return {**settings, "content": dataset.fingerprint(), "format": 1}


def _baseline(dataset: Dataset, seed: int) -> float:
    train, test = split(dataset, seed)
    return baseline.nll(dataset.task, dataset.y[train], dataset.y[test])


def _line(row: Mapping[str, Any]) -> str:
    head = f"{row['method']}, seed {row['seed']}: "
    if row["status"] != "ok":
        return f"{head}{row['status']}: {row['reason']}"
    return f"{head}NLL {row['nll']:.3f}, fit {row['fit_seconds']:.1f} s"
