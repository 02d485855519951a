"""Looking methods up by name: their class, their settings, their tasks, and the default for a problem."""

from collections.abc import Callable
from functools import partial
from typing import Any

from bayeskit.core import checks
from bayeskit.core.inference import Inference
from bayeskit.core.likelihood import Likelihood
from bayeskit.registry.entries import METHODS, POST_HOC, PRIORS, Family, Method, Status, Task, load
from bayeskit.registry.plugins import read_entry_points

MAX_EXACT_ROWS = 3_000
"""Number of data points up to which an exact fit takes seconds to a minute."""

MAX_COLLAPSED_ROWS = 500_000
"""Number of data points up to which passes with hundreds of inducing points, and float64 data, are affordable."""


def names(task: Task | None = None, *, family: Family | None = None, status: Status | None = None) -> list[str]:
    """The registered names in alphabetical order, of one task, one family or one status if given."""
    if task is not None:
        checks.choice(task, name="task", options=("regression", "classification"))
    read_entry_points()
    chosen = (
        name for name, entry in METHODS.items() if family in (None, entry.family) and status in (None, entry.status)
    )
    return sorted(name for name in chosen if task is None or task in tasks(name))


def description(name: str) -> str:
    """The first sentence of the docstring of the method, or of its kernel for a Markov chain over weights."""
    method: Any = get(name)()
    if _entry(name).target == "bayeskit.bnn:MCMC":
        method = method.kernel or load("bayeskit.mcmc:NUTS")()  # the default of `bnn.MCMC`
    return (type(method).__doc__ or "").strip().split("\n")[0]


def tasks(name: str) -> set[str]:
    """Which of "regression" and "classification" a method's likelihoods allow."""
    from bayeskit.core.likelihood import Bernoulli, Gaussian

    allowed = inference_class(name).likelihoods
    pairs: tuple[tuple[str, type], ...] = (("regression", Gaussian), ("classification", Bernoulli))
    return {task for task, likelihood in pairs if issubclass(likelihood, allowed)}


def parts(name: str, *, argument: str = "name", task: Task | None = None) -> tuple[str, tuple[str, ...]]:
    """The method in a name such as "map+temperature", and its post-hoc wrappers from the innermost to the outermost.

    Args:
        name: A registered name, alone or followed by names of `POST_HOC`, each after a plus.
        argument: The argument's name, for the messages.
        task: The task that it must support, if any.

    Raises:
        ValueError: One of the names is not known, or the method does not do the task.

    >>> parts("map+temperature+conformal")
    ('map', ('temperature', 'conformal'))
    """
    method, *post_hoc = name.split("+")
    known = names()
    if task is not None and method in known and task not in tasks(method):
        raise ValueError(f"`{argument}`: {method!r} does not do {task}; those that do are {names(task)}")
    checks.choice(method, name=argument, options=known if task is None else names(task))
    for suffix in post_hoc:
        checks.choice(suffix, name=f"{argument} after a plus", options=POST_HOC.keys())
    return method, tuple(post_hoc)


def family_of(name: str) -> Family:
    """The kind of prior a method works on: "gp" or "bnn"."""
    return _entry(name).family


def inference_class(name: str) -> type[Inference]:
    """The class behind a name."""
    return load(_entry(name).target)


def get(name: str, **overrides: Any) -> Callable[..., Inference]:
    """A constructor of the method: its class with the settings that the name stands for, and any overrides.

    Raises:
        ValueError: The name is not registered; the message lists those that are.
    """
    entry = _entry(name)
    built = {key: load(value)() if _constructed(value) else value for key, value in entry.settings.items()}
    return partial(load(entry.target), **{**built, **overrides})


def quick(name: str) -> Inference:
    """The method with its small budget (`Inference.quick`), for smoke runs and the conformance suite."""
    return get(name, **inference_class(name).quick)()


def default(
    family: Family,
    task: Task,
    num_rows: int,
    likelihood: Likelihood | None = None,
    *,
    num_correlated: int = 1,
    stream: bool = False,
) -> str:
    """The method used when none is named, by task, size and what the likelihood allows.

    A GP is exact up to 3,000 data points, then sparse: by the collapsed bound up to 500,000, by mini-batches with sites
    beyond, for classification, and for any likelihood without a closed form. Correlated outputs multiply the number of
    points of the exact method, the only one that couples them in closed form. The first batch of a stream goes to the
    method that updates on further batches at a constant cost. A network gets a last-layer Laplace approximation: one
    training run, one pass for the curvature, and an evidence.
    """
    if family == "bnn":
        return "laplace"
    if stream:
        return "memory_dual_gp"
    if task == "classification" or num_rows > MAX_COLLAPSED_ROWS:
        return "dual_svgp"
    if num_rows * num_correlated <= MAX_EXACT_ROWS:
        chosen = "exact"
    else:
        chosen = "sgpr" if num_correlated == 1 else "dual_svgp"
    allowed = likelihood is None or isinstance(likelihood, inference_class(chosen).likelihoods)
    return chosen if allowed else "dual_svgp"


def prior(family: Family) -> Callable[..., Any]:
    """The function that builds the default prior of a family."""
    return load(PRIORS[family])


def _constructed(value: Any) -> bool:
    return isinstance(value, type) or (isinstance(value, str) and ":" in value)


def _entry(name: str) -> Method:
    read_entry_points()
    checks.choice(name, name="inference", options=METHODS.keys())
    return METHODS[name]
