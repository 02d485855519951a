import pytest
import torch
from torch.autograd.functional import jacobian

from bayeskit import mcmc
from bayeskit.mcmc.analysis.kernel_stein_discrepancy import stein_kernel


def gaussian(position):
    return -0.5 * position["x"].square().sum(-1)


def test_the_kernel_is_the_stein_operator_applied_twice(generator):
    # By automatic differentiation of k(x, y) = (1 + |x - y|^2)^(-1/2) for each pair.
    x, y, s, t = torch.randn(4, 3, 2, generator=generator, dtype=torch.float64)

    def kernel(a, b):
        return (1 + (a - b).square().sum()).rsqrt()

    def expected(a, sa, b, sb):
        by_a = jacobian(lambda u: kernel(u, b), a)
        by_b = jacobian(lambda u: kernel(a, u), b)
        mixed = jacobian(lambda u: jacobian(lambda v: kernel(u, v), b, create_graph=True), a)
        return sa @ sb * kernel(a, b) + sa @ by_b + sb @ by_a + mixed.trace()

    pairs = [[expected(x[i], s[i], y[j], t[j]) for j in range(3)] for i in range(3)]
    assert torch.allclose(stein_kernel(x, s, y, t), torch.tensor(pairs, dtype=torch.float64), rtol=1e-12)


def test_one_draw_has_a_closed_form():
    x = torch.tensor([[3.0, 4.0]])
    assert mcmc.ksd(gaussian, {"x": x}).item() == pytest.approx((25 + 2) ** 0.5)
    assert mcmc.ksd(gaussian, {"x": x}, units=torch.tensor([2.0, 2.0])).item() == pytest.approx((4 * 25 + 2) ** 0.5)


@pytest.mark.monte_carlo
def test_exact_draws_have_the_expected_discrepancy(generator):
    # The square has mean E k0(x, x) / n = (E|s|^2 + p) / n; its terms off the diagonal have mean zero.
    x = torch.randn(100, 1200, 2, generator=generator, dtype=torch.float64)[:, :300]
    squares = torch.stack([mcmc.ksd(gaussian, {"x": draws}) for draws in x]).square()
    assert abs(squares.mean() - 4 / 300) < 5 * squares.std() / 10


@pytest.mark.monte_carlo
@pytest.mark.parametrize("wrong", ["mean", "spread"])
def test_a_wrong_distribution_is_detected(generator, wrong):
    x = torch.randn(1200, 2, generator=generator, dtype=torch.float64)
    moved = x + 0.3 if wrong == "mean" else 1.3 * x
    assert mcmc.ksd(gaussian, {"x": moved}) > 2 * mcmc.ksd(gaussian, {"x": x})


def test_blocks_and_leaves_change_nothing(generator):
    x = torch.randn(701, 3, 2, generator=generator, dtype=torch.float64)

    def density(position):
        return -0.25 * position["a"].pow(4).sum(-1) - position["b"].square().sum((-1, -2))

    whole = mcmc.ksd(density, {"a": x[:, 0], "b": x[:, 1:]})
    slopes = torch.cat([-x[:, 0].pow(3), -2 * x[:, 1:].flatten(1)], 1)
    flat = x.flatten(1)
    assert whole.item() == pytest.approx(stein_kernel(flat, slopes, flat, slopes).mean().sqrt().item(), rel=1e-10)
