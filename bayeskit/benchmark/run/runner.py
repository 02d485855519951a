"""`compare`: every method, every seed, in parallel, resumable, and never a silent gap."""

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bayeskit import __version__, registry
from bayeskit.benchmark.data import datasets, encoding
from bayeskit.benchmark.data.datasets import Dataset, Task
from bayeskit.benchmark.run import baseline, trial
from bayeskit.benchmark.run.comparison import Comparison
from bayeskit.benchmark.run.store import Key, Store
from bayeskit.benchmark.run.trial import Problem, Result
from bayeskit.core import checks, progress

MAX_OOD = 2_000
"""Out-of-distribution inputs asked about, drawn at random from more."""

Methods = str | Sequence[str] | Mapping[str, Any]
_Call = tuple[Key, str, Callable[[], Any] | Any]


def compare(
    data: "str | Path | Dataset",
    *,
    target: str | None = None,
    task: Task | None = None,
    methods: Methods = "all",
    seeds: int = 3,
    ood: str | None = None,
    time_limit: float | None = None,
    out: str | Path | None = None,
    n_jobs: int | None = None,
    verbose: bool = False,
) -> Comparison:
    """Ask several methods the same question and report what each believes, how good it is and what it cost.

    Every pair of a method and a seed is fitted in a process of its own with one thread, on the same split of the data.
    Results are written to `out` as they come; a second call with the same question goes on where the first one
    stopped, and only computes what is missing, ended in an error, or came from another version of the library.

    Args:
        data: A name or a file (see `bayeskit.benchmark.data.datasets`), or a `Dataset`.
        target: Column to predict; the last one if None.
        task: "regression" or "classification"; guessed from the target if None, and said in the report.
        methods: "all" registered for the task, "fast" (without those that run a Markov chain), a name or several, or
            a mapping from names to estimators of your own. A name may go on, "map+temperature", "map+isotonic" or
            "map+conformal", for a calibration around the method (`registry.AROUND`).
        seeds: Number of seeds; each has its own split and its own `random_state`.
        ood: Data whose inputs are out of distribution, with the same columns.
        time_limit: Seconds that one fit with its predictions may take before it is stopped.
        out: Folder for results and report; `compare-NAME` if None.
        n_jobs: Processes; as many as there are processors if None.
        verbose: Show progress on stderr.

    Returns:
        A `Comparison`: `rows`, `frame`, `summary`, `distances`, `to_markdown()` and the path `report`.

    Raises:
        ValueError: An argument is not what it should be, or `out` holds the answers to another question.
        FileNotFoundError: There is no such file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = compare("linnerud", methods=["exact"], seeds=1, out=folder, n_jobs=1)
    ...     result.report.name, result.rows[0]["status"]
    ('report.html', 'ok')
    """
    checks.positive(seeds, name="seeds", integer=True)
    if time_limit is not None:
        checks.positive(time_limit, name="time_limit")
    dataset = data if isinstance(data, Dataset) else datasets.load(str(data), target=target, task=task)
    outside = None if ood is None else datasets.load_inputs(ood, dataset)
    estimators = _estimators(methods, dataset.task)
    store = Store(_folder(out, dataset, ood), _settings(dataset, target, ood))
    problems, notes = _problems(dataset, outside, seeds)
    todo = [
        (method, seed)
        for seed in range(seeds)
        for method in estimators
        if not _settled(store, (method, seed), estimators[method], time_limit)
    ]
    calls = [((method, seed), *_call(method, estimators[method], dataset.task, seed)) for method, seed in todo]
    with progress.shown(verbose), progress.track(len(calls), f"comparing on {dataset.name}") as bar:
        for count, result in enumerate(_results(calls, problems, time_limit, n_jobs), 1):
            store.add(result)
            bar.update(1, **{k: result.row[k] for k in ("nll",) if k in result.row})
            if verbose and not sys.stderr.isatty():
                print(f"[{count}/{len(calls)}] {_line(result.row)}", file=sys.stderr, flush=True)
    trivial = [_trivial(dataset, seed) for seed in range(seeds)]
    comparison = Comparison(dataset.name, dataset.task, list(estimators), range(seeds), store, ood, notes, trivial)
    from bayeskit.benchmark.report import html_report

    html_report.write(comparison)
    return comparison


