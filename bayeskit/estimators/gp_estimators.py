"""Gaussian-process estimators with scikit-learn's interface."""

from typing import TYPE_CHECKING, Any, Self

import torch
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from bayeskit import registry
from bayeskit.core.inference import Fit
from bayeskit.core.likelihood import Gaussian, Likelihood
from bayeskit.core.posterior import Posterior
from bayeskit.core.predictive import CategoricalPredictive, ContinuousPredictive
from bayeskit.core.types import Data, Inputs
from bayeskit.estimators.estimator import BayesEstimator, P
from bayeskit.estimators.noise_variance import noisy
from bayeskit.estimators.regression_classification import ClassificationEstimator, RegressionEstimator, _continues

APART_ROWS = 10_000
"""Largest n sqrt(k) for which k outputs have a kernel and a noise each: so many matrices still fit into memory."""

if TYPE_CHECKING:
    from pandas import DataFrame


class _Processes(BayesEstimator[P]):
    """The shared part of both tasks: a prior with a kernel, and outputs that may be correlated."""

    _family = "gp"
    kernel: Any
    num_latents: int | None

    def _structure(self) -> Any:
        return self.kernel

    def _columns_as_given(self, num_columns: int) -> list[int]:
        """The codes that the kernel reads, such as the task of an `IndexKernel`."""
        from gpytorch.kernels import Kernel

        from bayeskit.estimators.coded_columns import coded_columns

        return coded_columns(self.kernel, num_columns) if isinstance(self.kernel, Kernel) else []

    def _prior(self, x: Inputs, generator: torch.Generator) -> Posterior:
        build = registry.prior("gp")
        return build(self.kernel, x, self.num_outputs_, self.num_latents, dtype=self.dtype, generator=generator)

    def _default_inference(self, num_rows: int, stream: bool) -> str:
        correlated = 1 if self.num_latents is None else self.num_outputs_
        return registry.default("gp", self._task, num_rows, self.likelihood, num_correlated=correlated, stream=stream)

    def leave_one_out(self, X: Any, y: Any, sample_weight: Any = None, noise_variance: Any = None) -> P:
        """Leave-one-out predictive distributions of the training data, in closed form at fixed hyperparameters.

        `-leave_one_out(X, y).log_prob(y).mean()` compares models without a test set, and a data point with
        a very low `log_prob` is an outlier. See `gp.leave_one_out` for where this is exact.

        Args:
            X: (n, d) inputs, as given to `fit`.
            y: Targets or labels, as given to `fit`.
            sample_weight: (n,) as given to `fit`.
            noise_variance: As given to `fit`; each prediction includes the noise of its observation.
        """
        check_is_fitted(self)
        leave_one_out = registry.load("bayeskit.gp:leave_one_out")
        likelihood = noisy(self.likelihood_, noise_variance is not None)
        data = self._data(X, y, sample_weight, noise_variance)
        return self._deliver(leave_one_out(Fit(self.posterior_, likelihood), data))

    def coreset(self) -> "DataFrame":
        """The weighted observations that the posterior is conditioned on; see `coreset_table`."""
        return coreset_table(self)


