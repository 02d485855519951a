"""Running the trials of a comparison in worker processes, skipping those already stored."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from bayeskit import registry
from bayeskit.benchmark.data.datasets import Task
from bayeskit.benchmark.run import trial
from bayeskit.benchmark.run.problem import Problem
from bayeskit.benchmark.run.store import Key, Store
from bayeskit.benchmark.run.trial import TrialResult
from bayeskit.version import __version__

Methods = str | Sequence[str] | Mapping[str, Any]


class Trial(NamedTuple):
    """One method on one seed, not yet run.

    Args:
        key: Method and seed.
        settings: A string that identifies the method's settings.
        make: An unfitted estimator, or a function without arguments that builds it in the worker process.
    """

    key: Key
    settings: str
    make: Any


def select(methods: Methods, task: Task) -> dict[str, Any]:
    """Name to a user's own estimator, or to None for a registered method."""
    if isinstance(methods, Mapping):
        if not methods:
            raise ValueError("`methods` must name at least one method; got an empty mapping")
        return dict(methods)
    if methods == "all":
        return dict.fromkeys(registry.names(task))
    stable = registry.names(task, status="stable")
    if methods == "stable":
        return dict.fromkeys(stable)
    if methods == "fast":
        return dict.fromkeys(name for name in stable if "burn_in" not in registry.get(name)().get_params())
    wanted = [methods] if isinstance(methods, str) else list(methods)
    if not wanted:
        raise ValueError("`methods` must name at least one method; got an empty list")
    for name in wanted:
        registry.parts(name, argument="methods", task=task)
    return dict.fromkeys(wanted)


def pending(
    estimators: Mapping[str, Any], task: Task, seeds: int, store: Store, time_limit: float | None
) -> list[Trial]:
    """The trials that the store does not hold yet, every method of a seed before the next seed."""
    every = (_trial(method, estimators[method], task, seed) for seed in range(seeds) for method in estimators)
    return [one for one in every if not _stored(store, one, time_limit)]


def _trial(method: str, estimator: Any, task: Task, seed: int) -> Trial:
    if estimator is None:
        return Trial((method, seed), method, partial(_make, method, task, seed, registry.added()))
    if not hasattr(estimator, "get_params"):
        return Trial((method, seed), repr(estimator), estimator)
    from sklearn.base import clone

    copy: Any = clone(estimator)
    seeds = [name for name in copy.get_params() if name.split("__")[-1] == "random_state"]
    copy.set_params(**dict.fromkeys(seeds, seed))
    return Trial((method, seed), estimator.__repr__(N_CHAR_MAX=100_000), copy)


def _make(method: str, task: Task, seed: int, added: Mapping[str, registry.Method]) -> Any:
    """The estimator of a registered method, in a worker process that does not know the methods `added` at run time."""
    from bayeskit import estimators

    registry.METHODS.update(added)
    return estimators.make(method, task, random_state=seed)


def _stored(store: Store, wanted: Trial, time_limit: float | None) -> bool:
    """Whether a trial need not be run again: it finished, or exceeded a time limit no shorter than this one."""
    row = store.rows.get(wanted.key)
    if row is None or row.get("version") != __version__ or row.get("settings") != wanted.settings:
        return False
    if row["status"] == "time limit":
        return time_limit is not None and row["time_limit"] >= time_limit
    return row["status"] == "ok" and store.whole(wanted.key)


def run(
    trials: Sequence[Trial], problems: Callable[[int], Problem], time_limit: float | None, n_jobs: int | None
) -> Iterator[TrialResult]:
    """Run the trials through joblib and yield their results in the order of completion.

    A worker process that dies takes the other trials down with it; those without a result are then run again one by
    one, so that only the trial that kills its process goes without.
    """
    from joblib import Parallel, cpu_count, delayed, parallel_config
    from joblib.externals.loky.process_executor import BrokenProcessPool

    if not trials:
        return
    jobs = max(1, min(n_jobs if n_jobs and n_jobs > 0 else cpu_count(), len(trials)))
    unfinished = {one.key: one for one in trials}
    prepared: dict[int, Problem] = {}

    def job(one: Trial) -> Any:
        method, seed = one.key
        if seed not in prepared:
            prepared.clear()  # one seed's arrays at a time
            with parallel_config("sequential"):  # a pool of scikit-learn's inside this one would wait for it for ever
                prepared[seed] = problems(seed)
        identity = {"method": method, "seed": seed, "settings": one.settings, "time_limit": time_limit}
        identity |= {"version": __version__, "jobs": jobs}
        return delayed(trial.run)(one.make, prepared[seed], identity=identity, time_limit=time_limit)

    try:
        results: Any = Parallel(n_jobs=jobs, backend="loky", return_as="generator_unordered")(
            job(one) for one in trials
        )
        for result in results:
            del unfinished[result.row["method"], result.row["seed"]]
            yield result
        return
    except BrokenProcessPool:
        pass
    jobs = 1
    for one in list(unfinished.values()):
        try:
            alone: Any = Parallel(n_jobs=2, backend="loky")(
                [job(one)]
            )  # two jobs: joblib keeps a single one in this process
            yield from alone
        except BrokenProcessPool:
            reason = "its process died, most likely for lack of memory"
            identity = {"method": one.key[0], "seed": one.key[1], "settings": one.settings, "version": __version__}
            yield TrialResult({**identity, "status": "error", "reason": reason})
