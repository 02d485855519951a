"""A posterior as the prior of more data: conditioning on three chunks in sequence equals conditioning on all data.

The hyperparameters are fixed; the printed difference is rounding.
"""

import torch
from gpytorch.kernels import MaternKernel, ScaleKernel
from gpytorch.means import ZeroMean

from bayeskit import gp
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.types import Data

generator = torch.Generator().manual_seed(0)
x = torch.rand(150, 2, generator=generator, dtype=torch.float64) * 4 - 2
y = torch.sin(2 * x[:, :1]) * x[:, 1:] + 0.1 * torch.randn(150, 1, generator=generator, dtype=torch.float64)
x_new = torch.rand(50, 2, generator=generator, dtype=torch.float64) * 4 - 2

# A parameter that needs no gradient is kept, not learnt.
prior = gp.GaussianProcess(ZeroMean(), ScaleKernel(MaternKernel(nu=2.5)).requires_grad_(False))
likelihood = Gaussian(noise=0.01).requires_grad_(False)
method = gp.Exact()

posterior = prior
for chunk in torch.arange(150).chunk(3):
    posterior = method.infer(posterior, likelihood, Data(x[chunk], y[chunk]), generator=generator).posterior
    values = posterior(x_new)
    print(f"after {int(chunk[-1]) + 1:3d} rows: mean sd of f at new inputs {float(values.variance.sqrt().mean()):.4f}")

batch = method.infer(prior, likelihood, Data(x, y), generator=generator).posterior(x_new)
gap_mean = (values.mean - batch.mean).abs().max()
gap_covariance = (values.covariance.to_dense() - batch.covariance.to_dense()).abs().max()
print(f"difference from all data at once: mean {float(gap_mean):.1e}, covariance {float(gap_covariance):.1e}")
assert gap_mean < 1e-8 and gap_covariance < 1e-8
