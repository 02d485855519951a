"""What torch's distributions lack here: a few cdfs, and the distribution of each output by itself."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributions as td


class Column(td.Distribution):
    """A scalar distribution per input, (*b, n), as a distribution of one output, (*b, n, 1).

    Args:
        base: Distribution of batch shape (*b, n) and event shape ().
    """

    def __init__(self, base: td.Distribution):
        self.base_dist = base
        super().__init__(torch.Size((*base.batch_shape, 1)), validate_args=False)

    @property
    def arg_constraints(self) -> dict[str, Any]:
        """None: the base checks its own arguments."""
        return {}

    @property
    def support(self) -> Any:
        """The support of the scalar distribution."""
        return self.base_dist.support

    @property
    def mean(self) -> Tensor:
        """(*b, n, 1)."""
        return self.base_dist.mean.unsqueeze(-1)

    @property
    def variance(self) -> Tensor:
        """(*b, n, 1)."""
        return self.base_dist.variance.unsqueeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """(*b, n, 1)."""
        return self.base_dist.log_prob(value.squeeze(-1)).unsqueeze(-1)

    def cdf(self, value: Tensor) -> Tensor:
        """(*b, n, 1)."""
        return cdf(self.base_dist, value.squeeze(-1)).unsqueeze(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """(*sample_shape, *b, n, 1)."""
        return self.base_dist.sample(sample_shape).unsqueeze(-1)


@contextmanager
def unvalidated() -> Iterator[None]:
    """Build torch distributions without checks of their parameters, which far quadrature nodes may overflow.

    It also lets them be built under `torch.func.vmap`, whose tensors cannot be checked.
    """
    before = td.Distribution._validate_args
    td.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        td.Distribution.set_default_validate_args(before)


def with_output_axis(distribution: td.Distribution, f: Tensor) -> td.Distribution:
    """The distribution of numbers given latents `f` (*b, n, k), its outputs as event, (k,) or (1,)."""
    if distribution.event_shape:
        return distribution
    column = distribution if distribution.batch_shape == f.shape else Column(distribution)
    return td.Independent(column, 1, validate_args=False)


def per_output(distribution: td.Distribution, shape: torch.Size) -> td.Distribution | None:
    """The distribution of each output, of batch shape `shape` = (*b, n, t), or None where outputs do not factorize.

    Args:
        distribution: Batch (*b, n) and event () or (t,); batch (*b, n, t) and event () is read as independent outputs.
        shape: Shape (*b, n, t) that the targets have.
    """
    if (
        isinstance(distribution, td.Independent)
        and distribution.reinterpreted_batch_ndims == 1
        and distribution.base_dist.batch_shape == shape
    ):
        return distribution.base_dist
    if not distribution.event_shape:
        if distribution.batch_shape == shape:
            return distribution
        if distribution.batch_shape == shape[:-1] and shape[-1] == 1:
            return Column(distribution)
    return None


def marginals(distribution: td.Distribution) -> td.Distribution:
    """The distribution of each output by itself, (*b, n, k), correlated outputs or not.

    Raises:
        NotImplementedError: `distribution` has no known marginals.
    """
    if not distribution.event_shape:
        return distribution
    if isinstance(distribution, td.Independent) and distribution.reinterpreted_batch_ndims == 1:
        return distribution.base_dist
    if isinstance(distribution, td.MultivariateNormal | td.LowRankMultivariateNormal):
        return td.Normal(distribution.mean, distribution.variance.sqrt(), validate_args=False)
    raise NotImplementedError(
        f"the marginals of {type(distribution).__name__} are not known, so it has no cdf or quantile here; "
        "use torch.distributions.Independent or MultivariateNormal"
    )


def is_discrete(distribution: td.Distribution) -> bool:
    """Whether the mass is on the integers."""
    base = distribution.base_dist if isinstance(distribution, td.Independent) else distribution
    return bool(getattr(base.support, "is_discrete", False))


def cdf(distribution: td.Distribution, y: Tensor) -> Tensor:
    """P(Y <= y), by torch where it has it, by scipy elsewhere (no gradient there).

    Raises:
        NotImplementedError: Neither has it.
    """
    if isinstance(distribution, Column):
        return distribution.cdf(y)
    if type(distribution) in _SCIPY:
        function, arguments = _SCIPY[type(distribution)]
        parts = [t.detach().double().cpu().numpy() for t in (y, *arguments(distribution))]
        return torch.as_tensor(np.asarray(function(*parts))).to(y)
    inside, below, above = _clip(y, distribution.support)
    try:
        value = distribution.cdf(inside)
    except NotImplementedError:
        raise NotImplementedError(
            f"{type(distribution).__name__} has no cdf, which quantiles and intervals need; define `cdf` on it"
        ) from None
    return torch.where(below, 0.0, torch.where(above, 1.0, value)).to(y.dtype)


def log_prob(distribution: td.Distribution, y: Tensor) -> Tensor:
    """Log density of each element, minus infinity outside the support (where torch would raise)."""
    if is_discrete(distribution):
        return distribution.log_prob(y)
    inside, below, above = _clip(y, distribution.support)
    return torch.where(below | above, -torch.inf, distribution.log_prob(inside))


def allowed(distribution: td.Distribution) -> Tensor:
    """A value inside the support of each output, of its batch and event shape.

    Examples:
        >>> allowed(td.Normal(torch.zeros(2), 1.0)), allowed(td.Gamma(torch.ones(2), 1.0))
        (tensor([0., 0.]), tensor([1., 1.]))
    """
    base = distribution.base_dist if isinstance(distribution, td.Independent) else distribution
    inside, _, _ = _clip(torch.zeros(distribution.batch_shape + distribution.event_shape), base.support)
    return inside.floor() if is_discrete(distribution) else inside


def _clip(y: Tensor, support: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`y` moved to a point inside the support where it is not, and where it lay below and above."""
    low, high = getattr(support, "lower_bound", -torch.inf), getattr(support, "upper_bound", torch.inf)
    low, high = torch.as_tensor(low).to(y), torch.as_tensor(high).to(y)
    middle = torch.where(
        low.isfinite() & high.isfinite(), (low + high) / 2, torch.where(low.isfinite(), low + 1, high - 1)
    )
    below, above = y <= low, y >= high
    return torch.where(below | above, middle, y), below, above


