"""The library's methods: name, family, class, settings and maturity; one line for each.

Classes are named by import path and loaded when first used, so that `import bayeskit` stays light.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from bayeskit.core.inference import Inference

Task = Literal["regression", "classification"]
Family = Literal["gp", "bnn"]
Status = Literal["stable", "experimental"]


@dataclass(frozen=True)
class Method:
    """An entry of the registry.

    Args:
        family: The kind of prior, "gp" or "bnn".
        target: The `Inference` class, or its import path "module:class".
        settings: Fields that the name stands for; a class or an import path is constructed without arguments.
        experimental: The measured reason why the method is experimental; empty for a stable one.
    """

    family: Family
    target: str | type[Inference]
    settings: Mapping[str, Any] = field(default_factory=dict)
    experimental: str = ""

    @property
    def status(self) -> Status:
        """The maturity: "experimental" where measurements fell short of the posterior or of a simpler method."""
        return "experimental" if self.experimental else "stable"

    @property
    def path(self) -> str:
        """The import path "module:class"."""
        if isinstance(self.target, str):
            return self.target
        return f"{self.target.__module__}:{self.target.__qualname__}"


def _mcmc(kernel: str, *, experimental: str = "", **settings: Any) -> Method:
    return Method("bnn", "bayeskit.bnn:MCMC", {"kernel": f"bayeskit.mcmc:{kernel}", **settings}, experimental)


# one cycle of 200 steps of burn-in, then four with five draws each.
CYCLES: dict[str, Any] = {"num_samples": 20, "burn_in": 200, "thin": 20}

METHODS: dict[str, Method] = {
    "exact": Method("gp", "bayeskit.gp:Exact"),
    "sgpr": Method("gp", "bayeskit.gp:SGPR"),
    "svgp": Method("gp", "bayeskit.gp:SVGP"),
    "dual_svgp": Method("gp", "bayeskit.gp:DualSVGP"),
    "memory_dual_gp": Method("gp", "bayeskit.gp:MemoryDualGP"),
    "fully_bayesian": Method("gp", "bayeskit.gp:FullyBayesian"),
    "coreset": Method("gp", "bayeskit.gp:CoresetGP"),
    "orthogonal_svgp": Method("gp", "bayeskit.gp:OrthogonalSVGP"),
    "swsgp": Method(
        "gp",
        "bayeskit.gp:SWSGP",
        experimental="the standard deviation of f is too small where inducing points are strongly correlated: .025 "
        "where the exact posterior has .083, with M = 40 and H = 10",
    ),
    "map": Method("bnn", "bayeskit.bnn:MAP"),
    "laplace": Method("bnn", "bayeskit.bnn:Laplace"),
    "ivon": Method("bnn", "bayeskit.bnn:IVON"),
    "vbll": Method("bnn", "bayeskit.bnn:VBLL"),
    "deep_ensemble": Method("bnn", "bayeskit.bnn:DeepEnsemble"),
    "mean_field": Method("bnn", "bayeskit.bnn:MeanFieldVI"),
    "ssvi": Method("bnn", "bayeskit.bnn:SSVI"),
    "swag": Method("bnn", "bayeskit.bnn:SWAG"),
    "mc_dropout": Method("bnn", "bayeskit.bnn:MCDropout"),
    "nuts": Method("bnn", "bayeskit.bnn:MCMC"),
    "hmc": _mcmc("HMC"),
    "sgld": _mcmc("SGLD"),
    "sghmc": _mcmc("SGHMC"),
    "entropy_mcmc": _mcmc(
        "EntropySGLD",
        experimental="no gain over SGLD was measured: NLL of 0.297 against 0.286 on MNIST and of 0.616 against 0.576 "
        "on Fashion-MNIST, 3 seeds",
    ),
    "structured_sgld": _mcmc(
        "Structured",
        experimental="at equal numbers of gradients its accuracy on MNIST is 87.4 % where SGLD has 93.2 %, 3 seeds, "
        "and it mixes no faster on correlated parameters",
    ),
    "svgd": _mcmc(
        "SVGD",
        experimental="100 particles give 0.65 to 0.96 of the standard deviations of eight of nine known posteriors",
    ),
    "psgld": _mcmc("PSGLD"),
    "sgnht": _mcmc("SGNHT"),
    "csgld": _mcmc("cyclical_sgld", **CYCLES),
    "csghmc": _mcmc("cyclical_sghmc", **CYCLES),
    "federated_sgld": _mcmc(
        "Federated",
        experimental="posterior standard deviations of a network are 0.51 and 0.69 of the reference on two UCI tables",
    ),
    "baoab": _mcmc("BAOAB"),
}
"""The registered methods by name; those of entry points are added when a method is first looked up."""

# family -> function that turns a kernel or a network into the prior of an estimator.
PRIORS: dict[Family, str] = {
    "gp": "bayeskit.gp.model.gp_priors:kernel_prior",
    "bnn": "bayeskit.bnn.training.network_priors:default_prior",
}

# suffix of a name, as in "map+temperature" -> post-hoc wrapper (a meta-estimator) and its settings.
POST_HOC: dict[str, tuple[str, dict[str, Any]]] = {
    "temperature": ("bayeskit.estimators:Calibrated", {"method": "temperature"}),
    "isotonic": ("bayeskit.estimators:Calibrated", {"method": "isotonic"}),
    "conformal": ("bayeskit.estimators:Conformal", {"confidence": 0.9}),
}


def load(path: Any) -> Any:
    """The object at "module:name", its module imported if it was not; a class is returned as it is."""
    if not isinstance(path, str):
        return path
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
