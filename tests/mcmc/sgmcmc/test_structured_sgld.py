"""Structured SG-MCMC against its stationary distributions on a Gaussian: given its past, in the long run, dropout."""

import itertools

import pytest
import torch

from bayeskit import mcmc
from bayeskit.mcmc.base.log_density import value_and_gradient
from bayeskit.mcmc.base.position_history import History
from bayeskit.mcmc.sgmcmc.structured_sgld import StructuredState, _Average

PRECISION = torch.tensor([[2.0, 1.6], [1.6, 2.0]], dtype=torch.float64)


def gaussian(precision, mean=0.0):
    def density(position):
        x = torch.cat([leaf.reshape(len(leaf), -1) for leaf in position.values()], -1) - mean
        return -0.5 * (x @ precision * x).sum(-1)

    return density


def g(seed=5):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kernel", [mcmc.SGLD(lr=0.05), mcmc.SGLD(), mcmc.EntropySGLD(lr=0.05)])
@pytest.mark.parametrize(
    "settings",
    [
        {"groups": {"x": torch.tensor(3)}},
        {"groups": "leaf"},
        {"groups": "parameter", "num_passes": 2, "keep": 1.0},
    ],
)
def test_one_group_is_the_kernel_inside_bit_for_bit(generator, kernel, settings):
    start = {"x": torch.randn(3, 2, generator=generator, dtype=torch.float64)}
    ends = []
    for one in (kernel, mcmc.Structured(kernel, **settings)):
        own = g()
        chain = mcmc.run(one, gaussian(PRECISION), start, num_samples=20, burn_in=3, generator=own)
        ends.append((chain.samples, chain.info, own.get_state()))
    for mine, theirs in zip(*(end[:2] for end in ends), strict=True):
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert torch.equal(ends[0][2], ends[1][2])


def test_the_gradient_is_the_average_over_the_past_by_enumeration(generator):
    """Two groups, three past positions: all moments, and given that a group lives all the lives of the other."""

    def density(position):
        x = position["x"]
        return -(x[:, 0] ** 2 * x[:, 1].exp()) - x[:, 1] ** 2

    past = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    here = torch.randn(1, 2, generator=generator, dtype=torch.float64)

    def slope(alive, moments):
        ghost = torch.tensor([[past[a, 0], past[b, 1]] for a, b in moments], dtype=torch.float64)[:, None]
        return value_and_gradient(_Average(density, alive[:, None], ghost), {"x": here})[1]["x"][0]

    def plain(x0, x1):
        return value_and_gradient(density, {"x": torch.stack([x0, x1])[None]})[1]["x"][0]

    moments = list(itertools.product(range(3), range(3)))
    # One position per group.
    found = torch.stack([slope(torch.eye(2, dtype=torch.bool), pair) for pair in itertools.product(moments, moments)])
    average = torch.stack([plain(here[0, 0], past[b, 1])[0] for b in range(3)]).mean()
    other = torch.stack([plain(past[a, 0], here[0, 1])[1] for a in range(3)]).mean()
    assert torch.allclose(found.mean(0), torch.stack([average, other]), rtol=1e-12)
    # Two positions, every group alive with probability 0.3: the first group's, given that it lives in one of them.
    keep, total, weight = 0.3, 0.0, 0.0
    for bits in itertools.product([False, True], repeat=4):
        alive = torch.tensor(bits).reshape(2, 2)
        if alive[:, 0].any():
            chance = keep ** alive.sum().item() * (1 - keep) ** (~alive).sum().item()
            slopes = [slope(alive, pair)[0] for pair in itertools.product(moments, moments)]
            total, weight = total + chance * torch.stack(slopes).mean(), weight + chance
    expected = keep * plain(here[0, 0], here[0, 1])[0] + (1 - keep) * average
    assert torch.allclose(total / weight, expected, rtol=1e-12)


CHAINS, PAST = 1000, 20


@pytest.mark.monte_carlo
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_given_its_past_the_stationary_distribution_is_exact(generator, temperature):
    """Chains with 20 past positions each that stay as they are, drawn from N(m, q).

    A step is x <- x - h (p x + r y) + N(0, 2 h T) with y one of them, so given the past the mean is -r / p times their
    average and y's scatter is gradient noise V = r^2 q (1 - 1/20): Var x = (r / p)^2 q / 20 + (T + h V / 2) / (p (1 -
    h p / 2)), and nothing is left of the correlation.
    """
    h, q, m = 0.1, 0.5, 1.5
    p, r = PRECISION[0].tolist()
    past = m + q**0.5 * torch.randn(PAST, CHAINS, 2, generator=generator, dtype=torch.float64)
    frozen = History(past, torch.arange(PAST), torch.zeros(1), PAST, 10**12)
    kernel = mcmc.Structured(mcmc.SGLD(lr=h, temperature=temperature), groups="parameter", capacity=PAST)
    density = gaussian(PRECISION)
    state = kernel.init({"x": past[0]}, density, generator=generator)
    state = StructuredState(state.base, state.labels, frozen)
    variances = []
    for step in range(60 + 15 * 40):
        state, _ = kernel.step(state, density, generator=generator)
        x = state.position["x"]
        if step >= 60 and step % 15 == 0:
            variances.append(x.var(0))
    noise = r**2 * q * (1 - 1 / PAST)
    variance = (r / p) ** 2 * q / PAST + (temperature + h * noise / 2) / (p * (1 - h * p / 2))
    assert ((x.mean(0) + r / p * m).abs() < 5 * (variance / CHAINS) ** 0.5).all()
    assert abs(torch.corrcoef(x.T)[0, 1]) < 5 / CHAINS**0.5
    # 40 times of 15 steps each, after which 0.8^15 = 4 % of the noise is left.
    found = torch.stack(variances)
    assert ((found.mean(0) - variance).abs() < 5 * found.std(0) / 40**0.5).all()


