"""The most probable weights of a subset, its prior precision and its noise, found together.

    round:  expand the log-likelihood about w  ->  evidence picks precision and noise  ->  Gauss-Newton step to w*

One round settles it where the function is linear in the weights and the noise Gaussian. A step that does not raise the
log joint density is halved, and after a few halvings not taken. A curvature that drops terms (diagonal, Kronecker) is
good for a covariance and not for a step: there evidence and refit take turns.
"""

import copy
from dataclasses import dataclass

import torch
from linear_operator import LinearOperator
from torch import Tensor

from bayeskit.bnn.curvature.ggn import Curvature, Expansion
from bayeskit.bnn.curvature.linearized_evidence import LocalEvidence, MovingEvidence, Noise
from bayeskit.bnn.curvature.prior_precision import Setting, bounded, start
from bayeskit.bnn.laplace_approximation.evidence_bound import block_evidence, occam_bound
from bayeskit.bnn.laplace_approximation.log_joint import Problem, observed
from bayeskit.bnn.networks.functional import at_least_single
from bayeskit.core import operators
from bayeskit.core.likelihood import Gaussian, Likelihood
from bayeskit.core.optimize import minimize_lbfgs

ROUNDS_LINEAR = 50
"""Rounds at most for the weights of a last layer; the problem is smooth and mostly concave, and ends well before."""

ROUNDS_NETWORK = (3, 30)
"""Rounds at most for other weights: few where a round is dear, many where it is not (see `_rounds`)."""

ROUNDS_WORK = 1e10
"""Cubes of the number of weights that all rounds may come to: 30 rounds up to 690 weights, 3 from 1,500 on."""

HALVINGS = 6
"""How often a step is halved before it is given up."""

ROUNDS_ALTERNATION = 10
"""Rounds at most of evidence and L-BFGS for the weights of a last layer."""

SETTLED = 1e-7
"""Largest relative change of a noise variance by output that ends the rounds of Gauss-Newton steps."""

SETTLED_ALTERNATION = 1e-3
"""Largest relative change of a precision or the noise that ends the rounds where evidence and refit take turns."""

ARRIVED = 1e-10
"""A step whose log joint density was foretold to this relative accuracy is the last."""


@dataclass(frozen=True, eq=False)
class Refit:
    """Where the rounds have ended.

    Args:
        weights: w*, (p,), float64.
        likelihood: With its noise learnt.
        curvature: H, up to `factor`.
        factor: What H is to be multiplied by for the noise that was learnt after it.
        log_precision: Log factors on the prior precision, one a layer or one for all.
        occam: `-(log |H + P| - log |P|) / 2`.
        steps: Number of rounds.
    """

    weights: Tensor
    likelihood: Likelihood
    curvature: Curvature
    factor: Tensor
    log_precision: Tensor
    occam: Tensor
    steps: int

    def log_evidence(self, problem: Problem) -> float:
        """`log p(y | w*) - (w* - m)' P (w* - m) / 2 - (log |H + P| - log |P|) / 2`."""
        return float(problem.log_joint(self.weights, self.likelihood, self.log_precision) + self.occam)

    def covariance(self, problem: Problem) -> LinearOperator:
        """`(H + P)^-1` in the dtype of the weights, in single precision at least."""
        dtype = at_least_single(next(iter(problem.like.values())).dtype)
        return self.curvature.covariance(problem.prior, self.log_precision, self.factor, dtype=dtype)


def refit(problem: Problem, setting: Setting) -> Refit:
    """The weights, their prior precision and the noise, by the rule that the structure allows.

    Args:
        problem: The log joint density and where to start.
        setting: Factors on the prior's precision, or "evidence".
    """
    likelihood = copy.deepcopy(problem.likelihood)
    gaussian = isinstance(likelihood, Gaussian)
    exact = problem.structure in ("full", "kernel")
    summed = isinstance(problem.prior.base, Tensor)  # not so beside factors of earlier data: the nearest product
    faithful = exact or (problem.structure == "kronecker" and problem.linear and gaussian and summed)
    learnable = gaussian and likelihood.raw_noise.requires_grad
    # Of weights that stay, a curvature that drops terms counts more as determined than there are: noise would swell.
    log_precision, learnt = start(setting, problem.prior)
    settings = _Learning(precision=learnt, noise=learnable and (faithful or problem.linear), bound=bounded(setting))
    if learnable and not settings.noise and not problem.movable:  # no training has left a noise of held-out rows
        assert isinstance(likelihood, Gaussian)
        squares, counts = problem.squared_residuals(problem.start), problem.counts
        shared = len(likelihood.noise) == 1
        set_noise(likelihood, squares.sum() / counts.sum() if shared else squares / counts)
    rule = _by_expansion if faithful and not settings.bound else _by_alternation
    return rule(problem, likelihood, log_precision, settings)


