"""Choosing from a pool: every method, every kind of pool, nothing twice, whatever the memory."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bayeskit import BNNClassifier, BNNRegressor, Conformal, GPClassifier, GPRegressor, active, registry
from bayeskit.active import pool as module

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 2))
NUMBERS, LABELS = np.sin(X[:, 0]) + X[:, 1], np.where(X[:, 0] > X[:, 1], "yes", "no")
POOL = 2 * RNG.normal(size=(30, 2))
OF_NUMBERS = tuple(name for name in active.ACQUISITIONS if name != "margin")


def fitted(name, task):
    classes = {("gp", "regression"): GPRegressor, ("gp", "classification"): GPClassifier}
    classes |= {("bnn", "regression"): BNNRegressor, ("bnn", "classification"): BNNClassifier}
    model = classes[registry.family_of(name), task](inference=registry.quick(name), random_state=0)
    return model.fit(X, NUMBERS if task == "regression" else LABELS)


PAIRS = [(name, task) for name in registry.names() for task in sorted(registry.tasks(name))]


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_every_method_can_ask(name, task):
    model = fitted(name, task)
    known = OF_NUMBERS if task == "regression" else active.ACQUISITIONS
    for acquisition in known:
        if model.inference_.kind == "point" and acquisition in ("variance", "bald", "batch_bald", "epig"):
            with pytest.raises(ValueError, match="needs a distribution of the function"):
                active.query(model, POOL, acquisition=acquisition, random_state=0)
            continue
        batch = active.query(model, POOL, acquisition=acquisition, batch_size=4, random_state=0)
        assert len(set(batch.indices.tolist())) == 4
        assert batch.scores.dtype == torch.float64 and batch.scores.isfinite().all()


MODEL = GPRegressor(random_state=0).fit(X, NUMBERS)


@pytest.mark.parametrize("acquisition", OF_NUMBERS)
@pytest.mark.parametrize("kind", ["array", "frame", "tensor", "list"])
def test_any_pool_gives_the_same_batch(acquisition, kind):
    fit = GPRegressor(random_state=0).fit(pd.DataFrame(X, columns=["a", "b"]), NUMBERS) if kind == "frame" else MODEL
    pools = {"frame": pd.DataFrame(POOL, columns=["a", "b"]), "tensor": torch.as_tensor(POOL), "list": POOL.tolist()}
    first = active.query(MODEL, POOL, acquisition=acquisition, batch_size=5, random_state=1)
    second = active.query(fit, pools.get(kind, POOL), acquisition=acquisition, batch_size=5, random_state=1)
    assert torch.equal(first.indices, second.indices)
    # A fit to a frame is another one: its columns lie otherwise in memory, and the search stops at 1e-4 of the optimum.
    torch.testing.assert_close(first.scores, second.scores, rtol=1e-3 if kind == "frame" else 1e-7, atol=0)


@pytest.mark.parametrize("acquisition", [name for name in OF_NUMBERS if name != "random"])
def test_a_pool_read_in_parts_gives_the_same_batch(acquisition, monkeypatch):
    whole = active.query(MODEL, POOL, acquisition=acquisition, batch_size=5, random_state=1)
    monkeypatch.setattr(module, "ROWS", 7)
    parts = active.query(MODEL, POOL, acquisition=acquisition, batch_size=5, random_state=1)
    assert torch.equal(whole.indices, parts.indices)
    torch.testing.assert_close(whole.scores, parts.scores)


def test_a_pool_on_disk_is_never_read_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 8)
    pool = np.lib.format.open_memmap(tmp_path / "pool.npy", mode="w+", dtype=float, shape=POOL.shape)
    pool[:] = POOL
    read = []
    plain = type(MODEL).standardized
    monkeypatch.setattr(type(MODEL), "standardized", lambda self, x: read.append(len(x)) or plain(self, x))
    batch = active.query(MODEL, pool, acquisition="bald", batch_size=5, random_state=1)
    assert max(read) == 8
    assert torch.equal(batch.indices, active.query(MODEL, POOL, acquisition="bald", batch_size=5).indices)


def test_a_large_pool_is_first_thinned_by_what_each_says(monkeypatch):
    whole = active.query(MODEL, POOL, acquisition="batch_bald", batch_size=3, random_state=1)
    monkeypatch.setattr(module, "JOINT_ROWS", 15)
    thinned = active.query(MODEL, POOL, acquisition="batch_bald", batch_size=3, random_state=1)
    assert torch.equal(whole.indices, thinned.indices)


def test_a_pool_of_one():
    for acquisition in OF_NUMBERS:
        assert active.query(MODEL, POOL[:1], acquisition=acquisition, batch_size=3).indices.tolist() == [0]


def test_what_is_excluded_is_not_chosen():
    batch = active.query(MODEL, POOL, batch_size=100, exclude=range(25))
    assert sorted(batch.indices.tolist()) == [25, 26, 27, 28, 29]
    with pytest.raises(ValueError, match="all have been asked for"):
        active.query(MODEL, POOL, exclude=range(30))


def test_candidates_are_few_and_drawn_by_the_seed():
    first, second, other = (
        active.query(MODEL, POOL, batch_size=9, candidates=5, random_state=seed).indices.tolist() for seed in (0, 0, 1)
    )
    assert first == second and len(first) == 5 and set(first) != set(other)


def test_ties_are_broken_by_the_seed():
    same = np.zeros((30, 2))
    chosen = {active.query(MODEL, same, random_state=seed).indices.item() for seed in range(8)}
    assert len(chosen) > 1


def test_best_first():
    batch = active.query(MODEL, POOL, acquisition="variance", batch_size=30)
    expected = MODEL.standardized(POOL).variance.flatten().double()
    torch.testing.assert_close(batch.scores, expected.sort(descending=True).values)
    torch.testing.assert_close(expected[batch.indices], batch.scores)


def test_a_function_of_ones_own():
    batch = active.query(MODEL, POOL, acquisition=lambda values, likelihood: values.mean[:, 0], batch_size=2)
    assert batch.indices.tolist() == MODEL.predict(POOL).argsort()[::-1][:2].tolist()
    with pytest.raises(ValueError, match=r"one number for each input.*got shape \(30, 1\)"):
        active.query(MODEL, POOL, acquisition=lambda values, likelihood: values.mean)


def test_targets_of_epig_may_be_elsewhere():
    corner = np.array([[4.0, 4.0]])
    chosen = active.query(MODEL, POOL, acquisition="epig", targets=corner).indices.item()
    values = MODEL.standardized(np.concatenate([POOL, corner]))
    assert chosen == int(active.epig(values, MODEL.likelihood_, num_targets=1).argmax())


def test_a_pipeline_hands_its_last_step_what_it_gets():
    pipe = make_pipeline(StandardScaler(), GPRegressor(random_state=0)).fit(X, NUMBERS)
    found = active.query(pipe, POOL, acquisition="epig", targets=POOL[:3], batch_size=3).indices
    inside = pipe[:-1].transform(POOL)
    bare = active.query(pipe[-1], inside, acquisition="epig", targets=inside[:3], batch_size=3).indices
    assert torch.equal(found, bare)


def test_what_is_not_known_is_said_in_one_sentence():
    with pytest.raises(ValueError, match=r"`acquisition` must be one of .*; got 'bold'; did you mean 'bald'\?"):
        active.query(MODEL, POOL, acquisition="bold")
    with pytest.raises(TypeError, match="joint distribution of the function.*got Conformal"):
        active.query(Conformal(GPRegressor(), confidence=0.8, random_state=0).fit(X, NUMBERS), POOL)
    with pytest.raises(ValueError, match="`batch_size` must be a positive integer"):
        active.query(MODEL, POOL, batch_size=0)
