"""SSVI: mean-field VI at density 1, the best subset where it is known, and its memory."""

import copy

import pytest
import torch
from linear_operator.operators import DiagLinearOperator
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence

from bayeskit import BNNRegressor, bnn, load, save
from bayeskit.bnn.variational_inference.kl import Divergence
from bayeskit.core.likelihood import Bernoulli, Gaussian
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data

from ..example_networks import seeded

SHORT = Training(lr=1e-2, max_epochs=6, batch_size=16, patience=3, validation_fraction=0.2)


def wave(generator, n=60, d=4):
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return Data(x, torch.sin(2 * x[:, :1]) + 0.1 * torch.randn(n, 1, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("estimator", ["local", "weight", "flipout"])
def test_with_all_weights_active_it_is_mean_field_to_the_bit(estimator, generator):
    data = wave(generator)
    prior = bnn.default_prior(None, data.x, 1, generator=generator)
    fits = [
        method(estimator=estimator, training=SHORT, **extra).infer(
            prior, Gaussian(), data, generator=torch.Generator().manual_seed(5)
        )
        for method, extra in ((bnn.MeanFieldVI, {}), (bnn.SSVI, {"density": 1.0}))
    ]
    one, other = (fit.posterior.weights for fit in fits)
    assert torch.equal(one.flat_mean, other.flat_mean)
    assert torch.equal(one.covariance.diagonal(), other.covariance.diagonal())
    assert float(fits[0].log_evidence) == float(fits[1].log_evidence) and fits[0].history == fits[1].history


@pytest.mark.monte_carlo
@pytest.mark.parametrize("seed", range(3))
def test_the_best_subset_of_an_orthogonal_design(seed, generator):
    """Columns are orthogonal, so the weights are independent given the data, the posterior is exact, and the active
    weights that maximize the evidence are those with the largest mean^2 / variance.

    An exchange takes out the least sure weight even of the best subset; a later one brings it back, if there is one.
    So all but the weakest of the best subset are found from any start.
    """
    d, active, n = 60, 6, 120
    basis = torch.linalg.qr(torch.randn(n, d, generator=generator, dtype=torch.float64)).Q * n**0.5
    optimum = torch.zeros(d, dtype=torch.float64)
    chosen = torch.randperm(d, generator=generator)[:active]
    optimum[chosen] = torch.linspace(0.5, 1.5, active, dtype=torch.float64)
    y = basis @ optimum + 0.5 * torch.randn(n, generator=generator, dtype=torch.float64)
    likelihood = Gaussian(noise=0.25).double().requires_grad_(False)
    start = seeded(lambda: nn.Linear(d, 1, bias=False, dtype=torch.float64), seed=seed)
    prior = bnn.gaussian_prior(start, precision=1 / d)  # variances of 1
    training = Training(lr=0.02, max_epochs=400, batch_size=None, schedule="cosine")
    method = bnn.SSVI(density=active / d, whole=0, every=15, fraction=0.9, prior_precision=1.0, training=training)
    fit = method.infer(prior, likelihood, Data(basis, y[:, None]), generator=generator)
    precision = active / d + n / 0.25  # the prior's variances are divided by the density
    mean = basis.mT @ y / 0.25 / precision
    best = mean.abs().topk(active).indices
    weights = fit.posterior.weights
    found = weights.positions["weight"]
    assert set(best.tolist()) == set(chosen.tolist())
    assert torch.isin(best[:-1], found).all() and len(found) == active
    assert ((weights.values - mean[found]).abs() < 0.25 / precision**0.5).all()  # noise of a cosine schedule
    assert torch.allclose(weights.variances, torch.full((active,), 1 / precision, dtype=torch.float64), rtol=0.35)


def test_the_divergence_is_over_the_active_weights(generator):
    net = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 1)).double()
    variances = torch.rand(1681, generator=generator, dtype=torch.float64) + 0.5
    center = {name: torch.randn(v.shape, generator=generator).double() for name, v in net.named_parameters()}
    prior = bnn.BayesNet(net, bnn.GaussianWeights(center, DiagLinearOperator(variances)), bnn.MonteCarlo())
    q = bnn.variational(prior, density=0.1, generator=generator)
    index = q.support.index()
    assert len(index) == 160 + 40 + 41 and q.support.size == 1681
    reference = Independent(Normal(prior.weights.flat_mean[index], variances[index].sqrt()), 1)
    exact = kl_divergence(Independent(Normal(q.mean, q.log_scale.exp()), 1), reference)
    assert torch.allclose(q.kl(), exact, rtol=1e-12)


def test_prior_variances_are_divided_by_the_density(generator):
    net = nn.Linear(100, 50).double()
    prior = bnn.gaussian_prior(net)
    q = bnn.variational(net, density=0.1, generator=generator)
    precision = Divergence.build(prior.weights, q.support, factor=2.0).precision
    # 1 / 100 of fan-in, over a tenth of the weights; biases as they are; the factor on both
    assert torch.allclose(precision[:500], torch.full((500,), 20.0, dtype=torch.float64))
    assert torch.allclose(precision[500:], torch.full((50,), 2.0, dtype=torch.float64))
    start = torch.cat([net.weight.detach().flatten()[q.support.positions("weight")] * 10**0.5, net.bias.detach()])
    assert torch.allclose(q.mean, start)


