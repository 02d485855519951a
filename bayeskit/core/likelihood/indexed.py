"""Gaussian observations looked up by position, for likelihoods whose noise belongs to the rows as they were given."""

import torch
from torch import Tensor, nn
from torch import distributions as td

from bayeskit.core.likelihood.conjugate import Conjugate
from bayeskit.core.likelihood.likelihood import Likelihood
from bayeskit.core.likelihood.missing_targets import Observed
from bayeskit.core.likelihood.parameter_mixture import Drawn


class Indexed(Conjugate):
    """The observations that a conjugate likelihood forms from targets y, with positions in y as the new targets.

    Inference may sort, select and batch positions; the likelihood sees all of y in its own order every time.

    Args:
        base: A conjugate likelihood.
        y: (n, t) or (n,) targets.

    Examples:
        >>> from bayeskit.core.likelihood import Gaussian
        >>> likelihood = Indexed(Gaussian(torch.tensor([0.1, 0.4])), torch.tensor([[1.0, 2.0], [3.0, torch.nan]]))
        >>> likelihood.positions.tolist()
        [[0.0, 1.0], [2.0, nan]]
        >>> values, noise = likelihood.observations(torch.tensor([[2.0], [1.0]]))
        >>> values.flatten().tolist(), [round(s, 3) for s in noise.flatten().tolist()]
        ([3.0, 2.0], [0.1, 0.4])
    """

    def __init__(self, base: Likelihood, y: Tensor):
        super().__init__()
        self.base = base
        self.y: Tensor
        self.register_buffer("y", y)

    @property
    def positions(self) -> Tensor:
        """The targets of this likelihood for all of y, (n, k): i k + j, and NaN where y is missing."""
        values, _ = self._entries()
        index = torch.arange(values.numel(), dtype=torch.float64, device=values.device).reshape(values.shape)
        return index.masked_fill(values.isnan(), torch.nan)

    @property
    def noise_parameter(self) -> nn.Parameter | None:
        """That of the base."""
        return self.base.noise_parameter

    def num_latents(self, y: Tensor) -> int:
        """One for each column of positions."""
        return y.shape[-1]

    def distribution(self, f: Tensor) -> td.Distribution:
        """That of the base."""
        return self.base.distribution(f)

    def observations(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Values and noise variances at these positions, each of the shape of `y`."""
        values, noise = self._entries()
        index = y.nan_to_num(0.0).long()
        return values.flatten()[index].masked_fill(y.isnan(), torch.nan), noise.flatten()[index]

    def _entries(self) -> tuple[Tensor, Tensor]:
        """Values and noise variances of all entries, (n, k) each."""
        values, noise = values_and_noise(self.base, self.y).chunk(2, dim=-1)
        return values, noise

    def _observed(self, f: Tensor, y: Tensor) -> Observed:
        missing = y.isnan()
        return Observed(y.nan_to_num(0.0), ~missing if bool(missing.any()) else None)


def values_and_noise(likelihood: Likelihood, y: Tensor) -> Tensor:
    """The observations of a conjugate likelihood as targets of `KnownNoise`, (n, 2 k).

    Raises:
        ValueError: There are noise variances for each entry, but of another shape than the values.

    Examples:
        >>> from bayeskit.core.likelihood import Gaussian
        >>> values_and_noise(Gaussian(0.5), torch.tensor([[1.0], [2.0]])).round(decimals=6).tolist()
        [[1.0, 0.5], [2.0, 0.5]]
    """
    values, noise = likelihood.observations(y)
    values = values.reshape(len(y), -1).double()
    if noise.dim() > 1 and noise.shape != values.shape:
        raise ValueError(
            f"`observations` of {type(likelihood).__name__} must give a noise variance for each of its "
            f"{tuple(values.shape)} values; got shape {tuple(noise.shape)}"
        )
    return torch.cat([values, noise.double().expand_as(values)], dim=-1)


def needs_order(likelihood: Likelihood, y: Tensor) -> bool:
    """Whether the observations of a conjugate likelihood depend on the place of a row among all rows.

    Examples:
        >>> from bayeskit.core.likelihood import Gaussian
        >>> needs_order(Gaussian(), torch.zeros(3, 1))
        False
    """
    if not likelihood.is_conjugate or isinstance(likelihood, Indexed) or len(y) < 2:
        return False
    with torch.no_grad():
        values, noise = likelihood.observations(y)
        if noise.dim() < 2:
            return False
        try:
            later = likelihood.observations(y[1:])
        except (RuntimeError, ValueError, IndexError):
            return True
    pairs = zip(later, (values[1:], noise[1:]), strict=True)
    return not all(a.shape == b.shape and torch.allclose(a, b, equal_nan=True) for a, b in pairs)


def base_of(likelihood: Likelihood) -> Likelihood:
    """The likelihood behind an `Indexed` one, or the draws of it; any other itself.

    Examples:
        >>> from bayeskit.core.likelihood import Gaussian
        >>> type(base_of(Indexed(Gaussian(), torch.zeros(3, 1)))).__name__
        'Gaussian'
    """
    if isinstance(likelihood, Drawn):
        return Drawn([base_of(one) for one in likelihood.components], likelihood.weights)
    return likelihood.base if isinstance(likelihood, Indexed) else likelihood
