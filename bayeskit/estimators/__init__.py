"""The four estimators, what can stand around one, and `make` that builds one for a registered method."""

from typing import Any

from bayeskit import registry
from bayeskit.estimators.bnn_estimators import BNNClassifier as BNNClassifier
from bayeskit.estimators.bnn_estimators import BNNRegressor as BNNRegressor
from bayeskit.estimators.calibrated import Calibrated as Calibrated
from bayeskit.estimators.conformal import Conformal as Conformal
from bayeskit.estimators.estimator import BayesEstimator as BayesEstimator
from bayeskit.estimators.gp_estimators import GPClassifier as GPClassifier
from bayeskit.estimators.gp_estimators import GPRegressor as GPRegressor

_CLASSES = {
    ("gp", "regression"): GPRegressor,
    ("gp", "classification"): GPClassifier,
    ("bnn", "regression"): BNNRegressor,
    ("bnn", "classification"): BNNClassifier,
}


def make(name: str, task: registry.Task, *, random_state: Any = None, **settings: Any) -> Any:
    """An unfitted estimator for a registered method, with a calibration around it if the name says so.

    Args:
        name: A registered method, such as "sgpr" or "deep_ensemble"; "map+temperature" is the method "map" inside a
            `Calibrated`, "map+conformal" inside a `Conformal` (see `registry.POST_HOC`).
        task: "regression" or "classification".
        random_state: Seed of the estimator, and of the choice of rows to calibrate on.
        settings: Fields of the method to override, such as `num_inducing=50`.

    Raises:
        ValueError: The name is not registered, or the method cannot do the task.

    Examples:
        >>> make("laplace", "regression", random_state=0)
        BNNRegressor(inference=Laplace(), random_state=0)
        >>> make("map+conformal", "regression")
        Conformal(confidence=0.9, estimator=BNNRegressor(inference=MAP()))
    """
    method, post_hoc = registry.parts(name, task=task)
    cls = _CLASSES[registry.family_of(method), task]
    estimator: Any = cls(inference=registry.get(method, **settings)(), random_state=random_state)
    for suffix in post_hoc:
        path, options = registry.POST_HOC[suffix]
        estimator = registry.load(path)(estimator, random_state=random_state, **options)
    return estimator
