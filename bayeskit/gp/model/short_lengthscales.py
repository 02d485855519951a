"""Short lengthscales as the start of a search, where the data vary faster than the initial ones.

The evidence of a fast function, such as ten periods of an oscillation, has two maxima: short lengthscales with little
noise, and long lengthscales with all of it noise. A search that starts at long lengthscales ends at the second, however
much lower it is. Hence a few shorter ones are compared first, on small subsets of the data.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from gpytorch.kernels import Kernel
from torch import Tensor
from torch.linalg import LinAlgError  # pyright: ignore[reportAttributeAccessIssue]

from bayeskit.core.types import Data
from bayeskit.gp.kernels.evaluate import gram
from bayeskit.gp.model.hyperparameters import Model
from bayeskit.gp.model.training_set import inputs

FACTORS = (1 / 4, 1 / 9, 1 / 20, 1 / 40, 1 / 90)
"""Lengthscales that are compared with those of the start, in these."""

ALONE = (1 / 9, 1 / 20)
"""The same for the lengthscale of one feature."""

NOISE_SHARES = (0.003, 0.01, 0.03, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
"""Shares of the targets' variance that may be noise; the most probable one counts."""

LARGEST_GAIN = 0.5
"""Gain in log density that counts for one data point: a few pairs of near inputs must not decide for all."""

MARGIN = 9.0
"""Sum of gains that shorter lengthscales need beside log(number compared); pure noise hardly ever reaches it."""

SUBSET = 64
"""Data points of one subset."""

NARROWING = 8
"""Ratio of the numbers of neighbors that one subset and the next denser one are drawn from."""

FEWEST = 10
"""Data points from which on lengthscales are compared."""

MAX_COLUMNS = 16
"""Features up to which each one's lengthscale is also shortened alone."""

ROUNDS = 3
"""Lengthscales shortened one after the other, at most."""


def start_from(model: Model, rows: Data) -> None:
    """Move a constant mean to the mean of the targets (conjugate likelihoods), and lengthscales to where data ask.

    Args:
        model: The model at its initial hyperparameters, changed in place.
        rows: The training set.
    """
    if model.likelihood.is_conjugate:
        model.center(model.likelihood.observations(rows.y)[0], rows.weights)
    shorten_lengthscales(model, rows)


@torch.no_grad()
def shorten_lengthscales(model: Model, rows: Data) -> None:
    """Multiply learnable lengthscales by one of `FACTORS` if most data are better predicted with the shorter ones.

    All lengthscales are shortened together, or that of one feature and then perhaps another; each output has its own
    where its kernel does. With R the correlation matrix of a subset of the data, v their standardized values and s the
    share of noise, the prediction of v_i is that of all others of the subset under

        v ~ N(0, (1 - s) R + s I),    log p(v_i | v_-i) = -1/2 (log s_i + (v_i - m_i)^2 / s_i) + constant,

    s being the best one over all subsets, which have different densities: of all data, of an eighth around a point, and
    so on. Labels count as values 0 and 1 here, and other targets as they are, so that the comparison needs no
    likelihood. Evidence in place of predictions would find short lengthscales in pure noise more often.

    Args:
        model: The model at its initial hyperparameters; only lengthscales are changed, in place.
        rows: The training set.

    References:
        Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, section 5.4.1 and figure 5.5 for the
        two maxima, equations 5.10 to 5.12 for the predictions, section 6.5 for labels as values.

    Examples:
        >>> from bayeskit.core.likelihood import Gaussian
        >>> from bayeskit.gp.model.hyperparameters import learnable
        >>> from bayeskit.gp import default_prior
        >>> x = torch.linspace(0, 1, 60, dtype=torch.float64).unsqueeze(-1)
        >>> for frequency in (6, 60):
        ...     model = learnable(default_prior(x), Gaussian(), learn=True)
        ...     before = model.kernel.base_kernel.lengthscale.item()
        ...     shorten_lengthscales(model, Data(x, (frequency * x).sin()))
        ...     print(round(before / model.kernel.base_kernel.lengthscale.item()))
        1
        9
    """
    scales = Lengthscales.of(model.kernel)
    if scales is None or len(rows) < FEWEST:
        return
    values = _values(model, rows)
    subsets = [one for columns in _columns(values) for one in _subsets(inputs(rows), values, columns)]
    try:
        _search(model.kernel, scales, subsets, values.shape[-1])
    except LinAlgError:  # a kernel that is not finite here: the search of hyperparameters will tell
        scales.multiply(torch.ones(1, scales.width, dtype=torch.float64))


