"""Classification with class names, and the calibration of the predicted probabilities.

The printed numbers are the calibration error and the negative log likelihood on held-out digits of three methods on
the same network. The figure shows their reliability diagrams.
"""

import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from bayeskit import BNNClassifier, metrics, plots

NAMES = np.array(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
digits = load_digits()
X_train, X_test, y_train, y_test = train_test_split(digits.data, NAMES[digits.target], train_size=300, random_state=0)

methods = ("map", "laplace", "deep_ensemble")
figure, panels = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained", sharey=True)
for name, panel in zip(methods, panels, strict=True):
    model = BNNClassifier(inference=name, random_state=0).fit(X_train, y_train)
    p = model.predict_proba(X_test)
    labels = np.searchsorted(model.classes_, y_test)
    plots.reliability_diagram(p, labels, ax=panel).set_title(name)
    print(
        f"{name:14s} says {model.predict(X_test[:3])}"
        f"  accuracy {metrics.accuracy(p, labels):.3f}"
        f"  calibration error {metrics.expected_calibration_error(p, labels):.3f}"
        f"  negative log likelihood {metrics.negative_log_likelihood(p, labels):.3f}"
    )

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
figure.savefig(folder / "03_classes.png", dpi=150)
print("figure:", folder / "03_classes.png")
