"""Draws of the function and p(y | f) for each: what acquisition functions without a closed form use."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributions as td

from bayeskit.core import generators
from bayeskit.core.likelihood import Likelihood, noise_marginals
from bayeskit.core.posterior import FunctionValues, SampledValues
from bayeskit.core.predictive import distribution_cdfs, quadrature

NUM_DRAWS = 256
"""Functions drawn jointly where no draws are stored: an information gain over s functions is at most log s nats."""

NUM_POINTS = 128
"""Function values at each input by itself, where no draws are stored."""


@dataclass(frozen=True, eq=False)
class Draws:
    """s functions at n inputs, in groups that share a likelihood, all of equal weight.

    Args:
        groups: Latents (s_g, n, k) with their likelihood; the s_g sum to s.
    """

    groups: tuple[tuple[Tensor, Likelihood], ...]

    @property
    def num_inputs(self) -> int:
        """The number n of inputs."""
        return self.groups[0][0].shape[-2]

    @property
    def num_functions(self) -> int:
        """The number s of functions."""
        return sum(len(f) for f, _ in self.groups)

    def rows(self, index: Tensor | slice) -> "Draws":
        """The same functions at some of the inputs."""
        return Draws(tuple((f[:, index], likelihood) for f, likelihood in self.groups))

    def class_log_probs(self) -> Tensor:
        """Log probabilities of the classes given each function, (s, n, c)."""
        return torch.cat([noise_marginals.label_log_probs(given) for given in self._distributions()])

    def log_prob(self, y: Tensor) -> Tensor:
        """Log p(y | f_s) of targets (q, n, t) given each function, (q, s, n)."""
        return torch.cat([given.log_prob(y.unsqueeze(1)) for given in self._distributions()], 1)

    def sample(self, *, generator: torch.Generator) -> Tensor:
        """One y for each function, (s, n, t)."""
        with generators.seeded(generator):
            return torch.cat([given.sample() for given in self._distributions()])

    def observations(self, repeats: int) -> tuple[Tensor, Tensor, Tensor]:
        """Fixed observations of each function, for expectations over y.

        Under Gaussian noise they are nodes of a quadrature (Gauss-Hermite for one output, Sobol for several), otherwise
        draws that start at the same seed every time.

        Args:
            repeats: r, how many for each function.

        Returns:
            y (q, n, t) with q = s r; log p(y | f) of the function each belongs to, (q, n); weights (q, 1).
        """
        values, log_probs, weights = [], [], []
        generator = torch.Generator().manual_seed(0)
        for given in self._distributions():
            y, w = _nodes(given, repeats, generator)  # (r, s_g, n, t), (r,)
            values.append(y.flatten(0, 1))
            log_probs.append(given.log_prob(y).flatten(0, 1))
            weights.append(w.repeat_interleave(y.shape[1]) / self.num_functions)
        return torch.cat(values), torch.cat(log_probs), torch.cat(weights).unsqueeze(-1)

    def _distributions(self) -> list[td.Distribution]:
        """p(y | f) of each group."""
        with distribution_cdfs.unvalidated():
            given = [(likelihood.distribution(f), f) for f, likelihood in self.groups]
            return [d if noise_marginals.is_label(d) else distribution_cdfs.with_output_axis(d, f) for d, f in given]


def joint(values: FunctionValues, likelihood: Likelihood, *, generator: torch.Generator) -> Draws:
    """Functions drawn jointly at all the inputs of `values`; stored draws as they are.

    Args:
        values: Joint distribution of the function, (n, k).
        likelihood: p(y | f).
        generator: Source of randomness.
    """
    return _collect(values, likelihood, NUM_DRAWS, lambda part, count: part.sample(count, generator=generator))


def marginal(values: FunctionValues, likelihood: Likelihood, *, num_points: int = NUM_POINTS) -> Draws:
    """Function values drawn at each input by itself: fixed Sobol points, the same whatever else is in the batch."""

    def draw(part: FunctionValues, count: int) -> Tensor:
        if isinstance(part, SampledValues):
            return part.sample(count)
        return quadrature.latent_draws(part.mean, part.output_covariance(), count)

    return _collect(values, likelihood, num_points, draw)


def _collect(
    values: FunctionValues, likelihood: Likelihood, total: int, draw: Callable[[FunctionValues, int], Tensor]
) -> Draws:
    """Draws of each component in proportion to its weight."""
    found = copy.deepcopy(likelihood).requires_grad_(False).paired(values)
    if len(found) == 1 and isinstance(found[0][1], SampledValues):
        return Draws(((found[0][1].draws, found[0][2]),))
    counts = [max(1, round(total * weight)) if 4 * total * weight >= 1 else 0 for weight, _, _ in found]
    return Draws(tuple((draw(part, c), member) for c, (_, part, member) in zip(counts, found, strict=True) if c))


def _nodes(given: td.Distribution, repeats: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points y (r, s, n, t) with weights (r,) over which an expectation under p(y | f) is taken."""
    base = given.base_dist if isinstance(given, td.Independent) else given
    if not isinstance(base, td.Normal):
        with generators.seeded(generator):
            y = given.sample((repeats,))
        return y, torch.full((repeats,), 1 / repeats, dtype=y.dtype, device=y.device)
    if base.mean.shape[-1] == 1:
        z, weights = quadrature.gauss_hermite(repeats)
        z, weights = z.to(base.mean).unsqueeze(-1), weights.to(base.mean)
    else:
        z = quadrature.sobol_normals(repeats, base.mean.shape[-1]).to(base.mean)
        weights = z.new_full((repeats,), 1 / repeats)
    return base.mean + base.stddev * z[:, None, None, :], weights
