"""Federated sampling against the full-batch sampler, the exact posterior, and what goes wrong without surrogates."""

import pytest
import torch

from bayeskit import mcmc
from bayeskit.core import generators
from bayeskit.mcmc.base.log_density import value_and_gradient
from bayeskit.mcmc.federated.federated_sgld import _Visit

CENTERS = torch.tensor([[-3.0, 1.0], [3.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
PRECISIONS = [
    torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64),
    torch.tensor([[1.0, 0.0], [0.0, 3.0]], dtype=torch.float64),
    torch.tensor([[1.0, -0.3], [-0.3, 0.5]], dtype=torch.float64),
]
SIZES = [1.0, 2.0, 1.0]


def shard(number):
    def log_likelihood(position):
        x = position["x"] - CENTERS[number]
        return -0.5 * (x @ PRECISIONS[number] * x).sum(-1)

    return log_likelihood


SHARDS = {number: shard(number) for number in range(3)}
SURROGATES = [mcmc.laplace_surrogate(one, {"x": torch.ones(1, 2, dtype=torch.float64)}) for one in SHARDS.values()]


def prior(position):
    return -0.5 * position["x"].square().sum(-1)


def truth():
    precision = torch.eye(2, dtype=torch.float64) + sum(PRECISIONS)
    pulls = torch.stack([p @ m for p, m in zip(PRECISIONS, CENTERS, strict=True)]).sum(0)
    covariance = torch.linalg.inv(precision)
    return covariance @ pulls, covariance


def run(federation, kernel, start, rounds, seed=1, **settings):
    g = torch.Generator().manual_seed(seed)
    return mcmc.run(kernel, federation, {"x": start}, num_samples=1, burn_in=rounds - 1, generator=g, **settings)


def test_the_mean_over_shards_is_the_whole_gradient_whatever_the_surrogates(generator):
    def bent(number):
        return lambda q: SHARDS[number](q) + (number + 1) * q["x"].sin().sum(-1)

    off = [mcmc.Surrogate(torch.randn(2, generator=generator).double(), torch.rand(2).double()) for _ in range(3)]
    off[1] = SURROGATES[1]  # a dense one among diagonal ones
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    for surrogates in (None, off):
        federation = mcmc.Federation(prior, {s: bent(s) for s in range(3)}, SIZES, surrogates)
        whole = value_and_gradient(federation, {"x": x})[1]["x"]
        total = torch.zeros(5, 2, dtype=torch.float64)
        for number, likelihood in federation.shards.items():
            visit = _Visit(federation, {number: likelihood}, torch.full((5,), number))
            total += SIZES[number] / sum(SIZES) * value_and_gradient(visit, {"x": x})[1]["x"]
        assert torch.allclose(total, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("local_steps", [1, 7])
def test_exact_surrogates_and_whole_shards_are_the_sampler_on_all_the_data(generator, local_steps):
    start, base = torch.randn(20, 2, generator=generator, dtype=torch.float64), mcmc.SGLD(lr=0.05)
    federation = mcmc.Federation(prior, SHARDS, SIZES, SURROGATES)
    travelled = run(federation, mcmc.Federated(base, local_steps), start, 6).samples["x"][:, 0]
    g = torch.Generator().manual_seed(1)
    state = base.init({"x": start}, federation, generator=g)
    for _ in range(6):
        generators.categorical(torch.tensor(SIZES, dtype=torch.float64), 20, generator=g)  # where chains would go
        for _ in range(local_steps):
            state, _ = base.step(state, federation, generator=g)
    assert torch.allclose(travelled, state.position["x"], rtol=1e-12, atol=1e-12)


CHAINS = 1000


@pytest.mark.monte_carlo
def test_long_visits_are_unbiased_with_surrogates_alone(generator):
    """Shards far apart, visits of 50 steps: to 5 standard errors beside the bias of the steps, h l / 4 < 3 % in sd."""
    mean, covariance = truth()
    sd = covariance.diagonal().sqrt()
    start = torch.zeros(CHAINS, 2, dtype=torch.float64)
    kernel, error = mcmc.Federated(mcmc.SGLD(lr=0.02), local_steps=50), 5 / CHAINS**0.5
    x = run(mcmc.Federation(prior, SHARDS, SIZES, SURROGATES), kernel, start, 3).samples["x"][:, 0]
    assert ((x.mean(0) - mean).abs() < error * sd).all()
    assert ((x.std(0) / sd - 1).abs() < error / 2**0.5 + 0.03).all()
    # Distributed SGLD: at the end of a visit it has the posterior of one shard with weight 1 / f.
    plain = run(mcmc.Federation(prior, SHARDS, SIZES), kernel, start, 3).samples["x"][:, 0]
    assert plain.std(0)[0] / sd[0] > 4
    # Short visits are near the truth without surrogates too, only wider: its bias is that of delay.
    short = run(mcmc.Federation(prior, SHARDS, SIZES), mcmc.Federated(mcmc.SGLD(lr=0.02), 1), start, 100)
    assert short.samples["x"][:, 0].std(0)[0] / sd[0] < 2


@pytest.mark.monte_carlo
def test_surrogates_fitted_by_the_clients_take_the_bias_out(generator):
    mean, covariance = truth()
    sd = covariance.diagonal().sqrt()
    fitted = [
        mcmc.fit_surrogate(
            one,
            {"x": CENTERS[number].repeat(400, 1)},
            kernel=mcmc.SGLD(lr=0.05),
            num_samples=5,
            burn_in=40,
            thin=20,
            dense=True,
            generator=generator,
        )
        for number, one in SHARDS.items()
    ]
    for one, exact in zip(fitted, SURROGATES, strict=True):
        # 2,000 draws, and steps that widen the stiffest direction by h l / 2 = 8 %.
        assert (one.precision - exact.precision).abs().max() < 0.2 * exact.precision.diagonal().max()
    start = torch.zeros(CHAINS, 2, dtype=torch.float64)
    kernel = mcmc.Federated(mcmc.SGLD(lr=0.02), local_steps=50)
    x = run(mcmc.Federation(prior, SHARDS, SIZES, fitted), kernel, start, 3).samples["x"][:, 0]
    assert ((x.mean(0) - mean).abs() < 0.5 * sd).all() and (x.std(0) / sd < 1.5).all()  # without: beyond 4


@pytest.mark.monte_carlo
@pytest.mark.parametrize("dense", [False, True])
def test_a_surrogate_is_flat_where_its_shard_says_nothing(generator, dense):
    def one_sided(q):
        return -0.5 * 4 * (q["x"][:, 0] - 1).square()

    start = {"x": torch.randn(2000, 2, generator=generator, dtype=torch.float64)}
    settings = {"num_samples": 1, "burn_in": 50, "weak_precision": 1.0, "dense": dense}
    fit = mcmc.fit_surrogate(one_sided, start, kernel=mcmc.SGLD(lr=0.05), generator=generator, **settings)
    precision = fit.precision if dense else fit.precision.diag()
    # 5 standard errors of a precision from 2,000 draws, 16 %, times that with the weak prior; and 12 % for the steps.
    assert abs(precision[0, 0] - 4) < 0.28 * 5 and precision[1, 1] < 0.16
    assert abs(fit.linear[0] - 4) < 1.5
    exact = mcmc.laplace_surrogate(one_sided, {"x": torch.zeros(1, 2, dtype=torch.float64)}, dense=dense)
    expected = torch.tensor([4.0, 0.0], dtype=torch.float64)
    assert torch.equal(exact.precision, expected.diag() if dense else expected) and torch.equal(exact.linear, expected)


def test_mini_batches_of_a_shard_are_gone_through_at_each_visit(generator):
    used = []

    def batch(number):
        def log_likelihood(position):
            used.append(number)
            return SHARDS[0](position)

        return log_likelihood

    shards = {0: [batch(0), batch(1)], 1: SHARDS[1], 2: SHARDS[2]}
    federation = mcmc.Federation(prior, shards, [1e6, 1.0, 1.0], SURROGATES)
    run(federation, mcmc.Federated(mcmc.SGLD(lr=0.01), 3), torch.zeros(2, 2, dtype=torch.float64), 2)
    assert used == [0, 1, 0, 0, 1, 0]


@pytest.mark.monte_carlo
@pytest.mark.parametrize("inside", [mcmc.EntropySGLD(lr=0.02), mcmc.Structured(mcmc.SGLD(lr=0.02), groups="parameter")])
def test_other_kernels_in_federation(generator, inside):
    federation = mcmc.Federation(prior, SHARDS, SIZES, SURROGATES)
    start = torch.zeros(300, 2, dtype=torch.float64)
    x = run(federation, mcmc.Federated(inside, 10), start, 15).samples["x"][:, 0]
    mean, covariance = truth()
    # Means of both are those of the posterior; a factorized distribution is no wider than it.
    assert ((x.mean(0) - mean).abs() < (5 / 300**0.5 + 0.05) * covariance.diagonal().sqrt()).all()


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    def go(path, rounds):
        g, start = torch.Generator().manual_seed(1), {"x": torch.zeros(4, 2, dtype=torch.float64)}
        federation = mcmc.Federation(prior, SHARDS, SIZES, SURROGATES)
        kernel = mcmc.Federated(mcmc.SGLD(lr=0.01), 3)
        chain = mcmc.run(kernel, federation, start, num_samples=rounds, burn_in=1, generator=g, checkpoint=path)
        return chain.samples["x"]

    go(tmp_path / "run", 3)
    assert torch.equal(go(tmp_path / "run", 8), go(None, 8))


WORKER = """
import torch

from bayeskit import mcmc


def work(rank, folder, numbers=None):
    numbers = numbers or [[0, 2], [1]][rank]
    centers = torch.tensor([[-2.0, 1.0], [2.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    shards = {s: lambda q, s=s: -(s + 1) * (q["x"] - centers[s]).square().sum(-1) for s in numbers}
    everyone = [mcmc.Surrogate(2 * (s + 1) * centers[s], torch.full((2,), 2.0 * (s + 1)).double()) for s in range(3)]
    federation = mcmc.Federation(lambda q: -0.5 * q["x"].square().sum(-1), shards, [1, 2, 1], everyone)
    kernel = mcmc.Federated(mcmc.SGLD(lr=0.02), local_steps=5)
    g, start = torch.Generator().manual_seed(3), {"x": torch.zeros(6, 2, dtype=torch.float64)}
    chain = mcmc.run(kernel, federation, start, num_samples=10, burn_in=2, generator=g)
    return chain.samples["x"], chain.info["log_density"], g.get_state()
"""


def test_two_processes_with_their_own_shards_do_what_the_simulation_does(two_ranks):
    first, second, work = two_ranks(WORKER)
    for *ranks, simulated in zip(first, second, work(0, "", [0, 1, 2]), strict=True):
        assert all(torch.equal(rank, simulated) for rank in ranks)


@pytest.mark.parametrize(
    "changes, kernel, error, message",
    [
        ({"sizes": [1.0, 0.0, 1.0]}, mcmc.SGLD(lr=0.1), ValueError, "`sizes` must be positive"),
        ({"sizes": [1.0, 1.0]}, mcmc.SGLD(lr=0.1), ValueError, "`shards` must be numbered 0 to 1"),
        ({"surrogates": SURROGATES[:2]}, mcmc.SGLD(lr=0.1), ValueError, "`surrogates` must have one for each of 3"),
        ({"shards": {0: SHARDS[0]}}, mcmc.SGLD(lr=0.1), ValueError, "start ranks"),
        ({"shards": {0: SHARDS[0]}}, mcmc.SGLD(), ValueError, "Give the kernel its `lr`"),
        ({}, mcmc.NUTS(), ValueError, "`kernel` must bear a noisy gradient"),
    ],
)
def test_what_does_not_fit_is_said(changes, kernel, error, message):
    arguments = {"log_prior": prior, "shards": SHARDS, "sizes": SIZES, "surrogates": SURROGATES} | changes
    with pytest.raises(error, match=message):
        run(mcmc.Federation(**arguments), mcmc.Federated(kernel), torch.zeros(1, 2, dtype=torch.float64), 1)


def test_it_needs_a_federation():
    with pytest.raises(ValueError, match="needs a `Federation`"):
        run(prior, mcmc.Federated(mcmc.SGLD(lr=0.1)), torch.zeros(1, 2), 1)
