"""VBLL as an inference: exact on a linear network, the same as other exact methods on fixed features."""

import copy

import pytest
import torch
from gpytorch.kernels import LinearKernel
from gpytorch.means import ZeroMean
from linear_operator.operators import DenseLinearOperator
from torch import nn

from bayeskit import BNNClassifier, BNNRegressor, bnn, gp
from bayeskit.bnn.networks.last_layer import find_head
from bayeskit.bnn.training.map_training import DEFAULT_TRAINING
from bayeskit.bnn.vbll.softmax_bounds import Expectation
from bayeskit.core.likelihood import Bernoulli, Categorical, Gaussian, Heteroscedastic, Poisson, StudentT
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data

from ..example_networks import Convolutional, images, seeded

SHORT = Training(lr=2e-2, max_epochs=15, batch_size=32, validation_fraction=0.15, patience=5)


def known(prior):
    """The same prior, of known scale."""
    weights = bnn.GaussianWeights(prior.weights.mean, prior.weights.covariance)
    return bnn.BayesNet(prior.network, weights, prior.push_forward)


def network(outputs=1, *, bias=True, width=8):
    def build():
        return nn.Sequential(nn.Linear(2, width), nn.SiLU(), nn.Linear(width, outputs, bias=bias)).double()

    return seeded(build)


def table(generator, n=40, outputs=1):
    x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    signal = torch.sin(2 * x[:, :1]) + torch.arange(outputs) * x[:, 1:]
    return Data(x, signal + 0.2 * torch.randn(n, outputs, generator=generator, dtype=torch.float64))


def pretrained(body, likelihood, data, generator, **options):
    method = bnn.VBLL(pretrained=True, prior_precision=1.0, **options)
    return method.infer(bnn.gaussian_prior(body), likelihood, data, generator=generator)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("covariance", ["dense", "dense_precision"])
def test_the_optimum_on_fixed_features_is_laplace_and_the_process_with_that_kernel(outputs, covariance, generator):
    data, body = table(generator, outputs=outputs), network(outputs, bias=False)
    likelihood = Gaussian(noise=0.2, learn=False)
    ours = pretrained(body, likelihood, data, generator, covariance=covariance)
    laplace = bnn.Laplace(pretrained=True, prior_precision=1.0)
    theirs = laplace.infer(bnn.gaussian_prior(body), likelihood, data, generator=generator)
    kernel = LinearKernel().double()
    kernel.raw_variance.data.fill_(torch.tensor(1 / 8, dtype=torch.float64).expm1().log())
    prior = gp.GaussianProcess(ZeroMean(), kernel.requires_grad_(False), num_outputs=outputs)
    x2 = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        features, features2 = body[:2](data.x), body[:2](x2)
    exact = gp.Exact(learn=False).infer(prior, likelihood, Data(features, data.y), generator=generator)
    values = ours.posterior(x2)
    for other in (theirs.posterior(x2), exact.posterior(features2)):
        assert torch.allclose(values.mean, other.mean, rtol=1e-8, atol=1e-8)
        assert torch.allclose(values.covariance.to_dense(), other.covariance.to_dense(), rtol=1e-8, atol=1e-8)
    for evidence in (theirs.log_evidence, exact.log_evidence):
        assert float(ours.log_evidence) == pytest.approx(float(evidence), abs=1e-8)


@pytest.mark.parametrize("bias", [True, False])
def test_learnt_noise_is_that_of_laplace(bias, generator):
    """Both maximize the evidence of the last layer."""
    data, body = table(generator, outputs=2), network(2, bias=bias)
    likelihood = Gaussian(noise=torch.tensor([0.1, 0.1]))
    ours = pretrained(body, likelihood, data, generator)
    laplace = bnn.Laplace(pretrained=True, prior_precision=1.0)
    theirs = laplace.infer(bnn.gaussian_prior(body), likelihood, data, generator=generator)
    assert torch.allclose(ours.likelihood.noise, theirs.likelihood.noise, rtol=1e-4)  # two searches
    assert float(ours.log_evidence) == pytest.approx(float(theirs.log_evidence), abs=1e-6)


