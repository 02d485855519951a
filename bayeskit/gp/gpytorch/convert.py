"""Trained gpytorch models as posteriors of this library."""

from dataclasses import replace
from typing import Any

import gpytorch
import torch
from gpytorch.kernels import InducingPointKernel
from gpytorch.likelihoods import Likelihood as GPyTorchLikelihood
from gpytorch.likelihoods import MultitaskGaussianLikelihood
from gpytorch.models import ApproximateGP, ExactGP
from torch import Tensor, nn

from bayeskit.core.likelihood import Gaussian
from bayeskit.core.operators import factorize
from bayeskit.core.posterior import Posterior
from bayeskit.core.types import Data
from bayeskit.gp.gpytorch.model_conversion import (
    GPyTorchModel,
    check_convertible,
    copied,
    exact_algebra,
    fits,
    has_moving_grid,
    in_double,
    tried,
)
from bayeskit.gp.gpytorch.prior_conversion import prior_of
from bayeskit.gp.gpytorch.strategy_conversion import posterior_of
from bayeskit.gp.gpytorch.transforms import as_stated, has_transforms, in_units
from bayeskit.gp.kernels.evaluate import gram, gram_diagonal
from bayeskit.gp.model.hyperparameters import Model
from bayeskit.gp.model.multitask import StackedProcess, stacked
from bayeskit.gp.process.gaussian_process import GaussianProcess
from bayeskit.gp.variational.collapsed_bound import collapsed


