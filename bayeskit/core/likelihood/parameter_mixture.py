"""A mixture of likelihoods over draws of their parameters."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributions as td

from bayeskit.core import generators
from bayeskit.core.likelihood.likelihood import Likelihood
from bayeskit.core.posterior import FunctionValues, MixtureValues, by_component
from bayeskit.core.predictive import Predictive, pool


class Drawn(Likelihood):
    """A mixture of likelihoods, p(y | f) = sum_s w_s p_s(y | f), over posterior draws of parameters such as the noise.

    Where the function is a mixture of as many components, draw s belongs to component s: function and noise
    were drawn together.

    Args:
        members: The s likelihoods, all of one kind.
        weights: w, (s,), summing to one; None for equal weights.

    Examples:
        >>> from bayeskit.core.likelihood import Gaussian
        >>> likelihood = Drawn([Gaussian(0.1), Gaussian(0.3)])
        >>> round(likelihood.distribution(torch.zeros(1, 1)).variance.item(), 6)
        0.2
    """

    def __init__(self, members: Sequence[Likelihood], weights: Tensor | None = None):
        super().__init__()
        self.members = nn.ModuleList(members)
        equal = torch.full((len(members),), 1 / len(members), dtype=torch.float64)
        self.weights: Tensor
        self.register_buffer("weights", equal if weights is None else weights)
        self.target = members[0].target  # type: ignore[misc]

    @property
    def components(self) -> tuple[Likelihood, ...]:
        """The members."""
        return tuple(self.members)  # type: ignore[arg-type]

    def distribution(self, f: Tensor) -> td.Distribution:
        """The mixture of the members' distributions."""
        return _Pooled([member.distribution(f) for member in self.components], self.weights)

    def num_latents(self, y: Tensor) -> int:
        """As the members."""
        return self.components[0].num_latents(y)

    def latent_units(self, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """As the members."""
        return self.components[0].latent_units(shift, scale)

    def predictive(self, values: FunctionValues) -> Predictive:
        """The mixture of the members' predictives, each of its own component of a mixture of functions."""
        parts, weights = self._parts(values)
        return pool([member.predictive(part) for member, part in zip(self.components, parts, strict=True)], weights)

    def sample(self, values: FunctionValues, num_samples: int, *, generator: torch.Generator) -> Tensor:
        """Joint draws of the observations: a member and its function for each draw, then y, (s, n, t)."""
        parts, weights = self._parts(values)
        return by_component(
            generators.categorical(weights, num_samples, generator=generator),
            lambda s, count: self.components[s].sample(parts[s], count, generator=generator),
        )

    def paired(self, values: FunctionValues) -> list[tuple[float, FunctionValues, Likelihood]]:
        """Each member with its weight and its component of a mixture of functions."""
        parts, weights = self._parts(values)
        return [(float(w), part, member) for w, part, member in zip(weights, parts, self.components, strict=True)]

    def _parts(self, values: FunctionValues) -> tuple[tuple[FunctionValues, ...], Tensor]:
        """The function values of each member, and the weights (s,)."""
        if isinstance(values, MixtureValues) and len(values.components) == len(self.members):
            return values.components, values.weights
        return (values,) * len(self.members), self.weights


class _Pooled(td.Distribution):
    """A finite mixture of distributions of the same shape, one component drawn for each element of the batch."""

    def __init__(self, parts: list[td.Distribution], weights: Tensor):
        self.parts, self.weights = parts, weights
        super().__init__(parts[0].batch_shape, parts[0].event_shape, validate_args=False)

    @property
    def arg_constraints(self) -> dict:
        """None: the parts check their own arguments."""
        return {}

    @property
    def support(self):
        """The support of the parts."""
        return self.parts[0].support

    @property
    def mean(self) -> Tensor:
        """The average of the means."""
        return self._average([part.mean for part in self.parts])

    @property
    def variance(self) -> Tensor:
        """The average of the variances plus the variance of the means."""
        return self._average([part.variance + (part.mean - self.mean).square() for part in self.parts])

    def log_prob(self, value: Tensor) -> Tensor:
        """Log sum_s w_s p_s(y)."""
        terms = [part.log_prob(value) + w.log() for part, w in zip(self.parts, self.weights, strict=True)]
        return torch.stack(terms).logsumexp(0)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws from torch's global generator, as in every torch distribution."""
        shape = torch.Size((*sample_shape, *self.batch_shape))
        index = torch.multinomial(self.weights, shape.numel(), replacement=True).reshape(shape)
        index = index.reshape(*shape, *(1 for _ in self.event_shape))
        drawn = self.parts[0].sample(shape[: len(sample_shape)])
        for s, part in enumerate(self.parts[1:], start=1):
            drawn = torch.where(index == s, part.sample(shape[: len(sample_shape)]), drawn)
        return drawn

    def _average(self, values: list[Tensor]) -> Tensor:
        return torch.stack([w * value for w, value in zip(self.weights, values, strict=True)]).sum(0)
