"""Adaptive quadrature of exp(log_g(f)) against a Gaussian, for integrands that may be needles, cusps or bimodal.

In standard units u = (f - mean) / std the integrand is exp(log_g(mean + std u)) phi(u). Worked through for a density
p(y | f) with noise a thousandth of the latent spread:

1. A coarse grid on log_g(u) - u^2 / 2, widened while its maximum is at an edge, brackets the peaks: a needle is plain
   to see in the logarithm. Golden section then places them; the same for the peaks of log_g alone (its cusps).
2. The line is cut at those peaks, at a geometric ladder of local widths around them, and at fixed points of phi.
3. The panel on which Gauss and Kronrod differ most is halved, for every element at once, until they agree.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from bayeskit.core.normals import LOG_2PI

LogIntegrand = Callable[[Tensor], Tensor]
"""Maps latents (q, *shape) to log values (q, *shape), element by element."""

REACH = 12.0
"""How many standard deviations beyond the outermost peak are integrated; what is left out is below exp(-72)."""

TOLERANCE = 1e-9
"""Relative difference between the Gauss and the Kronrod sum at which panels are no longer halved; the error of the
Kronrod sum is far below it."""

MAX_HALVINGS = 40

COST = 4096
"""Numbers alive for one element, for cutting work into chunks: some thousand nodes and a few temporaries."""

_GRID = 49
_FIXED = (-4.5, -2.0, 0.0, 2.0, 4.5)
_LADDER = (1.0, 4.0, 16.0, 64.0, 256.0)

# Positive Kronrod nodes from the outermost inwards, their weights, and the Gauss weights of every second one.
_NODES = (
    0.991455371120812639206854697526329,
    0.949107912342758524526189684047851,
    0.864864423359769072789712788640926,
    0.741531185599394439863864773280788,
    0.586087235467691130294144691693013,
    0.405845151377397166906606412076961,
    0.207784955007898467600689403773245,
)
_KRONROD = (
    0.022935322010529224963732008058970,
    0.063092092629978553290700663189204,
    0.104790010322250183839876322541518,
    0.140653259715525918745189590510238,
    0.169004726639267902826583426598550,
    0.190350578064785409913256402421014,
    0.204432940075298892414161999234649,
)
_GAUSS = (
    0.0,
    0.129484966168869693270611432679082,
    0.0,
    0.279705391489276667901467771423780,
    0.0,
    0.381830050505118944950369775488975,
    0.0,
)
_CENTER = (0.209482141084727828012999174891714, 0.417959183673469387755102040816327)


def log_expectation(log_g: LogIntegrand, mean: Tensor, variance: Tensor) -> Tensor:
    """`log E[exp(log_g(f))]` for f ~ N(mean, variance), element by element and in log space.

    Args:
        log_g: Logarithm of a non-negative function of the latents.
        mean: (*shape), float64.
        variance: (*shape), float64, zero allowed.

    Returns:
        (*shape), relative error of the expectation about 1e-10.

    Examples:
        >>> mean, variance = torch.zeros(1).double(), torch.ones(1).double()
        >>> needle = lambda f: -0.5 * ((f - 2.0) / 1e-4) ** 2  # of area 1e-4 sqrt(2 pi)
        >>> round(float(log_expectation(needle, mean, variance) - math.log(1e-4)), 6)  # log(phi(2) sqrt(2 pi))
        -2.0
    """
    f, log_weights = mesh(log_g, mean, variance)
    return (_finite(log_g(f)) + log_weights).logsumexp(0)


def mesh(log_g: LogIntegrand, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes f and log weights, each (q, *shape), with `E[g(f) h(f)] = sum_q w_q g(f_q) h(f_q)` for h smooth.

    Args:
        log_g: Logarithm of the non-negative function whose peaks the nodes resolve.
        mean: (*shape), float64.
        variance: (*shape), float64, zero allowed.
    """
    std = variance.sqrt()

    def log_likelihood(u: Tensor) -> Tensor:
        return _finite(log_g(mean + std * u))

    def log_product(u: Tensor) -> Tensor:
        return log_likelihood(u) - u**2 / 2

    with torch.no_grad():
        a, b = _halve(log_product, *_first_panels(log_likelihood, log_product, mean))
        half, center = (b - a) / 2, (a + b) / 2
        x, kronrod, _ = _rule(mean)
        u = (center.unsqueeze(1) + half.unsqueeze(1) * x).flatten(0, 1)  # (panels * 15, *shape)
        log_weights = (half.unsqueeze(1) * kronrod).flatten(0, 1).log() - u**2 / 2 - LOG_2PI / 2
    return mean + std * u, log_weights


