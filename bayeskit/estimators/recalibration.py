"""Maps from a stated law to a calibrated one, each learnt from rows that the law has not seen.

    classes:  temperature  p_j ^ (1 / T), normalized           isotonic  one increasing step function a class
    numbers:  temperature  variance times T, same mean         isotonic  an increasing function of the cdf

A temperature is one number (an output): it mends laws that are too sure or too timid everywhere, and needs few rows.
An isotonic map mends any monotone error, and needs many.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

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
from bayeskit.estimators.post_hoc import HeldOut

_SWEEPS = 5  # over the outputs, where there are several; independent outputs need one


@dataclass(frozen=True, eq=False)
class ClassTemperature:
    """Class probabilities p_j ^ (1 / T), normalized.

    Args:
        temperature: T > 0; above 1 the law was too sure.

    References:
        Guo, Pleiss, Sun and Weinberger (2017), On calibration of modern neural networks, section 4.2.
    """

    temperature: float

    @classmethod
    def learn(cls, held_out: list[HeldOut]) -> "ClassTemperature":
        """T by the log-likelihood of the held-out labels, under a weak prior on log T."""

        def log_likelihood(t: float) -> float:
            return sum(float((part.weights * cls(t)(part.law).log_prob(part.y).cpu()).sum()) for part in held_out)

        return cls(temperature(log_likelihood))

    def __call__(self, law: Predictive) -> CategoricalPredictive:
        """The law at temperature T."""
        assert isinstance(law, CategoricalPredictive)
        logits = law.log_probs.double().clamp(min=math.log(torch.finfo(torch.float64).tiny))
        return _like(law, (logits / self.temperature).log_softmax(-1), f"temperature {self.temperature:.3g}")


@dataclass(frozen=True, eq=False)
class ClassIsotonic:
    """Class probabilities through one increasing function a class, normalized (one against the rest).

    As n rows cannot show that something never happens, one more row, spread over the classes, is mixed in:
    (n p + 1 / c) / (n + 1).

    Args:
        stated: For each class (of two, the second alone) the probabilities where its function has a knot.
        observed: The values there, increasing.
        num_rows: n, the weight of the rows that they were learnt from.

    References:
        Zadrozny and Elkan (2002), Transforming classifier scores into accurate multiclass probability estimates.
    """

    stated: list[np.ndarray]
    observed: list[np.ndarray]
    num_rows: float

    @classmethod
    def learn(cls, held_out: list[HeldOut]) -> "ClassIsotonic":
        """Isotonic regression of "is it this class" on the probability of this class."""
        laws = [part.law for part in held_out]
        probs = np.concatenate([law.probs.double().cpu().numpy() for law in laws])  # type: ignore[attr-defined]
        classes = laws[0].classes if laws[0].classes is not None else np.arange(probs.shape[1])  # type: ignore[attr-defined]
        labels = np.concatenate([np.asarray(part.y) for part in held_out])
        weights = torch.cat([part.weights for part in held_out]).numpy()
        columns = [1] if len(classes) == 2 else range(len(classes))
        fits = [IsotonicRegression(out_of_bounds="clip") for _ in columns]
        for fit, j in zip(fits, columns, strict=True):
            fit.fit(probs[:, j], labels == classes[j], sample_weight=weights)
        stated, observed = [fit.X_thresholds_ for fit in fits], [fit.y_thresholds_ for fit in fits]
        return cls(stated, observed, float(weights.sum()))

    def __call__(self, law: Predictive) -> CategoricalPredictive:
        """The law after the functions."""
        assert isinstance(law, CategoricalPredictive)
        p = law.probs.double().cpu().numpy()
        if p.shape[1] == 2:
            second = np.interp(p[:, 1], self.stated[0], self.observed[0])
            p = np.stack([1 - second, second], -1)
        else:
            pairs = enumerate(zip(self.stated, self.observed, strict=True))
            p = np.stack([np.interp(p[:, j], knots, values) for j, (knots, values) in pairs], -1)
            total = p.sum(1, keepdims=True)
            p = np.where(total > 0, p / np.where(total > 0, total, 1), 1 / p.shape[1])
        p = (self.num_rows * p + 1 / p.shape[1]) / (self.num_rows + 1)
        return _like(law, torch.as_tensor(p).to(law.log_probs.device).log(), "isotonic")


@dataclass(frozen=True, eq=False)
class Spread:
    """The law of y stretched about its mean: standard deviations times sqrt(T), an output each.

    Args:
        temperature: T > 0, (k,); above 1 the law was too narrow.

    References:
        Levi, Gispan, Giladi and Fetaya (2022), Evaluating and calibrating uncertainty prediction in regression tasks,
        section 3.2 (for Gaussian laws).
    """

    temperature: Tensor

    @classmethod
    def learn(cls, held_out: list[HeldOut]) -> "Spread":
        """T by the log-likelihood of the held-out targets, under a weak prior on log T, output after output."""
        laws = [_continuous(part.law) for part in held_out]
        outputs = laws[0].mean.shape[1] if laws[0].mean.ndim == 2 else 1
        t = torch.ones(outputs, dtype=torch.float64)
        for _ in range(1 if outputs == 1 else _SWEEPS):
            before = t.clone()
            for j in range(outputs):
                t[j] = temperature(_log_likelihood(cls, held_out, t, j))
            if torch.allclose(t, before, rtol=1e-6):
                break
        return cls(t)

    def __call__(self, law: Predictive) -> ContinuousPredictive:
        """The stretched law."""
        law = _continuous(law)
        mean = law.mean if law.mean.ndim == 2 else law.mean.unsqueeze(-1)
        scale = self.temperature.sqrt().to(mean)
        return law.affine((1 - scale) * mean, scale)


@dataclass(frozen=True, eq=False)
class Quantiles:
    """A law of one output whose probabilities pass through an increasing function R: F becomes R(F).

    R is the empirical cdf of the F_i(y_i) of held-out rows, in straight pieces between about n^(1/3) of its quantiles:
    isotonic regression of that cdf on F with as many knots as make a density worth having.

    Args:
        stated: Probabilities under the law, (m + 1,), from 0 to 1.
        observed: Shares of the held-out rows below them, (m + 1,), from 0 to 1.

    References:
        Kuleshov, Fenner and Ermon (2018), Accurate uncertainties for deep learning using calibrated regression,
        algorithm 1.
    """

    stated: Tensor
    observed: Tensor

    @classmethod
    def learn(cls, held_out: list[HeldOut]) -> "Quantiles":
        """R from the probability integral transforms of the held-out targets."""
        u = torch.cat([_one(part.law).cdf(part.y).double().cpu().flatten() for part in held_out]).clamp(0, 1).numpy()
        order = np.argsort(u)
        weights = torch.cat([part.weights for part in held_out]).numpy()[order]
        size = weights.sum() ** 2 / (weights**2).sum()  # as many rows of equal weight
        ranks = weights.cumsum() / weights.sum() * size / (size + 1)
        observed = np.linspace(0, 1, max(2, math.ceil(size ** (1 / 3))) + 1)
        inner = np.interp(observed[1:-1], ranks, u[order])
        stated, first = np.unique(inner, return_index=True)  # equal ones carry the mass of the last
        inside = (stated > 0) & (stated < 1)
        share = observed[1:-1][np.r_[first[1:] - 1, len(inner) - 1]]
        ends = np.array([0.0]), np.array([1.0])
        stated, observed = (np.concatenate([ends[0], a[inside], ends[1]]) for a in (stated, share))
        return cls(torch.as_tensor(stated), torch.as_tensor(observed))

    def __call__(self, law: Predictive) -> ContinuousPredictive:
        """The law with R before its cdf."""
        base = _one(law)
        recalibrated = RecalibratedPredictive(base.base, self.stated, self.observed, rule=f"{base.rule}, isotonic")
        return recalibrated.squeeze()


def _like(law: CategoricalPredictive, log_probs: Tensor, how: str) -> CategoricalPredictive:
    """Other probabilities; their entropy has an aleatoric part in the proportion of the law they came from."""
    said = CategoricalPredictive(log_probs, law.expected_entropy.double(), law.classes, f"{law.rule}, {how}")
    before = law.total.double()
    share = torch.where(before > 0, said.expected_entropy / before, 1.0)
    return CategoricalPredictive(log_probs, share * said.total, law.classes, said.rule)


def _log_likelihood(cls: type[Spread], held_out: list[HeldOut], t: Tensor, output: int) -> Callable[[float], float]:
    """The log-likelihood as a function of the temperature of one output."""

    def log_likelihood(value: float) -> float:
        spread = cls(torch.where(torch.arange(len(t)) == output, value, t))
        total = 0.0
        for part in held_out:
            seen = ~part.y.isnan().reshape(len(part.y), -1).any(1)
            terms = spread(part.law).log_prob(part.y.nan_to_num())
            total += float((part.weights.to(terms) * terms)[seen].sum())
        return total

    return log_likelihood


def _continuous(law: Predictive) -> ContinuousPredictive:
    if not isinstance(law, ContinuousPredictive) or law.discrete:
        raise ValueError(
            "`method` recalibrates laws of real numbers, and the law inside is one of counts: "
            "`Conformal` takes it as it is"
        )
    return law


def _one(law: Predictive) -> SqueezedPredictive:
    law = _continuous(law)
    if not isinstance(law, SqueezedPredictive):
        raise ValueError(
            '`method` "isotonic" recalibrates one output: use `method="temperature"`, or '
            "`sklearn.multioutput.MultiOutputRegressor(Calibrated(...))` for outputs by themselves"
        )
    return law
