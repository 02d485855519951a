"""Leaving a row out in closed form is fitting without it."""

import pytest
import torch
from gpytorch.kernels import MaternKernel
from torch.distributions import Normal

from bayeskit import GPClassifier, GPRegressor, gp
from bayeskit.core.inference import Fit
from bayeskit.core.likelihood import Bernoulli, Categorical, Drawn, StudentT
from bayeskit.core.posterior import MixtureValues
from bayeskit.core.types import Data
from bayeskit.gp import default_prior
from bayeskit.gp.model.hyperparameters import learnable
from bayeskit.gp.model.training_set import training_set
from bayeskit.gp.variational.collapsed_bound import collapsed

from ..problems import close, constant, generator, matern, noise, process, rbf, regression


def without(data, i):
    keep = torch.arange(len(data)) != i
    return data.rows(keep)


def row(data, i):
    return data.x[i : i + 1], data.y[i : i + 1]


def refitted_exactly(prior, likelihood, data):
    """Mean, variance and log density of each row by as many fits."""
    found = []
    for i in range(len(data)):
        fit = gp.Exact(learn=False).infer(prior, likelihood, without(data, i), generator=generator())
        x, y = row(data, i)
        predictive = fit.likelihood.predictive(fit.posterior(x))
        found.append((predictive.mean, predictive.variance, predictive.log_prob(y)))
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def refitted_at(prior, likelihood, data, z):
    """The same for the collapsed bound at fixed inducing points."""
    found = []
    for i in range(len(data)):
        rows = training_set(prior, likelihood, without(data, i))
        model = learnable(prior, likelihood, learn=False)
        x, y = row(data, i)
        predictive = likelihood.predictive(collapsed(model, z, rows).posterior(model.process(), z)(x))
        found.append((predictive.mean, predictive.variance, predictive.log_prob(y)))
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def agree(predictive, data, expected, tolerance=1e-8):
    mean, variance, score = expected
    close(predictive.mean, mean, tolerance)
    close(predictive.variance, variance, tolerance)
    close(predictive.log_prob(data.y), score, tolerance)


def weighted(data):
    weights = torch.rand(len(data), generator=generator(4), dtype=torch.float64) + 0.3
    return Data(data.x, data.y, weights)


def repeated(data):
    """Some rows twice, and one input with two targets."""
    index = torch.tensor([0, 0, 1, 1, 1, *range(2, len(data))])
    y = data.y[index].clone()
    y[0] += 0.4
    return Data(data.x[index], y)


def each_its_own(k):
    kernel = matern().base_kernel
    own = MaternKernel(nu=2.5, ard_num_dims=2, batch_shape=torch.Size([k])).double()
    own.lengthscale = torch.stack([kernel.lengthscale[0] * (1 + j) for j in range(k)]).unsqueeze(1)
    return own


CASES = {
    "plain": (process(matern(), mean=constant(0.3)), noise(), regression(n=14)),
    "low noise": (process(rbf()), noise(1e-6), regression(n=14)),
    "weights": (process(matern()), noise(), weighted(regression(n=14))),
    "repeated rows": (process(matern()), noise(), repeated(regression(n=12))),
    "two outputs": (process(matern(), k=2), noise(), regression(n=12, k=2)),
    "noise of its own": (process(matern(), k=2), noise([0.05, 0.3]), regression(n=12, k=2)),
    "kernel of its own": (process(each_its_own(2), k=2), noise(), weighted(regression(n=12, k=2))),
}
every_case = pytest.mark.parametrize(("prior", "likelihood", "data"), CASES.values(), ids=CASES.keys())


@every_case
def test_exact_process(prior, likelihood, data):
    fit = gp.Exact(learn=False).infer(prior, likelihood, data, generator=generator())
    agree(gp.leave_one_out(fit, data), data, refitted_exactly(prior, likelihood, data))


