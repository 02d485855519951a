"""Two independent Gaussians over whitened values at two sets of points; the equations are those of `orthogonal.py`."""

from dataclasses import dataclass

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from bayeskit.core import operators
from bayeskit.core.operators import factorize
from bayeskit.core.types import Data
from bayeskit.gp.kernels.evaluate import gram, gram_diagonal, mean_rows
from bayeskit.gp.model.hyperparameters import Model
from bayeskit.gp.model.training_set import inputs
from bayeskit.gp.process.conditioned_kernel import floored
from bayeskit.gp.process.gaussian_process import GaussianProcess
from bayeskit.gp.variational.marginal_moments import marginals, projected
from bayeskit.gp.variational.whitened_posterior import Variational


@dataclass(frozen=True, eq=False)
class Split:
    """q(a) q(b), each a Gaussian for every output.

    Args:
        first: q(a), of m points.
        second: q(b), of any number of points, also none.
    """

    first: Variational
    second: Variational

    @classmethod
    def prior(cls, num_outputs: int, z: Tensor, w: Tensor) -> "Split":
        """Two standard normals."""
        return cls(Variational.prior(num_outputs, z), Variational.prior(num_outputs, w))

    def leaves(self) -> list[Tensor]:
        """Free copies to optimize."""
        return [*self.first.leaves(), *self.second.leaves()]

    @classmethod
    def from_leaves(cls, leaves: list[Tensor]) -> "Split":
        """The two at the present values of `leaves()`."""
        mean1, root1, mean2, root2 = leaves
        return cls(Variational(mean1, root1.triu()), Variational(mean2, root2.triu()))

    def joint(self) -> Variational:
        """The same law of [a; b], with a block-diagonal root."""
        one, two = self.first.root, self.second.root
        right = one.new_zeros(len(one), one.shape[-1], two.shape[-1])
        root = torch.cat([torch.cat([one, right], -1), torch.cat([right.mT, two], -1)], -2)
        return Variational(torch.cat([self.first.mean, self.second.mean], -1), root)

    def divergence(self) -> Tensor:
        """The sum of both divergences from the prior, a scalar."""
        return self.first.divergence() + self.second.divergence()

    def posterior(self, model: Model, z: Tensor, w: Tensor) -> GaussianProcess:
        """The process with this law at its points."""
        tril, joint = joint_factor(Points(model.kernel, z), w), self.joint()
        return model.process().conditioned(torch.cat([z, w]), tril, joint.mean, root=joint.root)


@dataclass(frozen=True, eq=False)
class Points:
    """The inducing values u = f(Z) of the first part; other features of f would offer the same two functions.

    Args:
        kernel: The kernel of f.
        z: Z, (m, d).
    """

    kernel: Kernel
    z: Tensor

    def gram(self) -> Tensor:
        """Covariance of u, (*b, m, m)."""
        return gram(self.kernel, self.z, self.z)

    def cross(self, x: Tensor) -> Tensor:
        """Covariances of u and f(x), (*b, m, n)."""
        return gram(self.kernel, self.z, x)


def joint_factor(features: Points, w: Tensor) -> Tensor:
    """L, (*b, m + j, m + j): one factorization, whose blocks are L_u, T and L_v."""
    if not len(w):
        return factorize(features.gram(), name="K_zz").tril
    below = features.cross(w)
    above = torch.cat([features.gram(), below], dim=-1)
    return factorize(torch.cat([above, torch.cat([below.mT, gram(features.kernel, w, w)], -1)], -2), name="K_zz").tril


def _joint_cross(features: Points, w: Tensor, x: Tensor) -> Tensor:
    """Covariances of [u; f(W)] and f(x), (*b, m + j, n)."""
    if not len(w):
        return features.cross(x)
    return torch.cat([features.cross(x), gram(features.kernel, w, x)], dim=-2)


def bound(model: Model, z: Tensor, w: Tensor, split: Split, data: Data) -> Tensor:
    """The evidence lower bound, on the scale of the full data, differentiable in everything.

    Args:
        model: Mean, kernel and any likelihood.
        z: Inducing points (m, d).
        w: Points of the second part (j, d).
        split: q(a) q(b).
        data: All rows or a mini-batch of them.
    """
    features, x = Points(model.kernel, z), inputs(data)
    cross = _joint_cross(features, w, x)
    joint = split.joint()
    before = gram_diagonal(model.kernel, x)
    shift, variance = marginals(joint_factor(features, w), cross, before, joint.mean, joint.root)
    mean = mean_rows(model.mean, x, model.num_outputs) + shift
    expected = model.expected_log_prob(mean.mT, variance.mT, data.y)
    return data.total(expected) - split.divergence()


