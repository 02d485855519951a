import pytest
import torch

from bayeskit import mcmc
from bayeskit.mcmc.hamiltonian.nuts import quiet

with quiet(torch.Generator()):
    import pyro
    from pyro import distributions as dist

X = torch.linspace(-1, 1, 8, dtype=torch.float64)
Y = torch.tensor([0.1, -0.4, 0.9, 1.2, 0.3, 1.9, 1.4, 2.2], dtype=torch.float64)
ONE = torch.ones((), dtype=torch.float64)


def regression(x, y=None):
    noise = pyro.sample("noise", dist.LogNormal(0 * ONE, ONE))
    weights = pyro.sample("weights", dist.Normal(0 * ONE, ONE).expand([2]).to_event(1))
    share = pyro.sample("share", dist.Beta(2 * ONE, 3 * ONE))
    pyro.deterministic("twice", 2 * share)
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(weights[0] + share * weights[1] * x, noise), obs=y)


def by_hand(position):
    log_noise, w, logit = position["noise"], position["weights"], position["share"]
    noise, share = log_noise.exp(), logit.sigmoid()
    prior = dist.Normal(0 * ONE, ONE).log_prob(log_noise)  # the Jacobian of the logarithm and of LogNormal cancel
    prior = prior + dist.Normal(0 * ONE, ONE).log_prob(w).sum(-1)
    prior = prior + dist.Beta(2 * ONE, 3 * ONE).log_prob(share) + share.log() + (1 - share).log()
    mean = w[:, :1] + (share * w[:, 1])[:, None] * X
    return prior + dist.Normal(mean, noise[:, None]).log_prob(Y).sum(-1)


@pytest.mark.parametrize("chains", [1, 5])
def test_it_is_the_joint_density_with_its_jacobians(generator, chains):
    density = mcmc.PyroDensity(regression, X, y=Y)
    position = density.start(chains, generator=generator)
    assert {name: leaf.shape[1:] for name, leaf in position.items()} == {"noise": (), "weights": (2,), "share": ()}
    assert all(leaf.abs().max() <= 2 and leaf.dtype == torch.float64 for leaf in position.values())
    assert torch.allclose(density(position), by_hand(position), rtol=1e-12)
    slopes = mcmc.base.log_density.value_and_gradient(density, position)[1]
    expected = mcmc.base.log_density.value_and_gradient(by_hand, position)[1]
    assert all(torch.allclose(slopes[name], expected[name], rtol=1e-10) for name in slopes)


def test_constrained_draws_have_the_supports_of_the_model(generator):
    density = mcmc.PyroDensity(regression, X, y=Y)
    samples = {
        name: leaf.reshape(3, 4, *leaf.shape[1:]) for name, leaf in density.start(12, generator=generator).items()
    }
    found = density.constrained(samples)
    assert found["weights"].shape == (3, 4, 2) and (found["noise"] > 0).all()
    assert ((found["share"] > 0) & (found["share"] < 1)).all()


@pytest.mark.monte_carlo
def test_a_conjugate_model_has_its_posterior(generator):
    # precision ~ Gamma(2, 1), y ~ N(0, 1 / precision): Gamma(2 + n / 2, 1 + sum y^2 / 2).
    def model():
        precision = pyro.sample("precision", dist.Gamma(2 * ONE, ONE))
        with pyro.plate("rows", len(Y)):
            pyro.sample("y", dist.Normal(0 * ONE, precision.rsqrt()), obs=Y)

    density = mcmc.PyroDensity(model)
    start = density.start(50, generator=generator)
    chain = mcmc.run(mcmc.HMC(), density, start, num_samples=40, burn_in=60, generator=generator)
    x = density.constrained(chain.samples)["precision"]
    shape, rate = 2 + len(Y) / 2, 1 + Y.square().sum() / 2
    assert abs(x.mean() - shape / rate) < 5 * shape**0.5 / rate / mcmc.ess(x).clamp(max=2000).sqrt()


def test_control_flow_that_depends_on_values_goes_chain_by_chain(generator):
    def model():
        x = pyro.sample("x", dist.Normal(0 * ONE, ONE))
        pyro.sample("y", dist.Normal(x if x > 0 else 2 * x, ONE), obs=ONE)

    position = {"x": torch.tensor([-1.0, 1.0], dtype=torch.float64)}
    normal = dist.Normal(0.0, 1.0)
    expected = normal.log_prob(position["x"]) + normal.log_prob(1 - torch.tensor([-2.0, 1.0], dtype=torch.float64))
    assert torch.allclose(mcmc.PyroDensity(model)(position), expected)


def test_what_cannot_be_sampled_is_refused_by_name():
    def discrete():
        pyro.sample("kind", dist.Bernoulli(0.5 * ONE))

    def partial():
        with pyro.plate("rows", 8, subsample_size=3):
            pyro.sample("x", dist.Normal(0 * ONE, ONE))

    def nothing():
        pyro.sample("y", dist.Normal(0 * ONE, ONE), obs=ONE)

    for model, message in ((discrete, "'kind' is discrete"), (partial, "'rows' takes a part"), (nothing, "no latent")):
        with pytest.raises(ValueError, match=message):
            mcmc.PyroDensity(model)


def test_the_global_generator_is_left_alone(generator):
    before = torch.get_rng_state()
    density = mcmc.PyroDensity(regression, X, y=Y)
    density(density.start(3, generator=generator))
    assert torch.equal(before, torch.get_rng_state())
