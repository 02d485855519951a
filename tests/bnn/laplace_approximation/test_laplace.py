"""Laplace against closed forms: on a linear network it is Bayesian linear regression."""

import math

import pytest
import torch
from torch import nn

from bayeskit import bnn
from bayeskit.bnn.laplace_approximation import evidence_refit
from bayeskit.bnn.networks.functional import flatten
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data

SHORT = Training(lr=1e-2, max_epochs=5, batch_size=32)
NOISE = torch.tensor([0.3], dtype=torch.float64)


def linear(inputs=3, outputs=2, *, bias=True, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(inputs, outputs, bias=bias, dtype=torch.float64)


def known(prior):
    """The same prior, of known scale."""
    weights = bnn.GaussianWeights(prior.weights.mean, prior.weights.covariance)
    return bnn.BayesNet(prior.network, weights, prior.push_forward)


def problem(generator, n=25, inputs=3, outputs=2):
    x = torch.randn(n, inputs, generator=generator, dtype=torch.float64)
    w = torch.randn(inputs, outputs, generator=generator, dtype=torch.float64)
    y = x @ w + 0.5 * torch.randn(n, outputs, generator=generator, dtype=torch.float64)
    return x, y


def gram(x, x2):
    """Kernel of one output under `gaussian_prior(nn.Linear)`: weights N(0, 1/d), bias N(0, 1)."""
    return x @ x2.mT / x.shape[1] + 1


def gp(x, y, x2, noise):
    """Exact GP regression with that kernel, each output alone: mean (m, k), covariance (m, m), log evidence."""
    a = gram(x, x) + noise * torch.eye(len(x), dtype=x.dtype)
    mean = gram(x2, x) @ torch.linalg.solve(a, y)
    covariance = gram(x2, x2) - gram(x2, x) @ torch.linalg.solve(a, gram(x, x2))
    fit = (y * torch.linalg.solve(a, y)).sum()
    evidence = -0.5 * (fit + y.shape[1] * torch.linalg.slogdet(a)[1] + y.numel() * math.log(2 * math.pi))
    return mean, covariance, evidence


@pytest.mark.parametrize("structure", ["full", "kernel", "kronecker"])
@pytest.mark.parametrize("outputs", [1, 3])
def test_linear_network_is_exact_regression(structure, outputs, generator):
    x, y = problem(generator, outputs=outputs)
    x2 = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    prior = known(bnn.gaussian_prior(linear(outputs=outputs)))
    inference = bnn.Laplace(structure=structure, training=SHORT)
    fit = inference.infer(prior, Gaussian(NOISE, learn=False), Data(x, y), generator=generator)
    mean, covariance, evidence = gp(x, y, x2, NOISE)
    values = fit.posterior(x2)
    dense = torch.kron(covariance, torch.eye(outputs, dtype=x.dtype))
    assert torch.allclose(values.mean, mean, atol=1e-8)
    assert torch.allclose(values.covariance.to_dense(), dense, atol=1e-8)
    assert fit.log_evidence.kind == "Laplace"
    assert float(fit.log_evidence) == pytest.approx(float(evidence), abs=1e-8)


def test_all_weights_of_a_deep_linear_model_without_hidden_layers(generator):
    x, y = problem(generator, outputs=1)
    prior = known(bnn.gaussian_prior(nn.Sequential(nn.Flatten(), linear(outputs=1), nn.Flatten())))
    fit = bnn.Laplace(subset="all", training=SHORT).infer(
        prior, Gaussian(NOISE, learn=False), Data(x, y), generator=generator
    )
    mean, covariance, evidence = gp(x, y, x, NOISE)
    assert torch.allclose(fit.posterior(x).mean, mean, atol=1e-8)
    assert torch.allclose(fit.posterior(x).variance[:, 0], covariance.diagonal(), atol=1e-8)
    assert float(fit.log_evidence) == pytest.approx(float(evidence), abs=1e-8)


def test_diagonal_is_the_diagonal_of_the_full_precision(generator):
    x, y = problem(generator)
    prior = known(bnn.gaussian_prior(linear()))
    likelihood = Gaussian(torch.tensor([0.3, 0.6]), learn=False)
    fits = {
        s: bnn.Laplace(structure=s, training=SHORT).infer(prior, likelihood, Data(x, y), generator=generator)
        for s in ("full", "diagonal")
    }
    full = torch.linalg.inv(fits["full"].posterior.weights.covariance.to_dense())
    diagonal = fits["diagonal"].posterior.weights.covariance.diagonal()
    assert torch.allclose(1 / diagonal, full.diagonal(), rtol=1e-8)
    means = [flatten(f.posterior.weights.mean, f.posterior.weights.mean) for f in fits.values()]
    assert torch.allclose(*means, atol=1e-5)  # the second by L-BFGS


@pytest.mark.monte_carlo
def test_evidence_has_no_slope_left_and_its_slope_is_the_closed_form(generator):
    x, y = problem(generator, outputs=1)
    prior = bnn.gaussian_prior(linear(outputs=1))

    def fit(log_precision):
        inference = bnn.Laplace(prior_precision=math.exp(log_precision), training=SHORT)
        return inference.infer(prior, Gaussian(NOISE, learn=False), Data(x, y), generator=generator)

    step = 1e-4
    slope = (float(fit(0.4 + step).log_evidence) - float(fit(0.4 - step).log_evidence)) / (2 * step)
    at = fit(0.4).posterior.weights
    base = math.exp(0.4) / prior.weights.covariance.diagonal()
    spread = (base * at.covariance.diagonal()).sum() + (base * at.flat_mean.square()).sum()
    assert slope == pytest.approx(0.5 * (4 - float(spread)), abs=1e-6)  # error of the difference: step^2

    learnt = bnn.Laplace(training=SHORT).infer(prior, Gaussian(NOISE, learn=False), Data(x, y), generator=generator)
    best = math.log(learnt.diagnostics["prior precision"][0])
    around = [float(fit(best + shift).log_evidence) for shift in (-0.05, 0.0, 0.05)]
    assert around[1] > max(around[0], around[2])
    assert around[1] == pytest.approx(float(learnt.log_evidence), abs=1e-8)


@pytest.mark.monte_carlo
def test_noise_by_evidence_is_a_maximum_of_the_exact_evidence(generator):
    x, y = problem(generator, n=40, outputs=1)
    prior = known(bnn.gaussian_prior(linear(outputs=1)))
    fit = bnn.Laplace(training=SHORT).infer(prior, Gaussian(), Data(x, y), generator=generator)
    noise = fit.likelihood.noise.item()
    exact = [float(gp(x, y, x, noise * math.exp(shift))[2]) for shift in (-1e-2, 0.0, 1e-2)]
    assert float(fit.log_evidence) == pytest.approx(exact[1], abs=1e-8)
    assert exact[1] > max(exact[0], exact[2])
    assert abs(exact[2] - exact[0]) / 2e-2 < 0.02  # slope; the curvature is about n / 2, so off by 1e-3 at most


def test_noise_of_each_output_is_that_of_the_output_alone(generator):
    x, y = problem(generator, n=40, outputs=2)
    y[:, 1] *= 3

    def fit(targets, noise):
        prior = known(bnn.gaussian_prior(linear(outputs=targets.shape[1])))
        return bnn.Laplace(training=SHORT).infer(prior, Gaussian(noise), Data(x, targets), generator=generator)

    both = fit(y, torch.tensor([0.1, 0.1])).likelihood.noise
    alone = [fit(y[:, i : i + 1], 0.1).likelihood.noise for i in range(2)]
    assert torch.allclose(both, torch.cat(alone), rtol=1e-5)


@pytest.mark.parametrize("structure", ["full", "kernel"])
def test_three_chunks_are_the_batch(structure, generator):
    x, y = problem(generator, n=30)
    likelihood = Gaussian(NOISE, learn=False)
    inference = bnn.Laplace(structure=structure, training=SHORT)
    prior = known(bnn.gaussian_prior(linear()))
    batch = inference.infer(prior, likelihood, Data(x, y), generator=generator)
    posterior, evidence = prior, 0.0
    for rows in torch.arange(30).split(10):
        fit = inference.infer(posterior, likelihood, Data(x[rows], y[rows]), generator=generator)
        posterior, evidence = fit.posterior, evidence + float(fit.log_evidence)
    values, expected = posterior(x), batch.posterior(x)
    assert torch.allclose(values.mean, expected.mean, atol=1e-8)
    assert torch.allclose(values.covariance.to_dense(), expected.covariance.to_dense(), atol=1e-8)
    assert evidence == pytest.approx(float(batch.log_evidence), abs=1e-8)


@pytest.mark.monte_carlo
@pytest.mark.parametrize("structure", ["full", "kernel", "kronecker", "diagonal"])
def test_case_weights_are_repetitions(structure, generator):
    x, y = problem(generator, n=20)
    weights = torch.randint(0, 3, (20,), generator=generator).double()
    repeated = torch.arange(20).repeat_interleave(weights.long())
    prior = known(bnn.gaussian_prior(linear()))
    inference = bnn.Laplace(structure=structure, training=SHORT)
    likelihood = Gaussian(NOISE, learn=False)
    weighted = inference.infer(prior, likelihood, Data(x, y, weights), generator=generator)
    plain = inference.infer(prior, likelihood, Data(x[repeated], y[repeated]), generator=generator)
    tolerance = 1e-5 if structure == "diagonal" else 1e-8  # its weights are found by L-BFGS
    assert torch.allclose(weighted.posterior(x).mean, plain.posterior(x).mean, atol=tolerance)
    assert torch.allclose(weighted.posterior(x).variance, plain.posterior(x).variance, atol=1e-8)
    assert float(weighted.log_evidence) == pytest.approx(float(plain.log_evidence), abs=1e-8)


def test_last_layer_is_regression_on_the_features(generator):
    x, y = problem(generator, n=30, outputs=2)
    prior = known(bnn.gaussian_prior(bnn.MLP(3, 2, hidden=(6,), dtype=torch.float64)))
    fit = bnn.Laplace(training=SHORT).infer(prior, Gaussian(NOISE, learn=False), Data(x, y), generator=generator)
    features = torch.nn.functional.silu(fit.posterior.network[1](x))
    mean, covariance, _ = gp(features, y, features, NOISE)
    assert list(fit.posterior.weights.mean) == ["3.weight", "3.bias"]
    assert torch.allclose(fit.posterior(x).mean, mean, atol=1e-8)
    dense = torch.kron(covariance, torch.eye(2, dtype=x.dtype))
    assert torch.allclose(fit.posterior(x).covariance.to_dense(), dense, atol=1e-8)


def ard(x, x2, precisions):
    """Kernel of one output whose weight d has prior precision `precisions[d]`, the last one being the bias's."""
    with_one = [torch.cat([rows, torch.ones(len(rows), 1, dtype=x.dtype)], 1) for rows in (x, x2)]
    return (with_one[0] / precisions) @ with_one[1].mT


def learnt_factors(fit):
    return dict(zip(fit.diagnostics["parts of the prior"], fit.diagnostics["prior precision"], strict=True))


class Columns(nn.Module):
    """A linear model whose weights are one parameter an input."""

    def __init__(self):
        super().__init__()
        self.columns = nn.ParameterList([torch.zeros(1, 1, dtype=torch.float64) for _ in range(3)])
        self.bias = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x):
        return torch.cat([x[:, i : i + 1] @ w for i, w in enumerate(self.columns)], 1).sum(1, keepdim=True) + self.bias


