"""Every method on networks with several inputs, partly frozen networks, and networks of other dtypes."""

import copy
import pickle

import pytest
import torch
from linear_operator.operators import DiagLinearOperator
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.data import Dataset

from bayeskit import bnn, gp, mcmc
from bayeskit.bnn.networks.builders import reinitialize
from bayeskit.bnn.networks.functional import call, evaluate, parameters
from bayeskit.bnn.networks.last_layer import find_head, last_layer
from bayeskit.bnn.networks.layers import set_training
from bayeskit.core import operators
from bayeskit.core.inputs import Rows, as_inputs
from bayeskit.core.likelihood import Categorical, Gaussian
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data

from ..example_networks import Adapted, Convolutional, LowRank, Residual, TokenClassifier, images, seeded, sentences

QUICK = Training(lr=1e-2, max_epochs=3, batch_size=16, validation_fraction=0.2)
CHAIN = {"num_chains": 1, "num_samples": 4, "burn_in": 4, "start_steps": 4}
METHODS = {
    "map": bnn.MAP(training=QUICK),
    "last layer": bnn.Laplace(training=QUICK),
    "subset": bnn.Laplace(structure="diagonal", training=QUICK),
    "ensemble": bnn.DeepEnsemble(num_members=2, training=QUICK),
    "nuts": bnn.MCMC(mcmc.NUTS(max_tree_depth=2), **CHAIN),
    "sgld": bnn.MCMC(mcmc.SGLD(), batch_size=16, thin=2, **CHAIN),
}
SUBSETS = {
    Adapted: ["first.down", "first.up"],
    TokenClassifier: ["embedding.weight", "encoder.layers.0.linear2.bias"],
    Convolutional: ["norm.weight", "head.weight"],
    Residual: ["inner.weight", "lift.bias"],
}


def problem(build, generator, dtype=None):
    """A network, data for it, and a likelihood of its outputs."""
    if build is TokenClassifier:
        x, y = sentences(generator)
        return seeded(lambda: build(dtype=dtype)), Data(x, y), Categorical(3)
    if build is Convolutional:
        x, y = images(generator, n=40)
        return seeded(build), Data(x, y), Categorical(3)
    x = torch.randn(40, 4, generator=generator, dtype=dtype)
    return seeded(lambda: build(dtype=dtype)), Data(x, x.sum(-1, keepdim=True)), Gaussian()


def inference(name, build):
    method = copy.deepcopy(METHODS[name])
    return method.set_params(subset=SUBSETS[build]) if name == "subset" else method


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("build", SUBSETS)
def test_every_method_on_every_network(build, name, generator):
    network, data, likelihood = problem(build, generator)
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    prior = bnn.gaussian_prior(network)
    fit = inference(name, build).infer(prior, likelihood, data, generator=generator)
    values = fit.posterior(data.x)
    assert values.mean.shape == (40, 1 if isinstance(likelihood, Gaussian) else 3)
    assert torch.isfinite(values.mean).all() and (values.variance >= 0).all()
    torch.testing.assert_close(values.variance.flatten(), values.covariance.diagonal(), rtol=1e-3, atol=1e-6)
    halves = torch.cat([fit.posterior(data.x[:25]).mean, fit.posterior(data.x[25:]).mean])
    torch.testing.assert_close(halves, values.mean, rtol=1e-4, atol=1e-5)
    functions = fit.posterior.sample_functions(2, generator=generator)
    assert torch.equal(functions(data.x), functions(data.x))
    assert torch.isfinite(fit.likelihood.predictive(values).log_prob(data.y)).all()
    assert torch.equal(pickle.loads(pickle.dumps(fit.posterior))(data.x).mean, values.mean)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    moved = {key for key, value in fit.posterior.network.state_dict().items() if not torch.equal(value, before[key])}
    learnt = {key for key, value in network.named_parameters() if value.requires_grad}
    assert {key for key in moved if not key.startswith("norm.")} <= learnt  # what is frozen stays


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_in_every_dtype(name, dtype, generator):
    network, data, likelihood = problem(Residual, generator, dtype)
    fit = inference(name, Residual).infer(bnn.gaussian_prior(network), likelihood, data, generator=generator)
    values = fit.posterior(data.x)
    assert values.mean.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.isfinite(values.mean).all() and torch.isfinite(values.variance).all()
    assert all(value.dtype == dtype for value in fit.posterior.network.parameters())


