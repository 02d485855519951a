"""NUTS as the reference posterior for less expensive approximations.

A small network is fitted by NUTS and by Laplace approximations of several structures, under the same prior and
likelihood. The printed number is the 2-Wasserstein distance between their joint posteriors of the function at 60
inputs, divided by the target's standard deviation and by the square root of the number of inputs.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from bayeskit import bnn, mcmc, metrics, plots
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data

generator = torch.Generator().manual_seed(0)
x = torch.rand(60, 1, generator=generator, dtype=torch.float64) * 4 - 2
y = torch.tanh(2 * x) + 0.1 * torch.randn(60, 1, generator=generator, dtype=torch.float64)
grid = torch.linspace(-3, 3, 60, dtype=torch.float64)[:, None]

torch.manual_seed(0)
network = bnn.MLP(1, 1, hidden=(6,), activation=nn.Tanh, dtype=torch.float64)
prior = bnn.gaussian_prior(network, precision=0.3)
settings = {"prior_precision": 1.0, "training": Training(lr=2e-2, max_epochs=1000, batch_size=None)}
methods = {
    "NUTS": bnn.MCMC(mcmc.NUTS(max_tree_depth=5), num_chains=2, num_samples=40, burn_in=30),
    "Laplace, full": bnn.Laplace(subset="all", **settings),
    "Laplace, diagonal": bnn.Laplace(subset="all", structure="diagonal", **settings),
    "Laplace, last layer": bnn.Laplace(subset="last_layer", **settings),
    "MAP (a point)": bnn.MAP(**settings),
}

reference, predictives = None, {}
for name, method in methods.items():
    start = time.perf_counter()
    fit = method.infer(prior, Gaussian(noise=0.01), Data(x, y), generator=generator)
    seconds = time.perf_counter() - start
    values = fit.posterior(grid)
    moments = values.mean.flatten(), values.covariance.to_dense()
    reference = reference or moments
    distance = metrics.wasserstein2(*reference, *moments) / float(y.std()) / len(grid) ** 0.5
    predictives[name] = fit.likelihood.predictive(values)
    print(f"{name:20s} {seconds:5.1f} s   distance from NUTS {distance:.3f}")

panels = plots.regression_bands(grid, predictives, data=(x, y), columns=3)
folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
panels[0].figure.savefig(folder / "07_nuts_as_truth.png", dpi=150)
print("figure:", folder / "07_nuts_as_truth.png")
