"""The evidence lower bound of a whitened Gaussian q(v), and its optimum over q by natural-gradient steps."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from bayeskit.core import operators
from bayeskit.core.operators import factorize
from bayeskit.core.optimize import natural_gradient_ascent
from bayeskit.core.types import Data
from bayeskit.gp.kernels.evaluate import gram, grams, mean_rows
from bayeskit.gp.model.hyperparameters import Model
from bayeskit.gp.model.training_set import inputs
from bayeskit.gp.variational.coupled_newton import coupled_means
from bayeskit.gp.variational.marginal_moments import Form, marginals_of_grams
from bayeskit.gp.variational.projected_data import ProjectedData
from bayeskit.gp.variational.whitened_gaussian import Sites, WhitenedGaussian

KEPT_ELEMENTS = 2**28
"""Above this size of L^-1 k(Z, X), blocks of it are formed again for every pass instead of being kept (2 GiB)."""

BLOCK_ELEMENTS = 2**21
"""Numbers in diag(b) A' for one block of data: few enough to stay in cache, many enough for the products."""

MAX_EVALUATIONS = 4_000_000
"""Data points, times latent functions and steps, that the natural-gradient steps at the end of a fit take at most."""


def bound(model: Model, z: Tensor, q: WhitenedGaussian, data: Data) -> Tensor:
    """The evidence lower bound, on the scale of the full data, differentiable in everything.

    Args:
        model: Mean, kernel and any likelihood.
        z: Inducing points (m, d).
        q: q(v).
        data: All data or a mini-batch.
    """
    return data_term(model, z, q.mean, q.root, data, form="triangular") - q.divergence()


def data_term(model: Model, z: Tensor, mean: Tensor, spread: Tensor, data: Data, *, form: Form) -> Tensor:
    """sum_i w_i E_q[log p(y_i | f(x_i))] on the scale of the full data, differentiable in everything.

    What grows with the number of inducing points or data is formed in the type of `mean`, factors in float64.

    Args:
        model: Mean, kernel and any likelihood.
        z: Inducing points (m, d).
        mean: q, (k, m).
        spread: S or a root of it, (k, m, m).
        data: All data or a mini-batch.
        form: Which; see `marginals_of_grams`.
    """
    x = inputs(data)
    square, cross, before = grams(model.kernel, z, x, dtype=mean.dtype)
    shift, variance = marginals_of_grams(square, cross, before, mean, spread, form=form)
    prior = mean_rows(model.mean, x, model.num_outputs)
    return data.total(model.expected_log_prob((prior + shift).mT, variance.to(prior).mT, data.y))


def optimal_q(
    model: Model,
    z: Tensor,
    start: WhitenedGaussian,
    data: Data,
    *,
    max_steps: int,
    tolerance: float = 1e-7,
    independent: Tensor | None = None,
) -> tuple[WhitenedGaussian, float]:
    """Maximize the bound over q(v) alone, by natural-gradient steps over all data; see `optimal_sites`.

    Returns:
        The best q(v) and its bound.
    """
    tril = factorize(gram(model.kernel, z, z), name="K_zz").tril
    sites, value = optimal_sites(
        model,
        tril,
        z,
        data,
        Sites.of(start.mean, start.root),
        max_steps=max_steps,
        tolerance=tolerance,
        independent=independent,
    )
    return WhitenedGaussian.from_sites(sites), value


