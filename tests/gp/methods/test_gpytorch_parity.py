"""Evidence and predictions are GPyTorch's at frozen hyperparameters: what `benchmarks/gp_speed.py` times is one thing.

For scikit-learn see `test_exact.py`, for GPyTorch's variational process, its bound and gradients `test_marginals.py`.
"""

import gpytorch
import pytest
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import InducingPointKernel

from bayeskit.gp import SGPR, Exact

from ..problems import close, constant, generator, matern, noise, process, regression, test_inputs


class Peer(gpytorch.models.ExactGP):
    """The same model in GPyTorch, exact or with inducing points."""

    def __init__(self, data, z):
        likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
        likelihood.noise = torch.tensor(0.05, dtype=torch.float64)
        super().__init__(data.x, data.y[:, 0], likelihood)
        self.mean_module, kernel = gpytorch.means.ConstantMean().double(), matern()
        self.mean_module.raw_constant.data.fill_(0.3)
        self.covar_module = kernel if z is None else InducingPointKernel(kernel, z, likelihood)

    def forward(self, x):
        return MultivariateNormal(self.mean_module(x), self.covar_module(x))


@pytest.mark.parametrize("sparse", [False, True])
def test_evidence_and_predictions_are_those_of_gpytorch(sparse):
    data, x = regression(n=40), test_inputs()
    method = SGPR(num_inducing=12, learn=False, learn_inducing=False) if sparse else Exact(learn=False)
    fit = method.infer(process(mean=constant(0.3)), noise(0.05), data, generator=generator())
    peer = Peer(data, fit.posterior.kernel.z.clone() if sparse else None)
    settings = gpytorch.settings
    with settings.cholesky_jitter(double_value=1e-12), settings.sgpr_diagonal_correction(False), torch.no_grad():
        bound = gpytorch.mlls.ExactMarginalLogLikelihood(peer.likelihood, peer)(peer(data.x), data.y[:, 0]) * len(data)
        expected = peer.eval()(x)
        mean, variance = expected.mean, expected.variance
    close(torch.tensor(float(fit.log_evidence)), bound, 1e-6)
    values = fit.posterior(x)
    close(values.mean[:, 0], mean, 1e-6)
    if not sparse:  # GPyTorch's sparse model predicts without the prior variance that inducing points leave
        close(values.variance[:, 0], variance, 1e-6)
