"""Bayesian optimization by BoTorch, over any posterior of this library.

model = as_model(GPRegressor().fit(X, y))
candidates, _ = optimize_acqf(qLogExpectedImprovement(model, best_f), bounds, q=2, ...)    # all BoTorch's
"""

import copy
from dataclasses import dataclass
from typing import Any, Self

import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from linear_operator import to_linear_operator
from torch import Tensor

from bayeskit.core import operators, random
from bayeskit.core.likelihood import Drawn, Gaussian, StudentT
from bayeskit.core.operators.algebra import dense_blocks
from bayeskit.core.posterior import FunctionValues, GaussianValues, MixtureValues, SampledValues
from bayeskit.integrations.extra import needed

with needed("BoTorch", extra="botorch"):
    from botorch.models.model import FantasizeMixin, Model
    from botorch.posteriors import GPyTorchPosterior, Posterior
    from botorch.posteriors.ensemble import EnsemblePosterior

NUM_DRAWS = 256
"""Functions of an ensemble posterior that is not made of stored draws alone."""

ROWS = 256
"""Inputs whose joint covariance is formed at once, more only where q is; the blocks of q are kept."""


def as_model(estimator: Any) -> "EstimatorModel":
    """A fitted regressor as a BoTorch `Model`: what its acquisition functions and optimizers take.

    Inputs and outputs are in the units of the data. `posterior(X)` of X (*b, q, d) is a `GPyTorchPosterior` where the
    law of the function is Gaussian (processes, linearized networks, Bayesian last layers), with gradients in X, and an
    `EnsemblePosterior` of fixed functions where it is draws. `observation_noise=True` adds the learnt noise.
    `condition_on_observations` and `fantasize` are exact where function and noise are Gaussian, hyperparameters,
    features and scales kept.

    Args:
        estimator: A fitted GPRegressor or BNNRegressor.

    Returns:
        The model; it holds the estimator and does not train.

    Raises:
        TypeError: The estimator is not a regressor of this library, or its latents are not the outputs.

    Examples:
        >>> import numpy as np, torch
        >>> from bayeskit import GPRegressor
        >>> x = np.linspace(0, 1, 9)[:, None]
        >>> model = as_model(GPRegressor(random_state=0).fit(x, np.sin(6 * x[:, 0])))
        >>> model.posterior(torch.rand(5, 2, 1, dtype=torch.float64)).mean.shape
        torch.Size([5, 2, 1])
    """
    return EstimatorModel(estimator)


@dataclass(frozen=True, eq=False)
class Observed:
    """What a model was told after its fit.

    Args:
        x: Inputs (*b, n, d).
        y: Observations (*c, n, m), *c broadcasting against *b.
        noise: Their noise variances, broadcasting against y.
    """

    x: Tensor
    y: Tensor
    noise: Tensor

    @property
    def batch_shape(self) -> torch.Size:
        """*b and *c together."""
        return torch.broadcast_shapes(self.x.shape[:-2], self.y.shape[:-2])


