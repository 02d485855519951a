"""`validation_split` and `groups`: what is held out is what was asked for, in every method that holds data out."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import config_context
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, KFold, PredefinedSplit, ShuffleSplit, TimeSeriesSplit, cross_validate
from torch.utils.data import TensorDataset

from bayeskit import BNNClassifier, BNNRegressor, GPRegressor, load, registry, save
from bayeskit.bnn import DeepEnsemble
from bayeskit.bnn.methods.deep_ensemble import _Folds
from bayeskit.core.optimize import Training, split
from bayeskit.core.types import Data, Validation
from bayeskit.core.validation_plan import division, divisions, planned

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3))
Y = X[:, 0] + 0.1 * RNG.normal(size=60)
LABELS = np.where(Y > 0, "a", "b")
MASK = np.arange(60) % 4 == 1
HOLDING = [
    n for n in registry.names(family="bnn") if "training" in registry.inference_class(n)().get_params(deep=False)
]


def regressor(name, **settings):
    return BNNRegressor(inference=registry.quick(name), random_state=0, **settings)


@pytest.mark.parametrize("name", [n for n in HOLDING if "regression" in registry.tasks(n)])
def test_a_mask_is_the_validation_set_of_its_rows_in_every_method(name):
    """Nothing of a validation set is trained on, and its units are those of the training data."""
    masked = regressor(name, validation_split=MASK).fit(X, Y)
    given = regressor(name, validation_split=(X[MASK], Y[MASK])).fit(X[~MASK], Y[~MASK])
    assert masked.diagnostics_["held-out data"] in (15, 15 * 3)  # for each of the three members of an ensemble
    assert (masked.predict(X) == given.predict(X)).all()


@pytest.mark.parametrize("name", [n for n in HOLDING if "classification" in registry.tasks(n)])
def test_classes_of_a_validation_set(name):
    masked = BNNClassifier(inference=registry.quick(name), validation_split=list(MASK), random_state=0).fit(X, LABELS)
    given = clone(masked).set_params(validation_split=(pd.DataFrame(X[MASK]), LABELS[MASK]))
    assert (given.fit(X[~MASK], LABELS[~MASK]).predict_proba(X) == masked.predict_proba(X)).all()


def test_a_dataset_and_missing_outputs():
    y = np.column_stack([Y, X[:, 1]])
    y[:5, 1] = np.nan
    y[MASK.argmax()] = np.nan  # a row of no observed output: left out of the validation set
    dataset = TensorDataset(torch.tensor(X[MASK]), torch.tensor(y[MASK]))
    one = regressor("map", validation_split=dataset).fit(X[~MASK], y[~MASK])
    two = regressor("map", validation_split=MASK).fit(X, y)
    assert one.diagnostics_["held-out data"] == 14 and (one.predict(X) == two.predict(X)).all()


def test_rows_without_weight_are_in_neither_part():
    weight = np.ones(60)
    weight[MASK.argmax()] = weight[0] = 0
    model = regressor("map", validation_split=MASK).fit(X, Y, sample_weight=weight)
    assert model.diagnostics_["held-out data"] == 14
    folds = regressor("map", validation_split=PredefinedSplit(np.where(MASK, 0, -1))).fit(X, Y, sample_weight=weight)
    assert folds.diagnostics_["held-out data"] == 14


def test_time_order():
    """The validation data are the last rows, also for the members of an ensemble."""
    data = planned(Data(torch.arange(60.0)[:, None], torch.zeros(60, 1)), TimeSeriesSplit(5))
    for found in (division(data, 0.2, generator=torch.Generator()), divisions(data, 0.2, generator=torch.Generator())):
        ((trained, held_out),) = found
        assert trained.tolist() == list(range(50)) and held_out.tolist() == list(range(50, 60))
    gap = planned(Data(torch.arange(60.0)[:, None], torch.zeros(60, 1)), TimeSeriesSplit(5, gap=3))
    train, held_out = split(gap, Training(), generator=torch.Generator())
    assert train.x[:, 0].tolist() == list(range(47)) and held_out.x[:, 0].tolist() == list(range(50, 60))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("sizes", [[5] * 12, [30, 30], [45, 10, 5], [20, 20, 20], [1] * 60, [50, 2, 2, 2, 2, 2]])
def test_groups_are_never_divided(sizes, seed):
    groups = np.random.default_rng(seed).permutation(np.repeat([f"site {i}" for i in range(len(sizes))], sizes))
    data = planned(Data(torch.tensor(X), torch.tensor(Y)[:, None]), None, groups)
    generator = torch.Generator().manual_seed(seed)
    one, several = division(data, 0.2, generator=generator), divisions(data, 0.2, generator=generator)
    assert len(one) == 1 and len(several) >= 1
    for trained, held_out in [*one, *several]:
        assert set(groups[trained]).isdisjoint(groups[held_out]) and len(trained) + len(held_out) == 60
        assert len(trained) >= 30 or 45 in sizes


def test_chains_of_copies_and_groups_stay_together():
    x = torch.arange(40.0).view(10, 4)[:, [0, 0, 1, 1]].reshape(-1, 1)  # two pairs of copies in each block of four
    groups = np.where(np.isin(np.arange(40) % 4, [1, 2]), np.arange(40) // 4, 100 + np.arange(40))  # which link them
    data = planned(Data(x, torch.zeros(40, 1)), None, groups)
    ((trained, held_out),) = division(data, 0.2, generator=torch.Generator())
    assert len(held_out) == 8 and set((trained // 4).tolist()).isdisjoint((held_out // 4).tolist())


def test_members_use_the_splits_of_a_splitter_in_turn():
    groups = np.arange(60) // 10
    data = planned(Data(torch.tensor(X), torch.tensor(Y)[:, None]), GroupKFold(3), groups)
    folds = _Folds.split(data, Training(), 5, generator=torch.Generator())
    assert folds.sizes == [20] * 5 and ((folds.weights == 0).sum(0) == 20).all()
    assert (folds.weights[:, :3] == 0).sum(1).tolist() == [1] * 60


@pytest.mark.parametrize("splitter", [KFold(3), ShuffleSplit(2, random_state=0), TimeSeriesSplit(3)])
def test_every_class_keeps_a_row_to_train_on(splitter):
    labels = np.zeros(60, dtype=int)
    labels[7], labels[-3:] = 1, 2
    data = planned(Data(torch.tensor(X), torch.tensor(labels)), splitter)
    for trained, _ in divisions(data, 0.2, generator=torch.Generator()):
        assert set(labels[trained]) == {0, 1, 2}


def test_training_takes_the_same():
    settings = {"max_epochs": 15, "validation_split": TimeSeriesSplit(3)}
    one = BNNRegressor(inference=DeepEnsemble(3, Training(**settings)), random_state=0).fit(X, Y)
    two = BNNRegressor(
        inference=DeepEnsemble(3, Training(max_epochs=15)), random_state=0, validation_split=TimeSeriesSplit(3)
    )
    assert (one.predict(X) == two.fit(X, Y).predict(X)).all()
    data, given = Data(X, Y[:, None]), (X[:4], Y[:4])
    train, held_out = split(data, Training(validation_split=given), generator=torch.Generator())
    assert len(train) == 60 and torch.equal(held_out.y[:, 0], torch.tensor(Y[:4]))
    assert split(data, Training(validation_split=0, validation_fraction=0.2), generator=torch.Generator())[1] is None
    shared = Data(data.x, data.y, validation=Validation(fraction=0.5))  # goes before the settings
    assert len(split(shared, Training(validation_split=0.1), generator=torch.Generator())[1]) == 30


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("last", "`validation_split` must be None, a share"),
        (1.0, "`validation_split` must be None, a share"),
        (-0.1, "`validation_split` must be None, a share"),
        (5, "`validation_split` must be None, a share"),
        (True, "`validation_split` must be None, a share"),
        (float("nan"), "`validation_split` must be None, a share"),
        (KFold, "`validation_split` must be None, a share"),
        (np.arange(60), "`validation_split` must be None, a share"),
        (MASK[:5], "`validation_split` as a mask must have shape"),
        (np.zeros(60, bool), "with 0 True"),
        (np.ones(60, bool), "with 60 True"),
        (LABELS == "a", "`validation_split` holds out every row of a class"),
        ((X[:5, :2], LABELS[:5]), "`validation_split` is no validation set .* 2 features"),
        ((X[:5], ["c"] * 5), "`validation_split` is no validation set .* among"),
        ((X[:5], LABELS[:4]), "`validation_split` is no validation set .* inconsistent"),
        ((X[:0], LABELS[:0]), "`validation_split` is no validation set .* 0 sample"),
        (GroupKFold(3), "`validation_split` cannot split these 60 rows: .*groups"),
        (KFold(100), "`validation_split` cannot split these 60 rows"),
    ],
)
def test_bad_values_are_named(value, message):
    with pytest.raises(ValueError, match=message):
        BNNClassifier(inference=registry.quick("map"), validation_split=value).fit(X, LABELS)


@pytest.mark.parametrize(
    ("groups", "message"), [(np.zeros(5), "shape \\(60,\\)"), ([None] + [1] * 59, "missing"), (Y * np.nan, "missing")]
)
@pytest.mark.parametrize("build", [GPRegressor, BNNRegressor])
def test_bad_groups_are_named(build, groups, message):
    with pytest.raises(ValueError, match=f"`groups` must .*{message}"):
        build().fit(X, Y, groups=groups)


def test_methods_that_hold_out_nothing_say_so():
    with pytest.raises(ValueError, match="`validation_split` must be None for MCMC"):
        regressor("sgld", validation_split=0.2).fit(X, Y)
    assert (regressor("sgld").fit(X, Y, groups=MASK).predict(X) == regressor("sgld").fit(X, Y).predict(X)).all()


@pytest.mark.parametrize("value", [None, 0.3, TimeSeriesSplit(4, gap=2), MASK, (X[:5], Y[:5])])
def test_settings_survive_clones_and_files(value, tmp_path):
    model = regressor("map", validation_split=value).fit(X, Y)
    again = clone(model).fit(X, Y)
    assert (again.predict(X) == model.predict(X)).all() and "validation_split" in model.get_params()
    save(model, tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert (loaded.predict(X) == model.predict(X)).all()
    held = isinstance(value, np.ndarray | tuple)  # a file holds no data
    assert repr(loaded.validation_split) == repr(None if held else value)


def test_groups_are_routed():
    groups = np.arange(60) // 5
    model = regressor("map")
    with config_context(enable_metadata_routing=True):
        settings = {"cv": GroupKFold(3), "return_estimator": True, "error_score": "raise", "params": {"groups": groups}}
        scores = cross_validate(model.set_fit_request(groups=True), X, Y, **settings)
    assert [m.diagnostics_["held-out data"] for m in scores["estimator"]] == [5, 5, 5]
