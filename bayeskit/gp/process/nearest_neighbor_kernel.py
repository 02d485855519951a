"""Sparse-within-sparse Gaussian processes, in which each input depends on its nearest inducing values only.

With I(x) the H inducing inputs most correlated with x, and u = f(Z) - m(Z) ~ N(mu, diag(s)):

    f(x) = m(x) + w(x)' u_I + sqrt(r(x)) g(x),    w = K_II^-1 k_I(x),    r = k(x, x) - k_I(x)' w,

where g is a process of unit variance with the correlations of k, independent of u. At a single input this is the
sparse-within-sparse posterior; g defines the joint distribution at inputs with different neighbors.
"""

from dataclasses import dataclass

import torch
from gpytorch.kernels import Kernel
from gpytorch.means import Mean
from torch import Tensor

from bayeskit.core.operators import factorize, pieces
from bayeskit.gp.kernels.evaluate import gram, gram_diagonal, gram_pairs, mean_rows
from bayeskit.gp.process.conditioned_kernel import floored, identical


@dataclass(frozen=True, eq=False)
class Neighborhoods:
    """Nearest inducing points of n inputs and their regression weights, for c kernels (one, or one per output).

    Args:
        index: I(x_i), (n, h).
        tril: L_i with L_i L_i' = K_II, (n, c, h, h).
        weights: w(x_i), (n, c, h).
        residual: r(x_i), (n, c).
    """

    index: Tensor
    tril: Tensor
    weights: Tensor
    residual: Tensor

    def mean(self, mean: Tensor) -> Tensor:
        """W' mu of each output, (n, k), for mu of shape (k, m)."""
        return (self.weights * mean[:, self.index].movedim(0, 1)).sum(-1)

    def variance(self, variance: Tensor) -> Tensor:
        """The variances r + sum_h w_h^2 s_h, (n, k), for s of shape (k, m)."""
        return self.residual + (self.weights.square() * variance[:, self.index].movedim(0, 1)).sum(-1)


def neighborhoods(kernel: Kernel, z: Tensor, x: Tensor, num_neighbors: int) -> Neighborhoods:
    """Find the neighbors of inputs (n, d) among inducing inputs (m, d); differentiable except for the selection.

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> z = torch.tensor([[0.0], [1.0], [9.0]], dtype=torch.float64)
        >>> near = neighborhoods(RBFKernel().requires_grad_(False), z, z[:2], num_neighbors=1)
        >>> near.index.tolist(), near.weights.flatten().tolist()  # an input among Z is its own nearest neighbor
        ([[0], [1]], [1.0, 1.0])
    """
    with torch.no_grad():
        index = _nearest(kernel, z, x, num_neighbors)
    near, here = z[index].unsqueeze(1), x[:, None, None, :]  # (n, 1, h, d), (n, 1, 1, d)
    square, cross = gram(kernel, near, near), gram(kernel, near, here)  # (n, c, h, h), (n, c, h, 1)
    tril = factorize(square, name="K_II").tril
    projection = torch.linalg.solve_triangular(tril, cross, upper=False)
    weights = torch.linalg.solve_triangular(tril.mT, projection, upper=True).squeeze(-1)
    before = gram_diagonal(kernel, here).squeeze(-1)
    return Neighborhoods(index, tril, weights, floored(before - projection.square().sum((-2, -1)), before))


def _nearest(kernel: Kernel, z: Tensor, x: Tensor, num_neighbors: int) -> Tensor:
    """The inducing inputs of largest correlation in absolute value, averaged over outputs, (n, h)."""
    scale = gram_diagonal(kernel, z).sqrt().unsqueeze(-1)
    parts = []
    for part in pieces(x, len(z) * kernel.batch_shape.numel()):
        correlation = (gram(kernel, z, part) / scale).abs().reshape(-1, len(z), len(part)).mean(0)
        parts.append(correlation.topk(num_neighbors, dim=0).indices.mT)
    return torch.cat(parts)


