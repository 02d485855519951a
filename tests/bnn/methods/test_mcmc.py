import pytest
import torch
from sklearn.base import clone
from torch import nn

from bayeskit import bnn, mcmc
from bayeskit.bnn.methods.mcmc import MCMC, _with_statistics
from bayeskit.bnn.training.log_posterior import NOISE_SPREAD, LogPosterior, MiniBatches, Model
from bayeskit.core.likelihood import Bernoulli, Categorical, Gaussian, Poisson, StudentT
from bayeskit.core.types import Data

SHORT = {"num_chains": 2, "num_samples": 6, "burn_in": 4, "start_steps": 10}


def network(in_features=2, out_features=1, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return bnn.MLP(in_features, out_features, hidden=(4,), dtype=dtype)


def rows(kind, generator, n=40):
    x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    f = x[:, :1] - 0.5 * x[:, 1:]
    if kind == "regression":
        return Data(x, f + 0.2 * torch.randn(n, 1, generator=generator, dtype=torch.float64))
    if kind == "counts":
        return Data(x, torch.poisson(f.exp(), generator=generator))
    return Data(x, (f[:, 0] > 0).long() + (f[:, 0] > 1).long() * (kind == "three classes"))


CASES = [
    (Gaussian(), "regression", 1),
    (Gaussian(0.04, learn=False), "regression", 1),
    (StudentT(), "regression", 1),
    (Bernoulli(), "two classes", 1),
    (Categorical(3), "three classes", 3),
    (Poisson(), "counts", 1),
]


@pytest.mark.parametrize("likelihood, kind, outputs", CASES)
@pytest.mark.parametrize("kernel", [mcmc.SGLD(), mcmc.SGHMC(), mcmc.NUTS(max_tree_depth=3)])
def test_every_likelihood(generator, kernel, likelihood, kind, outputs):
    data, prior = rows(kind, generator), bnn.gaussian_prior(network(2, outputs))
    before = [p.clone() for p in likelihood.parameters()], [p.clone() for p in prior.network.parameters()]
    fits = [
        MCMC(kernel, **SHORT).infer(prior, likelihood, data, generator=torch.Generator().manual_seed(1))
        for _ in range(2)
    ]
    draws = [fit.posterior(data.x).draws for fit in fits]
    assert draws[0].shape == (12, 40, outputs) and torch.equal(*draws)  # same generator, same bits
    assert torch.isfinite(fits[0].likelihood.predictive(fits[0].posterior(data.x)).log_prob(data.y)).all()
    learns = any(p.requires_grad for p in likelihood.parameters())
    after = [p.clone() for p in likelihood.parameters()], [p.clone() for p in prior.network.parameters()]
    assert all(torch.equal(a, b) for x, y in zip(before, after, strict=True) for a, b in zip(x, y, strict=True))
    if learns:
        assert not torch.equal(next(fits[0].likelihood.parameters()), before[0][0])
    assert {"R-hat", "effective draws", "step size" if kernel.mini_batches else "acceptance"} <= fits[
        0
    ].diagnostics.keys()


def linear(generator, n=30, d=3):
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([[1.0], [-1.0], [0.5]], dtype=torch.float64)
    return Data(
        x, y + 0.5 * torch.randn(n, 1, generator=generator, dtype=torch.float64), torch.rand(n, generator=generator) * 2
    )


@pytest.mark.monte_carlo
@pytest.mark.parametrize(
    "kernel, bias",
    [(mcmc.NUTS(), 0.0), (mcmc.SGLD(), 0.1), (mcmc.SGHMC(), 0.05), (mcmc.EntropySGLD(), 0.1)],
)
def test_a_linear_network_has_the_conjugate_posterior(generator, kernel, bias):
    # Case weights included: precision = prior precision + X' W X / noise.
    data, noise = linear(generator), 0.25
    prior = bnn.gaussian_prior(nn.Linear(3, 1, bias=False, dtype=torch.float64))
    precision = prior.weights.covariance.inverse().to_dense() + data.x.mT * data.weights @ data.x / noise
    covariance = torch.linalg.inv(precision)
    mean = covariance @ (data.x.mT * data.weights @ data.y / noise)
    method = MCMC(kernel, num_chains=2, num_samples=250, burn_in=100)
    fit = method.infer(prior, Gaussian(noise, learn=False), data, generator=generator)
    draws = fit.posterior.weights.draws["weight"][:, 0]  # (s, 3)
    by_chain = draws.reshape(2, 250, 3)
    size, spread = mcmc.ess(by_chain).clamp(max=500), mcmc.ess((by_chain - mean[:, 0]) ** 2).clamp(max=500)
    sd = covariance.diagonal().sqrt()
    assert ((draws.mean(0) - mean[:, 0]).abs() < (5 / size.sqrt()) * sd).all()
    assert ((draws.std(0) / sd - 1).abs() < 5 * (0.5 / spread).sqrt() + bias).all()
    # Four half-chains of 125: R-hat^2 - 1 is about tau (chi2_3 / 3 - 1) / 125, at tau = 5 above 0.32 once in 100,000.
    assert fit.diagnostics["R-hat"] < 1.15


def test_variables_choose_the_draws(generator):
    data, prior = rows("regression", generator), bnn.gaussian_prior(network())

    def infer(*variables):
        method = MCMC(mcmc.EntropySGLD(eta=4.0), **SHORT, variables=variables)
        return method.infer(prior, Gaussian(), data, generator=torch.Generator().manual_seed(0))

    position, anchor, both = infer("weights"), infer("weights.anchor"), infer("weights", "weights.anchor")
    draws = torch.cat([position.posterior(data.x).draws, anchor.posterior(data.x).draws])
    assert torch.equal(both.posterior(data.x).draws, draws) and not torch.equal(*draws.chunk(2))
    assert both.diagnostics["R-hat"] == max(fit.diagnostics["R-hat"] for fit in (position, anchor))
    with pytest.raises(ValueError, match=r"`variables` must be one of \['weights', 'weights.anchor'\]"):
        infer("weights.ancor")
    with pytest.raises(ValueError, match="`variables` must name at least one"):
        infer()


@pytest.mark.monte_carlo
def test_structured_draws_have_the_optimal_factorized_distribution(generator):
    # Every weight a group by itself: N(mean, diag(1 / P_ii)). To 5 standard errors and ten percent, as for SGLD.
    data, noise = linear(generator), 0.25
    prior = bnn.gaussian_prior(nn.Linear(3, 1, bias=False, dtype=torch.float64))
    precision = prior.weights.covariance.inverse().to_dense() + data.x.mT * data.weights @ data.x / noise
    mean = torch.linalg.solve(precision, data.x.mT * data.weights @ data.y / noise)[:, 0]
    kernel = mcmc.Structured(groups="parameter")
    method = MCMC(kernel, num_chains=4, num_samples=100, burn_in=100, thin=8)
    fit = method.infer(prior, Gaussian(noise, learn=False), data, generator=generator)
    draws = fit.posterior.weights.draws["weight"][:, 0].reshape(4, 100, 3)
    sd = precision.diagonal().rsqrt()
    size, spread = mcmc.ess(draws).clamp(max=400), mcmc.ess((draws - mean) ** 2).clamp(max=400)
    flat = draws.flatten(0, 1)
    assert ((flat.mean(0) - mean).abs() < (5 / size.sqrt()) * sd).all()
    assert ((flat.std(0) / sd - 1).abs() < 5 * (0.5 / spread).sqrt() + 0.1).all()
    correlation = torch.corrcoef(flat.T) - torch.eye(3)
    assert correlation.abs().max() < 5 / size.min().sqrt() + 0.1


def test_groups_are_those_of_the_networks_parameters(generator):
    prior = bnn.gaussian_prior(network())  # 2-4-1
    model = Model(prior.network, prior.weights, Gaussian())
    names = list(model.like)
    assert model.labels("layer")["weights"].unique(return_counts=True)[1].tolist() == [12, 5]
    assert model.labels("neuron")["weights"].unique(return_counts=True)[1].tolist() == [3, 3, 3, 3, 5]
    own = {name: torch.tensor(i % 2) for i, name in enumerate(names)}
    labels = model.labels(own)
    assert labels["weights"].max() == 1 and labels["likelihood"].tolist() == [2]
    data = rows("regression", generator)
    for groups in ("neuron", own):
        for size in (None, 10):
            kernel = mcmc.Structured(mcmc.EntropySGLD(), groups=groups, num_passes=3)
            fit = MCMC(kernel, batch_size=size, **SHORT).infer(prior, Gaussian(), data, generator=generator)
            assert fit.posterior(data.x).draws.shape == (12, 40, 1)


@pytest.mark.parametrize("num_passes", [None, 3], ids=["positions", "dropout"])
@pytest.mark.parametrize("groups", ["leaf", "layer", "neuron", "parameter", "own"])
@pytest.mark.parametrize("likelihood, kind, outputs", [CASES[0], CASES[4]], ids=["regression", "classes"])
def test_every_scheme_of_groups(generator, groups, num_passes, likelihood, kind, outputs):
    data, prior = rows(kind, generator), bnn.gaussian_prior(network(2, outputs))
    names = prior.weights.mean
    labels = {name: torch.tensor(i % 2) for i, name in enumerate(names)} if groups == "own" else groups
    kernel = mcmc.Structured(groups=labels, num_passes=num_passes)
    fit = MCMC(kernel, **SHORT).infer(prior, likelihood, data, generator=generator)
    draws = fit.posterior.weights.draws
    assert fit.posterior(data.x).draws.shape == (12, 40, outputs)
    for name in names:  # every weight of both chains moves
        first, last = draws[name].unflatten(0, (2, 6))[:, 0], draws[name].unflatten(0, (2, 6))[:, -1]
        assert torch.isfinite(last).all() and (first != last).all()


@pytest.mark.monte_carlo
def test_particles_are_the_draws_and_have_no_rhat(generator):
    data, noise = linear(generator), 0.25
    prior = bnn.gaussian_prior(nn.Linear(3, 1, bias=False, dtype=torch.float64))
    precision = prior.weights.covariance.inverse().to_dense() + data.x.mT * data.weights @ data.x / noise
    mean = torch.linalg.solve(precision, data.x.mT * data.weights @ data.y / noise)[:, 0]
    sd = torch.linalg.inv(precision).diagonal().sqrt()
    likelihood = Gaussian(noise, learn=False)
    fit = MCMC(mcmc.SVGD(), num_chains=20, burn_in=150, start_steps=20).infer(
        prior, likelihood, data, generator=generator
    )
    draws = fit.posterior.weights.draws["weight"][:, 0]  # (20, 3)
    assert draws.shape == (20, 3) and not {"R-hat", "effective draws"} & fit.diagnostics.keys()
    # No randomness to allow for: the mean is that of the target in the limit, the spread of 20 particles too small.
    assert ((draws.mean(0) - mean).abs() < 0.05 * sd).all()
    assert ((draws.std(0) / sd > 0.75) & (draws.std(0) / sd < 1.05)).all()
    noisy = MCMC(mcmc.SVGD(), num_chains=4, burn_in=5, batch_size=10).infer(
        prior, Gaussian(), data, generator=generator
    )
    assert torch.isfinite(noisy.posterior(data.x).draws).all()


@pytest.mark.monte_carlo
def test_the_noise_is_learnt_with_the_stated_prior(generator):
    # A network that is (almost) pinned to zero: y ~ N(0, noise), log noise ~ N(log 0.1, 2^2), by quadrature.
    y = 0.5 * torch.randn(40, 1, generator=generator, dtype=torch.float64)
    data = Data(torch.zeros(40, 1, dtype=torch.float64), y)
    prior = bnn.gaussian_prior(nn.Linear(1, 1, dtype=torch.float64), precision=1e8)
    grid = torch.linspace(-8, 4, 4001, dtype=torch.float64)
    start = torch.tensor(0.1 - 1e-6, dtype=torch.float64).log()
    log_density = -20 * grid - 0.5 * y.square().sum() * (-grid).exp() - 0.5 * ((grid - start) / NOISE_SPREAD) ** 2
    weights = log_density.softmax(0)
    mean = (weights * grid).sum()
    sd = (weights * (grid - mean) ** 2).sum().sqrt()
    method = MCMC(mcmc.NUTS(), num_chains=2, num_samples=200, burn_in=80)
    fit = method.infer(prior, Gaussian(0.1), data, generator=generator)
    assert abs(fit.likelihood.raw_noise.item() - mean) < 5 * sd / 100**0.5  # at least 100 effective draws of 400


def test_the_log_density_is_the_joint_one(generator):
    data, prior, likelihood = rows("regression", generator), bnn.gaussian_prior(network()), Gaussian(0.3)
    model = Model(prior.network, prior.weights, likelihood)
    w = prior.weights.sample(3, generator=generator)
    flat = torch.cat([w[name].reshape(3, -1) for name in model.like], dim=-1)
    position = {"weights": (flat - model.mean) / model.scale, "likelihood": torch.zeros(3, 1, dtype=torch.float64)}
    f = bnn.monte_carlo(prior.network, bnn.SampledWeights(w), data.x).draws
    expected = likelihood.log_prob(f, data.y).sum(-1) + prior.weights.log_prob(w)
    density = LogPosterior(model, data)
    assert torch.allclose(density(position), expected, rtol=1e-12)
    one = {name: leaf[1:2] for name, leaf in position.items()}
    assert torch.allclose(density(one), expected[1:2], rtol=1e-12)
    moved = position | {"likelihood": position["likelihood"] + 0.5}
    noisier = Gaussian((torch.tensor(0.3 - 1e-6, dtype=torch.float64).log() + 0.5 * NOISE_SPREAD).exp() + 1e-6)
    expected = noisier.log_prob(f, data.y).sum(-1) + prior.weights.log_prob(w) - 0.5 * 0.5**2
    assert torch.allclose(density(moved), expected.detach(), rtol=1e-9)


def test_mini_batches_average_to_the_full_density(generator):
    data, prior = rows("regression", generator), bnn.gaussian_prior(network())
    model = Model(prior.network, prior.weights, Gaussian(0.3, learn=False))
    position = {"weights": torch.randn(2, len(model.mean), generator=generator, dtype=torch.float64)}
    batches = [density(position) for density in MiniBatches(model, data, 8, generator)]
    assert len(batches) == 5
    assert torch.allclose(torch.stack(batches).mean(0), LogPosterior(model, data)(position), rtol=1e-12)


def test_mini_batches_have_nearly_equal_sizes(generator):
    data, prior = rows("regression", generator, n=41), bnn.gaussian_prior(network())
    model = Model(prior.network, prior.weights, Gaussian(0.3, learn=False))
    batches = [density.data for density in MiniBatches(model, data, 8, generator)]  # 41 = 5 x 8 + 1
    assert sorted(len(batch) for batch in batches) == [6, 7, 7, 7, 7, 7]
    assert all(batch.scale == pytest.approx(41 / len(batch)) for batch in batches)
    assert torch.cat([batch.y for batch in batches]).sort(0).values.equal(data.y.sort(0).values)


def test_the_preconditioner_does_not_change_the_density(generator):
    data, prior = rows("regression", generator), bnn.gaussian_prior(network())
    before, model = (Model(prior.network, prior.weights, Gaussian(0.3)) for _ in range(2))
    position = model.start(data, 2, 20, generator=generator)
    back = {
        "weights": position["weights"] * model.scale / before.scale,
        "likelihood": position["likelihood"] * model.own_scale / before.own_scale,
    }
    assert torch.allclose(model.log_density(position, data), before.log_density(back, data), rtol=1e-10)
    assert not torch.allclose(model.scale, before.scale)


@pytest.mark.monte_carlo
def test_mini_batches_run_and_take_smaller_steps(generator):
    # Of a kernel with momentum, which their noise heats most; the rule: tests/mcmc/sgmcmc/test_stochastic_kernel.py.
    data, prior = rows("regression", generator), bnn.gaussian_prior(network())
    steps = [
        MCMC(mcmc.SGHMC(), batch_size=size, **SHORT)
        .infer(prior, Gaussian(), data, generator=torch.Generator().manual_seed(0))
        .diagnostics["step size"]
        for size in (None, 10)
    ]
    assert steps[1] < 0.75 * steps[0]  # about half of it


def test_a_network_without_vmap_support_runs_chain_by_chain(generator):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 1, dtype=torch.float64)

        def forward(self, x):
            f = self.layer(x)
            return f if bool(f.mean() > 100) else 2 * f

    data, prior = rows("regression", generator), bnn.gaussian_prior(Branching())
    fit = MCMC(mcmc.SGLD(), **SHORT).infer(prior, Gaussian(), data, generator=generator)
    assert fit.posterior(data.x).draws.shape == (12, 40, 1)


