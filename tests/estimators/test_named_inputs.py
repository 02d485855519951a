"""Estimators on several inputs by name."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn
from torch.utils.data import Dataset

from bayeskit import BNNClassifier, BNNRegressor, GPClassifier, bnn, load, save
from bayeskit.core.optimize import Training
from bayeskit.estimators import input_validation

QUICK = Training(lr=2e-2, max_epochs=3, batch_size=16, validation_fraction=0.2)


class Pair(nn.Module):
    """Tokens and a number."""

    def __init__(self, outputs=3):
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(5, outputs)

    def forward(self, ids, number):
        return self.head(torch.cat([self.embedding(ids).mean(1), number], 1))


def build(in_features, out_features):
    return Pair(out_features)


class Pairs(Dataset):
    def __init__(self, x, y=None):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x["ids"])

    def __getitem__(self, i):
        item = {name: value[i] for name, value in self.x.items()}
        return item if self.y is None else (item, self.y[i])


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    x = {"ids": rng.integers(9, size=(40, 3)), "number": rng.normal(size=(40, 1))}
    return x, np.array(["low", "mid", "high"])[x["ids"][:, 0] % 3]


@pytest.mark.parametrize("inference", [bnn.Laplace(training=QUICK), bnn.DeepEnsemble(2, training=QUICK)])
@pytest.mark.parametrize("network", [build, Pair()], ids=["callable", "module"])
def test_a_dictionary_and_a_data_set_of_them_are_one(table, network, inference, tmp_path, monkeypatch):
    x, y = table
    model = BNNClassifier(network, inference=inference, random_state=0)
    held = clone(model).fit(x, y)
    probs = held.predict_proba(x)
    assert probs.shape == (40, 3) and set(held.predict(x)) <= set(y) and 0 <= held.score(x, y) <= 1
    assert held.latent(x).mean.shape == (40, 3) and held.n_features_in_ == 4
    assert held.sample_functions(2)(x).shape == (2, 40, 3)
    save(held, tmp_path / "model")
    assert (load(tmp_path / "model", network=network).predict_proba(x) == probs).all()
    monkeypatch.setattr(input_validation, "MEMORY_BUDGET", 0)  # rows are read when they are needed
    numbers = {"ids": x["ids"], "number": x["number"].astype(np.float32)}
    read = clone(model).fit(Pairs(numbers, y))
    np.testing.assert_allclose(read.predict_proba(Pairs(numbers)), clone(model).fit(numbers, y).predict_proba(numbers))


def test_regression_with_weights(table):
    x, _ = table
    y = x["number"][:, 0] + x["ids"][:, 0]
    model = BNNRegressor(build, inference=bnn.Laplace(training=QUICK), random_state=0)
    weights = np.ones(40)
    weights[:5] = 0
    mean, std = model.fit(x, y, sample_weight=weights).predict(x, return_std=True)
    assert mean.shape == std.shape == (40,) and (std > 0).all()


def test_padding_may_have_another_length_each_time(table):
    x, y = table
    model = BNNClassifier(build, inference=bnn.Laplace(training=QUICK), random_state=0).fit(x, y)
    assert model.predict({"ids": x["ids"][:, :2], "number": x["number"]}).shape == (40,)


def test_what_cannot_work_is_said(table):
    x, y = table
    model = BNNClassifier(build, inference=bnn.Laplace(training=QUICK), random_state=0)
    cases = [
        (model, {**x, "number": x["number"][:7]}, "same number of rows; got 40 in 'ids', 7 in 'number'"),
        (model, {**x, "number": x["number"] * np.nan}, r"`X\['number'\]` must be finite"),
        (model, {"ids": x["ids"]}, r"`Pair.forward` takes \['ids', 'number'\]; got inputs named \['ids'\]"),
        (BNNClassifier(Pair()), {"ids": x["ids"]}, "cannot take a row of `X` of shape {'ids': .*Pair.forward"),
        (BNNClassifier(), x, "names several inputs, .* which only a network that takes them can use"),
        (GPClassifier(), x, "names several inputs"),
        (BNNClassifier(nn.Flatten()), x, "must have parameters to learn; Flatten has none"),
        (BNNClassifier(Pair().requires_grad_(False)), x, "no parameter that requires a gradient"),
    ]
    for estimator, inputs, message in cases:
        with pytest.raises((TypeError, ValueError), match=message):
            estimator.fit(inputs, y)
    model.fit(x, y)
    with pytest.raises(ValueError, match="as in fit"):
        model.predict({"tokens": x["ids"], "number": x["number"]})


class Images(Dataset):
    def __len__(self):
        return 30

    def __getitem__(self, i):
        return torch.full((1, 2, 2), i / 30), float(i)


def test_a_network_built_from_the_size_of_an_image_is_built_again_at_load(tmp_path):
    class Flat(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.layer = nn.Linear(inputs, outputs)

        def forward(self, x):
            return self.layer(x.flatten(1))

    model = BNNRegressor(Flat, inference=bnn.Laplace(training=QUICK), random_state=0).fit(Images())
    save(model, tmp_path / "model")
    assert (load(tmp_path / "model", network=Flat).predict(Images()) == model.predict(Images())).all()
