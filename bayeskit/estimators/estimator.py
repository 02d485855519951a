"""The base class of the four estimators: read, standardize, infer, predict, in the data's own units.

    X, y -> checked arrays -> standardized `Data` -> `Inference.infer` -> `Fit` -> predictions in original units

A subclass adds its family ("gp" or "bnn", which decides the prior) and its task (the coding of targets and the form of
predictions). Methods are looked up in the registry.
"""

import copy
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, ClassVar, Generic, Self, TypeVar, cast

import numpy as np
import torch
from gpytorch.kernels import Kernel
from sklearn.base import BaseEstimator, clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from bayeskit import registry
from bayeskit.core import checks, operators, progress
from bayeskit.core.inference import Evidence, Fit, Inference
from bayeskit.core.likelihood import KnownNoise, Likelihood
from bayeskit.core.likelihood.known_noise import without_known_noise
from bayeskit.core.modules import cannot_take, run
from bayeskit.core.posterior import FunctionValues, Posterior
from bayeskit.core.predictive import Predictive
from bayeskit.core.types import Data, Inputs
from bayeskit.estimators import input_validation, validation_data
from bayeskit.estimators.noise_variance import noisy, standardized, with_variances
from bayeskit.estimators.scaling import Standardizer

PREDICT_ROWS = 8_192
"""Inputs predicted at a time by `predict` and `predict_proba`, which bounds the memory whatever their number."""


P = TypeVar("P", bound=Predictive)


