"""A network with uncertain weights as a distribution over functions: (network, weights, push-forward).

    weights: WeightPosterior  --push-forward-->  FunctionValues at x

`Linearize` replaces the network by its first-order expansion about the weights' mean, which maps a Gaussian over
weights to a Gaussian over functions, exactly. `MonteCarlo` runs the network itself at draws of the weights.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from linear_operator.operators import BlockInterleavedLinearOperator, DiagLinearOperator, RootLinearOperator
from torch import Tensor, nn
from torch.func import jvp, vmap

from bayeskit.bnn.curvature.ggn import kronecker_order, with_one
from bayeskit.bnn.networks.functional import at_least_single, evaluate, flatten, frozen, parameters
from bayeskit.bnn.networks.last_layer import head_of, local_function
from bayeskit.bnn.networks.layers import check_frozen, is_plain
from bayeskit.bnn.pushforward.linearized_covariance import in_function_space
from bayeskit.bnn.weights.layer_block_covariance import rows_of
from bayeskit.bnn.weights.weight_posterior import GaussianWeights, PointWeights, SampledWeights, WeightPosterior, named
from bayeskit.core import checks, operators
from bayeskit.core.inputs import Batch
from bayeskit.core.operators.chunking import fits
from bayeskit.core.posterior import Functions, FunctionValues, GaussianValues, Posterior, SampledValues
from bayeskit.core.types import Inputs, Params

DEFAULT_DRAWS = 32
"""Draws of a Monte Carlo push-forward unless the weights are stored draws: means err by a sixth of the deviation."""


class PushForward(ABC):
    """A rule from a distribution over weights to one over functions.

    Invariant: the functions of `sample_functions`, evaluated at x, are distributed as `values(network, weights, x)`.
    """

    @abstractmethod
    def values(self, network: nn.Module, weights: WeightPosterior, x: Inputs) -> FunctionValues:
        """Joint distribution of the outputs at `x`."""

    @abstractmethod
    def sample_functions(
        self, network: nn.Module, weights: WeightPosterior, num_samples: int, *, generator: torch.Generator
    ) -> Functions:
        """S fixed functions of inputs, with values (s, n, k)."""


@dataclass(frozen=True, eq=False)
class BayesNet(Posterior):
    """A network with uncertain weights, as a distribution over functions.

    Args:
        network: The module, in evaluation mode; parameters that `weights` does not name keep its values.
        weights: Distribution of the named parameters.
        push_forward: `Linearize()` or `MonteCarlo()`.

    >>> prior = gaussian_prior(nn.Linear(3, 2))
    >>> prior(torch.zeros(5, 3)).mean.shape
    torch.Size([5, 2])
    """

    network: nn.Module
    weights: WeightPosterior
    push_forward: PushForward

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", named(self.weights, self.network))

    def __call__(self, x: Inputs) -> FunctionValues:
        """Joint distribution of the network's outputs at inputs (n, *input_shape), or at a dictionary of them."""
        return self.push_forward.values(self.network, self.weights, x)

    def sample_functions(self, num_samples: int, *, generator: torch.Generator) -> Functions:
        """The functions of s draws of the weights: `f(x)` is (s, n, k)."""
        return self.push_forward.sample_functions(self.network, self.weights, num_samples, generator=generator)


@dataclass(frozen=True)
class Linearize(PushForward):
    """`f(x; w) = f(x; m) + J(x) (w - m)`, J the derivative at the mean m: Gaussian in, Gaussian out.

    Values have mean `f(x; m)` and the lazy covariance `J S J'`. If the weights are those of the last layer, the rest
    of the network runs once and J is the features; then nothing is approximated.

    References:
        Immer, Korzepa, Bauer. Improving predictions of Bayesian neural nets via local linearization. AISTATS 2021,
        equation 7.
    """

    def values(self, network: nn.Module, weights: WeightPosterior, x: Inputs) -> GaussianValues:
        """Gaussian values with covariance `J S J'`, never formed unless asked."""
        return linearize(network, weights, x)

    def sample_functions(
        self, network: nn.Module, weights: WeightPosterior, num_samples: int, *, generator: torch.Generator
    ) -> Functions:
        """Linearized functions of s draws of the weights."""
        directions = flatten(weights.sample(num_samples, generator=generator), weights.mean) - weights.flat_mean
        return _LinearFunctions(frozen(network), weights.mean, directions)


