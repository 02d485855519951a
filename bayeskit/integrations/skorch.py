"""Inferences inside skorch: its loop trains the module, an inference of ours turns it into a posterior.

    net = BayesianNetClassifier(MyModule, inference=bnn.Laplace(pretrained=True), lr=0.01, max_epochs=30)
    net.fit(X, y)                 # callbacks, schedules and early stopping as ever; then the posterior
    net.predict_proba(X)          # of the posterior

`max_epochs=0` leaves the training to the inference, which then starts where the module starts.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_random_state
from torch import nn

from bayeskit import registry
from bayeskit.bnn import Laplace, gaussian_prior
from bayeskit.core.inference import Fit, Inference
from bayeskit.core.inputs import as_inputs
from bayeskit.core.likelihood import Categorical, Gaussian, Likelihood
from bayeskit.core.predictive import Predictive
from bayeskit.core.types import Data
from bayeskit.integrations.extra import needed

with needed("skorch", extra="skorch"):
    from skorch import NeuralNetClassifier, NeuralNetRegressor
    from skorch.utils import data_from_dataset, to_tensor

ROWS = 2_000
"""Rows predicted at a time."""


class _Bayesian:
    """What both nets add to skorch's own: a posterior behind the predictions."""

    result_: Fit | None = None  # None while skorch trains: its callbacks then score the module itself

    def partial_fit(self: Any, X: Any, y: Any = None, classes: Any = None, **fit_params: Any) -> Any:
        """Train on, then infer; the posterior is that of the rows of this call.

        Args:
            X: Inputs, as skorch takes them: array, tensor, dictionary of those, or `Dataset` of pairs.
            y: Targets; None for a `Dataset`.
            classes: As in skorch.
            **fit_params: As in skorch.
        """
        self.result_ = None
        super().partial_fit(X, y, classes=classes, **fit_params)  # type: ignore[misc]
        inputs, targets = data_from_dataset(self.get_dataset(X, y))
        x: Any = to_tensor(inputs, self.device)
        data = Data(x, self._targets(torch.as_tensor(targets)).to(self.device))
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        generator = torch.Generator(self.device).manual_seed(seed)
        module = self.module_.eval()
        likelihood = self._likelihood(data)
        self.result_ = self._inference().infer(gaussian_prior(module), likelihood, data, generator=generator)
        return self

    def predictive(self: Any, X: Any) -> Predictive:
        """The law of an observation at each row of `X`.

        Raises:
            NotFittedError: There is no posterior yet.
        """
        if self.result_ is None:
            raise NotFittedError(f"This {type(self).__name__} has no posterior yet: call `fit` first")
        x: Any = to_tensor(X, self.device)
        with torch.no_grad():
            return self.result_.likelihood.predictive(self.result_.posterior(as_inputs(x)))

    def _inference(self: Any) -> Inference:
        if self.inference is None:
            return Laplace(pretrained=True)
        return self.inference if isinstance(self.inference, Inference) else registry.get(self.inference)()

    def _parts(self: Any, X: Any) -> Iterator[Any]:
        return (self.predictive(X[i : i + ROWS]) for i in range(0, len(X), ROWS))


class BayesianNetClassifier(_Bayesian, NeuralNetClassifier):
    """skorch's `NeuralNetClassifier` with the predictions of a posterior.

    Args:
        module: Returns logits (n, c).
        inference: `bnn.Laplace(pretrained=True)` where None is given; any other, or its registered name.
        criterion: Of skorch's loop.
        random_state: Seed of the inference.
        **settings: As skorch takes them: `lr`, `max_epochs`, `optimizer`, `callbacks`, `module__...`.

    Attributes:
        result_: The `Fit`: posterior, likelihood, evidence, diagnostics.

    Examples:
        >>> x = np.linspace(-1, 1, 40, dtype="float32")[:, None]
        >>> net = BayesianNetClassifier(nn.Linear(1, 2), max_epochs=3, verbose=0, random_state=0)
        >>> net.fit(x, (x[:, 0] > 0).astype(int)).predict_proba(x[:2]).shape
        (2, 2)
    """

    def __init__(
        self,
        module: Any,
        *args: Any,
        inference: Inference | str | None = None,
        criterion: Any = nn.CrossEntropyLoss,
        random_state: Any = None,
        **settings: Any,
    ):
        super().__init__(module, *args, criterion=criterion, **settings)
        self.inference = inference
        self.random_state = random_state

    def predict_proba(self, X: Any) -> np.ndarray:
        """Class probabilities (n, c) of the posterior."""
        if self.result_ is None:
            return super().predict_proba(X)
        return np.concatenate([part.probs.cpu().numpy() for part in self._parts(X)])

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class (n,)."""
        return self.classes_[self.predict_proba(X).argmax(1)]

    def _targets(self, y: torch.Tensor) -> torch.Tensor:
        return y.long()

    def _likelihood(self, data: Data) -> Likelihood:
        with torch.no_grad():
            return Categorical(self.module_(data.x[:1]).shape[-1]).to(data.y.device)


class BayesianNetRegressor(_Bayesian, NeuralNetRegressor):
    """skorch's `NeuralNetRegressor` with the predictions of a posterior, in the units of the module's own outputs.

    The noise variance is the inference's to learn, from the module's mean squared residual on.

    Args:
        module: Returns means (n, k).
        inference: As for the classifier.
        criterion: Of skorch's loop.
        random_state: Seed of the inference.
        **settings: As skorch takes them.

    Attributes:
        result_: The `Fit`: posterior, likelihood, evidence, diagnostics.

    Examples:
        >>> x = np.linspace(-1, 1, 40, dtype="float32")[:, None]
        >>> net = BayesianNetRegressor(nn.Linear(1, 1), max_epochs=3, verbose=0, random_state=0).fit(x, 2 * x)
        >>> mean, std = net.predict(x[:2], return_std=True)
        >>> mean.shape, std.shape
        ((2, 1), (2, 1))
    """

    def __init__(
        self,
        module: Any,
        *args: Any,
        inference: Inference | str | None = None,
        criterion: Any = nn.MSELoss,
        random_state: Any = None,
        **settings: Any,
    ):
        super().__init__(module, *args, criterion=criterion, **settings)
        self.inference = inference
        self.random_state = random_state

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """The mean of an observation (n, k), with its standard deviation on request, as scikit-learn's GPR has it."""
        if self.result_ is None:
            return super().predict(X)
        parts = [(part.mean.cpu().numpy(), part.std.cpu().numpy()) for part in self._parts(X)]
        mean, std = (np.concatenate(column) for column in zip(*parts, strict=True))
        return (mean, std) if return_std else mean

    def _targets(self, y: torch.Tensor) -> torch.Tensor:
        return y.reshape(len(y), -1)

    def _likelihood(self, data: Data) -> Likelihood:
        with torch.no_grad():
            residual = float((self.module_(data.x[:ROWS]) - data.y[:ROWS]).square().mean())
        return Gaussian(max(residual, 1e-6)).to(data.y.device)
