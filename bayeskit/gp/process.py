"""The Gaussian process: a mean function and a kernel, before or after data."""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from gpytorch.constraints import Positive
from gpytorch.kernels import Kernel, MaternKernel, ScaleKernel
from gpytorch.means import ConstantMean, Mean
from gpytorch.priors import NormalPrior
from linear_operator import LinearOperator
from linear_operator.operators import (
    BlockInterleavedLinearOperator,
    IdentityLinearOperator,
    KroneckerProductLinearOperator,
)
from torch import Tensor, nn

from bayeskit.core.operators import KernelOperator
from bayeskit.core.posterior import Functions, GaussianValues, Posterior
from bayeskit.core.types import Inputs
from bayeskit.gp import pathwise
from bayeskit.gp.cg import IterativelyConditioned
from bayeskit.gp.conditioned import Conditioned, ConditionedMean
from bayeskit.gp.gram import Evaluated, mean_rows
from bayeskit.gp.inducing import spread
from bayeskit.gp.neighbors import Nearest


@dataclass(frozen=True, eq=False)
class GaussianProcess(Posterior):
    """Functions whose values at any inputs are jointly normal: f_j ~ GP(m_j, k_j), independent outputs.

    Values are formed in float64 whatever the dtype of inputs and hyperparameters. Conditioning gives a
    `GaussianProcess` again, so a posterior is the next prior with nothing dropped.

    Args:
        mean: A gpytorch mean of batch shape () for all outputs, or (k,) with one for each.
        kernel: A gpytorch kernel of batch shape () for all outputs, or (k,) with one for each.
        num_outputs: k.

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> from gpytorch.means import ZeroMean
        >>> values = GaussianProcess(ZeroMean(), RBFKernel(), num_outputs=2)(torch.zeros(3, 1))
        >>> values.mean.shape, values.covariance.shape
        (torch.Size([3, 2]), torch.Size([6, 6]))
    """

    mean: Mean
    kernel: Kernel
    num_outputs: int = 1

    def __post_init__(self) -> None:
        point = torch.zeros(1, 1)
        for part in self.kernel.modules():
            if isinstance(part, Kernel) and part.num_outputs_per_input(point, point) > 1:
                raise ValueError(
                    f"`kernel` must give one number for a pair of inputs, but {type(part).__name__} gives a matrix "
                    "over outputs; outputs are independent here: use a kernel of batch shape () for all of them or "
                    "(k,) with one for each, and `num_outputs=k`"
                )
        if self.kernel.batch_shape not in (torch.Size(), torch.Size([self.num_outputs])):
            raise ValueError(
                f"`kernel` must have batch shape () (one kernel for all outputs) or ({self.num_outputs},) (one for "
                f"each of `num_outputs={self.num_outputs}`); got {tuple(self.kernel.batch_shape)}"
            )

    def __call__(self, x: Inputs) -> GaussianValues:
        """Joint law of the function at inputs (n, d), as GaussianValues over n inputs and k outputs."""
        x = x[:].double()
        process = self.frozen()
        kernel = process.kernel if isinstance(process.kernel, Conditioned) else Evaluated(process.kernel)
        before: Kernel | None = None
        if isinstance(process.kernel, Conditioned | IterativelyConditioned | Nearest):
            before = process.kernel.base
        covariance: LinearOperator
        if self.num_outputs == 1 and not self.kernel.batch_shape:
            covariance = KernelOperator(x, x, kernel=kernel, before=before)
        elif self.kernel.batch_shape:
            x_each = x.expand(self.num_outputs, *x.shape)
            covariance = BlockInterleavedLinearOperator(KernelOperator(x_each, x_each, kernel=kernel, before=before))
        else:
            identity = IdentityLinearOperator(self.num_outputs, dtype=x.dtype, device=x.device)
            covariance = KroneckerProductLinearOperator(KernelOperator(x, x, kernel=kernel, before=before), identity)
        return GaussianValues(process.mean_rows(x).mT.contiguous(), covariance)

    def sample_functions(self, num_samples: int, *, generator: torch.Generator) -> Functions:
        """S fixed functions by Matheron's rule on random waves; see `gp.pathwise.draws` for where this is exact.

        Args:
            num_samples: s.
            generator: Source of randomness.

        Returns:
            A function from inputs (n, d) to values (s, n, k).
        """
        process = self.frozen()
        tensors = [*process.kernel.parameters(), *process.kernel.buffers()]
        device = tensors[0].device if tensors else torch.device("cpu")
        like = torch.zeros((), dtype=torch.float64, device=device)
        return _Paths(
            process, pathwise.draws(process.kernel, num_samples, self.num_outputs, like=like, generator=generator)
        )

    def frozen(self) -> "GaussianProcess":
        """The same process with hyperparameters in float64 that need no gradient; itself if they are so already."""
        parameters = [*self.mean.parameters(), *self.kernel.parameters()]
        if all(p.dtype == torch.float64 and not p.requires_grad for p in parameters):
            return self
        return GaussianProcess(_frozen(self.mean), _frozen(self.kernel), self.num_outputs)

    def mean_rows(self, x: Tensor) -> Tensor:
        """The mean functions at inputs (n, d), one row an output: (k, n)."""
        return mean_rows(self.mean, x, self.num_outputs)

    def conditioned(
        self, z: Tensor, tril: Tensor, whitened: Tensor, *, root: Tensor | None = None, noise: Tensor | None = None
    ) -> "GaussianProcess":
        """This process given what is known of v = L^-1 f(z): v ~ N(q, R R'), or the noisy values that L L' describes.

        Conditioning a conditioned process folds the two into one over the first kernel, as `Conditioned` explains.

        Args:
            z: Inputs (m, d).
            tril: L, (m, m) or (k, m, m).
            whitened: q, (k, m).
            root: R, (m, r) or (k, m, r); None for zero.
            noise: Observation noise inside L L', (m,) or (k, m).

        Returns:
            The posterior process, its hyperparameters frozen.
        """
        prior = self.frozen()
        z, tril, whitened = z.detach(), tril.detach(), whitened.detach()
        if isinstance(prior.kernel, Conditioned) and isinstance(prior.mean, ConditionedMean):
            return _folded(prior.kernel, prior.mean, z=z, tril=tril, whitened=whitened, root=root, noise=noise)
        weights = _transposed_solve(tril, whitened)
        root = None if root is None else _plain(root.detach())
        kernel = Conditioned(prior.kernel, z, _plain(tril), root=root, noise=noise)
        return GaussianProcess(ConditionedMean(prior.mean, prior.kernel, z, weights), kernel, self.num_outputs)


