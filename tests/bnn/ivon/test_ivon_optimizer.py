"""The optimizer against the explicit equations, closed forms, and itself."""

import copy
import math

import pytest
import torch
from torch import nn

from bayeskit import bnn
from bayeskit.bnn.ivon.update_rule import update_


def small(dtype=torch.float64, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)


def batch(dtype=torch.float64, n=20):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, generator=g, dtype=dtype), torch.randn(n, 2, generator=g, dtype=dtype)


def build(network, **settings):
    settings = {"lr": 0.1, "num_data": 20, "betas": (0.9, 0.99), "prior_precision": 0.5, **settings}
    return bnn.IVONOptimizer(network.parameters(), **settings)


def train(network, optimizer, steps, draws=1):
    x, y = batch(next(network.parameters()).dtype)
    for _ in range(steps):
        for _ in range(draws):
            with optimizer.sampled_params():
                nn.functional.mse_loss(network(x), y).backward()
        optimizer.step()


def flat(network):
    return nn.utils.parameters_to_vector(network.parameters()).detach().clone()


def hessian(network, optimizer):
    return torch.cat([optimizer.state[p]["hessian"].flatten() for p in network.parameters()])


@pytest.mark.parametrize("hess_approx", ["price", "gradsq"])
@pytest.mark.parametrize("clip_radius", [math.inf, 0.05])
def test_steps_are_the_equations(hess_approx, clip_radius):
    """Algorithm 1 in six lines over flat vectors, with the noise drawn as one `randn` a step."""
    network, reference = small(), small()
    optimizer = build(network, hess_approx=hess_approx, gradsq_scale=7.0, clip_radius=clip_radius)
    (x, y), m = batch(), flat(reference)
    n, d, h0, (b1, b2), lr = 20, 0.5 / 20, 1.0, (0.9, 0.99), 0.1
    g, h, generator = torch.zeros_like(m), torch.full_like(m, h0), torch.Generator().manual_seed(0)
    for t in range(1, 11):
        noise = torch.randn(len(m), generator=generator, dtype=m.dtype) / (n * (h + d)).sqrt()
        nn.utils.vector_to_parameters(m + noise, reference.parameters())
        grads = torch.autograd.grad(nn.functional.mse_loss(reference(x), y), list(reference.parameters()))
        grad = torch.cat([v.flatten() for v in grads])
        f = n * (h + d) * noise * grad if hess_approx == "price" else 7.0 * grad**2
        g = b1 * g + (1 - b1) * grad
        h = b2 * h + (1 - b2) * f + 0.5 * (1 - b2) ** 2 * (h - f) ** 2 / (h + d)
        m = m - lr * (h0 + d) * ((g / (1 - b1**t) + d * m) / (h + d)).clamp(-clip_radius, clip_radius)
        train(network, optimizer, 1)
    assert torch.allclose(flat(network), m, rtol=1e-12, atol=1e-14)  # the order of roundings differs
    assert torch.allclose(hessian(network, optimizer), h, rtol=1e-12, atol=1e-14)


def test_hessian_at_most_halves():
    """By completing the square `h' + d >= (h + d) / 2`, with equality at `f' = h - (h + d) / (1 - b2)`."""
    h, d, b2 = torch.tensor([1.0, 0.2, 3.0], dtype=torch.float64), 0.1, 0.7
    estimates = torch.linspace(-100, 100, 401, dtype=torch.float64).repeat(3, 1).mT
    worst = h - (h + d) / (1 - b2)
    for estimate in [*estimates, worst]:
        new, zeros = h.clone(), [torch.zeros(3, dtype=torch.float64) for _ in range(3)]
        rest = {"n": 10.0, "decay": d, "step_size": 0.1, "betas": (0.9, b2), "price": False}
        update_(zeros[:1], zeros[1:2], [new], zeros[2:], [estimate.clone()], **rest)
        assert (new + d >= (h + d) / 2 * (1 - 1e-12)).all()
    assert torch.allclose(new + d, (h + d) / 2, rtol=1e-12)


@pytest.mark.parametrize("hess_approx", ["price", "gradsq"])
def test_several_draws_are_averaged_before_the_step(hess_approx):
    """Three contexts and a step: the averages of gradient and product enter, not their running parts."""
    network, twin = small(), small()
    optimizer = build(network, hess_approx=hess_approx, gradsq_scale=20.0)
    for _ in range(2):  # the second step works in memory that the first has used
        before, h = flat(network), hessian(network, optimizer) if optimizer.state else torch.ones(32).double()
        state = optimizer.generator.get_state()
        n, d = 20, 0.5 / 20
        x, y = batch()
        grads, products = [], []
        generator = torch.Generator()
        generator.set_state(state)
        for _ in range(3):
            noise = torch.randn(32, generator=generator, dtype=torch.float64) / (n * (h + d)).sqrt()
            nn.utils.vector_to_parameters(before + noise, twin.parameters())
            grad = torch.autograd.grad(nn.functional.mse_loss(twin(x), y), list(twin.parameters()))
            grads.append(torch.cat([v.flatten() for v in grad]))
            products.append(noise * grads[-1] * n * (h + d) if hess_approx == "price" else 20 * grads[-1] ** 2)
        f = torch.stack(products).mean(0)
        expected = h + 0.01 * (f - h) + 0.5 * 0.01**2 * (h - f) ** 2 / (h + d)
        train(network, optimizer, 1, draws=3)
        assert torch.allclose(hessian(network, optimizer), expected, rtol=1e-12)


