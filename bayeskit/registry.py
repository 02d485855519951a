"""The one list of methods: a name, where its class lives, and the settings that the name stands for.

Adding a method is one file and one line here. Classes are imported when asked for, so that `import bayeskit` stays
light. What a method can do is read off the class itself (`likelihoods`, `priors`, `kind`), never written here again.

>>> "laplace" in names("classification")
True
>>> get("laplace")()
Laplace()
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, Literal

from bayeskit.core import checks
from bayeskit.core.inference import Inference
from bayeskit.core.likelihood import Likelihood

Task = Literal["regression", "classification"]
Family = Literal["gp", "bnn"]

# one cycle of 200 steps to burn in, then four with five draws each.
CYCLES: dict[str, Any] = {"num_samples": 20, "burn_in": 200, "thin": 20}

# name -> (family, module:class, settings); a setting that is itself a class path is constructed without arguments.
METHODS: dict[str, tuple[Family, str, dict[str, Any]]] = {
    "exact": ("gp", "bayeskit.gp:Exact", {}),
    "sgpr": ("gp", "bayeskit.gp:SGPR", {}),
    "svgp": ("gp", "bayeskit.gp:SVGP", {}),
    "dual_svgp": ("gp", "bayeskit.gp:DualSVGP", {}),
    "memory_dual_gp": ("gp", "bayeskit.gp:MemoryDualGP", {}),
    "fully_bayesian": ("gp", "bayeskit.gp:FullyBayesian", {}),
    "coreset": ("gp", "bayeskit.gp:CoresetGP", {}),
    "orthogonal_svgp": ("gp", "bayeskit.gp:OrthogonalSVGP", {}),
    "swsgp": ("gp", "bayeskit.gp:SWSGP", {}),
    "map": ("bnn", "bayeskit.bnn:MAP", {}),
    "laplace": ("bnn", "bayeskit.bnn:Laplace", {}),
    "ivon": ("bnn", "bayeskit.bnn:IVON", {}),
    "vbll": ("bnn", "bayeskit.bnn:VBLL", {}),
    "deep_ensemble": ("bnn", "bayeskit.bnn:DeepEnsemble", {}),
    "mean_field": ("bnn", "bayeskit.bnn:MeanFieldVI", {}),
    "ssvi": ("bnn", "bayeskit.bnn:SSVI", {}),
    "swag": ("bnn", "bayeskit.bnn:SWAG", {}),
    "mc_dropout": ("bnn", "bayeskit.bnn:MCDropout", {}),
    "nuts": ("bnn", "bayeskit.bnn:MCMC", {}),
    "hmc": ("bnn", "bayeskit.bnn:MCMC", {"kernel": "bayeskit.mcmc:HMC"}),
    "sgld": ("bnn", "bayeskit.bnn:MCMC", {"kernel": "bayeskit.mcmc:SGLD"}),
    "sghmc": ("bnn", "bayeskit.bnn:MCMC", {"kernel": "bayeskit.mcmc:SGHMC"}),
    "entropy_mcmc": ("bnn", "bayeskit.bnn:MCMC", {"kernel": "bayeskit.mcmc:EntropySGLD"}),
    "structured_sgld": ("bnn", "bayeskit.bnn:MCMC", {"kernel": "bayeskit.mcmc:Structured"}),
    "svgd": ("bnn", "bayeskit.bnn:MCMC", {"kernel": "bayeskit.mcmc:SVGD"}),
    "psgld": ("bnn", "bayeskit.bnn:MCMC", {"kernel": "bayeskit.mcmc:PSGLD"}),
    "sgnht": ("bnn", "bayeskit.bnn:MCMC", {"kernel": "bayeskit.mcmc:SGNHT"}),
    "csgld": ("bnn", "bayeskit.bnn:MCMC", {"kernel": "bayeskit.mcmc:cyclical_sgld", **CYCLES}),
    "csghmc": ("bnn", "bayeskit.bnn:MCMC", {"kernel": "bayeskit.mcmc:cyclical_sghmc", **CYCLES}),
    "federated_sgld": ("bnn", "bayeskit.bnn:MCMC", {"kernel": "bayeskit.mcmc:Federated"}),
    "baoab": ("bnn", "bayeskit.bnn:MCMC", {"kernel": "bayeskit.mcmc:BAOAB"}),
}

# family -> what turns a kernel or a network into the prior of an estimator.
PRIORS: dict[Family, str] = {
    "gp": "bayeskit.gp.model.gp_priors:kernel_prior",
    "bnn": "bayeskit.bnn.training.network_priors:default_prior",
}

# what may stand behind a name and a plus, as in "map+temperature" -> the estimator around, and its settings.
AROUND: dict[str, tuple[str, dict[str, Any]]] = {
    "temperature": ("bayeskit.estimators:Calibrated", {"method": "temperature"}),
    "isotonic": ("bayeskit.estimators:Calibrated", {"method": "isotonic"}),
    "conformal": ("bayeskit.estimators:Conformal", {"confidence": 0.9}),
}

MAX_EXACT_ROWS = 3_000
"""Rows up to which a whole exact fit is a matter of seconds to a minute."""

MAX_COLLAPSED_ROWS = 500_000
"""Rows up to which one pass with hundreds of inducing points, and the data themselves in float64, are affordable."""


def names(task: Task | None = None, *, family: Family | None = None) -> list[str]:
    """The registered names in alphabetical order, of one task or one family if asked."""
    chosen = (name for name, entry in METHODS.items() if family is None or entry[0] == family)
    return sorted(name for name in chosen if task is None or task in tasks(name))


def tasks(name: str) -> set[str]:
    """Which of "regression" and "classification" a method's likelihoods allow."""
    from bayeskit.core.likelihood import Bernoulli, Gaussian

    allowed = inference_class(name).likelihoods
    pairs: tuple[tuple[str, type], ...] = (("regression", Gaussian), ("classification", Bernoulli))
    return {task for task, likelihood in pairs if issubclass(likelihood, allowed)}


