"""Recalibration maps of predictive distributions, each learned from held-out data.

    classes:  temperature  p_j ^ (1 / T), normalized           isotonic  one increasing function per class
    numbers:  temperature  variance times T, same mean         isotonic  an increasing function of the cdf

A temperature is one number per output: it corrects uniform over- or under-confidence, and needs little data. An
isotonic map corrects any monotone miscalibration, and needs much.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

from bayeskit.core.optimize import temperature
from bayeskit.core.predictive import (
    CategoricalPredictive,
    ContinuousPredictive,
    Predictive,
    RecalibratedPredictive,
    SqueezedPredictive,
)
from bayeskit.core.predictive.categorical_predictive import entropy
from bayeskit.estimators.post_hoc import HeldOut

_SWEEPS = 5  # coordinate ascent over several outputs at most; independent outputs converge in one


@dataclass(frozen=True, eq=False)
class ClassTemperature:
    """Class probabilities p_j ^ (1 / T), normalized.

    Args:
        temperature: T > 0; above 1 the predictions were over-confident.

    References:
        Guo, Pleiss, Sun and Weinberger (2017), On calibration of modern neural networks, section 4.2.
    """

    temperature: float

    @classmethod
    def learn(cls, held_out: list[HeldOut]) -> "ClassTemperature":
        """T by the log-likelihood of the held-out labels, under a weak prior on log T."""

        def log_likelihood(t: float) -> float:
            return sum(
                float((part.weights * cls(t)(part.predictive).log_prob(part.y).cpu()).sum()) for part in held_out
            )

        return cls(temperature(log_likelihood))

    def __call__(self, predictive: Predictive) -> CategoricalPredictive:
        """The probabilities at temperature T."""
        assert isinstance(predictive, CategoricalPredictive)
        logits = predictive.log_probs.double().clamp(min=math.log(torch.finfo(torch.float64).tiny))
        return _recalibrated(
            predictive, (logits / self.temperature).log_softmax(-1), f"temperature {self.temperature:.3g}"
        )


@dataclass(frozen=True, eq=False)
class ClassIsotonic:
    """Class probabilities through one increasing function per class, normalized (one against the rest).

    Since n data points cannot show that a class never occurs, one more, spread over the classes, is mixed in:
    (n p + 1 / c) / (n + 1).

    Args:
        stated: For each class (of two, the second alone) the probabilities where its function has a knot.
        observed: The values there, increasing.
        num_rows: n, the total weight of the held-out data.

    References:
        Zadrozny and Elkan (2002), Transforming classifier scores into accurate multiclass probability estimates.
    """

    stated: list[np.ndarray]
    observed: list[np.ndarray]
    num_rows: float

    @classmethod
    def learn(cls, held_out: list[HeldOut]) -> "ClassIsotonic":
        """Isotonic regression of the indicator of each class on its probability."""
        predictives: list[Any] = [part.predictive for part in held_out]
        probs = np.concatenate([predictive.probs.double().cpu().numpy() for predictive in predictives])
        classes = predictives[0].classes if predictives[0].classes is not None else np.arange(probs.shape[1])
        labels = np.concatenate([np.asarray(part.y) for part in held_out])
        weights = torch.cat([part.weights for part in held_out]).numpy()
        columns = [1] if len(classes) == 2 else range(len(classes))
        fits = [IsotonicRegression(out_of_bounds="clip") for _ in columns]
        for fit, j in zip(fits, columns, strict=True):
            fit.fit(probs[:, j], labels == classes[j], sample_weight=weights)
        stated, observed = [fit.X_thresholds_ for fit in fits], [fit.y_thresholds_ for fit in fits]
        return cls(stated, observed, float(weights.sum()))

    def __call__(self, predictive: Predictive) -> CategoricalPredictive:
        """The probabilities after the isotonic functions."""
        assert isinstance(predictive, CategoricalPredictive)
        p = predictive.probs.double().cpu().numpy()
        if p.shape[1] == 2:
            second = np.interp(p[:, 1], self.stated[0], self.observed[0])
            p = np.stack([1 - second, second], -1)
        else:
            pairs = enumerate(zip(self.stated, self.observed, strict=True))
            p = np.stack([np.interp(p[:, j], knots, values) for j, (knots, values) in pairs], -1)
            total = p.sum(1, keepdims=True)
            p = np.where(total > 0, p / np.where(total > 0, total, 1), 1 / p.shape[1])
        p = (self.num_rows * p + 1 / p.shape[1]) / (self.num_rows + 1)
        return _recalibrated(predictive, torch.as_tensor(p).to(predictive.log_probs.device).log(), "isotonic")


@dataclass(frozen=True, eq=False)
class Spread:
    """The predictive distribution scaled about its mean: standard deviations times sqrt(T), one T per output.

    Args:
        temperature: T > 0, (k,); above 1 the predictions were over-confident.

    References:
        Levi, Gispan, Giladi and Fetaya (2022), Evaluating and calibrating uncertainty prediction in regression tasks,
        section 3.2 (for Gaussian predictions).
    """

    temperature: Tensor

    @classmethod
    def learn(cls, held_out: list[HeldOut]) -> "Spread":
        """T by the log-likelihood of the held-out targets, under a weak prior on log T, one output at a time."""
        means = [_continuous(part.predictive).mean for part in held_out]
        outputs = means[0].shape[1] if means[0].ndim == 2 else 1
        t = torch.ones(outputs, dtype=torch.float64)
        for _ in range(1 if outputs == 1 else _SWEEPS):
            before = t.clone()
            for j in range(outputs):
                t[j] = temperature(_log_likelihood(cls, held_out, t, j))
            if torch.allclose(t, before, rtol=1e-6):
                break
        return cls(t)

    def __call__(self, predictive: Predictive) -> ContinuousPredictive:
        """The scaled predictive distribution."""
        continuous = _continuous(predictive)
        mean = continuous.mean if continuous.mean.ndim == 2 else continuous.mean.unsqueeze(-1)
        scale = self.temperature.sqrt().to(mean)
        return continuous.affine((1 - scale) * mean, scale)


@dataclass(frozen=True, eq=False)
class Quantiles:
    """Recalibration of the cdf F of one output by an increasing function R: F becomes R(F).

    R is the empirical cdf of the probability integral transforms F_i(y_i) of held-out data, piecewise linear between
    about n^(1/3) of its quantiles, a number of knots that keeps the density smooth.

    Args:
        stated: Probabilities before recalibration, (m + 1,), from 0 to 1.
        observed: Fractions of the held-out data below them, (m + 1,), from 0 to 1.

    References:
        Kuleshov, Fenner and Ermon (2018), Accurate uncertainties for deep learning using calibrated regression,
        algorithm 1.
    """

    stated: Tensor
    observed: Tensor

    @classmethod
    def learn(cls, held_out: list[HeldOut]) -> "Quantiles":
        """R from the probability integral transforms of the held-out targets."""
        u = (
            torch.cat([_one_output(part.predictive).cdf(part.y).double().cpu().flatten() for part in held_out])
            .clamp(0, 1)
            .numpy()
        )
        order = np.argsort(u)
        weights = torch.cat([part.weights for part in held_out]).numpy()[order]
        size = weights.sum() ** 2 / (weights**2).sum()  # the effective number of data points
        ranks = weights.cumsum() / weights.sum() * size / (size + 1)
        observed = np.linspace(0, 1, max(2, math.ceil(size ** (1 / 3))) + 1)
        inner = np.interp(observed[1:-1], ranks, u[order])
        stated, first = np.unique(inner, return_index=True)  # equal ones carry the mass of the last
        inside = (stated > 0) & (stated < 1)
        share = observed[1:-1][np.r_[first[1:] - 1, len(inner) - 1]]
        ends = np.array([0.0]), np.array([1.0])
        stated, observed = (np.concatenate([ends[0], a[inside], ends[1]]) for a in (stated, share))
        return cls(torch.as_tensor(stated), torch.as_tensor(observed))

    def __call__(self, predictive: Predictive) -> ContinuousPredictive:
        """The recalibrated predictive distribution."""
        base = _one_output(predictive)
        recalibrated = RecalibratedPredictive(base.base, self.stated, self.observed, rule=f"{base.rule}, isotonic")
        return recalibrated.squeeze()


def _recalibrated(original: CategoricalPredictive, log_probs: Tensor, how: str) -> CategoricalPredictive:
    """New probabilities, whose entropy has an aleatoric part in the proportion of the original."""
    total, expected = original.total.double(), original.expected_entropy.double()
    share = torch.where(total > 0, expected / total, 1.0)
    return CategoricalPredictive(log_probs, share * entropy(log_probs), original.classes, f"{original.rule}, {how}")


def _log_likelihood(cls: type[Spread], held_out: list[HeldOut], t: Tensor, output: int) -> Callable[[float], float]:
    """The log-likelihood as a function of the temperature of one output."""

    def log_likelihood(value: float) -> float:
        spread = cls(torch.where(torch.arange(len(t)) == output, value, t))
        total = 0.0
        for part in held_out:
            seen = ~part.y.isnan().reshape(len(part.y), -1).any(1)
            terms = spread(part.predictive).log_prob(part.y.nan_to_num())
            total += float((part.weights.to(terms) * terms)[seen].sum())
        return total

    return log_likelihood


def _continuous(predictive: Predictive) -> ContinuousPredictive:
    if not isinstance(predictive, ContinuousPredictive) or predictive.discrete:
        raise ValueError(
            "`method` recalibrates distributions of real numbers, and the base estimator predicts counts: "
            "use `Conformal`"
        )
    return predictive


def _one_output(predictive: Predictive) -> SqueezedPredictive:
    if not isinstance(_continuous(predictive), SqueezedPredictive):
        raise ValueError(
            '`method` "isotonic" recalibrates one output: use `method="temperature"`, or '
            "`sklearn.multioutput.MultiOutputRegressor(Calibrated(...))` for outputs by themselves"
        )
    return predictive  # type: ignore[return-value]
