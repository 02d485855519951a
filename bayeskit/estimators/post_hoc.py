"""Post-hoc wrappers of a fitted estimator: the shared part of `Calibrated` and `Conformal`.

The predictive distribution is calibrated on held-out data: either part of the data is held out of the fit here, or the
base estimator is already fitted, as `FrozenEstimator(model)`, and none of the data given was used for its fit.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, MetaEstimatorMixin, clone, is_classifier
from sklearn.frozen import FrozenEstimator
from sklearn.utils import check_random_state, column_or_1d, get_tags, indexable
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import _check_sample_weight, _num_samples, check_is_fitted
from torch import Tensor

from bayeskit.core import checks
from bayeskit.core.inputs import take
from bayeskit.core.predictive import CategoricalPredictive, ContinuousPredictive, Predictive
from bayeskit.estimators import input_validation
from bayeskit.estimators.estimator import PREDICT_ROWS, concatenated
from bayeskit.estimators.posterior_predictive import posterior_predictive


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out data, and the predictions for it.

    Args:
        predictive: Predictive distribution of y at the m held-out data points.
        y: (m,) or (m, k) numbers, NaN for what was not observed, or (m,) labels.
        weights: (m,) case weights, float64.
    """

    predictive: Predictive
    y: Any
    weights: Tensor


def classifies(wrapper: Any) -> bool:
    """Whether the base estimator is a classifier."""
    return is_classifier(wrapper.estimator)


