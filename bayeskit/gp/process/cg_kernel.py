"""Kernel systems too large to factorize: preconditioned conjugate gradients and Lanczos quadrature.

To solve C x = b with C = K + D, K a kernel matrix and D the diagonal of noise, a partial pivoted Cholesky factor
K ~ F F' gives the preconditioner P = F F' + D, for which T with T' T = P^-1 is inexpensive:

    V = D^-1/2 F = U S W'    =>    T = (I + V V')^-1/2 D^-1/2 = (D^-1/2 + U ((1 + S^2)^-1/2 - 1) U' D^-1/2).

M = T C T' has eigenvalues near one. Conjugate gradients on M solve the system, and stochastic Lanczos quadrature on M
gives log|C| = log|P| + tr log M, the trace estimated with random-sign probes.
"""

import math
import warnings
from dataclasses import dataclass

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from bayeskit.core import operators
from bayeskit.gp.kernels.evaluate import gram, gram_diagonal, gram_pairs
from bayeskit.gp.kernels.pivoted_cholesky import pivoted_cholesky
from bayeskit.gp.process.conditioned_kernel import floored, identical

PRECONDITIONER_RANK = 200
"""Rank r of F: O(n r^2) operations, as many as 4 iterations of conjugate gradients at n = 10,000."""

DENSE_ELEMENTS = 2**28
"""A kernel matrix of at most this many numbers (2 GiB) is kept while a system is solved; larger ones are recomputed."""

MAX_ITERATIONS = 1000
"""Limit on the iterations of conjugate gradients; a residual that remains above the tolerance is warned of."""

REFINEMENTS = 3
"""Rounds of iterative refinement, for the rounding that the recursive residual does not show."""

NUM_PROBES = 32
"""Random probes of the trace; its standard error falls as their root and is reported with the evidence."""

LANCZOS_STEPS = 60
"""Quadrature nodes per probe; the difference to half as many enters the reported standard error."""


@dataclass(frozen=True, eq=False)
class Preconditioner:
    """The preconditioner P = F F' + D, in terms of its symmetric inverse root T.

    Args:
        noise: The diagonal of D, (n,).
        basis: U, (n, r).
        singular: S, (r,).
    """

    noise: Tensor
    basis: Tensor
    singular: Tensor

    @classmethod
    @torch.no_grad()
    def build(cls, kernel: Kernel, z: Tensor, noise: Tensor) -> "Preconditioner":
        """From at most `PRECONDITIONER_RANK` rows of the kernel matrix."""
        rank = min(PRECONDITIONER_RANK, len(z))
        factor, _ = pivoted_cholesky(gram_diagonal(kernel, z), lambda i: gram(kernel, z[i : i + 1], z)[0], rank)
        basis, singular, _ = torch.linalg.svd(factor / noise.sqrt().unsqueeze(-1), full_matrices=False)
        return cls(noise, basis.contiguous(), singular)

    def whiten(self, rhs: Tensor) -> Tensor:
        """T b for b of shape (n, q)."""
        return self._shrink(rhs / self.noise.sqrt().unsqueeze(-1))

    def unwhiten(self, rhs: Tensor) -> Tensor:
        """T' b for b of shape (n, q)."""
        return self._shrink(rhs) / self.noise.sqrt().unsqueeze(-1)

    def logdet(self) -> Tensor:
        """log|P|."""
        return self.noise.log().sum() + self.singular.square().log1p().sum()

    def _shrink(self, rhs: Tensor) -> Tensor:
        return rhs + self.basis @ ((self.singular.square() + 1).rsqrt() - 1).unsqueeze(-1).mul(self.basis.mT @ rhs)


