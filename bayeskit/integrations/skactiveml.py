"""Estimators for the query strategies of scikit-activeml, which fit on the labeled data only.

classifier = BayesianClassifier(BNNClassifier(), classes=[0, 1])
GreedyBALD(sample_predictions_method_name="sample_proba").query(X, y, classifier)    # y is NaN where unlabeled
ExpectedModelVarianceReduction().query(X, y, BayesianRegressor(GPRegressor()))

Missing labels are NaN, or `missing_label`.
"""

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from bayeskit.integrations import baal
from bayeskit.integrations.optional_import import needed

with needed("scikit-activeml", extra="skactiveml"):
    from skactiveml.classifier import SklearnClassifier
    from skactiveml.regressor import SklearnNormalRegressor


class BayesianClassifier(SklearnClassifier):
    """scikit-activeml's `SklearnClassifier` around a classifier of this library, with sampled probabilities.

    Args:
        estimator: GPClassifier or BNNClassifier.
        classes: All possible labels.
        missing_label: The value of a missing label.
        cost_matrix: Costs of wrong labels (c, c), or None.
        random_state: Seed.

    Examples:
        >>> from bayeskit import GPClassifier
        >>> x, y = np.linspace(-1, 1, 8)[:, None], np.array([0, 0, np.nan, np.nan, np.nan, np.nan, 1, 1])
        >>> model = BayesianClassifier(GPClassifier(random_state=0), classes=[0, 1]).fit(x, y)
        >>> model.sample_proba(x, n_samples=5).shape
        (5, 8, 2)
    """

    def __init__(
        self,
        estimator: Any,
        classes: Any = None,
        missing_label: Any = np.nan,
        cost_matrix: Any = None,
        random_state=None,
    ):
        super().__init__(
            estimator,
            classes=classes,
            missing_label=missing_label,
            cost_matrix=cost_matrix,
            random_state=random_state,
        )

    def sample_proba(self, X: Any, n_samples: int = 10, random_state: Any = None) -> np.ndarray:
        """Class probabilities under functions sampled from the posterior.

        Args:
            X: Inputs (n, d).
            n_samples: s, how many functions.
            random_state: Seed; None for the model's.

        Returns:
            (s, n, c), with probability zero for classes without labels. If no estimator could be fitted (no labels, or
            those of one class), each sample is `predict_proba`, which scikit-activeml then takes from the counts.

        Raises:
            NotFittedError: `fit` was not called.
        """
        check_is_fitted(self)
        if not self.is_fitted_:
            return np.repeat(self.predict_proba(X)[None], n_samples, axis=0)
        seed = self.random_state if random_state is None else random_state
        drawn = baal.draws(self.estimator_, np.asarray(X), iterations=n_samples, random_state=seed or 0)
        classes = np.asarray(self.classes_)
        known = np.searchsorted(classes, self.estimator_.classes_)
        out = np.zeros((n_samples, len(drawn), len(classes)))
        out[:, :, known] = drawn.transpose(2, 0, 1)
        return out


class BayesianRegressor(SklearnNormalRegressor):
    """scikit-activeml's `SklearnNormalRegressor`, around a regressor of this library.

    Args:
        estimator: GPRegressor or BNNRegressor.
        missing_label: The value of a missing target.
        random_state: Seed.
    """