@every_case
def test_sparse_process_at_fixed_inducing_points(prior, likelihood, data):
    method = gp.SGPR(num_inducing=6, learn=False, learn_inducing=False)
    fit = method.infer(prior, likelihood, data, generator=generator())
    # One minus the leverage of a row is a difference: where the noise is 1e-6 of the signal six digits go.
    tolerance = 1e-8 if float(likelihood.noise.min()) > 1e-3 else 1e-6
    agree(gp.leave_one_out(fit, data), data, refitted_at(prior, likelihood, data, fit.posterior.kernel.z), tolerance)


def test_textbook_formula():
    """Rasmussen and Williams, equation 5.12: mean y_i - [C^-1 r]_i / [C^-1]_ii, variance 1 / [C^-1]_ii."""
    data, prior = regression(n=15), process(matern())
    fit = gp.Exact(learn=False).infer(prior, noise(0.05), data, generator=generator())
    kernel = prior(data.x).covariance.to_dense() + 0.05 * torch.eye(15, dtype=torch.float64)
    inverse = kernel.inverse()
    diagonal = inverse.diagonal().unsqueeze(-1)
    predictive = gp.leave_one_out(fit, data)
    close(predictive.mean, data.y - inverse @ data.y / diagonal, 1e-10)
    close(predictive.variance, 1 / diagonal, 1e-10)


def test_low_noise_keeps_its_digits():
    """At noise 1e-10 a posterior variance is all noise: the variance left out is never formed as their difference.

    The mean is y minus a residual, which is a difference: it keeps 16 - 10 digits, less a few that C^-1 takes.
    """
    data, prior, likelihood = regression(n=14), process(matern((0.2, 0.2))), noise(1e-10)
    fit = gp.Exact(learn=False).infer(prior, likelihood, data, generator=generator())
    predictive, (mean, variance, _) = gp.leave_one_out(fit, data), refitted_exactly(prior, likelihood, data)
    close(predictive.variance, variance, 1e-7)
    close(predictive.mean, mean, 1e-3)


def test_conditioning_in_turn_is_the_batch():
    data, prior = regression(n=20), process(matern())
    posterior = prior
    for start in (0, 10):
        fit = gp.Exact(learn=False).infer(
            posterior, noise(), data.rows(slice(start, start + 10)), generator=generator()
        )
        posterior = fit.posterior
    agree(gp.leave_one_out(fit, data), data, refitted_exactly(prior, noise(), data))


def test_variational_process_with_gaussian_noise():
    data, prior = regression(n=14), process(matern())
    fit = gp.SVGP(num_inducing=6, learn=False, learn_inducing=False).infer(prior, noise(), data, generator=generator())
    agree(gp.leave_one_out(fit, data), data, refitted_at(prior, noise(), data, fit.posterior.kernel.z))


@pytest.mark.parametrize("likelihood", [Bernoulli(), StudentT(scale=0.3, learn=False)], ids=["classes", "heavy tails"])
def test_other_likelihoods_come_near_a_new_fit(likelihood):
    """The other sites stay: an error of a few hundredths of a nat a row here, against differences of tenths."""
    data = regression(n=30)
    data = Data(data.x, (data.y[:, 0] > 0).long()) if isinstance(likelihood, Bernoulli) else data
    prior = process(matern())
    method = gp.SVGP(num_inducing=30, learn=False)
    fit = method.infer(prior, likelihood, data, generator=generator())
    scores = gp.leave_one_out(fit, data).log_prob(data.y)
    kept = fit.likelihood.predictive(fit.posterior(data.x)).log_prob(data.y)
    again = []
    for i in range(len(data)):
        fit_i = method.infer(prior, likelihood, without(data, i), generator=generator())
        x, y = row(data, i)
        again.append(fit_i.likelihood.predictive(fit_i.posterior(x)).log_prob(y))
    again = torch.cat(again).detach()
    assert (scores - again).abs().mean() < 0.1 * (kept - again).abs().mean()


