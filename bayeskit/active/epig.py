"""Expected predictive information gain (EPIG)."""

import torch
from linear_operator import LinearOperator
from torch import Tensor

from bayeskit.active import function_draws
from bayeskit.core import generators, operators
from bayeskit.core.likelihood import Likelihood, noise_marginals
from bayeskit.core.operators.algebra import product
from bayeskit.core.posterior import FunctionValues, GaussianValues
from bayeskit.core.predictive import distribution_cdfs, quadrature

NUM_NODES = 24
"""Gauss-Hermite nodes in each of the two latents of a pair of labels."""


def epig(
    values: FunctionValues, likelihood: Likelihood, *, num_targets: int, generator: torch.Generator | None = None
) -> Tensor:
    """The mutual information of y at an input and y at a target input, averaged over the targets, in nats.

    EPIG(x) = mean_j I(y; y*_j). Closed form for Gaussian values under Gaussian noise: with one output
    -log(1 - rho^2) / 2, where rho is the correlation of the two observations. For a label on one Gaussian latent the
    table of the two labels by quadrature in two dimensions. Otherwise from functions drawn jointly: of s draws the
    estimate is too large by about (c - 1)^2 / 2 s for c classes, at every input alike.

    Args:
        values: Joint distribution of the function at n candidates, followed by m targets: inputs to be predicted.
        likelihood: p(y | f).
        num_targets: m.
        generator: Source of the draws; None starts one at seed 0.

    Returns:
        (n,).

    References:
        Bickford Smith, Kirsch, Farquhar, Gal, Foster and Rainforth (2023), Prediction-oriented Bayesian active
        learning, AISTATS, eq. 8.

    Examples:
        >>> from linear_operator import to_linear_operator
        >>> from bayeskit.core.likelihood import Gaussian
        >>> K = to_linear_operator(torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.5], [1.0, 0.5, 1.0]]))
        >>> epig(GaussianValues(torch.zeros(3, 1), K), Gaussian(1.0), num_targets=1)  # -log(1 - 1 / 4) / 2
        tensor([0.1438, 0.0323])
    """
    total = values.mean.shape[-2]
    if not 1 <= num_targets < total:
        raise ValueError(
            f"`num_targets` must lie between 1 and {total - 1}, one less than the inputs; got {num_targets}"
        )
    if isinstance(values, GaussianValues):
        if likelihood.noise_variance is not None:
            return _gaussian(values, likelihood.noise_variance, num_targets)
        if likelihood.has_labels and values.mean.shape[-1] == 1:
            return _labels_on_one_latent(values, likelihood, num_targets)
    generator = generators.given_or_fixed(generator)
    functions = function_draws.joint(values, likelihood, generator=generator)
    if likelihood.has_labels:
        return _labels(functions, num_targets)
    return _numbers(functions, functions.sample(generator=generator), num_targets)


def _gaussian(values: GaussianValues, noise_variance: Tensor, m: int) -> Tensor:
    """-sum_i log(1 - r_i^2) / 2 with r_i the canonical correlations of the two observations, averaged over targets."""
    k = values.mean.shape[-1]
    noise = torch.diag_embed(noise_variance.detach().to(values.mean).expand(k))
    spread = operators.factorize(values.output_covariance() + noise, name="the covariance of y").tril  # (n + m, k, k)
    cross = _cross(values.covariance, m, k).to(spread)  # (n, m, k, k)
    half = torch.linalg.solve_triangular(spread[:-m].unsqueeze(1), cross, upper=False)
    both = torch.linalg.solve_triangular(spread[-m:], half.mT, upper=False)
    correlations = both.flatten(-2) if k == 1 else torch.linalg.svdvals(both)
    return -torch.log1p(-correlations.square()).sum(-1).mean(-1).to(values.mean) / 2