def test_only_active_weights_are_stored(generator):
    net = nn.Sequential(nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 2))
    q = bnn.variational(net, density=0.05, generator=generator)
    optimizer = torch.optim.Adam(q.parameters())
    (q(torch.randn(8, 200, generator=generator), generator=generator).square().mean() + q.kl() / 8).backward()
    optimizer.step()
    active = 1000 + 500 + 200 + 202  # the last layer of 200 weights and all biases are whole
    assert len(q.mean) == active
    moments = [v for s in optimizer.state.values() for v in s.values() if v.ndim]
    tensors = [*q.parameters(), *q.buffers(), *moments]
    stored = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
    # Four bytes for mean, scale and four moments each, eight for a position, and one number for each hollow parameter.
    assert stored == 6 * 4 * active + 8 * 1500 + 4 * 6
    assert set(q.state_dict()) == {"mean", "log_scale", "support.positions0", "support.positions1"}
    again = bnn.variational(net, density=0.05, generator=torch.Generator().manual_seed(9))
    again.load_state_dict(q.state_dict())
    assert torch.equal(again.support.index(), q.support.index()) and torch.equal(again.kl(), q.kl())


def test_the_posterior_as_prior_keeps_the_active_weights(generator):
    data = wave(generator)
    prior = bnn.default_prior(None, data.x, 1, generator=generator)
    method = bnn.SSVI(density=0.1, training=SHORT)
    first = method.infer(prior, Gaussian(), data.rows(slice(0, 30)), generator=generator)
    before = copy.deepcopy(first.posterior.weights)
    second = method.infer(first.posterior, Gaussian(), data.rows(slice(30, 60)), generator=generator)
    after = second.posterior.weights
    assert torch.equal(after.positions["3.weight"], before.positions["3.weight"])
    assert not torch.equal(after.values, before.values) and torch.equal(first.posterior.weights.values, before.values)
    assert second.diagnostics["prior precision"] == 1.0
    with pytest.raises(TypeError, match="must have Gaussian weights; got SparseWeights"):
        bnn.MAP().infer(first.posterior, Gaussian(), data, generator=generator)


def test_a_correlated_prior_is_refused(generator):
    data = wave(generator)
    prior = bnn.default_prior(lambda i, o: nn.Linear(i, o).double(), data.x, 1, generator=generator)
    laplace = bnn.Laplace.quickly().infer(prior, Gaussian(), data, generator=generator)
    with pytest.raises(ValueError, match="independent weights in the prior; got a .*MeanFieldVI"):
        bnn.SSVI(density=0.5, whole=0).infer(laplace.posterior, Gaussian(), data, generator=generator)


def test_convolutions_and_blocks_and_classes(generator):
    x = torch.randn(60, 1, 12, 12, generator=generator)
    data = Data(x, (x[:, 0, :6].mean((1, 2)) > 0).long())
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten()
    )
    net.extend([nn.Linear(1024, 8), nn.ReLU(), nn.Linear(8, 1)])
    method = bnn.SSVI(density=0.25, block=(4, 16), every=2, training=SHORT)
    fit = method.infer(bnn.gaussian_prior(net), Bernoulli(), data, generator=generator)
    weights = fit.posterior.weights
    assert {name: len(p) for name, p in weights.positions.items()} == {"3.weight": 576, "6.weight": 2048}
    assert torch.isfinite(fit.posterior(x).mean).all()
    assert weights.covariance.shape == (weights.support.size,) * 2
    assert len(fit.posterior.weights.values) == fit.diagnostics["active weights"]


def test_a_saved_fit_stores_active_weights_only(generator, tmp_path):
    data = wave(generator, n=40, d=8)
    model = BNNRegressor(
        network=lambda i, o: nn.Sequential(
            nn.Linear(i, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, o)
        ),
        inference=bnn.SSVI(density=0.02, training=SHORT),
        random_state=0,
    ).fit(data.x.numpy(), data.y.numpy().ravel())
    save(model, tmp_path / "model.bayeskit")
    assert (tmp_path / "model.bayeskit").stat().st_size < 4 * 40_000  # of 40,000 weights, 2 % are active
    again = load(tmp_path / "model.bayeskit")
    assert (again.predict(data.x.numpy()) == model.predict(data.x.numpy())).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"density": 0.0}, "`density`"),
        ({"density": 2.0}, "`density`"),
        ({"block": (0, 1)}, "`block` must be a positive integer"),
        ({"every": 0}, "`every` must be a positive integer"),
        ({"fraction": 1.0}, "`fraction`"),
        ({"estimator": "flip-out"}, "`estimator`.*did you mean 'flipout'"),
    ],
)
def test_settings_out_of_range(settings, words, generator):
    data = wave(generator)
    prior = bnn.default_prior(None, data.x, 1, generator=generator)
    with pytest.raises(ValueError, match=words):
        bnn.SSVI(**settings).infer(prior, Gaussian(), data, generator=generator)
