"""A Gaussian over whitened inducing values, its bound, and natural-gradient ascent to the best one."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayeskit.core import operators
from bayeskit.core.operators import factorize
from bayeskit.core.types import Data
from bayeskit.gp.conditioned import chunks, floored
from bayeskit.gp.gram import gram, gram_diagonal, grams, mean_rows
from bayeskit.gp.hyperparameters import Model
from bayeskit.gp.marginals import Form, marginals_of_grams, projected
from bayeskit.gp.natural import Natural
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

    def leaves(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """Free copies to optimize: q and R."""
        return [t.detach().to(dtype, copy=True).requires_grad_(True) for t in (self.mean, self.root)]

    @classmethod
    def from_leaves(cls, leaves: list[Tensor]) -> "Variational":
        """The Gaussian at the present values of `leaves()`; every gradient keeps R upper-triangular."""
        return cls(leaves[0], leaves[1])

    def divergence(self) -> Tensor:
        """sum_j KL[q(v_j) || N(0, I)], a scalar."""
        return _Divergence.apply(self.mean, self.root)  # type: ignore[return-value]

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
    data_fit = data_term(model, z, variational.mean, variational.root, data, form="triangular")
    return data_fit - variational.divergence()


def data_term(model: Model, z: Tensor, mean: Tensor, spread: Tensor, data: Data, *, form: Form) -> Tensor:
    """sum_i w_i E_q[log p(y_i | f(x_i))] on the scale of the full data, differentiable in everything.

    What grows with the number of inducing points or rows is formed in the type of `mean`, factors in float64.

    Args:
        model: Mean, kernel and any likelihood.
        z: Inducing points (m, d).
        mean: q, (k, m).
        spread: S or a root of it, (k, m, m).
        data: All rows or a mini-batch of them.
        form: Which; see `marginals_of_grams`.
    """
    x = inputs(data)
    square, cross, before = grams(model.kernel, z, x, dtype=mean.dtype)
    shift, variance = marginals_of_grams(square, cross, before, mean, spread, form=form)
    prior = mean_rows(model.mean, x, model.num_outputs)
    return data.total(model.expected_log_prob((prior + shift).mT, variance.to(prior).mT, data.y))


def ascend(
    model: Model, z: Tensor, variational: Variational, data: Data, *, max_steps: int, tolerance: float = 1e-7
) -> tuple[Variational, float]:
    """Maximize the bound over q(v) alone by natural-gradient steps over all rows.

    With (a_i, b_i) the first and (negated) second derivatives of E_q[log p(y_i | f)] in the mean of f(x_i), a step of
    length t moves the natural parameters to

        S^-1   <-  (1 - t) S^-1   + t (I + sum_i w_i b_i A_i A_i'),
        S^-1 q <-  (1 - t) S^-1 q + t sum_i w_i (a_i + b_i A_i' q) A_i,         A_i = L^-1 k(Z, x_i).

    At t = 1 this is the optimum at once for a Gaussian likelihood; elsewhere a step that lowers the bound is halved.

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
    rows = _Blocks(model, tril, z, data)
    value, length, taken = rows.bound(variational), 1.0, 0
    natural = Natural.of_root(variational.mean, variational.root)
    while taken < max_steps and length > 1e-3:
        target = rows.sites(variational)
        while length > 1e-3:
            mixed = natural.toward(target, length)
            proposal = Variational(*mixed.root())
            proposed = rows.bound(proposal)
            if proposed >= value:
                break
            length /= 2
        else:
            break
        gain, taken = proposed - value, taken + 1
        variational, value, natural = proposal, proposed, mixed
        if gain <= tolerance * (1 + abs(value)):
            break
        length = min(1.0, 2 * length)
    operators.note("natural-gradient steps", taken)
    return variational, value


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

    def sites(self, variational: Variational) -> Natural:
        """Natural parameters that a full step leads to."""
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
        return Natural(precision, shift)


class _Divergence(torch.autograd.Function):
    """(tr R R' + |q|^2 - m - log |R R'|) / 2, summed over outputs."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, root: Tensor) -> Tensor:
        """A scalar, in float64, from q (k, m) and an upper-triangular R (k, m, m)."""
        ctx.save_for_backward(mean, root)
        pivots = root.diagonal(dim1=-2, dim2=-1).double()
        squares = torch.linalg.vector_norm(root, dtype=torch.float64).square() + mean.double().square().sum()
        return 0.5 * (squares - mean.numel()) - pivots.abs().log().sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """(q, R - diag(R)^-1)."""
        mean, root = ctx.saved_tensors
        scale = grads[0].to(root)
        slope = root * scale
        slope.diagonal(dim1=-2, dim2=-1).sub_(scale / root.diagonal(dim1=-2, dim2=-1))
        return mean * scale, slope