class EstimatorModel(Model, FantasizeMixin):
    """A fitted estimator behind BoTorch's interface; see `as_model`.

    Args:
        estimator: A fitted GPRegressor or BNNRegressor.
        observed: Further observations, exactly conditioned on; None for none.
    """

    def __init__(self, estimator: Any, observed: Observed | None = None):
        super().__init__()
        _check(estimator)
        self.estimator, self.observed = estimator, observed
        self.likelihood = copy.deepcopy(estimator.likelihood_).requires_grad_(False)
        self.eval()

    @property
    def num_outputs(self) -> int:
        """How many outputs, m."""
        return self.estimator.num_outputs_

    @property
    def batch_shape(self) -> torch.Size:
        """That of the observations told after the fit; () without any."""
        return torch.Size() if self.observed is None else self.observed.batch_shape

    def posterior(  # pyright: ignore[reportIncompatibleMethodOverride]  # BoTorch's two bases disagree on it
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: Any = None,
    ) -> Posterior:
        """The joint law of the outputs at q inputs, for each of a batch.

        Args:
            X: (*b, q, d), in the units of the data.
            output_indices: Which outputs; None for all.
            observation_noise: Whether to add the learnt noise; or noise variances, (*b, q, m) or broadcasting.
            posterior_transform: Applied to the result.

        Returns:
            `GPyTorchPosterior` or `EnsemblePosterior`, of batch *b broadcast against that of the model.
        """
        told = () if self.observed is None else (self.observed.x, self.observed.y)
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (X, *told))
        noise = None if observation_noise is False else self._noise(observation_noise, X)
        with torch.set_grad_enabled(wanted):
            law = self._law(X) if self.observed is None else self._conditioned(X, self.observed)
            posterior: Posterior
            if isinstance(law, tuple):
                posterior = _gaussian(law, noise, output_indices)
            else:
                functions = law if noise is None else _noisy(law, noise)
                posterior = EnsemblePosterior(functions if output_indices is None else functions[..., output_indices])
        return posterior if posterior_transform is None else posterior_transform(posterior)

    def condition_on_observations(self, X: Tensor, Y: Tensor, noise: Tensor | None = None, **_: Any) -> Self:
        """The model given further observations, exactly: hyperparameters, features and scales stay.

        Args:
            X: (*b, n, d).
            Y: (*c, n, m), with leading axes of its own for fantasies.
            noise: Noise variances, broadcasting against Y; None for the learnt noise.

        Raises:
            NotImplementedError: The function or the noise is not Gaussian.
        """
        if not isinstance(self.likelihood, Gaussian) or not isinstance(self._law(X[..., :1, :].detach()), tuple):
            method = type(self.estimator.inference_).__name__
            raise NotImplementedError(
                f"{method} under {type(self.likelihood).__name__} noise has no exact conditioning: fit the estimator "
                "again with the new observations, or use a method with a Gaussian law of the function"
            )
        noise = self._noise(True, X) if noise is None else noise
        added = Observed(X, Y, noise.expand(torch.broadcast_shapes(noise.shape, Y.shape[-2:])))
        observed = added if self.observed is None else _joined(self.observed, added)
        return type(self)(self.estimator, observed)

    def _noise(self, given: bool | Tensor, X: Tensor) -> Tensor:
        """Noise variances that broadcast against (*b, q, m), in the units of the data."""
        if isinstance(given, Tensor):
            return given
        scale = self.estimator.target_scaler_.scale.to(X)
        if isinstance(self.likelihood, Gaussian):
            return (self.likelihood.noise.to(X) * scale.square()).expand(self.num_outputs)
        if isinstance(self.likelihood, Drawn):
            members: list[Any] = list(self.likelihood.members)
            noises = torch.stack([member.noise.to(X) for member in members])
            average = self.likelihood.weights.to(X) @ noises
            return (average * scale.square()).expand(self.num_outputs)
        raise NotImplementedError(
            f"`observation_noise=True` needs Gaussian noise, and that of {type(self.likelihood).__name__} is not: give "
            "noise variances, or use the posterior of the function"
        )

    def _values(self, x: Tensor) -> FunctionValues:
        """The law of the function at inputs (n, d), in the units of the data."""
        e = self.estimator
        x = x.to(e.device_)
        shift, scale = (t.to(e.device_) for t in (e.target_scaler_.shift, e.target_scaler_.scale))
        values = e.posterior_(x if e.input_scaler_ is None else e.input_scaler_(x)).affine(shift, scale)
        return SampledValues(values.mean.unsqueeze(0)) if e.inference_.kind == "point" else values

    def _law(self, X: Tensor) -> "tuple[Tensor, Tensor] | Tensor":
        """Mean (*b, q, m) and covariance (*b, q m, q m), point-major; or functions (*b, s, q, m)."""
        if X.ndim < 2 or X.shape[-1] != self.estimator.n_features_in_:
            expected = f"(*b, q, {self.estimator.n_features_in_})"
            raise ValueError(f"`X` must have shape {expected}, with the features of the fit; got {tuple(X.shape)}")
        *batch, q, d = X.shape
        flat = X.reshape(-1, q, d)
        laws = [_blocks(self._values(part.reshape(-1, d)), q) for part in flat.split(max(1, ROWS // q))]
        if isinstance(laws[0], tuple):
            mean, covariance = (torch.cat(parts).to(X) for parts in zip(*laws, strict=True))
            return mean.reshape(*batch, q, -1), covariance.reshape(*batch, *covariance.shape[1:])
        functions = torch.cat([law for law in laws if isinstance(law, Tensor)]).to(X)
        return functions.reshape(*batch, *functions.shape[1:])

    def _conditioned(self, X: Tensor, observed: Observed) -> tuple[Tensor, Tensor]:
        """N(m + C' S^-1 (y - m_o), K - C' S^-1 C), with S and C from the joint law at both sets of inputs."""
        batch = torch.broadcast_shapes(X.shape[:-2], observed.x.shape[:-2])
        both = torch.cat([observed.x.expand(*batch, -1, -1), X.expand(*batch, -1, -1)], -2)
        law = self._law(both)
        assert isinstance(law, tuple)
        mean, covariance = law
        size, m = observed.x.shape[-2] * self.num_outputs, self.num_outputs
        noise = observed.noise.expand(*observed.noise.shape[:-2], *observed.y.shape[-2:]).flatten(-2)
        told = covariance[..., :size, :size] + torch.diag_embed(noise)
        factor = operators.factorize(told, name="the covariance of the observations told to the model")
        half = factor.half_solve(covariance[..., :size, size:])
        residual = (observed.y - mean[..., : size // m, :]).flatten(-2)  # (*c, n m)
        white = torch.linalg.solve_triangular(factor.tril, residual.unsqueeze(-1).to(factor.tril), upper=False)
        shift = (half.mT @ white).squeeze(-1).unflatten(-1, (-1, m))
        kept = covariance[..., size:, size:] - half.mT @ half
        mean = mean[..., size // m :, :] + shift.to(X)
        return mean, kept.to(X).expand(*mean.shape[:-2], *kept.shape[-2:])


def _check(estimator: Any) -> None:
    from sklearn.utils.validation import check_is_fitted

    if not all(hasattr(type(estimator), name) for name in ("sample_functions", "sample_y")):
        raise TypeError(f"`estimator` must be a GPRegressor or BNNRegressor; got {type(estimator).__name__}")
    check_is_fitted(estimator)
    likelihood = estimator.likelihood_
    members = list(likelihood.members) if isinstance(likelihood, Drawn) else [likelihood]
    allowed = (Gaussian,) if isinstance(likelihood, Drawn) else (Gaussian, StudentT)
    if not all(isinstance(member, allowed) for member in members):
        raise TypeError(
            f"`estimator` must have a likelihood whose latents are the outputs, Gaussian or StudentT; got "
            f"{type(members[0]).__name__}"
        )


def _blocks(values: FunctionValues, q: int) -> "tuple[Tensor, Tensor] | Tensor":
    """Mean (b, q, m) and covariance (b, q m, q m) of each q inputs together; or functions (b, s, q, m)."""
    m = values.mean.shape[-1]
    if isinstance(values, SampledValues):
        return values.draws.unflatten(1, (-1, q)).movedim(0, 1)
    if isinstance(values, GaussianValues):
        mean, variance = values.moments
        covariance = variance.unsqueeze(-1) if q * m == 1 else dense_blocks(values.covariance.to_dense(), q * m)
        return mean.unflatten(0, (-1, q)), covariance
    assert isinstance(values, MixtureValues)
    counts = (values.weights * NUM_DRAWS).round().clamp(min=1).long().tolist()
    functions = []
    for part, count in zip(values.components, counts, strict=True):
        law = _blocks(part, q)
        functions.append(_drawn(*law, count) if isinstance(law, tuple) else law)
    return torch.cat(functions, 1)


def _drawn(mean: Tensor, covariance: Tensor, count: int) -> Tensor:
    """Fixed draws (b, s, q, m), the same normal numbers for every q inputs."""
    z = random.normal((count, covariance.shape[-1]), like=mean, generator=torch.Generator().manual_seed(0))
    tril = operators.factorize(covariance, name="the covariance of q inputs").tril.to(mean)
    return mean.unsqueeze(1) + torch.einsum("bij,sj->bsi", tril, z).unflatten(-1, mean.shape[1:])


def _gaussian(law: tuple[Tensor, Tensor], noise: Tensor | None, output_indices: list[int] | None) -> GPyTorchPosterior:
    (mean, covariance), m = law, law[0].shape[-1]
    if noise is not None:
        covariance = covariance + torch.diag_embed(noise.expand(mean.shape).flatten(-2))
    if output_indices is not None:
        rows = torch.arange(mean.shape[-2], device=mean.device)[:, None] * m
        rows = (rows + torch.as_tensor(output_indices, device=mean.device)).flatten()
        mean, covariance = mean[..., output_indices], covariance[..., rows, :][..., rows]
    if mean.shape[-1] == 1:
        return GPyTorchPosterior(MultivariateNormal(mean.squeeze(-1), to_linear_operator(covariance)))
    return GPyTorchPosterior(MultitaskMultivariateNormal(mean, to_linear_operator(covariance)))


def _noisy(functions: Tensor, noise: Tensor) -> Tensor:
    """Functions (*b, s, q, m) with fixed noise added, each several times where they are few."""
    repeats = max(1, NUM_DRAWS // functions.shape[-3])
    wide = functions.repeat_interleave(repeats, dim=-3)
    z = random.normal(tuple(wide.shape[-3:]), like=wide, generator=torch.Generator().manual_seed(0))
    return wide + noise.to(wide).expand(*functions.shape[:-3], *functions.shape[-2:]).unsqueeze(-3).sqrt() * z


def _joined(first: Observed, second: Observed) -> Observed:
    """All observations, batches broadcast."""

    def cat(a: Tensor, b: Tensor) -> Tensor:
        batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        return torch.cat([a.expand(*batch, *a.shape[-2:]), b.expand(*batch, *b.shape[-2:])], -2)

    noises = (o.noise.expand(*o.noise.shape[:-2], *o.y.shape[-2:]) for o in (first, second))
    return Observed(cat(first.x, second.x), cat(first.y, second.y), cat(*noises))
