"""Every bad input gets an answer or one clear sentence that names the argument; never a traceback from inside torch."""

import numpy as np
import pandas as pd
import pytest
import torch

from bayeskit import BNNClassifier, BNNRegressor, GPClassifier, GPRegressor, registry

X = np.random.default_rng(0).normal(size=(20, 3))
Y = X[:, 0] + 0.1 * X[:, 1]
LABELS = np.where(Y > 0, "a", "b")

REGRESSORS = [
    lambda **k: GPRegressor(inference=registry.quick("exact"), random_state=0, **k),
    lambda **k: GPRegressor(inference=registry.quick("sgpr"), random_state=0, **k),
    lambda **k: BNNRegressor(inference=registry.quick("laplace"), random_state=0, **k),
]
CLASSIFIERS = [
    lambda **k: GPClassifier(inference=registry.quick("svgp"), random_state=0, **k),
    lambda **k: BNNClassifier(inference=registry.quick("map"), random_state=0, **k),
]
regressor = pytest.mark.parametrize("make", REGRESSORS)
classifier = pytest.mark.parametrize("make", CLASSIFIERS)


def with_value(value):
    x = X.copy()
    x[4, 1] = value
    return x


@regressor
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity(make, value):
    with pytest.raises(ValueError, match="contains (NaN|infinity)"):
        make().fit(with_value(value), Y)
    with pytest.raises(ValueError, match="contains (NaN|infinity)"):
        make().fit(X, with_value(value)[:, 1])
    with pytest.raises(ValueError, match="contains (NaN|infinity)"):
        make().fit(X, Y).predict(with_value(value))


@regressor
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.empty((0, 3)), np.empty(0), "0 sample"),
        (np.empty((5, 0)), np.ones(5), "0 feature"),
        (X, Y[:-1], "inconsistent numbers of samples"),
        (X[:, 0], Y, "Expected 2D array"),
        (np.array([["a", "b"]] * 20), Y, "Encode text columns"),
        (np.array([[object(), 1]] * 20), Y, "float|number"),
        (X + 1j, Y, "[Cc]omplex"),
    ],
)
def test_wrong_shapes_and_types(make, x, y, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make().fit(x, y)


@regressor
def test_columns_of_another_table(make):
    model = make().fit(pd.DataFrame(X, columns=["a", "b", "c"]), Y)
    assert list(model.feature_names_in_) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="feature names"):
        model.predict(pd.DataFrame(X, columns=["a", "b", "z"]))
    with pytest.raises(ValueError, match="expecting 3 features"):
        make().fit(X, Y).predict(X[:, :2])


@regressor
def test_one_row_duplicates_and_constants_get_an_answer(make):
    assert np.isfinite(make().fit(X[:1], Y[:1]).predict(X)).all()
    assert np.isfinite(make().fit(np.repeat(X[:4], 5, axis=0), np.repeat(Y[:4], 5)).predict(X)).all()
    constant = np.column_stack([X, np.full(20, 3.0)])
    assert np.isfinite(make().fit(constant, Y).predict(constant)).all()
    assert np.allclose(make().fit(X, np.full(20, 2.5)).predict(X), 2.5, atol=1e-3)


@regressor
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scales_of_the_data_do_not_matter(make, scale):
    base = make().fit(X, Y).predict(X, return_std=True)
    inputs = make().fit(X * scale, Y).predict(X * scale, return_std=True)
    targets = make().fit(X, Y * scale).predict(X, return_std=True)
    # Standardization divides the scale out to rounding; the optimizer may amplify that a little.
    assert np.allclose(inputs, base, rtol=1e-4, atol=1e-6)
    assert np.allclose(np.array(targets) / scale, base, rtol=1e-4, atol=1e-6)


@regressor
@pytest.mark.parametrize("dtype", [np.int64, np.float16, np.float32, np.bool_])
def test_other_number_types(make, dtype):
    model = make().fit((X * 4).astype(dtype), Y)
    assert model.predict((X * 4).astype(dtype)).dtype == np.float64


@regressor
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int32])
def test_tensors_of_other_types(make, dtype):
    x = torch.tensor(X * 4).to(dtype)
    assert np.isfinite(make().fit(x, torch.tensor(Y).to(torch.bfloat16)).predict(x)).all()


