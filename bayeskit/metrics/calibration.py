"""Calibration: reliability of class probabilities, PIT and coverage of continuous predictive distributions."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from bayeskit.core import checks
from bayeskit.core.predictive import ContinuousPredictive
from bayeskit.core.predictive.predictive import AffinePredictive, SqueezedPredictive
from bayeskit.metrics import arrays

Binning = Literal["width", "mass"]


@dataclass(frozen=True, eq=False)
class Reliability:
    """Confidence and accuracy by bin, with the number of points in each bin.

    Args:
        edges: Bin borders (b + 1,), increasing.
        confidence: Mean confidence in each bin (b,), NaN where the bin is empty.
        accuracy: Fraction right in each bin (b,), NaN where the bin is empty.
        counts: Points in each bin (b,).
    """

    edges: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    counts: np.ndarray

    @property
    def occupancy(self) -> np.ndarray:
        """Share of all points in each bin, (b,); a bin with few points is not informative."""
        return self.counts / self.counts.sum()

    @property
    def error(self) -> float:
        """Expected calibration error: the gaps |accuracy - confidence| weighted by occupancy."""
        return float(np.nansum(self.occupancy * np.abs(self.accuracy - self.confidence)))

    @property
    def overconfidence(self) -> float:
        """The signed version: mean confidence minus accuracy; positive where the method is over-confident."""
        return float(np.nansum(self.occupancy * (self.confidence - self.accuracy)))


def reliability(p: Any, labels: Any, *, num_bins: int = 15, binning: Binning = "width") -> Reliability:
    """Accuracy of the most probable class as a function of its predicted probability.

    Point i has confidence c_i = max_j p_ij and is right when argmax_j p_ij equals its label. Bins either split [0, 1]
    into equal widths, or hold equal shares of the points (borders at quantiles of the confidences, equal confidences
    kept together, so there may be fewer than `num_bins`).

    Args:
        p: Class probabilities (n, c), or (n,) for the probability of class 1 of two.
        labels: Integer codes (n,).
        num_bins: Number of bins b.
        binning: "width" or "mass".

    Returns:
        A `Reliability`, with the occupancy of each bin.

    References:
        Guo, Pleiss, Sun and Weinberger (2017), On calibration of modern neural networks, section 2; equal mass:
        Nixon et al. (2019), Measuring calibration in deep learning, section 3.

    >>> r = reliability([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]], [0, 1, 1], num_bins=2)
    >>> r.counts.tolist(), r.accuracy[1].round(2).item(), r.confidence[1].round(2).item()
    ([0, 3], 0.67, 0.8)
    """
    checks.positive(num_bins, name="num_bins", integer=True)
    checks.choice(binning, name="binning", options=("width", "mass"))
    p = arrays.probabilities(p)
    codes = arrays.labels(labels, num_classes=p.shape[1], num_rows=len(p))
    confidence, right = p.max(1), p.argmax(1) == codes
    if binning == "width":
        edges = np.linspace(0, 1, num_bins + 1)
    else:
        edges = np.unique(np.quantile(confidence, np.linspace(0, 1, num_bins + 1)))
        edges = edges if len(edges) > 1 else np.array([edges[0], edges[0]])  # every confidence is the same
    bins = np.searchsorted(edges[1:-1], confidence, side="left")  # bins are open below and closed above
    counts = np.bincount(bins, minlength=len(edges) - 1)
    with np.errstate(invalid="ignore"):  # 0 / 0 marks an empty bin as NaN
        mean_confidence = np.bincount(bins, confidence, len(counts)) / counts
        mean_right = np.bincount(bins, right, len(counts)) / counts
    return Reliability(edges, mean_confidence, mean_right, counts)


def expected_calibration_error(p: Any, labels: Any, *, num_bins: int = 15, binning: Binning = "width") -> float:
    """The mean gap between confidence and accuracy, as a fraction between 0 and 1.

    ECE = sum_b (n_b / n) |accuracy_b - confidence_b| over the bins of `reliability`. With equal widths most points
    often share one bin, so read it next to `reliability(...).occupancy` or ask for `binning="mass"`.

    Args:
        p: Class probabilities (n, c), or (n,) for the probability of class 1 of two.
        labels: Integer codes (n,).
        num_bins: Number of bins.
        binning: "width" for equal widths, "mass" for equal numbers of points.

    References:
        Guo, Pleiss, Sun and Weinberger (2017), On calibration of modern neural networks, equation 3.

    >>> round(expected_calibration_error([[0.8, 0.2]] * 5, [0, 0, 0, 0, 1]), 12)
    0.0
    """
    return reliability(p, labels, num_bins=num_bins, binning=binning).error


def pit(predictive: ContinuousPredictive, y: Any) -> np.ndarray:
    """Probability integral transform: the predictive distribution function of each observation, at the observation.

    u_i = F_i(y_i). If the predictive distributions are calibrated the u_i are uniform on [0, 1]; a peak in the middle
    means under-confidence, peaks at the ends mean over-confidence, a slope means bias.

    Counts have steps in F, so u_i = F_i(y_i) - p_i(y_i) / 2 there (the mid-PIT): its mean is 1/2 under calibration, and
    it is nearly uniform where no single count is probable.

    Args:
        predictive: Predictive distribution of a real number or a count.
        y: Observations (n,) or (n, k).

    Returns:
        (n,) or (n, k) numbers between 0 and 1.

    References:
        Gneiting, Balabdaoui and Raftery (2007), Probabilistic forecasts, calibration and sharpness, section 3.1;
        counts: Czado, Gneiting and Held (2009), Predictive model assessment for count data, section 2.1.

    >>> import torch
    >>> from bayeskit.core.predictive import MixturePredictive
    >>> predictive = MixturePredictive(torch.distributions.Normal(torch.zeros(1, 3, 1), torch.ones(1, 3, 1)))
    >>> pit(predictive, [-1.0, 0.0, 1.0]).round(3).ravel().tolist()
    [0.159, 0.5, 0.841]
    """
    y = arrays.like_predictive(y, predictive)
    u = predictive.cdf(y)
    if predictive.discrete:
        u = (u + _cdf_below(predictive, y)) / 2
    return np.clip(arrays.numbers(u, name="predictive.cdf(y)"), 0.0, 1.0)


def coverage(predictive: ContinuousPredictive, y: Any, level: float = 0.9) -> float:
    """The fraction of observations inside their central predictive intervals.

    For a continuous distribution, y lies in the central interval of probability a exactly when |F(y) - 1/2| <= a / 2,
    so no quantile is needed. A calibrated method has coverage equal to `level`. The interval of a count holds both its
    ends and hence at least the probability `level`, so a calibrated method may cover more.

    Args:
        predictive: Predictive distribution of a real number or a count.
        y: Observations (n,) or (n, k); outputs are counted separately.
        level: Probability of the interval.

    References:
        Gneiting, Balabdaoui and Raftery (2007), Probabilistic forecasts, calibration and sharpness, section 3.

    >>> import torch
    >>> from bayeskit.core.predictive import MixturePredictive
    >>> predictive = MixturePredictive(torch.distributions.Normal(torch.zeros(1, 4, 1), torch.ones(1, 4, 1)))
    >>> coverage(predictive, [-3.0, 0.1, 1.5, 1.7], level=0.9)
    0.5
    """
    checks.fraction(level, name="level")
    if predictive.discrete:
        y = arrays.like_predictive(y, predictive)
        low, high = predictive.interval(level)
        return float(((low <= y) & (y <= high)).double().mean())
    return float((np.abs(pit(predictive, y) - 0.5) <= level / 2).mean())


def _cdf_below(predictive: ContinuousPredictive, y: Tensor) -> Tensor:
    """P(Y < y) of a count: its cdf one count lower, in the units of `predictive`."""
    if isinstance(predictive, SqueezedPredictive):
        return _cdf_below(predictive.base, y.unsqueeze(-1)).squeeze(-1)
    if isinstance(predictive, AffinePredictive):
        return predictive.cdf(y - predictive.scale.to(y))
    return predictive.cdf(y - 1)