def _search(kernel: Kernel, scales: "Lengthscales", subsets: list["Subset"], outputs: int) -> None:
    """Shorten lengthscales as long as most data points are better predicted by the others."""
    separate = tuple(kernel.batch_shape) == (outputs,)
    factors = torch.ones(outputs if separate else 1, scales.width, dtype=torch.float64)

    def density(candidate: Tensor) -> Tensor:
        scales.multiply(candidate)
        return _log_density(kernel, subsets, outputs)

    reached = density(factors)  # (outputs, points)
    for attempt in range(ROUNDS if scales.width > 1 else 1):
        moves = list(_moves(factors, together=not attempt))
        found = torch.stack([density(one) for one in moves])  # (moves, outputs, points)
        gains = (found - reached).clamp_max(LARGEST_GAIN).sum(-1)
        gains = gains if separate else gains.sum(-1, keepdim=True)
        best, which = gains.max(0)
        better = (best > MARGIN + math.log(len(moves))).unsqueeze(-1)
        if not bool(better.any()):
            break
        own = torch.arange(len(factors))
        factors = torch.where(better, torch.stack(moves)[which, own], factors)
        reached = torch.where(better, found[which, own] if separate else found[which[0]], reached)
    scales.multiply(factors)


def _moves(factors: Tensor, *, together: bool) -> Iterator[Tensor]:
    """Factors (outputs, d) with one more feature, or all, at one of `FACTORS`."""
    d = factors.shape[-1]
    if together:
        yield from (factors * factor for factor in FACTORS)
    if 1 < d <= MAX_COLUMNS:
        for column in range(d):
            for factor in ALONE:
                changed = factors.clone()
                changed[:, column] = factor
                yield changed


@dataclass(frozen=True, eq=False)
class Lengthscales:
    """The learnable lengthscales of a kernel.

    Args:
        parts: The kernels that have them.
        start: Their initial values.
        width: Number of features with a lengthscale each, 1 if they share one.
    """

    parts: list[Kernel]
    start: list[Tensor]
    width: int

    @classmethod
    def of(cls, kernel: Kernel) -> "Lengthscales | None":
        """Those of a kernel and its parts; None if it has none to learn."""
        kernels = [part for part in kernel.modules() if isinstance(part, Kernel) and part.has_lengthscale]
        parts = list({id(part): part for part in kernels if part.raw_lengthscale.requires_grad}.values())
        if not parts:
            return None
        start: list[Tensor] = [part.lengthscale.detach().clone() for part in parts]  # pyright: ignore
        return cls(parts, start, max(value.shape[-1] for value in start))

    def multiply(self, factors: Tensor) -> None:
        """Set every lengthscale to its initial value times a factor, within its constraint.

        Args:
            factors: (k, width), one row per output, or (1, width); a lengthscale of several features takes the largest
                of their factors.
        """
        for part, start in zip(self.parts, self.start, strict=True):
            factor = factors.to(start)
            if start.shape[-1] != self.width:
                factor = factor.amax(-1, keepdim=True)
            own = start.dim() > 2 and start.shape[0] == len(factors)
            value = start * (factor.unsqueeze(1) if own else factor.amax(0))
            constraint: Any = part.raw_lengthscale_constraint
            shortest = torch.minimum(constraint.lower_bound.to(value) + 1e-3 * start, start)
            part.lengthscale = torch.maximum(value, shortest)


@dataclass(frozen=True, eq=False)
class Subset:
    """Data points close to each other: inputs (b, d) and standardized values (b, j) of the outputs `columns`."""

    x: Tensor
    values: Tensor
    columns: list[int]


