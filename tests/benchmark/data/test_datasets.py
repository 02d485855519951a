"""Data by name and by file."""

import numpy as np
import pandas as pd
import pytest

from bayeskit.benchmark.data import datasets


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("BAYESKIT_DATA", str(tmp_path))
    (tmp_path / "sub").mkdir()
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 3)), rng.normal(size=40)
    order = np.stack([rng.permutation(40) for _ in range(2)])
    np.savez(tmp_path / "sub" / "houses.npz", X=X, y=y, train_idx=order[:, :30], test_idx=order[:, 30:])
    np.savez(tmp_path / "folds.npz", X=X, y=y, test_fold=np.arange(40) % 4)
    np.savez(tmp_path / "plain.npz", X=X.astype(np.float32), y=(y > 0).astype(np.int8), other=y)
    np.savez(tmp_path / "halves.npz", X_train=X[:30], y_train=y[:30], X_test=X[30:], y_test=y[30:])
    images = rng.integers(0, 255, (40, 4, 4), dtype=np.uint8)
    labels = np.arange(40, dtype=np.uint8) % 2
    np.savez(tmp_path / "tiny.npz", x_train=images[:30], y_train=labels[:30], x_test=images[30:], y_test=labels[30:])
    np.savez(tmp_path / "foreign.npz", a=X)
    np.savez(tmp_path / "wine.npz", X=X, y=y)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "task", "shape"),
    [
        ("diabetes", "regression", (442, 10)),
        ("breast_cancer", "classification", (569, 30)),
        ("wine", "classification", (178, 13)),
        ("iris", "classification", (150, 4)),
        ("digits", "classification", (1797, 64)),
        ("linnerud", "regression", (20, 3)),
    ],
)
def test_shipped_sets(name, task, shape):
    data = datasets.load(name)
    assert (data.task, data.X.shape, len(data.y)) == (task, shape, shape[0])
    assert name in datasets.names()


def test_classes_keep_their_names():
    data = datasets.load("breast_cancer")
    assert data.classes == ("benign", "malignant")
    assert set(np.unique(data.y)) == {0, 1}


def test_some_classes_and_the_others_as_ood():
    data = datasets.load("digits-0-4")
    other = datasets.load_inputs("digits-5-9", data)
    assert len(data.X) + len(other) == 1797
    assert data.classes == ("0", "1", "2", "3", "4")
    with pytest.raises(ValueError, match="must pick classes that exist"):
        datasets.load("digits-8-12")


def test_splits_hold_every_row_once_and_are_stratified():
    data = datasets.load("iris")
    train, test = data.split(3)
    assert sorted([*train, *test]) == list(range(150))
    assert np.bincount(data.y[test]).tolist() == [10, 10, 10]
    assert (data.split(3)[0] == train).all()
    assert (data.split(4)[0] != train).any()


def test_layouts_of_a_folder(folder):
    houses = datasets.load("houses")
    assert datasets.load("sub/houses").fingerprint() == houses.fingerprint()
    assert [len(part) for part in houses.split(1)] == [30, 10]
    assert (houses.split(2)[0] == houses.split(0)[0]).all()  # splits are taken in turn
    folds = datasets.load("folds")
    assert (folds.split(2)[1] % 4 == 2).all()
    halves = datasets.load("halves")
    assert halves.split(5)[1].tolist() == list(range(30, 40))
    tiny = datasets.load("tiny")
    assert tiny.X.shape == (40, 16)
    assert tiny.task == "classification"
    assert datasets.load("plain").task == "classification"
    assert datasets.load("plain", target="other").task == "regression"
    assert datasets.load(str(folder / "plain.npz")).X.dtype == np.float32


def test_a_shipped_name_takes_precedence_with_a_note(folder):
    data = datasets.load("wine")
    assert data.task == "classification"
    assert any("wine.npz" in note for note in data.notes)


def test_messages_for_missing_data(folder):
    with pytest.raises(ValueError, match="did you mean 'houses'"):
        datasets.load("housse")
    with pytest.raises(ValueError, match="must hold arrays `X` and `y`"):
        datasets.load("foreign")
    with pytest.raises(ValueError, match="did you mean 'other'"):
        datasets.load("plain", target="othr")
    with pytest.raises(FileNotFoundError, match="no file"):
        datasets.load("nowhere.csv")
    with pytest.raises(ValueError, match="`task` must be one of"):
        datasets.load("iris", task="classify")


