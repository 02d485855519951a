"""Convergence diagnostics: rank-normalized R-hat, effective sample sizes, and the Monte Carlo standard error.

Rank normalization makes them robust to heavy tails and invariant under monotone transformations of the quantity.
"""

import math
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from bayeskit.core import checks


def rhat(draws: Any) -> Tensor:
    """The rank-normalized split R-hat: near 1 if all half-chains agree; above 1.01 run longer.

    The larger of two values of `sqrt(((n - 1) / n W + B / n) / W)`, one of the normal scores of the draws' ranks (do
    the chains agree in location?) and one of those of the distances from the median (in scale?), with W the mean
    variance within half-chains of length n and B / n the variance between their means.

    Args:
        draws: (c, n, *shape), chains first; one chain is compared with itself, half against half.

    Returns:
        (*shape,) in float64; infinity where no chain moves and the chains differ; NaN for a quantity that is the same
        in all draws, about which nothing can be said, or not finite.

    References:
        Vehtari, Gelman, Simpson, Carpenter and Buerkner (2021), Rank-normalization, folding, and localization: an
        improved R-hat for assessing convergence of MCMC, section 4.2.

    Examples:
        >>> apart = torch.stack([torch.linspace(0, 1, 100), torch.linspace(2, 3, 100)])
        >>> bool(rhat(apart) > 1.5)
        True
        >>> rhat(torch.tensor([[0.0] * 100, [1.0] * 100]))
        tensor(inf, dtype=torch.float64)
    """
    split, shape = _split(draws)
    with np.errstate(invalid="ignore"):
        folded = np.abs(split - np.median(split, axis=(0, 1)))
    # Distances from the median are all the same for, say, two chains that never move: they say nothing, the ranks do.
    larger = np.fmax(_scale_reduction(_scores(split)), _scale_reduction(_scores(folded)))
    return torch.from_numpy(larger).reshape(shape)


