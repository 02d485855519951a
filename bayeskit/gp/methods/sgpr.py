"""Sparse Gaussian-process regression by the collapsed bound."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bayeskit.core import checks
from bayeskit.core.inference import Evidence, Fit
from bayeskit.core.likelihood import Conjugate, Dirichlet, Gaussian, Likelihood
from bayeskit.core.optimize import minimize_lbfgs
from bayeskit.core.types import Data
from bayeskit.gp.methods.loo_output_scale import calibrated
from bayeskit.gp.methods.subset_hyperparameters import learn_on_subset
from bayeskit.gp.model.hyperparameters import History, Model
from bayeskit.gp.model.inducing_points import STARTS, MovingPoints, starting_points
from bayeskit.gp.model.process_inference import ProcessInference
from bayeskit.gp.model.training_set import inputs
from bayeskit.gp.variational.collapsed_bound import Collapsed, collapsed

LEARNING = ("auto", "bound", "subset")

PASS_BUDGET = 4e11
"""Largest n m^2 that `num_inducing=None` chooses: ten to twenty seconds for the pass over the data, on one core."""

BOUND_BUDGET = 1e12
"""Largest 5 n m^2 max_iter, the multiplications of maximizing the bound, for which "auto" does so; three times as many
where the number of points was given."""

FEWEST_ITERATIONS = 20
"""Fewest iterations on the bound for which "auto" maximizes it, where the number of points was given."""

MAX_LEFT_OUT = 2_000
"""Held-out data points that determine output scale and noise; the posterior is conditioned on them like on all."""


@dataclass(eq=False, repr=False)
class SGPR(ProcessInference):
    r"""Sparse regression with the optimal Gaussian at inducing points integrated out.

    With Q = k(X, Z) k(Z, Z)^-1 k(Z, X) and noise s, the evidence has the bound

        log p(y) >= log N(y; m(X), Q + s I) - 1/(2 s) tr(k(X, X) - Q),

    which equals it where Z holds all the inputs, and grows with every point added. Hyperparameters first maximize the
    exact evidence of a subset. From there, few inducing points are learned with all hyperparameters by maximizing the
    bound; many stay at cluster centers, cost one pass over the data, and output scale and noise maximize the
    leave-one-out predictive density of held-out data points.

    Args:
        num_inducing: m; None for 15 sqrt(n), and less where n m^2 would pass 4e11. With at least as many points as
            distinct inputs the method is exact and Z is not moved.
        learning: "bound" (maximize it over hyperparameters and Z, by L-BFGS), "subset" (lengthscales from a subset,
            scale and noise by leave-one-out, Z fixed), or "auto": the former while 5 n m^2 max_iter <= 1e12,
            or, for a given `num_inducing`, with as many of the iterations as 3e12 allows if these are 20 or more.
        start: "kmeans" (centers of clusters) or "greedy" (largest variance given the others); see
            `starting_points`.
        max_iter: L-BFGS iterations at most, on the bound and (no more than 50) on the evidence of the subset.
        learning_rows: Size of the random subset whose exact evidence hyperparameters maximize first.
        restarts: Further random starts on the evidence of the subset; the best optimum is kept.
        learn: Whether to learn hyperparameters; those of a conditioned prior are frozen and stay.
        learn_inducing: Whether to move Z where the bound is maximized.

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
    quick: ClassVar[Mapping[str, Any]] = {"num_inducing": 20, "max_iter": 15}

    num_inducing: int | None = None
    learning: str = "auto"
    start: str = "kmeans"
    max_iter: int = 100
    learning_rows: int = 2_000
    restarts: int = 0
    learn: bool = True
    learn_inducing: bool = True

    def _fit(self, model: Model, rows: Data, generator: torch.Generator) -> Fit:
        result, z, history = self._learned(model, rows, generator)
        evidence = Evidence(float(result.bound), "lower bound")
        posterior, diagnostics = result.posterior(model.process(), z), {"inducing points": len(z)}
        return Fit(posterior, model.frozen_likelihood(), evidence, history, diagnostics)

    def _learned(
        self, model: Model, rows: Data, generator: torch.Generator
    ) -> tuple[Collapsed, Tensor, dict[str, list[float]]]:
        """Learn hyperparameters and points; the collapsed result, the points, and the curves of the last search."""
        num_inducing = self.num_inducing or default_num_inducing(len(rows))
        iterations = self._iterations(len(rows), num_inducing)
        kept, left_out, history = rows, None, {}
        if model.parameters:
            if not iterations and len(rows) >= 5:
                kept, left_out = _divided(rows, generator)
            settings = {"max_iter": self.max_iter, "restarts": self.restarts, "generator": generator}
            history = learn_on_subset(model, kept, self.learning_rows, **settings)
        placing = {"start": self.start, "generator": generator}
        z, complete = starting_points(model.kernel, inputs(kept), num_inducing, **placing)
        if complete and left_out is not None:  # with the rest, the points may be all the inputs
            z, complete = starting_points(model.kernel, inputs(rows), num_inducing, **placing)
        if iterations:
            move = self.learn_inducing and not complete
            z, climbed = _maximize_bound(model, z, rows, move=move, max_iter=iterations)
            history = climbed or history
        with torch.no_grad():
            result = collapsed(model, z, rows)
        if left_out is not None and not complete:
            result = calibrated(model, z, rows, result, left_out)
        return result, z, history

    def _validate(self) -> None:
        if self.num_inducing is not None:
            checks.positive(self.num_inducing, name="num_inducing", integer=True)
        checks.positive(self.max_iter, name="max_iter", integer=True)
        checks.positive(self.learning_rows, name="learning_rows", integer=True)
        checks.choice(self.start, name="start", options=STARTS)
        checks.choice(self.learning, name="learning", options=LEARNING)
        if self.restarts:
            checks.positive(self.restarts, name="restarts", integer=True)

    def _iterations(self, n: int, m: int) -> int:
        """L-BFGS iterations on the bound; none where the lengthscales of a subset are better for the same time."""
        if self.learning != "auto":
            return self.max_iter if self.learning == "bound" else 0
        one = 5.0 * n * m**2
        if self.num_inducing is None:
            return self.max_iter if one * self.max_iter <= BOUND_BUDGET else 0
        affordable = int(3 * BOUND_BUDGET / one)  # few points need other lengthscales than the exact process
        return min(affordable, self.max_iter) if affordable >= FEWEST_ITERATIONS else 0


