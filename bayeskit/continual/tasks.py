"""Tasks: views of one data set by its classes, its domains, or the order of its inputs' columns.

split     task t has the classes of its group            (class-incremental: the labels differ)
permuted  task t has all rows, the columns in an order of its own
domain    task t has the rows of one station, machine, year ... (domain-incremental: the labels are shared)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import type_of_target

from bayeskit.core import checks
from bayeskit.core.inputs import take


@dataclass(frozen=True, eq=False)
class Task:
    """Training and test rows of one task, as a view of data that many tasks share.

    Args:
        name: Its name in figures.
        X: Inputs (n, *input_shape), array, tensor or DataFrame, of which the task takes `rows`.
        y: Targets (n,) or (n, k).
        X_test: Inputs of the test set.
        y_test: Its targets.
        rows: Positions of the training rows, or None for all.
        test_rows: Positions of the test rows, or None for all.
        columns: The order in which the flattened features of an input are taken, or None as they are.

    Examples:
        >>> X, y = np.arange(6.0).reshape(3, 2), np.array([0, 1, 0])
        >>> task = Task("zeros", X, y, X, y, rows=np.array([0, 2]), columns=np.array([1, 0]))
        >>> task.train()[0].tolist(), task.train()[1].tolist(), len(task.test()[1])
        ([[1.0, 0.0], [5.0, 4.0]], [0, 0], 3)
    """

    name: str
    X: Any
    y: Any
    X_test: Any
    y_test: Any
    rows: np.ndarray | None = None
    test_rows: np.ndarray | None = None
    columns: np.ndarray | None = None

    def train(self) -> tuple[Any, Any]:
        """Inputs and targets to learn from."""
        return self._ordered(_take(self.X, self.rows)), _take(self.y, self.rows)

    def test(self) -> tuple[Any, Any]:
        """Inputs and targets to be scored on."""
        return self._ordered(_take(self.X_test, self.test_rows)), _take(self.y_test, self.test_rows)

    def _ordered(self, x: Any) -> Any:
        if self.columns is None:
            return x
        if hasattr(x, "iloc"):
            return x.iloc[:, self.columns].set_axis(x.columns, axis=1)
        return x.reshape(len(x), -1)[:, self.columns].reshape(x.shape)


def split_tasks(
    X: Any, y: Any, X_test: Any, y_test: Any, *, num_tasks: int | None = None, groups: Sequence[Sequence] | None = None
) -> list[Task]:
    """One task per group of classes, such as the five pairs of digits.

    Args:
        X: Training inputs (n, *input_shape).
        y: Labels (n,).
        X_test: Test inputs.
        y_test: Their labels.
        num_tasks: Number of groups that the sorted labels are cut into.
        groups: The labels of each task, instead.

    Raises:
        ValueError: Neither or both of `num_tasks` and `groups` are given, a label of a group is not in `y`, or `y` are
            not labels.

    References:
        Zenke et al. (2017), Continual learning through synaptic intelligence, section 5.1.

    >>> X, y = np.zeros((4, 2)), np.array(["a", "b", "c", "d"])
    >>> [task.name for task in split_tasks(X, y, X, y, num_tasks=2)]
    ['a, b', 'c, d']
    """
    _same_rows(X, y, X_test, y_test)
    if type_of_target(y).startswith("continuous"):
        raise ValueError("`y` must be labels, of which each task has some; for numbers use `domain_tasks`")
    labels = np.unique(np.asarray(y))
    if (groups is None) == (num_tasks is None):
        raise ValueError("`num_tasks` or `groups` must be given, and not both")
    if num_tasks is not None:
        checks.positive(num_tasks, name="num_tasks", integer=True)
        if num_tasks > len(labels):
            raise ValueError(f"`num_tasks` must be at most the {len(labels)} classes of `y`; got {num_tasks}")
    groups = groups or [part.tolist() for part in np.array_split(labels, num_tasks or 1)]
    unknown = np.setdiff1d([label for group in groups for label in group], labels)
    if len(unknown):
        raise ValueError(f"`groups` must have labels of `y`; {unknown.tolist()} are not among them")
    return [
        Task(", ".join(map(str, group)), X, y, X_test, y_test, rows=_where(y, group), test_rows=_where(y_test, group))
        for group in groups
    ]


def permuted_tasks(
    X: Any, y: Any, X_test: Any, y_test: Any, *, num_tasks: int = 5, random_state: Any = None
) -> list[Task]:
    """The same data with the features in another fixed order in each task; in the first task unchanged.

    Args:
        X: Training inputs (n, *input_shape), reordered over all features of an input (all pixels of an image).
        y: Targets (n,) or (n, k).
        X_test: Test inputs.
        y_test: Their targets.
        num_tasks: Number of tasks.
        random_state: Seed of the orders.

    References:
        Goodfellow et al. (2014), An empirical investigation of catastrophic forgetting, section 3.2.

    >>> X, y = np.arange(8.0).reshape(2, 4), np.array([0, 1])
    >>> tasks = permuted_tasks(X, y, X, y, num_tasks=2, random_state=0)
    >>> [sorted(task.train()[0][0].tolist()) for task in tasks] == [X[0].tolist()] * 2
    True
    """
    _same_rows(X, y, X_test, y_test)
    checks.positive(num_tasks, name="num_tasks", integer=True)
    random = check_random_state(random_state)
    size = int(np.prod(X.shape[1:]))
    orders = [None] + [random.permutation(size) for _ in range(num_tasks - 1)]
    return [Task(f"order {i}", X, y, X_test, y_test, columns=order) for i, order in enumerate(orders)]


def domain_tasks(X: Any, y: Any, domain: Any, *, test_size: float = 0.2, random_state: Any = None) -> list[Task]:
    """One task a domain (station, machine, customer, year), in the order in which the domains first come.

    Args:
        X: Inputs (n, *input_shape).
        y: Targets (n,) or (n, k).
        domain: Which domain each row is of, (n,).
        test_size: Share of each domain's rows that is held out, at least one row.
        random_state: Seed of the choice.

    Raises:
        ValueError: A domain has a single row.

    >>> X, y = np.arange(10.0)[:, None], np.arange(10.0)
    >>> tasks = domain_tasks(X, y, np.repeat(["north", "south"], 5), random_state=0)
    >>> [(task.name, len(task.train()[1]), len(task.test()[1])) for task in tasks]
    [('north', 4, 1), ('south', 4, 1)]
    """
    checks.same_length(X, y, names=("X", "y"))
    checks.same_length(X, domain, names=("X", "domain"))
    checks.fraction(test_size, name="test_size")
    random, domain = check_random_state(random_state), np.asarray(domain)
    names, first = np.unique(domain, return_index=True)
    tasks = []
    for name in names[np.argsort(first)]:
        rows = np.flatnonzero(domain == name)
        held = min(max(1, round(test_size * len(rows))), len(rows) - 1)
        if held < 1:
            raise ValueError(
                f"`domain` {str(name)!r} must have at least 2 rows, one to learn from and one to test; got 1"
            )
        test = np.sort(random.choice(rows, held, replace=False))
        tasks.append(Task(str(name), X, y, X, y, rows=np.setdiff1d(rows, test), test_rows=test))
    return tasks


def _take(table: Any, rows: np.ndarray | None) -> Any:
    return table if rows is None else take(table, rows)


def _where(y: Any, group: Sequence) -> np.ndarray:
    return np.flatnonzero(np.isin(np.asarray(y), np.asarray(list(group))))


def _same_rows(X: Any, y: Any, X_test: Any, y_test: Any) -> None:
    checks.same_length(X, y, names=("X", "y"))
    checks.same_length(X_test, y_test, names=("X_test", "y_test"))