class System:
    """C = k(z, z) + D with products, solves and log-determinant that do not factorize C.

    Args:
        kernel: A kernel without batch axes.
        z: Inputs (n, d).
        preconditioner: For this kernel, inputs and noise.
        tolerance: Largest relative residual |b - C x| / |b| of a solution.

    References:
        Gardner et al. (2018), "GPyTorch: Blackbox Matrix-Matrix Gaussian Process Inference with GPU Acceleration".
        Ubaru, Chen and Saad (2017), "Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature", Algorithm 1.

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> kernel = RBFKernel().requires_grad_(False)
        >>> z, noise = torch.zeros(2, 1, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
        >>> system = System(kernel, z, Preconditioner.build(kernel, z, noise), tolerance=1e-8)
        >>> [round(v, 6) for v in system.solve(torch.tensor([[3.0], [0.0]], dtype=torch.float64))[:, 0].tolist()]
        [2.0, -1.0]
    """

    def __init__(self, kernel: Kernel, z: Tensor, preconditioner: Preconditioner, *, tolerance: float):
        self.kernel, self.z, self.preconditioner, self.tolerance = kernel, z, preconditioner, tolerance
        self.dense = gram(kernel, z, z) if len(z) ** 2 <= DENSE_ELEMENTS else None

    def product(self, vectors: Tensor) -> Tensor:
        """C v for v of shape (n, q)."""
        noisy = self.preconditioner.noise.unsqueeze(-1) * vectors
        if self.dense is not None:
            return torch.addmm(noisy, self.dense, vectors)
        parts = [gram(self.kernel, rows, self.z) @ vectors for rows in operators.pieces(self.z, len(self.z))]
        return torch.cat(parts).add_(noisy)

    def whitened_product(self, vectors: Tensor) -> Tensor:
        """M v = T C T' v."""
        return self.preconditioner.whiten(self.product(self.preconditioner.unwhiten(vectors)))

    def solve(self, rhs: Tensor) -> Tensor:
        """C^-1 b for b of shape (n, q); notes the residual, and warns if it is above the tolerance."""
        solution, residual = torch.zeros_like(rhs), rhs
        size = rhs.norm(dim=0).clamp_min(torch.finfo(rhs.dtype).tiny)
        relative = math.inf
        for _ in range(REFINEMENTS):
            step = self._conjugate_gradients(self.preconditioner.whiten(residual))
            solution = solution + self.preconditioner.unwhiten(step)
            residual = rhs - self.product(solution)
            relative = float((residual.norm(dim=0) / size).max())
            if relative <= self.tolerance:
                break
        operators.note("relative residual of conjugate gradients", relative)
        if not relative <= self.tolerance:
            warnings.warn(
                f"conjugate gradients stopped at a relative residual of {relative:.1e}, above the tolerance of "
                f"{self.tolerance:.1e}, on {len(self.z)} points: more noise, or `gp.SGPR`, makes the system easier.",
                RuntimeWarning,
                stacklevel=2,
            )
        return solution

    def logdet(self, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """log|C| and its standard error over the probes and the quadrature.

        Args:
            generator: Draws the random signs.
        """
        n = len(self.z)
        signs = torch.randint(0, 2, (n, NUM_PROBES), generator=generator, device=generator.device)
        probes = (2 * signs - 1).to(self.z)
        steps = min(LANCZOS_STEPS, n)
        alphas, betas = self._lanczos(probes, steps)
        values = n * _quadrature(alphas, betas)  # (probes,)
        coarser = n * _quadrature(alphas[:, : max(1, steps // 2)], betas[:, : max(0, steps // 2 - 1)])
        error = (values.var() / NUM_PROBES + (values - coarser).mean().square()).sqrt()
        return self.preconditioner.logdet() + values.mean(), error

    def _conjugate_gradients(self, rhs: Tensor) -> Tensor:
        """M^-1 b by conjugate gradients, each column on its own until its residual is small."""
        solution, residual, direction = torch.zeros_like(rhs), rhs.clone(), rhs.clone()
        energy = residual.square().sum(0)
        goal = energy * (0.1 * self.tolerance) ** 2
        iteration = 0
        while iteration < MAX_ITERATIONS and bool((energy > goal).any()):
            image = self.whitened_product(direction)
            active = energy > goal  # converged columns stop: their step would be 0 / 0
            length = torch.where(active, energy / (direction * image).sum(0), torch.zeros_like(energy))
            solution += length * direction
            residual -= length * image
            fresh = residual.square().sum(0)
            ratio = torch.where(active, fresh / energy, torch.zeros_like(energy))
            direction = torch.where(active, residual + ratio * direction, direction)
            energy = torch.where(active, fresh, energy)
            iteration += 1
        operators.note("iterations of conjugate gradients", iteration)
        return solution

    def _lanczos(self, probes: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Tridiagonal entries (q, steps) and (q, steps - 1) of M from each probe, with full reorthogonalization."""
        q = probes.shape[-1]
        basis = probes.new_zeros(q, steps, len(probes))
        basis[:, 0] = (probes / probes.norm(dim=0)).mT
        alphas, betas = probes.new_zeros(q, steps), probes.new_zeros(q, steps - 1)
        for step in range(steps):
            image = self.whitened_product(basis[:, step].mT).mT  # (q, n)
            alphas[:, step] = (basis[:, step] * image).sum(-1)
            if step == steps - 1:
                break
            known = basis[:, : step + 1]
            for _ in range(2):  # twice is enough (Kahan and Parlett)
                overlap = known @ image.unsqueeze(-1)  # (q, step + 1, 1)
                image = image - (known.mT @ overlap).squeeze(-1)
            norm = image.norm(dim=-1)
            norm = torch.where(norm > 1e-10, norm, torch.zeros_like(norm))  # below, the Krylov space is exhausted
            betas[:, step] = norm
            basis[:, step + 1] = torch.where(norm > 0, 1 / norm, norm).unsqueeze(-1) * image
        return alphas, betas


def _quadrature(alphas: Tensor, betas: Tensor) -> Tensor:
    """e1' log(T) e1 for tridiagonal matrices T, (q,), without directions beyond an exhausted Krylov space."""
    matrix = torch.diag_embed(alphas) + torch.diag_embed(betas, 1) + torch.diag_embed(betas, -1)
    values, vectors = torch.linalg.eigh(matrix)
    weights = vectors[:, 0].square()
    reached = weights > 1e-14
    return torch.where(reached, weights * torch.where(reached, values, torch.ones_like(values)).log(), weights * 0).sum(
        -1
    )


class IterativelyConditioned(Kernel):
    """The covariance k(x1, x2) - k(x1, z) C^-1 k(z, x2) with C = k(z, z) + noise solved by conjugate gradients.

    Every evaluation solves one system for each input, to the stated tolerance.

    Args:
        base: The kernel before conditioning, without batch axes.
        z: Inputs conditioned on, (n, d).
        noise: Noise variances, (n,).
        basis: U of the preconditioner, (n, r).
        singular: S of the preconditioner, (r,).
        tolerance: Largest relative residual of a solution.
    """

    def __init__(self, base: Kernel, z: Tensor, *, noise: Tensor, basis: Tensor, singular: Tensor, tolerance: float):
        super().__init__()
        self.base, self.tolerance = base, tolerance
        self.z: Tensor
        self.noise: Tensor
        self.basis: Tensor
        self.singular: Tensor
        for name, tensor in (("z", z), ("noise", noise), ("basis", basis), ("singular", singular)):
            self.register_buffer(name, tensor)

    @property
    def batch_shape(self) -> torch.Size:  # pyright: ignore[reportIncompatibleMethodOverride]
        """That of `base`; gpytorch would include all nested kernels."""
        return self.base.batch_shape

    def solve(self, rhs: Tensor) -> Tensor:
        """C^-1 b for b of shape (n, q)."""
        return self._system().solve(rhs)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False
    ) -> Tensor:
        """Covariances (n1, n2), or variances (n1,) with `diag` (gpytorch's calling convention)."""
        if last_dim_is_batch:
            raise ValueError("an IterativelyConditioned kernel does not support `last_dim_is_batch=True`")
        system, same = self._system(), identical(x1, x2)
        if diag and not same:
            second = system.solve(gram(self.base, self.z, x2))
            return gram_pairs(self.base, x1, x2) - (gram(self.base, self.z, x1) * second).sum(0)
        if diag:
            return torch.cat([self._variance(system, x) for x in operators.pieces(x1, 4 * len(self.z))])
        cross = gram(self.base, self.z, x2)
        value = gram(self.base, x1, x2) - gram(self.base, x1, self.z) @ system.solve(cross)
        return (value + value.mT) / 2 if same else value  # symmetric but for the residual

    def _variance(self, system: System, x: Tensor) -> Tensor:
        cross = gram(self.base, self.z, x)
        before = gram_diagonal(self.base, x)
        return floored(before - (cross * system.solve(cross)).sum(0), before)

    def _system(self) -> System:
        preconditioner = Preconditioner(self.noise, self.basis, self.singular)
        return System(self.base, self.z, preconditioner, tolerance=self.tolerance)
