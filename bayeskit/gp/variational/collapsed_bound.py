"""The collapsed variational bound of sparse regression and the posterior at which it is attained.

With L L' = k(Z, Z), A = L^-1 k(Z, X) sqrt(w), residuals r = sqrt(w) (y - m(X)), noise s and B = I + A A' / s:

    bound = -1/2 [ n log(2 pi s) + log|B| + |r|^2 / s - |c|^2 + (sum_i w_i k(x_i, x_i) - tr A A') / s ],
    c = L_B^-1 A r / s,    L_B L_B' = B,                      q(v) = N(B^-1 A r / s, B^-1) for f(Z) = L v.

Everything is a function of A A' (m x m) and A r (m x k). `_Statistics` forms the two from blocks of data, with a
hand-written derivative of one product of size m x m x n where automatic differentiation needs three.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bayeskit.core.operators import factorize
from bayeskit.core.types import Data
from bayeskit.gp.kernels.evaluate import gram, gram_diagonal
from bayeskit.gp.model.gaussian_observations import Observations
from bayeskit.gp.model.hyperparameters import Model
from bayeskit.gp.model.training_set import inputs
from bayeskit.gp.process.gaussian_process import GaussianProcess

BLOCK_ELEMENTS = 2**19
"""Numbers in one block of k(Z, X), 4 MiB: as much as stays in a processor's cache between the passes over it."""

KEPT_ELEMENTS = 2**28
"""Above this size of k(Z, X) blocks are formed again for the derivative instead of being kept (three of 2 GiB)."""


@dataclass(frozen=True, eq=False)
class Collapsed:
    """The bound and the parameters of the posterior.

    Args:
        bound: A lower bound on log p(y), a scalar.
        tril: L, (m, m) or (k, m, m).
        tril_b: L_B, (1, m, m) if kernel, noise and missing entries are shared by all outputs, else
            (k, m, m).
        whitened: B^-1 A r / s, (k, m).
    """

    bound: Tensor
    tril: Tensor
    tril_b: Tensor
    whitened: Tensor

    def posterior(self, prior: GaussianProcess, z: Tensor) -> GaussianProcess:
        """The process with q(v) at `z`, over the prior at the same hyperparameters."""
        identity = torch.eye(len(z), dtype=z.dtype, device=z.device)
        root = torch.linalg.solve_triangular(self.tril_b.mT, identity, upper=True)  # L_B^-T
        shared = len(root) == 1 and self.tril.dim() == 2
        return prior.conditioned(z, self.tril, self.whitened, root=root[0] if shared else root)


def collapsed(model: Model, z: Tensor, rows: Data) -> Collapsed:
    """The collapsed bound at inducing points z, differentiable in z and in the model's hyperparameters.

    Args:
        model: Mean, kernel and conjugate likelihood.
        z: Inducing points (m, d).
        rows: Inputs (n, d), targets (NaN where not observed), positive weights or None.

    References:
        Titsias (2009), "Variational Learning of Inducing Variables in Sparse Gaussian Processes", equations 9 and 10.
    """
    seen = Observations.build(model, rows)
    tril = factorize(gram(model.kernel, z, z), name="K_zz").tril
    square, cross = _statistics(model, tril, z, rows, seen)
    shared = cross.dim() == 2 and len(seen.scale) == 1  # one system has a column for each output, or each has its own
    eye = torch.eye(len(z), dtype=z.dtype, device=z.device)
    scale = seen.scale.reshape(-1, 1, 1)
    tril_b = factorize(eye + square / scale, name="I + A A' / noise").tril  # (1, m, m) or (k, m, m)
    rhs = (cross if shared or cross.dim() == 3 else cross.mT.unsqueeze(-1)) / scale
    half = torch.linalg.solve_triangular(tril_b, rhs, upper=False)
    solution = torch.linalg.solve_triangular(tril_b.mT, half, upper=True)
    whitened = solution[0].mT if shared else solution.squeeze(-1)
    k = len(seen.residual)
    weights = torch.ones_like(seen.residual[0]) if seen.roots is None else seen.roots.square()
    logdet = 2 * tril_b.diagonal(dim1=-2, dim2=-1).log().sum(-1).expand(k)
    misfit = (weights * seen.residual.square()).sum(-1)
    variance = (weights * gram_diagonal(model.kernel, inputs(rows))).sum(-1).expand(k)
    explained = square.diagonal(dim1=-2, dim2=-1).sum(-1).expand(k)
    terms = logdet + (misfit + variance - explained) / seen.scale
    return Collapsed(0.5 * (half.square().sum() - terms.sum() - seen.normalizer), tril, tril_b, whitened)


def _statistics(model: Model, tril: Tensor, z: Tensor, rows: Data, seen: Observations) -> tuple[Tensor, Tensor]:
    """A A' (*b, m, m) and A r, (m, k) if all outputs share kernel and weights, else (k, m, 1)."""
    roots, copies = seen.roots, 1
    if roots is not None and roots.dim() > 1 and tril.dim() == 2:
        copies = len(roots)
    kept = copies * tril[..., 0].numel() * len(rows) <= KEPT_ELEMENTS

    def block(tril: Tensor, z: Tensor, x: Tensor, residual: Tensor, root: Tensor | None) -> tuple[Tensor, Tensor]:
        cross = gram(model.kernel, z, x)
        if root is not None:
            cross, residual = cross * root.unsqueeze(-2), residual * root
        rhs = residual.mT if cross.dim() == 2 else residual.unsqueeze(-1)
        return _Statistics.apply(tril.expand(*cross.shape[:-1], len(z)), cross, rhs)  # type: ignore[return-value]

    size = max(1, BLOCK_ELEMENTS // (copies * len(z)))
    square = cross = None
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        root = None if roots is None else roots[..., part]
        arguments = (tril, z, inputs(rows)[part], seen.residual[:, part], root)
        if kept:
            terms = block(*arguments)
        else:
            terms: Any = checkpoint(block, *arguments, use_reentrant=False)
        square = terms[0] if square is None else square + terms[0]
        cross = terms[1] if cross is None else cross + terms[1]
    assert square is not None and cross is not None
    return square, cross


class _Statistics(torch.autograd.Function):
    """(A A', A r) with A = L^-1 K, from L, K and r."""

    @staticmethod
    def forward(ctx: Any, tril: Tensor, cross: Tensor, rhs: Tensor) -> tuple[Tensor, Tensor]:
        """L (*b, m, m), K (*b, m, n) and r (*b, n, q) to (*b, m, m) and (*b, m, q)."""
        a = torch.linalg.solve_triangular(tril, cross, upper=False)
        square, projected = a @ a.mT, a @ rhs
        ctx.save_for_backward(tril, a, rhs, square, projected)
        return square, projected

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """With G, g the incoming gradients and dA = (G + G') A + g r': dK = L^-T dA, dL = -tril(L^-T dA A')."""
        tril, a, rhs, square, projected = ctx.saved_tensors
        symmetric = grads[0] + grads[0].mT
        left = torch.linalg.solve_triangular(tril.mT, torch.cat([symmetric, grads[1]], dim=-1), upper=True)
        m = tril.shape[-1]
        grad_cross = torch.matmul(left[..., :m], a).add_(left[..., m:] @ rhs.mT)
        grad_tril = -(left[..., :m] @ square + left[..., m:] @ projected.mT).tril()  # dA A' = (G + G') A A' + g (A r)'
        return grad_tril, grad_cross, a.mT @ grads[1]
