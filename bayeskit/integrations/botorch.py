"""Bayesian optimization in BoTorch with any posterior of this library.

model = as_model(GPRegressor().fit(X, y))
candidates, _ = optimize_acqf(qLogExpectedImprovement(model, best_f), bounds, q=2, ...)    # BoTorch's own
"""

import copy
from typing import Any, Self

import torch
from gpytorch.distributions import MultivariateNormal
from torch import Tensor

from bayeskit.core import operators
from bayeskit.core.posterior import FunctionValues, SampledValues
from bayeskit.integrations.botorch_observations import (
    Observed,
    check_estimator,
    check_inputs,
    checked,
    concatenated,
    inputs_in_units,
    output_positions,
)
from bayeskit.integrations.botorch_posteriors import NOT_GAUSSIAN, FunctionsPosterior, blocks, gaussian, noisy, selected
from bayeskit.integrations.optional_import import needed

with needed("BoTorch", extra="botorch"):
    from botorch.models.model import FantasizeMixin, Model
    from botorch.posteriors import GPyTorchPosterior, Posterior
    from botorch.sampling.pathwise.posterior_samplers import DrawMatheronPaths

ROWS = 256
"""Inputs per joint covariance, of which the blocks of q are kept: half a MiB, unless q is larger."""


def as_model(estimator: Any) -> "EstimatorModel":
    """A fitted regressor as a BoTorch `Model`, for its acquisition functions and optimizers.

    Inputs and outputs are in the units of the data. `posterior(X)` of X (*b, q, d) is a `GPyTorchPosterior` where the
    function is Gaussian (processes, linearized networks, Bayesian last layers), with gradients in X, and otherwise an
    `EnsemblePosterior` of fixed functions. `observation_noise=True` adds the learned noise.
    `condition_on_observations` and `fantasize` are exact where function and noise are Gaussian, at fixed
    hyperparameters, features and scales. `subset_output` gives the model of some outputs, and `model(X)` a Gaussian as
    one of gpytorch, so that entropy searches (MES, GIBBON, JES, PES) and knowledge gradients work. Thompson sampling by
    BoTorch's paths does not: use `MaxPosteriorSampling`, or `estimator.sample_functions`.

    Args:
        estimator: A fitted GPRegressor or BNNRegressor.

    Returns:
        The model, which refers to the estimator and is not trained further.

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
        observed: Further observations to condition on exactly, or None.
        outputs: Which outputs of the estimator the model is of, and is conditioned by; None for all.
        shown: Which of those it states; None for all.
    """

    def __init__(
        self,
        estimator: Any,
        observed: Observed | None = None,
        outputs: list[int] | None = None,
        shown: list[int] | None = None,
    ):
        super().__init__()
        check_estimator(estimator)
        self.estimator, self.observed = estimator, observed
        self.outputs, self.shown = list(range(estimator.num_outputs_)) if outputs is None else outputs, shown
        self.likelihood = copy.deepcopy(estimator.likelihood_).requires_grad_(False)
        self.eval()

    @property
    def num_outputs(self) -> int:
        """Number of outputs, m."""
        return len(self.outputs if self.shown is None else self.shown)

    def __getattr__(self, name: str) -> Any:
        """Parameters, buffers and modules; and `train_inputs` where a process keeps them."""
        return inputs_in_units(self) if name == "train_inputs" else super().__getattr__(name)

    @property
    def batch_shape(self) -> torch.Size:
        """The batch shape of the observations after the fit; () without any."""
        return torch.Size() if self.observed is None else self.observed.batch_shape

    def posterior(  # pyright: ignore[reportIncompatibleMethodOverride]  # BoTorch's two bases disagree on it
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: Any = None,
    ) -> Posterior:
        """The joint distribution of the outputs at q inputs, for each of a batch.

        Args:
            X: (*b, q, d), in the units of the data.
            output_indices: Which outputs; None for all.
            observation_noise: Whether to add the learned noise; or noise variances, (*b, q, m) or broadcasting.
            posterior_transform: Applied to the result.

        Returns:
            `GPyTorchPosterior` or `EnsemblePosterior`, of batch *b broadcast against that of the model.
        """
        check_inputs(X, self.estimator.n_features_in_)
        outputs = None if output_indices is None else output_positions(output_indices, self.num_outputs)
        earlier = () if self.observed is None else (self.observed.x, self.observed.y)
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (X, *earlier))
        noise = None if observation_noise is False else self._noise(observation_noise, X)
        with torch.set_grad_enabled(wanted):
            joint = self._joint(X) if self.observed is None else self._conditioned(X, self.observed)
            if self.shown is not None and isinstance(joint, tuple):
                joint = selected(joint, self.shown)
            posterior: Posterior
            if isinstance(joint, tuple):
                posterior = gaussian(joint, noise, outputs)
            else:
                functions = joint if noise is None else noisy(joint, noise)
                posterior = FunctionsPosterior(functions if outputs is None else functions[..., outputs])
        return posterior if posterior_transform is None else posterior_transform(posterior)

    def condition_on_observations(self, X: Tensor, Y: Tensor, noise: Tensor | None = None, **_: Any) -> Self:
        """The model given further observations, exactly: hyperparameters, features and scales stay.

        Args:
            X: (*b, n, d).
            Y: (*c, n, m), with leading axes of its own for fantasies.
            noise: Noise variances, broadcasting against Y; None for the learned noise.

        Raises:
            NotImplementedError: The function or the noise is not Gaussian.
            ValueError: There is not one finite row of `Y` for each row of `X`, or `noise` does not fit.
        """
        check_inputs(X, self.estimator.n_features_in_)
        if self.shown is not None:
            raise NotImplementedError(
                "a model of some outputs, taken after observations of all of them, cannot be conditioned on more: "
                "condition the model of all outputs, and take `subset_output` of the result"
            )
        if self.likelihood.noise_variance is None or not isinstance(self._joint(X[..., :1, :].detach()), tuple):
            method = type(self.estimator.inference_).__name__
            raise NotImplementedError(
                f"{method} under {type(self.likelihood).__name__} noise has no exact conditioning: fit the estimator "
                "again with the new observations, or use a method with a Gaussian posterior"
            )
        added = checked(X, Y, self._noise(True, X) if noise is None else noise, num_outputs=self.num_outputs)
        observed = added if self.observed is None else concatenated(self.observed, added)
        return type(self)(self.estimator, observed, self.outputs)

    def subset_output(self, idcs: list[int]) -> Self:
        """The model of some outputs; their joint distribution with the others is lost.

        Args:
            idcs: Which outputs, 0 to m - 1, or counted from the end.

        Raises:
            ValueError: An index is out of range.
        """
        chosen = output_positions(idcs, self.num_outputs)
        if self.observed is None:
            return type(self)(self.estimator, None, [self.outputs[i] for i in chosen])
        shown = chosen if self.shown is None else [self.shown[i] for i in chosen]
        return type(self)(self.estimator, self.observed, self.outputs, shown)

    def forward(self, X: Tensor) -> MultivariateNormal:
        """The distribution of the outputs at q inputs as one of gpytorch, in the units of the data.

        Args:
            X: (*b, q, d).

        Raises:
            NotImplementedError: The function is not Gaussian.
        """
        posterior = self.posterior(X)
        if isinstance(posterior, GPyTorchPosterior):
            return posterior.distribution
        raise NotImplementedError(f"`model(X)` has to be Gaussian: {NOT_GAUSSIAN}")

    def _noise(self, given: bool | Tensor, X: Tensor) -> Tensor:
        """Noise variances that broadcast against (*b, q, m), in the units of the data."""
        if isinstance(given, Tensor):
            return given
        scale = self.estimator.target_scaler_.scale.to(X)
        noise = self.likelihood.noise_variance
        if self.likelihood.components:
            noises = torch.stack([member.noise_variance.to(X) for member in self.likelihood.components])
            noise = self.likelihood.weights.to(X) @ noises
        if noise is not None:
            variance = (noise.to(X) * scale.square()).expand(self.estimator.num_outputs_)[self.outputs]
            return variance if self.shown is None else variance[self.shown]
        raise NotImplementedError(
            f"`observation_noise=True` needs Gaussian noise, and that of {type(self.likelihood).__name__} is not: give "
            "noise variances, or use the posterior of the function"
        )

    def _values(self, x: Tensor) -> FunctionValues:
        """The function values at inputs (n, d), in the units of the data."""
        e = self.estimator
        x = x.to(e.device_)
        shift, scale = (t.to(e.device_) for t in (e.target_scaler_.shift, e.target_scaler_.scale))
        values = e.posterior_(x if e.input_scaler_ is None else e.input_scaler_(x)).affine(shift, scale)
        return SampledValues(values.mean.unsqueeze(0)) if e.inference_.kind == "point" else values

    def _joint(self, X: Tensor) -> "tuple[Tensor, Tensor] | Tensor":
        """Mean (*b, q, m) and covariance (*b, q m, q m), point-major; or functions (*b, s, q, m)."""
        *batch, q, d = X.shape
        flat = X.reshape(-1, q, d)
        found = [blocks(self._values(part.reshape(-1, d)), q) for part in flat.split(max(1, ROWS // q))]
        if isinstance(found[0], tuple):
            mean, covariance = (torch.cat(parts).to(X) for parts in zip(*found, strict=True))
            moments = mean.reshape(*batch, q, -1), covariance.reshape(*batch, *covariance.shape[1:])
            return moments if self.outputs == list(range(mean.shape[-1])) else selected(moments, self.outputs)
        functions = torch.cat([part for part in found if isinstance(part, Tensor)]).to(X)
        return functions.reshape(*batch, *functions.shape[1:])[..., self.outputs]

    def _conditioned(self, X: Tensor, observed: Observed) -> tuple[Tensor, Tensor]:
        """N(m + C' S^-1 (y - m_o), K - C' S^-1 C), with S and C from the joint distribution at both sets of inputs."""
        batch = torch.broadcast_shapes(X.shape[:-2], observed.x.shape[:-2])
        both = torch.cat([observed.x.expand(*batch, -1, -1), X.expand(*batch, -1, -1)], -2)
        joint = self._joint(both)
        assert isinstance(joint, tuple)
        mean, covariance = joint
        m = len(self.outputs)
        size = observed.x.shape[-2] * m
        noise = observed.noise.expand(*observed.noise.shape[:-2], *observed.y.shape[-2:]).flatten(-2)
        given = covariance[..., :size, :size] + torch.diag_embed(noise)
        factor = operators.factorize(given, name="the covariance of the observations after the fit")
        half = factor.half_solve(covariance[..., :size, size:])
        residual = (observed.y - mean[..., : size // m, :]).flatten(-2)  # (*c, n m)
        white = torch.linalg.solve_triangular(factor.tril, residual.unsqueeze(-1).to(factor.tril), upper=False)
        shift = (half.mT @ white).squeeze(-1).unflatten(-1, (-1, m))
        kept = covariance[..., size:, size:] - half.mT @ half
        mean = mean[..., size // m :, :] + shift.to(X)
        return mean, kept.to(X).expand(*mean.shape[:-2], *kept.shape[-2:])


@DrawMatheronPaths.register(EstimatorModel)
def _no_paths(model: EstimatorModel, **_: Any) -> None:
    """BoTorch's paths are made of its own kernels and layers."""
    raise NotImplementedError(
        "BoTorch's paths are made of its own models: draw by `MaxPosteriorSampling`, or functions by "
        "`estimator.sample_functions`"
    )
