"""Pseudo observations that summarize a data set: inputs and outputs, each with a precision.

With points z_m, outputs y_m and noise variances d_m, q(f) proportional to p(f) prod_m N(y_m; f(z_m), d_m) is the
prior conditioned on those m observations. With K = k(z, z), D = diag(d), C = K + D = L L', A(x) = L^-1 k(z, x) and
q = L^-1 (y - m(z)):

    E f(x) = m(x) + A(x)' q,        var f(x) = k(x, x) - |A(x)|^2,
    KL[q || p] = 1/2 [ log|C| - log|D| - tr(C^-1 K) + (L^-T q)' K (L^-T q) ].

Only C is factorized. q in place of y is a better-conditioned parametrization of the same distribution.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bayeskit.core.operators import factorize, pieces
from bayeskit.core.optimize import minimize_lbfgs
from bayeskit.core.posterior import Posterior
from bayeskit.core.types import Data
from bayeskit.gp.kernels.evaluate import gram, gram_diagonal, mean_rows
from bayeskit.gp.model.hyperparameters import Model
from bayeskit.gp.model.training_set import inputs
from bayeskit.gp.process.conditioned_kernel import Conditioned, ConditionedMean
from bayeskit.gp.process.gaussian_process import GaussianProcess
from bayeskit.gp.variational.marginal_moments import marginals
from bayeskit.gp.variational.whitened_gaussian import WhitenedGaussian

SMALLEST_WEIGHT = 1e-3
"""Learned weights stay above this, so that every pseudo output stays determined."""


@dataclass(frozen=True, eq=False)
class PseudoObservations:
    """Weighted points and their outputs.

    Args:
        z: Points (m, d).
        weights: Positive, (1, m) shared by all outputs or (k, m). Under Gaussian noise s a weight is a number of
            observations, d = s / weight; under other likelihoods it is a precision, d = 1 / weight.
        whitened: q, (k, m).
    """

    z: Tensor
    weights: Tensor
    whitened: Tensor

    def noise(self, model: Model) -> Tensor:
        """Noise variances d, (m,) where all outputs share them, else (k, m)."""
        scale = model.likelihood.noise_variance
        noise = (1.0 if scale is None else scale.unsqueeze(-1)) / self.weights
        return noise[0] if len(noise) == 1 else noise

    def posterior(self, model: Model) -> GaussianProcess:
        """The prior at the model's hyperparameters, conditioned on these observations."""
        noise = self.noise(model)
        matrix = gram(model.kernel, self.z, self.z) + torch.diag_embed(noise)
        factor = factorize(matrix, name="k(z, z) + noise")
        noise = noise + factor.jitter * matrix.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
        return model.process().conditioned(self.z, factor.tril, self.whitened, noise=noise)


def bound(model: Model, rows: PseudoObservations, data: Data) -> Tensor:
    """The evidence lower bound, on the scale of the full data, differentiable in everything.

    Args:
        model: Mean, kernel and any likelihood.
        rows: The pseudo observations.
        data: All data, taken in blocks of bounded size, or a mini-batch.
    """
    covariance, noise = gram(model.kernel, rows.z, rows.z), rows.noise(model)
    tril = factorize(covariance + torch.diag_embed(noise), name="k(z, z) + noise").tril
    total, start = -_divergence(covariance, tril, noise, rows.whitened), 0
    for x in pieces(inputs(data), len(rows.z) * model.num_outputs):
        part = slice(start, start + len(x))
        weights = None if data.weights is None else data.weights[part]
        block, start = Data(x, data.y[part], weights, data.scale), start + len(x)
        total = total + block.total(_expected_log_prob(model, rows, tril, block))
    return total


def _expected_log_prob(model: Model, rows: PseudoObservations, tril: Tensor, data: Data) -> Tensor:
    x = inputs(data)
    cross, before = gram(model.kernel, rows.z, x), gram_diagonal(model.kernel, x)
    known = rows.whitened.unsqueeze(-1)[..., :0]  # a root without columns: the function at z is exact given q
    shift, variance = marginals(tril, cross, before, rows.whitened, known)
    mean = mean_rows(model.mean, x, model.num_outputs) + shift
    return model.expected_log_prob(mean.mT, variance.expand_as(mean).mT, data.y)


