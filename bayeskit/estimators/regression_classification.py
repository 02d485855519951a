"""Regression and classification estimators: the coding of targets and the form of predictions."""

from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils import compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import _check_sample_weight, check_is_fitted
from torch import Tensor

from bayeskit.core import checks
from bayeskit.core.likelihood import Bernoulli, Categorical, Gaussian, Likelihood
from bayeskit.core.predictive import CategoricalPredictive, ContinuousPredictive, Predictive
from bayeskit.core.types import Data
from bayeskit.estimators.estimator import BayesEstimator, _squeeze, concatenated


def _continues(estimator: Any) -> bool:
    """Whether the posterior can be the prior of more data; raises `AttributeError` with the reason if not."""
    inference = estimator.inference_ if hasattr(estimator, "inference_") else estimator._resolve_inference(1)
    if inference.kind in ("GP posterior", "weights"):
        return True
    raise AttributeError(
        f"{type(inference).__name__} cannot continue from its posterior, so `partial_fit` is not available: "
        "fit again on all the data, or choose a method whose posterior can be its prior (a GP, or Laplace)"
    )


def _check_likelihood(estimator: Any) -> None:
    given = estimator.likelihood
    if given is not None and not isinstance(given, Likelihood):
        named = f"{given.__name__}(...)" if isinstance(given, type) else "Poisson()"
        raise TypeError(
            f"`likelihood` must be an instance of a Likelihood, such as `{named}` from bayeskit.core.likelihood, or "
            f"None; got {given!r}"
        )