def test_a_closure_is_called_at_several_draws():
    one, two = small(), small()
    contexts, closures = build(one), build(two, mc_samples=3)
    train(one, contexts, 4, draws=3)
    x, y = batch()

    def closure():
        closures.zero_grad()
        loss = nn.functional.mse_loss(two(x), y)
        loss.backward()
        return loss

    for _ in range(4):
        loss = closures.step(closure)
    assert torch.equal(flat(one), flat(two)) and loss.ndim == 0


def test_large_data_make_a_deterministic_newton_like_step():
    """n to infinity: no noise is left, so `m - lr (h0 + d) (g + d m) / (h + d)` at the first step; h by 'gradsq'."""
    network = small()
    before = flat(network)
    x, y = batch()
    gradient = torch.cat(
        [g.flatten() for g in torch.autograd.grad(nn.functional.mse_loss(network(x), y), list(network.parameters()))]
    )
    optimizer = build(network, num_data=1e18, prior_precision=1e17, hess_approx="gradsq", gradsq_scale=1.0)
    train(network, optimizer, 1)
    h = 0.99 + 0.01 * gradient**2 + 0.5 * 0.01**2 * (1 - gradient**2) ** 2 / 1.1
    expected = before - 0.1 * 1.1 * (gradient + 0.1 * before) / (h + 0.1)
    assert torch.allclose(flat(network), expected, rtol=1e-7, atol=1e-9)  # the noise is of size 1e-9


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_state_dict_continues_to_the_bit(dtype, tmp_path):
    network = small(dtype)
    optimizer = build(network)
    train(network, optimizer, 3, draws=2)
    torch.save((network.state_dict(), optimizer.state_dict()), tmp_path / "state")
    train(network, optimizer, 3)
    other = small(dtype, seed=1)
    resumed = build(other, generator=torch.Generator().manual_seed(9))
    train(other, resumed, 1)  # what it has remembered is to be forgotten
    weights, state = torch.load(tmp_path / "state")
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    train(other, resumed, 3)
    assert torch.equal(flat(other), flat(network))
    assert torch.equal(hessian(other, resumed), hessian(network, optimizer))
    assert hessian(other, resumed).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_half_precision_learns_in_float32():
    """Steps below the resolution of bfloat16 accumulate in the float32 mean; the parameters are its rounding."""
    weight = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = bnn.IVONOptimizer([weight], lr=1e-4, num_data=1e6, prior_precision=1e-6)
    for _ in range(20):
        with optimizer.sampled_params():
            weight.sum().backward()
        optimizer.step()
    mean = optimizer.state[weight]["mean"]
    assert torch.allclose(mean, torch.full((4,), 1 - 20e-4), atol=1e-4)  # a step is 1e-4; a bf16 ulp below 1 is 4e-3
    assert torch.equal(weight.detach(), mean.bfloat16())
    with torch.no_grad():
        weight.fill_(2.0)  # what others write is the mean from then on
    with optimizer.sampled_params(train=False):
        pass
    assert (weight == 2).all() and (mean == 2).all()


def test_the_mean_is_restored_to_the_bit_also_after_an_error():
    network = small()
    optimizer = build(network)
    before = flat(network)
    with pytest.raises(ZeroDivisionError), optimizer.sampled_params():
        assert not torch.equal(flat(network), before)
        raise ZeroDivisionError
    assert torch.equal(flat(network), before)
    with pytest.raises(RuntimeError, match="There are no gradients"):
        optimizer.step()  # the draw that failed was not seen
    with optimizer.sampled_params(train=False):
        assert not torch.equal(flat(network), before)
    assert torch.equal(flat(network), before)


def test_invalid_settings_and_calls_are_refused():
    network = small()
    optimizer = build(network)
    with optimizer.sampled_params(train=False):
        with pytest.raises(RuntimeError, match="is open already"), optimizer.sampled_params():
            pass
        with pytest.raises(RuntimeError, match="after `sampled_params` has been left"):
            optimizer.step()
    with pytest.raises(RuntimeError, match="No gradient was computed"), optimizer.sampled_params():
        pass
    with pytest.raises(ValueError, match="needs `gradsq_scale`, the size of a mini-batch"):
        build(network, hess_approx="gradsq")
    with pytest.raises(ValueError, match="`num_data` must be a positive number; got 0"):
        build(network, num_data=0)
    with pytest.raises(ValueError, match="`betas` must be two numbers"):
        build(network, betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="did you mean 'price'"):
        build(network, hess_approx="prize")
    x, y = batch()
    with optimizer.sampled_params():
        loss = nn.functional.mse_loss(network(x), y)
        nn.functional.mse_loss(network(x), y).backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # the weights at which it was computed are gone


