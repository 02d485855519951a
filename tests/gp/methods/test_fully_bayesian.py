"""Hyperparameters averaged over: their density, the draws, and the mixture that predicts."""

import copy
import math

import pytest
import torch
from gpytorch.constraints import Interval
from gpytorch.kernels import RBFKernel, ScaleKernel
from gpytorch.means import ConstantMean, ZeroMean
from gpytorch.priors import GammaPrior, LogNormalPrior, NormalPrior

from bayeskit import gp, mcmc
from bayeskit.core.likelihood import Drawn, Gaussian, StudentT
from bayeskit.core.types import Data
from bayeskit.gp import default_prior
from bayeskit.gp.methods.exact import log_evidence
from bayeskit.gp.methods.hyperparameter_posterior import HyperparameterPosterior
from bayeskit.gp.model.hyperparameters import learnable

from ..problems import close, constant, generator, matern, noise, process, rbf, regression, same_gp
from ..problems import test_inputs as inputs_for_tests

X = inputs_for_tests()


def density(prior, likelihood, data):
    model = learnable(prior, likelihood, learn=True)
    return HyperparameterPosterior(model, lambda: log_evidence(model, data), data)


def at(target, values):
    """The log density at scalars (g,) of a model with one free number."""
    with torch.no_grad():
        return target({"raw": values.reshape(-1, 1)})


# -- the density ------------------------------------------------------------------------------------------------------


def one_lengthscale(prior, constraint=None):
    kernel = RBFKernel(lengthscale_prior=prior, lengthscale_constraint=constraint).double()
    return gp.GaussianProcess(ZeroMean(), kernel)


PRIORS = {
    "gamma": GammaPrior(3.0, 2.0).double(),
    "log-normal": LogNormalPrior(0.3, 0.5).double(),
}


@pytest.mark.parametrize("name", PRIORS)
def test_priors_carry_their_change_of_variables(name):
    """p(raw) = p(value) |d value / d raw|, for softplus and for a scaled sigmoid."""
    raw = torch.linspace(-3, 3, 7, dtype=torch.float64)
    softplus = density(one_lengthscale(PRIORS[name]), noise(), regression(n=1))
    softplus.evidence = lambda: torch.zeros((), dtype=torch.float64)
    close(at(softplus, raw), PRIORS[name].log_prob(raw.exp().log1p()) + raw.sigmoid().log(), 1e-10)
    bounded = density(one_lengthscale(PRIORS[name], Interval(0.5, 8.5)), noise(), regression(n=1))
    bounded.evidence = lambda: torch.zeros((), dtype=torch.float64)
    s = raw.sigmoid()
    close(at(bounded, raw), PRIORS[name].log_prob(0.5 + 8 * s) + (8 * s * (1 - s)).log(), 1e-10)


def test_priors_keep_their_mass_in_raw_values():
    target = density(one_lengthscale(PRIORS["gamma"]), noise(), regression(n=1))
    target.evidence = lambda: torch.zeros((), dtype=torch.float64)
    raw = torch.linspace(-12, 24, 600, dtype=torch.float64)
    assert abs(float(torch.trapezoid(at(target, raw).exp(), raw)) - 1) < 1e-4  # step^2 / 12 times the change of slope


def test_the_default_prior_is_a_density_of_its_raw_values():
    data = regression()
    prior = default_prior(data.x)
    model = learnable(prior, Gaussian(), learn=True)
    target = HyperparameterPosterior(model, lambda: log_evidence(model, data), data)
    constant_mean = 0.5 * (model.mean.constant.detach() / (3 * data.y.std(correction=0))).square().sum()
    close(target.present(), log_evidence(model, data) + model.log_prior() - constant_mean, 1e-12)


def test_gradients_are_those_of_the_density():
    data = regression(n=12)
    prior = gp.GaussianProcess(constant(0.2), matern())  # softplus, no prior registered: weak ones
    target = density(prior, Gaussian(0.1), data)
    raw = (target.raw() + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda r: target({"raw": r.unsqueeze(0)}), (raw,), atol=1e-6)


def test_a_number_without_a_prior_gets_a_weak_normal_one():
    """The logarithm of a positive value is normal with standard deviation 3 about its start; so is a mean, in units."""
    data, raw = regression(n=9), torch.linspace(-3, 3, 7, dtype=torch.float64)
    kernel = rbf(0.8)
    kernel.raw_outputscale.requires_grad_(False)
    target = density(process(kernel), noise(), data)
    target.evidence = lambda: torch.zeros((), dtype=torch.float64)
    value = raw.exp().log1p()
    close(at(target, raw), -0.5 * ((value / 0.8).log() / 3) ** 2 + (raw.sigmoid() / value).log(), 1e-10)
    target = density(process(rbf(0.8).requires_grad_(False), mean=constant(0.5)), noise(), data)
    target.evidence = lambda: torch.zeros((), dtype=torch.float64)
    close(at(target, raw), -0.5 * ((raw - 0.5) / (3 * data.y.std(correction=0))) ** 2, 1e-10)