class RegressionEstimator(RegressorMixin, BayesEstimator[ContinuousPredictive]):
    """Real-valued targets (or counts, under a likelihood for counts), one or several outputs."""

    _task = "regression"

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None, groups: Any = None) -> Self:
        """Infer the posterior from data.

        Args:
            X: (n, d) table: array, DataFrame or tensor; a dictionary of arrays for a network that takes several; or
                a `torch.utils.data.Dataset` of `(x, y)` pairs or of dictionaries with "labels", or a `DataLoader`.
            y: (n,) or (n, k) targets; None when `X` brings its own. With several outputs, NaN is an entry that was not
                observed; with a single one it is an error.
            sample_weight: (n,) multipliers of the log-likelihood terms.
            groups: (n,) values of any kind, equal for rows that must not be divided between training and validation
                data (a patient, a site); for methods that hold out data, and without effect on others.

        Returns:
            The estimator itself, with `posterior_`, `likelihood_`, `inference_`, `log_evidence_`, `history_` and
            `diagnostics_`.
        """
        return self._fit(X, y, sample_weight, groups=groups)

    @available_if(_continues)
    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Continue from the previous posterior; scales are those of the first call.

        With `inference=None` a Gaussian process continues by `gp.MemoryDualGP`, at a constant cost per call.

        Args:
            X: (n, d) further inputs.
            y: (n,) or (n, k) further targets, NaN as in `fit`; an output may be missing in all of them.
            sample_weight: (n,) multipliers of the log-likelihood terms.
        """
        return self._fit(X, y, sample_weight, first=not hasattr(self, "posterior_"), stream=True)

    def predict(self, X: Any, return_std: bool = False, return_cov: bool = False) -> Any:
        """The mean of an observation, with its standard deviation or joint covariance on request.

        Args:
            X: (n, d) inputs.
            return_std: Also return standard deviations, observation noise included.
            return_cov: Also return the joint covariance of the n observations, noise included.

        Returns:
            Mean (n,) or (n, k); with `return_std` also std of that shape; with `return_cov` also (n, n) or (n, n, k).

        Raises:
            RuntimeError: Both flags are set.
        """
        if return_std and return_cov:
            raise RuntimeError("At most one of `return_std` and `return_cov` can be requested")
        if return_cov:
            return self._mean_and_covariance(X)
        parts = [self._predictive(x) for x in self._chunks(X)]
        std = concatenated([p.std for p in parts]) if return_std else None  # first: it computes the mean too
        mean = concatenated([p.mean for p in parts])
        return mean if std is None else (mean, std)

    def sample_y(self, X: Any, n_samples: int = 1, random_state: Any = 0) -> np.ndarray:
        """Joint draws of observations at the rows of `X`.

        Args:
            X: (n, d) inputs.
            n_samples: Number s of draws.
            random_state: Seed.

        Returns:
            (n, s), or (n, k, s) for several outputs.
        """
        check_is_fitted(self)
        generator = self._generator(random_state)
        values = self._values(self._read_again(X))
        draws = self.likelihood_.sample(values, n_samples, generator=generator)
        scaler = self.target_scaler_
        draws = draws.reshape(*draws.shape[:2], -1)  # (s, n, k), also where the likelihood has no axis of outputs
        return _squeeze(draws.double().cpu() * scaler.scale + scaler.shift).movedim(0, -1).numpy()

    def _mean_and_covariance(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        predictive = self.predictive(X)
        n, k = len(predictive.mean), len(self.target_scaler_.scale)
        latent = self.latent(X).covariance.to_dense().double().cpu() if self.num_outputs_ == k else None
        if latent is not None:
            joint = latent.reshape(n, k, n, k).diagonal(dim1=1, dim2=3).clone()  # (n, n, k)
            joint.diagonal(dim1=0, dim2=1).add_(predictive.aleatoric.reshape(n, k).cpu().mT)
            variances = joint.diagonal(dim1=0, dim2=1).mT  # (n, k)
            if torch.allclose(variances, predictive.variance.reshape(n, k).cpu(), rtol=1e-4):
                return concatenated([predictive.mean]), _squeeze(joint).numpy()
        raise ValueError(
            f"`return_cov` needs a likelihood whose latents are the means of the outputs, and "
            f"{type(self.likelihood_).__name__} is not one; see `latent(X).covariance` for that of the latents"
        )

    def _encode(self, y: Any, *, reset: bool) -> Tensor:
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        _check_likelihood(self)
        if self.likelihood is not None and self.likelihood.has_labels:
            raise ValueError(
                f"{type(self.likelihood).__name__} is a likelihood for labels: use "
                f"{type(self).__name__.replace('Regressor', 'Classifier')}"
            )
        target = checks.tensor(np.asarray(y, dtype=np.float64), name="y").reshape(len(y), -1)
        checks.finite(target if target.shape[1] == 1 else target.masked_fill(target.isnan(), 0), name="y")
        if reset or bool(target.isnan().all()):
            checks.observed(target, name="y")
        if not reset and target.shape[1] != len(self.target_scaler_.scale):
            raise ValueError(f"`y` must have {len(self.target_scaler_.scale)} outputs as before; got {target.shape[1]}")
        return target

    def _default_likelihood(self, num_outputs: int | None) -> Likelihood:
        return Gaussian()

    def _deliver(self, predictive: Predictive) -> ContinuousPredictive:
        assert isinstance(predictive, ContinuousPredictive)
        if self.likelihood_.target == "continuous":
            scaler = self.target_scaler_
            predictive = predictive.affine(scaler.shift.to(self.device_), scaler.scale.to(self.device_))
        return predictive.squeeze() if len(self.target_scaler_.scale) == 1 else predictive

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


class ClassificationEstimator(ClassifierMixin, BayesEstimator[CategoricalPredictive]):
    """Labels of any kind: strings, integers, booleans."""

    _task = "classification"
    class_weight: Any

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None, groups: Any = None) -> Self:
        """Infer the posterior from data.

        Args:
            X: (n, d) table: array, DataFrame or tensor; a dictionary of arrays for a network that takes several; or
                a `torch.utils.data.Dataset` of `(x, y)` pairs or of dictionaries with "labels", or a `DataLoader`.
            y: (n,) labels; None when `X` brings its own.
            sample_weight: (n,) multipliers of the log-likelihood terms.
            groups: (n,) values of any kind, equal for rows that must not be divided between training and validation
                data (a patient, a site); for methods that hold out data, and without effect on others.

        Returns:
            The estimator itself, with `classes_`, `posterior_`, `likelihood_`, `inference_`, `log_evidence_`,
            `history_` and `diagnostics_`.
        """
        self._given_classes = None
        return self._fit(X, y, sample_weight, groups=groups)

    @available_if(_continues)
    def partial_fit(self, X: Any, y: Any = None, classes: Any = None, sample_weight: Any = None) -> Self:
        """Continue from the previous posterior; scales are those of the first call.

        With `inference=None` a Gaussian process continues by `gp.MemoryDualGP`, at a constant cost per call.

        Args:
            X: (n, d) further inputs.
            y: (n,) further labels.
            classes: All labels of all calls; required in the first call.
            sample_weight: (n,) multipliers of the log-likelihood terms.
        """
        first = not hasattr(self, "posterior_")
        if first and classes is None:
            raise ValueError("`classes` must be passed on the first call to partial_fit: the labels of all calls")
        if not first and classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(
                f"`classes` must be the same as in the first call, {self.classes_.tolist()}; got {classes}"
            )
        self._given_classes = classes if first else self.classes_
        return self._fit(X, y, sample_weight, first=first, stream=True)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label at each row of `X`, (n,)."""
        check_is_fitted(self)
        return self.classes_[self.predict_proba(X).argmax(1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Class probabilities (n, c), in the order of `classes_`."""
        parts = [self._predictive(x) for x in self._chunks(X)]
        return concatenated([p.probs for p in parts])

    def _weighted(self, y: Any, sample_weight: Any) -> Any:
        """Case weights times those of the classes."""
        if self.class_weight is None or y is None:
            return sample_weight
        return _check_sample_weight(sample_weight, y, dtype=np.float64) * compute_sample_weight(self.class_weight, y)

    def _data(self, X: Any, y: Any, sample_weight: Any, noise_variance: Any = None) -> Data:
        return super()._data(X, y, self._weighted(y, sample_weight), noise_variance)

    def _fit(self, X: Any, y: Any, sample_weight: Any, **settings: Any) -> Self:
        return super()._fit(X, y, self._weighted(y, sample_weight), **settings)

    def _encode(self, y: Any, *, reset: bool) -> Tensor:
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        _check_likelihood(self)
        if reset:
            self.classes_ = np.unique(y if self._given_classes is None else self._given_classes)
            if len(self.classes_) < 2:
                raise ValueError(f"`y` must have at least 2 classes; got 1 class, {self.classes_.tolist()[0]!r}")
            known = getattr(self.likelihood, "num_classes", None)
            if known is not None and len(self.classes_) > known:
                raise ValueError(
                    f"`num_classes` of the likelihood is {known}, `y` has {len(self.classes_)} classes: "
                    f"use `{type(self.likelihood).__name__}({len(self.classes_)})`"
                )
        checks.known_labels(y, self.classes_)
        return torch.tensor(np.searchsorted(self.classes_, y), dtype=torch.long)

    def _default_likelihood(self, num_outputs: int | None) -> Likelihood:
        classes = len(self.classes_)
        return Bernoulli() if classes == 2 and num_outputs != 2 else Categorical(classes)

    def _deliver(self, predictive: Predictive) -> CategoricalPredictive:
        assert isinstance(predictive, CategoricalPredictive)
        log_probs = predictive.log_probs.double().log_softmax(-1)  # float32 sums to one only to 1e-7
        return replace(
            predictive,
            log_probs=log_probs,
            expected_entropy=predictive.expected_entropy.double(),
            classes=self.classes_,
        )
