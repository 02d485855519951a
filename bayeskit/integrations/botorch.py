"""Bayesian optimization by BoTorch, over any posterior of this library.

model = as_model(GPRegressor().fit(X, y))
candidates, _ = optimize_acqf(qLogExpectedImprovement(model, best_f), bounds, q=2, ...)    # all BoTorch's
"""

import copy
from typing import Any, Self

import torch
from torch import Tensor

from bayeskit.core import operators
from bayeskit.core.likelihood import Drawn, Gaussian
from bayeskit.core.posterior import FunctionValues, SampledValues
from bayeskit.integrations.botorch_given import Observed, check_estimator, check_inputs, chosen, joined, told
from bayeskit.integrations.botorch_posteriors import blocks, gaussian, noisy
from bayeskit.integrations.optional_import import needed

with needed("BoTorch", extra="botorch"):
    from botorch.models.model import FantasizeMixin, Model
    from botorch.posteriors import Posterior
    from botorch.posteriors.ensemble import EnsemblePosterior

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


class EstimatorModel(Model, FantasizeMixin):
    """A fitted estimator behind BoTorch's interface; see `as_model`.

    Args:
        estimator: A fitted GPRegressor or BNNRegressor.
        observed: Further observations, exactly conditioned on; None for none.
    """

    def __init__(self, estimator: Any, observed: Observed | None = None):
        super().__init__()
        check_estimator(estimator)
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
        check_inputs(X, self.estimator.n_features_in_)
        outputs = None if output_indices is None else chosen(output_indices, self.num_outputs)
        earlier = () if self.observed is None else (self.observed.x, self.observed.y)
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (X, *earlier))
        noise = None if observation_noise is False else self._noise(observation_noise, X)
        with torch.set_grad_enabled(wanted):
            law = self._law(X) if self.observed is None else self._conditioned(X, self.observed)
            posterior: Posterior
            if isinstance(law, tuple):
                posterior = gaussian(law, noise, outputs)
            else:
                functions = law if noise is None else noisy(law, noise)
                posterior = EnsemblePosterior(functions if outputs is None else functions[..., outputs])
        return posterior if posterior_transform is None else posterior_transform(posterior)

    def condition_on_observations(self, X: Tensor, Y: Tensor, noise: Tensor | None = None, **_: Any) -> Self:
        """The model given further observations, exactly: hyperparameters, features and scales stay.

        Args:
            X: (*b, n, d).
            Y: (*c, n, m), with leading axes of its own for fantasies.
            noise: Noise variances, broadcasting against Y; None for the learnt noise.

        Raises:
            NotImplementedError: The function or the noise is not Gaussian.
            ValueError: There is not one finite row of `Y` for each row of `X`, or `noise` does not fit.
        """
        check_inputs(X, self.estimator.n_features_in_)
        if not isinstance(self.likelihood, Gaussian) or not isinstance(self._law(X[..., :1, :].detach()), tuple):
            method = type(self.estimator.inference_).__name__
            raise NotImplementedError(
                f"{method} under {type(self.likelihood).__name__} noise has no exact conditioning: fit the estimator "
                "again with the new observations, or use a method with a Gaussian law of the function"
            )
        added = told(X, Y, self._noise(True, X) if noise is None else noise, num_outputs=self.num_outputs)
        observed = added if self.observed is None else joined(self.observed, added)
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
        *batch, q, d = X.shape
        flat = X.reshape(-1, q, d)
        laws = [blocks(self._values(part.reshape(-1, d)), q) for part in flat.split(max(1, ROWS // q))]
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
