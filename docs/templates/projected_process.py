"""The projected process: sparse regression in which the data are seen through inducing values alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from bayeskit.core import checks
from bayeskit.core.inference import Fit
from bayeskit.core.likelihood import Gaussian, Likelihood
from bayeskit.core.operators import factorize
from bayeskit.core.types import Data
from bayeskit.gp.kernels.evaluate import gram
from bayeskit.gp.methods.subset_hyperparameters import learn_on_subset
from bayeskit.gp.model.gaussian_observations import Observations
from bayeskit.gp.model.hyperparameters import Model
from bayeskit.gp.model.inducing_points import starting_points
from bayeskit.gp.model.process_inference import ProcessInference
from bayeskit.gp.model.training_set import inputs


@dataclass(eq=False, repr=False)
class ProjectedProcess(ProcessInference):
    """`y_i | v ~ N(m(x_i) + a_i' v, noise)` with `a_i = L^-1 k(Z, x_i)` and f(Z) = L v; f itself keeps its exact prior.

    Z are cluster centers; hyperparameters maximize the exact evidence of a random subset of the data.

    Args:
        num_inducing: m.
        learning_rows: Size of the subset.
        learn: Whether to learn hyperparameters.

    References:
        Rasmussen and Williams (2006), "Gaussian Processes for Machine Learning", section 8.3.4.
    """

    likelihoods: ClassVar[tuple[type[Likelihood], ...]] = (Gaussian,)
    quick: ClassVar[Mapping[str, Any]] = {"num_inducing": 20, "learning_rows": 50}

    num_inducing: int = 200
    learning_rows: int = 2_000
    learn: bool = True

    def _validate(self) -> None:
        checks.positive(self.num_inducing, name="num_inducing", integer=True)
        checks.positive(self.learning_rows, name="learning_rows", integer=True)

    def _fit(self, model: Model, rows: Data, generator: torch.Generator) -> Fit:
        history = {}
        if model.parameters:
            history = learn_on_subset(model, rows, self.learning_rows, max_iter=50, restarts=0, generator=generator)
        x, seen = inputs(rows), Observations.build(model, rows)
        z, _ = starting_points(model.kernel, x, self.num_inducing, start="kmeans", generator=generator)
        with torch.no_grad():
            tril = factorize(gram(model.kernel, z, z), name="K_zz").tril
            a = torch.linalg.solve_triangular(tril, gram(model.kernel, z, x), upper=False)  # (m, n) or (k, m, n)
            weighted = a / seen.noise.expand_as(seen.residual).unsqueeze(-2)  # A D^-1, (k, m, n)
            eye = torch.eye(len(z), dtype=z.dtype, device=z.device)
            tril_b = factorize(eye + weighted @ a.mT, name="I + A D^-1 A'").tril
            half = torch.linalg.solve_triangular(tril_b, weighted @ seen.residual.unsqueeze(-1), upper=False)
            root = torch.linalg.solve_triangular(tril_b.mT, eye, upper=True)  # q(v) = N(root half, root root')
        posterior = model.process().conditioned(z, tril, (root @ half).squeeze(-1), root=root)
        return Fit(posterior, model.frozen_likelihood(), history=history)
