"""Sparse Gaussian-process regression by the collapsed bound."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from bayeskit.core import checks, operators
from bayeskit.core.inference import Evidence, Fit, Inference, Kind
from bayeskit.core.likelihood import Conjugate, Dirichlet, Gaussian, Likelihood
from bayeskit.core.optimize import minimize_lbfgs
from bayeskit.core.posterior import Posterior
from bayeskit.core.types import Data
from bayeskit.gp.collapsed import collapsed
from bayeskit.gp.hyperparameters import learnable
from bayeskit.gp.inducing import STARTS, spread, starting_points
from bayeskit.gp.process import GaussianProcess
from bayeskit.gp.training_set import inputs, training_set


@dataclass(eq=False, repr=False)
class SGPR(Inference):
    r"""Sparse regression with the optimal Gaussian at inducing points integrated out.

    With Q = k(X, Z) k(Z, Z)^-1 k(Z, X) and noise s, the bound

        log p(y) >= log N(y; m(X), Q + s I) - 1/(2 s) tr(k(X, X) - Q)

    is maximized over hyperparameters and Z together by L-BFGS, in float64. It equals the evidence where Z holds all the
    inputs, and grows with every point added.

    Args:
        num_inducing: m; with at least as many points as distinct inputs the method is exact and Z stays put.
        start: "kmeans" (centers of clusters) or "greedy" (largest variance given the others); see
            `gp.inducing.starting_points`.
        max_iter: L-BFGS iterations at most.
        learn: Whether to learn hyperparameters; those of a conditioned prior are frozen and stay.
        learn_inducing: Whether to move Z.

    References:
        Titsias (2009), "Variational Learning of Inducing Variables in Sparse Gaussian Processes", equation 9.

    Examples:
        >>> from bayeskit.gp import default_prior
        >>> x = torch.linspace(0, 6, 60, dtype=torch.float64).unsqueeze(-1)
        >>> prior, data, generator = default_prior(x), Data(x, x.sin()), torch.Generator()
        >>> fit = SGPR(num_inducing=10).infer(prior, Gaussian(), data, generator=generator)
        >>> bool((fit.posterior(x).mean - x.sin()).abs().max() < 1e-2), fit.log_evidence.kind
        (True, 'lower bound')
    """

    likelihoods: ClassVar[tuple[type[Likelihood], ...]] = (Gaussian, Dirichlet, Conjugate)
    priors: ClassVar[tuple[type[Posterior], ...]] = (GaussianProcess,)
    kind: ClassVar[Kind] = "conditioning"
    quick: ClassVar[Mapping[str, Any]] = {"num_inducing": 20, "max_iter": 15}

    num_inducing: int = 256
    start: str = "kmeans"
    max_iter: int = 100
    learn: bool = True
    learn_inducing: bool = True

    def infer(self, prior: Posterior, likelihood: Likelihood, data: Data, *, generator: torch.Generator) -> Fit:
        """The sparse posterior process given `data`, at learnt hyperparameters and inducing points."""
        self.check(prior, likelihood, data)
        checks.positive(self.num_inducing, name="num_inducing", integer=True)
        checks.positive(self.max_iter, name="max_iter", integer=True)
        checks.choice(self.start, name="start", options=STARTS)
        assert isinstance(prior, GaussianProcess)
        rows = training_set(prior, likelihood, data)
        model = learnable(prior, likelihood, learn=self.learn)
        if not len(rows):
            return Fit(prior, model.frozen_likelihood(), Evidence(0.0, "exact"))
        if model.parameters:
            assert isinstance(likelihood, Conjugate)
            model.center(likelihood.observations(rows.y)[0], rows.weights)
        z, complete = starting_points(
            model.kernel, inputs(rows), self.num_inducing, start=self.start, generator=generator
        )
        unit = spread(inputs(rows))
        free = (z / unit).requires_grad_(self.learn_inducing and not complete)  # moves in units of the features' spread
        parameters = [p for p in (*model.parameters, free) if p.requires_grad]
        history: dict[str, list[float]] = {}
        with operators.recording() as notes:
            if parameters:
                history = minimize_lbfgs(
                    lambda: -(collapsed(model, free * unit, rows).bound + model.log_prior()),
                    parameters,
                    max_iter=self.max_iter,
                    description="SGPR",
                )
            with torch.no_grad():
                z = free * unit if free.requires_grad else z
                result = collapsed(model, z, rows)
                posterior = result.posterior(model.process(), z)
        return Fit(
            posterior,
            model.frozen_likelihood(),
            Evidence(float(result.bound), "lower bound"),
            history,
            dict(notes) | {"inducing points": len(z)},
        )
