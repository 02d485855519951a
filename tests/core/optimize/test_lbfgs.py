import pytest
import torch
from torch.linalg import LinAlgError

from bayeskit.core.optimize import minimize_lbfgs


def test_a_quadratic_is_solved(generator):
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    matrix, target = root @ root.mT + torch.eye(6, dtype=torch.float64), torch.arange(6.0, dtype=torch.float64)
    w = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    history = minimize_lbfgs(lambda: 0.5 * w @ matrix @ w - target @ w, [w], tolerance=1e-15)
    assert torch.allclose(w, torch.linalg.solve(matrix, target), atol=1e-6)
    assert history["loss"] == sorted(history["loss"], reverse=True) and history["gradient"][-1] < 1e-6
    assert w.grad is None


def test_several_tensors_of_several_types_and_a_frozen_one():
    a, b = torch.zeros(2, 2, requires_grad=True), torch.zeros((), dtype=torch.float64, requires_grad=True)
    frozen = torch.ones(1)
    minimize_lbfgs(lambda: (a - 1).square().sum().double() + (b - 2).square() + frozen.sum(), [a, frozen, b])
    assert torch.allclose(a, torch.ones(2, 2), atol=1e-5) and b.item() == pytest.approx(2, abs=1e-5)
    assert torch.equal(frozen, torch.ones(1))


@pytest.mark.parametrize("kind", ["error", "nan", "infinity"])
def test_a_step_too_far_is_not_the_end(kind):
    w = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    trips = 0

    def loss():
        nonlocal trips
        if w.item() <= 0:
            trips += 1
            if kind == "error":
                raise LinAlgError("Cholesky failed")
            return w.sum() * (float("nan") if kind == "nan" else float("inf"))
        return 50 * w.sum() - 10 * w.log().sum()  # a minimum at 0.2, right before the cliff

    minimize_lbfgs(loss, [w], tolerance=1e-14)
    assert trips > 0 and w.item() == pytest.approx(0.2, abs=1e-6)


def test_a_start_that_fails_is_the_callers_to_know():
    w = torch.zeros(1, requires_grad=True)
    with pytest.raises(FloatingPointError, match="evidence: .*not finite at the start"):
        minimize_lbfgs(lambda: w.log().sum(), [w], description="evidence")

    def fails():
        raise LinAlgError("Cholesky failed")

    with pytest.raises(LinAlgError):
        minimize_lbfgs(fails, [w])


def test_max_iter_bounds_the_iterations():
    w = torch.tensor([-1.2, 1.0], dtype=torch.float64, requires_grad=True)
    history = minimize_lbfgs(lambda: (1 - w[0]) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2, [w], max_iter=3)
    assert len(history["loss"]) == 4
    assert history["loss"][-1] == pytest.approx(((1 - w[0]) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2).item(), rel=1e-12)


def test_nothing_to_learn_is_fine():
    assert minimize_lbfgs(lambda: torch.tensor(2.0), [torch.zeros(1)]) == {"loss": [2.0], "gradient": [0.0]}
