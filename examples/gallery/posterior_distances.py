"""Pairwise 2-Wasserstein distances between the joint posteriors of six methods with the same network prior."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

from bayeskit import bnn, mcmc, metrics, plots
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data

g = torch.Generator().manual_seed(0)
x = torch.rand(60, 1, generator=g, dtype=torch.float64) * 4 - 2
y = torch.tanh(2 * x) + 0.1 * torch.randn(60, 1, generator=g, dtype=torch.float64)
grid = torch.linspace(-3, 3, 40, dtype=torch.float64)[:, None]

torch.manual_seed(0)
prior = bnn.gaussian_prior(bnn.MLP(1, 1, hidden=(6,), activation=nn.Tanh, dtype=torch.float64), precision=0.3)
settings = {"prior_precision": 1.0, "training": Training(lr=2e-2, max_epochs=600, batch_size=None)}
methods = {
    "NUTS": bnn.MCMC(mcmc.NUTS(max_tree_depth=5), num_chains=2, num_samples=30, burn_in=30),
    "Laplace, full": bnn.Laplace(subset="all", **settings),
    "Laplace, Kronecker": bnn.Laplace(subset="all", structure="kronecker", **settings),
    "Laplace, last layer": bnn.Laplace(subset="last_layer", **settings),
    "deep ensemble": bnn.DeepEnsemble(**settings),
    "MAP": bnn.MAP(**settings),
}
posteriors = []
for method in methods.values():
    fit = method.infer(prior, Gaussian(noise=0.01), Data(x, y), generator=g)
    values = fit.posterior(grid)
    posteriors.append((values.mean.flatten(), values.covariance.to_dense()))
scale = float(y.std()) * len(grid) ** 0.5
distances = np.array([[metrics.wasserstein2(*p, *q) / scale for q in posteriors] for p in posteriors])

figure, ax = plt.subplots(figsize=(5.5, 4.5), layout="constrained")
plots.distance_map(distances, list(methods), ax=ax)
figure.savefig(Path(sys.argv[1]) / "posterior_distances.png", dpi=80)