def _estimators(methods: Methods, task: Task) -> dict[str, Any]:
    """Name to a user's own estimator, or to None for a registered method."""
    if isinstance(methods, Mapping):
        if not methods:
            raise ValueError("`methods` must name at least one method; got an empty mapping")
        return dict(methods)
    known = registry.names(task)
    if methods == "all":
        return dict.fromkeys(known)
    if methods == "fast":
        return dict.fromkeys(name for name in known if "burn_in" not in registry.get(name)().get_params())
    wanted = [methods] if isinstance(methods, str) else list(methods)
    if not wanted:
        raise ValueError("`methods` must name at least one method; got an empty list")
    for name in wanted:
        registry.parts(name, argument="methods", task=task)
    return dict.fromkeys(wanted)


def _folder(out: str | Path | None, dataset: Dataset, ood: str | None) -> Path:
    if out is not None:
        return Path(out).expanduser()
    return Path("compare-" + re.sub(r"[^\w.-]+", "-", dataset.name + (f"-vs-{Path(ood).stem}" if ood else "")))


def _settings(dataset: Dataset, target: str | None, ood: str | None) -> dict[str, Any]:
    settings = {"data": dataset.name, "task": dataset.task, "target": target, "ood": ood}
    return {**settings, "content": dataset.fingerprint(), "format": 1}


def _problems(dataset: Dataset, outside: Any, seeds: int) -> tuple[Callable[[int], Problem], list[str]]:
    """A function from a seed to its problem, and every sentence about the preparation of the data."""
    notes = list(dataset.notes)
    if dataset.splits and seeds > len(dataset.splits):
        count = f"{len(dataset.splits)} split{'s' if len(dataset.splits) > 1 else ''}"
        notes.append(f"The data came with {count}; further seeds use them again with another initialization.")
    elif dataset.splits:
        notes.append("The splits are those that came with the data.")
    else:
        notes.append(f"Each seed holds out {100 * datasets.TEST_FRACTION:.0f} % of the rows at random.")
    encoders: dict[int, tuple[np.ndarray, np.ndarray, encoding.Encoder]] = {}
    said: dict[str, list[int]] = {}
    for seed in range(seeds):
        train, test = _rows(dataset, seed)
        encoder = encoding.learn(_take(dataset.X, train))
        for sentence in encoder.sentences:
            said.setdefault(sentence, []).append(seed)
        encoders[seed] = train, test, encoder
    for sentence, where in said.items():
        splits = f"In split{'s' if len(where) > 1 else ''} {', '.join(map(str, where))}: "
        notes.append(sentence if len(where) == seeds else splits + sentence)
    if outside is not None and len(outside) > MAX_OOD:
        notes.append(f"{MAX_OOD} of the {len(outside)} out-of-distribution inputs were drawn for each seed.")

    def problem(seed: int) -> Problem:
        train, test, encoder = encoders[seed]
        far = None
        if outside is not None:
            far = encoder(_take(outside, np.random.default_rng(seed).permutation(len(outside))[:MAX_OOD]))
        x_train, x_test = encoder(_take(dataset.X, train)), encoder(_take(dataset.X, test))
        return Problem(dataset.task, x_train, dataset.y[train], x_test, dataset.y[test], len(dataset.classes), far)

    return problem, notes


def _rows(dataset: Dataset, seed: int) -> datasets.Split:
    """The rows of a split; test rows of a class that training has none of are left out."""
    train, test = dataset.split(seed)
    if dataset.task == "classification":
        test = test[np.isin(dataset.y[test], dataset.y[train])]
    return train, test


