"""Gaussian processes with scikit-learn habits."""

from typing import Any

import torch

from bayeskit import registry
from bayeskit.core.posterior import Posterior
from bayeskit.core.types import Inputs
from bayeskit.estimators.base import BayesEstimator
from bayeskit.estimators.tasks import ClassificationEstimator, RegressionEstimator


class _Processes(BayesEstimator):
    """What both tasks share: a prior made of a kernel, and outputs that may be correlated."""

    _family = "gp"
    kernel: Any
    num_latents: int | None

    def _structure(self) -> Any:
        return self.kernel

    def _prior(self, x: Inputs, generator: torch.Generator) -> Posterior:
        build = registry.prior("gp")
        return build(self.kernel, x, self.num_outputs_, self.num_latents, dtype=self.dtype, generator=generator)

    def _default_inference(self, num_rows: int) -> str:
        correlated = 1 if self.num_latents is None else self.num_outputs_
        return registry.default("gp", self._task, num_rows, self.likelihood, num_correlated=correlated)


class GPRegressor(_Processes, RegressionEstimator):
    """Gaussian process regression: y = f(x) + noise with f ~ GP(m, k).

    Inputs and targets are standardized inside (from the training rows alone); everything that comes out is in the
    target's own units.

    Args:
        kernel: Any `gpytorch.kernels.Kernel`; None for a scaled Matern-5/2 with one length scale a feature.
            Parameters with `requires_grad` are learnt, others are kept.
        inference: An inference such as `gp.SVGP(num_inducing=512)`, a registered name such as "sgpr", or None to
            choose by task, size and likelihood (exact up to 3,000 rows).
        likelihood: Law of the observations given f; None for Gaussian noise of learnt variance.
        num_latents: With several targets, the number q of independent functions that they are learnt mixtures of
            (the linear model of coregionalization; for a given kernel of batch shape () the intrinsic one); None for
            independent targets.
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

    def __init__(
        self,
        kernel=None,
        inference=None,
        likelihood=None,
        *,
        num_latents=None,
        device="auto",
        dtype=None,
        random_state=None,
        verbose=False,
    ):
        self.kernel = kernel
        self.inference = inference
        self.likelihood = likelihood
        self.num_latents = num_latents
        self.device = device
        self.dtype = dtype
        self.random_state = random_state
        self.verbose = verbose


class GPClassifier(_Processes, ClassificationEstimator):
    """Gaussian process classification: labels given one latent GP (two classes) or one a class (more).

    Args:
        kernel: Any `gpytorch.kernels.Kernel`; None for a scaled Matern-5/2 with one length scale a feature.
        inference: An inference such as `gp.SVGP(num_inducing=512)`, a registered name, or None for the default.
        likelihood: None for Bernoulli (two classes) or softmax (more).
        num_latents: The number q of independent functions that the latents of the classes are learnt mixtures of;
            None for one a class.
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

    def __init__(
        self,
        kernel=None,
        inference=None,
        likelihood=None,
        *,
        num_latents=None,
        class_weight=None,
        device="auto",
        dtype=None,
        random_state=None,
        verbose=False,
    ):
        self.kernel = kernel
        self.inference = inference
        self.likelihood = likelihood
        self.num_latents = num_latents
        self.class_weight = class_weight
        self.device = device
        self.dtype = dtype
        self.random_state = random_state
        self.verbose = verbose