class GPRegressor(_Processes[ContinuousPredictive], RegressionEstimator):
    """Gaussian process regression: y = f(x) + noise with f ~ GP(m, k).

    Inputs and targets are standardized inside (from the training data alone); all results are in the target's own
    units.

    Args:
        kernel: Any `gpytorch.kernels.Kernel`, shared by the outputs unless it has a batch shape (k,); None for a scaled
            Matern-5/2 with one length scale per feature, for each output.
            Parameters with `requires_grad` are learned, others are fixed.
        inference: An inference such as `gp.SVGP(num_inducing=512)`, a registered name such as "sgpr", or None to
            choose by task, size and likelihood (exact up to 3,000 rows).
        likelihood: Distribution of the observations given f; None for Gaussian noise of learned variance, one for each
            output (and, as the kernel, shared beyond 10,000 / sqrt(k) data points).
        mean: Mean function of the prior: "constant" (learned), "linear" (a learned trend), "zero", or any
            `gpytorch.means.Mean`, all in standardized units (zero is the average of the targets); None for a constant.
        num_latents: With several targets, the number q of independent functions that they are learned mixtures of
            (the linear model of coregionalization; for a given kernel of batch shape () the intrinsic one); None for
            independent targets.
        device: "auto" (a GPU if there is one), "cpu", "cuda" ...
        dtype: Floating type of the model; None for float64.
        random_state: Seed, `numpy.random.RandomState`, or None.
        verbose: Show a progress bar where there is a terminal.

    Attributes:
        posterior_: The fitted `Posterior`, in standardized units.
        likelihood_: The likelihood with its learned parameters, in standardized units.
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
        mean=None,
        num_latents=None,
        device="auto",
        dtype=None,
        random_state=None,
        verbose=False,
    ):
        self.kernel = kernel
        self.inference = inference
        self.likelihood = likelihood
        self.mean = mean
        self.num_latents = num_latents
        self.device = device
        self.dtype = dtype
        self.random_state = random_state
        self.verbose = verbose

    def _start(self, data: Data, generator: torch.Generator, known_noise: bool) -> tuple[Posterior, Likelihood]:
        prior, likelihood = super()._start(data, generator, known_noise)
        if self.likelihood is None and not known_noise and self._are_apart(len(data)):
            likelihood = Gaussian(likelihood.noise_variance.expand(self.num_outputs_)).to(self.device_)  # type: ignore
        return prior, likelihood

    def _prior(self, x: Inputs, generator: torch.Generator) -> Posterior:
        build, latents = registry.prior("gp"), self.num_latents
        settings = {"own_kernels": self._are_apart(len(x)), "mean": self.mean, "dtype": self.dtype}
        return build(self.kernel, x, self.num_outputs_, latents, **settings, generator=generator)

    def _are_apart(self, num_rows: int) -> bool:
        """Whether several outputs have kernels and noises of their own, which needs a matrix for each."""
        k = self.num_outputs_
        iterative = getattr(self.inference, "solver", None) == "cg"
        return 1 < k == len(self.target_scaler_.scale) and num_rows * k**0.5 <= APART_ROWS and not iterative

    def fit(
        self, X: Any, y: Any = None, sample_weight: Any = None, groups: Any = None, noise_variance: Any = None
    ) -> Self:
        """Infer the posterior from data.

        With `noise_variance` and no `likelihood` this is all the noise there is, and predictions are of the function;
        with `likelihood=Gaussian()` a noise of one variance is learned on top, and predictions include it.

        Args:
            X: (n, d) table: array, DataFrame or tensor, or a `torch.utils.data.Dataset` of `(x, y)` pairs.
            y: (n,) or (n, k) targets; None when `X` is a `Dataset`. With several outputs, NaN is an entry that was not
                observed; with a single one it is an error.
            sample_weight: (n,) multipliers of the log-likelihood terms.
            groups: Without effect: no data are held out.
            noise_variance: Known variance of the noise of each observation, in the squared unit of y: (n,) or (n, k),
                or one number for all; zero for exact observations.

        Returns:
            The estimator itself, with `posterior_`, `likelihood_`, `inference_`, `log_evidence_`, `history_` and
            `diagnostics_`.
        """
        return self._fit(X, y, sample_weight, groups=groups, noise_variance=noise_variance)

    @available_if(_continues)
    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None, noise_variance: Any = None) -> Self:
        """Continue from the previous posterior; scales are those of the first call.

        With `inference=None` a Gaussian process continues by `gp.MemoryDualGP`, at a constant cost per call.

        Args:
            X: (n, d) further inputs.
            y: (n,) or (n, k) further targets, NaN as in `fit`; an output may be missing in all of them.
            sample_weight: (n,) multipliers of the log-likelihood terms.
            noise_variance: As in `fit`.
        """
        first = not hasattr(self, "posterior_")
        return self._fit(X, y, sample_weight, noise_variance=noise_variance, first=first, stream=True)


class GPClassifier(_Processes[CategoricalPredictive], ClassificationEstimator):
    """Gaussian process classification: labels given one latent GP (two classes) or one per class (more).

    Args:
        kernel: Any `gpytorch.kernels.Kernel`; None for a scaled Matern-5/2 with one length scale per feature.
        inference: An inference such as `gp.SVGP(num_inducing=512)`, a registered name, or None for the default.
        likelihood: None for Bernoulli (two classes) or softmax (more).
        num_latents: The number q of independent functions that the latents of the classes are learned mixtures of;
            None for one per class.
        class_weight: None, "balanced" or a dict from label to weight.
        device: "auto" (a GPU if there is one), "cpu", "cuda" ...
        dtype: Floating type of the model; None for float64.
        random_state: Seed, `numpy.random.RandomState`, or None.
        verbose: Show a progress bar where there is a terminal.

    Attributes:
        classes_: The labels, sorted.
        posterior_: The fitted `Posterior` of the latents.
        likelihood_: The likelihood with its learned parameters.
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


