"""Gaussian processes with scikit-learn habits."""

from typing import Any

from bayeskit.estimators.tasks import ClassificationEstimator, RegressionEstimator


class GPRegressor(RegressionEstimator):
    """Gaussian process regression: y = f(x) + noise with f ~ GP(m, k).

    Inputs and targets are standardized inside (from the training rows alone); everything that comes out is in the
    target's own units.

    Args:
        kernel: Any `gpytorch.kernels.Kernel`; None for a scaled Matern-5/2 with one length scale a feature.
            Parameters with `requires_grad` are learnt, others are kept.
        inference: An inference such as `gp.SVGP(num_inducing=512)`, a registered name such as "sgpr", or None to
            choose by task, size and likelihood (exact up to 3,000 rows).
        likelihood: Law of the observations given f; None for Gaussian noise of learnt variance.
        device: "auto" (a GPU if there is one), "cpu", "cuda" ...
        dtype: Floating type of the model; None for float64.
        random_state: Seed, `numpy.random.RandomState`, or None.
        verbose: Show a progress bar where there is a terminal.

    Attributes:
        posterior_: The fitted `Posterior`, in standardized units.
        likelihood_: The likelihood with its learnt parameters, in standardized units.
        inference_: The inference used.
        log_evidence_: `Evidence` (value and kind) in the target's units, or None.
        history_: Curves of the training.
        diagnostics_: Jitter added, solver residual and the like.

    Examples:
        >>> import numpy as np
        >>> x = np.linspace(0, 1, 20)[:, None]
        >>> model = GPRegressor(random_state=0).fit(x, np.sin(6 * x[:, 0]))
        >>> mean, std = model.predict([[0.5]], return_std=True)
        >>> bool(abs(mean[0] - np.sin(3)) < 0.05)
        True

    References:
        Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006, chapter 2.
    """

    _family = "gp"

    def __init__(
        self,
        kernel=None,
        inference=None,
        likelihood=None,
        *,
        device="auto",
        dtype=None,
        random_state=None,
        verbose=False,
    ):
        self.kernel = kernel
        self.inference = inference
        self.likelihood = likelihood
        self.device = device
        self.dtype = dtype
        self.random_state = random_state
        self.verbose = verbose

    def _structure(self) -> Any:
        return self.kernel


class GPClassifier(ClassificationEstimator):
    """Gaussian process classification: labels given one latent GP (two classes) or one a class (more).

    Args:
        kernel: Any `gpytorch.kernels.Kernel`; None for a scaled Matern-5/2 with one length scale a feature.
        inference: An inference such as `gp.SVGP(num_inducing=512)`, a registered name, or None for the default.
        likelihood: None for Bernoulli (two classes) or softmax (more).
        class_weight: None, "balanced" or a dict from label to weight.
        device: "auto" (a GPU if there is one), "cpu", "cuda" ...
        dtype: Floating type of the model; None for float64.
        random_state: Seed, `numpy.random.RandomState`, or None.
        verbose: Show a progress bar where there is a terminal.

    Attributes:
        classes_: The labels, sorted.
        posterior_: The fitted `Posterior` of the latents.
        likelihood_: The likelihood with its learnt parameters.
        inference_: The inference used.
        log_evidence_: `Evidence` (value and kind), or None.
        history_: Curves of the training.
        diagnostics_: Jitter added, solver residual and the like.

    Examples:
        >>> import numpy as np
        >>> x = np.linspace(-1, 1, 20)[:, None]
        >>> model = GPClassifier(random_state=0).fit(x, np.where(x[:, 0] > 0, "right", "left"))
        >>> str(model.predict([[0.9]])[0])
        'right'

    References:
        Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006, chapter 3.
    """

    _family = "gp"

    def __init__(
        self,
        kernel=None,
        inference=None,
        likelihood=None,
        *,
        class_weight=None,
        device="auto",
        dtype=None,
        random_state=None,
        verbose=False,
    ):
        self.kernel = kernel
        self.inference = inference
        self.likelihood = likelihood
        self.class_weight = class_weight
        self.device = device
        self.dtype = dtype
        self.random_state = random_state
        self.verbose = verbose

    def _structure(self) -> Any:
        return self.kernel
