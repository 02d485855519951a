"""Gaussian noise of a known variance for each observation."""

import torch
from torch import Tensor, nn
from torch import distributions as td

from bayeskit.core.likelihood.conjugate import Conjugate
from bayeskit.core.likelihood.gaussian import Gaussian
from bayeskit.core.likelihood.likelihood import Likelihood
from bayeskit.core.likelihood.missing_targets import Observed
from bayeskit.core.likelihood.parameter_mixture import Drawn
from bayeskit.core.posterior import FunctionValues
from bayeskit.core.predictive import GaussianPredictive


class KnownNoise(Conjugate):
    """y = f + N(0, s) with a variance s known for every observation, plus, on request, noise of one variance for all.

    The targets have 2 k columns, the k values and their k variances, so that each value keeps its variance wherever a
    method sorts or batches the data. Predictions are for an observation without known noise: of the function itself,
    or with the noise of `extra`.

    Args:
        extra: Gaussian noise on top, learned or fixed; None for none.

    Examples:
        >>> y, s = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.1], [0.4]])
        >>> values, noise = KnownNoise().observations(torch.cat([y, s], dim=-1))
        >>> values.flatten().tolist(), [round(v, 3) for v in noise.flatten().tolist()]
        ([1.0, 2.0], [0.1, 0.4])
    """

    def __init__(self, extra: Gaussian | None = None):
        super().__init__()
        self.extra = extra

    @property
    def noise_parameter(self) -> nn.Parameter | None:
        """That of `extra`."""
        return None if self.extra is None else self.extra.noise_parameter

    def num_latents(self, y: Tensor) -> int:
        """Half the number of columns.

        Raises:
            ValueError: The number of columns is odd.
        """
        if y.ndim != 2 or y.shape[-1] % 2:
            raise ValueError(
                f"`KnownNoise` takes targets (n, 2 k), k values and then k noise variances; got {tuple(y.shape)}"
            )
        return y.shape[-1] // 2

    def distribution(self, f: Tensor) -> td.Distribution:
        """N(f, noise of `extra`) of each output."""
        std = self._extra().to(f).sqrt().expand(f.shape[-1])
        return td.Independent(td.Normal(f, std.expand_as(f), validate_args=False), 1, validate_args=False)

    def observations(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The values (*b, n, k), and their noise variances of that shape, with the noise of `extra` added."""
        values, noise = y.chunk(2, dim=-1)
        return values, noise.nan_to_num(1.0) + self._extra().to(noise)

    def gaussian_predictive(self, values: FunctionValues) -> GaussianPredictive:
        """N(mean, variance + noise of `extra`), exact."""
        return GaussianPredictive(values, self._extra())

    def extra_repr(self) -> str:
        """Nothing: `extra` is printed as a module."""
        return ""

    def _extra(self) -> Tensor:
        return torch.zeros(1, dtype=torch.float64) if self.extra is None else self.extra.noise

    def _observed(self, f: Tensor, y: Tensor) -> Observed:
        missing = y.chunk(2, dim=-1)[0].isnan()
        if not bool(missing.any()):
            return Observed(y, None)
        return Observed(y.nan_to_num(1.0), ~missing)


def with_known_noise(likelihood: Likelihood) -> Likelihood:
    """A likelihood of Gaussian noise, or draws of it, as the noise on top of a known one.

    Raises:
        ValueError: The likelihood has other than Gaussian noise.

    Examples:
        >>> with_known_noise(Gaussian(0.2)).extra.noise.item()
        0.2
    """
    if isinstance(likelihood, KnownNoise):
        return likelihood
    if isinstance(likelihood, Drawn):
        return Drawn([with_known_noise(one) for one in likelihood.components], likelihood.weights)
    if not isinstance(likelihood, Gaussian):
        raise ValueError(
            f"`noise_variance` needs Gaussian noise; got `likelihood={type(likelihood).__name__}`: leave it at None, "
            "or pass `Gaussian()` to learn further noise"
        )
    return KnownNoise(likelihood)


def without_known_noise(likelihood: Likelihood) -> Likelihood:
    """The inverse of `with_known_noise`: the noise on top; itself where there is none.

    Examples:
        >>> type(without_known_noise(KnownNoise(Gaussian()))).__name__, without_known_noise(KnownNoise()).extra
        ('Gaussian', None)
    """
    if isinstance(likelihood, Drawn):
        return Drawn([without_known_noise(one) for one in likelihood.components], likelihood.weights)
    return likelihood.extra if isinstance(likelihood, KnownNoise) and likelihood.extra is not None else likelihood