@pytest.mark.parametrize("structure", ["full", "kernel"])
def test_a_factor_for_each_part_of_the_prior_is_a_kernel_with_scales(structure, generator):
    x, y = problem(generator, n=10, outputs=1)
    factors = {"columns.0": 0.2, "columns": 3.0, "": 0.7}  # the longest name that fits counts
    precisions = torch.tensor([0.2, 3.0, 3.0, 0.7], dtype=torch.float64)
    fit = bnn.Laplace("all", structure, factors, training=SHORT).infer(
        bnn.gaussian_prior(Columns()), Gaussian(NOISE, learn=False), Data(x, y), generator=generator
    )
    a = ard(x, x, precisions) + NOISE * torch.eye(len(x), dtype=x.dtype)
    mean, covariance = ard(x, x, precisions) @ torch.linalg.solve(a, y), ard(x, x, precisions)
    covariance = covariance - covariance @ torch.linalg.solve(a, covariance)
    evidence = torch.distributions.MultivariateNormal(torch.zeros(len(x)).double(), a).log_prob(y[:, 0])
    assert torch.allclose(fit.posterior(x).mean, mean, atol=1e-8)
    assert torch.allclose(fit.posterior(x).covariance.to_dense(), covariance, atol=1e-8)
    assert float(fit.log_evidence) == pytest.approx(float(evidence), abs=1e-8)
    assert learnt_factors(fit) == pytest.approx(factors)


