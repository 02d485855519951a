"""Initial locations of inducing points."""

import warnings
from typing import Any

import torch
from gpytorch.kernels import Kernel
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits
from torch import Tensor

from bayeskit.core import checks
from bayeskit.gp.kernels.evaluate import gram, gram_diagonal, gram_pairs
from bayeskit.gp.kernels.pivoted_cholesky import pivoted_cholesky

MAX_CANDIDATES = 20_000
"""Inputs among which m initial points are chosen, a random subset of more: the greedy choice costs O(n m^2)."""

LLOYD_STEPS = 10
"""Iterations of k-means; 100 lower its objective by another 0.3 to 6 % (10,000 normal inputs, 100 to 500 centers)."""

METRIC_STEP = 0.1
"""Step along each feature, in standard deviations, over which a kernel's correlation is evaluated."""

METRIC_ROWS = 64
"""Inputs over which that correlation is averaged."""

STARTS = ("greedy", "kmeans")


def starting_points(
    kernel: Kernel, x: Tensor, num_inducing: int, *, start: str, generator: torch.Generator
) -> tuple[Tensor, bool]:
    """Distinct inducing points chosen from the inputs, independent of their order and of repeated inputs.

    Args:
        kernel: The kernel at its starting hyperparameters.
        x: Inputs (n, d).
        num_inducing: Points wanted, m.
        start: "greedy" takes the input with the largest variance given those taken before; "kmeans" takes the centers
            of clusters of the inputs in the `metric` of the kernel, in which irrelevant features have no weight.
        generator: Source of randomness.

    Returns:
        Points (m, d), fewer where there are fewer distinct inputs (or, if greedy, no variance remains), and whether
        they are *all* distinct inputs, so that the sparse posterior is exact.

    References:
        Burt, Rasmussen and van der Wilk (2020), "Convergence of Sparse Variational Inference in Gaussian Processes
        Regression", section 4.2, for the greedy choice.

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> x = torch.tensor([[0.0], [0.1], [5.0], [5.0]])
        >>> starting_points(RBFKernel(), x, 2, start="greedy", generator=torch.Generator())[0].tolist()
        [[0.0], [5.0]]
    """
    checks.choice(start, name="start", options=STARTS)
    candidates = torch.unique(x.double(), dim=0)
    if len(candidates) <= num_inducing:
        return candidates, True
    if len(candidates) > MAX_CANDIDATES:
        order = torch.randperm(len(candidates), generator=generator, device=generator.device)[:MAX_CANDIDATES]
        candidates = candidates[order.sort().values.to(candidates.device)]
    return (_greedy if start == "greedy" else _cluster_centers)(kernel, candidates, num_inducing, generator), False


def spread(x: Tensor) -> Tensor:
    """Standard deviation of each feature, one where it is constant, (d,): the unit of steps of inducing points.

    Examples:
        >>> spread(torch.tensor([[0.0, 7.0], [2.0, 7.0]])).tolist()
        [1.0, 1.0]
    """
    deviation = x.std(0, correction=0)
    return torch.where(deviation > 1e-10 * x.abs().amax(0), deviation, torch.ones_like(deviation))


class MovingPoints:
    """Inducing points that an optimizer moves in units of the features' standard deviations, or fixed ones.

    Args:
        z: Initial points, (m, d).
        x: The inputs, (n, d), whose standard deviations are the units.
        move: Whether they are optimized.

    Examples:
        >>> points = MovingPoints(torch.zeros(1, 1), torch.tensor([[-3.0], [3.0]]), move=True)
        >>> with torch.no_grad():
        ...     points.parameters[0].add_(0.5)
        tensor([[0.5000]], requires_grad=True)
        >>> points().tolist()
        [[1.5]]
    """

    def __init__(self, z: Tensor, x: Tensor, *, move: bool):
        self._start, self._unit = z, spread(x)
        self.parameters = [(z / self._unit).requires_grad_()] if move else []

    def __call__(self) -> Tensor:
        """The points, (m, d), differentiable in `parameters`."""
        return self.parameters[0] * self._unit if self.parameters else self._start


@torch.no_grad()
def metric(kernel: Kernel, x: Tensor) -> Tensor:
    r"""The distance in each feature over which a kernel decorrelates, (d,): lengthscales up to a common factor.

    With rho_j the correlation, averaged over some inputs, between an input and itself shifted by h_j along feature j,

        l_j = h_j / sqrt(-2 log rho_j),

    which is the lengthscale of an RBF kernel and proportional to those of a Matern one; it is defined for any kernel.

    Args:
        kernel: Any kernel.
        x: Inputs (n, d).

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> kernel = RBFKernel(ard_num_dims=2)
        >>> kernel.lengthscale = torch.tensor([[0.5, 4.0]])
        >>> metric(kernel, torch.tensor([[0.0, 0.0], [2.0, 2.0]])).round(decimals=3).tolist()
        [0.5, 4.0]
    """
    steps = METRIC_STEP * spread(x)
    rows = x[torch.linspace(0, len(x) - 1, min(len(x), METRIC_ROWS), device=x.device).long()]
    before = gram_diagonal(kernel, rows)
    scales = []
    for j, step in enumerate(steps):
        moved = rows.clone()
        moved[:, j] += step
        size = (before * gram_diagonal(kernel, moved)).sqrt().clamp_min(1e-300)
        correlation = (gram_pairs(kernel, rows, moved) / size).mean().clamp(1e-6, 1 - 1e-12)
        scales.append(step / (-2 * correlation.log()).sqrt())
    return torch.stack(scales)


@torch.no_grad()
def _greedy(kernel: Kernel, x: Tensor, num_inducing: int, generator: torch.Generator) -> Tensor:
    """Largest conditional variance first, of the average kernel where each output has its own."""

    def row(i: int) -> Tensor:
        return gram(kernel, x[i : i + 1], x).reshape(-1, len(x)).mean(0)

    diagonal = gram_diagonal(kernel, x).reshape(-1, len(x)).mean(0)
    _, pivots = pivoted_cholesky(diagonal, row, num_inducing, tolerance=1e-10)
    return x[pivots].clone()


@torch.no_grad()
def _cluster_centers(kernel: Kernel, x: Tensor, num_inducing: int, generator: torch.Generator) -> Tensor:
    """k-means in the kernel's metric, from centers drawn among the inputs."""
    from sklearn.cluster import KMeans  # loads rich and half of scikit-learn

    scale = metric(kernel, x)
    order = torch.randperm(len(x), generator=generator, device=generator.device)[:num_inducing]
    points = (x / scale).cpu().numpy()
    settings: dict[str, Any] = {"init": points[order.cpu().numpy()], "n_init": 1, "max_iter": LLOYD_STEPS}
    means = KMeans(num_inducing, **settings)
    # Several threads add up a cluster in an order that varies; nearly equal inputs make fewer distinct clusters.
    with threadpool_limits(1, user_api="openmp"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        centers = means.fit(points).cluster_centers_
    return torch.as_tensor(centers, device=x.device) * scale
