"""A Gaussian over whitened inducing values, its bound, and natural-gradient ascent to the best one."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bayeskit.core import operators
from bayeskit.core.operators import factorize
from bayeskit.core.types import Data
from bayeskit.gp.kernels.evaluate import gram, gram_diagonal, grams, mean_rows
from bayeskit.gp.model.hyperparameters import Model
from bayeskit.gp.model.training_set import inputs
from bayeskit.gp.process.conditioned_kernel import floored
from bayeskit.gp.process.gaussian_process import GaussianProcess
from bayeskit.gp.variational.coupled_newton import coupled_shift
from bayeskit.gp.variational.marginal_moments import Form, marginals_of_grams, projected
from bayeskit.gp.variational.sites import Sites

KEPT_ELEMENTS = 2**28
"""Above this size of L^-1 k(Z, X), blocks of it are formed again for every pass instead of being kept (2 GiB)."""

SHORT = 1e-3
"""Length at which a natural-gradient step that loses less than this share of the bound has only rounding to gain."""

SHORTEST = 1e-9
"""Length at which a step is given up whatever it loses: from a mean of 0, counts near 10^6 ask for one of 10^-5."""

BLOCK_ELEMENTS = 2**21
"""Numbers in diag(b) A' for one block of rows: few enough to stay near the processor, many enough for the products."""