def test_tables_from_files(tmp_path):
    table = pd.DataFrame({"when": ["2024-01-01", "2024-02-01"] * 10, "x": np.arange(20.0), "y": np.linspace(0, 1, 20)})
    table.loc[3, "y"] = np.nan
    table.to_csv(tmp_path / "t.csv", index=False)
    data = datasets.load(str(tmp_path / "t.csv"))
    assert data.name == "t"
    assert data.X.columns.tolist() == ["when", "x"]
    assert pd.api.types.is_datetime64_any_dtype(data.X["when"])
    assert len(data.y) == 19
    assert data.notes[:2] == ("The target was taken to be the last column, y.", "1 row without a target left out.")
    with pytest.raises(ValueError, match="did you mean 'when'"):
        datasets.load(str(tmp_path / "t.csv"), target="whem")


def test_parquet_is_csv(tmp_path):
    table = pd.DataFrame({"x": np.arange(20.0), "c": ["a", "b"] * 10, "y": ["no", "yes"] * 10})
    table.to_parquet(tmp_path / "t.parquet")
    table.to_csv(tmp_path / "t.csv", index=False)
    parquet, csv = (datasets.load(str(tmp_path / f"t.{kind}")) for kind in ("parquet", "csv"))
    assert parquet.fingerprint() == csv.fingerprint()
    assert parquet.classes == ("no", "yes")


def test_ood_inputs_need_the_same_columns(tmp_path):
    table = pd.DataFrame({"x": np.arange(20.0), "c": ["a", "b"] * 10, "y": np.arange(20) / 7})
    table.to_csv(tmp_path / "t.csv", index=False)
    table.drop(columns="c").to_csv(tmp_path / "u.csv", index=False)
    table[["c", "y", "x"]].to_csv(tmp_path / "v.csv", index=False)
    data = datasets.load(str(tmp_path / "t.csv"))
    assert datasets.load_inputs(str(tmp_path / "v.csv"), data).columns.tolist() == ["x", "c"]
    with pytest.raises(ValueError, match="lacks \\['c'\\]"):
        datasets.load_inputs(str(tmp_path / "u.csv"), data)
    with pytest.raises(ValueError, match="64 columns"):
        datasets.load_inputs("iris", datasets.load("digits"))


def test_rare_classes_are_left_out_with_a_note():
    y = np.array(["a"] * 20 + ["b"] * 20 + ["c"] * 2)
    from bayeskit.benchmark.data.dataset_sources import Raw
    from bayeskit.benchmark.data.datasets import _finish

    data = _finish("d", Raw(np.arange(42.0)[:, None], y), None)
    assert data.classes == ("a", "b")
    assert len(data.y) == 40
    assert "fewer than 5 rows were left out: c" in data.notes[-1]
    with pytest.raises(ValueError, match="at least two classes"):
        _finish("d", Raw(np.arange(20.0)[:, None], y[:20]), None)


@pytest.mark.parametrize(
    ("y", "task"),
    [
        (np.array([True, False]), "classification"),
        (np.arange(100) % 3, "classification"),
        (np.arange(100), "regression"),
        (np.arange(100) / 3, "regression"),
        (np.array(["u", "v"]), "classification"),
        (np.ones((5, 2)), "regression"),
    ],
)
def test_the_task_is_inferred_from_the_target(y, task):
    assert datasets.guess_task(y)[0] == task


def test_fingerprint_changes_with_the_data():
    data = datasets.load("iris")
    assert data.fingerprint() == datasets.load("iris").fingerprint()
    assert data.fingerprint() != datasets.load("wine").fingerprint()