def _trivial(dataset: Dataset, seed: int) -> float:
    train, test = _rows(dataset, seed)
    return baseline.nll(dataset.task, dataset.y[train], dataset.y[test])


def _take(X: Any, rows: np.ndarray) -> Any:
    return X[rows] if isinstance(X, np.ndarray) else X.iloc[rows]


def _call(method: str, estimator: Any, task: Task, seed: int) -> tuple[str, Any]:
    """What identifies the settings of a cell, and what makes its estimator."""
    if estimator is None:
        from bayeskit import estimators

        return method, partial(estimators.make, method, task, random_state=seed)
    if not hasattr(estimator, "get_params"):
        return repr(estimator), estimator
    from sklearn.base import clone

    copy: Any = clone(estimator)
    seeds = [name for name in copy.get_params() if name.split("__")[-1] == "random_state"]
    copy.set_params(**dict.fromkeys(seeds, seed))
    return _described(estimator), copy


def _described(estimator: Any) -> str:
    return estimator.__repr__(N_CHAR_MAX=100_000) if hasattr(estimator, "get_params") else repr(estimator)


def _settled(store: Store, key: Key, estimator: Any, time_limit: float | None) -> bool:
    """Whether a cell need not be run again: it finished, or ran out of at least as much time as there is now."""
    row = store.rows.get(key)
    if (
        row is None
        or row.get("version") != __version__
        or row.get("settings") != (key[0] if estimator is None else _described(estimator))
    ):
        return False
    if row["status"] == "time limit":
        return time_limit is not None and row["time_limit"] >= time_limit
    return row["status"] == "ok" and store.whole(key)


def _results(
    calls: list[tuple[Key, str, Any]],
    problems: Callable[[int], Problem],
    time_limit: float | None,
    n_jobs: int | None,
) -> Iterator[Result]:
    """Run the cells through joblib and yield their results as they come.

    A worker process that dies takes the other cells down with it; those not yet back are then run again one by one, so
    that only the cell that kills its process goes without a result.
    """
    from joblib import Parallel, cpu_count, delayed
    from joblib.externals.loky.process_executor import BrokenProcessPool

    if not calls:
        return
    jobs = max(1, min(n_jobs if n_jobs and n_jobs > 0 else cpu_count(), len(calls)))
    pending = {key: (settings, make) for key, settings, make in calls}
    ready: dict[int, Problem] = {}

    def job(key: Key) -> Any:
        if key[1] not in ready:
            ready.clear()  # one seed's arrays at a time
            ready[key[1]] = problems(key[1])
        settings, make = pending[key]
        identity = {"method": key[0], "seed": key[1], "settings": settings, "time_limit": time_limit}
        identity |= {"version": __version__, "jobs": jobs}
        return delayed(trial.run)(make, ready[key[1]], identity=identity, time_limit=time_limit)

    try:
        results: Any = Parallel(n_jobs=jobs, return_as="generator_unordered")(job(key) for key, _, _ in calls)
        for result in results:
            del pending[result.row["method"], result.row["seed"]]
            yield result
        return
    except BrokenProcessPool:
        pass
    for key in list(pending):
        try:
            jobs = 1
            alone: Any = Parallel(n_jobs=2)([job(key)])  # two jobs: joblib keeps a single one in this process
            yield from alone
        except BrokenProcessPool:
            reason = "its process died, most likely for want of memory"
            identity = {"method": key[0], "seed": key[1], "settings": pending[key][0], "version": __version__}
            yield Result({**identity, "status": "error", "reason": reason})


def _line(row: Mapping[str, Any]) -> str:
    head = f"{row['method']}, seed {row['seed']}: "
    if row["status"] != "ok":
        return f"{head}{row['status']}: {row['reason']}"
    return f"{head}NLL {row['nll']:.3f}, fit {row['fit_seconds']:.1f} s"
