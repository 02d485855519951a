"""Base class of the inferences of single Gaussian processes: from a prior and data to a fit."""

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar

import torch

from bayeskit.core import operators
from bayeskit.core.inference import Evidence, Fit, Inference, Kind
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.likelihood.indexed import Indexed, base_of, needs_order
from bayeskit.core.posterior import Posterior
from bayeskit.core.types import Data
from bayeskit.gp.model.hyperparameters import Model, learnable
from bayeskit.gp.model.short_lengthscales import start_from
from bayeskit.gp.model.training_set import training_set
from bayeskit.gp.process.gaussian_process import GaussianProcess


def in_order(
    inference: Inference, prior: Posterior, likelihood: Likelihood, data: Data, generator: torch.Generator
) -> Fit:
    """The fit under a conjugate likelihood whose noise belongs to the rows in the order in which they are given."""
    indexed = Indexed(likelihood, data.y)
    fit = inference.infer(prior, indexed, replace(data, y=indexed.positions), generator=generator)
    return replace(fit, likelihood=base_of(fit.likelihood))


class ProcessInference(Inference):
    """Learn hyperparameters and condition on the distinct data; subclasses implement both in `_fit`.

    Without data the posterior is the prior. Learned hyperparameters start where `short_lengthscales.start_from` puts
    them.
    """

    likelihoods: ClassVar[tuple[type[Likelihood], ...]] = (Likelihood,)
    priors: ClassVar[tuple[type[Posterior], ...]] = (GaussianProcess,)
    kind: ClassVar[Kind] = "GP posterior"

    learn: bool = True

    def infer(self, prior: Posterior, likelihood: Likelihood, data: Data, *, generator: torch.Generator) -> Fit:
        """The posterior process given `data`, at learned hyperparameters."""
        self.check(prior, likelihood, data)
        self._validate()
        assert isinstance(prior, GaussianProcess)
        if needs_order(likelihood, data.y):
            return in_order(self, prior, likelihood, data, generator)
        rows = training_set(prior, likelihood, data)
        model = learnable(prior, likelihood, learn=self.learn)
        if not len(rows):
            return Fit(prior, model.frozen_likelihood(), Evidence(0.0, "exact"))
        with operators.recording() as notes:
            if model.parameters:
                start_from(model, rows)
            fit = self._fit(model, rows, generator)
        return replace(fit, diagnostics={**notes, **fit.diagnostics})

    @abstractmethod
    def _validate(self) -> None:
        """Raise a ValueError if a setting is out of range."""

    @abstractmethod
    def _fit(self, model: Model, rows: Data, generator: torch.Generator) -> Fit:
        """The fit to a `training_set`; `model` is changed in place."""
