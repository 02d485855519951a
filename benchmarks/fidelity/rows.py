"""The rows of the table: methods with settings that approximate this posterior as well as a budget permits.

What is trained sees all the rows and stops when its rate has fallen to zero: with rows held out it would be another
posterior. Where predictions are draws, there are many: the table is about the posterior, not about Monte Carlo error.
"""

from dataclasses import dataclass, field
from typing import Any

from bayeskit import registry
from bayeskit.core.inference import Inference
from bayeskit.core.optimize import Training


@dataclass(frozen=True)
class Row:
    """A registered method and how it is run.

    Args:
        method: The registered name.
        settings: What differs from its defaults.
        note: Why it differs from the posterior even at convergence.
    """

    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    def build(self) -> Inference:
        return registry.get(self.method, **self.settings)()


WHOLE = Training(lr=1e-2, max_epochs=1_000, schedule="cosine")
"""Some 3,000 steps of 128 rows."""

NOISY = Training(lr=1e-2, max_epochs=2_000, schedule="cosine")
"""More of them for objectives that are drawn."""

POINT, FACTORED = "a point", "independent weights"
LAST = "a point below the last layer"


def laplace(note: str = "", **settings: Any) -> Row:
    return Row("laplace", {"training": WHOLE, **settings}, note)


VARIATIONAL: dict[str, Any] = {"training": NOISY, "num_draws": 1_000}
ROWS: dict[str, Row] = {
    "map": Row("map", {"training": WHOLE}, POINT),
    "laplace, last layer": laplace(LAST),
    "laplace, all, full": laplace("one mode, linearized", subset="all"),
    "laplace, all, kronecker": laplace("one mode, linearized", subset="all", structure="kronecker"),
    "laplace, all, diagonal": laplace("one mode, linearized, " + FACTORED, subset="all", structure="diagonal"),
    "vbll": Row("vbll", {"training": WHOLE}, LAST),
    "deep_ensemble": Row("deep_ensemble", {"training": WHOLE}, "five modes"),
    "swag": Row("swag", {"training": WHOLE}, "the path of an optimizer"),
    "mc_dropout": Row("mc_dropout", {"training": WHOLE, "num_samples": 1_000}, "masks of rate 0.05"),
    "ivon": Row("ivon", {"training": NOISY, "kl_weight": 1.0, "num_samples": 1_000}, FACTORED),
    "mean_field": Row("mean_field", VARIATIONAL, FACTORED),
    "ssvi": Row("ssvi", VARIATIONAL, FACTORED),
    "ssvi, half": Row("ssvi", {**VARIATIONAL, "density": 0.5, "whole": 100}, FACTORED + ", half of them zero"),
    "nuts": Row("nuts"),
    "hmc": Row("hmc"),
    "sgld": Row("sgld"),
    "psgld": Row("psgld"),
    "sghmc": Row("sghmc"),
    "sgnht": Row("sgnht"),
    "baoab": Row("baoab"),
    "csgld": Row("csgld"),
    "csghmc": Row("csghmc"),
    "entropy_mcmc": Row("entropy_mcmc", {"variables": ("weights",)}),
    "structured_sgld": Row("structured_sgld", {}, "groups do not depend on each other"),
    "federated_sgld": Row("federated_sgld"),
    "svgd": Row("svgd", {}, "twenty particles"),
}


def missing() -> set[str]:
    """Registered networks' methods that no row is about."""
    return set(registry.names("regression", family="bnn")) - {row.method for row in ROWS.values()}