def test_a_prior_on_something_derived_is_refused_by_name():
    kernel = ScaleKernel(RBFKernel()).double()
    kernel.register_prior("ratio_prior", NormalPrior(0.0, 1.0), lambda m: m.outputscale / m.base_kernel.lengthscale)
    with pytest.raises(ValueError, match="ratio_prior"):
        density(process(kernel), noise(), regression(n=3))


def test_what_cannot_be_factorized_has_no_density():
    target = density(
        default_prior(torch.ones(3, 1)), Gaussian(), Data(torch.ones(3, 1).double(), torch.ones(3, 1).double())
    )
    raw = torch.full((1, len(target.raw())), 800.0, dtype=torch.float64, requires_grad=True)
    value = target({"raw": raw})
    assert value.item() == -torch.inf
    assert torch.equal(torch.autograd.grad(value.sum(), raw)[0], torch.zeros_like(raw))


# -- the draws --------------------------------------------------------------------------------------------------------


def moments_by_quadrature(target, grid):
    """Mean and standard deviation of the free raw numbers on a product grid."""
    points = torch.cartesian_prod(*grid).reshape(-1, len(grid))
    with torch.no_grad():
        logs = torch.cat([target({"raw": part}) for part in points.split(500)])
    weights = logs.softmax(0)
    mean = (weights.unsqueeze(-1) * points).sum(0)
    return mean, ((weights.unsqueeze(-1) * (points - mean) ** 2).sum(0)).sqrt()


@pytest.mark.monte_carlo
@pytest.mark.parametrize("inner", [gp.Exact(), gp.SGPR(num_inducing=6)], ids=["exact", "sgpr"])
def test_draws_agree_with_quadrature_over_lengthscale_and_noise(inner):
    """Means within four standard errors sd / sqrt(ess), standard deviations within four sd / sqrt(2 ess)."""
    x = torch.linspace(-2, 2, 25, dtype=torch.float64).unsqueeze(-1)
    y = (2 * x).sin() + 0.2 * torch.randn(25, 1, generator=generator(3), dtype=torch.float64)
    data = Data(x, y)
    prior = gp.GaussianProcess(ZeroMean(), RBFKernel(lengthscale_prior=GammaPrior(3.0, 2.0)).double())
    method = gp.FullyBayesian(inner, num_samples=60, burn_in=40, num_components=120)
    fit = method.infer(prior, Gaussian(0.05), data, generator=generator())
    # Four half-chains of 30: R-hat^2 - 1 is about tau (chi2_3 / 3 - 1) / 30. Chains of 120 draws had as few as 11
    # effective ones (of 40 runs), which is tau = 11, and R-hat^2 above 6.25 then comes once in 1,000,000 runs.
    assert fit.diagnostics["R-hat"] < 2.5 and fit.log_evidence is None
    lengthscales = fit.diagnostics["hyperparameters"]["kernel.lengthscale"].flatten()
    noises = fit.diagnostics["hyperparameters"]["noise"].flatten()
    target = density(prior, Gaussian(0.05), data)
    if isinstance(inner, gp.SGPR):
        from bayeskit.gp.variational.collapsed_bound import collapsed

        target.evidence = lambda: collapsed(target.model, fit.posterior.components[0].kernel.z, data).bound
    draws = torch.stack([lengthscales.expm1().log(), (noises - 1e-6).log()], -1)  # raw: softplus, log above the floor
    order = [p is target.model.kernel.raw_lengthscale for p in target.model.parameters]
    draws = draws if order[0] else draws.flip(-1)
    center, spread = draws.mean(0), draws.std(0)
    grid = [torch.linspace(-5, 5, 21, dtype=torch.float64) * s + c for c, s in zip(center, spread, strict=True)]
    mean, std = moments_by_quadrature(target, grid)
    count = fit.diagnostics["effective draws"]
    assert ((center - mean).abs() <= 5 * std / count**0.5).all()
    assert ((spread / std - 1).abs() <= 5 / (2 * count) ** 0.5).all()


@pytest.mark.monte_carlo
def test_chains_that_disagree_are_reported():
    data = regression(n=12)
    method = gp.FullyBayesian(num_samples=4, burn_in=1, kernel=mcmc.SGLD(lr=1e-9))
    fit = method.infer(default_prior(data.x), Gaussian(), data, generator=generator())
    assert fit.diagnostics["R-hat"] > 1.05 and "raise `burn_in`" in fit.diagnostics["warning"]


