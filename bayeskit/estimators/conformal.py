"""Conformal prediction intervals and sets around any predictive distribution."""

import math
from typing import Any, Self

import numpy as np
import torch
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from bayeskit.core import checks
from bayeskit.core.predictive import CategoricalPredictive, ContinuousPredictive, Predictive
from bayeskit.estimators.post_hoc import HeldOut, PostHocEstimator, classifies


def conformal_quantile(scores: Tensor, confidence: float) -> Tensor:
    """The ceil((n + 1) confidence)-th smallest of n scores.

    If n + 1 scores are exchangeable, the last one is at most this quantile of the others with probability at least
    `confidence`; without ties, with probability ceil((n + 1) confidence) / (n + 1).

    Args:
        scores: (n,) one number per data point.
        confidence: Between 0 and 1.

    Raises:
        ValueError: n is too small: the rank exceeds n, and the quantile would be infinite.

    References:
        Vovk, Gammerman and Shafer (2005), Algorithmic learning in a random world, section 2.2; as a quantile: Lei,
        G'Sell, Rinaldo, Tibshirani and Wasserman (2018), Distribution-free predictive inference for regression, section
        2.2.

    Examples:
        >>> float(conformal_quantile(torch.arange(1.0, 20.0), 0.9))  # the 18th of 19
        18.0
    """
    n, rank = len(scores), conformal_rank(len(scores), confidence)
    if rank > n:
        # ceil((n + 1) c) <= n where n >= c / (1 - c)
        needed = math.ceil(round(confidence / (1 - confidence), 9))
        raise ValueError(
            f"`confidence` {confidence:g} needs at least {needed} calibration rows and there are {n}: give more rows, "
            "a larger `calibration_size`, or a lower `confidence`"
        )
    return scores.sort().values[rank - 1]


def conformal_rank(num_rows: int, confidence: float) -> int:
    """`ceil((n + 1) confidence)`, free of the rounding of floating-point products.

    >>> conformal_rank(99, 0.9), conformal_rank(19, 0.95), conformal_rank(100, 0.9)
    (90, 19, 91)
    """
    return math.ceil(round((num_rows + 1) * confidence, 9))


