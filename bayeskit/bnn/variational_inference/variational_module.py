"""A network whose weights are independent Gaussians, as a module to train in any loop."""

from typing import Any

import torch
from linear_operator.operators import DiagLinearOperator
from torch import Tensor, nn

from bayeskit.bnn.networks.functional import flatten, frozen, hollow, parameters, with_parameters
from bayeskit.bnn.pushforward.bayes_net import BayesNet, MonteCarlo, exact_or_monte_carlo, gaussian_prior
from bayeskit.bnn.variational_inference.kl import Divergence, MeanFieldPrior
from bayeskit.bnn.variational_inference.sparse_pushforward import SparseMonteCarlo
from bayeskit.bnn.variational_inference.sparse_support import Support, random_support
from bayeskit.bnn.variational_inference.sparse_weights import SparseWeights
from bayeskit.bnn.variational_inference.stochastic_forward import Passes
from bayeskit.bnn.weights.weight_posterior import GaussianWeights
from bayeskit.core import checks, generators
from bayeskit.core.inputs import Batch
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.types import Data, Params

ESTIMATORS = ("weight", "local", "flipout")

INITIAL_SCALE = 0.003
"""Initial standard deviations, in units of the prior's: so small that training starts like that of a point estimate."""


class Variational(nn.Module):
    """`q(w) = prod_j N(mean_j, scale_j^2)` over a network's weights; calling it runs the network at random weights.

    `estimator` says what is drawn; each is unbiased for the same objective:

    - "weight": the weights, once for all inputs of a call;
    - "local": the outputs of each linear and convolution layer, independently for each input (the local
      reparameterization), which is exact for each output and takes two products for a layer;
    - "flipout": the weights once, with random signs for each input, in two products for a layer.

    With the last two, weights of other layers (normalization, embeddings, attention) are drawn as with the first. The
    network runs in its current mode: `train()` it for dropout and the statistics of BatchNorm. Weights outside the
    support are zero.

    Args:
        network: Copied; parameters that the prior does not name are frozen.
        prior: Distribution of p named weights.
        estimator: "weight", "local" or "flipout".
        initial_scale: Initial standard deviations, in units of the prior's; with a posterior of earlier data as prior,
            its own. Means start at the network's values, divided by the root of a tensor's density, or at those of a
            sparse prior.
        support: The active weights, s of p; None for all.

    Attributes:
        mean: (s,), trained.
        log_scale: Logarithms of the standard deviations, (s,), trained.
        factor: Multiplies the precision of a prior whose scale is not known.
        gradients: If a dictionary, backward passes add to it the gradients of all the weights of each sparse tensor,
            active or not; else None.

    References:
        Graves. Practical variational inference for neural networks. NeurIPS 2011.
        Blundell, Cornebise, Kavukcuoglu, Wierstra. Weight uncertainty in neural networks. ICML 2015, section 3.
    """

    def __init__(
        self,
        network: nn.Module,
        prior: MeanFieldPrior,
        *,
        estimator: str = "local",
        initial_scale: float = INITIAL_SCALE,
        support: Support | None = None,
    ):
        super().__init__()
        checks.choice(estimator, name="estimator", options=ESTIMATORS)
        checks.positive(initial_scale, name="initial_scale")
        self.estimator, self.prior, self.factor = estimator, prior, 1.0
        like = parameters(network, prior.mean)
        self.support = Support(like) if support is None else support
        self.network = hollow(network, like)
        divergence = Divergence.build(prior, self.support)
        self._divergence = (self.support.version, self.factor, divergence)
        start = self.support.take(flatten(like, like))
        start = start / self.support.spread(self.support.densities).to(start).sqrt()
        self.mean = nn.Parameter(prior.values.clone() if isinstance(prior, SparseWeights) else start)
        unit = 1.0 if prior.scale_known else initial_scale
        self.log_scale = nn.Parameter((unit * divergence.scales(prior)).log())
        self._passes: Passes | None = None
        self.gradients: Params | None = None
        self.register_state_dict_post_hook(_leave_out)
        self.register_load_state_dict_post_hook(_not_missed)

    def forward(self, x: Batch, *, num_samples: int = 1, generator: torch.Generator) -> Tensor:
        """Outputs at inputs (n, *input_shape) under random weights, (num_samples, n, k)."""
        run, scale = self._found(x), self.log_scale.exp()
        draws = [run(self.mean, scale, x, generator=generator, gradients=self.gradients) for _ in range(num_samples)]
        return torch.stack(draws)

    def kl(self) -> Tensor:
        """The KL divergence from the prior, in nats, a scalar."""
        version, factor, divergence = self._divergence
        if (version, factor) != (self.support.version, self.factor):
            divergence = Divergence.build(self.prior, self.support, self.factor)
            self._divergence = (self.support.version, self.factor, divergence)
        return divergence(self.mean, self.log_scale)

    def loss(
        self,
        likelihood: Likelihood,
        batch: Data,
        *,
        num_samples: int = 1,
        kl_weight: float = 1.0,
        generator: torch.Generator,
    ) -> Tensor:
        """The negative evidence lower bound `-sum_i w_i E_q log p(y_i | f(x_i)) + kl_weight KL`, a scalar.

        It is on the scale of the full data, of which the mini-batch is one of `Data.batches`.
        """
        f = self(batch.x[:], num_samples=num_samples, generator=generator)
        return kl_weight * self.kl() - batch.total(likelihood.log_prob(f, batch.y)).mean()

    def posterior(self, x: Batch | None = None, *, num_samples: int | None = None) -> BayesNet:
        """The distribution over functions, by `num_samples` draws of the weights (32 if None).

        With some inputs `x`, a network that is linear in these weights (its last layer) is recognized, and its
        functions are Gaussian in closed form.
        """
        values, variances = self.mean.detach().clone(), (2 * self.log_scale.detach()).exp()
        positions = {name: self.support.positions(name) for name in self.support.sparse}
        if positions:
            kept = {name: value.clone() for name, value in positions.items() if value is not None}
            found = self._passes if x is None else self._found(x)
            push_forward = SparseMonteCarlo(num_samples, layers=() if found is None else tuple(found.sparse))
            shell = hollow(frozen(self.network), self.support.shapes)  # last: a copy would allocate them
            return BayesNet(shell, SparseWeights(values, variances, self.support.shapes, kept), push_forward)
        network = with_parameters(self.network, self.support.leaves(values))
        weights = GaussianWeights(parameters(network, self.support.shapes), DiagLinearOperator(variances))
        if x is None:
            return BayesNet(network, weights, MonteCarlo(num_samples))
        return exact_or_monte_carlo(network, weights, x, num_samples=num_samples)

    def _found(self, x: Batch) -> Passes:
        """How to run the network, found at the first call."""
        if self._passes is None:
            leaves = self.support.leaves(self.mean.detach())
            self._passes = Passes(self.network, self.support, self.estimator, leaves, x[:2])
        return self._passes