def default_prior(x: Tensor, num_outputs: int = 1) -> GaussianProcess:
    """A process for targets of about unit variance: constant mean, scaled Matern-5/2 kernel, a lengthscale a feature.

    The start comes from the distinct inputs: lengthscale_j = sqrt(d) std(x_j), so that two rows of the data are about
    as far apart, in lengthscales, whatever d is. Hyperparameters are held by weak priors rather than bounds: their
    logarithms are normal around the start with standard deviation sqrt(3) (lengthscales) and 3 (output scale).

    Args:
        x: The inputs to model, (n, d).
        num_outputs: k.

    Returns:
        A process with learnable hyperparameters.

    References:
        Hvarfner, Hellsten and Nardi (2024), "Vanilla Bayesian Optimization Performs Great in High Dimensions",
        section 4, for lengthscales that grow with sqrt(d).

    Examples:
        >>> prior = default_prior(torch.tensor([[0.0, 5.0], [2.0, 5.0]]))
        >>> prior.kernel.base_kernel.lengthscale.tolist()  # a constant column has no scale of its own
        [[1.4142135623730951, 1.4142135623730951]]
    """
    d = x.shape[-1]
    unit = spread(torch.unique(x.double(), dim=0)) if len(x) else torch.ones(d, dtype=torch.float64, device=x.device)
    start = (unit * math.sqrt(d)).log().unsqueeze(0)  # (1, d)
    base = MaternKernel(
        nu=2.5,
        ard_num_dims=d,
        lengthscale_prior=NormalPrior(start, torch.full_like(start, math.sqrt(3)), transform=torch.log),
        lengthscale_constraint=_log_scale(),
    )
    zero = torch.zeros((), dtype=torch.float64, device=x.device)
    kernel = ScaleKernel(
        base,
        outputscale_prior=NormalPrior(zero, zero + 3, transform=torch.log),
        outputscale_constraint=_log_scale(),
    )
    base.raw_lengthscale = nn.Parameter(start.clone())
    kernel.raw_outputscale = nn.Parameter(zero.clone())
    mean = ConstantMean(batch_shape=torch.Size([num_outputs])).to(zero)
    return GaussianProcess(mean, kernel, num_outputs)


