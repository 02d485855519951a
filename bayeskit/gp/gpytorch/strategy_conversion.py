"""Variational posteriors of gpytorch as conditioned processes.

With K = k(Z, Z) + jitter = L L' and the strategy's Gaussian N(a, S), the distribution of v = L^-1 (f(Z) - m(Z)) is

    whitened:      N(a, S)                                        f(Z) = m(Z) + L v
    unwhitened:    N(L^-1 (a - m(Z)), L^-1 S L^-T)                f(Z) ~ N(a, S)
    contour:       N(O a, O S O'),   O = L^-1 K^1/2               f(Z) = m(Z) + K^1/2 v'
"""

from dataclasses import replace
from typing import Any

import torch
from gpytorch.distributions import Delta
from gpytorch.kernels import AdditiveKernel, Kernel
from gpytorch.means import Mean
from gpytorch.variational import (
    CiqVariationalStrategy,
    IndependentMultitaskVariationalStrategy,
    LargeBatchVariationalStrategy,
    LMCVariationalStrategy,
    OrthogonallyDecoupledVariationalStrategy,
    UnwhitenedVariationalStrategy,
    VariationalStrategy,
)
from torch import Tensor

from bayeskit.core.operators import factorize, semidefinite_root
from bayeskit.core.posterior import Posterior
from bayeskit.gp.gpytorch.prior_conversion import prior_of
from bayeskit.gp.kernels.coregionalization import MeanRows, OutputKernel, OutputMean
from bayeskit.gp.kernels.evaluate import gram, mean_rows
from bayeskit.gp.model.multitask import StackedProcess
from bayeskit.gp.process.gaussian_process import GaussianProcess

_OVER_INDUCING_VALUES = (
    VariationalStrategy,
    LargeBatchVariationalStrategy,
    UnwhitenedVariationalStrategy,
    CiqVariationalStrategy,
)


def posterior_of(model: Any) -> Posterior | None:
    """The posterior of an `ApproximateGP` in float64 and evaluation mode; None where its strategy is not known here."""
    strategy: Any = model.variational_strategy
    count: int | None = None
    mixing: Tensor | None = None
    if type(strategy) is IndependentMultitaskVariationalStrategy:
        strategy, count = strategy.base_variational_strategy, strategy.num_tasks
    elif type(strategy) is LMCVariationalStrategy:
        weights: Any = strategy.lmc_coefficients  # (l, k)
        strategy, count = strategy.base_variational_strategy, len(weights)
        if weights.dim() != 2:
            return None
        mixing = weights.mT.contiguous()
    inner: Any = strategy.model if type(strategy) is OrthogonallyDecoupledVariationalStrategy else strategy
    if type(inner) not in _OVER_INDUCING_VALUES or inner.inducing_points.dim() > 3:
        return None
    processes = _processes(model, inner, count)
    if processes is None:
        return None
    if strategy is not inner:
        processes = [_shifted(process, strategy) for process in processes]
    if len(processes) == 1:
        return processes[0] if mixing is None else replace(processes[0], num_outputs=1, mixing=mixing)
    if mixing is None:
        mixing = torch.eye(len(processes), dtype=torch.float64, device=inner.inducing_points.device)
    return _mixed(processes, mixing)


def _processes(model: Any, strategy: Any, count: int | None) -> list[GaussianProcess] | None:
    """One process for all functions, or one for each where they have inducing points of their own."""
    z = strategy.inducing_points
    prior = prior_of(model, z if z.dim() == 2 else z[0])
    if not isinstance(prior, GaussianProcess):
        return None
    mean, root = _moments(strategy)
    k = max(count or 1, prior.num_outputs, mean.shape[:-1].numel(), z.shape[:-2].numel())
    if not {prior.num_outputs, mean.shape[:-1].numel(), z.shape[:-2].numel()} <= {1, k}:
        return None
    prior = replace(prior, num_outputs=k)
    mean = mean.expand(k, mean.shape[-1])
    if z.dim() == 2 or len(z) == 1:
        return [_conditioned(prior, strategy, z.reshape(*z.shape[-2:]), mean, root)]
    return [
        _conditioned(_output(prior, j), strategy, z[j], mean[j : j + 1], None if root is None else _one(root, j))
        for j in range(k)
    ]


