"""Sparse within sparse Gaussian processes: thousands of inducing points, each input depending on its nearest ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from bayeskit.core import checks, operators
from bayeskit.core.inference import Evidence, Fit
from bayeskit.core.optimize import Training, minimize, natural_gradient_ascent
from bayeskit.core.types import Data
from bayeskit.gp.kernels.evaluate import gram_diagonal, mean_rows
from bayeskit.gp.model.hyperparameters import Model
from bayeskit.gp.model.inducing_points import STARTS, MovingPoints, starting_points
from bayeskit.gp.model.process_inference import ProcessInference
from bayeskit.gp.model.training_set import inputs
from bayeskit.gp.process.gaussian_process import GaussianProcess
from bayeskit.gp.process.nearest_neighbor_kernel import Nearest, NearestMean, Neighborhoods, neighborhoods

MOST_POINTS = 10_000
"""Inducing points at most: the mean needs a float64 matrix of their number squared, 800 MB at this size."""

ROWS_A_POINT = 4
"""Data points per inducing point below which a fit warns."""

DEFAULT_STEPS = 400
DEFAULT_BATCH = 256


@dataclass(eq=False, repr=False)
class SWSGP(ProcessInference):
    r"""Sparse variational inference in which f(x) depends only on the inducing points nearest to x.

    With I(x) the H inducing inputs most correlated with x, q(u) = N(mu, diag(s)) and D the empirical distribution:

        sum_i w_i E_q[log p(y_i | f(x_i))] - (M / H) E_{x ~ D} KL[q(u_I(x)) || N(0, K_II)],
        f(x_i) | u ~ N(k_I' K_II^-1 u_I, k(x_i, x_i) - k_I' K_II^-1 k_I)

    is maximized over q, hyperparameters and Z by mini-batches, then over q alone with all data. With M / H the sets
    count an inducing point once on average; with less weight, as many points as data would fit the noise. **The
    objective is not comparable with the bounds of other methods unless H = M**, where it is that of SVGP with a
    diagonal q(u). For several inputs at once, the residual given the neighbors is correlated as the kernel is (see
    `gp.process.nearest_neighbor_kernel`).

    **A diagonal q(u) is over-confident about f where neighbors are strongly correlated**: means and predictions of y
    are sound, the variance of f itself can be far too small. Use another method where that variance matters.

    Status: experimental. The standard deviation of f is too small where inducing points are strongly correlated: .025
    where the exact posterior has .083, with M = 40 and H = 10.

    Args:
        num_inducing: M, at most 10,000.
        num_neighbors: H.
        start: "kmeans" or "greedy"; see `starting_points`.
        training: Settings of the mini-batch phase; None for about 400 steps of Adam at a learning rate of 0.02 that
            falls to zero, in batches of 256.
        learn: Whether to learn hyperparameters; those of a conditioned prior are frozen and stay.
        learn_inducing: Whether to move Z.

    References:
        Tran, Milios, Michiardi and Filippone (2021), "Sparse within Sparse Gaussian Processes using Neighbor
        Information". The weight of the divergence and the diagonal q(u) are choices made here.

    Examples:
        >>> from bayeskit.core.likelihood import Gaussian
        >>> from bayeskit.gp import default_prior
        >>> x = torch.linspace(0, 6, 60, dtype=torch.float64).unsqueeze(-1)
        >>> data, generator = Data(x, x.sin()), torch.Generator().manual_seed(0)
        >>> fit = SWSGP(num_inducing=30, num_neighbors=8).infer(default_prior(x), Gaussian(), data, generator=generator)
        >>> bool((fit.posterior(x).mean - x.sin()).abs().max() < 0.05)
        True
    """

    quick: ClassVar[Mapping[str, Any]] = {
        "num_inducing": 40,
        "num_neighbors": 10,
        "training": Training(lr=0.05, max_epochs=15, batch_size=256),
    }

    num_inducing: int = 2000
    num_neighbors: int = 32
    start: str = "kmeans"
    training: Training | None = None
    learn: bool = True
    learn_inducing: bool = True

    def _fit(self, model: Model, rows: Data, generator: torch.Generator) -> Fit:
        z, history = self._train(model, rows, generator)
        num_neighbors = min(self.num_neighbors, len(z))
        with torch.no_grad():
            mean, variance, value = optimal_q(model, z, rows, num_neighbors, max_steps=30)
            process = _posterior(model, z, mean, variance, num_neighbors)
        diagnostics: dict[str, Any] = {"inducing points": len(z), "neighbors": num_neighbors}
        if num_neighbors < len(z) and ROWS_A_POINT * len(z) > len(rows):
            diagnostics["warning"] = (
                f"{len(rows)} distinct inputs for {len(z)} inducing points: with fewer than {ROWS_A_POINT} for each "
                "neighbors carry little information; lower `num_inducing`, or use `gp.SVGP` or `gp.SGPR`"
            )
        kind = "lower bound" if num_neighbors == len(z) else "surrogate objective"
        return Fit(process, model.frozen_likelihood(), Evidence(value, kind), history, diagnostics)

    def _validate(self) -> None:
        checks.positive(self.num_inducing, name="num_inducing", integer=True)
        checks.positive(self.num_neighbors, name="num_neighbors", integer=True)
        checks.choice(self.start, name="start", options=STARTS)
        if self.num_inducing > MOST_POINTS:
            raise ValueError(f"`num_inducing` must be at most {MOST_POINTS} for SWSGP; got {self.num_inducing}")

    def _train(self, model: Model, rows: Data, generator: torch.Generator) -> tuple[Tensor, dict[str, list[float]]]:
        """Learn hyperparameters and Z along with q; Z and the training curve."""
        z, complete = starting_points(
            model.kernel, inputs(rows), self.num_inducing, start=self.start, generator=generator
        )
        points = MovingPoints(z, inputs(rows), move=self.learn_inducing and not complete)
        learned, num_neighbors = [*model.parameters, *points.parameters], min(self.num_neighbors, len(z))
        if not learned:
            return z, {}
        with torch.no_grad():
            mean, variance, _ = optimal_q(model, z, rows, num_neighbors, max_steps=3)
        mean, log_variance = mean.requires_grad_(), variance.log().requires_grad_()
        total_weight = float(len(rows) if rows.weights is None else rows.weights.sum())

        def loss(batch: Data) -> Tensor:
            near = neighborhoods(model.kernel, points(), inputs(batch), num_neighbors)
            value = bound(model, near, mean, log_variance.exp(), batch, total_weight=total_weight)
            return -(value + model.log_prior())

        training = self.training or Training.of_steps(DEFAULT_STEPS, len(rows), lr=0.02, batch_size=DEFAULT_BATCH)
        leaves = [*learned, mean, log_variance]
        history = minimize(loss, leaves, rows, training, generator=generator, description="SWSGP")
        return points().detach(), history


def bound(
    model: Model, near: Neighborhoods, mean: Tensor, variance: Tensor, data: Data, *, total_weight: float
) -> Tensor:
    """The objective of a mini-batch on the scale of the full data, with q(u) = N(mean, diag(variance)), each (k, m).

    Args:
        model: Mean, kernel and any likelihood.
        near: The neighbors of the data points.
        mean: mu, (k, m).
        variance: s, (k, m).
        data: The mini-batch.
        total_weight: Of all data, their number where they have no weights; a batch's own would bias the divergence.
    """
    center = mean_rows(model.mean, inputs(data), model.num_outputs).mT + near.mean(mean)
    expected = model.expected_log_prob(center, near.variance(variance), data.y)
    mu, s = mean[:, near.index].movedim(0, 1), variance[:, near.index].movedim(0, 1)  # (n, k, h)
    eye = torch.eye(mu.shape[-1], dtype=mu.dtype, device=mu.device).expand(near.tril.shape)
    inverse = torch.linalg.solve_triangular(near.tril, eye, upper=False)  # L^-1, (n, c, h, h)
    energy = (inverse @ mu.unsqueeze(-1)).square().sum((-2, -1)) + (inverse.square().sum(-2) * s).sum(-1)
    logdet = 2 * near.tril.diagonal(dim1=-2, dim2=-1).log().sum(-1) - s.log().sum(-1)
    divergence = 0.5 * (energy - mu.shape[-1] + logdet).sum(-1)  # (n,)
    return data.total(expected) - mean.shape[-1] / mu.shape[-1] * data.total(divergence) / total_weight


def optimal_q(
    model: Model, z: Tensor, rows: Data, num_neighbors: int, *, max_steps: int, tolerance: float = 1e-7
) -> tuple[Tensor, Tensor, float]:
    """Maximize the objective over q(u) alone, over all data; in closed form for a Gaussian likelihood.

    With P the average over data points of K_II^-1 spread over M and c the share of them that have a point among their
    neighbors, both times M / H, and the dual pair (a_i, b_i) of `Model.site_gradients`, a natural-gradient step goes
    towards

        mu = L^-1 sum_i w_i (a_i + b_i w_i' mu) w_i,    1/s = diag(L) / c,    L = P + sum_i w_i b_i w_i w_i',

    which is the optimum for Gaussian noise. A point that is nobody's neighbor keeps its prior variance.

    Returns:
        mu and s, each (k, m), and the objective.
    """
    sums = _Sums.build(model, z, rows, num_neighbors)
    mean = z.new_zeros(model.num_outputs, len(z))
    start = _State.at(sums, mean, gram_diagonal(model.kernel, z).expand(mean.shape))
    best = natural_gradient_ascent(start, max_steps=max_steps, tolerance=tolerance).state
    return best.mean, best.variance, best.value


@dataclass(frozen=True, eq=False)
class _State:
    """A diagonal q(u) = N(mean, variance), each (k, m), and its objective."""

    sums: "_Sums"
    mean: Tensor
    variance: Tensor
    value: float

    @classmethod
    def at(cls, sums: "_Sums", mean: Tensor, variance: Tensor) -> "_State":
        return cls(sums, mean, variance, sums.bound(mean, variance))

    def propose(self, length: float) -> "_State":
        mean, precision = self.target
        return _State.at(
            self.sums, torch.lerp(self.mean, mean, length), 1 / torch.lerp(1 / self.variance, precision, length)
        )

    @cached_property
    def target(self) -> tuple[Tensor, Tensor]:
        return self.sums.optimum(self.mean, self.variance)


@dataclass(frozen=True, eq=False)
class _Sums:
    """What `optimal_q` needs of all data, at fixed hyperparameters and Z.

    Args:
        model: The model.
        rows: All data.
        near: The neighbors of the data points, with an empty `tril`.
        prior: P, (c, m, m).
        seen: The share of data points with a point among their neighbors, times M / H, (m,).
        logdet: M / H times the average of log|K_II|, (c,).
        own: k(z, z), (c, m) or (m,).
    """

    model: Model
    rows: Data
    near: Neighborhoods
    prior: Tensor
    seen: Tensor
    logdet: Tensor
    own: Tensor

    @classmethod
    def build(cls, model: Model, z: Tensor, rows: Data, num_neighbors: int) -> "_Sums":
        count, m = max(1, model.kernel.batch_shape.numel()), len(z)
        share = torch.ones_like(inputs(rows)[:, 0]) if rows.weights is None else rows.weights
        share = share / share.sum() * m / num_neighbors  # the average divergence counts M / H times
        prior, logdet = z.new_zeros(count, m * m), z.new_zeros(count)
        parts, start = [], 0
        for x in operators.pieces(inputs(rows), count * num_neighbors**2):
            near, portion = neighborhoods(model.kernel, z, x, num_neighbors), share[start : start + len(x)]
            inverse = torch.cholesky_inverse(near.tril) * portion[:, None, None, None]
            pairs = (near.index.unsqueeze(-1) * m + near.index.unsqueeze(-2)).flatten()
            prior.index_add_(1, pairs, inverse.movedim(1, 0).reshape(count, -1))
            logdet += 2 * (near.tril.diagonal(dim1=-2, dim2=-1).log().sum(-1) * portion.unsqueeze(-1)).sum(0)
            parts.append(Neighborhoods(near.index, near.tril[:0], near.weights, near.residual))
            start += len(x)
        index, tril, weights, residual = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("index", "tril", "weights", "residual")
        )
        seen = z.new_zeros(m).index_add_(0, index.flatten(), share.repeat_interleave(num_neighbors))
        near = Neighborhoods(index, tril, weights, residual)
        return cls(model, rows, near, prior.reshape(count, m, m), seen, logdet, gram_diagonal(model.kernel, z))

    def bound(self, mean: Tensor, variance: Tensor) -> float:
        """The objective over all data."""
        center = mean_rows(self.model.mean, inputs(self.rows), len(mean)).mT + self.near.mean(mean)
        expected = self.model.expected_log_prob(center, self.near.variance(variance), self.rows.y)
        energy = ((self.prior @ mean.unsqueeze(-1)).squeeze(-1) * mean).sum()
        trace = (self.prior.diagonal(dim1=-2, dim2=-1) * variance).sum()
        logdet = self.logdet.expand(len(mean)).sum() - (self.seen * variance.log()).sum()
        divergence = 0.5 * (energy + trace - mean.numel() + logdet)
        return float(self.rows.total(expected) - divergence)

    def optimum(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """The target of a full step: mu and 1 / s, each (k, m)."""
        near, (k, m) = self.near, mean.shape
        shift = near.mean(mean)  # (n, k)
        center = mean_rows(self.model.mean, inputs(self.rows), k).mT + shift
        alpha, beta = self.model.site_gradients(center, near.variance(variance), self.rows.y)
        if self.rows.weights is not None:
            alpha, beta = alpha * self.rows.weights.unsqueeze(-1), beta * self.rows.weights.unsqueeze(-1)
        pull = near.weights * (alpha + beta * shift).unsqueeze(-1)  # (n, k, h)
        total = mean.new_zeros(k, m).index_add_(1, near.index.flatten(), pull.movedim(1, 0).reshape(k, -1))
        precision = self.prior + torch.diag_embed((self.seen == 0) / self.own)
        precision = precision.expand(k, m, m).reshape(k, m * m).clone()
        size = max(1, operators.CHUNK_ELEMENTS // (k * near.index.shape[-1] ** 2))
        for start in range(0, len(shift), size):
            part = slice(start, start + size)
            index, weights = near.index[part], near.weights[part]
            outer = (weights * beta[part].unsqueeze(-1)).unsqueeze(-1) * weights.unsqueeze(-2)  # (b, k, h, h)
            pairs = (index.unsqueeze(-1) * m + index.unsqueeze(-2)).flatten()
            precision.index_add_(1, pairs, outer.movedim(1, 0).reshape(k, -1))
        precision = precision.reshape(k, m, m)
        factor = operators.factorize(precision, name="precision of u")
        share = torch.where(self.seen > 0, self.seen, torch.ones_like(self.seen))
        return factor.solve(total.unsqueeze(-1)).squeeze(-1), precision.diagonal(dim1=-2, dim2=-1) / share


def _posterior(model: Model, z: Tensor, mean: Tensor, variance: Tensor, num_neighbors: int) -> GaussianProcess:
    """The process with q(u) = N(mean, diag(variance))."""
    prior = model.process()
    shared = model.num_outputs == 1 and not prior.kernel.batch_shape
    kernel = Nearest(prior.kernel, z, variance[0] if shared else variance, num_neighbors=num_neighbors)
    process_mean = NearestMean(prior.mean, prior.kernel, z, mean, num_neighbors=num_neighbors)
    return GaussianProcess(process_mean, kernel, prior.num_outputs, prior.mixing)
