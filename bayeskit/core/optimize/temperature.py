"""Temperature scaling on held-out observations."""

import math
from collections.abc import Callable

LIMIT = 10.0
"""Largest |log T| considered: the prior density there is exp(-50) of that at T = 1."""


def temperature(log_likelihood: Callable[[float], float]) -> float:
    """The T > 0 that maximizes `log_likelihood(T) - (log T)^2 / 2`, by Brent's method in log T.

    The weak prior on log T holds T where the observations alone would send it to zero: where every one of them is the
    mode of its distribution, as happens with few held-out labels.

    Args:
        log_likelihood: The log-likelihood of the observations at temperature T; a higher T gives wider distributions.

    Raises:
        ValueError: The log-likelihood is not finite at T = 1.

    References:
        Guo, Pleiss, Sun and Weinberger (2017), On calibration of modern neural networks, section 4.2.

    Examples:
        >>> z = [2.0, -2.0, 2.0, -2.0] * 1_000  # of variance 4 where N(0, T) has T = 1
        >>> t = temperature(lambda t: sum(-0.5 * (math.log(t) + v * v / t) for v in z))
        >>> round(t, 2)
        4.0
    """
    from scipy.optimize import minimize_scalar

    start = log_likelihood(1.0)
    if not math.isfinite(start):
        raise ValueError(
            f"the log-likelihood of the held-out data is {start}: a distribution that gives them probability zero "
            "cannot be calibrated by a temperature"
        )

    def loss(log_t: float) -> float:
        return 0.5 * log_t**2 - log_likelihood(math.exp(log_t))

    found = minimize_scalar(loss, bounds=(-LIMIT, LIMIT), method="bounded", options={"xatol": 1e-9})
    return math.exp(found.x)  # type: ignore[attr-defined]
