"""Deep ensembles: members trained in one pass and in a loop agree."""

import pytest
import torch
from torch import nn

from bayeskit import bnn
from bayeskit.bnn.methods.deep_ensemble import _Folds
from bayeskit.core.likelihood import Categorical, Gaussian
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data

from ..example_networks import Convolutional, images, seeded

SHORT = Training(lr=1e-2, max_epochs=8, batch_size=16, patience=4, validation_fraction=0.2)


def regression(generator, n=60):
    x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return Data(x, x.prod(-1, keepdim=True) + 0.1 * torch.randn(n, 1, generator=generator, dtype=torch.float64))


def fit(data, network, likelihood, **settings):
    inference = bnn.DeepEnsemble(**{"num_members": 3, "training": SHORT, **settings})
    return inference.infer(bnn.gaussian_prior(network), likelihood, data, generator=torch.Generator().manual_seed(1))


def test_one_pass_equals_the_loop(generator):
    data = regression(generator)
    network = bnn.MLP(2, 1, hidden=(6, 6), dtype=torch.float64)
    fits = [fit(data, network, Gaussian(), together=together) for together in (True, False)]
    assert [f.diagnostics["trained together"] for f in fits] == [True, False]
    for name, draws in fits[0].posterior.weights.draws.items():
        assert torch.allclose(draws, fits[1].posterior.weights.draws[name], atol=1e-8)
    assert torch.allclose(*(f.likelihood.noise for f in fits), rtol=1e-8)
    assert fits[0].history["loss"] == pytest.approx(fits[1].history["loss"], abs=1e-8)


def test_one_pass_over_convolutions_equals_the_loop(generator):
    x, labels = images(generator, n=40)
    network = seeded(lambda: Convolutional(normalize=False)).double()
    network.drop.p = 0.0
    fits = [fit(Data(x.double(), labels), network, Categorical(3), together=t) for t in (True, False)]
    assert [f.diagnostics["trained together"] for f in fits] == [True, False]
    assert torch.allclose(fits[0].posterior(x).draws, fits[1].posterior(x).draws, atol=1e-8)


def test_members_have_different_initial_values_and_predictions(generator):
    data = regression(generator)
    draws = fit(data, bnn.MLP(2, 1, hidden=(6,), dtype=torch.float64), Gaussian()).posterior(data.x).draws
    assert draws.shape == (3, 60, 1)
    assert (draws.var(0) > 0).all()


def test_statistics_of_batch_normalization_belong_to_each_member(generator):
    x, labels = images(generator)
    posterior = fit(Data(x, labels), seeded(Convolutional), Categorical(3)).posterior
    means = posterior.weights.buffers["norm.running_mean"]
    assert means.shape == (3, 4) and not torch.equal(means[0], means[1])
    network = seeded(Convolutional).eval()  # the first member by hand
    state = {name: value[0] for name, value in {**posterior.weights.draws, **posterior.weights.buffers}.items()}
    network.load_state_dict(state)
    assert torch.allclose(posterior(x).draws[0], network(x), atol=1e-5)


def test_each_observation_is_held_out_once_with_weight_zero(generator):
    data = Data(torch.arange(50.0)[:, None], torch.zeros(50, 1), torch.full((50,), 2.0))
    folds = _Folds.split(data, Training(validation_fraction=0.2), 5, generator=generator)
    assert sorted(folds.held_out.x[:, 0].tolist()) == list(range(50))
    assert (folds.weights.sum(1) == 8).all() and set(folds.weights.unique().tolist()) == {0.0, 2.0}
    for member, rows in enumerate(folds.held_out.x[:, 0].long().split(folds.sizes)):
        assert (folds.weights[rows, member] == 0).all()


def test_one_member_is_one_network(generator):
    data = regression(generator)
    posterior = fit(data, nn.Linear(2, 1).double(), Gaussian(), num_members=1).posterior
    assert posterior(data.x).variance.max() == 0


def test_a_layer_without_reset_parameters_is_named(generator):
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return self.factor * x

    network = nn.Sequential(nn.Linear(2, 1), Scale())
    with pytest.raises(ValueError, match=r"`1` \(Scale\) has parameters but no `reset_parameters\(\)`"):
        fit(regression(generator), network, Gaussian())


@pytest.mark.parametrize("settings", [{"num_members": 0}, {"prior_precision": "evidence"}])
def test_settings_are_checked_by_name(settings, generator):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` must be"):
        fit(regression(generator), nn.Linear(2, 1).double(), Gaussian(), **settings)
