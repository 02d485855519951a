import pytest
import torch
from gpytorch.kernels import RBFKernel

from bayeskit.gp.kernels.evaluate import gram, gram_diagonal
from bayeskit.gp.kernels.pivoted_cholesky import pivoted_cholesky
from bayeskit.gp.model.inducing_points import MovingPoints, metric, starting_points

from ..problems import close, generator, matern, scaled, test_inputs


def test_full_pivoted_cholesky_is_a_factor():
    kernel, x = matern().requires_grad_(False), test_inputs(15)
    k = gram(kernel, x, x)
    factor, pivots = pivoted_cholesky(gram_diagonal(kernel, x), lambda i: k[i], 15)
    close(factor @ factor.mT, k, 1e-12)
    assert sorted(pivots.tolist()) == list(range(15))


def test_pivoted_cholesky_takes_the_least_known_row_and_stops():
    kernel = matern().requires_grad_(False)
    x = torch.cat([test_inputs(6)] * 2)  # rank six
    k = gram(kernel, x, x)
    factor, pivots = pivoted_cholesky(k.diagonal(), lambda i: k[i], 12, tolerance=1e-10)
    assert len(pivots) == factor.shape[-1] == 6
    for j in range(1, 6):
        chosen = pivots[:j]
        left = k - k[:, chosen] @ torch.linalg.solve(k[chosen][:, chosen], k[chosen])
        close(left.diagonal()[pivots[j]], left.diagonal().max(), 1e-9)


@pytest.mark.parametrize("start", ["greedy", "kmeans"])
def test_starting_points_ignore_order_and_repetition(start):
    x = test_inputs(60)
    again = torch.cat([x, x[:20]])[torch.randperm(80, generator=generator())]
    points = [starting_points(matern(), rows, 9, start=start, generator=generator()) for rows in (x, again)]
    assert torch.equal(points[0][0], points[1][0])
    assert points[0][0].shape == (9, 2)
    assert not points[0][1]


@pytest.mark.monte_carlo
def test_the_metric_is_that_of_the_lengthscales():
    x = test_inputs(200, 3)
    kernel = scaled(RBFKernel(ard_num_dims=3), torch.tensor([[0.3, 2.0, 500.0]], dtype=torch.float64))
    close(metric(kernel, x) / torch.tensor([0.3, 2.0, 500.0]), torch.ones(3), 1e-4)
    rough = metric(matern((0.9, 90.0)), x[:, :2])
    close(rough[1] / rough[0], torch.tensor(100.0), 0.05)
    total = matern((0.9, 1.4)) + matern((0.9, 1.4), nu=1.5)
    ratio = metric(total.requires_grad_(False), x[:, :2])
    assert 1.4 < float(ratio[1] / ratio[0]) < 1.7  # 1.56, whatever the kernel


@pytest.mark.monte_carlo
def test_clusters_ignore_features_that_the_kernel_ignores():
    x = test_inputs(400, 2)
    kernel = matern((0.5, 1e4))
    z, _ = starting_points(kernel, x, 12, start="kmeans", generator=generator())
    nearest = (x[:, None, 0] - z[None, :, 0]).abs().amin(1)
    assert float(nearest.mean()) < 0.15  # twelve points on one feature; in two they leave 0.2


def test_few_distinct_inputs_are_taken_whole():
    points, complete = starting_points(matern(), test_inputs(5).repeat(4, 1), 9, start="greedy", generator=generator())
    assert complete
    assert len(points) == 5


def test_an_unknown_start_is_named():
    with pytest.raises(ValueError, match="did you mean 'greedy'"):
        starting_points(matern(), test_inputs(5), 2, start="gredy", generator=generator())


def test_moving_points_move_in_units_of_the_spread_and_others_stay():
    x = torch.tensor([[0.0, 0.0], [2.0, 20.0]], dtype=torch.float64)  # deviations 1 and 10
    points = MovingPoints(x, x, move=True)
    (leaf,) = points.parameters
    points().sum().backward()
    close(leaf.grad, torch.tensor([[1.0, 10.0]] * 2, dtype=torch.float64), 1e-12)
    resting = MovingPoints(x, x, move=False)
    assert resting() is x
    assert resting.parameters == []