def test_bfloat16_weights_accumulate_steps_below_their_rounding(generator):
    """One step is a hundredth of the spacing of bfloat16 numbers about 1; many of them must add up."""
    network = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(network.weight)
    x = torch.ones(50, 1)
    training = Training(lr=2**-7 / 100, max_epochs=400, batch_size=50)
    data = Data(x, 2 * x)
    fit = bnn.MAP(training=training, prior_precision=1e-6).infer(
        bnn.gaussian_prior(network), Gaussian(0.1, learn=False), data, generator=generator
    )
    assert float(fit.posterior.network.weight) == pytest.approx(1 + 4 * 2**-7, abs=2**-7)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("build", [Residual, Adapted])
def test_a_dictionary_of_one_tensor_equals_that_tensor_to_the_bit(build, name, generator):
    network, data, likelihood = problem(build, generator)
    prior, method = bnn.gaussian_prior(network), inference(name, build)
    plain, named = (
        method.infer(prior, likelihood, Data(x, data.y), generator=torch.Generator().manual_seed(3)).posterior
        for x in (data.x, {"x": data.x})
    )
    for one, other in ((plain(data.x), named({"x": data.x})), (plain(data.x[:7]), named({"x": data.x[:7]}))):
        assert torch.equal(one.mean, other.mean) and torch.equal(one.variance, other.variance)
        assert torch.equal(one.covariance.to_dense(), other.covariance.to_dense())
    draws = [posterior.sample_functions(3, generator=torch.Generator().manual_seed(1)) for posterior in (plain, named)]
    assert torch.equal(draws[0](data.x), draws[1]({"x": data.x}))


def test_a_bare_layer_takes_its_input_by_name(generator):
    x = torch.randn(20, 3, generator=generator)
    prior = bnn.gaussian_prior(nn.Linear(3, 2))
    y = x[:, :2]
    fits = [
        bnn.Laplace(training=QUICK).infer(prior, Gaussian(), Data(v, y), generator=torch.Generator().manual_seed(1))
        for v in (x, {"input": x})
    ]
    assert torch.equal(fits[0].posterior(x).variance, fits[1].posterior({"input": x}).variance)


