"""Gaussian noise."""

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributions as td

from bayeskit.core import checks
from bayeskit.core.likelihood.conjugate import Conjugate
from bayeskit.core.posterior import FunctionValues
from bayeskit.core.predictive import GaussianPredictive

NOISE_FLOOR = 1e-6
"""Smallest noise variance that is learned, in the units of y: a noise of a thousandth of a standardized target."""


class Gaussian(Conjugate):
    """y = f + noise, p(y | f) = N(y; f, noise).

    Args:
        noise: Noise *variance* (not standard deviation): a number shared by the outputs, or one per output (k,).
        learn: Whether the noise is a parameter to learn. It is learned as log(noise - 1e-6), so it stays above 1e-6;
            a noise that is not learned may be any positive number.

    Examples:
        >>> import torch
        >>> likelihood = Gaussian(noise=0.25, learn=False)
        >>> likelihood.distribution(torch.zeros(3, 1)).stddev.squeeze(-1)
        tensor([0.5000, 0.5000, 0.5000])
    """

    def __init__(self, noise: Any = 0.1, *, learn: bool = True):
        super().__init__()
        self.floor = NOISE_FLOOR if learn else 0.0
        noise = checks.tensor(noise, name="noise").detach().double().reshape(-1)
        if not bool((noise > self.floor).all()):
            hint = "; pass `learn=False` for a smaller fixed noise" if learn else ""
            raise ValueError(f"`noise` must be a variance above {self.floor}; got {noise.tolist()}{hint}")
        self.raw_noise = nn.Parameter((noise - self.floor).log(), requires_grad=learn)

    @property
    def noise(self) -> Tensor:
        """Noise variance, (1,) or (k,)."""
        return self.raw_noise.exp() + self.floor

    @property
    def noise_variance(self) -> Tensor:
        """The same as `noise`."""
        return self.noise

    @property
    def noise_parameter(self) -> nn.Parameter:
        """log(noise - floor)."""
        return self.raw_noise

    @property
    def noise_floor(self) -> float:
        """1e-6 where the noise is learned, zero where it is fixed."""
        return self.floor

    @torch.no_grad()
    def set_noise_variance(self, value: Tensor) -> None:
        """Set the noise in place, kept above the floor."""
        above = (value.detach() - self.floor).clamp_min(1e-6 * self.floor)
        self.raw_noise.copy_(above.log().expand_as(self.raw_noise))

    def num_latents(self, y: Tensor) -> int:
        """One per output.

        Raises:
            ValueError: There is a noise per output, but of another number of outputs.
        """
        k = y.shape[-1] if y.ndim > 1 else 1
        if self.raw_noise.numel() not in (1, k):
            raise ValueError(f"`noise` must have 1 or {k} values, as `y` has {k} outputs; got {self.raw_noise.numel()}")
        return k

    def distribution(self, f: Tensor) -> td.Distribution:
        """N(f, noise) of each output."""
        return td.Independent(td.Normal(f, self.noise.to(f).sqrt(), validate_args=False), 1, validate_args=False)

    def observations(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The targets themselves, (*b, n, k), and the noise, (1,) or (k,)."""
        return (y.unsqueeze(-1) if y.ndim == 1 else y), self.noise

    def gaussian_predictive(self, values: FunctionValues) -> GaussianPredictive:
        """N(mean, variance + noise), exact."""
        return GaussianPredictive(values, self.noise)

    def extra_repr(self) -> str:
        """The noise variance, for printing."""
        return f"noise={[round(v, 6) for v in self.noise.detach().tolist()]}, learn={self.raw_noise.requires_grad}"


def outputs(y: Tensor, f: Tensor) -> Tensor:
    """Targets (n, k) with the type of `f`; (n,) becomes (n, 1)."""
    y = y.to(f.dtype)
    return y.unsqueeze(-1) if y.ndim == 1 else y
