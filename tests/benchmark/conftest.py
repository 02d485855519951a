"""Fast stand-ins for methods: closed forms of scikit-learn with the interface of an estimator."""

import time

import matplotlib as mpl
import pytest
import torch
from linear_operator import to_linear_operator
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.linear_model import BayesianRidge, LogisticRegression

from bayeskit.core.inference import Evidence
from bayeskit.core.posterior import GaussianValues
from bayeskit.core.predictive import CategoricalPredictive, GaussianPredictive


class Ridge(RegressorMixin, BaseEstimator):
    """Bayesian linear regression whose standard deviations are multiplied by `width`."""

    fits = 0

    def __init__(self, width=1.0, seconds=0.0, error=None, random_state=None):
        self.width, self.seconds, self.error, self.random_state = width, seconds, error, random_state

    def fit(self, X, y):
        type(self).fits += 1
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        self.center_, self.scale_ = X.mean(0), X.std(0) + 1e-12
        self.model_ = BayesianRidge().fit((X - self.center_) / self.scale_, y)
        self.log_evidence_ = Evidence(-float(len(y)), "exact")
        return self

    def latent(self, X):
        z = (X - self.center_) / self.scale_
        covariance = torch.as_tensor(z @ self.model_.sigma_ @ z.T) * self.width**2
        return GaussianValues(torch.as_tensor(self.model_.predict(z))[:, None], to_linear_operator(covariance))

    def predictive(self, X):
        noise = torch.tensor([self.width**2 / self.model_.alpha_], dtype=torch.float64)
        return GaussianPredictive(self.latent(X), noise).squeeze()


class Logistic(ClassifierMixin, BaseEstimator):
    """Logistic regression; a small C gives under-confident probabilities."""

    def __init__(self, C=1.0, random_state=None):
        self.C, self.random_state = C, random_state

    def fit(self, X, y):
        self.center_, self.scale_ = X.mean(0), X.std(0) + 1e-12
        self.model_ = LogisticRegression(C=self.C, max_iter=2000).fit((X - self.center_) / self.scale_, y)
        self.classes_ = self.model_.classes_
        return self

    def predictive(self, X):
        log_probs = torch.as_tensor(self.model_.predict_log_proba((X - self.center_) / self.scale_))
        return CategoricalPredictive(log_probs, -(log_probs.exp() * log_probs).sum(-1), classes=self.classes_)


@pytest.fixture
def ridge():
    Ridge.fits = 0
    return Ridge


@pytest.fixture
def logistic():
    return Logistic


@pytest.fixture(autouse=True)
def no_window():
    with mpl.rc_context({"backend": "agg"}):
        yield