def test_message_for_openml_without_a_network(monkeypatch):
    def lost(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr("sklearn.datasets.fetch_openml", lost)
    with pytest.raises(ValueError, match="could not be fetched from OpenML: no route"):
        datasets.load("openml:titanic")


def test_openml_puts_the_target_last(monkeypatch):
    from sklearn.utils import Bunch

    table = pd.DataFrame({"survived": ["y", "n"] * 10, "age": np.arange(20.0)})
    monkeypatch.setattr("sklearn.datasets.fetch_openml", lambda *_, **__: Bunch(frame=table, target_names=["survived"]))
    data = datasets.load("openml:titanic")
    assert data.classes == ("n", "y")
    assert data.X.columns.tolist() == ["age"]


def test_text_and_real_dates_in_parquet_are_those_of_csv(tmp_path):
    text = ["2024-01-01", "2024-02-01"] * 10
    table = pd.DataFrame({"text": text, "real": pd.to_datetime(text), "day": pd.to_datetime(text).date, "y": range(20)})
    table.to_parquet(tmp_path / "t.parquet")
    table.to_csv(tmp_path / "t.csv", index=False)
    for kind in ("parquet", "csv"):
        data = datasets.load(str(tmp_path / f"t.{kind}"))
        assert [dtype.kind for dtype in data.X.dtypes] == ["M", "M", "M"]


def test_a_named_set_is_ood_for_a_file_with_the_same_columns(tmp_path):
    from sklearn.datasets import load_iris

    load_iris(as_frame=True).frame.to_csv(tmp_path / "flowers.csv", index=False)
    data = datasets.load(str(tmp_path / "flowers.csv"))
    assert datasets.load_inputs("iris-0-1", data).columns.tolist() == data.X.columns.tolist()
    np.savez(tmp_path / "far.npz", X=np.ones((12, 4)))
    assert datasets.load_inputs(str(tmp_path / "far.npz"), data).shape == (12, 4)
    with pytest.raises(ValueError, match="`ood` must have the columns of flowers; wine lacks"):
        datasets.load_inputs("wine", data)
    for like in (data, datasets.load("iris")):
        with pytest.raises(ValueError, match="`ood` must be a file .* did you mean 'iris'"):
            datasets.load_inputs("irs", like)


@pytest.mark.parametrize("decimal", [".", ","])
def test_other_separators_are_inferred_with_a_note(tmp_path, decimal):
    table = pd.DataFrame({"a": np.arange(20) / 8, "b": np.arange(20) / 3, "y": np.arange(20) / 7})
    table.to_csv(tmp_path / "t.csv", index=False, sep=";", decimal=decimal)
    data = datasets.load(str(tmp_path / "t.csv"))
    assert data.task == "regression"
    np.testing.assert_allclose(data.X, table[["a", "b"]])
    assert data.notes[0].startswith("Columns were taken to be separated by semicolons")
    assert ("decimals by commas" in data.notes[0]) == (decimal == ",")


def test_messages_for_unusable_files(tmp_path):
    (tmp_path / "head.csv").write_text("a,b,y\n")
    with pytest.raises(ValueError, match="has no rows, only the names of 3 columns"):
        datasets.load(str(tmp_path / "head.csv"))
    np.save(tmp_path / "one.npy", np.ones(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    (tmp_path / "junk.npz").write_bytes(b"PK\x03\x04 junk")
    (tmp_path / "text.npz").write_text("junk")
    np.savez(tmp_path / "objects.npz", X=np.array([{}, {}]), y=np.ones(2))
    for name in ("one", "junk", "text", "objects"):
        with pytest.raises(ValueError, match=f"^{name}.npz must be an archive of number arrays") as caught:
            datasets.load(str(tmp_path / f"{name}.npz"))
        assert "pickle" not in str(caught.value)
    with pytest.raises(ValueError, match="digits-0-4, .*got 'diabets'"):
        datasets.load("diabets")


def test_real_numbers_are_not_classes(tmp_path):
    pd.DataFrame({"x": range(20), "y": np.arange(20) / 7}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(ValueError, match="`task` cannot be classification: .* real numbers"):
        datasets.load(str(tmp_path / "t.csv"), task="classification")


@pytest.mark.parametrize(
    ("values", "task"),
    [
        (["0", "1", "2"] * 20, "classification"),
        ([str(i) for i in range(60)], "regression"),
        ([f"{i}.5" for i in range(60)], "regression"),
        (["True", "False"] * 30, "classification"),
        (["low", "high"] * 30, "classification"),
    ],
)
def test_blank_targets_do_not_change_the_task(values, task, tmp_path):
    whole, gaps = tmp_path / "whole.csv", tmp_path / "gaps.csv"
    whole.write_text("x,y\n" + "".join(f"{i},{v}\n" for i, v in enumerate(values)))
    blank = [("" if i in (3, 10, 41) else v) for i, v in enumerate(values)]
    gaps.write_text("x,y\n" + "".join(f"{i},{v}\n" for i, v in enumerate(blank)))
    complete, incomplete = datasets.load(str(whole)), datasets.load(str(gaps))
    assert complete.task == incomplete.task == task
    assert complete.classes == incomplete.classes
    assert np.array_equal(np.delete(complete.y, (3, 10, 41)), incomplete.y)
    assert any(note.startswith("3 rows without a target") for note in incomplete.notes)


@pytest.mark.parametrize("kind", ["Int64", "Float64"])
def test_missing_targets_of_nullable_types(kind, tmp_path):
    pytest.importorskip("pyarrow")
    y = pd.Series([*range(50), None], dtype=kind)
    pd.DataFrame({"x": np.arange(51.0), "y": y}).to_parquet(tmp_path / "t.parquet")
    data = datasets.load(str(tmp_path / "t.parquet"))
    assert data.task == "regression"
    assert np.array_equal(data.y, np.arange(50))
