"""The four estimators, and `make` that builds one for a registered method."""

from typing import Any

from bayeskit import registry
from bayeskit.estimators.base import BayesEstimator as BayesEstimator
from bayeskit.estimators.bnn import BNNClassifier as BNNClassifier
from bayeskit.estimators.bnn import BNNRegressor as BNNRegressor
from bayeskit.estimators.gp import GPClassifier as GPClassifier
from bayeskit.estimators.gp import GPRegressor as GPRegressor

_CLASSES = {
    ("gp", "regression"): GPRegressor,
    ("gp", "classification"): GPClassifier,
    ("bnn", "regression"): BNNRegressor,
    ("bnn", "classification"): BNNClassifier,
}


def make(name: str, task: registry.Task, *, random_state: Any = None, **settings: Any) -> BayesEstimator:
    """An unfitted estimator for a registered method.

    Args:
        name: A registered method, such as "sgpr" or "deep_ensemble".
        task: "regression" or "classification".
        random_state: Seed of the estimator.
        settings: Fields of the method to override, such as `num_inducing=50`.

    Raises:
        ValueError: The name is not registered, or the method cannot do the task.

    Examples:
        >>> make("laplace", "regression", random_state=0)
        BNNRegressor(inference=Laplace(), random_state=0)
    """
    if task not in registry.tasks(name):
        raise ValueError(f"{name} does not do {task}; methods that do: {', '.join(registry.names(task))}")
    estimator = _CLASSES[registry.family_of(name), task]
    return estimator(inference=registry.get(name, **settings)(), random_state=random_state)
