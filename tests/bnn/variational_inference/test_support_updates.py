"""Exchanges of active weights: their number, which are replaced, and the optimizer state of new ones."""

import math

import pytest
import torch
from torch import nn

from bayeskit import bnn
from bayeskit.bnn.variational_inference.sparse_support import Grid, random_support
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.types import Data


def network():
    return nn.Sequential(nn.Conv1d(4, 60, 5), nn.ReLU(), nn.Flatten(), nn.Linear(240, 24), nn.ReLU(), nn.Linear(24, 2))


def one_step(q, optimizer, subspace, generator):
    optimizer.zero_grad()
    x = torch.randn(16, 4, 8, generator=generator)
    q.loss(Gaussian(), Data(x, x.mean((1, 2))[:, None].expand(-1, 2)), generator=generator).backward()
    optimizer.step()
    subspace.step(optimizer)


@pytest.mark.parametrize("block", [(1, 1), (4, 16)], ids=["single", "blocks"])
@pytest.mark.parametrize("estimator", ["local", "weight"])
def test_the_number_of_active_weights_is_constant(estimator, block, generator):
    q = bnn.variational(network(), estimator=estimator, density=0.1, block=block, generator=generator)
    counts = {"0.weight": 120, "0.bias": 60, "3.weight": 576, "3.bias": 24, "5.weight": 48, "5.bias": 2}
    if block != (1, 1):  # 75 units of 16 for the convolution, 90 of 64 for the layer
        counts |= {"0.weight": 8 * 16, "3.weight": 9 * 64}
    assert q.support.counts == counts and len(q.mean) == sum(counts.values())
    optimizer = torch.optim.Adam(q.parameters(), lr=1e-2)
    subspace = bnn.Subspace(q, every=3, until=30, block=block)
    seen = set()
    for _ in range(33):
        one_step(q, optimizer, subspace, generator)
        assert q.support.counts == counts
        for name in q.support.sparse:
            positions = q.support.positions(name)
            assert (positions.diff() > 0).all() and positions.max() < q.support.shapes[name].numel()
            grid = subspace.grids[name]
            assert len(grid.units_of(positions).unique()) * grid.size == len(positions)
        leaves = q.support.leaves(q.mean)
        assert sum(int((leaf != 0).sum()) for leaf in leaves.values()) <= len(q.mean)
        moments = optimizer.state[q.mean]
        assert moments["exp_avg"].shape == moments["exp_avg_sq"].shape == q.mean.shape
        seen.add(tuple(q.support.index().tolist()))
    # The start and nine exchanges, at 3, 6, ..., 27 of 30; of nine blocks, later shares are less than one.
    assert len(seen) == 10 if block == (1, 1) else len(seen) > 4


def test_the_smallest_ratio_is_replaced_by_the_largest_gradient():
    q = bnn.variational(nn.Linear(40, 30, bias=False), density=0.01)
    assert q.support.counts == {"weight": 12}
    start = q.support.positions("weight").clone()
    with torch.no_grad():
        q.mean.copy_(torch.arange(1.0, 13.0))
        q.log_scale.copy_(torch.zeros(12))
        q.log_scale[11] = 10.0  # the largest mean, but the least sure
    optimizer = torch.optim.Adam(q.parameters(), lr=0.0)
    subspace = bnn.Subspace(q, every=1, until=10**9, fraction=0.17)  # two of twelve
    gradient = torch.zeros(30, 40)
    newcomers = [position for position in range(1200) if position not in start][::400][:2]
    gradient.view(-1)[newcomers] = torch.tensor([3.0, -2.0])
    q.gradients = {"weight": gradient}
    optimizer.state[q.mean]["exp_avg"] = torch.arange(1.0, 13.0)
    subspace.step(optimizer)
    positions = q.support.positions("weight")
    assert set(positions.tolist()) == (set(start.tolist()) - {int(start[0]), int(start[11])}) | set(newcomers)
    new = torch.isin(positions, torch.tensor(newcomers))
    assert torch.equal(q.mean[~new], torch.arange(2.0, 12.0)) and (q.mean[new] == 0).all()
    assert torch.allclose(q.log_scale[new].exp(), torch.full((2,), math.exp(10 / 12)))
    memory = optimizer.state[q.mean]["exp_avg"]
    assert torch.equal(memory[~new], torch.arange(2.0, 12.0)) and (memory[new] == 0).all()