class PostHocEstimator(MetaEstimatorMixin, BaseEstimator, ABC):
    """A base estimator with a correction of its predictive distribution, learned on held-out data."""

    estimator: Any
    calibration_size: float
    random_state: Any
    estimator_: Any

    @abstractmethod
    def _learn(self, held_out: list[HeldOut]) -> None:
        """Learn from held-out data; sets fitted attributes."""

    @abstractmethod
    def _corrected(self, predictive: Predictive) -> Predictive:
        """The predictive distribution, given that of the base estimator."""

    def _fit(self, X: Any, y: Any, sample_weight: Any, *, cv: Any) -> Self:
        X, y, weights = self._read(X, y, sample_weight)
        present = np.flatnonzero(weights)  # weight zero leaves a data point out
        weighted = None if sample_weight is None else weights

        def fitted_to(rows: np.ndarray) -> Any:
            return _fitted(self.estimator, X, y, weighted, rows)

        def held_out_of(fit: Any, rows: np.ndarray) -> HeldOut:
            return _held_out(fit, take(X, rows), y[rows], torch.as_tensor(weights[rows]))

        if isinstance(self.estimator, FrozenEstimator):
            check_is_fitted(self.estimator)
            fitted = self.estimator
            held_out = [held_out_of(fitted, present)]
        elif cv is None:
            train, rest = (present[rows] for rows in self._split(y[present]))
            fitted = fitted_to(train)
            held_out = [held_out_of(fitted, rest)]
        else:
            from sklearn.model_selection import check_cv

            folds: Any = check_cv(cv, y, classifier=classifies(self))
            pairs = [[rows[weights[rows] > 0] for rows in pair] for pair in folds.split(np.empty(len(y)), y)]
            held_out = [held_out_of(fitted_to(train), rest) for train, rest in pairs]
            fitted = fitted_to(present)
        if classifies(self):
            self.classes_ = fitted.classes_
        self._learn(held_out)
        self.estimator_ = fitted
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(fitted, name):
                setattr(self, name, getattr(fitted, name))
        return self

    def predictive(self, X: Any) -> Any:
        """The predictive distribution at each row of `X`, in the target's units; a single output is squeezed.

        Args:
            X: (n, d) inputs, or whatever was given to `fit`.
        """
        check_is_fitted(self, "estimator_")
        return self._corrected(posterior_predictive(self.estimator_, X))

    def predict(self, X: Any) -> np.ndarray:
        """The mean of an observation, (n,) or (n, k), or the most probable label, (n,)."""
        if classifies(self):
            p = self.predict_proba(X)  # before `classes_` is read: it raises where nothing is fitted
            return self.classes_[p.argmax(1)]
        return concatenated([part.mean for part in self._parts(X)])

    @available_if(classifies)
    def predict_proba(self, X: Any) -> np.ndarray:
        """Class probabilities (n, c), in the order of `classes_`."""
        return concatenated([part.probs for part in self._parts(X)])

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy of the labels, or R squared of the means."""
        from sklearn.metrics import accuracy_score, r2_score

        metric = accuracy_score if classifies(self) else r2_score
        return float(metric(y, self.predict(X), sample_weight=sample_weight))

    def _parts(self, X: Any) -> Iterator[Any]:
        """Predictive distributions of some thousand inputs at a time, which bounds the memory."""
        check_is_fitted(self, "estimator_")
        X, _ = input_validation.split_dataset(X, None)
        for start in range(0, max(_num_samples(X), 1), PREDICT_ROWS):
            few = _num_samples(X) <= PREDICT_ROWS
            yield self.predictive(X if few else take(X, np.arange(start, min(start + PREDICT_ROWS, _num_samples(X)))))

    def _read(self, X: Any, y: Any, sample_weight: Any) -> tuple[Any, np.ndarray, np.ndarray]:
        """Inputs unchanged, targets and weights as arrays."""
        X, y = input_validation.split_dataset(X, y)
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        y = np.asarray(input_validation.array(y))
        X, y = indexable(X, y)
        if classifies(self):
            check_classification_targets(y)
            y = column_or_1d(y, warn=True)
        elif y.dtype.kind == "O":
            type_of_target(y, input_name="y", raise_unknown=True)
        empty = np.empty((len(y), 1))
        return X, y, _check_sample_weight(sample_weight, empty, dtype=np.float64, ensure_non_negative=True)

    def _split(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Training and held-out rows, stratified by class; a class of a single row is for training."""
        checks.fraction(self.calibration_size, name="calibration_size")
        shuffled = check_random_state(self.random_state).permutation(len(y))
        labels = np.unique(y, return_inverse=True)[1] if classifies(self) else np.zeros(len(y), dtype=int)
        groups = [shuffled[labels[shuffled] == label] for label in range(labels.max(initial=0) + 1)]
        held = [group[: min(round(self.calibration_size * len(group)), len(group) - 1)] for group in groups]
        rest = np.sort(np.concatenate(held))
        if not len(rest):
            raise ValueError(
                f"`calibration_size` {self.calibration_size:g} of n_samples = {len(y)} leaves no row to calibrate on: "
                "give more rows or a larger share"
            )
        return np.setdiff1d(np.arange(len(y)), rest), rest

    def __sklearn_tags__(self) -> Any:
        """The tags of the base estimator."""
        tags, inside = super().__sklearn_tags__(), get_tags(self.estimator)
        tags.estimator_type, tags.classifier_tags = inside.estimator_type, inside.classifier_tags
        tags.regressor_tags, tags.target_tags = inside.regressor_tags, inside.target_tags
        tags.input_tags = inside.input_tags
        return tags


def _fitted(estimator: Any, X: Any, y: np.ndarray, weights: np.ndarray | None, rows: np.ndarray) -> Any:
    weighted = {} if weights is None else {"sample_weight": weights[rows]}
    fresh: Any = clone(estimator)
    return fresh.fit(take(X, rows), y[rows], **weighted)


def _held_out(fitted: Any, X: Any, y: np.ndarray, weights: Tensor) -> HeldOut:
    predictive = posterior_predictive(fitted, X)
    if isinstance(predictive, CategoricalPredictive):
        return HeldOut(predictive, y, weights)
    assert isinstance(predictive, ContinuousPredictive)
    shape = predictive.mean.shape
    target = checks.tensor(y, name="y", like=predictive.mean)
    if target.numel() != shape.numel():
        raise ValueError(f"`y` must have shape {tuple(shape)} like the predictions; got {tuple(y.shape)}")
    target = target.reshape(shape)
    checks.finite(target if target.ndim == 1 else target.nan_to_num(0.0, None, None), name="y")
    return HeldOut(predictive, target, weights)