def _divergence(covariance: Tensor, tril: Tensor, noise: Tensor, whitened: Tensor) -> Tensor:
    """KL[q || p], summed over outputs."""
    half = torch.linalg.solve_triangular(tril, torch.diag_embed(noise.sqrt()).expand_as(tril), upper=False)
    trace = noise.shape[-1] - half.square().sum((-2, -1))  # tr(C^-1 K) = m - tr(C^-1 D)
    logdet = 2 * tril.diagonal(dim1=-2, dim2=-1).log().sum(-1) - noise.log().sum(-1)
    weights = torch.linalg.solve_triangular(tril.mT, whitened.unsqueeze(-1), upper=True)  # (k, m, 1)
    return 0.5 * ((logdet - trace).expand(len(whitened)).sum() + (weights * (covariance @ weights)).sum())


def nearest(
    model: Model, z: Tensor, q: WhitenedGaussian, weights: Tensor, *, max_iter: int = 100
) -> PseudoObservations:
    """The pseudo observations at z whose posterior is nearest to a given q, in KL[theirs || q].

    With f(z) = L v and v_j ~ N(q_j, P_j^-1) under q, means agree exactly, and the weights minimize

        sum_j tr(S_j P_j) - log|S_j|,        S_j = (I + L' diag(1 / d_j) L)^-1.

    For a Gaussian likelihood and the best q(v) this is the best bound that pseudo observations at z can have.

    Args:
        model: Kernel and likelihood.
        z: Points (m, d).
        q: The Gaussian at z to match.
        weights: Where to start, (1, m) or (k, m), which is also the shape of the result.
        max_iter: Iterations of L-BFGS at most.
    """
    with torch.no_grad():
        covariance = gram(model.kernel, z, z)
        tril = factorize(covariance, name="K_zz").tril
        eye = torch.eye(len(z), dtype=z.dtype, device=z.device)
        half = torch.linalg.solve_triangular(q.root, eye, upper=True).mT  # P = H H', (k, m, m)
    excess = (weights - SMALLEST_WEIGHT).clamp_min(SMALLEST_WEIGHT).log().requires_grad_(True)

    def present() -> PseudoObservations:
        return PseudoObservations(z, SMALLEST_WEIGHT + excess.exp(), q.mean)

    def divergence() -> Tensor:
        scaled = tril / present().noise(model).sqrt().unsqueeze(-1)
        factor = factorize(eye + scaled.mT @ scaled, name="precision of the coreset")
        spread = torch.linalg.solve_triangular(factor.tril, half, upper=False)
        return 0.5 * (spread.square().sum() + factor.logdet().expand(len(half)).sum())

    minimize_lbfgs(divergence, [excess], max_iter=max_iter, description="weights")
    with torch.no_grad():
        found = present()
        solution = torch.linalg.solve_triangular(tril.mT, q.mean.unsqueeze(-1), upper=True)  # K^-1 (u - m)
        noisy = factorize(covariance + torch.diag_embed(found.noise(model)), name="k(z, z) + noise").tril
        return PseudoObservations(z, found.weights, (noisy.mT @ solution).squeeze(-1))


def pseudo_observations(process: Posterior) -> tuple[Tensor, Tensor, Tensor] | None:
    """The noisy observations that a process is conditioned on: from its kernel, with y = m(z) + L L' w.

    For exact regression they are the data themselves, for a coreset its pseudo observations.

    Returns:
        Inputs (m, d), outputs (m, k) and noise variances (m, k); None where the process is not a prior conditioned on
        noisy observations.

    Examples:
        >>> from bayeskit.core.likelihood import Gaussian
        >>> from bayeskit.gp import Exact, default_prior
        >>> x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        >>> fit = Exact(learn=False).infer(default_prior(x), Gaussian(), Data(x, 2 * x), generator=torch.Generator())
        >>> z, y, noise = pseudo_observations(fit.posterior)
        >>> z.tolist(), y.round(decimals=8).tolist(), noise.round(decimals=8).tolist()
        ([[0.0], [1.0]], [[0.0], [2.0]], [[0.1], [0.1]])
    """
    if not isinstance(process, GaussianProcess):
        return None
    kernel, mean = process.kernel, process.mean
    if not isinstance(kernel, Conditioned) or not isinstance(mean, ConditionedMean):
        return None
    if kernel.noise is None or kernel.root is not None or bool((kernel.noise <= 0).any()):
        return None
    shift = kernel.tril @ (kernel.tril.mT @ mean.weights.unsqueeze(-1))  # (k, m, 1)
    y = mean_rows(mean.base_mean, kernel.z, process.num_outputs) + shift.squeeze(-1)
    return kernel.z, y.mT, kernel.noise.expand_as(y).mT