class Nearest(Kernel):
    """The covariance `w1' diag(s) w2 + sqrt(r1 r2) c(x1, x2)`, c the correlation of the base kernel.

    Args:
        base: The kernel before the data, of batch shape () or (k,).
        z: Inducing inputs (m, d).
        variance: s for each output, (k, m).
        num_neighbors: H.

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> known = Nearest(RBFKernel().requires_grad_(False), one, 0 * one, num_neighbors=1)  # f(1) is known
        >>> bool(gram_diagonal(known, one) < 1e-12)
        True
    """

    def __init__(self, base: Kernel, z: Tensor, variance: Tensor, *, num_neighbors: int):
        super().__init__(batch_shape=variance.shape[:-1])
        self.base, self.num_neighbors = base, num_neighbors
        self.z: Tensor
        self.variance: Tensor
        self.register_buffer("z", z)
        self.register_buffer("variance", variance)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False
    ) -> Tensor:
        """Covariances (*b, n1, n2), or of pairs (*b, n) with `diag` (gpytorch's calling convention)."""
        if last_dim_is_batch:
            raise ValueError("a Nearest kernel does not support `last_dim_is_batch=True`")
        weights1, share1 = self.parts(x1)
        weights2, share2 = (weights1, share1) if identical(x1, x2) else self.parts(x2)
        scaled = weights1 * self.variance.unsqueeze(-2)
        if diag:
            return (scaled * weights2).sum(-1) + share1 * share2 * gram_pairs(self.base, x1, x2)
        before = gram(self.base, x1, x1 if identical(x1, x2) else x2)
        return scaled @ weights2.mT + share1.unsqueeze(-1) * before * share2.unsqueeze(-2)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The weights w(x) of all inducing values, (*b, n, m), and sqrt(r(x) / k(x, x)), (*b, n).

        The second is the residual standard deviation given the neighbors, relative to that of the prior.
        """
        x = x.double()
        if x.dim() > 2 and x.stride(-3) == 0:  # the same inputs for every kernel of a batch
            x = x[..., :1, :, :]
        near = neighborhoods(self.base, self.z, x.reshape(-1, x.shape[-1]), self.num_neighbors)
        sparse = near.index.unsqueeze(1).expand(near.weights.shape)
        weights = x.new_zeros(*near.residual.shape, len(self.z)).scatter(-1, sparse, near.weights)  # (p, c, m)
        weights = weights.reshape(*x.shape[:-1], *weights.shape[1:]).movedim(-2, -3)  # (*b, c, n, m)
        residual = near.residual.reshape(*x.shape[:-1], -1).movedim(-1, -2)  # (*b, c, n)
        if x.dim() > 2:  # the last axis of inputs belongs to the kernels
            weights = _matched(weights, -4, -3)
            residual = _matched(residual, -3, -2)
        elif not self.batch_shape:
            weights, residual = weights.squeeze(-3), residual.squeeze(-2)
        return weights, (residual / gram_diagonal(self.base, x)).sqrt()


class NearestMean(Mean):
    """The mean `m(x) + w(x)' mu`.

    Args:
        base_mean: The mean before the data.
        base_kernel: The kernel before the data, which defines the neighbors and their weights.
        z: Inducing inputs (m, d).
        mean: mu for each output, (k, m).
        num_neighbors: H.

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> from gpytorch.means import ZeroMean
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> NearestMean(ZeroMean(), RBFKernel().requires_grad_(False), one, 2 * one, num_neighbors=1)(one)
        tensor([[2.]], dtype=torch.float64)
    """

    def __init__(self, base_mean: Mean, base_kernel: Kernel, z: Tensor, mean: Tensor, *, num_neighbors: int):
        super().__init__()
        self.base_mean, self.base_kernel, self.num_neighbors = base_mean, base_kernel, num_neighbors
        self.z: Tensor
        self.mean: Tensor
        self.register_buffer("z", z)
        self.register_buffer("mean", mean)

    def forward(self, x: Tensor) -> Tensor:
        """Means (k, n) at inputs (n, d)."""
        width = self.num_neighbors**2 * self.base_kernel.batch_shape.numel()
        return torch.cat([self._values(part) for part in pieces(x.double(), width)], dim=-1)

    def _values(self, x: Tensor) -> Tensor:
        near = neighborhoods(self.base_kernel, self.z, x, self.num_neighbors)
        return mean_rows(self.base_mean, x, len(self.mean)) + near.mean(self.mean).mT


def _matched(values: Tensor, inputs: int, kernels: int) -> Tensor:
    """From values for all pairs of input sets and kernels, those of matching pairs; the two axes become one."""
    if values.shape[kernels] == 1:
        return values.squeeze(kernels)
    if values.shape[inputs] == 1:
        return values.squeeze(inputs)
    return values.diagonal(dim1=inputs, dim2=kernels).movedim(-1, kernels)
