"""An estimator around another: what `Calibrated` and `Conformal` share.

    rows -> some fit the estimator inside, the others say how far its law of y can be believed

The law inside is never trusted on rows it was fitted to: rows are held out of the fit here, or the estimator comes
fitted, as `FrozenEstimator(model)`, and all the rows given are ones that it has not seen.
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
from bayeskit.estimators.estimator import PREDICT_ROWS
from bayeskit.estimators.posterior_predictive import law


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Rows that a fit has not seen, and what it says of them.

    Args:
        law: Law of y at the m rows.
        y: (m,) or (m, k) numbers, NaN for what was not observed, or (m,) labels.
        weights: (m,) case weights, float64.
    """

    law: Predictive
    y: Any
    weights: Tensor


def classifies(around: Any) -> bool:
    """Whether the estimator inside is a classifier."""
    return is_classifier(around.estimator)


class Around(MetaEstimatorMixin, BaseEstimator, ABC):
    """A fitted estimator whose law of y passes through something learnt on rows that it has not seen."""

    estimator: Any
    calibration_size: float
    random_state: Any
    estimator_: Any

    @abstractmethod
    def _learn(self, held_out: list[HeldOut]) -> None:
        """Learn from rows held out of the fit; sets fitted attributes."""

    @abstractmethod
    def _said(self, inside: Predictive) -> Predictive:
        """The law delivered, given that of the estimator inside."""

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit the estimator inside on some rows and learn from the others; `FrozenEstimator(model)` is not fitted.

        Args:
            X: (n, d) table: array, DataFrame or tensor; or a `torch.utils.data.Dataset` of `(x, y)` pairs.
            y: (n,) or (n, k) numbers, NaN of several outputs for what was not observed; or (n,) labels.
            sample_weight: (n,) non-negative weights, handed to the estimator inside; a row of weight zero is left out.
        """
        return self._fit(X, y, sample_weight, cv=None)

    def _fit(self, X: Any, y: Any, sample_weight: Any, *, cv: Any) -> Self:
        X, y, weights = self._read(X, y, sample_weight)
        present = np.flatnonzero(weights)  # a row of no weight is a row that is not there
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
        """The law of an observation at each row of `X`, in the target's units; a single output is squeezed.

        Args:
            X: (n, d) inputs, or whatever was given to `fit`.
        """
        check_is_fitted(self, "estimator_")
        return self._said(law(self.estimator_, X))

    def predict(self, X: Any) -> np.ndarray:
        """The mean of an observation, (n,) or (n, k), or the most probable label, (n,)."""
        if classifies(self):
            p = self.predict_proba(X)  # before `classes_` is asked for: it says what is not fitted
            return self.classes_[p.argmax(1)]
        return _numpy([part.mean for part in self._parts(X)])

    @available_if(classifies)
    def predict_proba(self, X: Any) -> np.ndarray:
        """Class probabilities (n, c), in the order of `classes_`."""
        return _numpy([part.probs for part in self._parts(X)])

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy of the labels, or R squared of the means."""
        from sklearn.metrics import accuracy_score, r2_score

        judge = accuracy_score if classifies(self) else r2_score
        return float(judge(y, self.predict(X), sample_weight=sample_weight))

    def _parts(self, X: Any) -> Iterator[Any]:
        """Laws of some thousand rows at a time, so that memory does not grow with the number of rows."""
        check_is_fitted(self, "estimator_")
        X, _ = input_validation.split_dataset(X, None)
        for start in range(0, max(_num_samples(X), 1), PREDICT_ROWS):
            few = _num_samples(X) <= PREDICT_ROWS
            yield self.predictive(X if few else take(X, np.arange(start, min(start + PREDICT_ROWS, _num_samples(X)))))

    def _read(self, X: Any, y: Any, sample_weight: Any) -> tuple[Any, np.ndarray, np.ndarray]:
        """Inputs as they came, targets and weights as arrays."""
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
        """Rows to fit and rows to hold out, each class in proportion; a class of one row is all for the fit."""
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
        """What the estimator inside says of itself."""
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
    said = law(fitted, X)
    if isinstance(said, CategoricalPredictive):
        return HeldOut(said, y, weights)
    assert isinstance(said, ContinuousPredictive)
    target = checks.tensor(y, name="y", like=said.mean)
    if target.numel() != said.mean.numel():
        raise ValueError(f"`y` must have shape {tuple(said.mean.shape)} like the predictions; got {tuple(y.shape)}")
    target = target.reshape(said.mean.shape)
    checks.finite(target if target.ndim == 1 else target.nan_to_num(0.0, None, None), name="y")
    return HeldOut(said, target, weights)


def _numpy(parts: list[Tensor]) -> np.ndarray:
    return torch.cat([part.double().cpu() for part in parts]).numpy()