def test_frozen_parameters_are_neither_perturbed_nor_stored():
    network = small()
    network[0].requires_grad_(False)
    before = copy.deepcopy(network[0].state_dict())
    optimizer = build(network)
    with optimizer.sampled_params(train=False):
        assert torch.equal(network[0].weight, before["weight"])
    train(network, optimizer, 2)
    assert torch.equal(network[0].weight, before["weight"])
    assert set(optimizer.state) == set(network[2].parameters())
    network[0].requires_grad_(True)  # from here on it takes part
    train(network, optimizer, 1)
    assert not torch.equal(network[0].weight, before["weight"])
    assert len(optimizer.posterior().flat_mean) == 32


def test_parameters_without_gradient_return_to_the_prior():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = bnn.IVONOptimizer([used, unused], lr=0.1, num_data=1, prior_precision=4.0, betas=(0.5, 0.9))
    for _ in range(100):
        with optimizer.sampled_params():
            used.square().sum().backward()
        optimizer.step()
    assert unused.detach().abs().max() < 1e-6
    assert torch.allclose(optimizer.posterior().covariance.diagonal()[2:], torch.tensor(1 / 4.0), rtol=1e-3)


def test_groups_have_their_own_settings():
    network = small()
    groups = [
        {"params": network[0].parameters(), "prior_precision": 3.0, "num_data": 40.0},
        {"params": network[2].parameters(), "lr": 0.0, "hess_init": 5.0},
    ]
    optimizer = bnn.IVONOptimizer(groups, lr=0.1, num_data=20, prior_precision=0.5)
    last = copy.deepcopy(network[2].state_dict())
    variances = optimizer.posterior().covariance.diagonal()
    assert torch.allclose(variances[:20], torch.tensor(1 / 43.0).double())  # n h0 + p
    assert torch.allclose(variances[20:], torch.tensor(1 / 100.5).double())
    train(network, optimizer, 2)
    assert torch.equal(network[2].weight, last["weight"])


def test_weights_are_named_by_the_network_or_by_place():
    network, x = small(), batch()[0]
    by_place = build(network).posterior()
    by_name = bnn.IVONOptimizer(network.named_parameters(), lr=0.1, num_data=20, prior_precision=0.5).posterior()
    assert list(by_place.mean) == ["0", "1", "2", "3"] and list(by_name.mean) == list(dict(network.named_parameters()))
    assert torch.equal(bnn.monte_carlo(network, by_place, x).draws, bnn.monte_carlo(network, by_name, x).draws)
    assert torch.equal(bnn.linearize(network, by_place, x).variance, bnn.linearize(network, by_name, x).variance)
    net = bnn.BayesNet(network, by_place, bnn.MonteCarlo())
    assert net.sample_functions(2, generator=torch.Generator())(x).shape == (2, 20, 2)
    with pytest.raises(ValueError, match="do not fit the parameters"):
        bnn.monte_carlo(network[0], by_place, x)


WORKER = """
import torch
from torch import nn

from bayeskit import bnn


def work(rank, folder, generators=None):
    g = torch.Generator().manual_seed(1)
    x, y, start = (torch.randn(shape, generator=g).double() for shape in ((20, 3), (20, 2), (8,)))
    network = nn.Linear(3, 2).double()
    nn.utils.vector_to_parameters(start, network.parameters())
    optimizer = bnn.IVONOptimizer(network.parameters(), lr=0.1, num_data=20, betas=(0.9, 0.99), sync=True)
    first = optimizer.generator.get_state()
    for _ in range(5):
        for generator in generators or [optimizer.generator]:
            optimizer.generator = generator
            with optimizer.sampled_params():
                nn.functional.mse_loss(network(x), y).backward()
        optimizer.step()
    weights = optimizer.posterior()
    return first, weights.flat_mean, weights.covariance.diagonal()
"""


def test_two_ranks_with_independent_noise_equal_one_with_both(two_ranks):
    first, second, work = two_ranks(WORKER)
    assert not torch.equal(first[0], second[0])  # the generators
    assert all(torch.equal(a, b) for a, b in zip(first[1:], second[1:], strict=True))
    generators = [torch.Generator(), torch.Generator()]
    for generator, (state, _, _) in zip(generators, (first, second), strict=True):
        generator.set_state(state)
    alone = work(0, "", generators)
    assert torch.allclose(alone[1], first[1], rtol=1e-12, atol=1e-14)  # only the order of sums differs
    assert torch.allclose(alone[2], first[2], rtol=1e-12, atol=0)
