"""Tasks cut a data set into what comes one after the other."""

import numpy as np
import pandas as pd
import pytest
import torch

from bayeskit.continual import domain_tasks, permuted_tasks, split_tasks

X = np.arange(40.0).reshape(10, 4)
LABELS = np.array(list("abcde" * 2))


def test_split_tasks_part_the_rows_by_their_labels():
    tasks = split_tasks(X, LABELS, X[:5], LABELS[:5], num_tasks=2)
    assert [set(task.train()[1]) for task in tasks] == [set("abc"), set("de")]
    assert [set(task.test()[1]) for task in tasks] == [set("abc"), set("de")]
    assert sorted(np.concatenate([task.train()[0][:, 0] for task in tasks])) == sorted(X[:, 0])
    named = split_tasks(X, LABELS, X, LABELS, groups=[["e"], ["a", "c"]])
    assert [task.name for task in named] == ["e", "a, c"] and len(named[1].train()[1]) == 4


@pytest.mark.parametrize("shape", [(10, 4), (10, 2, 2)])
def test_permuted_tasks_reorder_training_and_test_alike(shape):
    x = X.reshape(shape)
    tasks = permuted_tasks(x, LABELS, x[:3], LABELS[:3], num_tasks=3, random_state=0)
    assert np.array_equal(tasks[0].train()[0], x)
    for task in tasks:
        (train, labels), (test, _) = task.train(), task.test()
        assert train.shape == shape and np.array_equal(train[:3], test) and np.array_equal(labels, LABELS)
        assert np.array_equal(np.sort(train.reshape(10, 4), 1), X)
    assert not np.array_equal(tasks[1].train()[0], tasks[2].train()[0])
    again = permuted_tasks(x, LABELS, x[:3], LABELS[:3], num_tasks=3, random_state=0)
    assert np.array_equal(again[2].train()[0], tasks[2].train()[0])


def test_domain_tasks_come_in_order_and_hold_rows_out():
    domain = np.repeat(["north", "east"], 5)
    tasks = domain_tasks(X, X[:, 0], domain, test_size=0.4, random_state=0)
    assert [task.name for task in tasks] == ["north", "east"]
    for task, rows in zip(tasks, (X[:5], X[5:]), strict=True):
        (train, _), (test, _) = task.train(), task.test()
        assert len(test) == 2 and np.array_equal(np.sort(np.concatenate([train, test])[:, 0]), rows[:, 0])


def test_tensors_and_tables_are_views_too():
    frame = pd.DataFrame(X, columns=list("pqrs"))
    task = split_tasks(frame, pd.Series(LABELS), frame, pd.Series(LABELS), num_tasks=5)[0]
    assert list(task.train()[0].columns) == list("pqrs") and set(task.train()[1]) == {"a"}
    turned = permuted_tasks(frame, LABELS, frame, LABELS, num_tasks=2, random_state=0)[1].train()[0]
    assert list(turned.columns) == list("pqrs") and not np.array_equal(turned.to_numpy(), X)
    images = torch.arange(40.0).reshape(10, 1, 2, 2)
    task = split_tasks(images, torch.arange(10) % 2, images, torch.arange(10) % 2, num_tasks=2)[1]
    assert torch.equal(task.train()[0], images[1::2])
    turned = permuted_tasks(images, LABELS, images, LABELS, num_tasks=2, random_state=0)[1].train()[0]
    assert turned.shape == images.shape and turned.sum() == images.sum()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: split_tasks(X, LABELS, X, LABELS), "`num_tasks` or `groups` must be given"),
        (lambda: split_tasks(X, LABELS, X, LABELS, num_tasks=2, groups=[["a"]]), "and not both"),
        (lambda: split_tasks(X, LABELS, X, LABELS, num_tasks=6), "at most the 5 classes"),
        (lambda: split_tasks(X, LABELS, X, LABELS, groups=[["a", "z"]]), r"\['z'\] are not among"),
        (lambda: split_tasks(X, X[:, 0] + 0.5, X, X[:, 0], num_tasks=2), "`y` must be labels"),
        (lambda: split_tasks(X, LABELS[:3], X, LABELS, num_tasks=2), "same number of rows"),
        (lambda: permuted_tasks(X, LABELS, X, LABELS, num_tasks=0), "`num_tasks`"),
        (lambda: domain_tasks(X, LABELS, [0] * 9 + [1]), "`domain` '1' must have at least 2 rows"),
        (lambda: domain_tasks(X, LABELS, [0] * 10, test_size=1.5), "`test_size`"),
    ],
)
def test_what_does_not_fit_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()
