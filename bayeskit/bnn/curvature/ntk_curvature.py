"""The curvature of a log-likelihood in function space: n k x n k kernels in place of a p x p matrix.

A linearized network is a Gaussian process, with kernel `K = J P^-1 J'` between its outputs at the data. With
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
from functools import cached_property

import torch
from linear_operator import LinearOperator
from torch import Tensor

from bayeskit.bnn.curvature.ggn import Curvature, curvature_root
from bayeskit.bnn.curvature.linearized_evidence import Expansion, ModeEvidence
from bayeskit.bnn.curvature.ntk import tangent_kernels
from bayeskit.bnn.curvature.prior_precision import PriorPrecision
from bayeskit.bnn.networks.functional import NetworkFunction
from bayeskit.bnn.weights.low_rank_update import between_roots, conditioned
from bayeskit.core import operators
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.operators.algebra import product
from bayeskit.core.types import Data

KERNEL_LIMIT = 5_000
"""Most numbers in the targets (data points times outputs) for which the kernel is formed: 200 MB a group in float64."""


@dataclass(frozen=True, eq=False)
class KernelCurvature(Curvature):
    """H in function space.

    Args:
        before: The linearized function at the data, `J P0^-1 J'`.
        kernels: `J P0^-1 J'` with the weights of each group alone, (g, n*k, n*k), float64.
        root: R at each data point, (n, k, k), float64.
        slopes: r, (n, k), float64.
    """

    before: operators.Linearized
    kernels: Tensor
    root: Tensor
    slopes: Tensor

    def evidence(self, expansion: Expansion) -> "FunctionEvidence":
        """In the space of the function at the data."""
        return FunctionEvidence(expansion, self)

    def covariance(
        self, prior: PriorPrecision, log_precision: Tensor, factor: Tensor, *, dtype: torch.dtype
    ) -> LinearOperator:
        """The prior's covariance, conditioned on the data."""
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
class FunctionEvidence(ModeEvidence):
    """The evidence by a factorization of B (n*k, n*k) at each value.

    Args:
        expansion: About w0.
        curvature: Kernels, roots and slopes.
    """

    expansion: Expansion
    curvature: KernelCurvature

    def mode(self, log_precision: Tensor, log_noise: Tensor) -> Tensor:
        """`P^-1 J' (b - h R B^-1 R' K b)`."""
        before, root = self.curvature.before, self.curvature.root
        factor, rhs, projected = self._system(log_precision, log_noise)
        corrected = self._apply(root, factor.solve(self._apply(root.mT, projected)))
        dual = (rhs - torch.exp(-log_noise) * corrected).unsqueeze(-1)
        weights = before.pull(dual.to(before.mean), before.x)
        known = self.expansion.prior.covariance(log_precision, dtype=weights.dtype)
        return product(known, weights).squeeze(-1).double()

    def occam(self, log_precision: Tensor, log_noise: Tensor) -> Tensor:
        """`-log |B| / 2`."""
        return -0.5 * self._system(log_precision, log_noise)[0].logdet()

    def terms_at_mode(self, log_precision: Tensor, log_noise: Tensor) -> tuple[Tensor, Tensor]:
        """`(b' K b - h |B^-1/2 R' K b|^2) / 2 - h r' e - h |R' e|^2 / 2`, and `-log |B| / 2`."""
        factor, rhs, projected = self._system(log_precision, log_noise)
        h, root, offset = torch.exp(-log_noise), self.curvature.root, self._offset
        explained = factor.half_solve(self._apply(root.mT, projected)).square().sum()
        constant = self.curvature.slopes.flatten() @ offset + 0.5 * self._apply(root.mT, offset).square().sum()
        return 0.5 * (rhs @ projected - h * explained) - h * constant, -0.5 * factor.logdet()

    def _system(self, log_precision: Tensor, log_noise: Tensor) -> tuple[operators.Factor, Tensor, Tensor]:
        """The factor of B, b (n*k,) and K b (n*k,)."""
        h, root = torch.exp(-log_noise), self.curvature.root
        kernel = self.curvature.kernel(log_precision)
        inner = h * between_roots(kernel, root)
        inner = inner + torch.eye(len(inner), dtype=inner.dtype, device=inner.device)
        rhs = h * (self.curvature.slopes.flatten() + self._apply(root, self._apply(root.mT, self._offset)))
        return operators.factorize(inner, name="I + the curvature between data points"), rhs, kernel @ rhs

    @cached_property
    def _offset(self) -> Tensor:
        """e, (n*k,)."""
        before = self.curvature.before
        return before.push(self.expansion.offset.to(before.mean).unsqueeze(-1), before.x).double().flatten()

    def _apply(self, blocks: Tensor, values: Tensor) -> Tensor:
        """Blocks (n, k, k) times values (n*k,)."""
        return (blocks @ values.reshape(self.curvature.slopes.shape).unsqueeze(-1)).flatten()


def kernel(
    function: NetworkFunction, weights: Tensor, data: Data, likelihood: Likelihood, prior: PriorPrecision
) -> KernelCurvature:
    """The kernels between the outputs at all data, group by group of weights, and the likelihood's derivatives."""
    x = data.x[:]
    parts = operators.chunks(len(data), 64 * data.x.shape[1:].numel())
    roots, slopes = zip(*(_derivatives(function, weights, data.rows(part), likelihood) for part in parts), strict=True)
    zeros = torch.zeros(len(prior.names), dtype=torch.float64, device=weights.device)
    known = prior.covariance(zeros, dtype=weights.dtype)
    kernels = tangent_kernels(function, weights, x, known, groups=prior.groups, count=len(prior.names))
    before = operators.Linearized(weights, known, x, function=function)
    return KernelCurvature(before, kernels, torch.cat(roots), torch.cat(slopes))


def _derivatives(
    function: NetworkFunction, weights: Tensor, batch: Data, likelihood: Likelihood
) -> tuple[Tensor, Tensor]:
    """R (c, k, k) and r (c, k) at some data points, with their case weights."""
    with torch.no_grad():
        f = function(weights, batch.x[:])
    root = curvature_root(likelihood, f, batch)
    with torch.enable_grad():
        f = f.detach().requires_grad_()
        total = batch.total(likelihood.log_prob(f, batch.y))
    return root, torch.autograd.grad(total, f)[0].double()
