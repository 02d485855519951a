"""Processes of correlated outputs that tests share, and their covariance written out."""

import torch
from gpytorch.kernels import RBFKernel
from gpytorch.means import ZeroMean

from bayeskit.gp import SVGP, Exact, GaussianProcess
from bayeskit.gp.kernels.evaluate import gram

from .problems import generator, noise, regression

W = torch.tensor([[1.0, 0.3], [-0.5, 0.8], [0.2, 1.1]], dtype=torch.float64)
EXACT, SPARSE = Exact(learn=False), SVGP(num_inducing=8, learn=False, learn_inducing=False)


def own_kernels(q=2):
    kernel = RBFKernel(batch_shape=torch.Size([q])).double()
    kernel.lengthscale = torch.linspace(0.5, 1.5, q, dtype=torch.float64).reshape(q, 1, 1)
    return kernel.requires_grad_(False)


def mixed(kernel=None, mixing=W, mean=None):
    return GaussianProcess(mean or ZeroMean(), kernel or own_kernels(mixing.shape[-1]), mixing=mixing)


def posterior(prior, method=EXACT, likelihood=None, data=None):
    data = data or regression(k=prior.num_outputs)
    return method.infer(prior, likelihood or noise(), data, generator=generator()).posterior


def covariances(prior, x1, x2=None):
    """sum_p K_p (x) W_p W_p', point-major, (n1*k, n2*k)."""
    q = prior.mixing.shape[-1]
    matrices = gram(prior.kernel, x1, x1 if x2 is None else x2).expand(q, -1, -1)
    return torch.einsum("jp,pnm,lp->njml", prior.mixing, matrices, prior.mixing).flatten(2).flatten(0, 1)
