"""Continual learning over tasks, stage by stage."""

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import clone, is_classifier
from sklearn.utils import check_random_state

from bayeskit.continual.coreset_memory import Coreset
from bayeskit.continual.sequential_update import Fold
from bayeskit.continual.task_scores import score
from bayeskit.continual.tasks import Task
from bayeskit.core.inference import Inference
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.posterior import Posterior


@dataclass(frozen=True, eq=False)
class Stage:
    """The state after one more task.

    Args:
        number: Of the task just learned, from 0.
        task: That task.
        learner: A fitted estimator (or a `Fold`) at this stage, not changed by later ones.
        scores: By name, one number per task, later tasks included: (t,).
        seconds: Time of learning the task, without the scores.
    """

    number: int
    task: Task
    learner: Any
    scores: dict[str, np.ndarray]
    seconds: float


def run(
    learner: Any,
    tasks: Iterable[Task],
    *,
    prior: Posterior | None = None,
    likelihood: Likelihood | None = None,
    memory: Coreset | None = None,
    scoring: Callable[[Any, Any, Any], dict[str, float]] = score,
    random_state: Any = None,
) -> Iterator[Stage]:
    """Learn tasks in sequence, the previous posterior being the next prior, and score each stage on all tasks.

    The estimator is cloned and not changed. Stages are computed lazily, so that a loop may stop anywhere. Past data are
    not revisited, except what `memory` holds.

    Args:
        learner: An estimator with `partial_fit` (its method's posterior must be a valid prior: a GP, or a
            Gaussian over weights), or an `Inference` with `prior` and `likelihood`.
        tasks: In the order of learning.
        prior: Distribution of the function before any data, for an `Inference`.
        likelihood: Distribution of the observations given the function, for an `Inference`.
        memory: The coreset of each task to be kept, or None.
        scoring: From (learner, inputs, targets) to numbers by name; see `continual.task_scores.score`.
        random_state: Seed of the coresets.

    Yields:
        A `Stage` per task.

    Raises:
        TypeError: The learner cannot continue from its posterior, `prior` and `likelihood` are missing, a task is no
            `Task`, or `memory` is no `Coreset`.
        ValueError: There are no tasks.

    References:
        Nguyen et al. (2018), Variational continual learning, algorithm 1.

    Examples:
        >>> from sklearn.datasets import load_iris
        >>> from bayeskit import BNNClassifier, bnn, continual
        >>> X, y = load_iris(return_X_y=True)
        >>> tasks = continual.split_tasks(X, y, X, y, num_tasks=3)
        >>> model = BNNClassifier(inference=bnn.Laplace(), random_state=0)
        >>> stages = list(continual.run(model, tasks, memory=continual.Coreset(10), random_state=0))
        >>> continual.scores(stages).shape
        (3, 3)
    """
    tasks = list(tasks)
    if not tasks:
        raise ValueError("`tasks` must have at least one task; got none")
    for task in tasks:
        if not isinstance(task, Task):
            raise TypeError(
                f"`tasks` must hold `continual.Task`s, by `split_tasks`, `permuted_tasks`, `domain_tasks` or "
                f"`Task(name, X, y, X_test, y_test)`; got {type(task).__name__}"
            )
    if memory is not None and not isinstance(memory, Coreset):
        raise TypeError(f"`memory` must be a `continual.Coreset`, such as Coreset(20); got {memory!r}")
    learner = _start(learner, prior, likelihood)
    return _stages(learner, tasks, memory, scoring, check_random_state(random_state).randint(2**31 - 1))


def scores(stages: Iterable[Stage], name: str | None = None) -> np.ndarray:
    """The matrix of a score: row i after task i was learned, column j on the test data of task j.

    Args:
        stages: What `run` yielded.
        name: Of the score; the first one if None.

    Returns:
        (stages, tasks).

    Raises:
        ValueError: No stage, or no score of that name.
    """
    rows = [stage.scores for stage in stages]
    if not rows:
        raise ValueError("`stages` must have at least one stage; got none")
    name = next(iter(rows[0])) if name is None else name
    if name not in rows[0]:
        raise ValueError(f"`name` must be one of {list(rows[0])}; got {name!r}")
    return np.stack([row[name] for row in rows])


def _start(learner: Any, prior: Posterior | None, likelihood: Likelihood | None) -> Any:
    if isinstance(learner, Inference):
        if prior is None or likelihood is None:
            raise TypeError("An `Inference` needs `prior` and `likelihood`; or give an estimator that holds them")
        return Fold(learner, prior, likelihood)
    try:
        learner.partial_fit  # noqa: B018 - where a method cannot continue, its own error says why
    except AttributeError as error:
        raise TypeError(f"`learner` must be able to continue from its posterior: {error.__cause__ or error}") from error
    return clone(learner)


def _stages(learner: Any, tasks: list[Task], memory: Coreset | None, scoring: Callable, seed: int) -> Iterator[Stage]:
    tests, random = [task.test() for task in tasks], np.random.default_rng(seed)
    labels = {"classes": _labels(tasks)} if not isinstance(learner, Fold) and is_classifier(learner) else {}
    kept: list[tuple[Any, Any]] = []
    for number, task in enumerate(tasks):
        started = time.perf_counter()
        new = task.train()
        if memory is not None:
            new, coreset = memory.divide(*new, random)
            kept.append(coreset)
        learner.partial_fit(*new, **labels)
        predictor = copy.copy(learner)  # a fit gives a learner new attributes, and changes none of the old
        if kept:
            predictor.partial_fit(*(_joined(parts) for parts in zip(*kept, strict=True)), **labels)
        seconds = time.perf_counter() - started
        found = [scoring(predictor, *test) for test in tests]
        yield Stage(number, task, predictor, {name: np.array([f[name] for f in found]) for name in found[0]}, seconds)


def _labels(tasks: list[Task]) -> np.ndarray:
    """The labels of all tasks."""
    return np.unique(
        np.concatenate([np.unique(np.asarray(y)) for task in tasks for _, y in (task.train(), task.test())])
    )


def _joined(parts: tuple[Any, ...]) -> Any:
    """The data of several tasks, concatenated."""
    if hasattr(parts[0], "iloc"):
        import pandas as pd

        return pd.concat(parts)
    if hasattr(parts[0], "new_empty"):
        import torch

        return torch.cat(parts)
    return np.concatenate(parts)
