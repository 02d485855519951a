"""The curvature of a log-likelihood seen from the function: n k x n k kernels in place of a p x p matrix.

A linearized network is a Gaussian process, of the kernel `K = J P^-1 J'` between its outputs at the rows. With
H = J' Lambda J, Lambda = R R', B = I + h R' K R, slopes r = d log p / d f and the offset e = J (w0 - m),

    log |h H + P| - log |P| = log |B|,
    w* = m + P^-1 J' (b - h R B^-1 R' K b),      b = h (r + Lambda e),

so where there are fewer numbers in the targets than weights, evidence and posterior cost a factorization of B.

References:
    Rasmussen & Williams. Gaussian Processes for Machine Learning. 2006, algorithms 3.1 and 3.3.
    Khan, Immer, Abedi, Korzepa. Approximate inference turns deep networks into Gaussian processes. NeurIPS 2019.
    Immer, van der Ouderaa, van der Wilk, Ratsch, Scholkopf. Stochastic marginal likelihood gradients using neural
    tangent kernels. ICML 2023, section 3.
"""

import copy
from dataclasses import dataclass

import torch
from linear_operator import LinearOperator
from torch import Tensor

from bayeskit.bnn.curvature.ggn import Curvature, Expansion, likelihood_root, pieces
from bayeskit.bnn.curvature.linearized_evidence import MovingEvidence, Noise
from bayeskit.bnn.curvature.ntk import tangent_kernels
from bayeskit.bnn.curvature.prior_precision import PriorPrecision
from bayeskit.bnn.networks.functional import NetworkFunction
from bayeskit.bnn.weights.low_rank_update import between_roots, conditioned
from bayeskit.core import operators
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.operators.algebra import product
from bayeskit.core.types import Data

KERNEL_LIMIT = 5_000
"""Most numbers in the targets (rows times outputs) for which their kernel is formed: 200 MB in float64 a group."""


@dataclass(frozen=True, eq=False)
class KernelCurvature(Curvature):
    """H by what the function sees of it.

    Args:
        before: The linearized function at the rows, `J P0^-1 J'`.
        kernels: `J P0^-1 J'` with the weights of each group alone, (g, n*k, n*k), float64.
        root: R at each row, (n, k, k), float64.
        slopes: r, (n, k), float64.
    """

    before: operators.Linearized
    kernels: Tensor
    root: Tensor
    slopes: Tensor

    def evidence(self, expansion: Expansion) -> "FunctionEvidence":
        """In the space of the function at the rows."""
        step = expansion.offset.to(self.before.mean).unsqueeze(-1)
        offset = self.before.push(step, self.before.x).double().reshape(self.slopes.shape)
        penalties = expansion.prior.quadratics(expansion.offset)
        return FunctionEvidence(expansion.log_likelihood, expansion.noise, self, expansion.prior, offset, penalties)

    def covariance(
        self, prior: PriorPrecision, log_precision: Tensor, factor: Tensor, *, dtype: torch.dtype
    ) -> LinearOperator:
        """The prior's covariance, conditioned on the rows."""
        function = self.before.function
        assert isinstance(function, NetworkFunction)
        like = {name: value.to(dtype) for name, value in function.like.items()}
        function = NetworkFunction(copy.deepcopy(function.network).to(dtype), like)
        mean, known = self.before.mean.to(dtype), prior.covariance(log_precision, dtype=dtype)
        x = self.before.x.to(dtype) if self.before.x.is_floating_point() else self.before.x
        before = operators.Linearized(mean, known, x, function=function, num_outputs=self.before.num_outputs)
        return conditioned(before, factor.sqrt() * self.root, self.kernel(log_precision))

    def kernel(self, log_precision: Tensor) -> Tensor:
        """K for log precisions (g,), (n*k, n*k)."""
        return torch.einsum("g,gij->ij", torch.exp(-log_precision), self.kernels)