def test_a_subset_of_the_weights_in_float32(generator):
    net = network(dtype=torch.float32)
    net[1].weight.requires_grad_(False)
    prior = bnn.gaussian_prior(net)
    fit = MCMC(mcmc.NUTS(max_tree_depth=3), **SHORT).infer(
        prior, Gaussian(), rows("regression", generator), generator=generator
    )
    assert "1.weight" not in fit.posterior.weights.draws
    assert all(value.dtype == torch.float32 for value in fit.posterior.weights.draws.values())


def test_batchnorm_keeps_statistics_of_the_data(generator):
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()
    data = rows("regression", generator)
    fit = MCMC(mcmc.SGLD(), **SHORT).infer(bnn.gaussian_prior(net), Gaussian(), data, generator=generator)
    assert fit.posterior.network[1].num_batches_tracked == 1 and net[1].num_batches_tracked == 0
    together, apart = fit.posterior(data.x).mean, fit.posterior(data.x[:3]).mean
    assert torch.allclose(together[:3], apart)


def test_an_interrupted_run_resumes(tmp_path, generator):
    data, prior = rows("regression", generator), bnn.gaussian_prior(network())

    def infer(**settings):
        method = MCMC(mcmc.SGLD(), **SHORT | settings)
        return method.infer(prior, Gaussian(), data, generator=torch.Generator().manual_seed(0)).posterior(data.x).draws

    whole = infer()
    infer(checkpoint=tmp_path / "run", num_samples=3)
    assert torch.equal(whole, infer(checkpoint=tmp_path / "run"))