@dataclass(frozen=True)
class _Learning:
    """What the evidence decides: which of the precisions, (g,), and whether the noise; and if it is a bound."""

    precision: Tensor
    noise: bool
    bound: bool


def _by_expansion(problem: Problem, likelihood: Likelihood, log_precision: Tensor, learning: _Learning) -> Refit:
    """Rounds of evidence and Gauss-Newton step, for a curvature that is that of the log-likelihood itself."""
    weights, outcome, steps = problem.start, "moved", 0
    limit = _rounds(problem)
    curvature, model = _modelled(problem, weights, likelihood, learning)
    if not (problem.movable or problem.linear):
        log_precision, log_noise = _learn(model, log_precision, likelihood, learning, moving=False)
        occam = model.occam(log_precision, log_noise)
        return Refit(weights, likelihood, curvature, torch.exp(-log_noise), log_precision, occam, 1)
    several, moving = int(learning.precision.sum()) > 1, True
    while True:
        begun = weights, log_precision, copy.deepcopy(likelihood)
        log_precision, log_noise = _learn(model, log_precision, likelihood, learning, moving=moving)
        foretold = model.foretold(log_precision, log_noise)
        goal = problem.center + model.mode(log_precision, log_noise)
        weights, outcome = _step(problem, weights, goal, foretold, likelihood=likelihood, log_precision=log_precision)
        if outcome != "arrived" and several and moving:
            # About a network of several layers each of them can stand for all in the expansion, and not in the network.
            (weights, log_precision, likelihood), moving = begun, False
            continue
        steps += 1
        if outcome == "arrived" and learning.noise:
            factor = torch.exp(-log_noise)
            covariance = curvature.covariance(problem.prior, log_precision, factor, dtype=problem.dtype)
            outcome = _share_noise(problem, weights, likelihood, covariance)
        if outcome == "arrived":  # the expansion holds at the weights reached: its curvature is theirs
            break
        curvature, model = _modelled(problem, weights, likelihood, learning)
        if outcome == "stuck" or steps == limit:
            log_precision, log_noise = _learn(model, log_precision, likelihood, learning, moving=False)
            break
    occam = model.occam(log_precision, log_noise)
    return Refit(weights, likelihood, curvature, torch.exp(-log_noise), log_precision, occam, steps)


def _rounds(problem: Problem) -> int:
    """How many at most. A deep network needs some tens: the evidence moves with the weights, and both move far."""
    if problem.linear:
        return ROUNDS_LINEAR
    fewest, most = ROUNDS_NETWORK
    return max(fewest, min(most, int(ROUNDS_WORK / len(problem.start) ** 3)))


def _by_alternation(problem: Problem, likelihood: Likelihood, log_precision: Tensor, learning: _Learning) -> Refit:
    """Evidence at fixed weights, for a curvature that drops terms: a Gauss-Newton step with it would not be one.

    The weights of a last layer are refitted between rounds by L-BFGS; others stay where training has left them.
    """
    weights, steps = problem.start, 0
    while True:
        if problem.linear:
            weights = _most_probable(problem, weights, likelihood, log_precision)
        curvature, expansion = _expand(problem, weights, likelihood, learning)
        by_blocks = block_evidence(problem, weights, likelihood, expansion) if learning.bound else None
        model, before = by_blocks or curvature.evidence(expansion), log_precision
        log_precision, log_noise = _learn(model, log_precision, likelihood, learning, moving=False)
        steps += 1
        settled = torch.cat([log_precision - before, log_noise.reshape(1)]).abs().max() < SETTLED_ALTERNATION
        if settled and learning.noise and steps < ROUNDS_ALTERNATION:
            covariance = curvature.covariance(problem.prior, log_precision, torch.exp(-log_noise), dtype=problem.dtype)
            settled = _share_noise(problem, weights, likelihood, covariance, SETTLED_ALTERNATION) == "arrived"
        if not problem.linear or settled or steps == ROUNDS_ALTERNATION:
            if learning.bound:
                occam = occam_bound(problem, weights, likelihood, log_precision)
            else:
                occam = model.occam(log_precision, log_noise)
            return Refit(weights, likelihood, curvature, torch.exp(-log_noise), log_precision, occam, steps)


