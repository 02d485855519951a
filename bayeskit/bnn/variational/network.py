"""A network whose weights are independent Gaussians, as a module to train in any loop."""

import copy

import torch
from linear_operator.operators import DiagLinearOperator
from torch import Tensor, nn

from bayeskit.bnn.head import head_of
from bayeskit.bnn.network import call, parameters, with_parameters
from bayeskit.bnn.posterior import BayesNet, Linearize, MonteCarlo, gaussian_prior
from bayeskit.bnn.variational.divergence import Divergence
from bayeskit.bnn.variational.layers import Forward, flipout, local, operation, replaceable, replaced
from bayeskit.bnn.variational.support import Support
from bayeskit.bnn.weights import GaussianWeights
from bayeskit.core import checks, random
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.types import Data, Params

ESTIMATORS = ("weight", "local", "flipout")

INITIAL_SCALE = 0.003
"""Standard deviations at the start, in units of the prior's: so small that training starts as that of one network."""


def variational(
    network: nn.Module | BayesNet, *, estimator: str = "local", initial_scale: float = INITIAL_SCALE
) -> "Variational":
    """A mean-field law over a network's weights, to train in a loop of one's own.

    Args:
        network: A module, given the library's Gaussian prior (`gaussian_prior`), or a `BayesNet` whose Gaussian weights
            are the prior, such as yesterday's posterior. It is copied.
        estimator: "local", "flipout" or "weight": what is drawn at each step (see `Variational`).
        initial_scale: Standard deviations at the start, in units of the prior's.

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
    if not isinstance(prior.weights, GaussianWeights):
        raise TypeError(
            f"`network` must have Gaussian weights to be a prior; got {type(prior.weights).__name__}. Pass the module."
        )
    trained = network.network if isinstance(network, BayesNet) else network
    return Variational(trained, prior.weights, estimator=estimator, initial_scale=initial_scale)


class Variational(nn.Module):
    """`q(w) = prod_j N(mean_j, scale_j^2)` over a network's weights; calling it runs the network at random ones.

    What is drawn is the choice of `estimator`; each is unbiased for the same objective:

    - "weight": the weights, once for all rows of a call;
    - "local": the outputs of each linear and convolution layer, for each row on its own (the local
      reparameterization), which is exact for each output and takes two products a layer;
    - "flipout": the weights once, with random signs for each row, in two products a layer.

    Under the last two, weights of other layers (normalization, embeddings, attention) are drawn as under the first.
    The network runs in the mode it is in: `train()` it for dropout and the statistics of BatchNorm.

    Args:
        network: Copied; what the prior does not name is frozen.
        prior: Gaussian law of p named weights.
        estimator: "weight", "local" or "flipout".
        initial_scale: Standard deviations at the start, in units of the prior's; means start at the network's values.
        support: The active weights, s of p; None for all.

    Attributes:
        mean: (s,), trained.
        log_scale: Logarithms of the standard deviations, (s,), trained.

    References:
        Graves. Practical variational inference for neural networks. NeurIPS 2011.
        Blundell, Cornebise, Kavukcuoglu, Wierstra. Weight uncertainty in neural networks. ICML 2015, section 3.
    """

    def __init__(
        self,
        network: nn.Module,
        prior: GaussianWeights,
        *,
        estimator: str = "local",
        initial_scale: float = INITIAL_SCALE,
        support: Support | None = None,
    ):
        super().__init__()
        checks.choice(estimator, name="estimator", options=ESTIMATORS)
        checks.positive(initial_scale, name="initial_scale")
        self.estimator, self.prior = estimator, prior
        self.network = copy.deepcopy(network).requires_grad_(False)
        like = parameters(network, prior.mean)
        self.support = Support(like) if support is None else support
        start = torch.cat([value.flatten() for value in like.values()])
        spread = prior.covariance.diagonal(dim1=-1, dim2=-2).detach().to(start).sqrt()
        self.mean = nn.Parameter(self.support.take(start))
        self.log_scale = nn.Parameter(self.support.take((initial_scale * spread).log()))
        self.weigh(prior)
        self._found: list[str] | None = None

    def weigh(self, prior: GaussianWeights) -> None:
        """Take another prior of the same weights."""
        self.prior, self.divergence = prior, Divergence(prior)

    def forward(self, x: Tensor, *, num_samples: int = 1, generator: torch.Generator) -> Tensor:
        """Outputs at inputs (n, *input_shape) under random weights, (num_samples, n, k)."""
        return torch.stack([self._once(x, generator) for _ in range(num_samples)])

    def kl(self) -> Tensor:
        """The divergence of the law from the prior, in nats, a scalar."""
        return self.divergence(self.mean, self.log_scale)

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

    def posterior(self, x: Tensor | None = None, *, num_samples: int | None = None) -> BayesNet:
        """The law as a distribution over functions, by `num_samples` draws of the weights (32 if None).

        With some inputs `x` at hand a network that is linear in these weights (its last layer) is recognized, and its
        functions are Gaussian in closed form.
        """
        mean = {name: value.detach() for name, value in self.support.leaves(self.mean).items()}
        network = with_parameters(self.network, mean)
        weights = GaussianWeights(parameters(network, mean), DiagLinearOperator((2 * self.log_scale.detach()).exp()))
        closing = None if x is None else head_of(network, mean, x)
        linear = closing is not None and isinstance(closing.layer, nn.Linear)
        return BayesNet(network, weights, Linearize() if linear else MonteCarlo(num_samples))

    def _once(self, x: Tensor, generator: torch.Generator) -> Tensor:
        means, scales = self.support.split(self.mean), self.support.split(self.log_scale.exp())
        params: Params = {}
        forwards: dict[nn.Module, Forward] = {}
        for name, layer in self._layers(x).items():
            own = {key: f"{name}.{key}" if name else key for key, _ in layer.named_parameters(recurse=False)}
            own = {key: full for key, full in own.items() if full in means}
            center = {key: self.support.leaf(full, means.pop(full)) for key, full in own.items()}
            spread = {key: self.support.leaf(full, scales.pop(full)) for key, full in own.items()}
            forwards[layer] = self._noisy(layer, center, spread, generator)
            params |= {own[key]: value for key, value in center.items()}
        for name, mean in means.items():
            noise = random.normal(mean.shape, like=mean, generator=generator)
            params[name] = self.support.leaf(name, mean + scales[name] * noise)
        with replaced(forwards):
            return call(self.network, params, x)

    def _noisy(self, layer: nn.Module, center: Params, spread: Params, generator: torch.Generator) -> Forward:
        """The forward of a layer whose parameters have these means and standard deviations."""
        apply = operation(layer)
        fixed = None if layer.bias is None or "bias" in center else layer.bias

        def mean(x: Tensor) -> Tensor:
            return apply(x, center["weight"], center.get("bias", fixed))  # type: ignore[arg-type]

        if self.estimator == "local":
            variances = {key: value.square() for key, value in spread.items()}
            return lambda x: local(
                mean, lambda squares: apply(squares, variances["weight"], variances.get("bias")), x, generator
            )
        drawn = {k: v * random.normal(v.shape, like=v, generator=generator) for k, v in spread.items()}
        return lambda x: flipout(
            layer, mean, lambda rows: apply(rows, drawn["weight"], drawn.get("bias")), x, generator
        )

    def _layers(self, x: Tensor) -> dict[str, nn.Module]:
        """The layers whose forward is replaced, found at the first call."""
        if self.estimator == "weight":
            return {}
        if self._found is None:
            like = parameters(self.network, self.support.shapes)
            self._found = list(replaceable(self.network, like, x[:2], estimator=self.estimator))
        return {name: self.network.get_submodule(name) for name in self._found}
