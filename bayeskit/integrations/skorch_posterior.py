"""Posterior inference after training, for both nets of `integrations.skorch`."""

from collections.abc import Iterator
from typing import Any

import torch
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_random_state
from torch import nn
from torch.utils import _pytree as pytree

from bayeskit import registry
from bayeskit.bnn import Laplace, gaussian_prior
from bayeskit.bnn.networks.functional import call, parameters
from bayeskit.core.inference import Fit, Inference
from bayeskit.core.inputs import as_inputs
from bayeskit.core.predictive import Predictive
from bayeskit.core.types import Data
from bayeskit.integrations.optional_import import needed

with needed("skorch", extra="skorch"):
    from skorch.dataset import unpack_data
    from skorch.utils import to_device

ROWS = 2_000
"""Data points whose residuals give the initial noise variance, to a few percent."""


class PosteriorNet:
    """Mixin for skorch nets: inference after training, and predictions from the posterior."""

    result_: Fit | None = None  # None during training, when callbacks score the module itself

    def set_params(self: Any, **settings: Any) -> Any:
        """As in skorch; `inference__...` are settings of the inference, for grid search.

        Raises:
            ValueError: There are such settings, and `inference` is not an object with settings.
        """
        nested = {name: value for name, value in settings.items() if name.startswith("inference__")}
        super().set_params(  # type: ignore[misc]
            **{name: value for name, value in settings.items() if name not in nested}
        )
        if nested and not isinstance(self.inference, Inference):
            raise ValueError(
                f"{sorted(nested)} need an `inference` that has settings, such as `bnn.Laplace(pretrained=True)`; got "
                f"{self.inference!r}"
            )
        if nested:
            self.inference.set_params(**{name.removeprefix("inference__"): value for name, value in nested.items()})
        return self

    def partial_fit(self: Any, X: Any, y: Any = None, classes: Any = None, **fit_params: Any) -> Any:
        """Continue training, then infer the posterior given the data of this call.

        Args:
            X: Inputs of skorch: array, tensor, dictionary of those, or `Dataset` of pairs.
            y: Targets; None for a `Dataset`.
            classes: As in skorch.
            **fit_params: As in skorch.
        """
        self.result_ = None
        super().partial_fit(X, y, classes=classes, **fit_params)  # type: ignore[misc]
        x, targets = _joined(self._batches(X, y))
        data = Data(as_inputs(x), self._targets(targets))
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        generator = torch.Generator(self.device).manual_seed(seed)
        module = self.module_.eval()
        likelihood = self._likelihood(data)
        self.result_ = self._inference().infer(gaussian_prior(module), likelihood, data, generator=generator)
        return self

    def predictive(self: Any, X: Any) -> Predictive:
        """The predictive distribution of an observation at each input.

        Raises:
            NotFittedError: There is no posterior yet.
        """
        if self.result_ is None:
            raise NotFittedError(f"This {type(self).__name__} has no posterior yet: call `fit` first")
        return self._predictive(_joined(self._batches(X))[0])

    def _predictive(self: Any, x: Any) -> Predictive:
        with torch.no_grad():
            return self.result_.likelihood.predictive(self.result_.posterior(as_inputs(x)))

    def parts(self: Any, X: Any) -> Iterator[Any]:
        """The predictive distributions, one for each of skorch's batches."""
        return (self._predictive(x) for x, _ in self._batches(X))

    def _batches(self: Any, X: Any, y: Any = None) -> Iterator[tuple[Any, Any]]:
        """The batches of skorch's own iterator, on the net's device."""
        for batch in self.get_iterator(self.get_dataset(X, y), training=False):
            x, targets = unpack_data(batch)
            yield to_device(x, self.device), to_device(targets, self.device)

    def _inference(self: Any) -> Inference:
        if self.inference is None:
            return Laplace(pretrained=True)
        return self.inference if isinstance(self.inference, Inference) else registry.get(self.inference)()


def _joined(batches: Iterator[tuple[Any, Any]]) -> Any:
    """Inputs and targets of all the batches, leaf by leaf."""
    return pytree.tree_map(lambda *leaves: torch.cat(leaves), *batches)


def outputs(module: nn.Module, data: Data) -> torch.Tensor:
    """The module at the first rows, (n, k)."""
    with torch.no_grad():
        return call(module, parameters(module), data.x[:ROWS])