class Conformal(PostHocEstimator):
    """Prediction intervals, or sets of labels, that hold a new y with at least the stated probability.

    Split conformal prediction: each held-out data point has a nonconformity score of its y under the predictive
    distribution; a y is in the interval or set of a new input if its score is at most the conformal quantile q of those
    scores. The predictive distribution itself is unchanged. With m, s its mean and standard deviation, l and h its
    central quantiles for `confidence`, and p the class probabilities:

        "split"   score |y - m| / s             interval m -+ q s
        "cqr"     score max(l - y, y - h)       interval [l - q, h + q]
        "lac"     score 1 - p_y                 labels with p_j >= 1 - q: the smallest sets on average
        "aps"     score sum of p_j > p_y        labels from the most probable down to the one whose total exceeds q:
                                                sets that grow with the ambiguity of the label and are never empty

    The guarantee is marginal: over the calibration data and the new data point, exchangeable with them. It does not
    need a correct predictive distribution; a better one gives shorter intervals. With several outputs each has its own
    interval and guarantee.

    Args:
        estimator: As in `Calibrated`; `FrozenEstimator(model)` is taken as it is.
        method: "split" or "cqr" for numbers, "lac" or "aps" for labels; None for "split" or "lac".
        confidence: Coverage probability of the interval or set.
        calibration_size: Share of the rows held out of the fit, each class in proportion.
        random_state: Seed of the choice of rows.

    Attributes:
        estimator_: The fitted base estimator.
        quantile_: q, a number, or (k,) for several outputs.
        num_calibration_: Number of calibration rows, (k,) for several outputs.
        method_: The method used.
        classes_: The labels, sorted; of a classifier.

    References:
        Lei et al. (2018), as in `conformal_quantile`; CQR: Romano, Patterson and Candès (2019), Conformalized quantile
        regression; LAC: Sadinle, Lei and Wasserman (2019), Least ambiguous set-valued classifiers with bounded error
        levels; APS: Romano, Sesia and Candès (2020), Classification with valid and adaptive coverage, without its
        randomization, so that a prediction is a function of X (and covers somewhat more).

    Examples:
        >>> from sklearn.datasets import load_diabetes
        >>> from bayeskit import GPRegressor
        >>> X, y = load_diabetes(return_X_y=True)
        >>> model = Conformal(GPRegressor(random_state=0), confidence=0.9, random_state=0).fit(X[:300], y[:300])
        >>> low, high = model.predict_interval(X[300:])
        >>> low.shape, bool((low < high).all())
        ((142,), True)
    """

    def __init__(self, estimator, method=None, *, confidence=0.95, calibration_size=0.2, random_state=None):
        self.estimator = estimator
        self.method = method
        self.confidence = confidence
        self.calibration_size = calibration_size
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit the base estimator on some rows and compute the scores of the others.

        A `FrozenEstimator(model)` is not fitted: all the rows are scored, and must be held-out data.

        Args:
            X: (n, d) table: array, DataFrame or tensor; or a `torch.utils.data.Dataset` of `(x, y)` pairs.
            y: (n,) or (n, k) numbers, NaN of several outputs for what was not observed; or (n,) labels.
            sample_weight: (n,) non-negative weights for the fit of the base estimator. The rank counts rows, whatever
                their weight, for that is what the guarantee is about; a row of weight zero is left out.

        Raises:
            ValueError: Too few rows for `confidence`, or a method unknown for this task.
        """
        options = ("lac", "aps") if classifies(self) else ("split", "cqr")
        self.method_ = options[0] if self.method is None else self.method
        checks.choice(self.method_, name="method", options=options)
        checks.fraction(self.confidence, name="confidence")
        return self._fit(X, y, sample_weight, cv=None)

    def _learn(self, held_out: list[HeldOut]) -> None:
        (rows,) = held_out
        if isinstance(rows.predictive, CategoricalPredictive):
            checks.known_labels(rows.y, self.classes_)
            codes = torch.as_tensor(np.searchsorted(self.classes_, rows.y))
            columns = [self._class_scores(rows.predictive).gather(1, codes[:, None]).squeeze(1)]
        else:
            scores, seen = (
                t.reshape(len(rows.y), -1) for t in (self._scores(rows.predictive, rows.y), ~rows.y.isnan())
            )
            columns = [column[there] for column, there in zip(scores.T, seen.T, strict=True)]
        quantiles = np.array([float(conformal_quantile(column, self.confidence)) for column in columns])
        counts = np.array([len(column) for column in columns])
        several = not classifies(self) and rows.y.ndim == 2
        self.quantile_ = quantiles if several else float(quantiles[0])
        self.num_calibration_ = counts if several else int(counts[0])

    def _corrected(self, predictive: Predictive) -> Predictive:
        return predictive

    @available_if(lambda self: not classifies(self))
    def predict_interval(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends, each (n,) or (n, k), in the target's units."""
        parts = [self._interval(part) for part in self._parts(X)]
        low, high = (torch.cat([part[end] for part in parts]).double().cpu().numpy() for end in (0, 1))
        return low, high

    @available_if(classifies)
    def predict_set(self, X: Any) -> np.ndarray:
        """Which labels are in the set of each row: (n, c) truth values, in the order of `classes_`."""
        return torch.cat([self._class_scores(part) for part in self._parts(X)]).numpy() <= self.quantile_

    def latent(self, X: Any) -> Any:
        """The joint distribution of the function of the base estimator; see its `latent`."""
        check_is_fitted(self, "estimator_")
        return self.estimator_.latent(X)

    def _scores(self, predictive: Any, y: Tensor) -> Tensor:
        """Nonconformity scores of y, (n,) or (n, k); NaN where y is."""
        if self.method_ == "split":
            return (y - predictive.mean).abs() / predictive.std
        low, high = predictive.interval(self.confidence)
        return torch.maximum(low - y, y - high)

    def _interval(self, predictive: ContinuousPredictive) -> tuple[Tensor, Tensor]:
        """All y whose score is at most q; where there is none, the point nearest to being one."""
        q = torch.as_tensor(self.quantile_, dtype=torch.float64).to(predictive.mean)
        if self.method_ == "split":
            return predictive.mean - q * predictive.std, predictive.mean + q * predictive.std
        low, high = predictive.interval(self.confidence)
        middle = (low + high) / 2
        return torch.minimum(low - q, middle), torch.maximum(high + q, middle)

    def _class_scores(self, predictive: CategoricalPredictive) -> Tensor:
        """Nonconformity scores of each label, (n, c)."""
        p = predictive.probs.double().cpu()
        if self.method_ == "lac":
            return 1 - p
        p, order = p.sort(dim=-1, descending=True, stable=True)
        before = torch.nn.functional.pad(p.cumsum(-1)[..., :-1], (1, 0))  # the label that crosses q is in the set
        return torch.empty_like(p).scatter(-1, order, before)
