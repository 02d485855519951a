"""Gaussian approximations of the likelihood of a shard, small enough to be communicated."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bayeskit.core import checks
from bayeskit.mcmc.base.log_density import LogDensity, Position, hessian_diagonal, ravel, unravel, value_and_gradient
from bayeskit.mcmc.base.transition_kernel import TransitionKernel
from bayeskit.mcmc.sampling.run import run


@dataclass(frozen=True, eq=False)
class Surrogate:
    """The log likelihood of a shard as `linear' q - q' precision q / 2`, up to a constant.

    Natural parameters, so that a direction without information has precision zero, not infinite variance.

    Args:
        linear: Precision times mean, (p,); or one of each chain, (c, p).
        precision: (p, p), or its diagonal (p,); or a diagonal of each chain, (c, p).

    Examples:
        >>> likelihood = Surrogate(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0]))  # N(2, 1), and no information
        >>> likelihood({"x": torch.tensor([[2.0, 7.0]])})
        tensor([2.])
    """

    linear: Tensor
    precision: Tensor

    def __call__(self, position: Position) -> Tensor:
        """The log likelihood of c positions, (c,)."""
        q = ravel(position)
        dense = self.precision.ndim > self.linear.ndim
        pulled = q @ self.precision if dense else q * self.precision
        return (q * self.linear).sum(-1) - 0.5 * (q * pulled).sum(-1)

    def of(self, chains: Tensor) -> "Surrogate":
        """The surrogate of these chains, if each chain has its own."""
        return self if self.linear.ndim == 1 else Surrogate(self.linear[chains], self.precision[chains])


def laplace_surrogate(log_likelihood: LogDensity, at: Position, *, dense: bool = True) -> Surrogate:
    """The second-order expansion of a log likelihood at a point; exact where it is quadratic.

    Negative curvature is set to zero.

    Args:
        log_likelihood: Maps leaves (c, *shape) to (c,).
        at: One position, leaves (1, *shape).
        dense: Whether to keep the whole precision matrix; with False only its diagonal.

    Examples:
        >>> laplace_surrogate(lambda q: -2 * (q["x"] - 3).square().sum(-1), {"x": torch.zeros(1, 1)})
        Surrogate(linear=tensor([12.]), precision=tensor([[4.]]))
    """
    point = ravel(at)[0]

    def value(flat: Tensor) -> Tensor:
        return log_likelihood(unravel(flat[None], at)).sum()

    gradient = torch.autograd.functional.jacobian(value, point)
    bend = torch.autograd.functional.hessian(value, point)
    assert isinstance(gradient, Tensor) and isinstance(bend, Tensor)
    precision = _nonnegative(-(bend + bend.mT) / 2 if dense else -bend.diagonal())
    return Surrogate(gradient + (precision @ point if dense else precision * point), precision)


def chain_surrogate(
    log_likelihood: LogDensity, position: Position, *, num_probes: int = 32, generator: torch.Generator
) -> Surrogate:
    """The expansion of a log likelihood about each chain's position, of second order with the diagonal of the Hessian.

    Its gradient is exact at those positions; the diagonal is an estimate, exact for a diagonal Hessian, and zero
    without probes. For chains about different modes, as in networks.

    Args:
        log_likelihood: Maps leaves (c, *shape) to (c,).
        position: Leaves (c, *shape).
        num_probes: Gradient evaluations for the diagonal; 0 for a first-order expansion.
        generator: Source of all randomness.

    Examples:
        >>> g, start = torch.Generator().manual_seed(0), {"x": torch.zeros(2, 1, dtype=torch.float64)}
        >>> chain_surrogate(lambda q: -2 * (q["x"][:, 0] - 3) ** 2, start, generator=g).linear
        tensor([[12.],
                [12.]], dtype=torch.float64)
    """
    gradients = value_and_gradient(log_likelihood, position)[1]
    if num_probes == 0:
        return Surrogate(ravel(gradients), torch.zeros_like(ravel(gradients)))
    hessian = hessian_diagonal(log_likelihood, position, num_probes=num_probes, generator=generator)
    precision = ravel(hessian).neg().clamp(min=0)
    return Surrogate(ravel(gradients) + precision * ravel(position), precision)


def fit_surrogate(
    log_likelihood: LogDensity,
    position: Position,
    *,
    kernel: TransitionKernel,
    num_samples: int,
    burn_in: int,
    thin: int = 1,
    weak_precision: float = 1e-2,
    dense: bool = False,
    generator: torch.Generator,
) -> Surrogate:
    """A Gaussian fitted to draws from a shard's likelihood, made once by each client.

    The likelihood may be improper, so the draws are from its product with a weak normal prior about the start, which is
    divided out again.

    Args:
        log_likelihood: Of the shard, leaves (c, *shape) to (c,).
        position: Starting positions, leaves (c, *shape).
        kernel: The kernel, such as `SGLD()`.
        num_samples: Draws of each chain.
        burn_in: Steps before the first.
        thin: Steps per draw.
        weak_precision: Precision of the weak prior.
        dense: Whether to fit a covariance; with False, variances.
        generator: Source of all randomness.

    Raises:
        ValueError: `weak_precision` is not positive, or the draws are too few for a covariance.
    """
    checks.positive(weak_precision, name="weak_precision")
    center = {name: leaf.mean(0, keepdim=True) for name, leaf in position.items()}

    def weakened(q: Position) -> Tensor:
        return log_likelihood(q) - 0.5 * weak_precision * (ravel(q) - ravel(center)).square().sum(-1)

    chain = run(kernel, weakened, position, num_samples=num_samples, burn_in=burn_in, thin=thin, generator=generator)
    draws = ravel({name: chain.samples[name].flatten(0, 1) for name in position}).detach()  # (s, p)
    if len(draws) <= (draws.shape[-1] if dense else 1):
        raise ValueError(
            f"{len(draws)} draws give no covariance of {draws.shape[-1]} numbers; raise `num_samples`, or `dense=False`"
        )
    weak = ravel(center)[0] * weak_precision
    if not dense:
        whole = 1 / draws.var(0)
        precision = (whole - weak_precision).clamp(min=0)
        # Where the data say nothing the surrogate is flat: no gradient either.
        return Surrogate(torch.where(precision > 0, whole * draws.mean(0) - weak, 0), precision)
    whole = torch.linalg.inv(torch.cov(draws.T))
    eye = torch.eye(len(weak), dtype=whole.dtype, device=whole.device)
    precision = _nonnegative(whole - weak_precision * eye)
    return Surrogate(whole @ draws.mean(0) - weak, precision)


def _nonnegative(precision: Tensor) -> Tensor:
    """The nearest positive semi-definite precision."""
    if precision.ndim == 1:
        return precision.clamp(min=0)
    values, vectors = torch.linalg.eigh(precision)
    return precision if values[0] >= 0 else (vectors * values.clamp(min=0)) @ vectors.mT
