"""Predictive entropy far from the data: a point estimate, a Laplace approximation and a Gaussian process."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_moons

from bayeskit import BNNClassifier, GPClassifier, bnn
from bayeskit.core.optimize import Training

X, y = make_moons(200, noise=0.12, random_state=0)
a, b = np.meshgrid(np.linspace(-3, 4, 60), np.linspace(-2.5, 3, 50))
grid = np.column_stack([a.ravel(), b.ravel()])

training = Training(lr=1e-2, max_epochs=150)
models = {
    "MAP network": BNNClassifier(inference=bnn.MAP(training=training), random_state=0),
    "Laplace, last layer": BNNClassifier(inference=bnn.Laplace(training=training), random_state=0),
    "Gaussian process": GPClassifier(random_state=0),
}
figure, axes = plt.subplots(1, 3, figsize=(9, 2.8), layout="constrained", sharey=True)
for ax, (name, model) in zip(axes, models.items(), strict=True):
    p = np.clip(model.fit(X, y).predict_proba(grid), 1e-12, 1)
    entropy = -(p * np.log(p)).sum(1)
    image = ax.contourf(a, b, entropy.reshape(a.shape), levels=np.linspace(0, 0.7, 15), cmap="viridis")
    ax.scatter(*X.T, c=y, s=6, cmap="coolwarm", edgecolor="w", linewidth=0.2)
    ax.set_title(name, fontsize="medium")
figure.colorbar(image, ax=axes, label="predictive entropy, nats", ticks=[0, 0.35, 0.7])
figure.savefig(Path(sys.argv[1]) / "ood_map.png", dpi=80)