def test_three_parts_in_turn_are_all_at_once(generator):
    data, body, likelihood = table(generator, outputs=2), network(2), Gaussian(noise=0.2, learn=False)
    whole = pretrained(body, likelihood, data, generator)
    posterior, evidence = bnn.gaussian_prior(body), 0.0
    for i, start in enumerate((0, 15, 25)):
        part = data.rows(slice(start, (15, 25, 40)[i]))
        method = bnn.VBLL(pretrained=i == 0, prior_precision=1.0)
        fit = method.infer(posterior, likelihood, part, generator=generator)
        posterior, evidence = fit.posterior, evidence + float(fit.log_evidence)
    x2 = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    assert torch.allclose(posterior(x2).mean, whole.posterior(x2).mean, rtol=1e-8, atol=1e-8)
    both = [p(x2).covariance.to_dense() for p in (posterior, whole.posterior)]
    assert torch.allclose(*both, rtol=1e-8, atol=1e-8)
    assert evidence == pytest.approx(float(whole.log_evidence), abs=1e-8)


@pytest.mark.monte_carlo
def test_more_data_do_not_change_noise_and_body(generator):
    data = table(generator)
    first = bnn.VBLL(training=SHORT).infer(bnn.gaussian_prior(network()), Gaussian(), data, generator=generator)
    second = bnn.VBLL(training=SHORT).infer(first.posterior, first.likelihood, data, generator=generator)
    assert torch.equal(first.likelihood.noise, second.likelihood.noise)
    one, other = (dict(fit.posterior.network.named_parameters()) for fit in (first, second))
    assert torch.equal(one["0.weight"], other["0.weight"]) and not torch.equal(one["2.weight"], other["2.weight"])
    assert (second.posterior(data.x).variance < first.posterior(data.x).variance).all()


def test_case_weights_are_repetitions(generator):
    data, body, likelihood = table(generator, n=10), network(), Gaussian()
    weights = torch.arange(1, 11, dtype=torch.float64) % 3 + 1
    repeated = torch.arange(10).repeat_interleave(weights.long())
    weighted = pretrained(body, likelihood, Data(data.x, data.y, weights), generator)
    rows = pretrained(body, likelihood, data.rows(repeated), generator)
    # fewer than 20 different rows keep the noise as it is, weighted or repeated
    fixed = pretrained(body, Gaussian(learn=False), data.rows(repeated), generator)
    assert torch.allclose(weighted.posterior(data.x).mean, fixed.posterior(data.x).mean, rtol=1e-8)
    assert torch.allclose(weighted.posterior(data.x).mean, rows.posterior(data.x).mean, rtol=1e-8)


@pytest.mark.monte_carlo
@pytest.mark.parametrize(
    ("likelihood", "outputs"),
    [
        (StudentT(), 1),
        (Heteroscedastic(), 2),
        (Poisson(), 1),
        (Bernoulli(), 1),
        (Bernoulli("probit"), 1),
        (Categorical(3), 3),
    ],
    ids=["student", "heteroscedastic", "poisson", "logit", "probit", "classes"],
)
@pytest.mark.parametrize("ready", [True, False])
def test_other_likelihoods_end_where_the_bound_is_flat(likelihood, outputs, ready, generator):
    """No small move of the mean of the last layer raises it."""
    data = table(generator)
    if likelihood.target != "continuous":
        data = Data(data.x, (data.y[:, 0] > 0).long() + (data.y[:, 0] > 1) * (likelihood.target == "classes"))
    if likelihood.target == "count":
        data = Data(data.x, data.y.double().unsqueeze(-1))
    method = bnn.VBLL(pretrained=ready, prior_precision=1.0, training=SHORT)
    fit = method.infer(bnn.gaussian_prior(network(outputs)), likelihood, data, generator=generator)
    values = fit.posterior(data.x)
    assert torch.isfinite(values.mean).all() and (values.variance > 0).all()
    predictive = fit.likelihood.predictive(values)
    assert torch.isfinite(predictive.log_prob(data.y)).all()

    def bound(move):
        moved = copy.deepcopy(fit.posterior.weights.mean)
        moved["2.weight"] = moved["2.weight"] + move
        weights = bnn.GaussianWeights(moved, fit.posterior.weights.covariance)
        f = bnn.BayesNet(fit.posterior.network, weights, bnn.Linearize())(data.x)
        center = torch.cat([moved["2.weight"], moved["2.bias"][:, None]], dim=1)
        prior = torch.tensor([8.0] * 8 + [1.0], dtype=torch.float64)
        expected = Expectation(fit.likelihood, "knowles_minka" if fit.likelihood.has_logits else "expectation")
        return expected.value(f.mean, f.variance, data.y).sum() - 0.5 * (prior * center.square()).sum()

    best = bound(0.0)
    for seed in range(4):
        g = torch.Generator().manual_seed(seed)
        move = 1e-2 * torch.randn(outputs, 8, generator=g, dtype=torch.float64)
        assert bound(move) < best and bound(-move) < best


