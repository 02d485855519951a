"""Log posterior density of a network's weights and a likelihood's parameters, for many chains at a time."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import vmap

from bayeskit.bnn.networks.functional import call_plainly, call_with, checked_outputs, flatten, parameters, unflatten
from bayeskit.bnn.weights.weight_posterior import GaussianWeights
from bayeskit.core import generators
from bayeskit.core.inputs import Batch
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.optimize import minimize_lbfgs
from bayeskit.core.types import Data, Params
from bayeskit.mcmc import Groups, LogDensity, Position, group_labels, hessian_diagonal

NOISE_SPREAD = 2.0
"""Standard deviation of the normal prior on a likelihood's own parameters about their given values. They are logs, so
two standard deviations are a factor of 50 either way."""

START_ROWS = 2_000
"""Observations at most used to initialize a chain: the start needs only the region of a mode."""

PROBES = 32
"""Gradients at most for the diagonal preconditioner: the error is then 1 / sqrt(32) of the off-diagonal entries."""


class Model:
    """The joint density of a network's weights, a likelihood's parameters, and data.

    A position has leaves "weights" (c, p) and, if the likelihood has learnable parameters, "likelihood" (c, q):
    distances from the prior's means divided by the preconditioners `scale` and `own_scale`, at first the prior's
    standard deviations.

    Args:
        network: In evaluation mode, with outputs (n, k).
        prior: Prior of the p weights.
        likelihood: Distribution of y given f; copied.
    """

    def __init__(self, network: nn.Module, prior: GaussianWeights, likelihood: Likelihood):
        self.network, self.prior, self.likelihood = network, prior, copy.deepcopy(likelihood)
        self.like = parameters(network, prior.mean)
        self.mean = flatten(prior.mean, self.like)
        self.scale = prior.covariance.diagonal(dim1=-1, dim2=-2).sqrt().to(self.mean)
        self.own = parameters(self.likelihood)
        self.own_mean = torch.cat([value.reshape(-1) for value in self.own.values()]) if self.own else None
        self.own_scale = None if self.own_mean is None else torch.full_like(self.own_mean, NOISE_SPREAD)
        self._joint = _Joint(network, self.likelihood)

    def params(self, weights: Tensor) -> Params:
        """The weights at standardized positions (*c, p), by name."""
        return unflatten(self.mean + self.scale * weights, self.like)

    def labels(self, groups: Groups) -> dict[str, Tensor]:
        """The group of every coordinate of a position, from groups of the network's parameters.

        The likelihood's parameters are one further group.
        """
        named = group_labels(groups, {name: value.shape for name, value in self.like.items()})
        labels = {"weights": torch.cat([label.reshape(-1) for label in named.values()])}
        if self.own_mean is not None:
            labels["likelihood"] = torch.full((len(self.own_mean),), int(labels["weights"].max()) + 1)
        return labels

    def log_density(self, position: Position, data: Data) -> Tensor:
        """Log joint density of c positions and the data, up to a constant, (c,)."""
        return self.log_prior(position) + self.log_likelihood(position, data)

    def log_prior(self, position: Position) -> Tensor:
        """Log prior density of c positions, up to a constant, (c,)."""
        prior = self.prior.log_density(self.mean + self.scale * position["weights"])
        if self.own_scale is not None:
            prior = prior - 0.5 * (position["likelihood"] * self.own_scale / NOISE_SPREAD).square().sum(-1)
        return prior

    def log_likelihood(self, position: Position, data: Data) -> Tensor:
        """Log density of the data at c positions, (c,)."""
        x = data.x[:]

        def one(weights: Tensor, own: Tensor | None = None) -> Tensor:
            values = {f"network.{name}": value for name, value in self.params(weights).items()}
            values |= {f"likelihood.{name}": value for name, value in self._own_params(own).items()}
            return data.total(call_with(self._joint, values, x, data.y))

        leaves = tuple(position.values())
        if len(leaves[0]) == 1:
            return one(*(leaf[0] for leaf in leaves)).reshape(1)
        try:
            return vmap(one)(*leaves)
        except RuntimeError:  # control flow that depends on values: one chain at a time
            return torch.stack([one(*chain) for chain in zip(*leaves, strict=True)])

    def _own_params(self, own: Tensor | None) -> Params:
        if own is None or self.own_mean is None or self.own_scale is None:
            return {}
        return unflatten(self.own_mean + self.own_scale * own, self.own)

    def start(self, data: Data, num_chains: int, num_steps: int, *, generator: torch.Generator) -> Position:
        """Initial positions of c chains; also sets the preconditioners.

        Each chain starts at a draw from the prior, moved towards a mode: first the weights alone, then with the
        likelihood's parameters. The preconditioner is `1 / sqrt(diagonal of the negative Hessian)` there, at most the
        prior's standard deviations: one step size then suits directions that the data determine and those that they
        do not. This linear change of variables does not change the posterior.
        """
        if len(data) > START_ROWS:
            order = torch.randperm(len(data), generator=generator, device=generator.device).to(data.y.device)
            data = replace(data.rows(order[:START_ROWS].sort().values), scale=data.scale * len(data) / START_ROWS)
        data = replace(data, x=data.x[:])
        draws = flatten(self.prior.sample(num_chains, generator=generator), self.like)
        position = {"weights": (draws - self.mean) / self.scale}
        if self.own_mean is not None:
            position["likelihood"] = draws.new_zeros(num_chains, len(self.own_mean))
        chains = [{name: leaf[i : i + 1] for name, leaf in position.items()} for i in range(num_chains)]
        moved = [self._optimized(chain, data, num_steps) for chain in chains]
        position = {name: torch.cat([chain[name] for chain in moved]) for name in position}
        probes = min(num_steps, PROBES)
        hessian = hessian_diagonal(
            lambda q: self.log_density(q, data), position, num_probes=probes, generator=generator
        )
        scales = {name: h.neg().mean(0).clamp(min=1).rsqrt() for name, h in hessian.items()}
        self.scale = self.scale * scales["weights"]
        if self.own_scale is not None:
            self.own_scale = self.own_scale * scales["likelihood"].to(self.own_scale)
        return {name: leaf / scales[name] for name, leaf in position.items()}

    def _optimized(self, chain: Position, data: Data, num_steps: int) -> Position:
        leaves = {name: leaf.clone().requires_grad_() for name, leaf in chain.items()}

        def loss() -> Tensor:
            return -self.log_density(leaves, data)[0]

        minimize_lbfgs(loss, [leaves["weights"]], max_iter=num_steps, tolerance=1e-5, description="start")
        if "likelihood" in leaves:
            rest = max(1, num_steps // 4)
            minimize_lbfgs(loss, leaves.values(), max_iter=rest, tolerance=1e-5, description="start")
        return {name: leaf.detach() for name, leaf in leaves.items()}

    def fitted(self, samples: Position) -> Likelihood:
        """The likelihood at the posterior means of its parameters, from samples with leaves (c, s, ...)."""
        fitted = copy.deepcopy(self.likelihood)
        if "likelihood" in samples:
            means = self._own_params(samples["likelihood"].flatten(0, 1).mean(0))
            with torch.no_grad():
                for name, value in fitted.named_parameters():
                    if name in means:
                        value.copy_(means[name])
        return fitted


@dataclass(frozen=True, eq=False)
class LogPosterior:
    """The log posterior density given some data: leaves (c, ...) to (c,)."""

    model: Model
    data: Data

    def __call__(self, position: Position) -> Tensor:
        """Log densities of c positions, (c,)."""
        return self.model.log_density(position, self.data)

    @property
    def order(self) -> Tensor:
        """The target of each observation, the first of several outputs, (n,)."""
        return self.data.y.reshape(len(self.data), -1)[:, 0]

    def log_prior(self, position: Position) -> Tensor:
        """Log prior density of c positions, (c,)."""
        return self.model.log_prior(position)

    def of_rows(self, rows: Tensor) -> LogDensity:
        """The log likelihood of some observations."""
        part = self.data.rows(rows.to(self.data.y.device))
        return lambda position: self.model.log_likelihood(position, part)


@dataclass(frozen=True, eq=False)
class MiniBatches:
    """Mini-batch estimates of the log posterior density, shuffled in each pass.

    Batch sizes of a pass differ by at most one: the gradient noise of a smaller last batch, harmless to an optimizer,
    would add excess variance to the chains.
    """

    model: Model
    data: Data
    size: int
    generator: torch.Generator

    def __iter__(self) -> Iterator[LogPosterior]:
        # Each pass has its own generator, so that it does not depend on what the kernel draws in between.
        g, n = generators.spawn(self.generator), len(self.data)
        order = torch.randperm(n, generator=g, device=g.device).to(self.data.y.device)
        for index in order.tensor_split(-(-n // self.size)):
            rows = self.data.rows(index)
            yield LogPosterior(self.model, replace(rows, x=rows.x[:], scale=self.data.scale * n / len(index)))


class _Joint(nn.Module):
    """log p(y | f(x)) as one module, so that the parameters of network and likelihood are replaced together."""

    def __init__(self, network: nn.Module, likelihood: Likelihood):
        super().__init__()
        self.network, self.likelihood = network, likelihood

    def forward(self, x: Batch, y: Tensor) -> Tensor:
        return self.likelihood.log_prob(checked_outputs(call_plainly(self.network, x), len(x)), y)