def _maximize_bound(model: Model, z: Tensor, rows: Data, *, move: bool, max_iter: int) -> tuple[Tensor, History]:
    """Maximize bound plus log prior over hyperparameters and inducing points; the points and the training curves."""
    points = MovingPoints(z, inputs(rows), move=move)
    parameters = [*model.parameters, *points.parameters]
    if not parameters:
        return z, {}
    history = minimize_lbfgs(
        lambda: -(collapsed(model, points(), rows).bound + model.log_prior()),
        parameters,
        max_iter=max_iter,
        description="SGPR",
    )
    return points().detach(), history


def _divided(rows: Data, generator: torch.Generator) -> tuple[Data, Tensor]:
    """The data without a held-out fifth (at most `MAX_LEFT_OUT`), and the index of the held-out data."""
    order = torch.randperm(len(rows), generator=generator, device=generator.device).to(rows.y.device)
    count = min(MAX_LEFT_OUT, len(rows) // 5)
    return rows.rows(order[count:].sort().values), order[:count].sort().values


def default_num_inducing(n: int) -> int:
    """The number of inducing points for n data points: 15 sqrt(n), and at most what keeps n m^2 within 4e11.

    Examples:
        >>> default_num_inducing(10_000), default_num_inducing(100_000)
        (1500, 2000)
    """
    return math.ceil(min(15 * math.sqrt(n), math.sqrt(PASS_BUDGET / n)))