class Sentences(Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return {name: value[i] for name, value in self.x.items()}, self.y[i]


@pytest.mark.parametrize("name", METHODS)
def test_a_dataset_of_dictionaries_equals_a_dictionary_of_tensors(name, generator):
    network = seeded(TokenClassifier)
    x, y = sentences(generator)
    rows = Rows(Sentences(x, y), dtype=torch.float32, device=torch.device("cpu"))
    prior, method = bnn.gaussian_prior(network), inference(name, TokenClassifier)
    held, read = (
        method.infer(prior, Categorical(3), Data(v, y), generator=torch.Generator().manual_seed(3)).posterior
        for v in (x, rows)
    )
    assert torch.equal(held(x).mean, read(rows).mean)


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(2, 3), nn.Linear(3, 3)

    def forward(self, a, b):
        return torch.tanh(self.left(a) + self.right(b))[:, :2]


class Joined(nn.Module):
    """The same of one tensor."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x[:, :2], x[:, 2:])


class TestLinearized:
    """The covariance over named inputs is that of the same numbers in one tensor."""

    @pytest.fixture
    def pair(self, generator):
        network = seeded(Sum).double()
        joined = Joined(network)
        x = torch.randn(9, 5, generator=generator, dtype=torch.float64)
        names = {f"inner.{name}": value for name, value in parameters(network).items()}
        size = sum(value.numel() for value in names.values())
        covariance = DiagLinearOperator(torch.rand(size, generator=generator, dtype=torch.float64))
        weights = bnn.GaussianWeights(parameters(network), covariance)
        same = bnn.GaussianWeights(names, covariance)
        named = bnn.linearize(network, weights, {"a": x[:, :2], "b": x[:, 2:]}).covariance
        return named, bnn.linearize(joined, same, x).covariance

    def test_matrix_products_blocks_and_diagonal(self, pair, generator):
        named, whole = pair
        dense = whole.to_dense()
        torch.testing.assert_close(named.to_dense(), dense)
        torch.testing.assert_close(named.diagonal(), dense.diagonal())
        for columns in (1, 3, 60):
            rhs = torch.randn(18, columns, generator=generator, dtype=torch.float64)
            torch.testing.assert_close(named @ rhs, dense @ rhs)
        torch.testing.assert_close(operators.block_diagonal(named, 2), operators.block_diagonal(whole, 2))

    def test_parts_and_batches(self, pair):
        named, whole = pair
        dense = whole.to_dense()
        torch.testing.assert_close(named[2:8, :].to_dense(), dense[2:8])
        torch.testing.assert_close(named[2:8, 2:8].to_dense(), dense[2:8, 2:8])
        torch.testing.assert_close(named.mT.to_dense(), dense.mT)
        assert named.expand(3, 18, 18).to_dense().shape == (3, 18, 18)

    def test_it_is_built_again_from_its_arguments(self, pair):
        named, whole = pair
        again = named.representation_tree()(*named.representation())
        torch.testing.assert_close(again.to_dense(), whole.to_dense())
        torch.testing.assert_close(pickle.loads(pickle.dumps(named)).to_dense(), whole.to_dense())


def test_the_posterior_of_a_linear_adapter_is_the_process_with_its_features(generator):
    """`f = W x + b + s B (A x)` with B uncertain: a GP with mean `W x + b` and kernel `s^2 (A x)' (A x') / r`."""
    base = seeded(lambda: nn.Linear(5, 1, dtype=torch.float64))
    network = seeded(lambda: LowRank(base, rank=3))
    network.down.requires_grad_(False)
    x, new = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (30, 7))
    y = x.sum(-1, keepdim=True) + 0.1 * torch.randn(30, 1, generator=generator, dtype=torch.float64)
    likelihood = Gaussian(0.09, learn=False)
    method = bnn.Laplace(subset="all", prior_precision=1.0, training=Training(lr=1e-2, max_epochs=5))
    fit = method.infer(bnn.gaussian_prior(network), likelihood, Data(x, y), generator=generator)

    def features(v):
        return network.scaling * v @ network.down.detach().mT / 3**0.5

    gram = features(x) @ features(x).mT + 0.09 * torch.eye(30, dtype=torch.float64)
    cross = features(new) @ features(x).mT
    with torch.no_grad():
        mean = base(new) + cross @ torch.linalg.solve(gram, y - base(x))
        covariance = features(new) @ features(new).mT - cross @ torch.linalg.solve(gram, cross.mT)
        evidence = torch.distributions.MultivariateNormal(base(x)[:, 0], gram).log_prob(y[:, 0])
    values = fit.posterior(new)
    torch.testing.assert_close(values.mean, mean, rtol=0, atol=1e-8)
    torch.testing.assert_close(values.covariance.to_dense(), covariance, rtol=0, atol=1e-8)
    assert fit.log_evidence.value == pytest.approx(float(evidence), abs=1e-8)


class Scaled(nn.Module):
    """A weight as a direction times a length for each output, in plain operations."""

    def forward(self, length, direction):
        return length * direction / direction.norm(dim=1, keepdim=True)

    def right_inverse(self, weight):
        return weight.norm(dim=1, keepdim=True), weight


def computed():
    """A network whose weights are computed from other parameters."""
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1, bias=False))
    for layer in (network[0], network[2]):
        parametrize.register_parametrization(layer, "weight", Scaled())
    return network


@pytest.mark.parametrize("name", [name for name in METHODS if name != "subset"])
def test_every_method_on_parametrized_weights(name, generator):
    network = seeded(computed)
    x = torch.randn(40, 4, generator=generator)
    assert last_layer(network, x) == [f"2.parametrizations.weight.original{i}" for i in (0, 1)]
    data = Data(x, x.sum(-1, keepdim=True))
    fit = METHODS[name].infer(bnn.gaussian_prior(network), Gaussian(), data, generator=generator)
    assert torch.isfinite(fit.posterior(x).mean).all() and torch.isfinite(fit.posterior(x).variance).all()


def test_parametrized_weights_are_reinitialized(generator):
    network = seeded(computed)
    fresh = reinitialize(network, generator=generator)
    for layer, before in ((fresh[0], network[0]), (fresh[2], network[2])):
        assert not torch.equal(layer.weight, before.weight)
        assert layer.weight.abs().max() <= layer.in_features**-0.5  # as nn.Linear draws them
        torch.testing.assert_close(layer.parametrizations.weight.original0, layer.weight.norm(dim=1, keepdim=True))


def test_a_parametrized_last_layer_is_not_linear_in_its_parameters(generator):
    """Trained weights are kept where a linear last layer would be refitted, and the outputs cannot be rescaled."""
    x = torch.randn(40, 4, generator=generator)
    for network in (seeded(computed), seeded(Adapted)):
        data = Data(x, x.sum(-1, keepdim=True))
        fit = bnn.Laplace(pretrained=True).infer(bnn.gaussian_prior(network), Gaussian(), data, generator=generator)
        torch.testing.assert_close(fit.posterior(x).mean, network(x).detach())
    with pytest.raises(ValueError, match="cannot be rescaled"):
        bnn.MAP(training=QUICK, temperature_scaling=True).infer(
            bnn.gaussian_prior(seeded(lambda: Adapted(outputs=2))),
            Categorical(2),
            Data(x, (x[:, 0] > 0).long()),
            generator=generator,
        )


class Pretrained(nn.Module):
    """A frozen body with BatchNorm, and a trainable last layer."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).requires_grad_(False)
        self.free = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 1)
        self.body[1].running_mean.fill_(0.7)
        self.body[1].num_batches_tracked.fill_(5)

    def forward(self, x):
        return self.head(self.free(self.body(x)))


