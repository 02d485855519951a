import pytest
import torch

from bayeskit.core.likelihood import Gaussian
from bayeskit.core.types import Data
from bayeskit.gp import Exact, default_prior
from bayeskit.gp.kernels.evaluate import gram
from bayeskit.gp.process.cg_kernel import Preconditioner, System

from ..problems import Counted, close, constant, generator, matern, noise, process, regression, same_gp, test_inputs

TOLERANCE = 1e-8


def fit(data, solver, likelihood=None, prior=None, **settings):
    method = Exact(solver=solver, tolerance=TOLERANCE, **{"learn": False} | settings)
    prior = prior or process(k=data.y.shape[-1], mean=constant(0.1, data.y.shape[-1]))
    return method.infer(prior, likelihood or noise(), data, generator=generator())


@pytest.mark.monte_carlo
@pytest.mark.parametrize("level", [0.05, 1e-3])
def test_equals_cholesky_on_1500_rows(level):
    data, x = regression(1500, k=2), test_inputs()
    one, two = fit(data, "cholesky", noise(level)), fit(data, "cg", noise(level))
    # The relative residual of the solution is at most the tolerance, its error at most |k(x, X)| |C^-1| |b| times that.
    same_gp(two.posterior, one.posterior, x, 1e3 * TOLERANCE)
    assert two.diagnostics["relative residual of conjugate gradients"] <= TOLERANCE
    error = two.diagnostics["standard error of the log evidence"]
    assert error < 0.01 * abs(float(one.log_evidence))
    assert abs(float(two.log_evidence) - float(one.log_evidence)) <= 5 * error


def test_weights_and_order():
    data, x = regression(60), test_inputs()
    weights = torch.arange(60, dtype=torch.float64) % 3
    weighted = Data(data.x, data.y, weights)
    one, two = fit(weighted, "cholesky"), fit(weighted, "cg")
    same_gp(two.posterior, one.posterior, x, 1e-6)
    shuffled = weighted.rows(torch.randperm(60, generator=generator()))
    same_gp(fit(shuffled, "cg").posterior, two.posterior, x, 0)


def test_it_can_be_conditioned_further():
    data, more, x = regression(60), regression(20, seed=5), test_inputs()
    first = fit(data, "cg").posterior
    folded = fit(more, "cholesky", prior=first).posterior
    both = fit(Data(torch.cat([data.x, more.x]), torch.cat([data.y, more.y])), "cholesky").posterior
    same_gp(folded, both, x, 1e-6)


@pytest.mark.monte_carlo
def test_fixed_functions_pass_near_the_data():
    data = regression(60)
    result = fit(data, "cg", noise(1e-4))
    values = result.posterior.sample_functions(5, generator=generator())(data.x)
    assert float((values - data.y).std()) < 0.05


@pytest.mark.monte_carlo
def test_low_rank_preconditioner_leaves_the_answer(monkeypatch):
    data = regression(300)
    monkeypatch.setattr("bayeskit.gp.process.cg_kernel.PRECONDITIONER_RANK", 5)
    kernel, level = matern().requires_grad_(False), torch.full((300,), 0.05, dtype=torch.float64)
    system = System(kernel, data.x, Preconditioner.build(kernel, data.x, level), tolerance=TOLERANCE)
    dense = gram(kernel, data.x, data.x) + 0.05 * torch.eye(300, dtype=torch.float64)
    close(system.solve(data.y), torch.linalg.solve(dense, data.y), 1e-6)
    value, error = system.logdet(generator=generator())
    assert abs(float(value - torch.logdet(dense))) <= 5 * float(error)


def test_products_in_pieces_equal_the_matrix(monkeypatch):
    data = regression(50)
    kernel, level = matern().requires_grad_(False), torch.full((50,), 0.05, dtype=torch.float64)
    preconditioner = Preconditioner.build(kernel, data.x, level)
    whole = System(kernel, data.x, preconditioner, tolerance=TOLERANCE)
    monkeypatch.setattr("bayeskit.gp.process.cg_kernel.DENSE_ELEMENTS", 0)
    monkeypatch.setattr("bayeskit.core.operators.chunking.CHUNK_ELEMENTS", 7 * 50)
    close(System(kernel, data.x, preconditioner, tolerance=TOLERANCE).product(data.y), whole.product(data.y), 1e-12)


def test_the_solver_is_chosen_by_memory_and_time(monkeypatch):
    data = regression(200)
    assert "relative residual of conjugate gradients" not in fit(data, "auto").diagnostics
    for budget in ("MEMORY_BUDGET", "TIME_BUDGET"):
        with monkeypatch.context() as patch:
            patch.setattr(f"bayeskit.gp.methods.exact.{budget}", 1e-9)
            assert "relative residual of conjugate gradients" in fit(data, "auto").diagnostics


@pytest.mark.monte_carlo
def test_hyperparameters_are_learned_on_a_subset_beyond_the_range():
    data = regression(400)
    result = fit(data, "cg", Gaussian(), default_prior(data.x), learn=True, max_learning_rows=100)
    full = fit(data, "cholesky", Gaussian(), default_prior(data.x), learn=True)
    assert result.diagnostics["rows used to learn hyperparameters"] == 100
    assert abs(float(result.log_evidence) - float(full.log_evidence)) < 0.1 * abs(float(full.log_evidence))


def test_a_tolerance_out_of_reach_is_warned_of():
    data = regression(50)
    with pytest.warns(RuntimeWarning, match="relative residual"):
        Exact(solver="cg", learn=False, tolerance=1e-30).infer(process(), noise(), data, generator=generator())


def test_noise_of_its_own_for_each_output_is_refused():
    with pytest.raises(ValueError, match=r"gp\.SGPR"):
        fit(regression(20, k=2), "cg", noise([0.05, 0.1]))


def test_the_refusal_comes_before_the_kernel_is_evaluated():
    data = regression(20, k=2)
    Counted.columns.clear()
    with pytest.raises(ValueError, match=r"gp\.SGPR"):
        Exact(solver="cg").infer(process(Counted(), k=2), Gaussian([0.05, 0.1]), data, generator=generator())
    assert not Counted.columns
