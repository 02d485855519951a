import pytest
import torch

from bayeskit.mcmc.base.position_history import History


def filled(number, capacity, generator, chains=2):
    history = History.begin(torch.zeros(chains, 3))
    for t in range(1, number):
        history = history.offer(torch.full((chains, 3), float(t)), capacity=capacity, generator=generator)
    return history


def test_it_is_bounded_and_holds_what_was_offered(generator):
    short, long = filled(20, 30, generator), filled(900, 30, generator)
    assert sorted(short.rows[short.slots][:, 0, 0].tolist()) == list(range(20))
    kept = long.rows[long.slots][:, 0, 0]
    assert len(kept) == 30 and len(kept.unique()) == 30 and len(long.rows) <= 30 + 30 // 4 + 4
    assert long.offered == 900


@pytest.mark.monte_carlo
def test_weights_rise_linearly_with_time(generator):
    # Under the density 2 s / t^2 on (0, t): mean 2 t / 3, and a quarter of the draws are from the first half.
    kept = torch.cat([(h := filled(400, 20, generator)).rows[h.slots][:, 0, 0] for _ in range(40)]) / 400
    size = len(kept)
    assert abs(kept.mean() - 2 / 3) < 5 * (1 / 18 / size) ** 0.5
    assert abs((kept < 0.5).float().mean() - 0.25) < 5 * (0.25 * 0.75 / size) ** 0.5


def test_an_old_history_is_not_changed_by_later_ones(generator):
    old = filled(50, 10, generator)
    before = old.rows[old.slots].clone()
    branches = []
    for value in (-1.0, -2.0):  # two futures of the same past
        branch = old
        for _ in range(40):
            branch = branch.offer(torch.full((2, 3), value), capacity=10, generator=generator)
        branches.append(branch)
    assert torch.equal(old.rows[old.slots], before)
    for branch, other in zip(branches, (-2.0, -1.0), strict=True):
        values = branch.rows[branch.slots]
        assert (values < 0).any() and not (values == other).any()


@pytest.mark.monte_carlo
def test_groups_come_from_moments_of_their_own(generator):
    history, labels = filled(10, 10, generator), torch.tensor([0, 1, 0])
    draws = history.draw(labels, 2, 2_000, generator=generator)
    assert draws.shape == (2_000, 2, 3)
    assert torch.equal(draws[..., 0], draws[..., 2])  # of one group
    counts = torch.zeros(10, 10).index_put((draws[:, 0, 0].long(), draws[:, 0, 1].long()), torch.ones(2_000), True)
    # 100 cells of expectation 20 each, as moments are independent: Poisson, one of them beyond 51 once in 10 million.
    assert (counts - 20).abs().max() < 7 * 20**0.5
    same = (draws[:, 0, 0] == draws[:, 1, 0]).double().mean()  # chains agree about one moment in ten
    assert abs(same - 0.1) < 5 * (0.1 * 0.9 / 2_000) ** 0.5
