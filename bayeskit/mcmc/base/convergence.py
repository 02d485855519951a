"""Convergence diagnostics: rank-normalized R-hat, effective sample sizes, and the Monte Carlo standard error.

Rank normalization makes them robust to heavy tails and invariant under monotone transformations of the quantity.
"""

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
        (*shape,) in float64; NaN for a quantity that is constant or not finite.

    References:
        Vehtari, Gelman, Simpson, Carpenter and Buerkner (2021), Rank-normalization, folding, and localization: an
        improved R-hat for assessing convergence of MCMC, section 4.2.

    Examples:
        >>> stuck = torch.stack([torch.linspace(0, 1, 100), torch.linspace(2, 3, 100)])
        >>> bool(rhat(stuck) > 1.5)
        True
    """
    split, shape = _split(draws)
    folded = np.abs(split - np.median(split, axis=(0, 1)))
    return torch.from_numpy(np.maximum(_scale_reduction(_scores(split)), _scale_reduction(_scores(folded)))).reshape(
        shape
    )


def ess(draws: Any) -> Tensor:
    """The bulk effective sample size: the number of independent draws as good for the center.

    `c n / tau` of the normal scores of the ranks, `tau = -1 + 2 sum_t rho_t` by Geyer's initial monotone sequence over
    autocorrelations that count differences between chains too.

    Args:
        draws: (c, n, *shape), chains first.

    Returns:
        (*shape,) in float64; NaN for a quantity that is not finite.

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


def _values(draws: Any) -> tuple[np.ndarray, torch.Size]:
    """The draws as (c, n, m) in float64, and the shape of the m quantities."""
    values = checks.tensor(draws, name="draws").detach().double().cpu()
    if values.ndim < 2 or values.shape[1] < 4:
        raise ValueError(
            "`draws` must have shape (c, n, *shape) with chains first and at least 4 draws each; "
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
        constant = np.ptp(chains, axis=(0, 1)) < np.finfo(float).resolution
        size = _effective_size(chains)
    return np.where(constant, float(chains.shape[0] * chains.shape[1]), size)


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
    within = chains.var(axis=1, ddof=1).mean(0)
    between = length * chains.mean(1).var(axis=0, ddof=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(within > 0, np.sqrt((between / within + length - 1) / length), np.nan)


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