def test_unsupported_arguments_are_refused_by_name(generator):
    data, prior = rows("regression", generator), bnn.gaussian_prior(network())
    point = bnn.BayesNet(prior.network, bnn.PointWeights(prior.weights.mean), bnn.MonteCarlo())
    with pytest.raises(TypeError, match="Gaussian weights; got PointWeights"):
        MCMC(mcmc.SGLD(), **SHORT).infer(point, Gaussian(), data, generator=generator)
    for setting in ({"num_chains": 0}, {"num_samples": 0}, {"burn_in": -1}, {"start_steps": 0}):
        with pytest.raises(ValueError, match=f"`{next(iter(setting))}`"):
            MCMC(mcmc.SGLD(), **SHORT | setting).infer(prior, Gaussian(), data, generator=generator)


def test_it_is_a_scikit_learn_object():
    method = clone(MCMC(mcmc.SGLD(lr=0.1), num_chains=3))
    assert method.kernel.lr == 0.1 and method.num_chains == 3 and method.get_params()["thin"] is None
    assert MCMC.quickly().num_chains == 1


def test_untrained_batch_norm_gets_statistics_and_trained_keeps_them(generator):
    x = 50 + torch.randn(200, 3, generator=generator)
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 4), nn.BatchNorm1d(4))
    trained = net[3]
    trained.num_batches_tracked += 1
    state = torch.get_rng_state()
    fixed = _with_statistics(net, Data(x, x[:, :1]))
    assert torch.allclose(fixed[0].running_mean, x.mean(0)) and torch.allclose(fixed[0].running_var, x.var(0))
    assert torch.equal(fixed[3].running_mean, torch.zeros(4)) and trained.num_batches_tracked == 1
    assert fixed[0].momentum == 0.1 and not any(layer.training for layer in fixed.modules())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("chains", [1, 3])
def test_chains_that_never_move_do_not_pass_for_converged(chains):
    """A step of 1,000 is never accepted: R-hat is infinite, and no draw beyond one of each chain counts."""
    stuck = mcmc.HMC(step_size=1e3, trajectory=1e4)
    method = bnn.MCMC(stuck, num_chains=chains, num_samples=8, burn_in=0, start_steps=1)
    data = rows("regression", torch.Generator().manual_seed(0))
    fit = method.infer(bnn.gaussian_prior(network()), Gaussian(), data, generator=torch.Generator().manual_seed(0))
    assert fit.diagnostics["R-hat"] == torch.inf and fit.diagnostics["effective draws"] <= chains