PASSED_ROWS = 4_000_000
"""Rows, times latent functions, that the natural-gradient steps at the end of a fit pass over at most."""


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

    @classmethod
    def from_sites(cls, sites: Sites) -> "Variational":
        """q(v) proportional to N(v; 0, I) times the sites."""
        return cls(*sites.moments())

    def divergence(self, before: "Variational | None" = None) -> Tensor:
        """sum_j KL[q(v_j) || N(0, I)], or from another Gaussian `before`; a scalar."""
        mean, root = self.mean, self.root
        if before is not None:  # in coordinates in which the other one is standard normal
            joint = torch.cat([(mean - before.mean).unsqueeze(-1), root], dim=-1)
            joint = torch.linalg.solve_triangular(before.root, joint, upper=True)
            mean, root = joint[..., 0], joint[..., 1:]
        return _Divergence.apply(mean, root)  # type: ignore[return-value]

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
    """Maximize the bound over q(v) alone by natural-gradient steps over all rows; see `settle`.

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
    start = Sites.of(variational.mean, variational.root)
    sites, value = settle(model, tril, z, data, start, max_steps=max_steps, tolerance=tolerance)
    return Variational.from_sites(sites), value


def affordable_steps(model: Model, num_rows: int) -> int:
    """Natural-gradient steps at most over so many rows, between 2 and 100; see `PASSED_ROWS`."""
    return min(100, max(2, PASSED_ROWS // (num_rows * model.num_outputs)))


@torch.no_grad()
def settle(
    model: Model,
    tril: Tensor,
    z: Tensor,
    data: Data,
    start: Sites,
    *,
    before: Sites | None = None,
    max_steps: int,
    tolerance: float = 1e-7,
) -> tuple[Sites, float]:
    """The sites of all rows at the optimum of the bound, by natural-gradient steps.

    With (a_i, b_i) the first and (negated) second derivatives of E_q[log p(y_i | f)] in the mean of f(x_i), a step of
    length t moves the sites to

        P  <-  (1 - t) P + t sum_i w_i b_i A_i A_i',
        l  <-  (1 - t) l + t sum_i w_i (a_i + b_i A_i' q) A_i,         A_i = L^-1 k(Z, x_i).

    At t = 1 this is the optimum at once for a Gaussian likelihood; elsewhere a step that lowers the bound is halved.
    With a mixing the means of all latent functions move together, as in `coupled.py`.

    Args:
        model: Mean, kernel and likelihood, which stay.
        tril: L, (m, m) or (k, m, m).
        z: Inducing points (m, d).
        data: All rows.
        start: Where to start.
        before: Sites of earlier data at the same L and Z, which stay; the bound is then one on log p(y | earlier y).
        max_steps: Steps at most.
        tolerance: Stop when a full step gains less than this share of the bound.

    Returns:
        The sites of these rows, and the bound.

    References:
        Khan and Lin (2017), "Conjugate-Computation Variational Inference", section 3.
        Adam, Chang, Khan and Solin (2021), "Dual Parameterization of Sparse Variational Gaussian Processes", section 3.
    """
    rows = _Blocks(model, tril, z, data, before)
    sites, length, taken = start, 1.0, 0
    value, target = rows.evaluate(sites)
    while taken < max_steps and length > SHORTEST:
        while length > SHORTEST:
            proposal = sites.toward(target, length)
            proposed, next_target = rows.evaluate(proposal)
            if proposed >= value:
                break
            if length <= SHORT and value - proposed <= SHORT * (1 + abs(value)):
                return _noted(sites, value, taken)  # what is lost is rounding
            length /= 2
        else:
            break
        gain, taken = proposed - value, taken + 1
        sites, value, target = proposal, proposed, next_target
        if gain <= tolerance * (1 + abs(value)):
            break
        length = min(1.0, 4 * length)
    return _noted(sites, value, taken)


def _noted(sites: Sites, value: float, taken: int) -> tuple[Sites, float]:
    operators.note("natural-gradient steps", taken)
    return sites, value


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

    def evaluate(self, model: Model, variational: Variational) -> tuple[Tensor, Sites, Tensor | None]:
        """The rows' expected log-likelihood under q, their sites there, and what couples mixed latents, (n, q, q)."""
        a = self.projection
        shift = projected(a, variational.mean)
        mean = (self.mean + shift).mT
        variance = (self.variance + (variational.root.mT @ a).square().sum(-2)).mT
        value = self.data.total(model.expected_log_prob(mean, variance, self.data.y))
        alpha, beta = (site.mT for site in model.site_gradients(mean, variance, self.data.y))  # (k, n) each
        weights = self.data.scale if self.data.weights is None else self.data.scale * self.data.weights
        alpha, beta = alpha * weights, beta * weights
        pull = (a @ (alpha + beta * shift).unsqueeze(-1)).squeeze(-1)
        coupled = None
        if model.mixing is not None:
            coupled = model.couplings(mean, variance, self.data.y) * torch.as_tensor(weights).reshape(-1, 1, 1)
        return value, Sites(pull, (a * beta.unsqueeze(-2)) @ a.mT), coupled


class _Blocks:
    """All rows in blocks, their projections formed once where memory allows."""

    def __init__(self, model: Model, tril: Tensor, z: Tensor, data: Data, before: Sites | None):
        self.model, self.tril, self.z, self.data, self.before = model, tril, z, data, before
        self.earlier = None if before is None else Variational.from_sites(before)
        kept = tril[..., 0].numel() * len(data) <= KEPT_ELEMENTS
        self.blocks = list(self._built()) if kept else None

    def evaluate(self, sites: Sites) -> tuple[float, Sites]:
        """The bound over all rows, and the sites that a full step from here leads to."""
        variational = Variational.from_sites(sites if self.before is None else self.before + sites)
        total, target = -variational.divergence(self.earlier), Sites.none(self.model.num_outputs, self.z)
        couplings = []
        for block in self._built() if self.blocks is None else self.blocks:
            value, part, coupled = block.evaluate(self.model, variational)
            total, target = total + value, target + part
            couplings += [] if coupled is None else [(block.projection, coupled)]
        if couplings:
            known = target if self.before is None else self.before + target
            precision = torch.eye(len(self.z), dtype=self.z.dtype, device=self.z.device) + known.precision
            shift = coupled_shift(couplings, variational.mean, precision, known.shift)
            target = Sites(target.shift + shift - known.shift, target.precision)
        return float(total), target

    def _built(self) -> Iterator[_Block]:
        start = 0
        for x in operators.pieces(inputs(self.data), len(self.z) * self.model.num_outputs, elements=BLOCK_ELEMENTS):
            part = replace(self.data.rows(slice(start, start + len(x))), scale=self.data.scale)
            yield _Block.build(self.model, self.tril, self.z, part)
            start += len(x)


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
