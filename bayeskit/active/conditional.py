"""Conditional information gains I(y_i; f | y_1, ..., y_b) of a batch whose labels are chosen one by one.

The labels taken are not known yet, so the gain is an average over their outcomes: exact for Gaussians, where it does
not depend on the outcome, otherwise over all outcomes or over outcomes drawn from the model.
"""

import torch
from torch import Tensor

from bayeskit.active.function_draws import Draws
from bayeskit.core import operators
from bayeskit.core.operators.algebra import product
from bayeskit.core.posterior import GaussianValues
from bayeskit.core.predictive.categorical_predictive import entropy

NUM_OUTCOMES = 512
"""Outcomes of a batch that are kept: all of them while there are no more, else so many drawn from the model."""


class GaussianGains:
    """log det(I + V / noise) / 2 with V the covariance of the outputs at each input given the labels taken.

    The covariance shrinks by one block column of the joint covariance for each label taken.

    Args:
        values: Joint distribution (n, k).
        noise_variance: Of Gaussian noise, (1,) or (k,).
    """

    def __init__(self, values: GaussianValues, noise_variance: Tensor):
        self.covariance, k = values.covariance, values.mean.shape[-1]
        self.noise = noise_variance.detach().double().to(values.mean.device).expand(k)
        self.left = values.output_covariance().double()  # (n, k, k)
        self.columns = self.left.new_empty(len(self.left), k, 0)  # of the Cholesky factor so far

    def gains(self, index: Tensor) -> Tensor:
        """(m,) for inputs (m,)."""
        scale = self.noise.rsqrt()
        scaled = scale.unsqueeze(-1) * self.left[index.to(scale.device)] * scale
        if len(scale) == 1:
            return scaled.flatten().log1p() / 2
        identity = torch.eye(len(scale), dtype=scaled.dtype, device=scaled.device)
        return operators.factorize(scaled + identity, name="the covariance of the outputs over the noise").logdet() / 2

    def take(self, index: int) -> None:
        """Condition on y at one input."""
        k = len(self.noise)
        selection = torch.zeros(self.covariance.shape[-1], k, dtype=self.covariance.dtype, device=self.noise.device)
        selection[index * k : (index + 1) * k] = torch.eye(k, dtype=selection.dtype, device=selection.device)
        column = product(self.covariance, selection).double().unflatten(0, (-1, k))  # (n, k, k)
        column = column - self.columns @ self.columns[index].mT
        factor = operators.factorize(self.left[index] + torch.diag(self.noise), name="the covariance of y").tril
        column = torch.linalg.solve_triangular(factor, column.mT, upper=False).mT
        self.columns = torch.cat([self.columns, column], -1)
        self.left = self.left - column @ column.mT


class LabelGains:
    """H[y_i | labels taken] - E_f H[y_i | f] over draws of the function.

    An outcome of the labels taken is represented by the weights of the functions given that outcome.

    Args:
        functions: Joint draws at n inputs.
        generator: Of the outcomes, once there are too many to keep.
    """

    def __init__(self, functions: Draws, *, generator: torch.Generator):
        log_probs = functions.class_log_probs()
        self.generator, self.noise = generator, entropy(log_probs).mean(0)  # (n,)
        self.probs = log_probs.exp()  # (s, n, c)
        s = len(self.probs)
        self.weights = self.probs.new_full((1, s), 1 / s)  # of the functions given each outcome, (o, s)
        self.outcomes = self.probs.new_ones(1)  # probability of each outcome, (o,)

    def gains(self, index: Tensor) -> Tensor:
        """(m,) for inputs (m,)."""
        parts, index = [], index.to(self.probs.device)
        for rows in operators.chunks(len(index), len(self.outcomes) * self.probs.shape[-1], cached=True):
            at = index[rows]
            given = torch.einsum("os,smc->omc", self.weights, self.probs[:, at])
            parts.append(torch.einsum("o,om->m", self.outcomes, torch.special.entr(given).sum(-1)) - self.noise[at])
        return torch.cat(parts)

    def take(self, index: int) -> None:
        """Branch each outcome into those of one more label."""
        joint = self.weights.unsqueeze(1) * self.probs[:, index].mT  # (o, c, s)
        given = joint.sum(-1)  # p(y_index | outcome), (o, c)
        probability = (self.outcomes.unsqueeze(-1) * given).flatten()
        if len(probability) > NUM_OUTCOMES:
            chosen = _systematic(probability, NUM_OUTCOMES, self.generator)
            self.outcomes = torch.full_like(probability[:NUM_OUTCOMES], 1 / NUM_OUTCOMES)
        else:
            chosen = probability.nonzero().squeeze(-1)
            self.outcomes = probability[chosen]
        self.weights = joint.flatten(0, 1)[chosen] / given.flatten()[chosen].unsqueeze(-1)


class SimulatedGains:
    """E log p(y_i | f) / p(y_i | labels taken) over observations of functions drawn.

    Args:
        functions: Joint draws at n inputs.
        generator: Of the observations.
    """

    def __init__(self, functions: Draws, *, generator: torch.Generator):
        self.functions, s = functions, functions.num_functions
        repeats = max(1, NUM_OUTCOMES // s)
        # Outcome o is what function o mod s gives at every input.
        self.y = torch.cat([functions.sample(generator=generator) for _ in range(repeats)])  # (o, n, t)
        self.own = torch.arange(len(self.y), device=self.y.device) % s
        self.log_weights = self.y.new_zeros(len(self.y), s, dtype=torch.float64)  # log p(labels taken | f), (o, s)

    def gains(self, index: Tensor) -> Tensor:
        """(m,) for inputs (m,)."""
        parts, index = [], index.to(self.y.device)
        log_weights = self.log_weights.log_softmax(-1).unsqueeze(-1)
        for rows in operators.chunks(len(index), 3 * self.log_weights.numel()):
            at = index[rows]
            log_probs = self.functions.rows(at).log_prob(self.y[:, at]).double()  # (o, s, b)
            given = log_probs[torch.arange(len(self.own)), self.own]
            parts.append((given - (log_weights + log_probs).logsumexp(1)).mean(0))
        return torch.cat(parts)

    def take(self, index: int) -> None:
        """Weigh the functions of each outcome by what it has at one more input."""
        at = slice(index, index + 1)
        self.log_weights = self.log_weights + self.functions.rows(at).log_prob(self.y[:, at])[..., 0].double()


def _systematic(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Positions (count,) drawn in proportion to `weights` at equal steps from one random start."""
    start = torch.rand((), generator=generator, device=generator.device, dtype=torch.float64).to(weights.device)
    levels = (torch.arange(count, device=weights.device) + start) / count
    cumulative = weights.double().cumsum(0)
    return torch.searchsorted(cumulative / cumulative[-1], levels, right=True).clamp(max=len(weights) - 1)
