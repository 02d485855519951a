"""A Gaussian over whitened inducing values, its bound, and natural-gradient ascent to the best one."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bayeskit.core import operators
from bayeskit.core.operators import factorize
from bayeskit.core.types import Data
from bayeskit.gp.conditioned import chunks, floored
from bayeskit.gp.coupled import coupled_shift
from bayeskit.gp.gram import gram, gram_diagonal, mean_rows
from bayeskit.gp.hyperparameters import Model
from bayeskit.gp.marginals import marginals, projected
from bayeskit.gp.process import GaussianProcess
from bayeskit.gp.training_set import inputs


@dataclass(frozen=True, eq=False)
class Variational:
    """q(v_j) = N(q_j, R_j R_j') for outputs j = 1 .. k, where f_j(Z) = L_j v_j and v_j ~ N(0, I) before the data.

    Args:
        mean: q, (k, m).
        root: R, upper triangular, (k, m, m).
    """

    mean: Tensor
    root: Tensor

    @classmethod
    def prior(cls, num_outputs: int, z: Tensor) -> "Variational":
        """q(v) = N(0, I)."""
        mean = z.new_zeros(num_outputs, len(z))
        return cls(mean, torch.diag_embed(torch.ones_like(mean)))

    def leaves(self) -> list[Tensor]:
        """Free copies to optimize: q and R."""
        return [self.mean.detach().clone().requires_grad_(True), self.root.detach().clone().requires_grad_(True)]

    @classmethod
    def from_leaves(cls, leaves: list[Tensor]) -> "Variational":
        """The Gaussian at the present values of `leaves()`."""
        return cls(leaves[0], leaves[1].triu())

    def divergence(self) -> Tensor:
        """sum_j KL[q(v_j) || N(0, I)], a scalar."""
        logdet = 2 * self.root.diagonal(dim1=-2, dim2=-1).abs().log().sum()
        return 0.5 * (self.root.square().sum() + self.mean.square().sum() - self.mean.numel() - logdet)

    def posterior(self, model: Model, z: Tensor) -> GaussianProcess:
        """The process with this law at its inducing points."""
        tril = factorize(gram(model.kernel, z, z), name="K_zz").tril
        return model.process().conditioned(z, tril, self.mean, root=self.root)


def bound(model: Model, z: Tensor, variational: Variational, data: Data) -> Tensor:
    """The evidence lower bound, on the scale of the full data, differentiable in everything.

    Args:
        model: Mean, kernel and any likelihood.
        z: Inducing points (m, d).
        variational: q(v).
        data: All rows or a mini-batch of them.
    """
    tril = factorize(gram(model.kernel, z, z), name="K_zz").tril
    x = inputs(data)
    cross, before = gram(model.kernel, z, x), gram_diagonal(model.kernel, x)
    shift, variance = marginals(tril, cross, before, variational.mean, variational.root)
    mean = mean_rows(model.mean, x, model.num_outputs) + shift
    expected = model.expected_log_prob(mean.mT, variance.mT, data.y)
    return data.total(expected) - variational.divergence()


def ascend(
    model: Model, z: Tensor, variational: Variational, data: Data, *, max_steps: int, tolerance: float = 1e-7
) -> tuple[Variational, float]:
    """Maximize the bound over q(v) alone by natural-gradient steps over all rows.

    With (a_i, b_i) the first and (negated) second derivatives of E_q[log p(y_i | f)] in the mean of f(x_i), a step of
    length t moves the natural parameters to

        S^-1   <-  (1 - t) S^-1   + t (I + sum_i w_i b_i A_i A_i'),
        S^-1 q <-  (1 - t) S^-1 q + t sum_i w_i (a_i + b_i A_i' q) A_i,         A_i = L^-1 k(Z, x_i).

    At t = 1 this is the optimum at once for a Gaussian likelihood; elsewhere a step that lowers the bound is halved.
    With a mixing the means of all latent functions move together, as in `coupled.py`.

    Args:
        model: Mean, kernel and likelihood, which stay.
        z: Inducing points (m, d).
        variational: Where to start.
        data: All rows.
        max_steps: Steps at most.
        tolerance: Stop when a full step gains less than this share of the bound.

    Returns:
        The best q(v) and its bound.
    """
    tril = factorize(gram(model.kernel, z, z), name="K_zz").tril
    blocks = _Blocks(model, tril, z, data)
    value, length, taken = blocks.bound(variational), 1.0, 0
    precision, shift = _natural(variational)
    while taken < max_steps and length > 1e-3:
        target_precision, target_shift = blocks.sites(variational)
        if model.mixing is not None:
            couplings = blocks.couplings(variational)
            target_shift = coupled_shift(couplings, variational.mean, target_precision, target_shift)
        while length > 1e-3:
            mixed = torch.lerp(precision, target_precision, length), torch.lerp(shift, target_shift, length)
            proposal = _from_natural(*mixed)
            proposed = blocks.bound(proposal)
            if proposed >= value:
                break
            length /= 2
        else:
            break
        gain, taken = proposed - value, taken + 1
        variational, value, (precision, shift) = proposal, proposed, mixed
        if gain <= tolerance * (1 + abs(value)):
            break
        length = min(1.0, 2 * length)
    operators.note("natural-gradient steps", taken)
    return variational, value


def _natural(variational: Variational) -> tuple[Tensor, Tensor]:
    """S^-1 (k, m, m) and S^-1 q (k, m)."""
    eye = torch.eye(variational.mean.shape[-1], dtype=variational.mean.dtype, device=variational.mean.device)
    inverse_root = torch.linalg.solve_triangular(variational.root, eye, upper=True)
    precision = inverse_root.mT @ inverse_root
    return precision, (precision @ variational.mean.unsqueeze(-1)).squeeze(-1)


def _from_natural(precision: Tensor, shift: Tensor) -> Variational:
    """From S^-1 = P P' with P lower triangular: R = P^-T is upper triangular."""
    factor = factorize(precision, name="precision of q(v)")
    eye = torch.eye(shift.shape[-1], dtype=shift.dtype, device=shift.device)
    root = torch.linalg.solve_triangular(factor.tril.mT, eye, upper=True)
    return Variational(factor.solve(shift.unsqueeze(-1)).squeeze(-1), root)


@dataclass(frozen=True, eq=False)
class _Block:
    """What some rows contribute at given hyperparameters.

    Args:
        data: The rows.
        projection: A, (m, n) or (k, m, n).
        mean: m(x), (k, n).
        variance: k(x, x) - |A|^2, (k, n) or (n,).
    """

    data: Data
    projection: Tensor
    mean: Tensor
    variance: Tensor

    @classmethod
    def build(cls, model: Model, tril: Tensor, z: Tensor, data: Data) -> "_Block":
        projection = torch.linalg.solve_triangular(tril, gram(model.kernel, z, inputs(data)), upper=False)
        before = gram_diagonal(model.kernel, inputs(data))
        variance = floored(before - projection.square().sum(-2), before)
        mean = mean_rows(model.mean, inputs(data), model.num_outputs)
        return cls(data, projection, mean, variance)

    def shift(self, variational: Variational) -> Tensor:
        """A' q, (k, n)."""
        return projected(self.projection, variational.mean)

    def marginals(self, variational: Variational) -> tuple[Tensor, Tensor]:
        """Mean and variance of f(x_i), each (n, k)."""
        spread = (variational.root.mT @ self.projection).square().sum(-2)
        return (self.mean + self.shift(variational)).mT, (self.variance + spread).mT


class _Blocks:
    """All rows in blocks, their projections formed once."""

    def __init__(self, model: Model, tril: Tensor, z: Tensor, data: Data):
        self.model, self.blocks = model, []
        start = 0
        for x in chunks(inputs(data), len(z) * model.num_outputs):
            part = data.rows(slice(start, start + len(x)))
            self.blocks.append(_Block.build(model, tril, z, part))
            start += len(x)

    def bound(self, variational: Variational) -> float:
        """The bound over all rows."""
        total = -variational.divergence()
        for block in self.blocks:
            mean, variance = block.marginals(variational)
            total = total + block.data.total(self.model.expected_log_prob(mean, variance, block.data.y))
        return float(total)

    def sites(self, variational: Variational) -> tuple[Tensor, Tensor]:
        """Natural parameters that a full step leads to: (k, m, m) and (k, m)."""
        k, m = variational.mean.shape
        precision = torch.eye(m, dtype=variational.mean.dtype, device=variational.mean.device).repeat(k, 1, 1)
        shift = torch.zeros_like(variational.mean)
        for block in self.blocks:
            mean, variance = block.marginals(variational)
            alpha, beta = self.model.site_gradients(mean, variance, block.data.y)  # (n, k) each
            alpha, beta = alpha.mT, beta.mT
            if block.data.weights is not None:
                alpha, beta = alpha * block.data.weights, beta * block.data.weights
            a = block.projection  # (m, n) or (k, m, n)
            precision = precision + (a * beta.unsqueeze(-2)) @ a.mT
            pull = alpha + beta * block.shift(variational)
            shift = shift + (a @ pull.unsqueeze(-1)).squeeze(-1)
        return precision, shift

    def couplings(self, variational: Variational) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each block A, and what couples the latents that a mixing mixes, (n, q, q)."""
        for block in self.blocks:
            mean, variance = block.marginals(variational)
            matrices = self.model.couplings(mean, variance, block.data.y)
            weights = block.data.weights
            yield block.projection, matrices if weights is None else matrices * weights[:, None, None]