def coreset_table(estimator: Any) -> "DataFrame":
    """The coreset of a fitted GP estimator, in original units.

    For `gp.CoresetGP` these are the learned pseudo observations, for `gp.Exact` the data themselves at their weights.

    Args:
        estimator: A fitted `GPRegressor` or `GPClassifier`.

    Returns:
        One row per point: its inputs (named as in `fit`, else x0, x1, ...), its outputs ("y", or "y0", "y1", ...; for
        other likelihoods than Gaussian noise those of the latents, "latent0", ...), and its "weight", the number of
        observations it counts as (for other likelihoods its "precision", in the units of the outputs); one column
        per output where they differ. Sorted by their sum, largest first.

    Raises:
        ValueError: The posterior is not a GP conditioned on noisy observations.

    Examples:
        >>> import numpy as np
        >>> model = GPRegressor(inference="exact").fit([[0.0], [1.0], [2.0]], [5.0, 6.0, 7.0])
        >>> model.coreset().round(6).sort_values("x0")["y"].tolist()
        [5.0, 6.0, 7.0]
    """
    import pandas as pd

    check_is_fitted(estimator)
    found = registry.load("bayeskit.gp.variational.pseudo_data:pseudo_observations")(estimator.posterior_)
    if found is None:
        raise ValueError(
            f"{type(estimator.inference_).__name__} has no coreset here: its posterior, a "
            f"{type(estimator.posterior_).__name__}, is not the prior conditioned on noisy observations (x, y). Use "
            "`gp.CoresetGP` (or `gp.Exact`, whose coreset is the data), for independent outputs"
        )
    z, y, noise = (t.detach().double().cpu() for t in found)
    likelihood, scaler = estimator.likelihood_, estimator.input_scaler_
    z = z if scaler is None else z * scaler.scale + scaler.shift
    names = [*getattr(estimator, "feature_names_in_", [f"x{j}" for j in range(z.shape[-1])])]
    if likelihood.target == "continuous":
        shift, scale = (t.detach().cpu() for t in estimator._latent_units())
        y, noise = shift + scale * y, scale.square() * noise
    variance = likelihood.noise_variance
    gaussian = variance is not None
    one = variance.detach().cpu() * estimator.target_scaler_.scale.square() if gaussian else 1.0
    weights = one / noise
    if torch.allclose(weights, weights[:, :1], rtol=1e-10, atol=0.0):
        weights = weights[:, :1]
    for values, name in ((y, "y" if gaussian else "latent"), (weights, "weight" if gaussian else "precision")):
        names += [name] if values.shape[-1] == 1 else [f"{name}{j}" for j in range(values.shape[-1])]
    order = weights.sum(-1).argsort(descending=True, stable=True)
    return pd.DataFrame(torch.cat([z, y, weights], dim=-1)[order].numpy(), columns=names)