def _learn(
    model: LocalEvidence, log_precision: Tensor, likelihood: Likelihood, learning: _Learning, *, moving: bool
) -> tuple[Tensor, Tensor]:
    """The precisions and the noise factor of the largest evidence; the noise is written into the likelihood."""
    log_noise = torch.zeros_like(log_precision[0])
    if learning.precision.any() or learning.noise:
        log_precision, log_noise = model.maximize(log_precision, learnt=learning.precision, moving=moving)
    if learning.noise:
        assert isinstance(likelihood, Gaussian)
        set_noise(likelihood, likelihood.noise * log_noise.exp())
    return log_precision, log_noise


def _most_probable(problem: Problem, weights: Tensor, likelihood: Likelihood, log_precision: Tensor) -> Tensor:
    """Where the log joint density of a last layer is largest."""
    flat = weights.clone().requires_grad_()
    factors = log_precision.exp()

    def loss() -> Tensor:
        parts = [
            rows.total(likelihood.log_prob(problem.function(flat, rows.x[:]), rows.y)) for rows in problem.pieces()
        ]
        return 0.5 * problem.prior.quadratics(flat - problem.center) @ factors - torch.stack(parts).sum()

    minimize_lbfgs(loss, [flat], tolerance=1e-13, max_iter=500, description="last layer")
    return flat.detach()


def _modelled(
    problem: Problem, weights: Tensor, likelihood: Likelihood, learning: _Learning
) -> tuple[Curvature, MovingEvidence]:
    curvature, expansion = _expand(problem, weights, likelihood, learning)
    model = curvature.evidence(expansion)
    assert isinstance(model, MovingEvidence)
    return curvature, model


def _expand(
    problem: Problem, weights: Tensor, likelihood: Likelihood, learning: _Learning
) -> tuple[Curvature, Expansion]:
    """The log-likelihood to second order about these weights."""
    curvature = problem.curvature(weights, likelihood)
    noise = None
    if learning.noise:
        assert isinstance(likelihood, Gaussian)
        variance = likelihood.noise.detach()
        squares = problem.squared_residuals(weights)
        lowest = torch.log(likelihood.floor * (1 + 1e-6) / variance.min())
        noise = Noise(float(problem.counts.sum()), (squares / variance).sum(), float(lowest))
    return curvature, problem.expansion(weights, likelihood, noise)


def _step(
    problem: Problem,
    weights: Tensor,
    goal: Tensor,
    foretold: Tensor,
    *,
    likelihood: Likelihood,
    log_precision: Tensor,
) -> tuple[Tensor, str]:
    """Towards the goal as far as the log joint density rises: the weights, and "arrived", "moved" or "stuck"."""
    reached = problem.log_joint(goal, likelihood, log_precision)
    if (reached - foretold).abs() <= ARRIVED * foretold.abs().clamp_min(1):
        return goal, "arrived"
    here = problem.log_joint(weights, likelihood, log_precision)
    for _ in range(HALVINGS):
        if reached > here:
            return goal, "moved"
        goal = (weights + goal) / 2
        reached = problem.log_joint(goal, likelihood, log_precision)
    return weights, "stuck"


def _share_noise(
    problem: Problem, weights: Tensor, likelihood: Likelihood, covariance: LinearOperator, tolerance: float = SETTLED
) -> str:
    """Noise by output, `r_j / (N - g_j)` with g_j the number of parameters that output j has determined.

    The evidence has already found the common factor; with a single variance there is nothing left to do.

    References:
        MacKay. Bayesian interpolation. Neural Computation 1992, equation 32.
    """
    assert isinstance(likelihood, Gaussian)
    old = likelihood.noise.detach().double()
    if len(old) == 1:
        return "arrived"
    flat = weights.to(problem.dtype)
    variances = torch.zeros_like(old)
    for rows in problem.pieces():
        spread = operators.Linearized(flat, covariance, rows.x[:], function=problem.function).diagonal()
        spread = spread.detach().reshape(len(rows), -1) * observed(rows)
        variances += rows.total(spread.mT).double()
    new = problem.squared_residuals(weights) / (problem.counts - variances / old).clamp_min(1)
    new = torch.where(problem.counts > 0, new, old)  # of an output that was not observed nothing is learnt
    set_noise(likelihood, new)
    return "arrived" if bool(((new / old).log().abs() < tolerance).all()) else "moved"


def set_noise(likelihood: Gaussian, noise: Tensor) -> None:
    """Write a noise variance, kept above the likelihood's floor."""
    with torch.no_grad():
        above = (noise.detach() - likelihood.floor).clamp_min(1e-6 * likelihood.floor)
        likelihood.raw_noise.copy_(above.log().expand_as(likelihood.raw_noise))
