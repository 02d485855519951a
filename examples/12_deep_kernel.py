"""Deep kernel learning: a network before a kernel.

The target jumps along a slanted direction of five inputs. A plain kernel has one lengthscale an input and must be short
in all of them; a deep kernel learns the direction together with its hyperparameters. The second half shows the
limit: on a smooth function with few data points the network overfits, and the plain kernel predicts better.
"""

import numpy as np
from gpytorch.kernels import RBFKernel, ScaleKernel
from torch import manual_seed, nn

from bayeskit import GPRegressor, gp, metrics

rng = np.random.default_rng(0)
x = rng.normal(size=(800, 5))
direction = np.array([1, -2, 0.5, 1, 0.3])


def deep():
    """Tanh keeps the two features on the scale of a lengthscale about one."""
    manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 2), nn.Tanh())
    return gp.DeepKernel(network, ScaleKernel(RBFKernel(ard_num_dims=2)))


def compare(title, y, rows):
    """Root mean squared error and negative log density of both kernels on the rows left out."""
    print(f"{title}, {rows} rows")
    for name, kernel in {"plain": None, "deep": deep()}.items():
        model = GPRegressor(kernel, inference=gp.Exact(max_iter=60), random_state=0).fit(x[:rows], y[:rows])
        predictive = model.predictive(x[400:])
        error, density = metrics.rmse(predictive.mean, y[400:]), metrics.negative_log_likelihood(predictive, y[400:])
        print(f"  {name:5s}  rmse {error:.3f}  nlpd {density:6.2f}  log evidence {float(model.log_evidence_):7.1f}")


noise = rng.normal(size=800)
compare("a step along a slanted direction", np.sign(x @ direction) + 0.05 * noise, 200)
compare("a smooth function with noise", np.sin(x[:, 0]) + 0.5 * x[:, 1] + 0.3 * noise, 40)
