"""A lower bound of the linearized network's log evidence from blocks of rows, for any number of rows and weights.

With M = R' J P^-1 J' R over all rows and outputs, the evidence has `-log |I + h M| / 2`, and by Fischer's inequality

    log |I + h M| <= sum_b log |I + h M_bb|

for any partition into blocks: equal for one block, and tighter the more of the correlations lie within blocks, which
is why rows of like targets share one. Where there are many outputs a block holds rows of one output alone, and Lambda
is replaced by the diagonal of its absolute row sums: what that adds is diagonally dominant, so no eigenvalue falls.

References:
    Immer, van der Ouderaa, van der Wilk, Ratsch, Scholkopf. Stochastic marginal likelihood gradients using neural
    tangent kernels. ICML 2023, section 4.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bayeskit.bnn.curvature.ggn import Expansion, likelihood_root
from bayeskit.bnn.curvature.linearized_evidence import LocalEvidence, Noise
from bayeskit.bnn.curvature.ntk import tangent_kernels
from bayeskit.bnn.laplace_approximation.log_joint import Problem
from bayeskit.bnn.weights.low_rank_update import between_roots
from bayeskit.core import operators
from bayeskit.core.likelihood import Likelihood

BLOCK = 512
"""Size of a block: rows times outputs. Twice as large costs four times the memory and eight times the time."""

FEWEST_ROWS = 50
"""Rows in a block with all its outputs; with more outputs than leave room for so many, every output is alone."""


@dataclass(frozen=True, eq=False)
class BlockEvidence(LocalEvidence):
    """The bound about weights that stay, estimated from some of its blocks if all do not fit the budget.

    Args:
        log_likelihood: At the weights.
        noise: Of a Gaussian likelihood, if it is learnt.
        penalties: `(w0 - m)' P0 (w0 - m)` by group, (g,).
        blocks: M_bb of each group, (g, c, q, q): c = 1 with the outputs together, c = k with each alone.
        scale: Rows over rows within these blocks.
    """

    log_likelihood: Tensor
    noise: Noise | None
    penalties: Tensor
    blocks: tuple[Tensor, ...]
    scale: float

    def terms(self, log_precision: Tensor, log_noise: Tensor, *, moving: bool) -> tuple[Tensor, Tensor]:
        """`-(w0 - m)' P (w0 - m) / 2` and `-sum_b log |I + h M_bb| / 2`."""
        assert not moving
        parts = [_occam(block, log_precision, log_noise) for block in self.blocks]
        return -0.5 * self.penalties @ log_precision.exp(), self.scale * torch.stack(parts).sum()


def block_evidence(problem: Problem, weights: Tensor, likelihood: Likelihood, expansion: Expansion) -> BlockEvidence:
    """The bound as a function of log precisions and noise, from as many blocks as the budget holds, evenly spaced."""
    parts = partition(problem)
    together, rows = _together(_outputs(problem)), len(parts[0])
    numbers = len(problem.prior.names) * rows**2 * _outputs(problem) ** (2 if together else 1)
    kept = max(1, min(len(parts), operators.CHUNK_ELEMENTS // numbers))
    chosen = [parts[i] for i in torch.linspace(0, len(parts) - 1, kept).round().long().tolist()]
    blocks = tuple(_blocks(problem, weights, likelihood, chosen))
    scale = len(problem.data) / sum(len(part) for part in chosen)
    penalties = problem.prior.quadratics(expansion.offset)
    return BlockEvidence(expansion.log_likelihood, expansion.noise, penalties, blocks, scale)


@torch.no_grad()
def occam_bound(problem: Problem, weights: Tensor, likelihood: Likelihood, log_precision: Tensor) -> Tensor:
    """`-sum_b log |I + M_bb| / 2` over all the blocks, one at a time, ()."""
    blocks, noise = _blocks(problem, weights, likelihood, partition(problem)), torch.zeros_like(log_precision[0])
    return torch.stack([_occam(block, log_precision, noise) for block in blocks]).sum()


def partition(problem: Problem) -> list[Tensor]:
    """The rows of each block: rows of like targets together."""
    k = _outputs(problem)
    rows = BLOCK // k if _together(k) else max(1, int(BLOCK / k**0.5))
    order = problem.data.y.reshape(len(problem.data), -1)[:, 0].argsort(stable=True)
    return list(order.split(rows))


def _occam(block: Tensor, log_precision: Tensor, log_noise: Tensor) -> Tensor:
    matrix = torch.einsum("g,gcij->cij", torch.exp(-log_precision - log_noise), block)
    matrix = matrix + torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return -0.5 * operators.factorize(matrix, name="I + the curvature among the rows of a block").logdet().sum()


def _blocks(problem: Problem, weights: Tensor, likelihood: Likelihood, parts: list[Tensor]) -> Iterator[Tensor]:
    """M_bb of each group for each set of rows, (g, c, q, q)."""
    flat, prior = weights.to(problem.dtype), problem.prior
    known = prior.covariance(weights.new_zeros(len(prior.names)), dtype=flat.dtype)
    for part in parts:
        rows = problem.data.rows(part)
        x = rows.x[:]
        with torch.no_grad():
            root = likelihood_root(likelihood, problem.function(flat, x), rows)
        kernels = tangent_kernels(problem.function, flat, x, known, groups=prior.groups, count=len(prior.names))
        if _together(root.shape[-1]):
            yield between_roots(kernels, root).unsqueeze(1)
        else:
            sums = (root @ root.mT).abs().sum(-1).sqrt().mT  # (k, rows)
            alone = kernels.unflatten(-1, root.shape[:2]).unflatten(1, root.shape[:2]).diagonal(dim1=2, dim2=4)
            yield sums[:, :, None] * alone.movedim(-1, 1) * sums[:, None, :]


def _together(outputs: int) -> bool:
    return outputs * FEWEST_ROWS <= BLOCK


def _outputs(problem: Problem) -> int:
    return problem.likelihood.num_latents(problem.data.y)
