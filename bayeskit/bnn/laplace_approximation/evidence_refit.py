"""The most probable weights of a subset, its prior precision and its noise, found together.

    round:  expand the log-likelihood about w  ->  evidence picks precision and noise  ->  Gauss-Newton step to w*

One round suffices where the function is linear in the weights and the noise Gaussian. A step that does not raise the
log joint density is halved, and after a few halvings not taken. A curvature that neglects terms (diagonal, Kronecker)
is good for a covariance and not for a step: there evidence and L-BFGS alternate.
"""

import copy

import torch
from torch import Tensor

from bayeskit.bnn.curvature.ggn import Curvature
from bayeskit.bnn.curvature.linearized_evidence import ModeEvidence
from bayeskit.bnn.curvature.prior_precision import Setting, bounded, start
from bayeskit.bnn.laplace_approximation.evidence_bound import block_evidence, occam_bound
from bayeskit.bnn.laplace_approximation.log_joint import Problem
from bayeskit.bnn.laplace_approximation.refit_state import Refit, RefitState
from bayeskit.core.optimize import minimize_lbfgs

ROUNDS_LINEAR = 50
"""Rounds at most for the weights of a last layer; the problem is smooth and mostly concave, and ends well before."""

ROUNDS_NETWORK = (3, 30)
"""Rounds at most for other weights: few where a round is expensive, many where it is not (see `_rounds`)."""

ROUNDS_WORK = 1e10
"""Cubes of the number of weights that all rounds may come to: 30 rounds up to 690 weights, 3 from 1,500 on."""

ROUNDS_ALTERNATION = 10
"""Rounds at most of evidence and L-BFGS for the weights of a last layer, a bound on the time."""

TOLERANCE = 1e-7
"""Largest relative change of a noise variance by output that ends the rounds of Gauss-Newton steps."""

TOLERANCE_ALTERNATION = 1e-3
"""Largest relative change of a precision or the noise that ends the alternation: its evidence is an approximation."""


def refit(problem: Problem, setting: Setting) -> Refit:
    """The weights, their prior precision and the noise, by the rule that the structure allows.

    Args:
        problem: The log joint density and where to start.
        setting: Factors on the prior's precision, or how to learn them.
    """
    likelihood = copy.deepcopy(problem.likelihood)
    noise = likelihood.noise_parameter  # None of other noise than Gaussian
    exact = problem.structure in ("full", "kernel")
    summed = isinstance(problem.prior.base, Tensor)  # not so beside factors of earlier data: the nearest product
    faithful = exact or (problem.structure == "kronecker" and problem.linear and noise is not None and summed)
    # At fixed weights, a curvature that neglects terms counts too many parameters as determined: noise would swell.
    learns_noise = noise is not None and noise.requires_grad and (faithful or problem.linear)
    if noise is not None and noise.requires_grad and not (learns_noise or problem.movable):  # no training has set it
        squares, counts = problem.squared_residuals(problem.start), problem.counts
        likelihood.set_noise_variance(squares.sum() / counts.sum() if len(noise) == 1 else squares / counts)
    log_precision, learnt = start(setting, problem.prior)
    state = RefitState(problem, likelihood, problem.start, log_precision, learnt, learns_noise)
    if bounded(setting) or not faithful:
        return _alternate(state, by_blocks=bounded(setting))
    if problem.movable or problem.linear:
        return _gauss_newton(state)
    curvature, model = _model(state)
    log_noise = state.maximize(model.value, model.expansion.noise)
    return Refit(state, curvature, log_noise, model.occam(state.log_precision, log_noise), 1)


def _gauss_newton(state: RefitState) -> Refit:
    """Rounds of evidence and Gauss-Newton step, for a curvature that is that of the log-likelihood itself."""
    limit, steps, at_mode = _rounds(state.problem), 0, True
    curvature, model = _model(state)
    while True:
        before = state.copy()
        log_noise = state.maximize(model.value_at_mode if at_mode else model.value, model.expansion.noise)
        factors = state.log_precision, log_noise
        exact = state.step(state.problem.center + model.mode(*factors), model.predicted_log_joint(*factors))
        if not exact and at_mode and int(state.learnt.sum()) > 1:
            # In the expansion of a network of several layers one layer can replace another, and not in the network.
            state, at_mode = before, False
            continue
        steps += 1
        if exact and (not state.learns_noise or state.separate_noise(curvature, log_noise, TOLERANCE)):
            break  # the expansion holds at the new weights: its curvature is theirs
        curvature, model = _model(state)
        if state.weights is before.weights or steps == limit:
            log_noise = state.maximize(model.value, model.expansion.noise)
            break
    return Refit(state, curvature, log_noise, model.occam(state.log_precision, log_noise), steps)


def _model(state: RefitState) -> tuple[Curvature, ModeEvidence]:
    curvature, expansion = state.expand()
    model = curvature.evidence(expansion)
    assert isinstance(model, ModeEvidence)
    return curvature, model


def _rounds(problem: Problem) -> int:
    """How many at most. A deep network needs some tens: the evidence moves with the weights, and both move far."""
    if problem.linear:
        return ROUNDS_LINEAR
    fewest, most = ROUNDS_NETWORK
    return max(fewest, min(most, int(ROUNDS_WORK / len(problem.start) ** 3)))


def _alternate(state: RefitState, *, by_blocks: bool) -> Refit:
    """Evidence at fixed weights, for a curvature that neglects terms: a Gauss-Newton step with it would not be one.

    The weights of a last layer are refitted between rounds by L-BFGS; others stay as training has left them.

    Args:
        state: Where to start.
        by_blocks: Whether the evidence is the lower bound from blocks of data.
    """
    problem, likelihood, steps = state.problem, state.likelihood, 0
    while True:
        if problem.linear:
            state.weights = _most_probable(state)
        curvature, expansion = state.expand()
        if by_blocks:
            model = block_evidence(problem, state.weights, likelihood, expansion)
        else:
            model = curvature.evidence(expansion)
        before = state.log_precision
        log_noise = state.maximize(model.value, expansion.noise)
        steps += 1
        if not problem.linear or steps == ROUNDS_ALTERNATION:
            break
        change = torch.cat([state.log_precision - before, log_noise.reshape(1)]).abs().max()
        if change < TOLERANCE_ALTERNATION and (
            not state.learns_noise or state.separate_noise(curvature, log_noise, TOLERANCE_ALTERNATION)
        ):
            break
    if by_blocks:
        occam = occam_bound(problem, state.weights, likelihood, state.log_precision)
    else:
        occam = model.occam(state.log_precision, log_noise)
    return Refit(state, curvature, log_noise, occam, steps)


def _most_probable(state: RefitState) -> Tensor:
    """The weights of the largest log joint density of a last layer."""
    flat, problem = state.weights.clone().requires_grad_(), state.problem

    def loss() -> Tensor:
        return -problem.log_joint(flat, state.likelihood, state.log_precision)

    minimize_lbfgs(loss, [flat], tolerance=1e-13, max_iter=500, description="last layer")
    return flat.detach()
