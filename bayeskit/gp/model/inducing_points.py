"""Where inducing points start."""

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from bayeskit.core import checks
from bayeskit.core.operators.chunking import chunks
from bayeskit.gp.kernels.evaluate import gram, gram_diagonal, gram_pairs
from bayeskit.gp.kernels.pivoted_cholesky import pivoted_cholesky

MAX_CANDIDATES = 20_000
"""Rows among which the starting points are looked for; more are thinned out at random."""

LLOYD_STEPS = 10

METRIC_STEP = 0.1
"""Step along each feature, in units of its spread, over which a kernel's loss of correlation is read off."""

METRIC_ROWS = 64

STARTS = ("greedy", "kmeans")


def starting_points(
    kernel: Kernel, x: Tensor, num_inducing: int, *, start: str, generator: torch.Generator
) -> tuple[Tensor, bool]:
    """Distinct inducing points chosen from the inputs, whatever their order and however often a row is repeated.

    Args:
        kernel: The kernel at its starting hyperparameters.
        x: Inputs (n, d).
        num_inducing: Points wanted, m.
        start: "greedy" takes the input with the largest variance given those taken before; "kmeans" takes the centers
            of clusters of the inputs, in the kernel's own `metric`, so that irrelevant features count for nothing.
        generator: Source of randomness.

    Returns:
        Points (m, d), fewer where the inputs have fewer distinct rows (or, greedily, leave no variance), and whether
        they are *all* distinct inputs, so that nothing is approximated.

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
    """Standard deviation of each feature, one where it is constant, (d,): the unit in which inducing points move.

    Examples:
        >>> spread(torch.tensor([[0.0, 7.0], [2.0, 7.0]])).tolist()
        [1.0, 1.0]
    """
    deviation = x.std(0, correction=0)
    return torch.where(deviation > 1e-10 * x.abs().amax(0), deviation, torch.ones_like(deviation))


class MovingPoints:
    """Inducing points that an optimizer moves in units of the features' spread, or that stay.

    Args:
        z: Where they start, (m, d).
        x: The inputs, (n, d), whose spread is the unit.
        move: Whether they move.

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
        """Where they are, (m, d), differentiable in `parameters`."""
        return self.parameters[0] * self._unit if self.parameters else self._start


@torch.no_grad()
def metric(kernel: Kernel, x: Tensor) -> Tensor:
    r"""The distance in each feature over which a kernel decorrelates, (d,): lengthscales up to a factor they share.

    With rho_j the correlation, averaged over some rows, between an input and the same input moved by a step h_j along
    feature j,

        l_j = h_j / sqrt(-2 log rho_j),

    which is the lengthscale of an RBF kernel and in proportion to those of a Matern one; any kernel has it.

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
    """Largest conditional variance first, of the average kernel where outputs have their own."""

    def row(i: int) -> Tensor:
        return gram(kernel, x[i : i + 1], x).reshape(-1, len(x)).mean(0)

    diagonal = gram_diagonal(kernel, x).reshape(-1, len(x)).mean(0)
    _, pivots = pivoted_cholesky(diagonal, row, num_inducing, tolerance=1e-10)
    return x[pivots].clone()


@torch.no_grad()
def _cluster_centers(kernel: Kernel, x: Tensor, num_inducing: int, generator: torch.Generator) -> Tensor:
    """k-means in the kernel's metric, from centers drawn among the inputs."""
    center, scale = x.mean(0), metric(kernel, x)
    points = (x - center) / scale
    order = torch.randperm(len(points), generator=generator, device=generator.device)[:num_inducing]
    centers = points[order.to(points.device)]
    assigned = None
    for _ in range(LLOYD_STEPS):
        sums, sizes, closest = _assigned(points, centers)
        if assigned is not None and torch.equal(closest, assigned):
            break
        assigned = closest
        centers = torch.where(sizes > 0, sums / sizes.clamp_min(1), centers)
    return centers * scale + center


def _assigned(points: Tensor, centers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum (m, d) and number (m, 1) of the points nearest to each center; the nearest center of each point, (n,)."""
    sums, sizes, closest = torch.zeros_like(centers), torch.zeros_like(centers[:, :1]), []
    for part in chunks(len(points), 4 * len(centers), cached=True):
        nearest = torch.cdist(points[part], centers).argmin(-1, keepdim=True)
        members = points.new_zeros(len(nearest), len(centers)).scatter_(1, nearest, 1.0)
        sums += members.mT @ points[part]  # a product sums in a fixed order, which adding by index does not
        sizes += members.sum(0).unsqueeze(-1)
        closest.append(nearest.squeeze(-1))
    return sums, sizes, torch.cat(closest)
