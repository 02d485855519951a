"""A network before a kernel: values, types, gradients, every learning method, files."""

import copy

import numpy as np
import pytest
import torch
from gpytorch.kernels import LinearKernel, MaternKernel, RBFKernel, ScaleKernel
from torch import nn

from bayeskit import GPClassifier, GPRegressor, gp, load, save
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.types import Data
from bayeskit.gp.kernels.deep import DeepKernel, is_frozen, network_weights
from bayeskit.gp.kernels.evaluate import gram, gram_diagonal, gram_pairs
from bayeskit.gp.model.hyperparameters import learnable

from ..problems import close, generator, noise, process, regression


def network(d=2, p=2, dtype=torch.float32, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(d, 8), nn.Tanh(), nn.Linear(8, p)).to(dtype)


def deep(base=None, **settings):
    return DeepKernel(network(**settings), base or ScaleKernel(RBFKernel(ard_num_dims=2)))


class Counted(nn.Linear):
    """A layer that counts the rows it has seen."""

    seen = 0

    def forward(self, x):
        Counted.seen += len(x)
        return super().forward(x)


class Own(nn.Module):
    """A network of a user's own class."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x).tanh()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("base", [ScaleKernel(RBFKernel()), MaternKernel(nu=1.5), ScaleKernel(LinearKernel())])
def test_it_is_the_kernel_of_the_features(base, dtype):
    kernel = deep(base, dtype=dtype).double().requires_grad_(False)
    x1, x2 = torch.randn(7, 2, generator=generator()).double(), torch.randn(4, 2, generator=generator(1)).double()
    a, b = (kernel.network(x.to(dtype)).double() for x in (x1, x2))
    close(gram(kernel, x1, x2), gram(kernel.base_kernel, a, b), 1e-12)
    close(gram(kernel, x1, x1), gram(kernel.base_kernel, a, a), 1e-12)
    close(gram_diagonal(kernel, x1), gram(kernel.base_kernel, a, a).diagonal(), 1e-12)
    close(gram_pairs(kernel, x1[:4], x2), gram(kernel.base_kernel, a[:4], b).diagonal(), 1e-12)
    close(kernel(x1, x2).to_dense(), gram(kernel, x1, x2), 1e-12)


def test_inside_other_kernels():
    kernel = (ScaleKernel(deep()) + RBFKernel()).double().requires_grad_(False)
    x = torch.randn(5, 2, generator=generator()).double()
    expected = gram(kernel.kernels[0], x, x) + gram(kernel.kernels[1], x, x)
    close(gram(kernel, x, x), expected, 1e-12)
    close(gram_diagonal(kernel, x), expected.diagonal(), 1e-12)


def test_each_row_goes_through_the_network_once():
    kernel = DeepKernel(Counted(2, 2), RBFKernel(batch_shape=torch.Size([3]))).double().requires_grad_(False)
    x, z = torch.zeros(11, 2).double(), torch.ones(4, 2).double()
    for expected, evaluate in ((11, lambda: gram(kernel, x, x)), (15, lambda: gram(kernel, z, x))):
        Counted.seen = 0
        assert evaluate().shape[0] == 3
        assert Counted.seen == expected
    Counted.seen = 0
    gram(kernel, z, x.expand(3, 11, 2))  # the same rows for each output
    assert Counted.seen == 15


def test_the_network_keeps_its_floating_type():
    kernel = deep().double()
    assert kernel.network[0].weight.dtype == torch.float32
    assert kernel.base_kernel.raw_outputscale.dtype == torch.float64
    assert kernel.float().base_kernel.raw_outputscale.dtype == torch.float32
    assert deep(dtype=torch.float64).float().network[0].weight.dtype == torch.float64
    assert not is_frozen(kernel.double()) and is_frozen(kernel.requires_grad_(False))
    posterior = process(kernel)
    assert posterior.frozen() is posterior
    fit = gp.Exact(max_iter=3).infer(process(deep()), Gaussian(), regression(), generator=generator())
    assert fit.posterior.kernel.base.network[0].weight.dtype == torch.float32
    assert fit.posterior(torch.zeros(2, 2)).mean.dtype == torch.float64


def test_gradients_reach_the_weights_and_the_inputs():
    kernel = deep(dtype=torch.float64).double()
    x = torch.randn(4, 2, generator=generator(), dtype=torch.float64, requires_grad=True)
    weight = kernel.network[0].weight

    def value(w, rows):
        changed = copy.deepcopy(kernel)
        del changed.network[0]._parameters["weight"]
        changed.network[0].weight = w
        return gram(changed, rows, rows).sin().sum()

    assert torch.autograd.gradcheck(value, (weight.detach().requires_grad_(), x))


def test_dropout_is_off_and_training_mode_does_not_turn_it_on():
    mine = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 2)).train()
    kernel = DeepKernel(mine, RBFKernel()).train()
    x = torch.randn(6, 2, generator=generator())
    assert torch.equal(kernel.features(x), kernel.features(x))
    assert mine.training and mine[1].training  # the user's own stays as it was


def test_batch_norm_in_training_mode_is_refused_by_name():
    mine = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match=r"BatchNorm in training mode \(1\).*`network.eval\(\)`, or use LayerNorm"):
        DeepKernel(mine, RBFKernel())
    mine(torch.randn(20, 2, generator=generator()))
    kernel = DeepKernel(mine.eval(), RBFKernel()).train()
    x = torch.randn(6, 2, generator=generator())
    close(kernel.features(x)[:2], kernel.features(x[:2]), 1e-6)


def test_what_does_not_fit_is_said():
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"`ard_num_dims=3`, and the network gives 2 features: use `RBFKernel\(ard_nu"):
        gram(deep(ScaleKernel(RBFKernel(ard_num_dims=3))), x, x)
    with pytest.raises(ValueError, match=r"features of shape \(n, p\) with n = 3; got \(3, 2, 1\)"):
        gram(DeepKernel(nn.Sequential(nn.Linear(2, 2), nn.Unflatten(1, (2, 1))), RBFKernel()), x, x)


def test_images_given_flat():
    convolutions = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 4, 2))
    kernel = DeepKernel(convolutions, RBFKernel(ard_num_dims=2), input_shape=(1, 4, 4))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 16))
    y = (x[:, :8].sum(1) > 0).astype(int)
    model = GPClassifier(kernel, inference=gp.SVGP.quickly(), random_state=0).fit(x, y)
    assert model.predict_proba(x).shape == (40, 2)


@pytest.mark.monte_carlo
@pytest.mark.parametrize("inference", [gp.Exact(), gp.SGPR(num_inducing=40), gp.SVGP(40)])
def test_a_step_along_a_rotated_direction_is_learned_where_a_plain_kernel_cannot(inference):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 5))
    direction = np.array([1, -2, 0.5, 1, 0.3])
    y = np.sign(x @ direction) + 0.05 * rng.normal(size=500)

    def fitted(kernel):
        return GPRegressor(kernel, inference=inference, random_state=0).fit(x[:300], y[:300])

    def error(model):
        return np.sqrt(np.mean((model.predict(x[300:]) - y[300:]) ** 2))

    # One network in fifteen finds another optimum, with an error above .75 of the plain kernel's; evidence tells.
    kernels = [DeepKernel(network(5, seed=seed), ScaleKernel(RBFKernel(ard_num_dims=2))) for seed in range(3)]
    best = max(map(fitted, kernels), key=lambda model: float(model.log_evidence_))
    assert error(best) < 0.85 * error(fitted(None))


def test_inducing_points_live_in_input_space_and_move():
    data = regression(n=60)
    settings = {"num_inducing": 10, "max_iter": 5}
    start = gp.SGPR(**settings, learn_inducing=False).infer(process(deep()), Gaussian(), data, generator=generator())
    moved = gp.SGPR(**settings).infer(process(deep()), Gaussian(), data, generator=generator())
    assert moved.posterior.kernel.z.shape == (10, 2)
    assert not torch.allclose(start.posterior.kernel.z, moved.posterior.kernel.z)


def test_frozen_weights_stay():
    kernel = deep()
    kernel.network.requires_grad_(False)
    fit = gp.Exact(max_iter=5).infer(process(kernel), Gaussian(), regression(), generator=generator())
    assert torch.equal(fit.posterior.kernel.base.network[0].weight, kernel.network[0].weight)
    assert not torch.equal(fit.posterior.kernel.base.base_kernel.outputscale, kernel.base_kernel.outputscale.double())


def test_another_start_keeps_the_weights():
    model = learnable(process(ScaleKernel(deep())), Gaussian(), learn=True)
    before = model.values()
    model.scatter(generator())
    weights = {id(p) for p in network_weights(model.kernel)}
    kept = {id(p) for p, value in zip(model.parameters, before, strict=True) if torch.equal(p, value)}
    assert kept == weights and len(weights) == 4


def test_sgpr_at_all_inputs_is_exact():
    data = regression(n=25)
    prior, x = process(deep().requires_grad_(False)), torch.randn(6, 2, generator=generator(3))
    exact = gp.Exact().infer(prior, noise(), data, generator=generator())
    sparse = gp.SGPR(num_inducing=25).infer(prior, noise(), data, generator=generator())
    close(sparse.posterior(x).mean, exact.posterior(x).mean, 1e-7)
    close(sparse.posterior(x).variance, exact.posterior(x).variance, 1e-7)


@pytest.mark.monte_carlo
def test_functions_are_waves_of_the_features():
    fit = gp.Exact(max_iter=5).infer(process(deep()), Gaussian(), regression(), generator=generator())
    x = torch.randn(8, 2, generator=generator(4))
    f = fit.posterior.sample_functions(1500, generator=generator())
    close(f(x)[:, 3:], f(x[3:]), 1e-5)
    values = fit.posterior(x)
    deviation = values.variance.sqrt()
    assert bool(((f(x).mean(0) - values.mean).abs() < 5 * deviation / 1500**0.5).all())
    close(f(x).var(0), values.variance, 0.15)


@pytest.mark.parametrize("k", [1, 2])
def test_several_outputs_and_classes(k):
    data = regression(n=40, k=k)
    batch = torch.Size([k]) if k > 1 else torch.Size()
    kernel = DeepKernel(network(), ScaleKernel(RBFKernel(batch_shape=batch), batch_shape=batch))
    fit = gp.Exact(max_iter=5).infer(process(kernel, k), Gaussian(), data, generator=generator())
    values = fit.posterior(data.x)
    assert values.mean.shape == (40, k)
    close(values.covariance.to_dense().diagonal().reshape(40, k), values.variance, 1e-6)


def test_one_row_and_equal_rows():
    one = Data(torch.zeros(1, 2), torch.zeros(1, 1))
    many = Data(torch.zeros(9, 2), torch.arange(9.0).unsqueeze(-1))
    for data in (one, many):
        for method in (gp.Exact.quickly(), gp.SGPR.quickly(), gp.SVGP.quickly()):
            fit = method.infer(process(deep()), Gaussian(), data, generator=generator())
            assert bool((fit.posterior(torch.randn(3, 2, generator=generator())).variance > 0).all())


def test_through_a_file(tmp_path):
    x = np.random.default_rng(0).normal(size=(30, 3))
    y = np.sin(x.sum(1))
    model = GPRegressor(DeepKernel(network(3), RBFKernel()), inference=gp.Exact(max_iter=3), random_state=0).fit(x, y)
    save(model, tmp_path / "model")
    assert (load(tmp_path / "model").predict(x) == model.predict(x)).all()


def test_a_network_of_ones_own_class_through_a_file(tmp_path):
    x = np.random.default_rng(0).normal(size=(30, 3))
    model = GPRegressor(DeepKernel(Own(), RBFKernel()), inference=gp.Exact(max_iter=3), random_state=0).fit(x, x[:, 0])
    save(model, tmp_path / "model")
    with pytest.raises(ValueError, match=r"holds a network of class .*Own: call load\(path, network=...\) with it"):
        load(tmp_path / "model")
    assert (load(tmp_path / "model", network=Own()).predict(x) == model.predict(x)).all()
