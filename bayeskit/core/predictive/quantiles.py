"""Quantiles by root finding on a cdf, vectorized over all elements.

SciPy's `elementwise.find_root` needs as many evaluations, and the cdf of subsets of the elements, which a batched
torch distribution does not give.
"""

from collections.abc import Callable

import torch
from torch import Tensor

MAX_STEPS = 200
"""Root-finding steps before the best end of the bracket is returned; some 5 are needed, 60 in the worst case."""


def invert(cdf: Callable[[Tensor], Tensor], q: Tensor, center: Tensor, width: Tensor) -> Tensor:
    """The y at which an increasing continuous `cdf` reaches `q`.

    Solved as Phi^-1(cdf(y)) = Phi^-1(q), which is nearly linear in y: from a bracket about the Gaussian's quantile,
    widened geometrically, by inverse quadratic interpolation where it is safe and bisection elsewhere.

    Args:
        cdf: Maps y (*shape) to probabilities (*shape).
        q: Levels, broadcasting to (*shape).
        center: About where the distribution is, such as its mean.
        width: About how wide it is, such as its standard deviation; need not be finite.

    Returns:
        (*shape), accurate to 1e-13 in Phi^-1(cdf) or to rounding in y, whichever is looser.

    References:
        Chandrupatla (1997), A new hybrid quadratic/bisection algorithm for finding the zero of a nonlinear function
        without using derivatives, Advances in Engineering Software 28(3).

    Examples:
        >>> q, one = torch.tensor([0.25, 0.5]).double(), torch.ones(2).double()
        >>> invert(lambda y: 1 - torch.exp(-y.clamp(min=0)), q, one, one)
        tensor([0.2877, 0.6931], dtype=torch.float64)
    """
    z = torch.special.ndtri(q)
    start, step = _start(z, center, width)

    def excess(y: Tensor) -> Tensor:
        return torch.special.ndtri(cdf(y).double().clamp(0, 1)) - z

    with torch.no_grad():
        low, at_low = _expand(excess, lambda value: value <= 0, start, -step)
        high, at_high = _expand(excess, lambda value: value >= 0, start, step)
        return _chandrupatla(excess, (low, high), (at_low, at_high)).to(center.dtype)


def invert_counts(cdf: Callable[[Tensor], Tensor], q: Tensor, center: Tensor, width: Tensor) -> Tensor:
    """The smallest count y >= 0 with `cdf(y) >= q`, by bisection over the integers.

    Args:
        cdf: Maps counts (*shape) to probabilities (*shape).
        q: Levels, broadcasting to (*shape).
        center: About where the distribution is.
        width: About how wide it is.

    Returns:
        Whole numbers, (*shape).

    Examples:
        >>> q, one = torch.tensor([0.2, 0.6]).double(), torch.ones(2).double()
        >>> invert_counts(lambda y: 1 - 0.5 ** (y + 1), q, one, one)  # a geometric distribution
        tensor([0., 1.], dtype=torch.float64)
    """
    start, step = _start(torch.special.ndtri(q), center, width)
    start, step = start.clamp(min=0).ceil(), step.ceil()
    with torch.no_grad():
        high, _ = _expand(cdf, lambda value: value >= q, start, step)
        low, _ = _expand(lambda y: torch.where(y < 0, 0.0, cdf(y.clamp(min=0))), lambda value: value < q, start, -step)
        low = low.clamp(min=-1)
        while bool((high - low > 1).any()):
            middle = ((low + high) / 2).floor()
            reached = cdf(middle.clamp(min=0)) >= q
            open_ = high - low > 1
            low, high = torch.where(open_ & ~reached, middle, low), torch.where(open_ & reached, middle, high)
    return high.to(center.dtype)


def _start(z: Tensor, center: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Center and half-width of the first bracket: about the quantile of a Gaussian, finite and positive, float64."""
    shape = torch.broadcast_shapes(z.shape, center.shape)
    center, width = center.double().nan_to_num(0.0, 0.0, 0.0), width.double()
    width = torch.where(width.isfinite(), torch.maximum(width, 1e-8 * center.abs()), 1.0)
    width = torch.where(width > 0, width, 1.0)
    return (center + z * width).expand(shape), (width / 2).expand(shape)


def _expand(
    function: Callable[[Tensor], Tensor], holds: Callable[[Tensor], Tensor], start: Tensor, step: Tensor
) -> tuple[Tensor, Tensor]:
    """`start + step` and the function there, the step doubled wherever `holds` is false of the function."""
    value = function(start + step)
    for _ in range(MAX_STEPS):
        inside = holds(value)
        if bool(inside.all()):
            break
        step = torch.where(inside, step, 2 * step)
        value = function(start + step)
    return start + step, value


def _chandrupatla(
    function: Callable[[Tensor], Tensor], ends: tuple[Tensor, Tensor], values: tuple[Tensor, Tensor]
) -> Tensor:
    """Root of `function` between two ends where it has opposite signs."""
    (a, b), (fa, fb) = ends, values
    t = torch.full_like(a, 0.5)
    info = torch.finfo(a.dtype)
    width = (b - a).abs()
    for _ in range(MAX_STEPS):
        best = torch.where(fa.abs() < fb.abs(), a, b)
        precision = 2 * info.eps * (best.abs() + info.eps * width) / (b - a).abs().clamp(min=info.tiny)
        if bool(((precision >= 0.5) | (torch.minimum(fa.abs(), fb.abs()) <= 1e-13)).all()):
            break
        precision = precision.clamp(max=0.5)
        x = a + torch.maximum(precision, torch.minimum(1 - precision, t)) * (b - a)
        fx = function(x)
        same = fx.sign() == fa.sign()
        c, fc = torch.where(same, a, b), torch.where(same, fa, fb)
        b, fb = torch.where(same, b, a), torch.where(same, fb, fa)
        a, fa = x, fx
        t = _fraction((a, b, c), (fa, fb, fc))
    return torch.where(fa.abs() < fb.abs(), a, b)


def _fraction(points: tuple[Tensor, Tensor, Tensor], values: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Where between a and b to look next: inverse quadratic interpolation inside its safe region, else the middle."""
    (a, b, c), (fa, fb, fc) = points, values
    xi, phi = (a - b) / (c - b), (fa - fb) / (fc - fb)
    safe = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
    quadratic = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
    return torch.where(safe & quadratic.isfinite(), quadratic, 0.5)