def variational(
    network: nn.Module | BayesNet,
    *,
    estimator: str = "local",
    initial_scale: float = INITIAL_SCALE,
    density: float = 1.0,
    block: tuple[int, int] = (1, 1),
    generator: torch.Generator | None = None,
) -> Variational:
    """A mean-field Gaussian over a network's weights, to train in your own loop.

    Args:
        network: A module, given the library's Gaussian prior (`gaussian_prior`), or a `BayesNet` whose weights are the
            prior, such as the previous posterior: Gaussian, or sparse, whose active weights stay active. It is copied.
        estimator: "local", "flipout" or "weight" (see `Variational`).
        initial_scale: Initial standard deviations, in units of the prior's.
        density: Share of the weights of each matrix that are active; `Subspace` exchanges them.
        block: Shape of the groups of weights that are active together.
        generator: Picks the first active weights.

    Raises:
        TypeError: The weights of a `BayesNet` are not Gaussian.

    >>> net, g = nn.Linear(3, 1), torch.Generator().manual_seed(0)
    >>> q = variational(net)
    >>> optimizer = torch.optim.Adam(q.parameters(), lr=1e-2)
    >>> x, y = torch.ones(8, 3), torch.zeros(8, 1)
    >>> loss = (q(x, generator=g) - y).square().mean() + q.kl() / len(x)
    >>> loss.backward(); optimizer.step()
    >>> q.posterior()(x).mean.shape
    torch.Size([8, 1])
    """
    prior = network if isinstance(network, BayesNet) else gaussian_prior(network)
    trained = network.network if isinstance(network, BayesNet) else network
    weights = prior.weights
    if not isinstance(weights, GaussianWeights | SparseWeights):
        raise TypeError(
            f"`network` must have Gaussian weights to be a prior; got {type(weights).__name__}. Pass the module."
        )
    if isinstance(weights, SparseWeights):
        support = weights.support
    else:
        like = parameters(trained, weights.mean)
        support = random_support(like, density, block=block, generator=generators.given_or_fixed(generator))
    return Variational(trained, weights, estimator=estimator, initial_scale=initial_scale, support=support)


def _leave_out(module: Variational, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Remove the placeholder zeros of the network's weights from the state dict."""
    for name in module.support.shapes:
        state.pop(f"{prefix}network.{name}", None)


def _not_missed(module: Variational, keys: Any) -> None:
    own = {f"network.{name}" for name in module.support.shapes}
    keys.missing_keys[:] = [key for key in keys.missing_keys if not any(key.endswith(name) for name in own)]
