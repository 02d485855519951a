import pytest
import torch

from bayeskit.core.likelihood import Gaussian
from bayeskit.core.types import Data
from bayeskit.gp import SGPR
from bayeskit.gp.methods.loo_output_scale import Spectrum, _widen, calibrated
from bayeskit.gp.model.hyperparameters import learnable
from bayeskit.gp.model.training_set import training_set
from bayeskit.gp.variational.collapsed_bound import collapsed

from ..problems import close, constant, generator, matern, noise, process, regression, test_inputs


def spectrum(k=1, weighted=False, n=40):
    data = regression(n, k=k)
    if weighted:
        data = Data(data.x, data.y, 0.5 + torch.rand(n, dtype=torch.float64, generator=generator()))
    prior = process(mean=constant(0.1, k), k=k)
    rows = training_set(prior, noise(), data)
    model, z = learnable(prior, Gaussian(0.05), learn=True), test_inputs(8)
    with torch.no_grad():
        result = collapsed(model, z, rows)
    return model, z, rows, result, Spectrum.build(model, z, rows, result, torch.arange(n))


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_leaving_out_equals_conditioning_on_the_others(k, weighted):
    model, z, rows, _, found = spectrum(k, weighted)
    frozen, expected = model.frozen_likelihood(), 0.0
    for i in range(len(rows)):
        others = rows.rows(torch.arange(len(rows)) != i)
        with torch.no_grad():
            posterior = collapsed(model, z, others).posterior(model.process(), z)
            one = rows.rows(torch.tensor([i]))
            density = frozen.predictive(posterior(one.x)).log_prob(one.y).sum()
            expected = expected + density * (1.0 if rows.weights is None else rows.weights[i])
    close(found.log_density(*found.settings()), expected)


@pytest.mark.parametrize("k", [1, 2])
def test_other_scale_and_noise_need_no_other_pass(k):
    model, z, rows, result, found = spectrum(k, weighted=True)
    with torch.no_grad():
        model.kernel.raw_outputscale.add_(0.3)
        model.likelihood.raw_noise.add_(-1.1)
        moved, again = found.collapsed(result, *found.settings()), collapsed(model, z, rows)
    for name in ("bound", "tril", "tril_b", "whitened"):
        close(getattr(moved, name), getattr(again, name))


@pytest.mark.monte_carlo
def test_rows_left_out_are_predicted_better_and_the_bound_stays_one():
    model, z, rows, result, found = spectrum()
    before = (found.log_density(*found.settings()) + model.log_prior()).item()
    after = calibrated(model, z, rows, result, torch.arange(len(rows)))
    assert (found.log_density(*found.settings()) + model.log_prior()).item() > before
    assert abs(found.widening(*found.settings()).item() - 1) < 1e-9 or found.widening(*found.settings()).item() == 1
    with torch.no_grad():
        close(after.bound, collapsed(model, z, rows).bound)


@pytest.mark.monte_carlo
def test_widening_moves_no_mean_and_covers():
    """Errors with heavy tails under a noise far too small."""
    g = generator(2)
    x = torch.rand(1200, 1, dtype=torch.float64, generator=g) * 6
    heavy = torch.randn(1200, 1, dtype=torch.float64, generator=g) / torch.rand(
        1200, 1, generator=g
    ).double().clamp_min(0.05)
    data = Data(x, x.sin() + 0.05 * heavy)
    model, z = learnable(process(matern((1.0,))), Gaussian(0.01), learn=True), x[:20]
    rows = training_set(process(matern((1.0,))), Gaussian(0.01), data)
    with torch.no_grad():
        result = collapsed(model, z, rows)
        found = Spectrum.build(model, z, rows, result, torch.arange(len(rows)))
        factor = found.widening(*found.settings())
        assert float(factor) > 1.5
        _widen(model.kernel, model.likelihood, factor)
        wide = found.collapsed(result, *found.settings())
        assert abs(float(found.widening(*found.settings())) - 1) < 1e-9
        close(wide.tril @ wide.whitened.mT, result.tril @ result.whitened.mT)
        posterior, noise_variance = wide.posterior(model.process(), z), model.likelihood.noise
        values = posterior(rows.x)
        covered = (values.mean - rows.y).abs() < 1.96 * (values.variance + noise_variance).sqrt()
    assert 0.935 < float(covered.double().mean()) < 0.965


@pytest.mark.parametrize("likelihood", [Gaussian([0.1, 0.2]), Gaussian(0.1, learn=False)], ids=["own", "fixed"])
def test_what_it_cannot_change_it_leaves_alone(likelihood):
    data = regression(k=2)
    prior = process(k=2)
    model, z, rows = learnable(prior, likelihood, learn=True), test_inputs(6), training_set(prior, likelihood, data)
    with torch.no_grad():
        result = collapsed(model, z, rows)
    assert calibrated(model, z, rows, result, torch.arange(len(rows))) is result


def test_an_unscaled_kernel_keeps_its_scale():
    data, prior = regression(60), process(matern().base_kernel)
    method = SGPR(num_inducing=10, learning="subset", max_iter=5)
    fit = method.infer(prior, Gaussian(), data, generator=generator())
    assert float(fit.likelihood.noise) != 0.1
    assert "log density of a row left out" in fit.diagnostics


def test_degenerate_data_are_survived():
    x = torch.zeros(50, 2, dtype=torch.float64)
    x[:, 0] = torch.arange(50) % 25
    for y in (torch.zeros(50, 1), torch.ones(50, 1), torch.arange(50.0).unsqueeze(-1)):
        fit = SGPR(num_inducing=7, learning="subset").infer(
            process(matern()), Gaussian(), Data(x, y.double()), generator=generator()
        )
        values = fit.posterior(x)
        assert bool(torch.isfinite(values.mean).all())
        assert bool((values.variance >= 0).all())
