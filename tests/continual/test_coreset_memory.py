"""What is remembered: rows of the task, each once, the rest left to the fold."""

import numpy as np
import pytest

from bayeskit.continual import Coreset

X = np.random.default_rng(0).normal(size=(60, 3))


@pytest.mark.parametrize("choice", ["random", "k_center"])
def test_remembered_and_rest_are_all_rows_once(choice):
    (x, y), (kept_x, kept_y) = Coreset(7, choice).divide(X, np.arange(60), np.random.default_rng(0))
    assert len(kept_x) == 7 and len(x) == 53
    assert np.array_equal(np.sort(np.concatenate([y, kept_y])), np.arange(60))
    assert np.array_equal(X[y], x) and np.array_equal(X[kept_y], kept_x)


def test_one_row_is_always_left_to_the_fold():
    rows = Coreset(100).rows(X[:5], np.random.default_rng(0))
    assert len(rows) == 4 and len(Coreset(3).rows(X[:1], np.random.default_rng(0))) == 0


def test_farthest_first_covers_within_twice_the_best_radius():
    # Gonzalez (1985), theorem 2.2: four tight clusters and four centers leave no row farther than a cluster is wide.
    centers = np.array([[0, 0], [10, 0], [0, 10], [10, 10]], dtype=float)
    x = np.concatenate([c + np.random.default_rng(i).uniform(-1, 1, (20, 2)) for i, c in enumerate(centers)])
    for seed in range(5):
        kept = x[Coreset(4, "k_center").rows(x, np.random.default_rng(seed))]
        assert np.linalg.norm(x[:, None] - kept, axis=-1).min(1).max() <= 2 * 2**0.5


@pytest.mark.parametrize("settings", [{"size": 0}, {"size": 3, "choice": "best"}])
def test_settings_are_checked(settings):
    with pytest.raises(ValueError):
        Coreset(**settings)
