"""An `Inference` turns a prior, a likelihood and data into a `Fit`."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from bayeskit.core import checks
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.likelihood.support import check_outputs, check_support
from bayeskit.core.posterior import Posterior
from bayeskit.core.types import Data

Kind = Literal["GP posterior", "weights", "draws", "point"]


@dataclass(frozen=True)
class Evidence:
    """A log evidence `log p(y)` in nats, and its kind; evidences of different kinds are not comparable.

    Args:
        value: The number, summed over the data.
        kind: "exact", "estimate" (unbiased up to a stated error), "lower bound", "Laplace", "Laplace bound" (a lower
            bound of that), or "surrogate objective": one that is no bound on the evidence, and is not comparable with
            any other number.
        standard_error: Monte Carlo standard error of the value, 0 where nothing was sampled: an estimate of a lower
            bound may lie above the evidence by a few of these.
    """

    value: float
    kind: Literal["exact", "estimate", "lower bound", "Laplace", "Laplace bound", "surrogate objective"]
    standard_error: float = 0.0

    def __post_init__(self) -> None:
        if self.kind == "own model":  # its name in files of format 1
            object.__setattr__(self, "kind", "surrogate objective")

    def __float__(self) -> float:
        return self.value

    def shifted(self, amount: float) -> "Evidence":
        """The same evidence after a change of units of the target that adds `amount` nats."""
        return replace(self, value=self.value + amount)


@dataclass(frozen=True, eq=False)
class Fit:
    """The result of an inference.

    Args:
        posterior: The distribution of the function given the data.
        likelihood: The distribution of the observations given the function, its parameters learned (a copy).
        log_evidence: log p(y), or None where the method has none.
        history: One list of numbers per training curve, such as {"loss": [...]}.
        diagnostics: Jitter added, solver residual, acceptance rate ...
    """

    posterior: Posterior
    likelihood: Likelihood
    log_evidence: Evidence | None = None
    history: Mapping[str, list[float]] = field(default_factory=dict)
    diagnostics: Mapping[str, Any] = field(default_factory=dict)


class Inference(BaseEstimator, ABC):
    """Settings plus one method; a subclass is a `@dataclass(eq=False, repr=False)` whose fields all have defaults.

    `infer` reads the fields and never writes them, so `clone`, `repr`, pickling and grid search work as for any
    scikit-learn object. Fields are validated in `infer`, not when they are set.

    Class attributes:
        likelihoods: The `Likelihood` classes the method handles; others raise `TypeError`.
        priors: The `Posterior` classes it takes as prior.
        kind: "GP posterior" (a GP given data), "weights" (a distribution over the weights), "draws" (weight samples) or
            "point" (a single function, no epistemic uncertainty); it decides which conformance tests apply.
        quick: Settings under which a fit of 100 data points takes a fraction of a second; `quickly()` applies them.
    """

    likelihoods: ClassVar[tuple[type[Likelihood], ...]] = (Likelihood,)
    priors: ClassVar[tuple[type[Posterior], ...]] = (Posterior,)
    kind: ClassVar[Kind]
    quick: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def quickly(cls) -> Self:
        """The method with a small budget, for smoke runs and the conformance suite."""
        return cls(**cls.quick)

    @abstractmethod
    def infer(self, prior: Posterior, likelihood: Likelihood, data: Data, *, generator: torch.Generator) -> Fit:
        """The posterior of the function given `data`; the arguments are left as they are.

        Args:
            prior: Distribution of the function before the data; may be the posterior of another fit.
            likelihood: Distribution of the observations given the function.
            data: Inputs (n, *input_shape), targets and optional case weights.
            generator: Source of all randomness.

        Raises:
            TypeError: The method cannot handle this prior or this likelihood.
            ValueError: A setting or the data is out of range.
        """

    def check(self, prior: Posterior, likelihood: Likelihood, data: Data) -> None:
        """Refuse what the method cannot handle; every `infer` calls it first.

        Raises:
            TypeError: The prior or the likelihood is of another type.
            ValueError: The data are not finite, targets do not fit the likelihood, or the prior has another number of
                outputs than the likelihood needs for these targets.
        """
        for given, allowed, what in ((prior, self.priors, "prior"), (likelihood, self.likelihoods, "likelihood")):
            if not isinstance(given, allowed):
                names = ", ".join(c.__name__ for c in allowed)
                raise TypeError(f"{type(self).__name__} handles a {what} of type {names}; got {type(given).__name__}")
        if len(data.x) != len(data.y):
            raise ValueError(f"`data.x` and `data.y` must have the same length; got {len(data.x)} and {len(data.y)}")
        if isinstance(data.x, Tensor) and data.x.is_floating_point():
            checks.finite(data.x, name="data.x")
        check_support(likelihood, data.y, name="data.y")
        if not len(data) and self.kind != "GP posterior":
            raise ValueError("`data` must have at least one row; got none")
        if len(data):
            check_outputs(likelihood, data.y, prior.num_outputs_at(data.x))
