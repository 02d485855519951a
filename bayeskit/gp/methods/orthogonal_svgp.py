"""Sparse Gaussian processes in two orthogonal parts, each with inducing points and a Gaussian of its own.

f = f_1 + f_2, where f_1 is the part of f that u = f(Z) determines and f_2 the residual, with inducing values
v = f_2(W). With

    L_u L_u' = k(Z, Z),     T = k(W, Z) L_u^-T,     L_v L_v' = k(W, W) - T T',

u = L_u a and v = L_v b whitened, the two parts are those of one process at [Z; W] with f([Z; W]) = L [a; b],

    L = [[L_u, 0], [T, L_v]],        q(a) q(b) = N(q_u, R_u R_u') N(q_v, R_v R_v'),

so the method is `SVGP` at [Z; W] with a block-diagonal covariance of the whitened values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bayeskit.core import checks
from bayeskit.core.inference import Evidence, Fit
from bayeskit.core.optimize import History, Training, minimize
from bayeskit.core.types import Data
from bayeskit.gp.model.hyperparameters import Model
from bayeskit.gp.model.inducing_points import STARTS, MovingPoints, starting_points
from bayeskit.gp.model.process_inference import ProcessInference
from bayeskit.gp.model.training_set import inputs
from bayeskit.gp.variational.whitened_gaussian import WhitenedGaussian
from bayeskit.gp.variational.whitened_posterior import bound, optimal_q

DEFAULT_STEPS = 400
DEFAULT_BATCH = 256


@dataclass(eq=False, repr=False)
class OrthogonalSVGP(ProcessInference):
    r"""Sparse variational inference with two independent Gaussians: at inducing points and at points of the residual.

    The bound

        sum_i w_i E_q[log p(y_i | f(x_i))] - KL[q(a) || N(0, I)] - KL[q(b) || N(0, I)]

    is maximized over both Gaussians, hyperparameters and both sets of points by Adam on mini-batches. Before and after,
    natural-gradient steps over all data maximize it over the Gaussians alone.

    Args:
        num_inducing: m points of the first part.
        num_orthogonal: Points of the second part; 0 is `SVGP`.
        start: "kmeans" or "greedy"; see `starting_points`.
        training: Settings of the mini-batch phase; None for about 400 steps of Adam at a learning rate of 0.05 that
            falls to zero, in batches of 256.
        learn: Whether to learn hyperparameters; those of a conditioned prior are frozen and stay.
        learn_inducing: Whether to move the points.

    References:
        Shi, Titsias and Mnih (2020), "Sparse Orthogonal Variational Inference for Gaussian Processes".
        Tiao, Dutordoir and Picheny (2023), "Spherical Inducing Features for Orthogonally-Decoupled Gaussian Processes".

    Examples:
        >>> from bayeskit.core.likelihood import Gaussian
        >>> from bayeskit.gp import default_prior
        >>> x = torch.linspace(0, 6, 60, dtype=torch.float64).unsqueeze(-1)
        >>> prior, data, generator = default_prior(x), Data(x, x.sin()), torch.Generator()
        >>> method = OrthogonalSVGP(num_inducing=6, num_orthogonal=6)
        >>> fit = method.infer(prior, Gaussian(), data, generator=generator)
        >>> bool((fit.posterior(x).mean - x.sin()).abs().max() < 5e-2)
        True
    """

    quick: ClassVar[Mapping[str, Any]] = {
        "num_inducing": 10,
        "num_orthogonal": 10,
        "training": Training(lr=0.05, max_epochs=20, batch_size=256),
    }

    num_inducing: int = 128
    num_orthogonal: int = 128
    start: str = "kmeans"
    training: Training | None = None
    learn: bool = True
    learn_inducing: bool = True

    def _validate(self) -> None:
        checks.positive(self.num_inducing, name="num_inducing", integer=True)
        if self.num_orthogonal:
            checks.positive(self.num_orthogonal, name="num_orthogonal", integer=True)
        checks.choice(self.start, name="start", options=STARTS)

    def _fit(self, model: Model, rows: Data, generator: torch.Generator) -> Fit:
        points, part, history = self._train(model, rows, generator)
        with torch.no_grad():
            start = WhitenedGaussian.prior(model.num_outputs, points)
            q, value = optimal_q(model, points, start, rows, max_steps=200, independent=part)
            posterior = q.posterior(model, points)
        count = int(part.sum())
        diagnostics = {"inducing points": len(points) - count, "orthogonal points": count}
        return Fit(posterior, model.frozen_likelihood(), Evidence(value, "lower bound"), history, diagnostics)

    def _train(self, model: Model, rows: Data, generator: torch.Generator) -> tuple[Tensor, Tensor, History]:
        """Learn hyperparameters and points along with q; the points, the part of each (0 or 1), the training curve."""
        count = self.num_inducing + self.num_orthogonal
        points, complete = starting_points(model.kernel, inputs(rows), count, start=self.start, generator=generator)
        order = torch.randperm(len(points), generator=generator, device=generator.device).to(points.device)
        points = points[order]
        part = (torch.arange(len(points), device=points.device) >= self.num_inducing).long()
        moving = MovingPoints(points, inputs(rows), move=self.learn_inducing and not complete)
        learned = [*model.parameters, *moving.parameters]
        if not learned:
            return points, part, {}
        start = WhitenedGaussian.prior(model.num_outputs, points)
        with torch.no_grad():
            start, _ = optimal_q(model, points, start, rows, max_steps=10, independent=part)
        mean, root = start.leaves()
        within = part.unsqueeze(-1) == part

        def loss(batch: Data) -> Tensor:
            return -(bound(model, moving(), WhitenedGaussian(mean, root * within), batch) + model.log_prior())

        training = self.training or Training.of_steps(DEFAULT_STEPS, len(rows), lr=0.05, batch_size=DEFAULT_BATCH)
        leaves = [*learned, mean, root]
        history = minimize(loss, leaves, rows, training, generator=generator, description="OrthogonalSVGP")
        return moving().detach(), part, history