def alternate(
    model: Model, z: Tensor, w: Tensor, split: Split, data: Data, *, max_steps: int, tolerance: float = 1e-7
) -> tuple[Split, float]:
    """Maximize the bound over q(a) and q(b) by natural-gradient steps over all rows, in one of the two in turn.

    With A_i the part of L^-1 k([Z; W], x_i) that belongs to the block, q and S its mean and covariance, and (a_i, b_i)
    the first and negated second derivatives of E_q[log p(y_i | f)] in the mean of f(x_i), a step of length t moves

        S^-1   <-  (1 - t) S^-1   + t (I + sum_i w_i b_i A_i A_i'),
        S^-1 q <-  (1 - t) S^-1 q + t sum_i w_i (a_i + b_i A_i' q) A_i,

    which is the diagonal block of the natural gradient of both. A step that lowers the bound is halved.

    Args:
        model: Mean, kernel and likelihood, which stay.
        z: Inducing points.
        w: Points of the second part.
        split: Where to start.
        data: All rows.
        max_steps: Steps at most.
        tolerance: Stop when a step in each of the two gains less than this share of the bound.

    Returns:
        The best q(a) q(b) and its bound.
    """
    blocks = _Blocks(model, z, w, data)
    value, taken, stalled = blocks.bound(split), 0, 0
    lengths, parts = [1.0, 1.0], (0, 1) if len(w) else (0,)
    while taken < max_steps and stalled < len(parts):
        part = parts[taken % len(parts)]
        split, proposed, lengths[part] = _step(blocks, split, part, value, lengths[part])
        taken += 1
        stalled = stalled + 1 if proposed - value <= tolerance * (1 + abs(value)) else 0
        value = proposed
    operators.note("natural-gradient steps", taken)
    return split, value


def _step(blocks: "_Blocks", split: Split, part: int, value: float, length: float) -> tuple[Split, float, float]:
    """One step in one block: where it leads, the bound there and the length to try next."""
    block = (split.first, split.second)[part]
    precision, shift = _natural(block)
    target_precision, target_shift = blocks.sites(split, part)
    while length > 1e-3:
        mixed = _from_natural(torch.lerp(precision, target_precision, length), torch.lerp(shift, target_shift, length))
        proposal = Split(split.first, mixed) if part else Split(mixed, split.second)
        proposed = blocks.bound(proposal)
        if proposed >= value:
            return proposal, proposed, min(1.0, 2 * length)
        length /= 2
    return split, value, 1.0


def _natural(block: Variational) -> tuple[Tensor, Tensor]:
    """S^-1 (k, m, m) and S^-1 q (k, m)."""
    eye = torch.eye(block.mean.shape[-1], dtype=block.mean.dtype, device=block.mean.device)
    inverse_root = torch.linalg.solve_triangular(block.root, eye, upper=True)
    precision = inverse_root.mT @ inverse_root
    return precision, (precision @ block.mean.unsqueeze(-1)).squeeze(-1)


def _from_natural(precision: Tensor, shift: Tensor) -> Variational:
    """From S^-1 = P P' with P lower triangular: R = P^-T is upper triangular."""
    factor = factorize(precision, name="precision of q")
    eye = torch.eye(shift.shape[-1], dtype=shift.dtype, device=shift.device)
    root = torch.linalg.solve_triangular(factor.tril.mT, eye, upper=True)
    return Variational(factor.solve(shift.unsqueeze(-1)).squeeze(-1), root)


@dataclass(frozen=True, eq=False)
class _Block:
    """Some rows: m(x) (k, n), k(x, x) - |A|^2 (k, n) or (n,), and A of both parts."""

    data: Data
    mean: Tensor
    variance: Tensor
    projections: tuple[Tensor, Tensor]

    def marginals(self, split: Split) -> tuple[Tensor, Tensor]:
        """Mean and variance of f(x_i), each (n, k)."""
        mean, variance = self.mean, self.variance
        for a, block in zip(self.projections, (split.first, split.second), strict=True):
            mean = mean + projected(a, block.mean)
            variance = variance + (block.root.mT @ a).square().sum(-2)
        return mean.mT, variance.mT


class _Blocks:
    """All rows in blocks, their projections formed once."""

    def __init__(self, model: Model, z: Tensor, w: Tensor, data: Data):
        self.model, self.blocks = model, []
        features, m, start = Points(model.kernel, z), len(z), 0
        tril = joint_factor(features, w)
        for x in operators.pieces(inputs(data), (m + len(w)) * model.num_outputs):
            part = data.rows(slice(start, start + len(x)))
            projection = torch.linalg.solve_triangular(tril, _joint_cross(features, w, x), upper=False)
            before = gram_diagonal(model.kernel, x)
            variance = floored(before - projection.square().sum(-2), before)
            mean = mean_rows(model.mean, x, model.num_outputs)
            self.blocks.append(_Block(part, mean, variance, (projection[..., :m, :], projection[..., m:, :])))
            start += len(x)

    def bound(self, split: Split) -> float:
        """The bound over all rows."""
        total = -split.divergence()
        for block in self.blocks:
            mean, variance = block.marginals(split)
            total = total + block.data.total(self.model.expected_log_prob(mean, variance, block.data.y))
        return float(total)

    def sites(self, split: Split, part: int) -> tuple[Tensor, Tensor]:
        """Natural parameters of one of the two that a full step leads to: (k, m, m) and (k, m)."""
        q = (split.first, split.second)[part].mean
        precision = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device).repeat(len(q), 1, 1)
        shift = torch.zeros_like(q)
        for block in self.blocks:
            mean, variance = block.marginals(split)
            alpha, beta = (t.mT for t in self.model.site_gradients(mean, variance, block.data.y))
            if block.data.weights is not None:
                alpha, beta = alpha * block.data.weights, beta * block.data.weights
            a = block.projections[part]  # (m, n) or (k, m, n)
            precision = precision + (a * beta.unsqueeze(-2)) @ a.mT
            shift = shift + (a @ (alpha + beta * projected(a, q)).unsqueeze(-1)).squeeze(-1)
        return precision, shift
