"""Gaussian processes, prior or posterior: a mean function and a kernel."""

import copy
from dataclasses import dataclass, replace
from functools import partial

import torch
from gpytorch.kernels import Kernel
from gpytorch.means import Mean
from linear_operator import LinearOperator
from linear_operator.operators import (
    BlockInterleavedLinearOperator,
    IdentityLinearOperator,
    KroneckerProductLinearOperator,
    RootLinearOperator,
)
from torch import Tensor

from bayeskit.core.inputs import one_tensor
from bayeskit.core.lazy_moments import DeferredValues, Moments
from bayeskit.core.operators import KernelOperator, Mixed
from bayeskit.core.posterior import Functions, GaussianValues, Posterior
from bayeskit.core.types import Inputs
from bayeskit.gp.kernels.deep import is_frozen
from bayeskit.gp.kernels.evaluate import Evaluated, check_columns, mean_rows
from bayeskit.gp.process import pathwise
from bayeskit.gp.process.conditioned_kernel import Conditioned, ConditionedMean, moments, shared_conditioning
from bayeskit.gp.process.triangular_solves import transposed_solve


@dataclass(frozen=True, eq=False)
class GaussianProcess(Posterior):
    """Functions whose values at any inputs are jointly normal: independent outputs f_j ~ GP(m_j, k_j), or f = W g.

    With a mixing W the mean and the kernel are those of q independent latent functions g, and the k outputs f = W g
    are correlated: cov(f_i(x), f_j(x')) = sum_p W_ip W_jp k_p(x, x'). One kernel for all of g is the intrinsic
    coregionalization model, one kernel each the linear model of coregionalization. Without a mixing f = g.

    Values are formed in float64 whatever the dtype of inputs and hyperparameters. Conditioning gives a
    `GaussianProcess` again, so a posterior can serve as the next prior without approximation.

    Args:
        mean: A gpytorch mean of batch shape () for all latent functions, or (q,) with one for each.
        kernel: A gpytorch kernel of batch shape () for all latent functions, or (q,) with one for each.
        num_outputs: k; with a `mixing` it may be left at 1.
        mixing: W, (k, q), learned if it requires a gradient; None for the identity.

    References:
        Alvarez, Rosasco and Lawrence (2012), "Kernels for Vector-Valued Functions: a Review", sections 4.2 and 4.3.

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> from gpytorch.means import ZeroMean
        >>> values = GaussianProcess(ZeroMean(), RBFKernel(), num_outputs=2)(torch.zeros(3, 1))
        >>> values.mean.shape, values.covariance.shape
        (torch.Size([3, 2]), torch.Size([6, 6]))
        >>> mixed = GaussianProcess(ZeroMean(), RBFKernel(), mixing=torch.tensor([[1.0], [2.0]]))
        >>> mixed(torch.zeros(1, 1)).output_covariance().tolist()
        [[[1.0, 2.0], [2.0, 4.0]]]
    """

    mean: Mean
    kernel: Kernel
    num_outputs: int = 1
    mixing: Tensor | None = None

    def __post_init__(self) -> None:
        if self.mixing is not None:
            self._check_mixing(self.mixing)
        point = torch.zeros(1, 1)
        for part in self.kernel.modules():
            if isinstance(part, Kernel) and part.num_outputs_per_input(point, point) > 1:
                raise ValueError(
                    f"`kernel` must give one number for a pair of inputs, but {type(part).__name__} gives a matrix "
                    "over outputs; for independent outputs use a kernel of batch shape () or (k,) and "
                    "`num_outputs=k`, for correlated ones a `mixing` of shape (k, q)"
                )
        if self.kernel.batch_shape not in (torch.Size(), torch.Size([self.num_latents])):
            given = "the columns of `mixing`" if self.mixing is not None else f"`num_outputs={self.num_outputs}`"
            raise ValueError(
                f"`kernel` must have batch shape () (one kernel for all outputs) or ({self.num_latents},) (one for "
                f"each of {given}); got {tuple(self.kernel.batch_shape)}"
            )

    def _check_mixing(self, mixing: Tensor) -> None:
        if mixing.dim() != 2 or not bool(mixing.isfinite().all()):
            raise ValueError(f"`mixing` must be a finite matrix (k, q); got shape {tuple(mixing.shape)}")
        if self.num_outputs not in (1, len(mixing)):
            raise ValueError(f"`mixing` must have `num_outputs={self.num_outputs}` rows; got {len(mixing)}")
        object.__setattr__(self, "num_outputs", len(mixing))

    @property
    def num_latents(self) -> int:
        """Number of independent latent functions, q; without a mixing that of the outputs."""
        return self.num_outputs if self.mixing is None else self.mixing.shape[-1]

    def num_outputs_at(self, x: Inputs) -> int:
        """k, whatever the inputs."""
        return self.num_outputs

    def __call__(self, x: Inputs) -> GaussianValues:
        """Joint distribution of the function at inputs (n, d), as GaussianValues over n inputs and k outputs."""
        x = one_tensor(x).double()
        process = self.frozen()
        known = shared_conditioning(process.mean, process.kernel)
        if known is None:
            return GaussianValues(process._mean(x), process._covariance(x))
        check_columns(known[1].base, known[1].z, x)
        return DeferredValues(_AtInputs(process, *known, x), process._covariance(x))

    def _mean(self, x: Tensor) -> Tensor:
        """The mean of the outputs at inputs (n, d): (n, k)."""
        return self.mixed(self.mean_rows(x).mT.contiguous())

    def _covariance(self, x: Tensor) -> LinearOperator:
        """The joint covariance at inputs (n, d), as an operator."""
        kernel = self.kernel if isinstance(self.kernel, Conditioned) else Evaluated(self.kernel)
        prior = pathwise.before_data(self.kernel)
        before = None if prior is self.kernel else prior
        if self.kernel.batch_shape:
            x_each = x.expand(self.num_latents, *x.shape)
            each = BlockInterleavedLinearOperator(KernelOperator(x_each, x_each, kernel=kernel, before=before))
            return each if self.mixing is None else Mixed(self.mixing, each)
        shared = KernelOperator(x, x, kernel=kernel, before=before)
        if self.mixing is not None:
            return KroneckerProductLinearOperator(shared, RootLinearOperator(self.mixing))
        if self.num_outputs == 1:
            return shared
        identity = IdentityLinearOperator(self.num_outputs, dtype=x.dtype, device=x.device)
        return KroneckerProductLinearOperator(shared, identity)

    def mixed(self, latents: Tensor) -> Tensor:
        """The outputs (*b, k) for values (*b, q) of the latent functions."""
        return latents if self.mixing is None else latents @ self.mixing.mT

    def sample_functions(self, num_samples: int, *, generator: torch.Generator) -> Functions:
        """S fixed functions; `bayeskit.gp.process.pathwise.draws` says how, and where they are exact.

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
        draws = pathwise.draws(process.kernel, num_samples, self.num_latents, like=like, generator=generator)
        return partial(_plus_mean, process, draws)

    def frozen(self) -> "GaussianProcess":
        """The process with float64 hyperparameters that require no gradient; `self` if it is so already."""
        known = self.mixing is None or (self.mixing.dtype == torch.float64 and not self.mixing.requires_grad)
        if known and is_frozen(self.mean) and is_frozen(self.kernel):
            return self
        mixing = None if self.mixing is None else self.mixing.detach().double().clone()
        return replace(self, mean=_frozen(self.mean), kernel=_frozen(self.kernel), mixing=mixing)

    def mean_rows(self, x: Tensor) -> Tensor:
        """The means of the latent functions at inputs (n, d), one row each: (q, n)."""
        return mean_rows(self.mean, x, self.num_latents)

    def conditioned(
        self, z: Tensor, tril: Tensor, whitened: Tensor, *, root: Tensor | None = None, noise: Tensor | None = None
    ) -> "GaussianProcess":
        """This process given v = L^-1 f(z) ~ N(q, R R'), or given noisy values with L L' = k(z, z) + noise.

        Conditioning a conditioned process merges the two into one over the first kernel, as `Conditioned` explains.
        With a mixing, each latent function g is conditioned separately; the outputs stay f = W g.

        Args:
            z: Inputs (m, d).
            tril: L, (m, m) or (q, m, m).
            whitened: The mean of v, (q, m).
            root: R, (m, r) or (q, m, r); None for zero.
            noise: Observation noise inside L L', (m,) or (q, m).

        Returns:
            The posterior process, its hyperparameters frozen.
        """
        prior = self.frozen()
        z, tril, whitened = z.detach(), tril.detach(), whitened.detach()
        if isinstance(prior.kernel, Conditioned) and isinstance(prior.mean, ConditionedMean):
            mean, kernel = _folded(prior.kernel, prior.mean, z=z, tril=tril, whitened=whitened, root=root, noise=noise)
            return replace(prior, mean=mean, kernel=kernel)
        weights = transposed_solve(tril, whitened)
        root = None if root is None else _plain(root.detach())
        kernel = Conditioned(prior.kernel, z, _plain(tril), root=root, noise=noise)
        return replace(prior, mean=ConditionedMean(prior.mean, prior.kernel, z, weights), kernel=kernel)


def _folded(
    kernel: Conditioned,
    mean: ConditionedMean,
    *,
    z: Tensor,
    tril: Tensor,
    whitened: Tensor,
    root: Tensor | None,
    noise: Tensor | None,
) -> tuple[ConditionedMean, Conditioned]:
    """Two conditionings merged into one over the first kernel; equations in `conditioned_kernel.py`."""
    first = len(kernel.z)
    below = kernel.deflated(kernel.projection(z)).mT  # C (I - R1 R1'), (*b, m2, m1)
    batch = torch.broadcast_shapes(kernel.tril.shape[:-2], below.shape[:-2], tril.shape[:-2])
    size = first + len(z)
    joint = tril.new_zeros(*batch, size, size)
    joint[..., :first, :first], joint[..., first:, :first], joint[..., first:, first:] = kernel.tril, below, tril
    target = torch.cat([torch.zeros_like(mean.weights).expand(len(whitened), first), whitened], dim=-1)
    weights = transposed_solve(joint, target)
    weights[..., :first] += mean.weights
    merged = Conditioned(
        kernel.base,
        torch.cat([kernel.z, z]),
        joint,
        root=_block_diagonal(kernel.root, root, first, len(z), like=tril),
        noise=_concatenated(kernel.noise, noise, first, len(z), like=tril),
        blocks=(*kernel.blocks, len(z)),
    )
    return ConditionedMean(mean.base_mean, mean.base_kernel, merged.z, weights), merged


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


def _plain(matrix: Tensor) -> Tensor:
    """The matrix in row-major memory: a Cholesky factor is column-major, and a saved file loses that."""
    return matrix.clone(memory_format=torch.contiguous_format)


def _frozen(module):
    return copy.deepcopy(module).double().requires_grad_(False)


@dataclass(frozen=True, eq=False)
class _AtInputs(Moments):
    """Moments of the outputs of a process at inputs (n, d); `known` and `kernel` are its mean and kernel."""

    process: GaussianProcess
    known: ConditionedMean
    kernel: Conditioned
    x: Tensor

    def mean(self) -> Tensor:
        return self.process._mean(self.x)

    def both(self) -> tuple[Tensor, Tensor]:
        mean, variance = moments(self.known, self.kernel, self.x)
        mean = self.process.mixed(mean.mT.contiguous())
        variance = variance.expand(self.process.num_latents, -1).mT.contiguous()
        mixing = self.process.mixing
        return mean, variance if mixing is None else variance @ mixing.square().mT


def _plus_mean(process: GaussianProcess, draws: pathwise.Draws, x: Tensor) -> Tensor:
    """Mean plus zero-mean samples, (s, n, k)."""
    x = x.double()
    return process.mixed((process.mean_rows(x) + draws(x)).mT.contiguous())
