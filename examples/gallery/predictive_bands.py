"""Predictive bands of a Gaussian process, a Laplace approximation and a deep ensemble on data with a gap."""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bayeskit import BNNRegressor, GPRegressor, bnn, plots
from bayeskit.core.optimize import Training

rng = np.random.default_rng(0)
x = np.sort(np.concatenate([rng.uniform(-3, -1, 30), rng.uniform(0.5, 2.5, 30)]))[:, None]
y = np.sin(2 * x[:, 0]) + 0.2 * rng.normal(size=60)
grid = np.linspace(-4, 4, 200)[:, None]


def network(inputs, outputs):
    return bnn.MLP(inputs, outputs, hidden=(20,), activation=nn.Tanh, dtype=torch.float64)


training = Training(lr=2e-2, max_epochs=600, batch_size=None)
settings = {"training": training, "prior_precision": 0.05}
models = {
    "Gaussian process": GPRegressor(random_state=0),
    "Laplace, all layers": BNNRegressor(network, inference=bnn.Laplace(subset="all", **settings), random_state=0),
    "deep ensemble": BNNRegressor(network, inference=bnn.DeepEnsemble(**settings), random_state=0),
}
predictives = {name: model.fit(x, y).predictive(grid) for name, model in models.items()}
panels = plots.regression_bands(grid, predictives, data=(x, y), columns=3)
panels[0].set_ylim(-3, 3)
figure = panels[0].figure
figure.set_size_inches(9, 3)
figure.savefig(Path(sys.argv[1]) / "predictive_bands.png", dpi=90)