@pytest.mark.monte_carlo
def test_without_data_the_draws_are_those_of_the_prior():
    prior = one_lengthscale(LogNormalPrior(0.3, 0.5).double())
    nothing = regression().rows(torch.arange(0))
    method = gp.FullyBayesian(num_samples=60, burn_in=30, num_components=120)
    fit = method.infer(prior, noise(), nothing, generator=generator())
    logs = fit.diagnostics["hyperparameters"]["kernel.lengthscale"].log().flatten()
    assert abs(float(logs.mean()) - 0.3) <= 5 * 0.5 / fit.diagnostics["effective draws"] ** 0.5
    assert torch.equal(fit.posterior.components[0](X).mean, torch.zeros_like(fit.posterior.components[0](X).mean))


# -- the mixture ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fit():
    data = regression(n=20, k=2)
    return gp.FullyBayesian.quickly().infer(default_prior(data.x, 2), Gaussian(), data, generator=generator())


def test_components_are_the_exact_processes_of_the_draws(fit):
    data, draws = regression(n=20, k=2), fit.diagnostics["hyperparameters"]
    for s, (part, member) in enumerate(zip(fit.posterior.components, fit.likelihood.members, strict=True)):
        close(member.noise, draws["noise"][s], 1e-12)
        close(part.kernel.base.base_kernel.lengthscale, draws["kernel.base_kernel.lengthscale"][s], 1e-12)
        prior = gp.GaussianProcess(part.mean.base_mean, part.kernel.base, 2)
        same_gp(part, gp.Exact().infer(prior, member, data, generator=generator()).posterior, X)


def test_predictive_is_the_mixture_of_the_components(fit):
    values = fit.posterior(X)
    predictive = fit.likelihood.predictive(values)
    parts = [m.predictive(p(X)) for m, p in zip(fit.likelihood.members, fit.posterior.components, strict=True)]
    y = torch.zeros(len(X), 2, dtype=torch.float64)
    logs = torch.stack([part.log_prob(y) for part in parts]).logsumexp(0) - math.log(len(parts))
    close(predictive.log_prob(y), logs, 1e-12)
    close(predictive.cdf(y), torch.stack([part.cdf(y) for part in parts]).mean(0), 1e-12)
    close(predictive.cdf(predictive.quantile(0.3)), torch.full_like(y, 0.3), 1e-10)
    second = torch.stack([part.variance + part.mean**2 for part in parts]).mean(0)
    close(predictive.variance, second - predictive.mean**2, 1e-10)
    close(predictive.aleatoric, torch.stack([part.aleatoric for part in parts]).mean(0), 1e-12)
    close(predictive.epistemic, values.variance, 1e-10)


@pytest.mark.monte_carlo
def test_functions_have_the_law_of_the_mixture(fit):
    s = 1_000
    f = fit.posterior.sample_functions(s, generator=generator())
    values, draws = fit.posterior(X[:4]), f(X[:4])
    std = values.variance.sqrt()
    assert ((draws.mean(0) - values.mean).abs() <= 5 * std / s**0.5).all()
    # A mixture of Gaussians can have heavy tails: the error of a variance from the fourth moment of the draws.
    error = ((draws - values.mean) ** 4).mean(0).sqrt() / s**0.5
    assert ((draws.var(0) - values.variance).abs() <= 5 * error).all()


@pytest.mark.monte_carlo
def test_noise_and_function_are_drawn_together():
    """Two components, one flat and noisy, one varied and quiet: no draw of y may mix them."""
    from linear_operator.operators import DiagLinearOperator

    from bayeskit.core.posterior import GaussianValues, MixtureValues

    at_zero = GaussianValues(torch.zeros(1, 1), DiagLinearOperator(torch.zeros(1)))
    far = GaussianValues(torch.full((1, 1), 100.0), DiagLinearOperator(torch.zeros(1)))
    values = MixtureValues((at_zero, far), torch.tensor([0.5, 0.5]))
    likelihood = Drawn([Gaussian(1e-8, learn=False), Gaussian(4.0)])
    y = likelihood.sample(values, 2_000, generator=generator())
    quiet = y[y < 50]
    assert float(quiet.abs().max()) < 1e-3 and 800 < len(quiet) < 1_200
    assert abs(float(y[y > 50].std()) - 2) < 0.25