MEAN = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
BLOCKS = torch.tensor(
    [[3.0, 1.0, 1.2, 0.0], [1.0, 2.0, 0.0, -0.8], [1.2, 0.0, 2.0, 0.5], [0.0, -0.8, 0.5, 1.0]], dtype=torch.float64
)
OWN = {"x": torch.tensor([0, 0, 1, 1])}


@pytest.mark.monte_carlo
@pytest.mark.parametrize("settings, share, steps", [({}, 0.0, 400), ({"num_passes": 2, "keep": 0.5}, 0.5, 500)])
def test_the_stationary_distribution_in_the_long_run(generator, settings, share, steps):
    """q_i = N(m_i, (P_ii)^-1) for groups of two; by dropout the precision is P with `keep` times its blocks off.

    To 5 standard errors of 1,500 draws (500 chains, four times each, far apart), plus 5 % for what is stated: steps of
    h widen stiff directions by h p / 2, and a chain's own past of 300 positions knows the other group's mean only so
    well.
    """
    precision = BLOCKS.clone()
    precision[:2, 2:] *= share
    precision[2:, :2] *= share
    expected = torch.linalg.inv(precision)
    kernel = mcmc.Structured(mcmc.SGLD(lr=0.04), groups=OWN, capacity=300, **settings)
    start = {"x": torch.zeros(500, 4, dtype=torch.float64)}
    chain = mcmc.run(kernel, gaussian(BLOCKS, MEAN), start, num_samples=4, burn_in=steps, thin=80, generator=generator)
    x = chain.samples["x"]
    sd = expected.diagonal().sqrt()
    covariance = torch.cov(x.flatten(0, 1).T)
    error = 5 / 1500**0.5
    assert ((x.mean((0, 1)) - MEAN).abs() < (error + 0.05) * sd).all()
    assert ((covariance - expected).abs() < (2**0.5 * error + 0.1) * sd[:, None] * sd).all()
    target = torch.linalg.inv(BLOCKS)  # what the test could confuse it with is farther off
    assert ((covariance - target).abs() > 0.3 * sd[:, None] * sd).any()


@pytest.mark.monte_carlo
@pytest.mark.parametrize("kernel", [mcmc.SGLD(lr=0.1), mcmc.EntropySGLD(lr=0.1)])
def test_a_group_without_data_stays_where_it_is(generator, kernel):
    flat = lambda q: 0 * q["x"].sum(-1)  # noqa: E731
    structured = mcmc.Structured(kernel, groups="parameter", num_passes=1, keep=0.5)
    start = {"x": torch.randn(3, 200, generator=generator, dtype=torch.float64)}
    state = structured.init(start, flat, generator=generator)
    state, _ = structured.step(state, flat, generator=generator)
    after, _ = structured.step(state, flat, generator=generator)
    for name, leaf in after.position.items():
        moved = leaf != state.position[name]
        assert (moved.sum(-1) > 60).all() and (moved.sum(-1) < 140).all()  # of 200, half: six standard deviations
        assert 60 < (moved[0] == moved[1]).sum() < 140  # each chain has groups of its own


def test_chains_do_not_see_each_other(generator):
    start = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    changed = torch.cat([start[:1], start[1:] + 5])
    kernel = mcmc.Structured(mcmc.SGLD(lr=0.05), groups="parameter", capacity=5)
    ends = [
        mcmc.run(kernel, gaussian(PRECISION), {"x": x}, num_samples=1, burn_in=30, generator=g()).samples["x"]
        for x in (start, changed)
    ]
    assert torch.allclose(ends[0][0], ends[1][0], rtol=1e-12)  # a matrix product rounds by its number of rows


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    def run(path, number):
        start = {"x": torch.zeros(2, 2, dtype=torch.float64)}
        kernel = mcmc.Structured(mcmc.SGLD(lr=0.05), groups="parameter", capacity=5)
        density = gaussian(PRECISION)
        return mcmc.run(kernel, density, start, num_samples=number, burn_in=2, generator=g(), checkpoint=path).samples

    run(tmp_path / "run", 9)
    assert torch.equal(run(tmp_path / "run", 30)["x"], run(None, 30)["x"])


@pytest.mark.parametrize(
    "settings",
    [{"capacity": 0}, {"num_passes": 0}, {"keep": 0.0}, {"keep": 1.1}, {"kernel": mcmc.NUTS()}, {"groups": "lair"}],
)
def test_settings_are_checked(settings, generator):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}`"):
        mcmc.Structured(**settings).init({"x": torch.zeros(1, 2)}, gaussian(PRECISION.float()), generator=generator)