def panels(log_g: LogIntegrand, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Standard normal nodes u and weights, each (q, *shape), with `E[h(f)] = sum_q w_q h(mean + std u_q)`.

    For h that varies as `log_g` itself varies, not its exponential: about its two highest peaks.

    Args:
        log_g: Maps latents (q, *shape) to log values (q, *shape), element by element.
        mean: (*shape), float64.
        variance: (*shape), float64, zero allowed.

    Examples:
        >>> mean, variance = torch.zeros(1).double(), torch.ones(1).double()
        >>> cusp = lambda f: -(f - 0.3).abs() / 1e-3
        >>> u, weights = panels(cusp, mean, variance)
        >>> round(float((weights * cusp(u)).sum()), 4)  # -1000 E|z - 0.3|
        -833.5225
    """
    std = variance.sqrt()

    def log_values(u: Tensor) -> Tensor:
        return _finite(log_g(mean + std * u))

    with torch.no_grad():
        grid = torch.linspace(-REACH, REACH, _GRID, dtype=mean.dtype, device=mean.device)
        peaks = _peaks(log_values, grid.reshape(-1, *(1 for _ in mean.shape)))
        return panels_about(peaks, _width(log_values, peaks))


def panels_about(centers: Tensor, widths: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights of `panels`, for functions that change at known places over known widths.

    Panels are cut at the centers, at a ladder of widths around them, and at fixed points of the normal density.

    Args:
        centers: (c, *shape), in standard units.
        widths: (c, *shape), likewise.
    """
    rungs = [centers + sign * widths * rung for sign in (-1, 1) for rung in _LADDER]
    fixed = [torch.full_like(centers[:1], point) for point in (-REACH, *_FIXED, REACH)]
    edges = torch.cat([centers, *rungs, *fixed]).clamp(-REACH, REACH).sort(0).values
    half, middle = (edges[1:] - edges[:-1]) / 2, (edges[1:] + edges[:-1]) / 2
    x, weights = (t.to(centers).reshape(-1, *(1 for _ in centers.shape[1:])) for t in _legendre())
    u = (middle.unsqueeze(1) + half.unsqueeze(1) * x).flatten(0, 1)
    return u, (half.unsqueeze(1) * weights).flatten(0, 1) * (-(u**2) / 2 - LOG_2PI / 2).exp()


@lru_cache
def _legendre() -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on [-1, 1]; on a ladder of fourfold widths eight leave 1e-6 of a logarithm."""
    nodes, weights = np.polynomial.legendre.leggauss(8)
    return torch.as_tensor(nodes), torch.as_tensor(weights)


def _first_panels(log_likelihood: LogIntegrand, log_product: LogIntegrand, like: Tensor) -> tuple[Tensor, Tensor]:
    """Left and right ends (panels, *shape), cut at the peaks and around them."""
    grid = torch.linspace(-1, 1, _GRID, dtype=like.dtype, device=like.device).reshape(-1, *(1 for _ in like.shape))
    modes = _peaks(log_product, grid * _reach(log_product, grid, like))  # (2, *shape)
    zero = torch.zeros_like(like)
    low, high = torch.minimum(modes.amin(0), zero) - REACH, torch.maximum(modes.amax(0), zero) + REACH
    cusps = _peaks(log_likelihood, low + (grid + 1) / 2 * (high - low))
    width = _width(log_product, modes)
    rungs = [modes + sign * width * rung for sign in (-1, 1) for rung in _LADDER]
    fixed = [zero.unsqueeze(0) + point for point in _FIXED]
    cuts = torch.cat([modes, cusps, *rungs, *fixed]).clamp(low, high)
    edges = torch.cat([low.unsqueeze(0), cuts, high.unsqueeze(0)]).sort(0).values
    return edges[:-1], edges[1:]


def _reach(log_product: LogIntegrand, grid: Tensor, like: Tensor) -> Tensor:
    """Half-width (*shape) of an interval about zero with the product's maximum well inside."""
    reach = torch.full_like(like, REACH)
    for _ in range(20):
        values = log_product(grid * reach)
        best, index = values.max(0)
        outside = ((index <= 1) | (index >= _GRID - 2)) & best.isfinite()
        if not bool(outside.any()):
            break
        reach = torch.where(outside, 4 * reach, reach)
    return reach


def _peaks(function: LogIntegrand, points: Tensor) -> Tensor:
    """The two highest local maxima of `function` bracketed by increasing `points` (g, *shape), (2, *shape)."""
    values = function(points)
    edge = torch.full_like(values[:1], -torch.inf)
    padded = torch.cat([edge, values, edge])
    top = (values >= padded[:-2]) & (values >= padded[2:])
    index = torch.where(top, values, -torch.inf).topk(2, dim=0).indices
    points = points.expand(values.shape)
    low = points.gather(0, (index - 1).clamp(min=0))
    high = points.gather(0, (index + 1).clamp(max=len(values) - 1))
    return _golden(function, low, high)


def _golden(function: LogIntegrand, low: Tensor, high: Tensor) -> Tensor:
    """Argument of the maximum between `low` and `high` by golden section."""
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = function(left), function(right)
    for _ in range(34):  # leaves a fraction 0.618^34 = 8e-8 of the bracket
        shrink = at_left > at_right  # the maximum is in [low, right]
        low, high = torch.where(shrink, low, left), torch.where(shrink, right, high)
        new = torch.where(shrink, high - ratio * (high - low), low + ratio * (high - low))
        at_new = function(new)
        left, right = torch.where(shrink, new, right), torch.where(shrink, left, new)
        at_left, at_right = torch.where(shrink, at_new, at_right), torch.where(shrink, at_left, at_new)
    return (low + high) / 2


def _width(log_product: LogIntegrand, modes: Tensor) -> Tensor:
    """Distance at which the product has fallen by a nat or so, to within a factor of two, (2, *shape)."""
    top = log_product(modes)
    low, high = torch.full_like(modes, -36.0), torch.full_like(modes, 2.0)  # exponents of two, bisected
    for _ in range(5):
        exponent = (low + high) / 2
        fall = top - torch.minimum(log_product(modes - 2**exponent), log_product(modes + 2**exponent))
        low, high = torch.where(fall <= 1, exponent, low), torch.where(fall <= 1, high, exponent)
    return 2 ** ((low + high) / 2)


def _halve(log_product: LogIntegrand, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Panels (panels, *shape) halved where Gauss and Kronrod differ most."""
    top = log_product(torch.cat([a, b])).amax(0)
    top = torch.where(top.isfinite(), top, 0.0)
    sums, errors = _sums(log_product, a, b, top)
    for _ in range(MAX_HALVINGS):
        if bool((errors.sum(0) <= TOLERANCE * sums.sum(0)).all()):
            break
        worst = errors.argmax(0, keepdim=True)
        left, right = a.gather(0, worst), b.gather(0, worst)
        middle = (left + right) / 2
        new_sums, new_errors = _sums(log_product, torch.cat([left, middle]), torch.cat([middle, right]), top)
        a, b = torch.cat([a, middle]), torch.cat([b.scatter(0, worst, middle), right])
        sums = torch.cat([sums.scatter(0, worst, new_sums[:1]), new_sums[1:]])
        errors = torch.cat([errors.scatter(0, worst, new_errors[:1]), new_errors[1:]])
    return a, b


def _sums(log_product: LogIntegrand, a: Tensor, b: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
    """Kronrod sum of every panel and its difference to the Gauss sum, in units of exp(top), (panels, *shape)."""
    x, kronrod, gauss = _rule(a[0])
    half, center = ((b - a) / 2).unsqueeze(1), ((a + b) / 2).unsqueeze(1)
    u = center + half * x  # (panels, 15, *shape)
    values = (log_product(u.flatten(0, 1)).reshape(u.shape) - top).exp() * half
    return (values * kronrod).sum(1), (values * (kronrod - gauss)).sum(1).abs()


def _rule(like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The 15 nodes on [-1, 1], Kronrod weights and Gauss weights (zero at the added nodes), each (15, 1, ..., 1)."""
    rows = (
        [-x for x in _NODES] + [0.0] + list(reversed(_NODES)),
        [*_KRONROD, _CENTER[0], *reversed(_KRONROD)],
        [*_GAUSS, _CENTER[1], *reversed(_GAUSS)],
    )
    table = torch.tensor(rows, dtype=torch.float64).to(like)
    nodes, kronrod, gauss = (row.reshape(-1, *(1 for _ in like.shape)) for row in table)
    return nodes, kronrod, gauss


def _finite(values: Tensor) -> Tensor:
    """NaN, as in infinity minus infinity far in a tail, counts as no mass."""
    return torch.where(values.isnan(), -torch.inf, values)