@pytest.mark.monte_carlo
def test_a_likelihood_that_is_one_of_several():
    """Its distribution given f is the mixture: log density, moments and draws."""
    likelihood = Drawn([Gaussian(0.04), Gaussian(1.0)], torch.tensor([0.75, 0.25], dtype=torch.float64))
    f, y = torch.zeros(3, 1, dtype=torch.float64), torch.tensor([[0.0], [0.5], [2.0]], dtype=torch.float64)
    parts = torch.stack([member.log_prob(f, y).exp() for member in likelihood.members])
    close(likelihood.log_prob(f, y), (0.75 * parts[0] + 0.25 * parts[1]).log(), 1e-12)
    mixture = likelihood.distribution(f)
    close(mixture.variance, torch.full_like(f, 0.75 * 0.04 + 0.25), 1e-12)
    values = process(matern())(torch.zeros(1, 2))
    same = likelihood.predictive(values)  # a single posterior over f: every component has the same
    close(same.variance, values.variance + mixture.variance[:1], 1e-12)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        draws = mixture.sample(torch.Size([4_000]))
    assert draws.shape == (4_000, 3, 1)
    assert (
        abs(float(draws.var()) / 0.28 - 1) < 5 * (8.6 / 12_000) ** 0.5
    )  # the kurtosis is 3 (.75 .04^2 + .25) / .28^2 = 9.6


def test_more_data_reweight_the_draws():
    """Weights are proportional to what each draw said of the new rows, and each process is conditioned on all rows."""
    data = regression(n=24)
    first, second = data.rows(slice(0, 16)), data.rows(slice(16, 24))
    method = gp.FullyBayesian.quickly()
    start = method.infer(default_prior(data.x), Gaussian(), first, generator=generator())
    after = method.infer(start.posterior, start.likelihood, second, generator=generator())
    both = []
    for part, member in zip(start.posterior.components, start.likelihood.members, strict=True):
        prior = gp.GaussianProcess(part.mean.base_mean, part.kernel.base)
        both.append(gp.Exact().infer(prior, member, data, generator=generator()))
        one = gp.Exact().infer(prior, member, first, generator=generator())
        both[-1] = (both[-1].posterior, float(both[-1].log_evidence) - float(one.log_evidence))
    close(after.posterior.weights, torch.tensor([e for _, e in both], dtype=torch.float64).softmax(0))
    for part, (expected, _) in zip(after.posterior.components, both, strict=True):
        same_gp(part, expected, X)
    close(after.likelihood.weights, after.posterior.weights, 0.0)


# -- the frame --------------------------------------------------------------------------------------------------------


def test_nothing_to_draw_is_the_inner_method():
    data, prior = regression(), process(matern().requires_grad_(False), mean=ZeroMean())
    fit = gp.FullyBayesian().infer(prior, noise(), data, generator=generator())
    same_gp(fit.posterior, gp.Exact().infer(prior, noise(), data, generator=generator()).posterior, X, 0.0)
    assert fit.log_evidence.kind == "exact"


@pytest.mark.parametrize("n", [1, 8])
def test_degenerate_rows(n):
    data = Data(torch.ones(n, 1, dtype=torch.float64), torch.ones(n, 1, dtype=torch.float64))
    fit = gp.FullyBayesian.quickly().infer(default_prior(data.x), Gaussian(), data, generator=generator())
    values = fit.posterior(torch.linspace(0, 2, 5).unsqueeze(-1))
    assert torch.isfinite(values.mean).all() and (values.variance >= 0).all()


def test_float32_data_and_kernels():
    data = regression(n=10)
    data = Data(data.x.float(), data.y.float())
    prior = gp.GaussianProcess(ConstantMean(), ScaleKernel(RBFKernel()))
    fit = gp.FullyBayesian.quickly().infer(prior, Gaussian(), data, generator=generator())
    assert fit.posterior(data.x).mean.dtype == torch.float64


def test_settings_are_checked_by_name():
    data, prior = regression(n=5), default_prior(regression(n=5).x)
    with pytest.raises(TypeError, match="gp.Exact, a gp.SGPR or None; got SVGP"):
        gp.FullyBayesian(gp.SVGP()).infer(prior, Gaussian(), data, generator=generator())
    with pytest.raises(ValueError, match="num_components"):
        gp.FullyBayesian(num_components=0).infer(prior, Gaussian(), data, generator=generator())
    with pytest.raises(TypeError, match="StudentT"):
        gp.FullyBayesian().infer(prior, StudentT(), data, generator=generator())
    drawn = Drawn([Gaussian(), Gaussian()])
    with pytest.raises(TypeError, match="Drawn"):
        gp.FullyBayesian().infer(prior, drawn, data, generator=generator())
    mixture = gp.ProcessMixture((prior.frozen(),) * 3, torch.full((3,), 1 / 3))
    with pytest.raises(ValueError, match="2 draws and the prior 3"):
        gp.FullyBayesian().infer(mixture, copy.deepcopy(drawn), data, generator=generator())