def test_a_weight_deactivated_and_reactivated_at_once_keeps_its_values():
    q = bnn.variational(nn.Linear(40, 30, bias=False), density=0.01)
    before, mean = q.support.positions("weight").clone(), q.mean.detach().clone()
    subspace = bnn.Subspace(q, every=1, until=10**9, fraction=0.5)
    gradient = torch.zeros(1200)
    gradient[before] = 1.0
    q.gradients = {"weight": gradient.reshape(30, 40)}
    subspace.step(torch.optim.SGD(q.parameters(), lr=0.0))
    assert torch.equal(q.support.positions("weight"), before) and torch.equal(q.mean, mean)


def test_ratios_whose_square_overflows_in_float32(generator):
    """|mean| / scale of 1e6 and of 1e25: no NaN, and the weight of largest ratio stays active."""
    q = bnn.variational(nn.Linear(40, 30, bias=False), density=0.01, generator=generator)
    best = q.support.positions("weight")[:2].clone()
    with torch.no_grad():
        q.mean[0], q.log_scale[0] = 1.0, math.log(1e-6)
        q.mean[1], q.log_scale[1] = 1.0, math.log(1e-25)
    optimizer, subspace = torch.optim.Adam(q.parameters(), lr=1e-3), bnn.Subspace(q, every=1, until=100, fraction=0.9)
    x = torch.randn(8, 40, generator=generator)
    for _ in range(5):
        optimizer.zero_grad()
        (q(x, generator=generator).square().mean() + q.kl()).backward()
        optimizer.step()
        subspace.step(optimizer)
        assert q.mean.isfinite().all() and q.log_scale.isfinite().all()
        assert torch.isin(best, q.support.positions("weight")).all()


def test_the_exchanged_share_falls_by_a_cosine(generator):
    q = bnn.variational(nn.Linear(100, 100, bias=False), density=0.1, generator=generator)
    subspace = bnn.Subspace(q, every=10, until=100, fraction=0.4)
    optimizer, moved = torch.optim.SGD(q.parameters(), lr=0.0), []
    for _ in range(110):
        if q.gradients is not None:
            q.gradients["weight"] = torch.ones(100, 100)
            q.gradients["weight"].view(-1)[q.support.positions("weight")] = 0.0  # nobody returns at once
        before = q.support.positions("weight").clone()
        subspace.step(optimizer)
        moved.append(int((~torch.isin(q.support.positions("weight"), before)).sum()))
    expected = [int(0.2 * (1 + math.cos(math.pi * t / 100)) * 1000) for t in range(10, 100, 10)]
    assert [number for number in moved if number] == expected


def test_gradients_are_those_of_the_dense_weights(generator):
    for estimator in ("weight", "local"):
        q = bnn.variational(nn.Linear(50, 40).double(), estimator=estimator, density=0.1, generator=generator)
        x = torch.randn(8, 50, generator=generator, dtype=torch.float64)
        q.gradients = {}
        state = generator.get_state()
        f = q(x, num_samples=2, generator=generator)
        f.square().sum().backward()
        generator.set_state(state)
        assert torch.equal(q.gradients["weight"].view(-1)[q.support.positions("weight")], q.mean.grad[:200])
        # In a linear layer the gradient for each weight is (2 f)' x, whether it is active or not.
        exact = sum(2 * part.mT @ x for part in f.detach())
        assert torch.allclose(q.gradients["weight"], exact)


def test_grids_cover_every_weight_once():
    for shape, block in (((6, 4), (1, 1)), ((6, 4), (4, 3)), ((8, 3, 2, 2), (4, 8))):
        grid = Grid(torch.Size(shape), block)
        positions = grid.positions(torch.arange(grid.units))
        size = math.prod(shape)
        assert torch.equal(positions, torch.arange(size)) and grid.units * grid.size == size
        for unit in range(grid.units):
            own = grid.positions(torch.tensor([unit]))
            assert (grid.units_of(own) == unit).all()
            assert float(grid.totals(torch.zeros(size).index_fill(0, own, 1.0).reshape(shape))[unit]) == grid.size


def test_vectors_and_small_tensors_stay_dense(generator):
    like = {"w": torch.zeros(50, 50), "small": torch.zeros(20, 50), "b": torch.zeros(5000)}
    assert random_support(like, 0.2, generator=generator).counts == {"w": 500, "small": 1000, "b": 5000}
    state = generator.get_state()
    assert random_support(like, 1.0, generator=generator).sparse == []
    assert torch.equal(generator.get_state(), state)
    for density in (0.0, 1.5):
        with pytest.raises(ValueError, match="`density`"):
            random_support(like, density, generator=generator)
