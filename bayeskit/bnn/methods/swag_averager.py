"""The Gaussian of SWAG, from the iterates of a training run."""

from collections.abc import Iterable

import torch
from linear_operator import LinearOperator
from linear_operator.operators import DiagLinearOperator
from torch import Tensor, nn

from bayeskit.bnn.networks.functional import flatten, parameters, unflatten
from bayeskit.bnn.weights.weight_posterior import GaussianWeights
from bayeskit.core import checks, operators


class SWAGAverager(nn.Module):
    """Running moments of the weights of a network, for your own training loop.

    After k calls of `collect` with weights w_1 ... w_k, of running mean m_k:

        v = 1/k sum_i (w_i - m_k)^2,     D = [w_i - m_i] of the last K calls,
        S = diag(v) / 2 + D D' / (2 (K - 1)),     or diag(v) while K < 2.

    The second moment is accumulated about the running mean (Welford), so v is never negative. The state is in buffers,
    (K + 2) numbers for each weight: `state_dict` and `to` work as for any module.

    Args:
        network: The network whose weights are collected; those that require a gradient.
        num_deviations: Largest K; 0 for the diagonal alone.
        names: Collect these parameters instead.

    References:
        Maddox, Izmailov, Garipov, Vetrov, Wilson. A simple baseline for Bayesian uncertainty in deep learning. NeurIPS
        2019, section 3.

    >>> network = nn.Linear(1, 1, bias=False)
    >>> averager = SWAGAverager(network)
    >>> for weight in (1.0, 2.0, 3.0):
    ...     _ = network.weight.data.fill_(weight)
    ...     averager.collect(network)
    >>> averager.posterior().mean["weight"].item()
    2.0
    """

    mean: Tensor
    squares: Tensor
    deviations: Tensor
    count: Tensor

    def __init__(self, network: nn.Module, num_deviations: int = 20, *, names: Iterable[str] | None = None):
        super().__init__()
        checks.positive(num_deviations + 1, name="num_deviations", integer=True)
        self.like = parameters(network, names)
        flat = flatten(self.like, self.like)
        flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
        self.register_buffer("mean", torch.zeros_like(flat))
        self.register_buffer("squares", torch.zeros_like(flat))
        self.register_buffer("deviations", flat.new_zeros(num_deviations, len(flat)))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def collect(self, network: nn.Module) -> None:
        """Add the current weights; call it once an epoch, say, at a constant learning rate."""
        self.add(flatten(parameters(network, self.like), self.like))

    @torch.no_grad()
    def add(self, flat: Tensor) -> None:
        """Add weights given as one vector, (p,)."""
        step = flat.to(self.mean) - self.mean
        self.count += 1
        self.mean += step / self.count
        deviation = flat.to(self.mean) - self.mean
        self.squares += step * deviation
        if len(self.deviations):
            self.deviations[(self.count - 1) % len(self.deviations)] = deviation

    @property
    def covariance(self) -> LinearOperator:
        """S, (p, p)."""
        variances = self.squares / self.count.clamp(min=1)
        rank = min(int(self.count), len(self.deviations))
        if rank < 2:  # one deviation does not determine a covariance
            return DiagLinearOperator(variances)
        root = self.deviations[:rank].mT / (2 * (rank - 1)) ** 0.5
        return operators.low_rank_plus_diagonal(root.contiguous(), variances / 2)

    def posterior(self) -> GaussianWeights:
        """The Gaussian over the weights.

        Raises:
            RuntimeError: Nothing was collected.
        """
        if not self.count:
            raise RuntimeError("No weights were collected; call `collect(network)` while it trains.")
        return GaussianWeights(unflatten(self.mean.clone(), self.like), self.covariance)
