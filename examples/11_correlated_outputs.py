"""Correlated outputs: a sensor with eight readings is predicted from one that is read continuously.

Both are mixtures of the same two latent functions. A process of independent outputs predicts the second sensor from its
own eight readings alone; the linear model of coregionalization learns the mixing matrix W of f = W g, and predicts the
missing readings of one from the other. NaN marks a missing reading.
"""

import math

import torch

from bayeskit import gp
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.types import Data

generator = torch.Generator().manual_seed(0)
x = torch.linspace(0, 10, 120, dtype=torch.float64).unsqueeze(-1)
hidden = torch.cat([torch.sin(2 * x), torch.cos(0.7 * x)], dim=-1)
truth = hidden @ torch.tensor([[1.0, 0.3], [-0.8, 0.4]], dtype=torch.float64).mT
y = truth + 0.1 * torch.randn(truth.shape, dtype=torch.float64, generator=generator)
missing = torch.arange(120) % 15 != 7
y[missing, 1] = math.nan


def report(name, mean, variance, evidence):
    """Error and width at the readings that were not made."""
    error = (mean - truth[:, 1])[missing].square().mean().sqrt()
    width = variance[missing].sqrt().mean()
    print(f"{name:12s} log evidence {evidence:6.1f}  rmse {error:.3f}  average standard deviation {width:.3f}")


# Each output by itself: two fits of one output, on the rows that it has.
fits = []
for column in range(2):
    seen = ~y[:, column].isnan()
    data = Data(x[seen], y[seen, column : column + 1])
    fits.append(gp.Exact().infer(gp.default_prior(x), Gaussian(), data, generator=generator))
alone = fits[1].posterior(x)
report("independent", alone.mean[:, 0], alone.variance[:, 0], sum(fit.log_evidence.value for fit in fits))

# Mixtures of two functions, each with a kernel of its own (LMC), and of two with one kernel (ICM).
linear = gp.default_prior(x, num_outputs=2, num_latents=2)
intrinsic = gp.coregionalized(gp.default_prior(x, num_outputs=2), num_outputs=2)
for name, prior in {"LMC": linear, "ICM": intrinsic}.items():
    fit = gp.Exact().infer(prior, Gaussian(), Data(x, y), generator=generator)
    values = fit.posterior(x)
    report(name, values.mean[:, 1], values.variance[:, 1], fit.log_evidence.value)
