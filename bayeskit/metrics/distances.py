"""Distances between posteriors: 2-Wasserstein of Gaussians, joint or pointwise, and total variation of classes."""

from typing import Any

import numpy as np

from bayeskit.metrics import arrays


def wasserstein2(mean1: Any, covariance1: Any, mean2: Any, covariance2: Any) -> float:
    """The 2-Wasserstein distance between two Gaussians, exactly.

    W^2 = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2). The trace (the squared Bures distance) is computed as a
    sum of squares, min over rotations U of |C1^1/2 - C2^1/2 U|_F^2 with U from the polar factors of C2^1/2 C1^1/2, so
    equal Gaussians are at distance zero to rounding and not to its square root.

    Args:
        mean1: Mean of the first (N,).
        covariance1: Covariance of the first (N, N), symmetric and positive semi-definite; zeros for a point.
        mean2: Mean of the second (N,).
        covariance2: Covariance of the second (N, N).

    Returns:
        The distance, in the units of the means. It grows with sqrt(N) for N equal differences.

    Raises:
        ValueError: Shapes do not fit, or a covariance is not positive semi-definite beyond rounding.

    References:
        Dowson and Landau (1982), The Frechet distance between multivariate normal distributions, equation 16; the sum
        of squares: Masarotto, Panaretos and Zemel (2019), Procrustes metrics on covariance operators, section 2.

    >>> import numpy as np
    >>> wasserstein2([0.0, 0.0], np.eye(2), [3.0, 0.0], np.diag([1.0, 25.0]))
    5.0
    """
    mean1, mean2 = arrays.paired(mean1, mean2, names=("mean1", "mean2"))
    root1 = _symmetric_root(covariance1, size=mean1.size, name="covariance1")
    root2 = _symmetric_root(covariance2, size=mean1.size, name="covariance2")
    left, _, right = np.linalg.svd(root2 @ root1)
    bures = np.linalg.norm(root1 - root2 @ left @ right)
    return float(np.hypot(np.linalg.norm(mean1 - mean2), bures))


def pointwise_wasserstein2(mean1: Any, variance1: Any, mean2: Any, variance2: Any) -> np.ndarray:
    """The 2-Wasserstein distances between pairs of Gaussians on the line, one at each input.

    W = sqrt((m1 - m2)^2 + (s1 - s2)^2) with standard deviations s, between marginal distributions. Correlations between
    inputs do not enter; see `wasserstein2`.

    Args:
        mean1: Means of the first (n,), or any other shape.
        variance1: Variances of the first, shaped alike; zeros for points.
        mean2: Means of the second.
        variance2: Variances of the second.

    Returns:
        Distances of that shape, in the units of the means.

    Raises:
        ValueError: Shapes do not fit, or a variance is negative.

    References:
        Dowson and Landau (1982), The Frechet distance between multivariate normal distributions, equation 16.

    >>> pointwise_wasserstein2([0.0, 1.0], [1.0, 4.0], [3.0, 1.0], [25.0, 0.0]).tolist()
    [5.0, 2.0]
    """
    mean1, mean2 = arrays.paired(mean1, mean2, names=("mean1", "mean2"))
    deviations = []
    for values, name in ((variance1, "variance1"), (variance2, "variance2")):
        variance = arrays.paired(mean1, values, names=("mean1", name))[1]
        if (variance < 0).any():
            raise ValueError(f"`{name}` must not be negative; its smallest value is {variance.min():.3g}")
        deviations.append(np.sqrt(variance))
    return np.hypot(mean1 - mean2, deviations[0] - deviations[1])


def total_variation(p: Any, q: Any) -> np.ndarray:
    """Total variation distances between class probabilities, row by row: half the sum of absolute differences.

    TV(p, q) = (1 / 2) sum_j |p_j - q_j| is the largest difference in the probability of any event, between 0 and 1.

    Args:
        p: Class probabilities (n, c).
        q: Class probabilities (n, c).

    Returns:
        (n,) distances.

    References:
        Levin, Peres and Wilmer (2017), Markov chains and mixing times, proposition 4.2.

    >>> total_variation([[0.5, 0.5], [1.0, 0.0]], [[0.5, 0.5], [0.0, 1.0]]).tolist()
    [0.0, 1.0]
    """
    p, q = arrays.probabilities(p, name="p"), arrays.probabilities(q, name="q")
    p, q = arrays.paired(p, q, names=("p", "q"))
    return np.abs(p - q).sum(1) / 2


def _symmetric_root(covariance: Any, *, size: int, name: str) -> np.ndarray:
    matrix = arrays.numbers(covariance, name=name)
    if matrix.shape != (size, size):
        raise ValueError(f"`{name}` must have shape ({size}, {size}) like the mean; got {matrix.shape}")
    scale = np.abs(matrix).max()
    if not np.allclose(matrix, matrix.T, rtol=0, atol=1e-6 * scale):
        raise ValueError(f"`{name}` must be symmetric; pass (C + C') / 2 if it should be")
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    if values.min() < -1e-6 * scale * size:
        raise ValueError(f"`{name}` must be positive semi-definite; its smallest eigenvalue is {values.min():.3g}")
    rounding = size * np.finfo(float).eps * max(values.max(), 0.0)  # roots of rounding errors are not small: drop them
    return (vectors * np.sqrt(np.where(values > rounding, values, 0.0))) @ vectors.T
