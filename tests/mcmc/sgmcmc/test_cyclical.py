import itertools
from dataclasses import replace

import pytest
import torch

from bayeskit import mcmc

from ..gaussian import log_density


def test_a_cycle_falls_from_one_to_nearly_nothing_and_starts_again():
    schedule = mcmc.cosine_cycles(length=50, exploration=0.75)
    values = [schedule(step) for step in range(100)]
    assert values[0] == 1 and values[:50] == values[50:] and values[49] < 0.001
    assert all(a > b for a, b in itertools.pairwise(values[:50]))
    assert min(mcmc.cosine_cycles(length=50, floor=0.1)(step) for step in range(50)) == 0.1
    assert sum(schedule.explores(step) for step in range(50)) == 38  # 0, ..., 37 are below 0.75 * 50


@pytest.mark.parametrize("kernel", [mcmc.SGLD(lr=0.05), mcmc.SGHMC(lr=0.05), mcmc.SGNHT(lr=0.05), mcmc.BAOAB(lr=0.05)])
def test_one_cycle_without_exploration_is_the_kernel_with_a_schedule(generator, kernel):
    start = {"x": torch.randn(3, 8, generator=generator, dtype=torch.float64)}
    cycle = mcmc.cosine_cycles(length=40, exploration=0.0)
    budget = {"num_samples": 20, "burn_in": 5}
    one = mcmc.run(replace(kernel, schedule=cycle), log_density, start, **budget, generator=torch.Generator())
    same = replace(kernel, schedule=cycle.__call__)  # a function of which nothing is known
    two = mcmc.run(same, log_density, start, **budget, generator=torch.Generator())
    assert torch.equal(one.samples["x"], two.samples["x"])


def test_exploration_is_at_temperature_zero(generator):
    start = {"x": torch.randn(3, 8, generator=generator, dtype=torch.float64)}
    kernel = mcmc.cyclical_sgld(length=40, exploration=0.5, lr=0.05)
    state = kernel.init(start, log_density, generator=generator)
    for step in range(80):
        before = generator.get_state()
        state, _ = kernel.step(state, log_density, generator=generator)
        assert torch.equal(before, generator.get_state()) == (step % 40 < 20)


@pytest.mark.parametrize("thin", [1, 2, 5])
def test_draws_are_taken_while_it_samples(generator, thin):
    calls = 0

    def counted(position):
        nonlocal calls
        calls += 1
        return log_density(position)

    kernel = mcmc.cyclical_sgld(length=20, exploration=0.5, lr=0.05)
    start = {"x": torch.zeros(1, 8, dtype=torch.float64)}
    chain = mcmc.run(kernel, counted, start, num_samples=20 // thin, burn_in=20, thin=thin, generator=generator)
    # 10 steps of each cycle sample: 20 // thin draws need 20 of them (or 20 - 20 % thin), the last in the third cycle.
    assert calls == 20 + 2 * 20 and chain.samples["x"].shape[1] == 20 // thin
    late = [0.05 * kernel.schedule(step) for step in range(10, 20)]
    expected = torch.tensor(late * 2, dtype=torch.float64).reshape(-1, thin).mean(-1)
    assert torch.allclose(chain.info["step_size"][0], expected)


def test_a_killed_run_goes_on_in_its_cycle(tmp_path):
    class Killed(Exception):
        pass

    def run(path, number=None):
        calls = 0

        def density(position):
            nonlocal calls
            calls += 1
            if calls == number:
                raise Killed
            return log_density(position)

        start, g = {"x": torch.zeros(2, 8, dtype=torch.float64)}, torch.Generator().manual_seed(0)
        kernel = mcmc.cyclical_sghmc(length=20, lr=0.05)
        return mcmc.run(kernel, density, start, num_samples=20, burn_in=7, thin=2, generator=g, checkpoint=path)

    with pytest.raises(Killed):
        run(tmp_path / "run", 60)
    assert torch.equal(run(tmp_path / "run").samples["x"], run(None).samples["x"])


@pytest.mark.monte_carlo
def test_cycles_visit_more_modes(generator):
    # The grid of 25 Gaussians of the paper, of variance 0.03 and two apart: the barriers are 16 high, so a chain that
    # only samples stays where it is.
    side = torch.tensor([-4.0, -2.0, 0.0, 2.0, 4.0], dtype=torch.float64)
    modes = torch.cartesian_prod(side, side)

    def grid(position):
        return torch.logsumexp(-0.5 * (position["x"][:, None] - modes).square().sum(-1) / 0.03, dim=-1)

    def visited(kernel):
        start = {"x": modes[torch.arange(20) % 25].clone()}
        budget = {"num_samples": 100, "thin": 8, "burn_in": 0, "generator": generator}
        draws = mcmc.run(kernel, grid, start, **budget).samples["x"]  # (20, 100, 2)
        distance, nearest = (draws[:, :, None] - modes).square().sum(-1).min(-1)
        near = distance < 16 * 0.03  # four standard deviations
        assert near.double().mean() > 0.8  # these are draws of the mixture, not of the way between
        return sum(len(set(nearest[c][near[c]].tolist())) for c in range(20)) / 20

    assert visited(mcmc.SGLD(lr=0.005)) < 1.2  # crossing a barrier has a chance of 1e-4 in all steps of all chains
    assert visited(mcmc.cyclical_sgld(length=160, lr=0.09)) > 5


@pytest.mark.parametrize("setting", [{"length": 0}, {"length": 5, "exploration": 1.0}, {"length": 5, "floor": -0.1}])
def test_settings_are_checked(setting):
    with pytest.raises(ValueError, match=f"`{list(setting)[-1]}`"):
        mcmc.cosine_cycles(**setting)