@pytest.mark.monte_carlo
@pytest.mark.parametrize("structure", ["full", "kernel"])
def test_learnt_factors_gain_evidence_and_the_others_are_fixed(structure, generator):
    x, y = problem(generator, n=40, outputs=1)
    y = y - 5 * x[:, 1:2] + 3  # the second column and the bias want weak priors

    def fit(prior_precision):
        return bnn.Laplace("all", structure, prior_precision, training=SHORT).infer(
            bnn.gaussian_prior(Columns()), Gaussian(NOISE, learn=False), Data(x, y), generator=generator
        )

    one, parts = fit("evidence"), fit({"columns": "evidence", "columns.2": 2.0, "": "evidence"})
    learnt = learnt_factors(parts)
    assert learnt["columns.2"] == pytest.approx(2.0)
    around = [fit({**learnt, "": learnt[""] * math.exp(shift)}) for shift in (-0.05, 0.0, 0.05)]
    values = [float(f.log_evidence) for f in around]
    assert values[1] > max(values[0], values[2])
    assert values[1] == pytest.approx(float(parts.log_evidence), abs=1e-6)
    assert float(one.log_evidence) < float(fit({"columns": "evidence", "": "evidence"}).log_evidence) + 1e-8


def test_the_posterior_of_full_structure_is_refused_by_the_others(generator):
    x, y = problem(generator)
    fit = bnn.Laplace(training=SHORT).infer(bnn.gaussian_prior(linear()), Gaussian(), Data(x, y), generator=generator)
    for structure in ("kronecker", "diagonal"):
        with pytest.raises(ValueError, match="needs independent weights in the prior"):
            bnn.Laplace(structure=structure, training=SHORT).infer(
                fit.posterior, Gaussian(), Data(x, y), generator=generator
            )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"subset": "first"}, "`subset` must be one of"),
        ({"subset": ["9.weight"]}, "must name parameters that the prior names"),
        ({"structure": "low rank"}, "`structure` must be one of"),
        ({"prior_precision": "guess"}, "`prior_precision` must be one of"),
        ({"prior_precision": -1.0}, "`prior_precision` must be a positive number"),
        ({"prior_precision": {"": "guess"}}, "`prior_precision` must be one of"),
        ({"prior_precision": {"weight": 1.0}}, "`prior_precision` says nothing of 'bias'"),
        ({"prior_precision": {"": 1.0, "0.weight": 2.0}}, r"`prior_precision` names \['0.weight'\], no part"),
        ({"prior_precision": {"weight": 1.0, "bias": 2.0}, "structure": "kronecker"}, "Name the layer"),
    ],
)
def test_settings_are_checked_by_name(settings, words, generator):
    x, y = problem(generator)
    with pytest.raises(ValueError, match=words):
        bnn.Laplace(**settings).infer(bnn.gaussian_prior(linear()), Gaussian(), Data(x, y), generator=generator)


