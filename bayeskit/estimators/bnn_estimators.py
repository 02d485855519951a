"""Bayesian neural network estimators with scikit-learn's interface."""

from typing import Any

from bayeskit.estimators.regression_classification import ClassificationEstimator, RegressionEstimator


class BNNRegressor(RegressionEstimator):
    """Regression by a neural network with a distribution over its weights.

    Tables and targets are standardized inside (from the training data alone), except that a network given as a module
    gets its inputs unchanged; all results are in the target's own units.

    Args:
        network: A `torch.nn.Module` (used as it is, on a copy), a callable `(in_features, out_features) -> Module`,
            or None for a multilayer perceptron with two hidden layers of 50.
        inference: An inference such as `bnn.Laplace(subset="all")`, a registered name such as "deep_ensemble", or
            None for a last-layer Laplace approximation.
        likelihood: Distribution of the observations given the network's outputs; None for Gaussian noise of learned
            variance.
        validation_split: What is held out for early stopping, the noise and the prior precision: a share; a splitter of
            scikit-learn, whose last split counts (`TimeSeriesSplit()` holds out the last rows); a boolean mask (n,) of
            the rows to hold out; or a validation set `(X, y)`. None for a random share, as in `training`.
        device: "auto" (a GPU if there is one), "cpu", "cuda" ...
        dtype: Floating type of a network built here; None for float64 while it is small and on a CPU, else float32.
        random_state: Seed, `numpy.random.RandomState`, or None.
        verbose: Show a progress bar where there is a terminal.

    Attributes:
        posterior_: The fitted `Posterior`, in standardized units.
        likelihood_: The likelihood with its learned parameters, in standardized units.
        inference_: The inference used.
        log_evidence_: `Evidence` (value and kind) in the target's units, or None.
        history_: Curves of the training.
        diagnostics_: What the method recorded.

    Examples:
        >>> import numpy as np
        >>> x = np.linspace(-1, 1, 40)[:, None]
        >>> model = BNNRegressor(random_state=0).fit(x, x[:, 0] ** 2)
        >>> low, high = model.predictive([[0.5]]).interval(0.9)
        >>> bool(low[0] < high[0])
        True
    """

    _family = "bnn"

    def __init__(
        self,
        network=None,
        inference=None,
        likelihood=None,
        *,
        validation_split=None,
        device="auto",
        dtype=None,
        random_state=None,
        verbose=False,
    ):
        self.network = network
        self.inference = inference
        self.likelihood = likelihood
        self.validation_split = validation_split
        self.device = device
        self.dtype = dtype
        self.random_state = random_state
        self.verbose = verbose

    def _structure(self) -> Any:
        return self.network


class BNNClassifier(ClassificationEstimator):
    """Classification by a neural network with a distribution over its weights.

    Args:
        network: A `torch.nn.Module` that returns logits (used as it is, on a copy), a callable
            `(in_features, out_features) -> Module`, or None for a multilayer perceptron with two hidden layers of 50.
        inference: An inference such as `bnn.Laplace()`, a registered name, or None for a last-layer Laplace
            approximation.
        likelihood: None for Bernoulli on one logit (two classes; softmax if the network returns two) or softmax.
        class_weight: None, "balanced" or a dict from label to weight.
        validation_split: What is held out for early stopping, the noise and the prior precision: a share; a splitter of
            scikit-learn, whose last split counts (`TimeSeriesSplit()` holds out the last rows); a boolean mask (n,) of
            the rows to hold out; or a validation set `(X, y)`. None for a random share, as in `training`.
        device: "auto" (a GPU if there is one), "cpu", "cuda" ...
        dtype: Floating type of a network built here; None for float64 while it is small and on a CPU, else float32.
        random_state: Seed, `numpy.random.RandomState`, or None.
        verbose: Show a progress bar where there is a terminal.

    Attributes:
        classes_: The labels, sorted.
        posterior_: The fitted `Posterior` of the logits.
        likelihood_: The likelihood with its learned parameters.
        inference_: The inference used.
        log_evidence_: `Evidence` (value and kind), or None.
        history_: Curves of the training.
        diagnostics_: What the method recorded.

    Examples:
        >>> import numpy as np
        >>> x = np.linspace(-1, 1, 40)[:, None]
        >>> model = BNNClassifier(random_state=0).fit(x, np.where(x[:, 0] > 0, "right", "left"))
        >>> str(model.predict([[0.9]])[0])
        'right'
    """

    _family = "bnn"

    def __init__(
        self,
        network=None,
        inference=None,
        likelihood=None,
        *,
        class_weight=None,
        validation_split=None,
        device="auto",
        dtype=None,
        random_state=None,
        verbose=False,
    ):
        self.network = network
        self.inference = inference
        self.likelihood = likelihood
        self.class_weight = class_weight
        self.validation_split = validation_split
        self.device = device
        self.dtype = dtype
        self.random_state = random_state
        self.verbose = verbose

    def _structure(self) -> Any:
        return self.network
