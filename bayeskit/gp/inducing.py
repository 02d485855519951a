"""Where inducing points start."""

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from bayeskit.core import checks
from bayeskit.gp.gram import gram, gram_diagonal
from bayeskit.gp.pivoted_cholesky import pivoted_cholesky

MAX_CANDIDATES = 20_000
"""Rows among which the starting points are looked for; more are thinned out at random."""

LLOYD_STEPS = 20

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
            of clusters of the inputs.
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
    """k-means on features of unit spread, from centers drawn far apart.

    References:
        Arthur and Vassilvitskii (2007), "k-means++: The Advantages of Careful Seeding", section 2.2.
    """
    scale = spread(x)
    points = (x - x.mean(0)) / scale
    centers, nearest = points[:0], torch.ones_like(points[:, 0])
    for _ in range(num_inducing):
        weights = nearest.clamp_min(1e-300).to(generator.device)
        chosen = points[torch.multinomial(weights, 1, generator=generator).to(x.device)]
        nearest = torch.minimum(nearest, _squares(points, chosen)) if len(centers) else _squares(points, chosen)
        centers = torch.cat([centers, chosen])
    assigned = None
    for _ in range(LLOYD_STEPS):
        closest = torch.cdist(points, centers).argmin(-1)
        if assigned is not None and torch.equal(closest, assigned):
            break
        assigned = closest
        members = torch.nn.functional.one_hot(closest, num_inducing).to(points)  # a product sums in a fixed order
        sizes = members.sum(0).unsqueeze(-1)
        centers = torch.where(sizes > 0, members.mT @ points / sizes.clamp_min(1), centers)
    return centers * scale + x.mean(0)


def _squares(points: Tensor, center: Tensor) -> Tensor:
    return (points - center).square().sum(-1)
