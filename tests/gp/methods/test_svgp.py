import pytest
import torch

from bayeskit.core.likelihood import Bernoulli, Categorical, Gaussian, Poisson
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data
from bayeskit.gp import SGPR, SVGP, default_prior
from bayeskit.gp.model.hyperparameters import learnable
from bayeskit.gp.model.training_set import training_set
from bayeskit.gp.variational.collapsed_bound import collapsed
from bayeskit.gp.variational.whitened_gaussian import WhitenedGaussian
from bayeskit.gp.variational.whitened_posterior import affordable_steps, bound, optimal_q

from ..problems import close, constant, generator, noise, process, regression, same_gp, test_inputs

SHORT = SVGP(num_inducing=12, training=Training(lr=0.05, max_epochs=15, batch_size=32))


def fit(data, prior, likelihood, method=SHORT):
    return method.infer(prior, likelihood, data, generator=generator())


@pytest.mark.parametrize("k", [1, 2])
def test_at_the_optimum_it_is_sgpr(k):
    data, x = regression(40, k=k), test_inputs()
    prior, likelihood = process(k=k, mean=constant(0.2, k)), noise([0.05, 0.2][:k])
    settings = {"num_inducing": 8, "learn": False, "learn_inducing": False}
    sparse, variational = fit(data, prior, likelihood, SGPR(**settings)), fit(data, prior, likelihood, SVGP(**settings))
    assert abs(float(sparse.log_evidence) - float(variational.log_evidence)) < 1e-8
    same_gp(sparse.posterior, variational.posterior, x)


@pytest.mark.parametrize("weighted", [False, True])
def test_one_full_step_reaches_the_collapsed_bound_from_anywhere(weighted):
    data = regression(40, k=2)
    if weighted:
        data = Data(data.x, data.y, 0.5 + torch.rand(len(data), dtype=torch.float64, generator=generator()))
    prior, likelihood = process(k=2), noise([0.05, 0.2])
    rows, model, z = training_set(prior, likelihood, data), learnable(prior, likelihood, learn=False), test_inputs(8)
    g = generator(4)
    root = torch.eye(8, dtype=torch.float64) + 0.3 * torch.randn(2, 8, 8, dtype=torch.float64, generator=g).triu()
    anywhere = WhitenedGaussian(torch.randn(2, 8, dtype=torch.float64, generator=g), root)
    reached, value = optimal_q(model, z, anywhere, rows, max_steps=1)
    best = collapsed(model, z, rows)
    assert abs(value - best.bound.item()) < 1e-8
    close(bound(model, z, reached, rows), best.bound)
    close(reached.mean, best.whitened)
    same_gp(reached.posterior(model, z), best.posterior(model.process(), z), test_inputs())


def test_mini_batches_estimate_the_bound():
    data = regression(40)
    prior, likelihood = process(), noise()
    model, z = learnable(prior, likelihood, learn=False), test_inputs(8)
    variational, _ = optimal_q(model, z, WhitenedGaussian.prior(1, z), data, max_steps=1)
    full = bound(model, z, variational, data)
    parts = [bound(model, z, variational, batch) for batch in data.batches(10, generator=generator())]
    close(torch.stack(parts).mean(), full)  # batches of equal size partition the data


def test_the_end_is_a_stationary_point_of_the_bound():
    """At the final q(v), no gradient in q is left, whatever the likelihood."""
    data = regression(30)
    counts = Data(data.x, torch.poisson(data.y.exp(), generator=generator()))
    model, z = learnable(process(), Poisson(), learn=False), test_inputs(6)
    best, value = optimal_q(model, z, WhitenedGaussian.prior(1, z), counts, max_steps=100, tolerance=1e-13)
    leaves = best.leaves()
    at = bound(model, z, WhitenedGaussian(*leaves), counts)
    assert abs(at.item() - value) < 1e-8
    for gradient in torch.autograd.grad(at, leaves):
        assert float(gradient.abs().max()) < 1e-4


@pytest.mark.monte_carlo
def test_bernoulli_separates_two_classes():
    data = regression(80)
    labels = (data.y[:, 0] > 0).long()
    result = fit(Data(data.x, labels), default_prior(data.x), Bernoulli())
    accuracy = ((result.posterior(data.x).mean[:, 0] > 0).long() == labels).double().mean()
    assert accuracy > 0.85
    assert result.log_evidence.kind == "lower bound"


@pytest.mark.monte_carlo
def test_learning_improves_the_bound():
    data = regression(60)
    prior = default_prior(data.x)
    fixed = fit(data, prior, Gaussian(), SVGP(num_inducing=12, learn=False, learn_inducing=False))
    learned = fit(data, prior, Gaussian())
    assert float(learned.log_evidence) > float(fixed.log_evidence) + 1


def test_order_and_repetition_of_data_change_nothing():
    data, x = regression(30), test_inputs()
    weights = torch.arange(30, dtype=torch.float64) % 3
    shuffled = data.rows(torch.randperm(len(data), generator=generator()))
    prior = default_prior(data.x)
    one, two = (fit(d, prior, Gaussian()) for d in (data, shuffled))
    same_gp(one.posterior, two.posterior, x, 0)
    labels = (data.y[:, 0] > 0).long()
    method = SVGP(num_inducing=12, learn=False, learn_inducing=False)
    repeated = Data(data.x, labels).rows(torch.arange(30).repeat_interleave(weights.long()))
    one, two = (fit(d, process(), Bernoulli(), method) for d in (Data(data.x, labels, weights), repeated))
    same_gp(one.posterior, two.posterior, x)
    assert abs(float(one.log_evidence) - float(two.log_evidence)) < 1e-8


def test_a_prior_with_too_few_latents_is_refused():
    data = regression(10)
    with pytest.raises(ValueError, match="needs 3 latent functions"):
        fit(Data(data.x, torch.arange(10) % 3), process(), Categorical(3))


def test_the_number_of_final_steps_falls_with_data_and_functions():
    models = [learnable(default_prior(torch.zeros(2, 1), k), Categorical(k), learn=False) for k in (1, 10)]
    assert [affordable_steps(models[0], n) for n in (100, 200_000, 10_000_000)] == [100, 20, 2]
    assert affordable_steps(models[1], 60_000) == 6


def test_the_optimum_does_not_depend_on_the_start():
    data = Data(test_inputs(40, 2), torch.arange(40).remainder(3))
    model = learnable(default_prior(data.x, 3), Categorical(3), learn=False)
    z = data.x[::4]
    far = WhitenedGaussian.prior(3, z)
    moved = WhitenedGaussian(far.mean + 1, far.root * 0.3)
    values = [optimal_q(model, z, start, data, max_steps=100, tolerance=1e-12)[1] for start in (far, moved)]
    assert values[0] == pytest.approx(values[1], rel=1e-8)