@dataclass(frozen=True, eq=False)
class FunctionEvidence(MovingEvidence):
    """The evidence by a factorization of B (n*k, n*k) at each value.

    Args:
        log_likelihood: At w0.
        noise: Of a Gaussian likelihood, if it is learnt.
        curvature: Kernels, roots and slopes.
        prior: Precision of the weights.
        offset: e, (n, k).
        penalties: `(w0 - m)' P0 (w0 - m)` by group, (g,).
    """

    log_likelihood: Tensor
    noise: Noise | None
    curvature: KernelCurvature
    prior: PriorPrecision
    offset: Tensor
    penalties: Tensor

    def mode(self, log_precision: Tensor, log_noise: Tensor) -> Tensor:
        """`P^-1 J' (b - h R B^-1 R' K b)`."""
        before, root = self.curvature.before, self.curvature.root
        factor, pull, moved = self._system(log_precision, log_noise)
        corrected = self._apply(root, factor.solve(self._apply(root.mT, moved)))
        rows = (pull - torch.exp(-log_noise) * corrected).unsqueeze(-1)
        weights = before.pull(rows.to(before.mean), before.x)
        known = self.prior.covariance(log_precision, dtype=weights.dtype)
        return product(known, weights).squeeze(-1).double()

    def terms(self, log_precision: Tensor, log_noise: Tensor, *, moving: bool) -> tuple[Tensor, Tensor]:
        """At the mode `(b' K b - h |B^-1/2 R' K b|^2) / 2 - h r' e - h |R' e|^2 / 2`; and `-log |B| / 2`."""
        factor, pull, moved = self._system(log_precision, log_noise)
        occam = -0.5 * factor.logdet()
        if not moving:
            return -0.5 * self.penalties @ log_precision.exp(), occam
        h, root, offset = torch.exp(-log_noise), self.curvature.root, self.offset.flatten()
        explained = factor.half_solve(self._apply(root.mT, moved)).square().sum()
        seen = self._apply(root.mT, offset).square().sum()
        constant = self.curvature.slopes.flatten() @ offset + 0.5 * seen
        return 0.5 * (pull @ moved - h * explained) - h * constant, occam

    def _system(self, log_precision: Tensor, log_noise: Tensor) -> tuple[operators.Factor, Tensor, Tensor]:
        """The factor of B, b (n*k,) and K b (n*k,)."""
        h, root, offset = torch.exp(-log_noise), self.curvature.root, self.offset.flatten()
        kernel = self.curvature.kernel(log_precision)
        inner = h * between_roots(kernel, root)
        inner = inner + torch.eye(len(inner), dtype=inner.dtype, device=inner.device)
        pull = h * (self.curvature.slopes.flatten() + self._apply(root, self._apply(root.mT, offset)))
        return operators.factorize(inner, name="I + the curvature among the rows"), pull, kernel @ pull

    def _apply(self, blocks: Tensor, values: Tensor) -> Tensor:
        """Blocks (n, k, k) times values (n*k,)."""
        return (blocks @ values.reshape(self.offset.shape).unsqueeze(-1)).flatten()


def kernel(
    function: NetworkFunction, weights: Tensor, data: Data, likelihood: Likelihood, prior: PriorPrecision
) -> KernelCurvature:
    """The kernels between the outputs at all rows, a group of weights at a time, and what the likelihood says there."""
    x = data.x[:]
    roots, slopes = zip(*(_local(function, weights, rows, likelihood) for rows in _rows(data)), strict=True)
    nothing = torch.zeros(len(prior.names), dtype=torch.float64, device=weights.device)
    known = prior.covariance(nothing, dtype=weights.dtype)
    kernels = tangent_kernels(function, weights, x, known, groups=prior.groups, count=len(prior.names))
    before = operators.Linearized(weights, known, x, function=function)
    return KernelCurvature(before, kernels, torch.cat(roots), torch.cat(slopes))


def _rows(data: Data) -> list[Data]:
    return list(pieces(data, 64 * data.x.shape[1:].numel()))


def _local(function: NetworkFunction, weights: Tensor, rows: Data, likelihood: Likelihood) -> tuple[Tensor, Tensor]:
    """R (c, k, k) and r (c, k) at some rows, with their case weights."""
    with torch.no_grad():
        f = function(weights, rows.x[:])
    root = likelihood_root(likelihood, f, rows)
    with torch.enable_grad():
        f = f.detach().requires_grad_()
        total = rows.total(likelihood.log_prob(f, rows.y))
    return root, torch.autograd.grad(total, f)[0].double()