def test_full_structure_of_too_many_weights_names_the_size_and_a_remedy(generator):
    prior = bnn.gaussian_prior(bnn.MLP(100, 1, hidden=(60,)))
    with pytest.raises(ValueError, match=r"6121 x 6121 matrix \(0.3 GB.*'kronecker' or 'diagonal'"):
        bnn.Laplace(subset="all", structure="full").infer(
            prior, Gaussian(), Data(torch.zeros(4, 100), torch.zeros(4, 1)), generator=generator
        )


def test_a_pretrained_network_keeps_its_features(generator):
    x, y = problem(generator)
    prior = bnn.gaussian_prior(bnn.MLP(3, 2, hidden=(6,), dtype=torch.float64))
    fit = bnn.Laplace(pretrained=True).infer(prior, Gaussian(), Data(x, y), generator=generator)
    assert torch.equal(fit.posterior.network[1].weight, prior.network[1].weight)
    assert not torch.equal(fit.posterior.network[3].weight, prior.network[3].weight)


def test_arguments_stay_as_they_were(generator):
    x, y = problem(generator)
    prior, likelihood = bnn.gaussian_prior(bnn.MLP(3, 2, hidden=(6,), dtype=torch.float64)), Gaussian()
    before = {name: value.clone() for name, value in prior.network.state_dict().items()}
    bnn.Laplace(training=SHORT).infer(prior, likelihood, Data(x, y), generator=generator)
    assert all(torch.equal(before[name], value) for name, value in prior.network.state_dict().items())
    assert likelihood.noise.item() == pytest.approx(0.1)