def nested_rhat(draws: Any, *, superchains: int) -> Tensor:
    """The nested R-hat, for many short chains: near 1 if groups of chains that started together agree.

    The chains form K superchains of M chains each, which start at one point. With B the variance between the means of
    the superchains, and W the mean over superchains of the variance between the means of their chains plus the mean
    variance within their chains, it is `sqrt(1 + B / W)`. Averages over M chains take the place of long chains: it can
    be near 1 after a single draw of each, where `rhat` needs hundreds.

    Args:
        draws: (c, n, *shape), chains first; those of a superchain follow one another. One draw each is enough.
        superchains: K, at least 2, which divides the number of chains c.

    Returns:
        (*shape,) in float64; infinity where no chain moves and superchains differ; NaN for a quantity that is the same
        in all draws, or not finite.

    Raises:
        ValueError: `superchains` does not divide the chains, or there is a single draw of a single chain in each.

    References:
        Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari and Gelman (2024), Nested R-hat: assessing the convergence
        of Markov chain Monte Carlo when running many short chains, definition 2.2.

    Examples:
        >>> g = torch.Generator().manual_seed(0)
        >>> bool(nested_rhat(torch.randn(512, 1, generator=g), superchains=4) < 1.05)
        True
        >>> bool(nested_rhat(torch.randn(512, 1, generator=g).sort(0).values, superchains=4) > 1.5)
        True
    """
    checks.positive(superchains, name="superchains", integer=True)
    values, shape = _values(draws, least=1)
    chains, length, _ = values.shape
    if superchains < 2 or chains % superchains or (chains == superchains and length == 1):
        raise ValueError(
            f"`superchains` must be at least 2 and divide the {chains} chains into groups with more than one draw; "
            f"got {superchains}"
        )
    groups = values.reshape(superchains, chains // superchains, length, -1)
    with np.errstate(invalid="ignore"):
        within = (_variance(groups.mean(2), 1) + _variance(groups, 2).mean(1)).mean(0)
        ratio = _ratio(_variance(groups.mean((1, 2)), 0), within, values)
    return torch.from_numpy(np.sqrt(1 + ratio)).reshape(shape)


def ess(draws: Any) -> Tensor:
    """The bulk effective sample size: the number of independent draws as good for the center.

    `c n / tau` of the normal scores of the ranks, `tau = -1 + 2 sum_t rho_t` by Geyer's initial monotone sequence over
    autocorrelations that count differences between chains too.

    Args:
        draws: (c, n, *shape), chains first.

    Returns:
        (*shape,) in float64; the number of draws for a quantity that is the same in all of them, about 1 for each chain
        where no chain moves and the chains differ, and NaN for a quantity that is not finite.

    References:
        Vehtari et al. (2021), sections 3.2 and 4.3; Geyer (1992), Practical Markov chain Monte Carlo, section 3.3.

    Examples:
        >>> g = torch.Generator().manual_seed(0)
        >>> bool(ess(torch.randn(4, 500, generator=g)) > 1500)
        True
    """
    split, shape = _split(draws)
    return torch.from_numpy(_size(_scores(split))).reshape(shape)


def tail_ess(draws: Any) -> Tensor:
    """The tail effective sample size: the number of independent draws as good for the 5 % and 95 % quantiles.

    The smaller of the sizes of the indicators of lying below either quantile. It sees chains whose scales differ, or
    that visit the tails rarely, where `ess` does not.

    Args:
        draws: (c, n, *shape), chains first.

    Returns:
        (*shape,) in float64; NaN for a quantity that is not finite.

    References:
        Vehtari et al. (2021), section 4.3.

    Examples:
        >>> g = torch.Generator().manual_seed(0)
        >>> bool(tail_ess(torch.randn(4, 500, generator=g)) > 1000)
        True
    """
    values, shape = _values(draws)
    bad = ~np.isfinite(values).all((0, 1))
    quantiles = np.quantile(np.where(bad, 0.0, values), [0.05, 0.95], axis=(0, 1))  # (2, m)
    sizes = [_size(_halves((values <= q).astype(float))) for q in quantiles]
    return torch.from_numpy(np.where(bad, np.nan, np.minimum(*sizes))).reshape(shape)


def mcse(draws: Any) -> Tensor:
    """The Monte Carlo standard error of the mean of the draws: `sd / sqrt(effective sample size of the mean)`.

    For the error of a variance or a probability pass squared deviations from the mean, or indicators.

    Args:
        draws: (c, n, *shape), chains first.

    Returns:
        (*shape,) in float64, in the units of the draws; NaN for a quantity that is not finite.

    References:
        Vehtari et al. (2021), section 3.2, without rank normalization.

    Examples:
        >>> g = torch.Generator().manual_seed(0)
        >>> bool((mcse(torch.randn(4, 500, generator=g)) - 1 / 2000**0.5).abs() < 0.003)
        True
    """
    values, shape = _values(draws)
    spread = values.reshape(-1, values.shape[-1]).std(0, ddof=1)
    return torch.from_numpy(spread / np.sqrt(_size(_halves(values)))).reshape(shape)


def agreement(draws: Any) -> dict[str, float]:
    """The largest R-hat and the smallest bulk effective sample size of several quantities, one number each.

    A quantity that is the same in all draws is passed over while others vary. Where none varies (the chains never
    moved), or one is not finite, nothing speaks for convergence: R-hat is infinite and the size 0. Chains stuck apart
    count as a draw each.

    Args:
        draws: (c, n, *shape), chains first.

    Examples:
        >>> agreement(torch.zeros(2, 10, 3))
        {'R-hat': inf, 'ESS': 0.0}
    """
    values, _ = _values(draws)
    if not np.isfinite(values).all() or not _moves(values).any():
        return {"R-hat": math.inf, "ESS": 0.0}
    varying = torch.from_numpy(values[..., _moves(values)])
    largest, smallest = rhat(varying).max().item(), ess(varying).min().item()
    return {"R-hat": largest, "ESS": smallest if math.isfinite(largest) else min(smallest, float(len(values)))}


def _values(draws: Any, *, least: int = 4) -> tuple[np.ndarray, torch.Size]:
    """The draws as (c, n, m) in float64, and the shape of the m quantities."""
    values = checks.tensor(draws, name="draws").detach().double().cpu()
    if values.ndim < 2 or values.shape[1] < least or 0 in values.shape:
        raise ValueError(
            f"`draws` must have shape (c, n, *shape) with chains first and at least {least} draws each; "
            f"got {tuple(values.shape)}"
        )
    flat = values.flatten(2) if values.ndim > 2 else values.unsqueeze(-1)
    return flat.numpy(), values.shape[2:]


def _halves(values: np.ndarray) -> np.ndarray:
    """Half-chains as chains of their own: (c, n, m) become (2 c, n // 2, m)."""
    half = values.shape[1] // 2
    return np.concatenate([values[:, :half], values[:, -half:]])


def _split(draws: Any) -> tuple[np.ndarray, torch.Size]:
    """Half-chains (2 c, n // 2, m), and the shape of the m quantities."""
    values, shape = _values(draws)
    return _halves(values), shape


def _size(chains: np.ndarray) -> np.ndarray:
    """The effective sample size of each quantity, (m,); the number of draws for a constant."""
    with np.errstate(invalid="ignore"):
        size = _effective_size(chains)
    return np.where(_moves(chains), size, float(chains.shape[0] * chains.shape[1]))


def _moves(chains: np.ndarray) -> np.ndarray:
    """Whether a quantity takes several values in (c, n, m), (m,); one that is not finite is counted as such."""
    return (chains != chains[:1, :1]).any((0, 1))


def _variance(values: np.ndarray, axis: int) -> np.ndarray:
    """The sample variance, exactly 0 for a single value and for equal ones, whose mean may be rounded."""
    first = np.take(values, [0], axis)
    return np.zeros_like(first.squeeze(axis)) if values.shape[axis] == 1 else (values - first).var(axis=axis, ddof=1)


def _ratio(between: np.ndarray, within: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Between-chain over within-chain variance, (m,): infinity for chains that stand apart, NaN if nothing varies."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(_moves(values) & np.isfinite(values).all((0, 1)), between / within, np.nan)


def _scores(chains: np.ndarray) -> np.ndarray:
    """Normal scores of the ranks among all draws, ties averaged (equation 14 with Blom's offset)."""
    pooled = chains.reshape(-1, chains.shape[-1])
    bad = ~np.isfinite(pooled).all(0)
    ranks = stats.rankdata(np.where(bad, 0.0, pooled), method="average", axis=0)
    scores = stats.norm.ppf((ranks - 3 / 8) / (len(pooled) + 1 / 4))
    return np.where(bad, np.nan, scores).reshape(chains.shape)


def _scale_reduction(chains: np.ndarray) -> np.ndarray:
    """Equations 1 to 4: between- and within-chain variance, (m,)."""
    length = chains.shape[1]
    within, between = _variance(chains, 1).mean(0), length * _variance(chains.mean(1), 0)
    return np.sqrt((_ratio(between, within, chains) + length - 1) / length)


def _effective_size(chains: np.ndarray) -> np.ndarray:
    """Equations 10 to 13 for each quantity at once, (m,)."""
    number, length, _ = chains.shape
    covariances = _autocovariances(chains).mean(0)  # (length, m), over chains
    within = covariances[0] * length / (length - 1)
    pooled = within * (length - 1) / length
    if number > 1:
        pooled = pooled + chains.mean(1).var(axis=0, ddof=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlations = 1 - (within - covariances) / pooled
    correlations[0] = 1
    usable = (length - 3) // 2 + 1 if length > 3 else 1
    even, odd = correlations[0 : 2 * usable : 2], correlations[1 : 2 * usable : 2]
    pairs = even + odd  # Geyer: positive, decreasing and convex for a reversible chain
    positive = pairs > 0
    last = np.where(positive.all(0), usable - 1, np.argmin(positive, axis=0))  # the pair at which the sum is truncated
    monotone = np.minimum.accumulate(pairs, axis=0)
    counted = np.arange(usable)[:, None] < last
    tail_even, tail_pair = (np.take_along_axis(a, last[None], axis=0)[0] for a in (even, pairs))
    tail = np.where((tail_even > 0) | (tail_pair >= 0), tail_even, 0)
    tau = -1 + 2 * np.where(counted, monotone, 0).sum(0) + tail
    total = number * length
    return np.where(np.isnan(correlations).any(0), np.nan, total / np.maximum(tau, 1 / np.log10(total)))


def _autocovariances(chains: np.ndarray) -> np.ndarray:
    """Autocovariances at every lag, divided by the length: by Fourier transform with zero padding."""
    length = chains.shape[1]
    padded = 2 ** (2 * length - 1).bit_length()
    spectrum = np.fft.rfft(chains - chains.mean(1, keepdims=True), n=padded, axis=1)
    return np.fft.irfft(np.abs(spectrum) ** 2, n=padded, axis=1)[:, :length] / length