@dataclass(frozen=True)
class MonteCarlo(PushForward):
    """The network itself at draws of the weights.

    Stored draws are used as they are. Other distributions are sampled by a generator that starts at `seed` every time,
    so that every call uses the same draws and prediction is a function of the inputs alone.

    Args:
        num_samples: Number s of draws; None for all the stored ones, or 32.
        seed: Fixes the draws.
    """

    num_samples: int | None = None
    seed: int = 0

    def values(self, network: nn.Module, weights: WeightPosterior, x: Inputs) -> SampledValues:
        """The network's outputs at each draw, (s, n, k)."""
        return monte_carlo(network, weights, x, num_samples=self.num_samples, generator=_start(self.seed, weights))

    def sample_functions(
        self, network: nn.Module, weights: WeightPosterior, num_samples: int, *, generator: torch.Generator
    ) -> Functions:
        """The network at s draws, picked with replacement from those that `values` uses."""
        draws = _draws(weights, self.num_samples, _start(self.seed, weights))
        count = len(next(iter(draws.values())))
        index = torch.randint(count, (num_samples,), generator=generator, device=generator.device)
        return _NetworkFunctions(
            frozen(network), {name: value[index.to(value.device)] for name, value in draws.items()}
        )


def linearize(network: nn.Module, weights: WeightPosterior, x: Inputs) -> GaussianValues:
    """A network linearized about the mean of its weights, a Gaussian with mean `f(x; m)` and covariance `J S J'`.

    Args:
        network: Any module with outputs (n, k).
        weights: Distribution of its parameters, or of some of them.
        x: Inputs (n, *input_shape).

    Returns:
        Values with mean (n, k) and covariance operator (n*k, n*k).

    Raises:
        ValueError: The network cannot be linearized at one input on its own (BatchNorm without running statistics).

    >>> net = nn.Linear(3, 1)
    >>> linearize(net, gaussian_prior(net).weights, torch.ones(4, 3)).covariance.shape
    torch.Size([4, 4])
    """
    weights, network = named(weights, network), frozen(network)
    check_frozen(network)
    function, inputs = local_function(network, weights.mean, x)
    center = weights.flat_mean
    mean = torch.cat([function(center, rows) for rows in operators.pieces(inputs, 64 * inputs.shape[1:].numel())])
    if isinstance(weights, PointWeights):
        return GaussianValues(mean, DiagLinearOperator(torch.zeros_like(mean).flatten()))
    if is_plain(function.network, nn.Linear) and isinstance(inputs, Tensor) and inputs.ndim == 2:
        index = kronecker_order(function)
        rows = rows_of(weights.covariance, index)
        if rows is not None and fits(index.numel() * len(inputs)):
            columns = with_one(inputs, index.shape[1]).to(rows.dtype).mT  # (d, n), the Jacobian of every output
            root = operators.half_product(rows, columns.expand(len(index), -1, -1)).mT
            return GaussianValues(mean, BlockInterleavedLinearOperator(RootLinearOperator(root)))
    values = operators.Linearized(center, weights.covariance, inputs, function=function)
    return GaussianValues(mean, in_function_space(values))


def monte_carlo(
    network: nn.Module,
    weights: WeightPosterior,
    x: Inputs,
    *,
    num_samples: int | None = None,
    generator: torch.Generator | None = None,
) -> SampledValues:
    """A network's outputs at s draws of its weights.

    Args:
        network: Any module with outputs (n, k); evaluated without dropout and with frozen statistics.
        weights: Distribution of its parameters, or of some of them.
        x: Inputs (n, *input_shape).
        num_samples: Number s of draws; None for all the stored ones of `SampledWeights`, or 32.
        generator: Source of the draws; None starts one at seed 0.

    Returns:
        Values with draws (s, n, k).

    >>> net = nn.Linear(3, 1)
    >>> monte_carlo(net, gaussian_prior(net).weights, torch.ones(4, 3), num_samples=8).draws.shape
    torch.Size([8, 4, 1])
    """
    if num_samples is not None:
        checks.positive(num_samples, name="num_samples", integer=True)
    weights = named(weights, network)
    draws = _draws(weights, num_samples, generator or _start(0, weights))
    return SampledValues(evaluate(frozen(network), draws, x))