def test_classes_and_rows_of_no_weight():
    data = regression(n=20)
    codes = Data(data.x, (data.y[:, 0] > 0).long() + (data.x[:, 0] > 1).long())
    fit = gp.SVGP.quickly().infer(default_prior(data.x, 3), Categorical(3), codes, generator=generator())
    assert gp.leave_one_out(fit, codes).probs.shape == (20, 3)
    weights = torch.ones(20, dtype=torch.float64)
    weights[3] = 0
    some = Data(data.x, data.y, weights)
    prior = process(matern())
    fit = gp.Exact(learn=False).infer(prior, noise(), some, generator=generator())
    predictive = gp.leave_one_out(fit, some)
    close(predictive.mean[3], fit.posterior(data.x[3:4]).mean[0], 1e-8)
    close(predictive.epistemic[3], fit.posterior(data.x[3:4]).variance[0], 1e-8)


def test_mixture_over_hyperparameters_is_reweighted():
    """Two hyperparameters, equally likely a priori: the mixture without row i has the weights of a fit without it."""
    data, priors, likelihoods = regression(n=12), [process(matern()), process(rbf(0.5))], [noise(0.05), noise(0.2)]

    def fits_to(rows):
        pairs = zip(priors, likelihoods, strict=True)
        return [gp.Exact(learn=False).infer(prior, one, rows, generator=generator()) for prior, one in pairs]

    fits = fits_to(data)
    weights = torch.tensor([float(f.log_evidence) for f in fits], dtype=torch.float64).softmax(0)
    mixture = gp.ProcessMixture(tuple(f.posterior for f in fits), weights)
    fit = Fit(mixture, Drawn([f.likelihood for f in fits], weights))
    predictive = gp.leave_one_out(fit, data)
    for i in (0, 5):
        x, y = row(data, i)
        parts = fits_to(without(data, i))
        u = torch.tensor([float(f.log_evidence) for f in parts], dtype=torch.float64).softmax(0)
        values = MixtureValues(tuple(f.posterior(x) for f in parts), u)
        close(predictive.log_prob(data.y)[i], Drawn(likelihoods, u).predictive(values).log_prob(y)[0])


def test_refusals():
    data, prior = regression(n=12), process(matern())
    with pytest.raises(TypeError, match="IterativelyConditioned|conditioned by a Cholesky"):
        gp.leave_one_out(Fit(prior, noise()), data)
    fit = gp.Exact(learn=False).infer(prior, noise(), data, generator=generator())
    with pytest.raises(ValueError, match="11 rows of `data` are not among"):
        gp.leave_one_out(fit, Data(torch.cat([data.x[:1], data.x[1:] + 1]), data.y))
    coreset = gp.CoresetGP(num_points=4, learn=False).infer(prior, noise(), data, generator=generator())
    with pytest.raises(ValueError, match="A coreset .* has no leave-one-out.*use `gp.SGPR`"):
        gp.leave_one_out(coreset, data)
    near = gp.SWSGP(num_inducing=6, num_neighbors=3, learn=False).infer(prior, noise(), data, generator=generator())
    with pytest.raises(TypeError, match="`gp.SWSGP`, in which every input .*fit with `gp.SVGP`"):
        gp.leave_one_out(near, data)
    method = gp.SGPR(num_inducing=5, learn=False)
    first = method.infer(prior, noise(), data.rows(slice(0, 6)), generator=generator())
    second = method.infer(first.posterior, noise(), data.rows(slice(6, 12)), generator=generator())
    with pytest.raises(ValueError, match="merges 2 conditionings"):
        gp.leave_one_out(second, data)


@pytest.mark.parametrize(
    "method", [gp.Exact(learn=False), gp.SGPR(num_inducing=12, learn=False)], ids=["exact", "sgpr"]
)
def test_missing_entries_take_nothing_away(method):
    data, prior = regression(n=12, k=2), process(matern(), k=2)
    data.y[3, 1] = torch.nan
    fit = method.infer(prior, noise(), data, generator=generator())
    predictive, values = gp.leave_one_out(fit, data), fit.posterior(data.x)
    close(predictive.mean[3, 1], values.mean[3, 1])
    close(predictive.epistemic[3, 1], values.variance[3, 1])
    again = gp.Exact(learn=False).infer(prior, noise(), without(data, 3), generator=generator()).posterior
    close(predictive.mean[3, 0], again(data.x[3:4]).mean[0, 0])
    assert torch.isfinite(predictive.mean).all() and (predictive.epistemic >= 0).all()