def _log_scale() -> Positive:
    """A positive parameter searched on the logarithmic scale, where steps mean the same at any size."""
    exponential: Any = torch.exp
    return Positive(transform=exponential, inv_transform=torch.log)


def _folded(
    kernel: Conditioned,
    mean: ConditionedMean,
    *,
    z: Tensor,
    tril: Tensor,
    whitened: Tensor,
    root: Tensor | None,
    noise: Tensor | None,
) -> GaussianProcess:
    """Two conditionings as one over the first kernel; the equations are those of `conditioned.py`."""
    first, num_outputs = len(kernel.z), len(whitened)
    below = kernel.deflated(kernel.projection(z)).mT  # C (I - R1 R1'), (*b, m2, m1)
    batch = torch.broadcast_shapes(kernel.tril.shape[:-2], below.shape[:-2], tril.shape[:-2])
    size = first + len(z)
    joint = tril.new_zeros(*batch, size, size)
    joint[..., :first, :first], joint[..., first:, :first], joint[..., first:, first:] = kernel.tril, below, tril
    target = torch.cat([torch.zeros_like(mean.weights).expand(num_outputs, first), whitened], dim=-1)
    weights = _transposed_solve(joint, target)
    weights[..., :first] += mean.weights
    merged = Conditioned(
        kernel.base,
        torch.cat([kernel.z, z]),
        joint,
        root=_block_diagonal(kernel.root, root, first, len(z), like=tril),
        noise=_concatenated(kernel.noise, noise, first, len(z), like=tril),
        blocks=(*kernel.blocks, len(z)),
    )
    return GaussianProcess(ConditionedMean(mean.base_mean, mean.base_kernel, merged.z, weights), merged, num_outputs)


def _block_diagonal(
    first: Tensor | None, second: Tensor | None, rows1: int, rows2: int, *, like: Tensor
) -> Tensor | None:
    """diag(R1, R2), with no columns for a root that is absent; None if both are."""
    if first is None and second is None:
        return None
    first = like.new_zeros(rows1, 0) if first is None else first
    second = like.new_zeros(rows2, 0) if second is None else second.detach()
    batch = torch.broadcast_shapes(first.shape[:-2], second.shape[:-2])
    columns = first.shape[-1]
    joint = like.new_zeros(*batch, rows1 + rows2, columns + second.shape[-1])
    joint[..., :rows1, :columns], joint[..., rows1:, columns:] = first, second
    return joint


def _concatenated(first: Tensor | None, second: Tensor | None, n1: int, n2: int, *, like: Tensor) -> Tensor | None:
    """Noise variances of both conditionings, zero where there is none; None if both are."""
    if first is None and second is None:
        return None
    first = like.new_zeros(n1) if first is None else first
    second = like.new_zeros(n2) if second is None else second.detach()
    batch = torch.broadcast_shapes(first.shape[:-1], second.shape[:-1])
    return torch.cat([first.expand(*batch, n1), second.expand(*batch, n2)], dim=-1)


def _transposed_solve(tril: Tensor, rows: Tensor) -> Tensor:
    """L^-T applied to each row: (k, m) for L of shape (m, m) or (k, m, m)."""
    if tril.dim() == 2:
        return torch.linalg.solve_triangular(tril.mT, rows.mT, upper=True).mT.contiguous()
    return torch.linalg.solve_triangular(tril.mT, rows.unsqueeze(-1), upper=True).squeeze(-1)


def _plain(matrix: Tensor) -> Tensor:
    """Row-major memory: a Cholesky factor is column-major, and a file would not bring that back."""
    return matrix.clone(memory_format=torch.contiguous_format)


def _frozen(module):
    return copy.deepcopy(module).double().requires_grad_(False)


class _Paths:
    """Mean plus zero-mean draws, (s, n, k)."""

    def __init__(self, process: GaussianProcess, draws: pathwise.Draws):
        self.process, self.draws = process, draws

    def __call__(self, x: Tensor) -> Tensor:
        x = x.double()
        return (self.process.mean_rows(x) + self.draws(x)).mT.contiguous()