def exact_or_monte_carlo(
    network: nn.Module, weights: GaussianWeights, x: Inputs, *, num_samples: int | None = None
) -> BayesNet:
    """A `BayesNet` in closed form if the network is linear in these weights, else by Monte Carlo.

    Args:
        network: Any module.
        weights: Gaussian; in closed form if they belong to a last layer that is an `nn.Linear`.
        x: Some inputs, by which the last layer is found.
        num_samples: Draws of the weights; None for 32.
    """
    head = head_of(network, weights.mean, x)
    linear = head is not None and isinstance(head.layer, nn.Linear)
    return BayesNet(network, weights, Linearize() if linear else MonteCarlo(num_samples))


def gaussian_prior(network: nn.Module, *, precision: float = 1.0) -> BayesNet:
    """A prior of independent Gaussians: `W ~ N(0, 1 / (precision * fan_in))`, biases `N(0, 1 / precision)`.

    The scale by fan-in keeps the spread of the outputs the same at any width. One-dimensional weights of
    normalization layers are centered at the value they start from (ones). Parameters that do not require a gradient
    are left as they are.

    Args:
        network: Any module; it is copied.
        precision: Overall precision; a method may learn a factor on it (`Laplace(prior_precision="evidence")`).

    Returns:
        A prior over the network's functions, pushed forward by Monte Carlo.

    Raises:
        ValueError: Nothing in the network can be learnt.

    References:
        Neal. Bayesian learning for neural networks. 1996, section 2.1.

    >>> gaussian_prior(nn.Linear(4, 1)).weights.covariance.diagonal()
    tensor([0.2500, 0.2500, 0.2500, 0.2500, 1.0000])
    """
    checks.positive(precision, name="precision")
    mean, variances = {}, []
    for name, value in parameters(network).items():
        scales = value.ndim < 2 and name.rpartition(".")[2] == "weight"  # of a normalization layer
        mean[name] = torch.ones_like(value) if scales else torch.zeros_like(value)
        fan_in = value[0].numel() if value.ndim >= 2 else 1
        variance = torch.full_like(value, 1 / (precision * fan_in), dtype=at_least_single(value.dtype))
        variances.append(variance.flatten())
    if not mean:
        raise ValueError("The network has no parameter that requires a gradient, so there is nothing to learn.")
    weights = GaussianWeights(mean, DiagLinearOperator(torch.cat(variances)), scale_known=False)
    return BayesNet(frozen(network), weights, MonteCarlo())


@dataclass(frozen=True, eq=False)
class _LinearFunctions:
    """`f(x; m) + J(x) d_s` for fixed directions d (s, p)."""

    network: nn.Module
    center: Params
    directions: Tensor

    def __call__(self, x: Inputs) -> Tensor:
        function, inputs = local_function(self.network, self.center, x)
        mean, pieces = flatten(self.center, self.center), []
        for rows in operators.pieces(inputs, 64 * len(self.directions) * inputs.shape[1:].numel()):

            def along(direction: Tensor, rows: Batch = rows) -> Tensor:
                values, slopes, *_ = jvp(lambda w: function(w, rows), (mean,), (direction,))
                return values + slopes

            pieces.append(vmap(along)(self.directions))
        return torch.cat(pieces, dim=1)


@dataclass(frozen=True, eq=False)
class _NetworkFunctions:
    """The network at fixed draws of its parameters."""

    network: nn.Module
    draws: Params

    def __call__(self, x: Inputs) -> Tensor:
        return evaluate(self.network, self.draws, x)


def _draws(weights: WeightPosterior, num_samples: int | None, generator: torch.Generator) -> Params:
    if isinstance(weights, PointWeights):
        return weights.sample(1, generator=generator)
    if not isinstance(weights, SampledWeights):
        return weights.sample(num_samples or DEFAULT_DRAWS, generator=generator)
    stored = {**weights.draws, **weights.buffers}
    if num_samples is None:
        return stored
    index = weights.choose(num_samples, generator=generator)
    return {name: value[index.to(value.device)] for name, value in stored.items()}


def _start(seed: int, weights: WeightPosterior) -> torch.Generator:
    device = next(iter(weights.mean.values())).device
    return torch.Generator(device).manual_seed(seed)