# -- estimators ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inference", ["exact", "sgpr"])
def test_regressor_speaks_the_targets_units(inference):
    data = regression(n=25)
    x, y = data.x.numpy() * 40 + 7, data.y[:, 0].numpy() * 1e3 + 5e4
    y[4] += 3e3
    model = GPRegressor(inference=inference, random_state=0).fit(x, y)
    predictive = model.leave_one_out(x, y)
    assert predictive.mean.shape == (25,)
    assert int(predictive.log_prob(y).argmin()) == 4
    shift, scale = model.target_scaler_.shift, model.target_scaler_.scale
    inner = gp.leave_one_out(
        Fit(model.posterior_, model.likelihood_),
        Data(model.input_scaler_(torch.tensor(x)), (torch.tensor(y).unsqueeze(-1) - shift) / scale),
    )
    close(predictive.mean, (shift + scale * inner.mean).squeeze(-1), 1e-10)
    close(predictive.log_prob(y), Normal(predictive.mean, predictive.std).log_prob(torch.tensor(y)), 1e-10)


def test_classifier_and_weights():
    data = regression(n=30)
    y = ["high" if v > 0 else "low" for v in data.y[:, 0]]
    model = GPClassifier(inference=gp.SVGP.quickly(), random_state=0).fit(data.x.numpy(), y)
    predictive = model.leave_one_out(data.x.numpy(), y)
    assert predictive.probs.shape == (30, 2) and list(predictive.classes) == ["high", "low"]
    weights = torch.rand(30, generator=generator(), dtype=torch.float64).numpy()
    model = GPRegressor(matern(), random_state=0).fit(data.x.numpy(), data.y.numpy().ravel(), weights)
    predictive = model.leave_one_out(data.x.numpy(), data.y.numpy().ravel(), weights)
    assert torch.isfinite(predictive.std).all()


def test_mixture_in_an_estimator():
    data = regression(n=15)
    x, y = data.x.numpy(), data.y.numpy().ravel()
    model = GPRegressor(inference=gp.FullyBayesian.quickly(), random_state=0).fit(x, y)
    assert torch.isfinite(model.leave_one_out(x, y).log_prob(y)).all()


@pytest.mark.parametrize("method", [gp.Exact(learn=False), gp.SGPR(num_inducing=5, learn=False)])
def test_a_row_without_a_target_is_one_that_is_not_there(method):
    data = regression(n=12)
    fit = method.infer(process(rbf()), noise(), data, generator=generator())
    more = Data(torch.cat([data.x, data.x[:2], data.x[:2] + 9]), torch.cat([data.y, data.y[:4] * torch.nan]))
    predictive, expected = gp.leave_one_out(fit, more), gp.leave_one_out(fit, data)
    close(predictive.mean[:12], expected.mean)
    close(predictive.variance[:12], expected.variance)
    there = fit.likelihood.predictive(fit.posterior(more.x[12:]))  # nothing to take out
    close(predictive.mean[12:], there.mean)
    close(predictive.variance[12:], there.variance)


def test_a_classifier_leaves_rows_out_with_the_weight_of_their_class():
    from bayeskit import GPClassifier
    from bayeskit.core.likelihood import Dirichlet

    x = torch.randn(25, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    y = (x[:, 0] > 0).astype(int)
    settings = {"inference": "exact", "likelihood": Dirichlet(2), "random_state": 0}
    by_class = GPClassifier(class_weight={0: 1, 1: 6}, **settings).fit(x, y)
    weights = 1 + 5.0 * y
    by_row = GPClassifier(**settings).fit(x, y, sample_weight=weights)
    expected = by_row.leave_one_out(x, y, weights).probs
    assert torch.allclose(by_class.leave_one_out(x, y).probs, expected, rtol=1e-10)
