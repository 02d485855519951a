"""Recalibration of an estimator on held-out data."""

from typing import Any, Self

from bayeskit.core import checks
from bayeskit.core.predictive import Predictive
from bayeskit.estimators.post_hoc import HeldOut, PostHocEstimator, classifies
from bayeskit.estimators.recalibration import ClassIsotonic, ClassTemperature, Quantiles, Spread

_MAPS = {
    (True, "temperature"): ClassTemperature,
    (True, "isotonic"): ClassIsotonic,
    (False, "temperature"): Spread,
    (False, "isotonic"): Quantiles,
}


class Calibrated(PostHocEstimator):
    """A classifier or regressor whose predictive distribution is recalibrated on held-out data.

    `temperature` learns one number T by the log-likelihood of the held-out data: class probabilities p ^ (1 / T), or
    the variance of a number times T (one T for each output). `isotonic` learns an increasing function: of each class
    probability, or of the cdf of one number.

    Args:
        estimator: Any estimator of bayeskit, fitted or not, alone, in a pipeline or in a search; other classifiers
            with `predict_proba` and regressors with `predict(X, return_std=True)` too. It is cloned and fitted;
            `FrozenEstimator(model)` is taken as it is, and `fit` then takes held-out data alone.
        method: "temperature" or "isotonic".
        calibration_size: Share of the rows held out of the fit, each class in proportion.
        cv: None to hold rows out once; or cross-validation folds as scikit-learn takes them: the calibration then uses
            out-of-fold predictions of all rows, and the base estimator is fitted to all rows.
        random_state: Seed of the choice of rows.

    Attributes:
        estimator_: The fitted base estimator.
        calibration_: The learned map: `calibration_.temperature`, or the knots of the functions.
        classes_: The labels, sorted; of a classifier.

    References:
        Guo, Pleiss, Sun and Weinberger (2017), On calibration of modern neural networks, section 4;
        Kuleshov, Fenner and Ermon (2018), Accurate uncertainties for deep learning using calibrated regression.

    Examples:
        >>> from sklearn.datasets import load_breast_cancer
        >>> from bayeskit import BNNClassifier
        >>> X, y = load_breast_cancer(return_X_y=True)
        >>> model = Calibrated(BNNClassifier(inference="map", random_state=0), random_state=0).fit(X[:300], y[:300])
        >>> model.predict_proba(X[300:]).shape, model.score(X[300:], y[300:]) > 0.9
        ((269, 2), True)
    """

    def __init__(self, estimator, method="temperature", *, calibration_size=0.2, cv=None, random_state=None):
        self.estimator = estimator
        self.method = method
        self.calibration_size = calibration_size
        self.cv = cv
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit the base estimator on some rows and calibrate on the others; `FrozenEstimator(model)` is not fitted.

        Args:
            X: (n, d) table: array, DataFrame or tensor; or a `torch.utils.data.Dataset` of `(x, y)` pairs.
            y: (n,) or (n, k) numbers, or (n,) labels; None when `X` is a `Dataset`.
            sample_weight: (n,) non-negative multipliers of the log-likelihood terms, of the fit and of the calibration.

        Raises:
            ValueError: Too few rows, an unknown method, or a predictive distribution that the method cannot take.
        """
        checks.choice(self.method, name="method", options=("temperature", "isotonic"))
        return self._fit(X, y, sample_weight, cv=self.cv)

    def _learn(self, held_out: list[HeldOut]) -> None:
        self.calibration_ = _MAPS[classifies(self), self.method].learn(held_out)

    def _corrected(self, predictive: Predictive) -> Predictive:
        return self.calibration_(predictive)
