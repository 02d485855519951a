"""The log joint density of a subset of a network's weights."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from bayeskit.bnn.curvature import ggn as curvatures
from bayeskit.bnn.curvature.ggn import Curvature
from bayeskit.bnn.curvature.kfac_factors import kronecker
from bayeskit.bnn.curvature.linearized_evidence import Expansion, Noise
from bayeskit.bnn.curvature.ntk_curvature import kernel
from bayeskit.bnn.curvature.prior_precision import PriorPrecision
from bayeskit.bnn.networks.functional import NetworkFunction, at_least_single, flatten
from bayeskit.bnn.networks.last_layer import head_of
from bayeskit.bnn.networks.layers import is_plain
from bayeskit.bnn.training.map_training import Trained
from bayeskit.bnn.weights.weight_posterior import GaussianWeights
from bayeskit.core import operators
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.likelihood.gaussian import outputs
from bayeskit.core.types import Data, Params

STRUCTURES = ("full", "kernel", "kronecker", "diagonal")


@dataclass(frozen=True, eq=False)
class Problem:
    """The log joint density of some weights, as a function of a vector of them.

    Args:
        function: f(w, x), of the network, of its last layer, or of some of its weights.
        data: Inputs as that function takes them, targets and case weights.
        likelihood: Of the observations, not changed.
        center: Prior mean, (p,), float64.
        prior: The prior's precision, and whose factors may be set or learnt.
        start: The weights after training, (p,), float64.
        like: The weights by their names in the network.
        structure: Of the curvature.
        linear: Whether f is linear in the weights.
        movable: Whether weights may be refitted in which f is not linear.
    """

    function: NetworkFunction
    data: Data
    likelihood: Likelihood
    center: Tensor
    prior: PriorPrecision
    start: Tensor
    like: Params
    structure: str
    linear: bool
    movable: bool = True

    @classmethod
    def build(
        cls,
        trained: Trained,
        prior: GaussianWeights,
        names: list[str],
        data: Data,
        *,
        structure: str,
        precision: PriorPrecision,
        movable: bool = True,
    ) -> Self:
        """The last layer becomes a function of features, in float64; other subsets keep the network and its dtype."""
        like = {name: trained.params[name] for name in names}
        closing = head_of(trained.network, names, data.x)
        if closing is None:
            function = NetworkFunction(trained.network, like)
        else:
            local = {name: value.double() for name, value in closing.local(like).items()}
            function = NetworkFunction(copy.deepcopy(closing.layer).double(), local)
            data = replace(data, x=closing.features(data.x)).to(dtype=torch.float64)
        return cls(
            function=function,
            data=data,
            likelihood=trained.likelihood,
            center=flatten({name: prior.mean[name] for name in names}, like).double(),
            prior=precision,
            start=flatten(like, like).double(),
            like=like,
            structure=structure,
            linear=closing is not None and is_plain(closing.layer, nn.Linear),
            movable=movable,
        )

    def curvature(self, weights: Tensor, likelihood: Likelihood) -> Curvature:
        """H at these weights."""
        flat = weights.to(self.dtype)
        if self.structure == "full":
            return curvatures.full(self.function, flat, self.data, likelihood)
        if self.structure == "kronecker":
            return kronecker(self.function, flat, self.data, likelihood)
        if self.structure == "kernel":
            return kernel(self.function, flat, self.data, likelihood, self.prior)
        return curvatures.diagonal(self.function, flat, self.data, likelihood)

    def expansion(self, weights: Tensor, likelihood: Likelihood, noise: Noise | None) -> Expansion:
        """The rest of the log joint density to second order about these weights."""
        value, gradient = self.log_likelihood(weights, likelihood)
        return Expansion(weights - self.center, gradient, value, noise, self.prior)

    def log_likelihood(self, weights: Tensor, likelihood: Likelihood) -> tuple[Tensor, Tensor]:
        """The log-likelihood at these weights and its gradient (p,)."""
        flat = weights.to(self.dtype, copy=True).requires_grad_()
        value, gradient = weights.new_zeros(()), torch.zeros_like(weights)
        for batch in self.batches():
            with torch.enable_grad():
                total = batch.total(likelihood.log_prob(self.function(flat, batch.x[:]), batch.y))
            gradient += torch.autograd.grad(total, flat)[0].double()
            value += total.detach().double()
        return value, gradient

    def log_joint(self, weights: Tensor, likelihood: Likelihood, log_precision: Tensor) -> Tensor:
        """`log p(y | w) - (w - m)' P (w - m) / 2`, a differentiable function of the weights."""
        flat = weights.to(self.dtype)
        terms = [b.total(likelihood.log_prob(self.function(flat, b.x[:]), b.y)) for b in self.batches()]
        penalty = self.prior.quadratics(weights - self.center) @ log_precision.exp()
        return torch.stack(terms).double().sum() - 0.5 * penalty

    def squared_residuals(self, weights: Tensor) -> Tensor:
        """Weighted sums of squared residuals by output, (k,), over what was observed (not NaN)."""
        with torch.no_grad():
            flat, parts = weights.to(self.dtype), []
            for batch in self.batches():
                f = self.function(flat, batch.x[:])
                residual = torch.where(observed(batch), outputs(batch.y, f) - f, 0.0)
                parts.append(batch.total(residual.square().mT).double())
        return torch.stack(parts).sum(0)

    @property
    def counts(self) -> Tensor:
        """The weighted number of observations of each output, (k,), float64."""
        return self.data.total(observed(self.data).double().mT)

    @property
    def dtype(self) -> torch.dtype:
        """The floating type in which the function takes its weights."""
        return at_least_single(next(iter(self.function.like.values())).dtype)

    def batches(self) -> Iterator[Data]:
        """The data, as much at a time as fits into memory."""
        return map(self.data.rows, operators.chunks(len(self.data), 64 * self.data.x.shape[1:].numel()))


def observed(data: Data) -> Tensor:
    """Which outputs were observed (not NaN) at each data point, (n, k)."""
    return ~data.y.isnan().reshape(len(data), -1)
