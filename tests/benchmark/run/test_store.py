"""Stored trials are neither lost nor mixed up."""

import numpy as np
import pytest

from bayeskit.benchmark.run.store import Store
from bayeskit.benchmark.run.trial import TrialResult

SETTINGS = {"data": "d", "task": "regression"}


def trial(method, seed, **more):
    return TrialResult({"method": method, "seed": seed, "status": "ok", **more}, {"pit": np.arange(3.0)})


def test_rows_and_arrays_come_back(tmp_path):
    store = Store(tmp_path / "out", SETTINGS)
    store.add(trial("a", 0, nll=float("inf")))
    again = Store(tmp_path / "out", SETTINGS)
    assert again.rows["a", 0]["nll"] == float("inf")
    assert again.arrays(("a", 0))["pit"].tolist() == [0.0, 1.0, 2.0]
    assert again.whole(("a", 0))
    assert again.arrays(("a", 1)) == {}


def test_a_truncated_line_is_left_out_and_does_not_affect_the_next(tmp_path):
    store = Store(tmp_path, SETTINGS)
    store.add(trial("a", 0))
    with open(tmp_path / "results.jsonl", "a") as file:
        file.write('{"method": "b", "seed": 0, "sta')
    again = Store(tmp_path, SETTINGS)
    assert list(again.rows) == [("a", 0)]
    again.add(trial("c", 0))
    assert list(Store(tmp_path, SETTINGS).rows) == [("a", 0), ("c", 0)]


def test_the_last_line_of_a_trial_counts(tmp_path):
    store = Store(tmp_path, SETTINGS)
    store.add(trial("a", 0, nll=1.0))
    store.add(trial("a", 0, nll=2.0))
    assert Store(tmp_path, SETTINGS).rows["a", 0]["nll"] == 2.0


def test_a_truncated_array_file_is_not_whole(tmp_path):
    store = Store(tmp_path, SETTINGS)
    store.add(trial("a", 0))
    path = tmp_path / "trials" / "a-0.npz"
    path.write_bytes(path.read_bytes()[:20])
    assert not store.whole(("a", 0))


def test_other_settings_are_refused(tmp_path):
    Store(tmp_path, SETTINGS)
    with pytest.raises(ValueError, match="with task 'regression' and not 'classification'"):
        Store(tmp_path, {**SETTINGS, "task": "classification"})
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="`out` must be a folder"):
        Store(tmp_path / "file", SETTINGS)
