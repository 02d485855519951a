"""A lower bound of the linearized network's log evidence from blocks of data, for any number of data and weights.

With M = R' J P^-1 J' R over all data points and outputs, the evidence has `-log |I + h M| / 2`, and by Fischer's
inequality

    log |I + h M| <= sum_b log |I + h M_bb|

for any partition into blocks: equal for one block, and tighter the more of the correlations lie within blocks, which
is why data points with similar targets share one. Where there are many outputs a block holds one output alone, and
Lambda is replaced by the diagonal of its absolute row sums: the difference is diagonally dominant, so no eigenvalue
decreases.

References:
    Immer, van der Ouderaa, van der Wilk, Ratsch, Scholkopf. Stochastic marginal likelihood gradients using neural
    tangent kernels. ICML 2023, section 4.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bayeskit.bnn.curvature.ggn import curvature_root
from bayeskit.bnn.curvature.linearized_evidence import Expansion, LocalEvidence
from bayeskit.bnn.curvature.ntk import tangent_kernels
from bayeskit.bnn.laplace_approximation.log_joint import Problem
from bayeskit.bnn.weights.low_rank_update import between_roots
from bayeskit.core import operators
from bayeskit.core.likelihood import Likelihood


@dataclass(frozen=True)
class Blocking:
    """How data points and outputs are cut into blocks.

    Args:
        size: Size of a block, data points times outputs. Twice as large costs four times the memory and eight times
            the time.
        fewest: Data points in a block with all its outputs; with more outputs than leave room for so many, every
            output is alone, for blocks of a few data points would neglect most correlations.
    """

    size: int = 512
    fewest: int = 50

    def joins(self, outputs: int) -> bool:
        """Whether a block holds all the outputs of its data points."""
        return outputs * self.fewest <= self.size

    def partition(self, problem: Problem) -> list[Tensor]:
        """The data points of each block: similar targets together."""
        k = _outputs(problem)
        count = self.size // k if self.joins(k) else max(1, int(self.size / k**0.5))
        order = problem.data.y.reshape(len(problem.data), -1)[:, 0].argsort(stable=True)
        return list(order.split(count))


DEFAULT_BLOCKING = Blocking()


@dataclass(frozen=True, eq=False)
class BlockEvidence(LocalEvidence):
    """The bound at fixed weights, estimated from some of its blocks if not all fit into memory.

    Args:
        expansion: About the weights.
        blocks: M_bb of each group, (g, c, q, q): c = 1 with the outputs together, c = k with each alone.
        scale: Number of data points over those within these blocks.
    """

    expansion: Expansion
    blocks: tuple[Tensor, ...]
    scale: float

    def occam(self, log_precision: Tensor, log_noise: Tensor) -> Tensor:
        """`-sum_b log |I + h M_bb| / 2`."""
        parts = [_occam(block, log_precision, log_noise) for block in self.blocks]
        return self.scale * torch.stack(parts).sum()


def block_evidence(
    problem: Problem,
    weights: Tensor,
    likelihood: Likelihood,
    expansion: Expansion,
    blocking: Blocking = DEFAULT_BLOCKING,
) -> BlockEvidence:
    """The bound as a function of log precisions and noise, from as many blocks as fit into memory, evenly spaced."""
    parts = blocking.partition(problem)
    numbers = len(problem.prior.names) * len(parts[0]) ** 2 * _outputs(problem)
    if blocking.joins(_outputs(problem)):
        numbers *= _outputs(problem)
    kept = next(operators.chunks(len(parts), numbers)).stop
    chosen = [parts[i] for i in torch.linspace(0, len(parts) - 1, kept).round().long().tolist()]
    blocks = tuple(_blocks(problem, weights, likelihood, chosen, blocking))
    return BlockEvidence(expansion, blocks, len(problem.data) / sum(len(part) for part in chosen))


@torch.no_grad()
def occam_bound(
    problem: Problem,
    weights: Tensor,
    likelihood: Likelihood,
    log_precision: Tensor,
    blocking: Blocking = DEFAULT_BLOCKING,
) -> Tensor:
    """`-sum_b log |I + M_bb| / 2` over all the blocks, one at a time, ()."""
    blocks = _blocks(problem, weights, likelihood, blocking.partition(problem), blocking)
    return torch.stack([_occam(block, log_precision, torch.zeros_like(log_precision[0])) for block in blocks]).sum()


def _occam(block: Tensor, log_precision: Tensor, log_noise: Tensor) -> Tensor:
    matrix = torch.einsum("g,gcij->cij", torch.exp(-log_precision - log_noise), block)
    matrix = matrix + torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return (
        -0.5 * operators.factorize(matrix, name="I + the curvature between the data points of a block").logdet().sum()
    )


def _blocks(
    problem: Problem, weights: Tensor, likelihood: Likelihood, parts: list[Tensor], blocking: Blocking
) -> Iterator[Tensor]:
    """M_bb of each group for each set of data points, (g, c, q, q)."""
    flat, prior = weights.to(problem.dtype), problem.prior
    known = prior.covariance(weights.new_zeros(len(prior.names)), dtype=flat.dtype)
    for part in parts:
        batch = problem.data.rows(part)
        x = batch.x[:]
        with torch.no_grad():
            root = curvature_root(likelihood, problem.function(flat, x), batch)
        kernels = tangent_kernels(problem.function, flat, x, known, groups=prior.groups, count=len(prior.names))
        if blocking.joins(root.shape[-1]):
            yield between_roots(kernels, root).unsqueeze(1)
        else:
            sums = (root @ root.mT).abs().sum(-1).sqrt().mT  # (k, c)
            alone = kernels.unflatten(-1, root.shape[:2]).unflatten(1, root.shape[:2]).diagonal(dim1=2, dim2=4)
            yield sums[:, :, None] * alone.movedim(-1, 1) * sums[:, None, :]


def _outputs(problem: Problem) -> int:
    return problem.likelihood.num_latents(problem.data.y)