def from_gpytorch(model: nn.Module, likelihood: nn.Module | None = None) -> Posterior:
    """A trained gpytorch model as a posterior; the model is copied and stays as it is.

    - `ExactGP` of one output, or of a batch of independent ones, and `ApproximateGP` with a variational strategy over
      inducing values (whitened, unwhitened, contour integral, large batch, orthogonally decoupled, any variational
      distribution, independent tasks, linear coregionalization) become a `GaussianProcess` in
      float64, with function samples, which can be the prior for more data.
    - `ExactGP` with a multitask kernel, and strategies with inducing points of their own for each function, become a
      `StackedProcess`: the same, for `gp.Exact`.
    - Any other module with parts of gpytorch whose call returns a `MultivariateNormal` becomes a `GPyTorchModel`, which
      evaluates the module and has no function samples.
    - BoTorch models are converted with their transforms: inputs and values are in the units of the data, as in
      `model.posterior`. A transform of outcomes that is not a shift and a scale is refused by its name.

    Its numbers are those of gpytorch without conjugate gradients, and without the jitter (1e-6 in float64, 1e-4 in
    float32) that gpytorch's variational strategies add to the predicted variances.

    Args:
        model: A trained model.
        likelihood: The likelihood it was trained with: an `ExactGP` takes its noise from it, or from
            `model.likelihood` if None. `gp.likelihood_from_gpytorch` turns it into one of this library.

    Returns:
        The posterior of the function given the training data of the model.

    Raises:
        TypeError: `model` is not a gpytorch model, or `likelihood` not a gpytorch likelihood.
        ValueError: The model has not been trained, or there is no joint distribution of its function at inputs (n, d):
            it returns samples, takes several inputs, is a list of models, or transforms its outcomes otherwise than by
            a shift and a scale.

    Examples:
        >>> import gpytorch
        >>> class Model(ExactGP):
        ...     def __init__(self, x, y, likelihood):
        ...         super().__init__(x, y, likelihood)
        ...         self.mean_module, self.covar_module = gpytorch.means.ZeroMean(), gpytorch.kernels.RBFKernel()
        ...     def forward(self, x):
        ...         return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))
        >>> likelihood, x = gpytorch.likelihoods.GaussianLikelihood(), torch.linspace(0, 1, 9)
        >>> posterior = from_gpytorch(Model(x, x.sin(), likelihood), likelihood)
        >>> type(posterior).__name__, posterior(x.unsqueeze(-1)).mean.shape
        ('GaussianProcess', torch.Size([9, 1]))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a gpytorch model; got {type(model).__name__}")
    if isinstance(model, GPyTorchLikelihood):
        raise TypeError(
            f"`model` must be a gpytorch model; got the likelihood {type(model).__name__}: call "
            "`from_gpytorch(model, likelihood)`"
        )
    if not any(isinstance(part, gpytorch.Module) for part in model.modules()):
        raise TypeError(
            f"`model` must be a gpytorch model, such as an ExactGP or an ApproximateGP; got {type(model).__name__}"
        )
    if likelihood is not None and not isinstance(likelihood, GPyTorchLikelihood):
        raise TypeError(f"`likelihood` must be a gpytorch likelihood; got {type(likelihood).__name__}")
    check_convertible(model)
    found: Posterior | None = None
    with exact_algebra(), torch.no_grad():
        plain = in_double(copied(model))
        if has_moving_grid(plain):
            found = None
        elif isinstance(plain, ExactGP) and type(plain).__call__ is ExactGP.__call__:
            noise = copied(likelihood).double() if likelihood is not None else plain.likelihood
            found = _exact(plain, noise)
        elif isinstance(plain, ApproximateGP) and type(plain).__call__ is ApproximateGP.__call__:
            found = posterior_of(plain)
    if found is None or not fits(found, plain):
        found = tried(GPyTorchModel(copied(model)), model)
    found = in_units(found, plain) if has_transforms(plain) else found
    with exact_algebra(), torch.no_grad():
        return as_stated(found, plain)


def _exact(model: Any, likelihood: Any) -> Posterior | None:
    """The prior of an ExactGP given its training data; None where it is not of a form known here."""
    x = _rows(model.train_inputs)
    prior = None if x is None else prior_of(model, x)
    if x is None or prior is None:
        return None
    y = model.train_targets
    if not torch.isfinite(y).all():
        raise ValueError("`model.train_targets` must be finite; leave out the rows that are not, by `set_train_data`")
    noise = _noise(likelihood, y.shape, x)
    if noise is None:
        return None
    if isinstance(prior, StackedProcess):
        rows = stacked(x, prior.num_outputs)
        return replace(prior, process=_given(prior.process, rows, y.reshape(-1, 1), noise.reshape(-1)))
    if y.dim() == 2 and isinstance(likelihood, MultitaskGaussianLikelihood):
        noise = noise.reshape(y.shape).mT  # a multitask distribution of independent outputs, point-major
    elif y.dim() == 2:
        y = y.mT
    y = y.reshape(len(x), -1)
    if y.shape[-1] != prior.num_outputs:
        return None
    sparse = any(isinstance(part, InducingPointKernel) for part in prior.kernel.modules())
    return (_sparse if sparse else _given)(prior, x, y, noise)


def _rows(inputs: tuple[Tensor, ...] | None) -> Tensor | None:
    """The training inputs (n, d), the same for all models of a batch; None for several arguments, or for none."""
    if inputs is None or len(inputs) > 1:
        return None
    given = next(iter(inputs))
    x = given[0] if given.dim() == 3 else given
    return x if x.dim() == 2 and torch.equal(x.expand_as(given), given) else None


def _noise(likelihood: Any, shape: torch.Size, x: Tensor) -> Tensor | None:
    """Noise variances of the training data: (n,), (k, n), or (n*k,) of tasks; None where tasks share their noise."""
    if isinstance(likelihood, MultitaskGaussianLikelihood):
        if likelihood.has_task_noise and likelihood.rank > 0:
            return None
        covariance = likelihood._shaped_noise_covar(shape, add_noise=likelihood.has_global_noise)
    else:
        covariance: Any = likelihood._shaped_noise_covar(shape, [x])
    return covariance.diagonal(dim1=-1, dim2=-2)


def _given(prior: GaussianProcess, x: Tensor, y: Tensor, noise: Tensor) -> GaussianProcess:
    """The process given targets (n, k) with noise variances (n,) or (k, n) (Rasmussen and Williams, Algorithm 2.1)."""
    covariance = gram(prior.kernel, x, x)
    factor = factorize(covariance + torch.diag_embed(noise), name="k(X, X) + noise")
    residual = y.mT - prior.mean_rows(x)  # (k, n)
    if factor.tril.dim() == 2:
        whitened = factor.half_solve(residual.mT).mT
    else:
        whitened = factor.half_solve(residual.unsqueeze(-1)).squeeze(-1)
    noise = noise + factor.jitter * covariance.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
    return prior.conditioned(x, factor.tril, whitened, noise=noise)


def _sparse(prior: GaussianProcess, x: Tensor, y: Tensor, noise: Tensor) -> GaussianProcess | None:
    """The posterior of an `InducingPointKernel`; None where it is inside another kernel.

    gpytorch trains it on the collapsed bound and predicts with what the inducing points leave unexplained at each row,
    k(x_i, x_i) - |A_i|^2, added to the noise (its `sgpr_diagonal_correction`): a row of weight s / (s + that).
    """
    kernel, variances = prior.kernel, noise.flatten()
    if not isinstance(kernel, InducingPointKernel) or bool((variances != variances[0]).any()):
        return None
    model = Model(prior.mean, kernel.base_kernel, Gaussian(variances[:1], learn=False), prior.num_outputs)
    z: Any = kernel.inducing_points
    tril = factorize(gram(model.kernel, z, z), name="K_zz").tril
    projection = torch.linalg.solve_triangular(tril, gram(model.kernel, z, x), upper=False)
    left = (gram_diagonal(model.kernel, x) - projection.square().sum(-2)).clamp_min(0)
    weights = variances[0] / (variances[0] + left)
    return collapsed(model, z, Data(x, y, weights)).posterior(model.process(), z)