class BayesEstimator(BaseEstimator, ABC, Generic[P]):
    """The shared part of `GPRegressor`, `GPClassifier`, `BNNRegressor` and `BNNClassifier`."""

    _family: ClassVar[registry.Family]
    _task: ClassVar[registry.Task]

    # Constructor parameters that every subclass declares.
    inference: Inference | str | None
    likelihood: Likelihood | None
    device: str
    dtype: torch.dtype | None
    random_state: Any
    verbose: bool
    validation_split: Any = None  # of networks

    # Fitted state.
    posterior_: Posterior
    likelihood_: Likelihood
    inference_: Inference
    log_evidence_: Evidence | None
    history_: dict[str, list[float]]
    diagnostics_: dict[str, Any]

    @abstractmethod
    def _structure(self) -> Any:
        """The user's kernel or network, or None for the library's own."""

    @abstractmethod
    def _encode(self, y: Any, *, reset: bool) -> Tensor:
        """Targets as the likelihood takes them, (n, k) or (n,), in original units; learns the coding on `reset`."""

    @abstractmethod
    def _default_likelihood(self, num_outputs: int | None) -> Likelihood:
        """The likelihood used when none is given; `num_outputs` is what a given network returns, if it is known."""

    @abstractmethod
    def _deliver(self, predictive: Predictive) -> P:
        """A predictive in standardized units as the user gets it: original units, one output squeezed."""

    # -- fitting ---------------------------------------------------------------------------------------------------

    def _fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        *,
        groups: Any = None,
        noise_variance: Any = None,
        first: bool = True,
        stream: bool = False,
    ) -> Self:
        """Fit on a first batch of data, of a `stream` or all there is, or continue from the previous posterior.

        A fit that fails or is interrupted leaves the estimator unchanged: scales, classes and posterior go together.
        """
        before = dict(vars(self))
        try:
            data = self._read_data(X, y, sample_weight, noise_variance, reset=first)
            data = validation_data.divided(data, self.validation_split, groups, read=self._validation_set)
            return self._fitted(data, known_noise=noise_variance is not None, first=first, stream=stream)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    def _read_data(self, X: Any, y: Any, sample_weight: Any, noise_variance: Any, *, reset: bool) -> Data:
        """Checked data in the user's units."""
        X, y = input_validation.split_dataset(X, y)
        x, y, weights = input_validation.read(self, X, y, sample_weight, reset=reset, **self._reading())
        target = self._encode(y, reset=reset)
        return Data(x, target if noise_variance is None else with_variances(target, noise_variance), weights)

    def _fitted(self, data: Data, *, known_noise: bool, first: bool, stream: bool) -> Self:
        if first:
            self.device_ = self._resolve_device()
            self._learn_scales(data.x, data.y.chunk(2, dim=-1)[0] if known_noise else data.y, data.weights)
        data = validation_data.transformed(data, self._scaled, self._standardize).to(device=self.device_)
        generator = self._start_generator()
        if first:
            prior, likelihood = self._start(data, generator, known_noise)
            self.inference_ = self._resolve_inference(len(data), stream)
        else:
            prior, likelihood = self.posterior_, noisy(self.likelihood_, known_noise)
        validation_data.check_used(self.inference_, self.validation_split)
        with progress.shown(self.verbose):
            fit = self.inference_.infer(prior, likelihood, data, generator=generator)
        self._store(replace(fit, likelihood=without_known_noise(fit.likelihood)), data)
        return self

    def _validation_set(self, X: Any, y: Any) -> Data:
        """A validation set that the user gives, in its own units."""
        x, y, _ = input_validation.read(self, X, y, None, reset=False, **self._reading())
        return Data(x, self._encode(y, reset=self._task == "regression"))  # labels are those of the training data

    def _reading(self) -> dict[str, bool]:
        """Settings of `input_validation.read`."""
        network = self._family == "bnn" and self._structure() is not None
        return {"tables_only": self._family == "gp", "tokens": network, "classes": self._task == "classification"}

    def _learn_scales(self, x: Inputs, target: Tensor, weights: Tensor | None) -> None:
        given_network = isinstance(self._structure(), torch.nn.Module) and self._family == "bnn"
        self.input_scaler_ = None
        # A network given as a module gets its inputs unchanged: it may have been trained on them already.
        if isinstance(x, Tensor) and x.ndim == 2 and x.is_floating_point() and not given_network:
            self.input_scaler_ = Standardizer.fit(x, weights).without(self._columns_as_given(x.shape[1]))
        likelihood = self.likelihood if self.likelihood is not None else self._default_likelihood(None)
        continuous = likelihood.target == "continuous"
        columns = target.shape[-1] if target.ndim == 2 else 1
        scaled = continuous and _on_the_real_line(likelihood, target)
        self.target_scaler_ = Standardizer.fit(target, weights) if scaled else Standardizer.identity(columns)

    def _columns_as_given(self, num_columns: int) -> list[int]:
        """The columns of a table that are not standardized."""
        return []

    def _start(self, data: Data, generator: torch.Generator, known_noise: bool) -> tuple[Posterior, Likelihood]:
        """The prior and the likelihood before any data."""
        structure = self._structure()
        given = copy.deepcopy(self.likelihood)
        if given is None and known_noise:
            given = KnownNoise()
        likelihood = given if given is not None else self._default_likelihood(_outputs_of(structure, data.x))
        likelihood = noisy(likelihood, known_noise)
        self.num_outputs_ = likelihood.num_latents(data.y)
        return self._prior(data.x, generator), likelihood.to(self.device_)

    def _prior(self, x: Inputs, generator: torch.Generator) -> Posterior:
        """The prior over a function with as many outputs as the likelihood has latents."""
        build = registry.prior(self._family)
        return build(self._structure(), x, self.num_outputs_, dtype=self.dtype, generator=generator)

    def _store(self, fit: Fit, data: Data) -> None:
        self.posterior_, self.likelihood_ = fit.posterior, fit.likelihood
        self.history_, self.diagnostics_ = dict(fit.history), dict(fit.diagnostics)
        # log p(y) = log p(z) - sum log scale for y = shift + scale z.
        seen = (~data.y.isnan()).double().reshape(len(data), -1)[:, : len(self.target_scaler_.scale)]
        counts = (seen if data.weights is None else seen * data.weights.unsqueeze(-1)).sum(0).cpu()
        change = -float((counts * self.target_scaler_.scale.log()).sum())
        self.log_evidence_ = None if fit.log_evidence is None else fit.log_evidence.shifted(change)

    def _resolve_inference(self, num_rows: int, stream: bool = False) -> Inference:
        if isinstance(self.inference, Inference):
            return cast(Inference, clone(self.inference))
        if self.inference is None or isinstance(self.inference, str):
            name = self.inference or self._default_inference(num_rows, stream)
            self._check_family(name)
            return registry.get(name)()
        raise TypeError(
            "`inference` must be an Inference such as `gp.SVGP(num_inducing=512)`, one of the names "
            f"{registry.names(self._task, family=self._family)}, or None; got {self.inference!r}"
        )

    def _default_inference(self, num_rows: int, stream: bool) -> str:
        """The registered name used when none is given."""
        return registry.default(self._family, self._task, num_rows, self.likelihood, stream=stream)

    def _check_family(self, name: str) -> None:
        """Refuse a method of the other family by naming the estimator to use, an unknown name by listing the known."""
        known = registry.names(family=self._family)
        if name in registry.METHODS and name not in known:
            other = {"gp": "BNN", "bnn": "GP"}[self._family] + type(self).__name__.removeprefix(self._family.upper())
            raise ValueError(f"`inference` {name!r} is a method of {other}; {type(self).__name__} has {known}")
        checks.choice(name, name="inference", options=known)

    def _resolve_device(self) -> torch.device:
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except (RuntimeError, TypeError):
            raise ValueError(f"`device` must be 'auto' or a torch device such as 'cpu'; got {self.device!r}") from None
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"`device` is {self.device!r}, and torch finds no CUDA device here; use 'auto' or 'cpu'")
        return device

    def _start_generator(self) -> torch.Generator:
        self.seed_ = int(check_random_state(self.random_state).randint(2**31 - 1))
        return torch.Generator(self.device_).manual_seed(self.seed_)

    # -- predicting ------------------------------------------------------------------------------------------------

    def latent(self, X: Any) -> FunctionValues:
        """The joint distribution of the function (no observation noise) at the rows of `X`, in the target's units.

        Args:
            X: (n, d) inputs, or whatever was given to `fit`.

        Returns:
            `FunctionValues` with mean (n, k) and covariance operator (n*k, n*k); for classes, the latents are logits.
        """
        values = self.standardized(X)
        if self.likelihood_.target != "continuous":
            return values
        shift, scale = self._latent_units()
        return values.affine(shift.to(self.device_), scale.to(self.device_))

    def standardized(self, X: Any) -> FunctionValues:
        """The joint distribution of the function in standardized units, those of `likelihood_`.

        Args:
            X: (n, d) inputs, or whatever was given to `fit`.

        Returns:
            `FunctionValues` with mean (n, k); with `likelihood_`, what acquisition functions take.
        """
        check_is_fitted(self)
        return self._values(self._read_again(X))

    def predictive(self, X: Any) -> P:
        """The predictive distribution at each row of `X`, in the target's units; a single output is squeezed.

        Args:
            X: (n, d) inputs, or whatever was given to `fit`.
        """
        check_is_fitted(self)
        return self._predictive(self._read_again(X))

    def sample_functions(self, n_samples: int = 1, random_state: Any = None) -> Any:
        """Draw fixed functions from the posterior: `f(X)` agrees between calls and batches.

        For a GP kernel without random features (a custom kernel) the values drawn are stored and conditioned on. The
        draws are exact for the first 4096 inputs; beyond, `diagnostics_` has the largest correlation neglected.

        Args:
            n_samples: Number s of functions.
            random_state: Seed; None repeats the draw stored at fit.

        Returns:
            A callable from inputs (n, d) to values (s, n), or (s, n, k) for several outputs, in the target's units.
        """
        check_is_fitted(self)
        functions = self.posterior_.sample_functions(n_samples, generator=self._generator(random_state))
        units = self._latent_units() if self.likelihood_.target == "continuous" else None

        def evaluate(X: Any) -> np.ndarray:
            with operators.recording() as notes:
                draws = functions(self._read_again(X)[:]).double().cpu()
            for key, value in notes.items():
                self.diagnostics_[key] = max(value, self.diagnostics_.get(key, value))
            return _squeeze(draws if units is None else units[0] + units[1] * draws).numpy()

        return evaluate

    def _latent_units(self) -> tuple[Tensor, Tensor]:
        """Shift and scale (k,) of the latents between standardized units and the target's."""
        shift, scale = self.likelihood_.latent_units(self.target_scaler_.shift, self.target_scaler_.scale)
        if len(scale) != self.num_outputs_:
            raise ValueError(
                f"{type(self.likelihood_).__name__} has {self.num_outputs_} latents for {len(scale)} outputs and does "
                "not say how they change with the units of the target: override its `latent_units`"
            )
        return shift, scale

    def _predictive(self, x: Inputs) -> P:
        with torch.no_grad():
            return self._deliver(self.likelihood_.predictive(self._values(x)))

    def _values(self, x: Inputs) -> FunctionValues:
        with torch.no_grad():
            return self.posterior_(x)

    def _data(self, X: Any, y: Any, sample_weight: Any, noise_variance: Any = None) -> Data:
        """Data in the standardized units of the fitted posterior."""
        data = self._read_data(X, y, sample_weight, noise_variance, reset=False)
        return validation_data.transformed(data, self._scaled, self._standardize).to(device=self.device_)

    def _chunks(self, X: Any) -> list[Inputs]:
        """Scaled inputs, at most `PREDICT_ROWS` at a time."""
        check_is_fitted(self)
        x = self._read_again(X)
        return [x[i : i + PREDICT_ROWS] for i in range(0, len(x), PREDICT_ROWS)]

    def _read_again(self, X: Any) -> Inputs:
        X, _ = input_validation.split_dataset(X, None)
        x, _, _ = input_validation.read(self, X, None, None, reset=False, **self._reading())
        x = self._scaled(x)
        return x.to(device=self.device_)

    def _generator(self, random_state: Any) -> torch.Generator:
        seed = self.seed_ if random_state is None else int(check_random_state(random_state).randint(2**31 - 1))
        return torch.Generator(self.device_).manual_seed(seed)

    # -- scales ----------------------------------------------------------------------------------------------------

    def _scaled(self, x: Inputs) -> Inputs:
        return x if self.input_scaler_ is None or not isinstance(x, Tensor) else self.input_scaler_(x)

    def _standardize(self, target: Tensor) -> Tensor:
        scaled = target.ndim == 2 and target.is_floating_point()
        return standardized(self.target_scaler_, target) if scaled else target