def parts(name: str, *, argument: str = "name", task: Task | None = None) -> tuple[str, tuple[str, ...]]:
    """The method in a name such as "map+temperature", and what stands around it, from the inside out.

    Args:
        name: A registered name, alone or followed by names of `AROUND`, each after a plus.
        argument: What the caller calls it, for the messages.
        task: The task that it is to do, if any.

    Raises:
        ValueError: One of the names is not known, or the method does not do the task.

    >>> parts("map+temperature+conformal")
    ('map', ('temperature', 'conformal'))
    """
    method, *around = name.split("+")
    if task is not None and method in METHODS and task not in tasks(method):
        raise ValueError(f"`{argument}`: {method!r} does not do {task}; those that do are {names(task)}")
    checks.choice(method, name=argument, options=METHODS.keys() if task is None else names(task))
    for word in around:
        checks.choice(word, name=f"{argument} after a plus", options=AROUND.keys())
    return method, tuple(around)


def family_of(name: str) -> Family:
    """The kind of prior a method works on: "gp" or "bnn"."""
    return _entry(name)[0]


def inference_class(name: str) -> type[Inference]:
    """The class behind a name."""
    return load(_entry(name)[1])


def get(name: str, **overrides: Any) -> Callable[..., Inference]:
    """A constructor of the method: its class with the settings that the name stands for, and any overrides.

    Raises:
        ValueError: The name is not registered; the message lists those that are.
    """
    _, path, settings = _entry(name)
    built = {
        key: load(value)() if isinstance(value, str) and ":" in value else value for key, value in settings.items()
    }
    return partial(load(path), **{**built, **overrides})


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

    A GP is exact up to 3,000 rows, then sparse by the collapsed bound up to 500,000, then by mini-batches with
    sites; so are classes, and any likelihood that has no closed form. With correlated outputs every one is a row
    of the exact method, which alone couples them in closed form. A first batch of several (`stream`) goes to the one
    that goes on learning from the next, at a cost that does not grow. A network gets a last-layer Laplace
    approximation: one training run, one pass for the curvature, an evidence.
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


def load(path: str) -> Any:
    """The object at "module:name", its module imported if it was not."""
    module, name = path.split(":")
    return getattr(import_module(module), name)


def _entry(name: str) -> tuple[Family, str, dict[str, Any]]:
    checks.choice(name, name="inference", options=METHODS.keys())
    return METHODS[name]
