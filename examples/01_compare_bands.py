"""Posterior predictive bands of six methods where there are no data.

Six methods see the same 40 points with a gap in the middle. Each is a prior, a likelihood and an inference; the answer
is a posterior over functions. Each panel shows the mean and the 50 % and 95 % bands of an observation. The printed
number is how much wider the 95 % band is in the middle of the gap than at the data.
"""

import sys
import tempfile
from pathlib import Path

import torch
from gpytorch.kernels import RBFKernel, ScaleKernel
from gpytorch.means import ZeroMean
from torch import nn

from bayeskit import bnn, gp, mcmc, plots
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data

generator = torch.Generator().manual_seed(0)
x = torch.rand(40, 1, generator=generator, dtype=torch.float64) * 1.3 + 0.7
x[:20] -= 2.7
y = torch.sin(3 * x) + 0.15 * torch.randn(40, 1, generator=generator, dtype=torch.float64)
grid = torch.linspace(-3, 3, 121, dtype=torch.float64)[:, None]

torch.manual_seed(0)
process = gp.GaussianProcess(ZeroMean(), ScaleKernel(RBFKernel()))
network = bnn.gaussian_prior(bnn.MLP(1, 1, hidden=(20,), activation=nn.Tanh, dtype=torch.float64), precision=0.05)
training = Training(lr=2e-2, max_epochs=1000, batch_size=None)
methods = {
    "exact GP": (process, gp.Exact()),
    "sparse GP, 8 inducing points": (process, gp.SGPR(num_inducing=8)),
    "NUTS": (network, bnn.MCMC(mcmc.NUTS(max_tree_depth=5), num_chains=2, num_samples=30, burn_in=20)),
    "Laplace, all layers": (network, bnn.Laplace(subset="all", training=training, prior_precision=1.0)),
    "deep ensemble": (network, bnn.DeepEnsemble(training=training, prior_precision=1.0)),
    "MAP (a point)": (network, bnn.MAP(training=training, prior_precision=1.0)),
}

predictives = {}
for name, (prior, method) in methods.items():
    fit = method.infer(prior, Gaussian(), Data(x, y), generator=generator)
    predictives[name] = fit.likelihood.predictive(fit.posterior(grid))
    low, high = fit.likelihood.predictive(fit.posterior(torch.cat([torch.zeros(1, 1), x]))).interval(0.95)
    width = (high - low).flatten()
    print(f"{name:30s} band in the gap / at the data: {float(width[0] / width[1:].mean()):4.1f}")

panels = plots.regression_bands(grid, predictives, data=(x, y))
panels[0].set_ylim(-3, 3)
folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
panels[0].figure.savefig(folder / "01_compare_bands.png", dpi=150)
print("figure:", folder / "01_compare_bands.png")