def concatenated(parts: list[Tensor]) -> np.ndarray:
    """Predictions for consecutive chunks of inputs as one array, in float64."""
    return torch.cat([part.double().cpu() for part in parts]).numpy()


def _on_the_real_line(likelihood: Likelihood, target: Tensor) -> bool:
    """Whether the support is the real line: targets of a likelihood for positive numbers must not be standardized."""
    latents = torch.zeros(1, likelihood.num_latents(target), dtype=torch.float64)
    support: Any = copy.deepcopy(likelihood).cpu().distribution(latents).support
    return bool(support.check(torch.full((1, target.shape[-1]), -1e6, dtype=torch.float64)).all())


def _outputs_of(structure: Any, x: Inputs) -> int | None:
    """The number of outputs of a network given as a module; None for anything else."""
    if not isinstance(structure, torch.nn.Module) or isinstance(structure, Kernel):
        return None
    network = copy.deepcopy(structure).eval()
    like = next(network.parameters(), None)
    if like is None:
        raise ValueError(f"`network` must have parameters to learn; {type(network).__name__} has none")
    row = x[:1].to(device=like.device)
    row = row.to(like.dtype) if row.is_floating_point() else row
    try:
        with torch.no_grad():
            return run(network, row).shape[-1]
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise cannot_take(row, error) from None


def _squeeze(values: Tensor) -> Tensor:
    """Drop the output axis of (..., n, k) when k is 1."""
    return values.squeeze(-1) if values.shape[-1] == 1 else values