@pytest.mark.monte_carlo
def test_features_are_the_inputs_of_the_layer(generator):
    """Dropout, BatchNorm and an in-place activation below; statistics are those of the training."""
    x, y = images(generator)
    net = seeded(Convolutional)
    before = copy.deepcopy(net.state_dict())
    fit = bnn.VBLL(training=SHORT).infer(bnn.gaussian_prior(net), Categorical(3), Data(x, y), generator=generator)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), before.values(), strict=True))
    trained = fit.posterior.network
    assert not torch.equal(trained.norm.running_mean, net.norm.running_mean)
    with torch.no_grad():
        assert torch.allclose(fit.posterior(x).mean, trained(x), atol=1e-5)
    assert (fit.likelihood.predictive(fit.posterior(x)).mode == y).float().mean() > 0.8
    assert fit.posterior(x).variance.dtype == torch.float32


def test_the_posterior_is_that_of_linearization_without_its_cost(generator):
    """Structured values against the generic operator over the same weights."""
    data = table(generator, outputs=3)
    fit = pretrained(network(3), Gaussian(), data, generator)
    values = fit.posterior(data.x)
    weights = fit.posterior.weights
    generic = bnn.GaussianWeights(weights.mean, DenseLinearOperator(weights.covariance.to_dense()))
    other = bnn.linearize(fit.posterior.network, generic, data.x)
    assert type(other.covariance).__name__ == "Linearized" and type(values.covariance).__name__ != "Linearized"
    assert torch.allclose(values.covariance.to_dense(), other.covariance.to_dense(), rtol=1e-8, atol=1e-10)
    assert torch.allclose(values.output_covariance(), other.output_covariance(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("covariance", ["diagonal", "low_rank", "dense_precision"])
def test_a_posterior_of_any_family_is_the_prior_of_more(covariance, generator):
    """Its precision is recovered from the operator, row by row."""
    data, body, likelihood = table(generator, outputs=2), network(2), Gaussian(noise=0.2, learn=False)
    first = pretrained(body, likelihood, data.rows(slice(0, 20)), generator, covariance=covariance, rank=2)
    second = bnn.VBLL(covariance="dense").infer(
        first.posterior, likelihood, data.rows(slice(20, 40)), generator=generator
    )
    prior = torch.linalg.inv(first.posterior.weights.covariance.to_dense())
    precision = torch.linalg.inv(second.posterior.weights.covariance.to_dense())
    with torch.no_grad():
        features = torch.cat([body[:2](data.x[20:]), torch.ones(20, 1)], dim=1)
    jacobian = torch.zeros(20, 2, 18, dtype=torch.float64)
    jacobian[:, 0, :8] = jacobian[:, 1, 8:16] = features[:, :8]
    jacobian[:, 0, 16] = jacobian[:, 1, 17] = 1
    gain = torch.einsum("noi,noj->ij", jacobian, jacobian) / 0.2
    assert torch.allclose(precision, prior + gain, rtol=1e-7, atol=1e-7)  # of inverses of condition 1e6 and more
    assert torch.allclose(
        first.posterior(data.x).covariance.to_dense(),
        bnn.linearize(
            first.posterior.network,
            bnn.GaussianWeights(first.posterior.weights.mean, DenseLinearOperator(torch.linalg.inv(prior))),
            data.x,
        ).covariance.to_dense(),
        atol=1e-10,
    )


@pytest.mark.monte_carlo
@pytest.mark.parametrize("covariance", ["diagonal", "low_rank"])
def test_smaller_families_have_smaller_bounds(covariance, generator):
    data, likelihood = table(generator, outputs=2), Gaussian(noise=0.2, learn=False)
    dense = pretrained(network(2), likelihood, data, generator)
    small = pretrained(network(2), likelihood, data, generator, covariance=covariance, rank=2)
    assert float(small.log_evidence) < float(dense.log_evidence)
    assert torch.allclose(small.posterior(data.x).mean, dense.posterior(data.x).mean, rtol=1e-8)  # of Gaussian noise


@pytest.mark.monte_carlo
def test_prediction_by_draws(generator):
    data = table(generator)
    fit = bnn.VBLL(num_samples=64, training=SHORT).infer(
        bnn.gaussian_prior(network()), Gaussian(), data, generator=generator
    )
    values = fit.posterior(data.x)
    assert values.draws.shape == (64, 40, 1)
    closed = bnn.linearize(fit.posterior.network, fit.posterior.weights, data.x)
    assert ((values.mean - closed.mean).abs() < 5 * closed.variance.sqrt() / 8).all()  # of 64 draws


@pytest.mark.monte_carlo
def test_a_frozen_body_and_a_frozen_bias_are_kept(generator):
    net = network()
    net[0].requires_grad_(False)
    net[2].bias.requires_grad_(False)
    net[2].bias.data.fill_(3.0)
    data = table(generator)
    data = Data(data.x, data.y + 3.0)
    fit = bnn.VBLL(training=SHORT).infer(bnn.gaussian_prior(net), Gaussian(), data, generator=generator)
    assert list(fit.posterior.weights.mean) == ["2.weight"]
    assert torch.equal(fit.posterior.network[0].weight, net[0].weight)
    assert fit.posterior.network[2].bias.item() == 3.0
    assert (fit.posterior(data.x).mean.mean() - 3.0).abs() < 0.3


@pytest.mark.monte_carlo
def test_kl_weight_spreads_or_narrows(generator):
    data = table(generator)
    spread = [
        pretrained(network(), Gaussian(learn=False), data, generator, kl_weight=w).posterior(data.x).variance.mean()
        for w in (0.1, 1.0, 10.0)
    ]
    assert spread[0] < spread[1] < spread[2]


@pytest.mark.monte_carlo
def test_too_large_for_an_optimum_is_trained_by_mini_batches(generator, monkeypatch):
    monkeypatch.setattr("bayeskit.bnn.vbll.vbll.LIMIT", 10)
    data = table(generator)
    with pytest.raises(ValueError, match="use 'diagonal' or 'low_rank'"):
        pretrained(network(), Gaussian(), data, generator)
    fit = pretrained(network(), Gaussian(), data, generator, covariance="diagonal", training=SHORT)
    assert fit.history["loss"][-1] < fit.history["loss"][0]
    assert fit.diagnostics["rounds"] == 0


def test_what_it_cannot_do_is_refused_by_name(generator):
    data, prior = table(generator), bnn.gaussian_prior(network())
    with pytest.raises(ValueError, match="Leave `bound` out"):
        bnn.VBLL(bound="knowles_minka").infer(prior, Gaussian(), data, generator=generator)
    with pytest.raises(ValueError, match="End the network in an nn.Linear"):
        tail = nn.Sequential(nn.Linear(2, 1), nn.Tanh()).double()
        bnn.VBLL().infer(bnn.gaussian_prior(tail), Gaussian(), data, generator=generator)
    laplace = bnn.Laplace(training=SHORT).infer(prior, Gaussian(), data, generator=generator)
    with pytest.raises(ValueError, match="posterior of another method"):
        bnn.VBLL().infer(laplace.posterior, Gaussian(), data, generator=generator)
    net = network()
    net[2].requires_grad_(False)
    with pytest.raises(ValueError, match="must name the weights of the last layer"):
        bnn.VBLL().infer(bnn.gaussian_prior(net), Gaussian(), data, generator=generator)


def test_the_features_are_differentiable(generator):
    net, x = network(), table(generator).x
    head = find_head(net, x)
    params = {"0.weight": torch.zeros(8, 2, dtype=torch.float64, requires_grad=True)}
    reached = head.features_at(params, x)
    assert torch.allclose(reached, nn.functional.silu(net[0].bias).expand(40, 8))
    assert torch.autograd.grad(reached.sum(), params["0.weight"])[0].abs().max() > 0


@pytest.mark.monte_carlo
def test_in_the_estimators(generator):
    x = torch.randn(120, 2, generator=generator, dtype=torch.float64).numpy()
    y = x[:, 0] - x[:, 1] ** 2
    model = BNNRegressor(inference=bnn.VBLL(training=SHORT), random_state=0).fit(x[:60], y[:60])
    before = model.log_evidence_
    assert before.kind == "lower bound" and model.score(x[60:], y[60:]) > 0.5
    model.partial_fit(x[60:], y[60:])
    assert model.score(x, y) > 0.5
    labels = BNNClassifier(inference="vbll", random_state=0).fit(x, y > 0)
    assert labels.score(x, y > 0) > 0.9


@pytest.mark.monte_carlo
def test_labels_get_enough_steps_before_a_training_stops(generator):
    # Nothing is to be learnt here, so a training stops as soon as it may: after 10 epochs of one step, or after 40.
    x, y = torch.randn(60, 4, generator=generator), torch.randint(3, (60,), generator=generator)
    prior = bnn.gaussian_prior(seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))))
    state = generator.get_state()
    short, default = (
        len(method.infer(prior, Categorical(3), Data(x, y), generator=generator.set_state(state)).history["loss"])
        for method in (bnn.VBLL(prior_precision=1.0, training=DEFAULT_TRAINING), bnn.VBLL(prior_precision=1.0))
    )
    assert short < 40 <= default