def _log_density(kernel: Kernel, subsets: list[Subset], outputs: int) -> Tensor:
    """Log density of each value given the others of its subset, (outputs, points), at each output's best noise share.

    With C = U diag(c) U', the value v_i has mean v_i - (C^-1 v)_i / (C^-1)_ii and variance 1 / (C^-1)_ii.
    """
    parts = []
    for subset in subsets:
        covariance = gram(kernel, subset.x, subset.x)
        if covariance.dim() == 3:
            own = len(covariance) == outputs
            covariance = covariance[subset.columns] if own else covariance.mean(0, keepdim=True)
        else:
            covariance = covariance.unsqueeze(0)
        correlation = covariance / covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
        eigenvalues, vectors = torch.linalg.eigh(correlation)  # (1 or j, b), (1 or j, b, b)
        shares = torch.tensor(NOISE_SHARES, dtype=torch.float64, device=vectors.device)[:, None, None]
        inverse = 1 / ((1 - shares) * eigenvalues.clamp_min(0.0) + shares)  # (s, 1 or j, b)
        precision = (vectors.square() @ inverse.unsqueeze(-1)).squeeze(-1)
        projected = vectors.mT @ subset.values.mT.unsqueeze(-1)  # (j, b, 1)
        error = (vectors @ (inverse.unsqueeze(-1) * projected)).squeeze(-1)  # (s, j, b)
        found = error.new_zeros(len(shares), outputs, error.shape[-1])
        place = torch.tensor(subset.columns, device=found.device)
        parts.append(found.index_copy(1, place, 0.5 * (precision.log() - error.square() / precision)))
    density = torch.cat(parts, dim=-1)  # (s, outputs, points)
    return density[density.sum(-1).argmax(0), torch.arange(outputs, device=density.device)]


def _values(model: Model, rows: Data) -> Tensor:
    """The targets as standardized values (n, k), NaN where missing; one for each latent if that is possible."""
    if model.likelihood.is_conjugate:
        values = model.likelihood.observations(rows.y)[0].double()
    elif model.likelihood.has_labels:
        codes = rows.y.long().flatten()
        values = torch.nn.functional.one_hot(codes).double()
        values = values[:, 1:] if values.shape[-1] == 2 and model.num_outputs == 1 else values
    else:
        values = rows.y.double().reshape(len(rows), -1)
    values = values - values.nanmean(0)
    spread = values.square().nanmean(0).sqrt()
    return values / torch.where(spread > 0, spread, 1.0)


def _columns(values: Tensor) -> list[list[int]]:
    """Outputs that share their subsets: all, or each alone where entries are missing."""
    everything = list(range(values.shape[-1]))
    return [[column] for column in everything] if bool(values.isnan().any()) else [everything]


def _subsets(x: Tensor, values: Tensor, columns: list[int]) -> Iterator[Subset]:
    """At most `SUBSET` of all data points, then of a `NARROWING`-th of them around a point, down to neighbors alone."""
    seen = ~values[:, columns[0]].isnan()
    x, values = x[seen], values[seen].index_select(1, torch.tensor(columns, device=values.device))
    n = len(x)
    generator = torch.Generator().manual_seed(0)  # the same subsets whatever is drawn elsewhere
    unit = x.std(0, correction=0) if n else x.new_ones(x.shape[-1])
    scaled = x / torch.where(unit > 0, unit, 1.0)
    near = n
    while n:
        centers = torch.randint(n, (1 if near == n else 2,), generator=generator).tolist()
        for center in centers:
            distance = (scaled - scaled[center]).square().sum(-1)
            neighbors = distance.argsort(stable=True)[:near]
            chosen = torch.randperm(len(neighbors), generator=generator)[:SUBSET].sort().values
            index = neighbors[chosen.to(neighbors.device)]
            yield Subset(x[index], values[index], columns)
        if near <= SUBSET:
            return
        near = max(SUBSET, near // NARROWING)