def affordable_steps(model: Model, num_rows: int) -> int:
    """Natural-gradient steps at most over so many data points, between 2 and 100; see `MAX_EVALUATIONS`."""
    return min(100, max(2, MAX_EVALUATIONS // (num_rows * model.num_outputs)))


@torch.no_grad()
def optimal_sites(
    model: Model,
    tril: Tensor,
    z: Tensor,
    data: Data,
    start: Sites,
    *,
    before: Sites | None = None,
    max_steps: int,
    tolerance: float = 1e-7,
    independent: Tensor | None = None,
) -> tuple[Sites, float]:
    """The sites of all data at the optimum of the bound, by natural-gradient steps.

    With (a_i, b_i) the first and (negated) second derivatives of E_q[log p(y_i | f)] in the mean of f(x_i), a step of
    length t moves the sites to

        P  <-  (1 - t) P + t sum_i w_i b_i A_i A_i',
        l  <-  (1 - t) l + t sum_i w_i (a_i + b_i A_i' q) A_i,         A_i = L^-1 k(Z, x_i).

    At t = 1 this is the optimum at once for a Gaussian likelihood; elsewhere a step that lowers the bound is halved.
    Where the precision of q lacks entries (`independent`, or a mixing of latent functions), the means are those of a
    Newton step with all entries, as in `coupled_newton.py`.

    Args:
        model: Mean, kernel and likelihood, which stay.
        tril: L, (m, m) or (k, m, m).
        z: Inducing points (m, d).
        data: All data.
        start: Where to start.
        before: Sites of earlier data at the same L and Z, which stay; the bound is then one on log p(y | earlier y).
        max_steps: Steps at most.
        tolerance: Stop when a step gains less than this share of the bound.
        independent: Block (m,) of each entry of v; q keeps blocks independent of each other. None for one block.

    Returns:
        The sites of these data, and the bound.

    References:
        Khan and Lin (2017), "Conjugate-Computation Variational Inference", section 3.
        Adam, Chang, Khan and Solin (2021), "Dual Parameterization of Sparse Variational Gaussian Processes", section 3.
    """
    objective = _Objective(model, (z, tril), data, before, independent)
    found = natural_gradient_ascent(_State.at(objective, start), max_steps=max_steps, tolerance=tolerance)
    operators.note("natural-gradient steps", found.steps)
    return found.state.sites, found.state.value


@dataclass(frozen=True, eq=False)
class _State:
    """Sites, their bound, and how to find the sites that a full step leads to, which a rejected state never needs."""

    objective: "_Objective"
    sites: Sites
    value: float
    find_target: Callable[[], Sites]

    @classmethod
    def at(cls, objective: "_Objective", sites: Sites) -> "_State":
        return cls(objective, sites, *objective.evaluate(sites))

    def propose(self, length: float) -> "_State":
        return _State.at(self.objective, self.sites.toward(self.target, length))

    @cached_property
    def target(self) -> Sites:
        return self.find_target()


class _Objective:
    """The bound over all data, in blocks whose projections are formed once where memory allows."""

    def __init__(
        self, model: Model, at: tuple[Tensor, Tensor], data: Data, before: Sites | None, independent: Tensor | None
    ):
        self.model, (self.z, self.tril), self.data, self.before = model, at, data, before
        self.mask = None if independent is None else independent.unsqueeze(-1) == independent
        self.prior = None if before is None else WhitenedGaussian.from_sites(before)
        kept = self.tril[..., 0].numel() * len(data) <= KEPT_ELEMENTS
        self.blocks = list(self._built()) if kept else None

    def evaluate(self, sites: Sites) -> tuple[float, Callable[[], Sites]]:
        """The bound over all data, and how to find the sites that a full step from here leads to."""
        q = WhitenedGaussian.from_sites(sites if self.before is None else self.before + sites)
        total, target = -q.divergence(self.prior), Sites.none(self.model.num_outputs, self.z)
        couplings = []
        for block in self._built() if self.blocks is None else self.blocks:
            mean, variance = block.marginals(q)
            total = total + block.data.total(self.model.expected_log_prob(mean.mT, variance.mT, block.data.y))
            target = target + block.sites(self.model, q.mean, mean, variance)
            if self.model.mixing is not None:
                weights = torch.as_tensor(block.weights).reshape(-1, 1, 1)
                coupled = self.model.couplings(mean.mT, variance.mT, block.data.y)
                couplings.append((block.projection, coupled * weights))
        if couplings or self.mask is not None:
            return float(total), partial(self._joint_target, q.mean, target, couplings)
        return float(total), lambda: target

    def _joint_target(self, mean: Tensor, target: Sites, couplings: list[tuple[Tensor, Tensor]]) -> Sites:
        """The target whose means are those of all entries together, without the entries that q's precision lacks."""
        known = target if self.before is None else self.before + target
        eye = torch.eye(len(self.z), dtype=self.z.dtype, device=self.z.device)
        precision, shift = eye + known.precision, known.shift
        if couplings:
            best = coupled_means(couplings, mean, precision, shift)
        else:
            best = factorize(precision, name="precision of q(v)").solve(shift.unsqueeze(-1)).squeeze(-1)
        if self.mask is not None:
            precision, target = precision * self.mask, Sites(target.shift, target.precision * self.mask)
        return Sites(target.shift + (precision @ best.unsqueeze(-1)).squeeze(-1) - shift, target.precision)

    def _built(self) -> Iterator[ProjectedData]:
        start = 0
        for x in operators.pieces(inputs(self.data), len(self.z) * self.model.num_outputs, elements=BLOCK_ELEMENTS):
            part = replace(self.data.rows(slice(start, start + len(x))), scale=self.data.scale)
            yield ProjectedData.build(self.model, self.tril, self.z, part)
            start += len(x)
