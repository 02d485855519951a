"""The posterior predictive distribution of any fitted estimator."""

from inspect import signature
from typing import Any

import numpy as np
import torch
from linear_operator.operators import DiagLinearOperator
from sklearn.base import is_classifier
from sklearn.frozen import FrozenEstimator

from bayeskit.core.posterior import GaussianValues
from bayeskit.core.predictive import CategoricalPredictive, GaussianPredictive, Predictive
from bayeskit.core.predictive.categorical_predictive import entropy


def posterior_predictive(estimator: Any, X: Any) -> Predictive:
    """The predictive distribution of y at each row of `X`; that of a regressor of one output has no output axis.

    An estimator of bayeskit gives its `predictive`, also at the end of a pipeline or as the choice of a search. Any
    other classifier gives the probabilities of `predict_proba`, any other regressor the Gaussian of
    `predict(X, return_std=True)`, with no epistemic part.

    Args:
        estimator: Fitted.
        X: (n, d) inputs, or whatever the estimator takes.

    Raises:
        TypeError: The estimator has no predictive distribution.

    Examples:
        >>> from sklearn.linear_model import BayesianRidge
        >>> x = np.linspace(-1, 1, 20)[:, None]
        >>> model = BayesianRidge().fit(x, x[:, 0] + 0.1 * np.sin(50 * x[:, 0]))
        >>> posterior_predictive(model, x[:3]).std.shape
        torch.Size([3])
    """
    from sklearn.model_selection._search import BaseSearchCV
    from sklearn.pipeline import Pipeline

    if isinstance(estimator, FrozenEstimator):
        return posterior_predictive(estimator.estimator, X)
    if isinstance(estimator, BaseSearchCV):
        return posterior_predictive(estimator.best_estimator_, X)
    if isinstance(estimator, Pipeline):
        return posterior_predictive(estimator[-1], estimator[:-1].transform(X) if len(estimator) > 1 else X)
    if hasattr(estimator, "predictive"):
        return estimator.predictive(X)
    if is_classifier(estimator) and hasattr(estimator, "predict_proba"):
        log_probs = torch.as_tensor(np.asarray(estimator.predict_proba(X), dtype=float)).log()
        return CategoricalPredictive(log_probs, entropy(log_probs), classes=estimator.classes_)
    if hasattr(estimator, "predict") and "return_std" in signature(estimator.predict).parameters:
        mean, std = (torch.as_tensor(np.asarray(a, dtype=float)) for a in estimator.predict(X, return_std=True))
        columns = mean.reshape(len(mean), -1)
        values = GaussianValues(columns, DiagLinearOperator(torch.zeros(columns.numel(), dtype=columns.dtype)))
        gaussian = GaussianPredictive(values, std.reshape(columns.shape) ** 2)
        return gaussian.squeeze() if mean.ndim == 1 else gaussian
    raise TypeError(
        f"{type(estimator).__name__} has no predictive distribution: calibration takes an estimator with `predictive`, "
        "`predict_proba` or `predict(X, return_std=True)`"
    )
