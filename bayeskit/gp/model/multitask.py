"""Exact inference for correlated outputs, as one function of an input and an output index, h([x, j])."""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from bayeskit.core import checks
from bayeskit.core.inference import Fit, Inference
from bayeskit.core.inputs import one_tensor
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.likelihood.indexed import Indexed, base_of
from bayeskit.core.posterior import Functions, GaussianValues, Posterior
from bayeskit.core.types import Data, Inputs
from bayeskit.gp.kernels.coregionalization import OutputKernel, OutputMean
from bayeskit.gp.model.hyperparameters import learnable
from bayeskit.gp.process.gaussian_process import GaussianProcess


@dataclass(frozen=True, eq=False)
class StackedProcess(Posterior):
    """k correlated outputs given as one function of input and output, f_j(x) = h([x, j]).

    The exact posterior of a prior with a `mixing`: the data couple the latent functions, so the outputs are no longer
    mixtures of independent functions. It can be the prior of further exact inference.

    Args:
        process: h, a process of one output over inputs (n, d + 1).
        num_outputs: k.

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> from gpytorch.means import ZeroMean
        >>> kernel = OutputKernel(RBFKernel(), torch.tensor([[1.0], [2.0]]))
        >>> values = StackedProcess(GaussianProcess(ZeroMean(), kernel), num_outputs=2)(torch.zeros(1, 1))
        >>> values.output_covariance().tolist()
        [[[1.0, 2.0], [2.0, 4.0]]]
    """

    process: GaussianProcess
    num_outputs: int

    def __call__(self, x: Inputs) -> GaussianValues:
        """Joint distribution of the k outputs at inputs (n, d)."""
        values = self.process(stacked(one_tensor(x), self.num_outputs))
        return GaussianValues(values.mean.reshape(-1, self.num_outputs), values.covariance)

    def sample_functions(self, num_samples: int, *, generator: torch.Generator) -> Functions:
        """S fixed functions, from inputs (n, d) to values (s, n, k); see `GaussianProcess`."""
        functions = self.process.sample_functions(num_samples, generator=generator)
        return partial(_unstacked, functions, self.num_outputs)


def stacked(x: Tensor, num_outputs: int) -> Tensor:
    """Rows [x_i, j], point-major, (n*k, d + 1), in float64.

    Examples:
        >>> stacked(torch.tensor([[5.0], [6.0]]), 2).tolist()
        [[5.0, 0.0], [5.0, 1.0], [6.0, 0.0], [6.0, 1.0]]
    """
    x = x.double()
    output = torch.arange(num_outputs, dtype=x.dtype, device=x.device).repeat(len(x)).unsqueeze(-1)
    return torch.cat([x.repeat_interleave(num_outputs, dim=0), output], dim=-1)


def infer_stacked(
    inference: Inference,
    prior: GaussianProcess | StackedProcess,
    likelihood: Likelihood,
    data: Data,
    *,
    learn: bool,
    generator: torch.Generator,
) -> Fit:
    """Inference for correlated outputs by an inference for a single output, on inputs [x, j]; NaN in y is missing.

    Args:
        inference: An inference for processes of one output.
        prior: A process with a `mixing`, or the posterior of an earlier call.
        likelihood: A conjugate likelihood: Gaussian noise with one variance for all outputs or one each, `KnownNoise`.
        data: Inputs (n, d), targets (n, k) with NaN where missing, weights or None.
        learn: Whether hyperparameters are learned.
        generator: Source of randomness.

    Returns:
        The fit, its posterior a `StackedProcess`; the prior itself where no target is observed.
    """
    x, y = checks.tensor(one_tensor(data.x), name="data.x").double(), data.y.double()
    if x.dim() != 2 or y.dim() != 2:
        raise ValueError(
            f"correlated outputs take inputs (n, d) and targets (n, k); got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if likelihood.num_latents(y) != prior.num_outputs:
        raise ValueError(
            f"the prior has `num_outputs={prior.num_outputs}`; got targets of {likelihood.num_latents(y)} outputs"
        )
    if not likelihood.is_conjugate:
        raise TypeError(
            "exact inference for correlated outputs handles Gaussian noise; got "
            f"{type(likelihood).__name__}: use `gp.SVGP`"
        )
    shared = likelihood.noise_variance is not None and likelihood.noise_variance.numel() == 1
    indexed = Indexed(likelihood, y)
    by_entry, targets = (likelihood, y) if shared else (indexed, indexed.positions)
    targets = targets.reshape(-1, 1)
    observed = ~targets.isnan().flatten()
    weights = None if data.weights is None else data.weights.repeat_interleave(prior.num_outputs)[observed]
    rows = Data(stacked(x, prior.num_outputs)[observed], targets[observed], weights)
    single = prior.process if isinstance(prior, StackedProcess) else _single(prior, likelihood, data, learn=learn)
    fit = inference.infer(single, by_entry, rows, generator=generator)
    fit = replace(fit, likelihood=base_of(fit.likelihood))
    if not len(rows):
        return replace(fit, posterior=prior)
    assert isinstance(fit.posterior, GaussianProcess)
    return replace(fit, posterior=StackedProcess(fit.posterior, prior.num_outputs))


def _single(prior: GaussianProcess, likelihood: Likelihood, data: Data, *, learn: bool) -> GaussianProcess:
    """The process of one output over inputs [x, j], its constant mean initialized with the averages of the targets."""
    model = learnable(prior, likelihood, learn=learn)
    assert model.mixing is not None
    if model.parameters and len(data):
        y = likelihood.observations(data.y.double())[0]
        averages = y.nanmean(0).nan_to_num()  # of the observed targets of each output
        model.center(torch.where(y.isnan(), averages, y), data.weights)
    kernel = OutputKernel(model.kernel, model.mixing)
    return GaussianProcess(OutputMean(model.mean, kernel.mixing), kernel)


def _unstacked(functions: Functions, num_outputs: int, x: Tensor) -> Tensor:
    """Functions of [x, j] as functions of x with k outputs, (s, n, k)."""
    values = functions(stacked(x, num_outputs))  # (s, n*k, 1)
    return values.reshape(len(values), -1, num_outputs)
