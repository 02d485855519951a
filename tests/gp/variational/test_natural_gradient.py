import pytest
import torch

from bayeskit.core.likelihood import Bernoulli, StudentT
from bayeskit.core.optimize import Training, minimize
from bayeskit.core.types import Data
from bayeskit.gp import SVGP, default_prior
from bayeskit.gp.model.hyperparameters import learnable
from bayeskit.gp.variational.collapsed_bound import collapsed
from bayeskit.gp.variational.natural_gradient import NaturalGradient
from bayeskit.gp.variational.whitened_gaussian import WhitenedGaussian
from bayeskit.gp.variational.whitened_posterior import bound, data_term, optimal_q

from ..problems import close, generator, noise, process, regression, test_inputs


def anywhere(k, m):
    """q and S of some Gaussians."""
    g = generator(7)
    root = torch.eye(m, dtype=torch.float64) + 0.3 * torch.randn(k, m, m, dtype=torch.float64, generator=g)
    mean = torch.randn(k, m, dtype=torch.float64, generator=g)
    return mean.requires_grad_(True), (root @ root.mT).requires_grad_(True)


def training(model, z, rows, own, **settings):
    """Natural-gradient steps on q alone."""

    def loss(batch):
        return own.divergence - data_term(model, z, own.mean, own.covariance, batch, form="sites")

    nothing = [torch.zeros(1, requires_grad=True)]
    minimize(loss, nothing, rows, Training(**settings), generator=generator(), second_optimizer=own)


@pytest.mark.parametrize("k", [1, 2])
def test_one_full_step_is_sgpr_from_anywhere(k):
    data = regression(40, k=k)
    model, z = learnable(process(k=k), noise([0.05, 0.2][:k]), learn=False), test_inputs(8)
    own = NaturalGradient(*anywhere(k, 8), num_rows=len(data), lr=1.0)
    training(model, z, data, own, max_epochs=1, batch_size=None)
    best = collapsed(model, z, data)
    close(own.mean, best.whitened)
    value = data_term(model, z, own.mean, own.covariance, data, form="sites") - own.divergence
    assert abs(float(value.detach() - best.bound)) < 1e-8


def test_mini_batches_approach_the_optimum():
    """Steps of length 1/t average the batches: after an epoch, the site of each data point counts once."""
    data = regression(60)
    model, z = learnable(process(), noise(0.05), learn=False), test_inputs(6)
    own = NaturalGradient(*anywhere(1, 6), num_rows=len(data), lr=0.1)
    for t, batch in enumerate(data.batches(12, generator=generator())):
        own.param_groups[0]["lr"] = 1 / (t + 1)
        loss = own.divergence - data_term(model, z, own.mean, own.covariance, batch, form="sites")
        own.mean.grad, own.covariance.grad = torch.autograd.grad(loss / len(data), [own.mean, own.covariance])
        own.step()
    close(own.mean, collapsed(model, z, data).whitened)


@pytest.mark.parametrize("likelihood", [Bernoulli(), StudentT()], ids=["bernoulli", "student_t"])
def test_damped_ascent_finds_the_same_optimum(likelihood):
    """The full-batch ascent with step halving that ends a fit."""
    data = regression(50)
    data = Data(data.x, (data.y[:, 0] > 0).long()) if isinstance(likelihood, Bernoulli) else data
    model, z = learnable(process(), likelihood, learn=False), test_inputs(6)
    best, value = optimal_q(model, z, WhitenedGaussian.prior(1, z), data, max_steps=200, tolerance=1e-14)
    own = NaturalGradient(best.mean.new_zeros(1, 6), torch.eye(6).double().unsqueeze(0), num_rows=50, lr=0.5)
    for tensor in (own.mean, own.covariance):
        tensor.requires_grad_(True)
    training(model, z, data, own, max_epochs=200, batch_size=None)
    reached = data_term(model, z, own.mean, own.covariance, data, form="sites") - own.divergence
    assert abs(float(reached.detach()) - value) < 1e-6
    close(bound(model, z, WhitenedGaussian.from_sites(own.sites), data), reached)


@pytest.mark.parametrize("variational", ["natural", "adam"])
@pytest.mark.parametrize("precision", ["single", "double"])
def test_a_fit_on_degenerate_data_finishes(variational, precision):
    g = generator()
    x = torch.randn(20, 2, dtype=torch.float64, generator=g).repeat(5, 1) * torch.tensor([1e-4, 1e5])
    y = x[:, :1].sign() + 1e-7 * torch.randn(100, 1, dtype=torch.float64, generator=g)
    method = SVGP(
        num_inducing=15,
        variational=variational,
        precision=precision,
        training=Training(lr=0.5, max_epochs=20, batch_size=10),
    )
    fit = method.infer(default_prior(x), noise(1e-4, learn=True), Data(x, y), generator=generator())
    values = fit.posterior(x)
    assert bool(torch.isfinite(values.mean).all())
    assert bool((values.variance > 0).all())


def test_a_run_resumes_with_the_same_bits(tmp_path):
    data = regression(60)
    short, whole = (Training(lr=0.05, max_epochs=n, batch_size=20, checkpoint=tmp_path / "run") for n in (3, 6))
    straight = Training(lr=0.05, max_epochs=6, batch_size=20)

    def fit(settings):
        method = SVGP(num_inducing=8, training=settings)
        return method.infer(default_prior(data.x), noise(0.1, learn=True), data, generator=generator())

    fit(short)
    resumed, one = fit(whole), fit(straight)
    assert float(resumed.log_evidence) == float(one.log_evidence)


def test_settings_are_checked():
    data = regression(10)
    for settings, message in (({"natural_lr": 1.5}, "natural_lr"), ({"variational": "sgd"}, "variational")):
        with pytest.raises(ValueError, match=message):
            SVGP(**settings).infer(default_prior(data.x), noise(), data, generator=generator())