@regressor
def test_memory_layouts_and_containers(make):
    base = make().fit(X, Y).predict(X)
    wide = np.zeros((20, 6))
    wide[:, ::2] = X
    read_only = X.copy()
    read_only.flags.writeable = False
    for same in (np.asfortranarray(X), wide[:, ::2], read_only, X.tolist(), torch.tensor(X), pd.DataFrame(X)):
        assert np.allclose(make().fit(same, Y).predict(X if isinstance(same, pd.DataFrame) is False else same), base)


@regressor
def test_weights(make):
    with pytest.raises(ValueError, match=r"weight.*zero"):
        make().fit(X, Y, sample_weight=np.zeros(20))
    with pytest.raises(ValueError, match="[Nn]egative"):
        make().fit(X, Y, sample_weight=-np.ones(20))
    with pytest.raises(ValueError, match="sample_weight"):
        make().fit(X, Y, sample_weight=np.ones(3))


def test_unknown_names():
    with pytest.raises(ValueError, match="'laplace'"):
        BNNRegressor(inference="laplce").fit(X, Y)
    with pytest.raises(ValueError, match="method of BNNRegressor"):
        GPRegressor(inference="laplace").fit(X, Y)
    with pytest.raises(ValueError, match="'sgpr'"):
        GPRegressor(inference="sgrp").fit(X, Y)
    with pytest.raises(TypeError, match="BayesNet; got GaussianProcess"):
        GPRegressor(inference=registry.quick("laplace")).fit(X, Y)
    with pytest.raises(TypeError, match="Conjugate; got Bernoulli"):
        GPClassifier(inference="exact").fit(X, LABELS)
    with pytest.raises(TypeError, match="`inference` must be"):
        GPRegressor(inference=3).fit(X, Y)
    with pytest.raises(ValueError, match="`device` must be"):
        GPRegressor(device="gpuu").fit(X, Y)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device"):
            GPRegressor(device="cuda").fit(X, Y)


@classifier
def test_labels(make):
    with pytest.raises(ValueError, match="at least 2 classes"):
        make().fit(X, np.full(20, "a"))
    with pytest.raises(ValueError, match="[Uu]nknown label type|continuous"):
        make().fit(X, Y)
    model = make().fit(X, LABELS)
    assert set(model.predict(X)) <= {"a", "b"}
    with pytest.raises(ValueError, match="unseen|among"):
        model.predictive(X).log_prob(np.full(20, "z"))


@classifier
def test_class_weight(make):
    rare = LABELS.copy()
    rare[3:] = "b"
    rare[:3] = "a"
    plain = make().fit(X, rare).predict_proba(X)[:, 0].mean()
    balanced = make(class_weight="balanced").fit(X, rare).predict_proba(X)[:, 0].mean()
    assert balanced > plain


def test_networks_of_the_wrong_shape():
    with pytest.raises(ValueError, match="`network`"):
        BNNRegressor(network=torch.nn.Linear(7, 1), inference=registry.quick("map")).fit(X, Y)
    with pytest.raises(ValueError, match="returns 4 outputs"):
        BNNRegressor(network=torch.nn.Linear(3, 4), inference=registry.quick("map")).fit(X, Y)


def test_a_failed_fit_leaves_the_old_model():
    model = GPRegressor(inference=registry.quick("exact"), random_state=0).fit(X, Y)
    before = model.predict(X)
    with pytest.raises(ValueError, match="NaN"):
        model.fit(with_value(np.nan), Y)
    assert (model.predict(X) == before).all()


@pytest.mark.parametrize("order", ["<f8", ">f8", "<f4", ">f4"])
def test_views_of_negative_stride_and_foreign_byte_order_are_read_like_a_copy(order):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 2)).astype(order)
    y = x[:, 0].copy()
    x.flags.writeable = y.flags.writeable = False
    for seen, target in ((x[::-1], y[::-1]), (x[:, ::-1], y), (x, np.column_stack([y, -y])[:, ::-1])):
        plain = [np.array(a, dtype=a.dtype.newbyteorder("="), order="C") for a in (seen, target)]
        viewed, copied = (GPRegressor(random_state=0).fit(*pair).predict(x[::-1]) for pair in ((seen, target), plain))
        assert np.allclose(viewed, copied, atol=1e-6)