def _moments(strategy: Any) -> tuple[Tensor, Tensor | None]:
    """Mean (m,) or (k, m) of the strategy's Gaussian and a root of its covariance, None where that is zero."""
    q = strategy._variational_distribution()
    if isinstance(q, Delta):
        return q.mean, None
    return q.mean, semidefinite_root(q.lazy_covariance_matrix.to_dense(), name="covariance of the inducing values")


def _conditioned(
    prior: GaussianProcess, strategy: Any, z: Tensor, mean: Tensor, root: Tensor | None
) -> GaussianProcess:
    """The process with the strategy's Gaussian at z; `mean` is (k, m) and `root` (m, m) or (k, m, m)."""
    identity = torch.eye(len(z), dtype=z.dtype, device=z.device)
    covariance = gram(prior.kernel, z, z) + strategy.jitter_val * identity
    tril = factorize(covariance, name="K_zz").tril
    if type(strategy) is UnwhitenedVariationalStrategy:
        rows = torch.linalg.solve_triangular(tril, (mean - prior.mean_rows(z)).unsqueeze(-1), upper=False)
        root = None if root is None else torch.linalg.solve_triangular(tril, root, upper=False)
        mean = rows.squeeze(-1)
    if type(strategy) is CiqVariationalStrategy:
        values, vectors = torch.linalg.eigh(covariance)
        symmetric = (vectors * values.clamp_min(0).sqrt().unsqueeze(-2)) @ vectors.mT
        turn = torch.linalg.solve_triangular(tril, symmetric, upper=False)
        mean = (turn @ mean.unsqueeze(-1)).squeeze(-1)
        root = None if root is None else turn @ root
    return prior.conditioned(z, tril, mean, root=root)


def _shifted(process: GaussianProcess, strategy: Any) -> GaussianProcess:
    """The process with mean shifted by k(x, b) a and unchanged covariance: f(b) = L v, v ~ N(L' a, I), not N(0, I)."""
    z, weights = strategy.inducing_points, strategy._variational_distribution().mean
    tril = factorize(gram(process.kernel, z, z), name="covariance of the orthogonal inducing values").tril
    whitened = (tril.mT @ weights.unsqueeze(-1)).squeeze(-1).expand(process.num_outputs, len(z))
    identity = torch.eye(len(z), dtype=z.dtype, device=z.device)
    return process.conditioned(z, tril, whitened, root=identity)


def _mixed(processes: list[GaussianProcess], mixing: Tensor) -> StackedProcess:
    """Mixtures of processes of one function each, whose kernels were conditioned at different inputs."""
    columns = mixing.split(1, dim=-1)
    terms = [OutputKernel(process.kernel, column) for process, column in zip(processes, columns, strict=True)]
    mean = OutputMean(MeanRows(process.mean for process in processes), mixing)
    return StackedProcess(GaussianProcess(mean, AdditiveKernel(*terms)), len(mixing))


def _output(prior: GaussianProcess, j: int) -> GaussianProcess:
    """A single output of a process."""
    kernel: Kernel = prior.kernel[j] if prior.kernel.batch_shape else prior.kernel
    return GaussianProcess(_Row(prior.mean, prior.num_outputs, j), kernel)


def _one(root: Tensor, j: int) -> Tensor:
    return root if root.dim() == 2 else root[j if len(root) > 1 else 0]


class _Row(Mean):
    """A single output of a mean of batch shape (k,)."""

    def __init__(self, base: Mean, num_outputs: int, row: int):
        super().__init__()
        self.base, self.num_outputs, self.row = base, num_outputs, row

    def forward(self, x: Tensor) -> Tensor:
        """Means (n,)."""
        return mean_rows(self.base, x, self.num_outputs)[self.row]
