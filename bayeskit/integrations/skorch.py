"""Inference in skorch: its loop trains the module, an inference of this library computes the posterior.

    net = BayesianNetClassifier(MyModule, inference=bnn.Laplace(pretrained=True), lr=0.01, max_epochs=30)
    net.fit(X, y)                 # callbacks, schedules and early stopping as usual; then the posterior
    net.predict_proba(X)          # posterior predictive

`max_epochs=0` leaves the training to the inference, which then starts from the initial weights.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from bayeskit.core.inference import Inference
from bayeskit.core.likelihood import Categorical, Gaussian, Likelihood
from bayeskit.core.types import Data
from bayeskit.integrations.optional_import import needed
from bayeskit.integrations.skorch_posterior import ROWS, PosteriorNet, outputs

with needed("skorch", extra="skorch"):
    from skorch import NeuralNetClassifier, NeuralNetRegressor


class BayesianNetClassifier(PosteriorNet, NeuralNetClassifier):
    """skorch's `NeuralNetClassifier` with posterior predictive distributions.

    Args:
        module: Returns logits (n, c).
        inference: An inference or its registered name; `bnn.Laplace(pretrained=True)` if None.
        criterion: The loss of skorch's loop.
        random_state: Seed of the inference.
        **settings: Those of skorch: `lr`, `max_epochs`, `optimizer`, `callbacks`, `module__...`.

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
        return np.concatenate([part.probs.cpu().numpy() for part in self.parts(X)])

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class (n,)."""
        chosen = self.predict_proba(X).argmax(1)
        return self.classes_[chosen]

    def _targets(self, y: torch.Tensor) -> torch.Tensor:
        return y.long()

    def _likelihood(self, data: Data) -> Likelihood:
        return Categorical(outputs(self.module_, data).shape[-1]).to(data.y.device)


class BayesianNetRegressor(PosteriorNet, NeuralNetRegressor):
    """skorch's `NeuralNetRegressor` with posterior predictive distributions, in the units of the module's outputs.

    The inference learns the noise variance, starting from the module's mean squared residual.

    Args:
        module: Returns means (n, k).
        inference: As for the classifier.
        criterion: The loss of skorch's loop.
        random_state: Seed of the inference.
        **settings: Those of skorch.

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
        parts = [(part.mean.cpu().numpy(), part.std.cpu().numpy()) for part in self.parts(X)]
        mean, std = (np.concatenate(column) for column in zip(*parts, strict=True))
        return (mean, std) if return_std else mean

    def _targets(self, y: torch.Tensor) -> torch.Tensor:
        return y.reshape(len(y), -1)

    def _likelihood(self, data: Data) -> Likelihood:
        residual = float((outputs(self.module_, data) - data.y[:ROWS]).square().mean())
        return Gaussian(max(residual, 1e-6)).to(data.y.device)
