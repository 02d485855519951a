"""Images in every container: arrays, tensors, data sets, loaders, dictionaries; of any type and memory layout."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from bayeskit import BNNClassifier, registry
from bayeskit.bnn import MAP, gaussian_prior
from bayeskit.core.likelihood import Categorical
from bayeskit.core.types import Data

RNG = np.random.default_rng(0)
Y = np.arange(24) % 2
X = (RNG.integers(0, 60, (24, 1, 6, 6)) + 100 * Y[:, None, None, None]).astype(np.uint8)


class Network(nn.Module):
    def __init__(self, outputs=2):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, outputs))

    def forward(self, pixel_values):
        return self.layers(pixel_values / 255)


class Items(Dataset):
    """A data set whose items are made by a function."""

    def __init__(self, item, n=24):
        self.item, self.n = item, n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return self.item(i)


class Stream(IterableDataset):
    def __iter__(self):
        return zip(X, Y, strict=True)


def model(name="map", network=lambda inputs, outputs: Network(outputs)):
    return BNNClassifier(network, inference=registry.quick(name), random_state=0)


def collate(items):
    return {"pixel_values": np.stack([x for x, _ in items]), "labels": torch.tensor([y for _, y in items])}


PAIRS = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
DATASETS = {
    "tensors": PAIRS,
    "subset": Subset(PAIRS, range(24)),
    "arrays": Items(lambda i: (X[i], Y[i])),
    "reversed": Items(lambda i: (X[i][:, ::-1][:, ::-1], int(Y[i]))),
    "labels": Items(lambda i: {"pixel_values": X[i], "labels": Y[i]}),
    "label": Items(lambda i: {"image": torch.from_numpy(X[i]), "label": torch.tensor(Y[i])}),
    "stream": Stream(),
    "loader": DataLoader(PAIRS, batch_size=5),
    "shuffled": DataLoader(PAIRS, batch_size=5, shuffle=True),
    "dropping": DataLoader(PAIRS, batch_size=5, drop_last=True),
    "dictionaries": DataLoader(PAIRS, batch_size=5, collate_fn=collate),
    "loader of a stream": DataLoader(Stream(), batch_size=7),
}


@pytest.mark.parametrize("name", DATASETS)
def test_bytes_in_a_data_set_are_the_array(name):
    data = DATASETS[name]
    expected = model().fit(X, Y).predict_proba(X)
    fitted = model().fit(data)
    assert np.allclose(fitted.predict_proba(X), expected, atol=1e-5)  # NumPy images after a Dataset
    assert np.allclose(fitted.predict_proba(data), expected, atol=1e-5)


@pytest.mark.parametrize("budget", [2**30, 0], ids=["held in memory", "read when needed"])
@pytest.mark.parametrize("name", ["laplace", "deep_ensemble", "mean_field", "sgld"])
def test_every_kind_of_method(name, budget, monkeypatch):
    monkeypatch.setattr("bayeskit.estimators.input_validation.MEMORY_BUDGET", budget)
    fitted = model(name).fit(DATASETS["labels"])
    proba = fitted.predict_proba(X)
    assert proba.shape == (24, 2) and np.isfinite(proba).all()
    assert np.allclose(fitted.predict_proba(DataLoader(PAIRS, batch_size=7)), proba, atol=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "int64", ">i4", "float16", "float32", "float64", ">f4"])
def test_types_of_images(dtype):
    images = X.astype(dtype)
    expected = model().fit(X, Y).predict_proba(X)
    forms = [images, images[:, :, ::-1][:, :, ::-1], Items(lambda i: (images[i], Y[i]))]
    if dtype[0] != ">":
        tensor = torch.from_numpy(images)
        forms += [tensor, tensor.to(memory_format=torch.channels_last), TensorDataset(tensor, torch.from_numpy(Y))]
    for form in forms:
        fitted = model().fit(form) if isinstance(form, Dataset) else model().fit(form, Y)
        assert np.allclose(fitted.predict_proba(images), expected, atol=1e-5)


@pytest.mark.parametrize("network", [Network(), lambda inputs, outputs: Network(outputs)], ids=["module", "callable"])
def test_channels_last_is_one_sentence(network):
    wide = X.transpose(0, 2, 3, 1)  # (n, 6, 6, 1)
    for form in (wide, torch.from_numpy(wide), wide.astype(float)):
        with pytest.raises(ValueError, match=r"`network` cannot take a row of `X` of shape \(6, 6, 1\).*transpose"):
            model(network=network).fit(form, Y)


def test_images_that_are_no_arrays_are_named():
    with pytest.raises(TypeError, match="inputs of a Dataset must be tensors, arrays .*ToTensor"):
        model().fit(Items(lambda i: (object(), Y[i])))
    with pytest.raises(ValueError, match="same shape in every item"):
        model().fit(Items(lambda i: (X[i][:, : 3 + i % 2], Y[i])))
    with pytest.raises(ValueError, match="requires y"):
        model().fit(Items(lambda i: X[i]))
    with pytest.raises(ValueError, match="empty"):
        model().fit(Items(lambda i: X[i], 0))
    assert model().fit(Items(lambda i: X[i]), Y).predict(X).shape == (24,)  # inputs alone, and targets beside them


def test_bytes_at_the_lower_door(generator):
    method, prior = MAP(training=registry.quick("map").training), gaussian_prior(Network())
    fit = method.infer(prior, Categorical(2), Data(torch.from_numpy(X), torch.from_numpy(Y)), generator=generator)
    assert torch.equal(fit.posterior(torch.from_numpy(X)).mean, fit.posterior(torch.from_numpy(X).float()).mean)


def test_token_ids_in_numpy_after_a_data_set():
    ids = RNG.integers(0, 5, (24, 3))

    def network(inputs, outputs):
        return nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, outputs))

    fitted = model(network=network).fit(TensorDataset(torch.from_numpy(ids), torch.from_numpy(Y)))
    assert (fitted.predict_proba(ids) == fitted.predict_proba(torch.from_numpy(ids))).all()


@pytest.mark.parametrize("name", ["tensors", "arrays", "labels", "loader"])
def test_copies_of_images_are_held_out_together(name):
    twice = {
        "tensors": TensorDataset(torch.from_numpy(X).repeat(2, 1, 1, 1), torch.from_numpy(Y).repeat(2)),
        "arrays": Items(lambda i: (X[i % 24], Y[i % 24]), 48),
        "labels": Items(lambda i: {"pixel_values": X[i % 24], "labels": Y[i % 24]}, 48),
    }
    twice["loader"] = DataLoader(twice["tensors"], batch_size=16)
    repeated = model().fit(twice[name]).predict_proba(X)
    weighted = model().fit(X, Y, sample_weight=np.full(24, 2.0)).predict_proba(X)
    assert np.allclose(repeated, weighted, atol=1e-4)  # the same rows are held out


def test_copies_in_a_data_set_that_is_not_held_in_memory_are_kept_together_by_groups(monkeypatch):
    monkeypatch.setattr("bayeskit.estimators.input_validation.MEMORY_BUDGET", 0)
    twice = Items(lambda i: (X[i % 24], Y[i % 24]), 48)
    fitted = model().fit(twice, groups=np.arange(48) % 24)
    weighted = model().fit(X, Y, sample_weight=np.full(24, 2.0))
    assert np.allclose(fitted.predict_proba(X), weighted.predict_proba(X), atol=1e-4)