def _student_t(y: np.ndarray, df: np.ndarray, loc: np.ndarray, scale: np.ndarray) -> np.ndarray:
    from scipy.special import stdtr

    return stdtr(df, (y - loc) / scale)


def _poisson(y: np.ndarray, rate: np.ndarray) -> np.ndarray:
    from scipy.special import pdtr

    return np.where(y < 0, 0.0, pdtr(np.floor(np.maximum(y, 0)), rate))


def _negative_binomial(y: np.ndarray, total: np.ndarray, probs: np.ndarray) -> np.ndarray:
    from scipy.special import betainc

    # P(Y <= y) = I_{1 - p}(total, floor(y) + 1) with p the probability of what is counted
    return np.where(y < 0, 0.0, betainc(total, np.floor(np.maximum(y, 0)) + 1, 1 - probs))


def _binomial(y: np.ndarray, total: np.ndarray, probs: np.ndarray) -> np.ndarray:
    from scipy.stats import binom

    return binom.cdf(y, total, probs)


def _geometric(y: np.ndarray, probs: np.ndarray) -> np.ndarray:
    return np.where(y < 0, 0.0, -np.expm1((np.floor(y) + 1) * np.log1p(-probs)))


def _bernoulli(y: np.ndarray, probs: np.ndarray) -> np.ndarray:
    return np.where(y < 0, 0.0, np.where(y < 1, 1 - probs, 1.0))


def _beta(y: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    from scipy.special import betainc

    return betainc(a, b, np.clip(y, 0, 1))


_SCIPY: dict[type, tuple[Callable[..., np.ndarray], Callable[[Any], tuple[Tensor, ...]]]] = {
    td.StudentT: (_student_t, lambda d: (d.df, d.loc, d.scale)),
    td.Poisson: (_poisson, lambda d: (d.rate,)),
    td.NegativeBinomial: (_negative_binomial, lambda d: (d.total_count, d.probs)),
    td.Binomial: (_binomial, lambda d: (d.total_count, d.probs)),
    td.Geometric: (_geometric, lambda d: (d.probs,)),
    td.Bernoulli: (_bernoulli, lambda d: (d.probs,)),
    td.Beta: (_beta, lambda d: (d.concentration1, d.concentration0)),
}
