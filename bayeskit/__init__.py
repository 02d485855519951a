"""bayeskit: Gaussian processes and Bayesian deep learning behind one posterior interface.

Names load their modules when first used, so `import bayeskit` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bayeskit.version import __version__ as __version__

if TYPE_CHECKING:
    from bayeskit import active as active
    from bayeskit import bnn as bnn
    from bayeskit import continual as continual
    from bayeskit import gp as gp
    from bayeskit import mcmc as mcmc
    from bayeskit import metrics as metrics
    from bayeskit import plots as plots
    from bayeskit import registry as registry
    from bayeskit.benchmark import compare as compare
    from bayeskit.estimators import BNNClassifier as BNNClassifier
    from bayeskit.estimators import BNNRegressor as BNNRegressor
    from bayeskit.estimators import Calibrated as Calibrated
    from bayeskit.estimators import Conformal as Conformal
    from bayeskit.estimators import GPClassifier as GPClassifier
    from bayeskit.estimators import GPRegressor as GPRegressor
    from bayeskit.persistence import load as load
    from bayeskit.persistence import save as save
    from bayeskit.registry import register as register

_MODULES = ("active", "bnn", "continual", "gp", "mcmc", "metrics", "plots", "registry")
_HOMES = {
    "BNNClassifier": "estimators",
    "BNNRegressor": "estimators",
    "Calibrated": "estimators",
    "Conformal": "estimators",
    "GPClassifier": "estimators",
    "GPRegressor": "estimators",
    "compare": "benchmark",
    "load": "persistence",
    "register": "registry",
    "save": "persistence",
}

__all__ = ["BNNClassifier", "BNNRegressor", "Calibrated", "Conformal", "GPClassifier", "GPRegressor"]
__all__ += [
    "active",
    "bnn",
    "compare",
    "continual",
    "gp",
    "load",
    "mcmc",
    "metrics",
    "plots",
    "register",
    "registry",
    "save",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"bayeskit.{name}")
    if name in _HOMES:
        return getattr(import_module(f"bayeskit.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'bayeskit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
