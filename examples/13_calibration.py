"""Post-hoc calibration of an over-confident classifier and of outdated intervals.

A network is overfitted to noisy digits. The printed numbers are its calibration error before and after a temperature
learnt on held-out data, and the size of conformal sets with 90 % coverage. Then the same for regression: coverage of
the 90 % intervals of a model fitted before the noise changed, and of conformal ones. The figure shows the reliability
of the digits before and after.
"""

import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator

from bayeskit import BNNClassifier, Calibrated, Conformal, GPRegressor, bnn, metrics, plots
from bayeskit.core.optimize import Training

rng = np.random.default_rng(0)
X, y = load_digits(return_X_y=True)
order = rng.permutation(len(y))
X, y = X[order] + 6 * rng.normal(size=X.shape), y[order]
fit, held_out, test = slice(0, 500), slice(500, 900), slice(900, None)

long = bnn.MAP(training=Training(lr=1e-2, max_epochs=60, validation_fraction=0.0), prior_precision=0.01)
sure = BNNClassifier(inference=long, random_state=0).fit(X[fit], y[fit])
calibrated = Calibrated(FrozenEstimator(sure)).fit(X[held_out], y[held_out])

figure, panels = plt.subplots(1, 2, figsize=(7, 3.4), layout="constrained", sharey=True)
for name, model, panel in zip(("as trained", "temperature"), (sure, calibrated), panels, strict=True):
    p = model.predict_proba(X[test])
    print(
        f"{name:12s} accuracy {metrics.accuracy(p, y[test]):.3f}"
        f"  calibration error {metrics.expected_calibration_error(p, y[test]):.3f}"
        f"  negative log likelihood {metrics.negative_log_likelihood(p, y[test]):.3f}"
    )
    plots.reliability_diagram(p, y[test], ax=panel).set_title(name)
print(f"learnt from 400 rows: T = {calibrated.calibration_.temperature:.2f}")

sets = Conformal(FrozenEstimator(sure), confidence=0.9).fit(X[held_out], y[held_out]).predict_set(X[test])
held = sets[np.arange(len(y[test])), y[test]].mean()
print(f"sets of labels: {sets.sum(1).mean():.2f} on average, right for {100 * held:.1f} % of the digits")

# Regression: the model was fitted to earlier data; later data are noisier and have heavy tails.
x = rng.uniform(-3, 3, (1_500, 1))
z = np.sin(2 * x[:, 0]) + np.where(np.arange(1_500) < 200, 0.1, 0.3) * rng.standard_t(3, 1_500)
process = GPRegressor(random_state=0).fit(x[:200], z[:200])
wrapped = Conformal(FrozenEstimator(process), confidence=0.9).fit(x[200:500], z[200:500])
stated, conformal = process.predictive(x[500:]).interval(0.9), wrapped.predict_interval(x[500:])
for name, ends in (("as stated", stated), ("conformal", conformal)):
    low, high = (np.asarray(end) for end in ends)
    inside = (low <= z[500:]) & (z[500:] <= high)
    print(f"{name:10s} coverage of 90 % intervals {100 * inside.mean():.1f} %, width {np.mean(high - low):.2f}")

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
figure.savefig(folder / "13_calibration.png", dpi=150)
print("figure:", folder / "13_calibration.png")