@pytest.mark.monte_carlo
def test_small_networks_are_refitted_for_many_rounds_and_large_ones_for_few(generator, monkeypatch):
    x = torch.linspace(-2, 2, 60, dtype=torch.float64)[:, None]
    data = Data(x, x.abs() + 0.1 * torch.randn(60, 1, generator=generator, dtype=torch.float64))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        prior = bnn.gaussian_prior(bnn.MLP(1, 1, hidden=(16,), dtype=torch.float64))
    method = bnn.Laplace(
        subset="all", training=Training(lr=3e-2, max_epochs=30, batch_size=16, validation_fraction=0.15)
    )
    many = method.infer(prior, Gaussian(0.01), data, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(evidence_refit, "ROUNDS_WORK", 0.0)  # as if the network were large
    fewest = method.infer(prior, Gaussian(0.01), data, generator=torch.Generator().manual_seed(0))
    assert (many.diagnostics["rounds"] > 10, fewest.diagnostics["rounds"]) == (True, 3)
    # The training is short and three rounds are not enough: some fifteen nats were left when this was written.
    assert float(many.log_evidence) > float(fewest.log_evidence)


def test_the_structure_is_full_where_it_can_be_formed(generator, monkeypatch):
    """Up to 5,000 weights; then Kronecker factors, and variances alone where a factor would be as large."""
    x, y = problem(generator)

    def structure(*, outputs=2, subset="last_layer"):
        prior, data = bnn.gaussian_prior(linear(outputs=outputs)), Data(x, y[:, :1].expand(-1, outputs))
        method = bnn.Laplace(subset, training=SHORT)
        fit = method.infer(prior, Gaussian(), data, generator=torch.Generator().manual_seed(0))
        assert method.structure == "auto"
        return type(fit.posterior.weights.covariance).__name__

    named = {
        name: type(
            bnn.Laplace(structure=name, training=SHORT)
            .infer(bnn.gaussian_prior(linear()), Gaussian(), Data(x, y), generator=generator)
            .posterior.weights.covariance
        ).__name__
        for name in ("full", "kronecker", "diagonal")
    }
    assert structure() == named["full"]
    monkeypatch.setattr("bayeskit.bnn.laplace_approximation.laplace.FULL_LIMIT", 7)
    assert structure() == named["kronecker"]  # 8 weights in a (2, 4) matrix
    assert structure(outputs=1) == named["full"]
    monkeypatch.setattr("bayeskit.bnn.laplace_approximation.laplace.FULL_LIMIT", 3)
    assert structure() == named["diagonal"]
