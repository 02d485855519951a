"""Small regression problems and processes shared by the tests of `bayeskit.gp`."""

from typing import ClassVar

import torch
from gpytorch.kernels import Kernel, MaternKernel, RBFKernel, ScaleKernel
from gpytorch.means import ConstantMean, ZeroMean

from bayeskit.core.likelihood import Gaussian
from bayeskit.core.types import Data
from bayeskit.gp import GaussianProcess


def regression(n=30, d=2, k=1, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, dtype=torch.float64, generator=g)
    columns = [(x.sum(-1) * (1 + j)).sin() for j in range(k)]
    y = torch.stack(columns, -1) + 0.1 * torch.randn(n, k, dtype=torch.float64, generator=g)
    return Data(x, y)


def test_inputs(n=17, d=2, seed=1):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


test_inputs.__test__ = False


def scaled(base: Kernel, lengthscale, outputscale=1.7) -> Kernel:
    """A scaled kernel with these hyperparameters exactly: gpytorch's setters would pass them through float32."""
    kernel = ScaleKernel(base).double()
    kernel.outputscale = torch.tensor(outputscale, dtype=torch.float64)
    kernel.base_kernel.lengthscale = torch.as_tensor(lengthscale, dtype=torch.float64)
    return kernel


class Counted(Kernel):
    """exp(-|x - x'|^2), noting the number of columns of each covariance matrix that is asked of it."""

    columns: ClassVar[list[int]] = []

    def forward(self, x1, x2, diag=False, **_):
        if diag:
            return torch.exp(-(x1 - x2).square().sum(-1))
        self.columns.append(x2.shape[-2])
        return torch.exp(-torch.cdist(x1, x2).square())


def matern(lengthscale=(0.9, 1.4), nu=2.5):
    return scaled(MaternKernel(nu=nu, ard_num_dims=len(lengthscale)), torch.tensor([lengthscale], dtype=torch.float64))


def rbf(lengthscale=0.8):
    return scaled(RBFKernel(), lengthscale)


def process(kernel=None, k=1, mean=None):
    return GaussianProcess(mean or ZeroMean(), kernel or matern(), k)


def constant(value, k=1):
    mean = ConstantMean(batch_shape=torch.Size([k])).double()
    mean.raw_constant.data.copy_(torch.as_tensor(value, dtype=torch.float64).expand(k))
    return mean


def noise(value=0.05, learn=False):
    return Gaussian(value, learn=learn)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def close(a, b, tolerance=1e-8):
    """Equal to a tolerance relative to the size of the second."""
    scale = max(1.0, float(b.detach().abs().max()))
    difference = float((a - b).detach().abs().max())
    assert difference <= tolerance * scale, f"differ by {difference:.2e}"


def same_gp(first, second, x, tolerance=1e-8):
    """Two processes agree in mean and joint covariance at x."""
    one, two = first(x), second(x)
    close(one.mean, two.mean, tolerance)
    close(one.covariance.to_dense(), two.covariance.to_dense(), tolerance)
    close(one.variance, two.variance, tolerance)
