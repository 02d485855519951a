"""Our inferences inside skorch's nets, by the real library."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from skorch.exceptions import NotInitializedError
from torch import nn

from bayeskit import bnn
from bayeskit.core.likelihood import Categorical, Gaussian
from bayeskit.core.types import Data
from bayeskit.integrations.skorch import BayesianNetClassifier, BayesianNetRegressor

RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 3)).astype("float32")
LABELS = (X[:, 0] + X[:, 1] > 0).astype(int)
Y = np.stack([X[:, 0], X[:, 1] * 2], 1).astype("float32")


class Network(nn.Sequential):
    def __init__(self, hidden=8, outputs=2):
        super().__init__(nn.Linear(3, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


def classifier(**settings):
    return BayesianNetClassifier(Network, **({"max_epochs": 5, "lr": 0.1, "verbose": 0, "random_state": 0} | settings))


@pytest.mark.monte_carlo
def test_the_posterior_is_that_of_the_module_that_skorch_trained():
    net = classifier().fit(X, LABELS)
    data = Data(torch.tensor(X), torch.tensor(LABELS))
    prior, generator = bnn.gaussian_prior(net.module_), torch.Generator().manual_seed(0)
    direct = bnn.Laplace(pretrained=True).infer(prior, Categorical(2), data, generator=generator)
    with torch.no_grad():
        expected = direct.likelihood.predictive(direct.posterior(data.x)).probs
    np.testing.assert_allclose(net.predict_proba(X), expected, atol=1e-6)
    assert np.array_equal(net.predict(X), net.predict_proba(X).argmax(1)) and net.score(X, LABELS) > 0.9


def test_skorch_trains_and_keeps_its_habits():
    net = classifier(module__hidden=5, max_epochs=4)
    methods = [bnn.Laplace(subset=subset, pretrained=True) for subset in ("last_layer", "all")]
    search = GridSearchCV(net, {"inference": methods, "lr": [0.1]}, cv=2, scoring="accuracy").fit(X, LABELS)
    assert search.best_estimator_.module_[0].out_features == 5 and len(search.best_estimator_.history) == 4
    assert clone(net).get_params()["module__hidden"] == 5


@pytest.mark.monte_carlo
@pytest.mark.parametrize("inference", ["map", "vbll", bnn.IVON.quickly(), bnn.DeepEnsemble.quickly()])
def test_any_inference_may_do_the_training(inference):
    net = classifier(max_epochs=0, inference=inference)
    net.fit(X, LABELS)
    assert len(net.history) == 0 and net.score(X, LABELS) > 0.8


def test_regression_speaks_the_units_of_the_module():
    net = BayesianNetRegressor(Network, max_epochs=200, lr=0.2, verbose=0, random_state=0, train_split=None)
    net.fit(X, Y)
    mean, std = net.predict(X, return_std=True)
    assert mean.shape == std.shape == Y.shape and np.array_equal(net.predict(X), mean)
    with torch.no_grad():
        residual = float((net.module_(torch.tensor(X)) - torch.tensor(Y)).square().mean())
    data, prior = Data(torch.tensor(X), torch.tensor(Y)), bnn.gaussian_prior(net.module_)
    generator = torch.Generator().manual_seed(0)
    direct = bnn.Laplace(pretrained=True).infer(prior, Gaussian(residual), data, generator=generator)
    with torch.no_grad():
        predictive = direct.likelihood.predictive(direct.posterior(data.x))
    np.testing.assert_allclose(mean, predictive.mean, atol=1e-5)  # both in float32
    np.testing.assert_allclose(std, predictive.std, rtol=1e-4)


def test_datasets_and_tensors_are_taken():
    pairs = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(LABELS))
    by_dataset = classifier(train_split=None, classes=[0, 1]).fit(pairs, None)
    by_array = classifier(train_split=None)
    torch.manual_seed(0)
    by_array.fit(torch.tensor(X), torch.tensor(LABELS))
    assert by_dataset.predict_proba(X).shape == by_array.predict_proba(X).shape == (80, 2)


def test_without_a_fit_there_is_no_posterior():
    with pytest.raises(NotFittedError, match="call `fit` first"):
        classifier().predictive(X)


class Pairs(torch.utils.data.Dataset):
    """Rows one by one, of which nothing can be cut."""

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i], int(LABELS[i])


def test_a_dataset_is_read_by_skorchs_own_iterator():
    pairs = Pairs()
    net = classifier(train_split=None, classes=[0, 1], batch_size=30).fit(pairs, None)
    torch.manual_seed(0)
    same = classifier(train_split=None, batch_size=30).fit(X, LABELS)
    np.testing.assert_allclose(net.predict_proba(pairs), same.predict_proba(X), atol=1e-6)
    np.testing.assert_allclose(net.predictive(pairs).probs, net.predict_proba(X), atol=1e-6)
    assert np.array_equal(net.predict(torch.utils.data.Subset(pairs, range(50))), net.predict(X[:50]))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, first, rest):
        return self.layer(torch.cat([first[:, None], rest], 1))


def test_named_inputs_arrive_by_name():
    named = {"first": X[:, 0], "rest": X[:, 1:]}
    settings = {"max_epochs": 5, "lr": 0.1, "verbose": 0, "random_state": 0}
    torch.manual_seed(0)
    by_name = BayesianNetClassifier(Two, **settings).fit(named, LABELS)
    torch.manual_seed(0)
    plain = BayesianNetClassifier(nn.Linear(3, 2), **settings).fit(X, LABELS)
    np.testing.assert_allclose(by_name.predict_proba(named), plain.predict_proba(X), atol=1e-5)


def test_a_grid_search_reaches_into_the_inference():
    net = classifier(inference=bnn.Laplace(pretrained=True))
    search = GridSearchCV(net, {"inference__subset": ["all", "last_layer"]}, cv=2, scoring="accuracy").fit(X, LABELS)
    assert search.best_estimator_.inference.subset == search.best_params_["inference__subset"]
    assert net.inference.subset == "last_layer"  # the search worked on clones
    with pytest.raises(ValueError, match=r"\['inference__subset'\] need an `inference` that has settings"):
        classifier(inference="laplace").set_params(inference__subset="all")


@pytest.mark.parametrize("make", [pickle.dumps, copy.deepcopy])
def test_a_fitted_net_can_be_copied_and_a_clone_is_not_fitted(make):
    net = classifier().fit(X, LABELS)
    again = pickle.loads(make(net)) if make is pickle.dumps else make(net)
    assert np.array_equal(again.predict_proba(X), net.predict_proba(X))
    for method in ("predict", "predict_proba"):
        with pytest.raises(NotInitializedError, match="not initialized yet"):
            getattr(clone(net), method)(X)