@pytest.mark.parametrize("name", [name for name in METHODS if name != "subset"])
def test_statistics_of_a_frozen_batch_norm_are_kept(name, generator):
    network = seeded(Pretrained)
    x = torch.randn(40, 3, generator=generator)
    data = Data(x, x.sum(-1, keepdim=True))
    fit = METHODS[name].infer(bnn.gaussian_prior(network), Gaussian(), data, generator=generator)
    assert torch.equal(fit.posterior.network.body[1].running_mean, network.body[1].running_mean)
    for key, value in getattr(fit.posterior.weights, "buffers", {}).items():
        if key == "body.1.running_mean":
            assert (value == 0.7).all()
    learns = fit.posterior.network.free.running_mean if name != "ensemble" else None
    assert learns is None or not torch.equal(learns, torch.zeros(4))


def test_frozen_layers_are_not_reinitialized(generator):
    network = seeded(Pretrained)
    fresh = reinitialize(network, generator=generator)
    assert torch.equal(fresh.body[0].weight, network.body[0].weight)
    assert torch.equal(fresh.body[1].running_mean, network.body[1].running_mean)
    assert not torch.equal(fresh.head.weight, network.head.weight)
    set_training(network)
    assert network.free.training and network.head.training and not network.body[1].training


class OneDictionary(nn.Module):
    """Takes the whole batch, returns a tuple."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, batch):
        return self.layer(batch["left"] * batch["right"]), batch


def test_a_network_may_take_the_dictionary_itself(generator):
    network = OneDictionary()
    x = {name: torch.randn(6, 2, generator=generator) for name in ("left", "right")}
    expected = network.layer(x["left"] * x["right"])
    assert torch.equal(call(network, parameters(network), x), expected)
    assert find_head(network, as_inputs(x)).name == "layer"
    draws = {name: value.expand(3, *value.shape) for name, value in parameters(network).items()}
    torch.testing.assert_close(evaluate(network, draws, x), expected.expand(3, 6, 1))


def test_a_gaussian_process_refuses_named_inputs(generator):
    x = {"a": torch.zeros(5, 1, dtype=torch.float64), "b": torch.ones(5, 1, dtype=torch.float64)}
    prior = gp.default_prior(torch.zeros(5, 1, dtype=torch.float64), 1)
    for ask in (
        lambda: prior(x),
        lambda: gp.Exact().infer(prior, Gaussian(), Data(x, x["a"]), generator=generator),
    ):
        with pytest.raises(TypeError, match=r"One table of inputs.*\['a', 'b'\].*bayeskit.bnn"):
            ask()


def test_a_network_without_a_parameter_to_learn(generator):
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        bnn.gaussian_prior(nn.Linear(2, 1).requires_grad_(False))


def test_factors_of_a_layer_that_is_never_called(generator):
    network, data, likelihood = problem(TokenClassifier, generator)
    method = bnn.Laplace(subset=["encoder.layers.0.self_attn.out_proj.weight"], structure="kronecker", pretrained=True)
    with pytest.raises(ValueError, match="never calls 'encoder.layers.0.self_attn.out_proj'"):
        method.infer(bnn.gaussian_prior(network), likelihood, data, generator=generator)