def _cross(covariance: LinearOperator, m: int, k: int) -> Tensor:
    """The covariance of the outputs at each candidate with those at each target, (n, m, k, k), by m k columns."""
    size = covariance.shape[-1]
    columns = torch.zeros(size, m * k, dtype=covariance.dtype, device=covariance.device)
    columns[-m * k :] = torch.eye(m * k, dtype=columns.dtype, device=columns.device)
    block = product(covariance, columns)[: size - m * k]
    return block.unflatten(0, (-1, k)).unflatten(-1, (m, k)).movedim(1, 2)


def _labels_on_one_latent(values: GaussianValues, likelihood: Likelihood, m: int) -> Tensor:
    """E_f E_{f* | f} over nodes of f and f* for every pair, as a table of the two labels."""
    v, mean = values.variance.squeeze(-1).double(), values.mean.squeeze(-1).double()
    cross = _cross(values.covariance, m, 1)[..., 0, 0].double()  # (n, m)
    z, weights = (t.to(v.device) for t in quadrature.gauss_hermite(NUM_NODES))
    p = _probabilities(likelihood, mean[-m:, None] + v[-m:, None].sqrt() * z)  # (m, q, c)
    target = torch.einsum("q,mqc->mc", weights, p)
    parts = []
    for rows in operators.chunks(len(mean) - m, 2 * m * NUM_NODES**2):
        spread = v[:-m][rows].sqrt()
        own = _probabilities(likelihood, mean[:-m][rows, None] + spread[:, None] * z)  # (b, q, c)
        slope = torch.where(spread[:, None] > 0, cross[rows] / spread[:, None], 0.0)  # (b, m)
        rest = (v[-m:] - slope.square()).clamp(min=0).sqrt()  # rounding at inputs that coincide
        f = mean[-m:, None, None] + slope[..., None, None] * z[:, None] + rest[..., None, None] * z  # (b, m, q, q)
        given = torch.einsum("r,bmqrd->bmqd", weights, _probabilities(likelihood, f))
        table = torch.einsum("q,bqc,bmqd->bmcd", weights, own, given)
        candidate = torch.einsum("q,bqc->bc", weights, own)
        parts.append(_information(table, candidate, target))
    return torch.cat(parts).to(values.mean)


def _probabilities(likelihood: Likelihood, f: Tensor) -> Tensor:
    """Class probabilities (*f, c) at latents of any shape."""
    with distribution_cdfs.unvalidated():
        return noise_marginals.label_log_probs(likelihood.distribution(f.unsqueeze(-1))).exp()


def _information(table: Tensor, candidate: Tensor, target: Tensor) -> Tensor:
    """Sum of p log p / (q r) over tables (n, m, c, d) with margins (n, c) and (m, d), averaged over m."""
    independent = candidate[:, None, :, None] * target[None, :, None, :]
    terms = torch.xlogy(table, table) - torch.xlogy(table, independent)
    return terms.sum((-2, -1)).mean(-1)


def _labels(functions: function_draws.Draws, m: int) -> Tensor:
    """The tables of two labels as averages over functions."""
    p = functions.class_log_probs().double().exp()  # (s, n + m, c)
    s, _, c = p.shape
    average = p.mean(0)
    parts = []
    for rows in operators.chunks(p.shape[1] - m, 4 * m * c * c):
        table = torch.einsum("snc,smd->nmcd", p[:, :-m][:, rows], p[:, -m:]) / s
        parts.append(_information(table, average[:-m][rows], average[-m:]))
    return torch.cat(parts)


def _numbers(functions: function_draws.Draws, y: Tensor, m: int) -> Tensor:
    """E log p(y, y*) / (p(y) p(y*)) over observations (s, n + m, t) of each function.

    With a_s = p(y | f_s) / sum_r p(y | f_r) and b_s the same for y*, the ratio of densities is s sum_s a_s b_s.
    """
    total = y.new_zeros(functions.num_inputs - m, dtype=torch.float64)
    for observed in y:
        share = functions.log_prob(observed.unsqueeze(0))[0].double().softmax(0)  # (s, n + m)
        ratio = len(share) * (share[:, :-m].mT @ share[:, -m:])  # (n, m)
        total += ratio.log().mean(-1)
    return total / len(y)
