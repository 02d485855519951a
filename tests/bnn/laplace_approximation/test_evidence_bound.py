"""The evidence from blocks of data is at most that of all data, and equal to it where one block holds them all."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from bayeskit import bnn
from bayeskit.bnn.curvature.prior_precision import prior_precision
from bayeskit.bnn.laplace_approximation import evidence_bound
from bayeskit.bnn.laplace_approximation.evidence_bound import Blocking, block_evidence, occam_bound
from bayeskit.bnn.laplace_approximation.log_joint import Problem
from bayeskit.bnn.training.map_training import Trained
from bayeskit.core.likelihood import Bernoulli, Categorical, Gaussian
from bayeskit.core.types import Data

from ..example_networks import seeded


def problem(generator, outputs=1, n=24, setting="bound"):
    """Weights about which the bound is taken, with case weights."""
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    weights = 0.5 + torch.rand(n, generator=generator, dtype=torch.float64)
    y = (x[:, 0] > 0).long() if outputs == 1 else torch.arange(n) % outputs
    network = seeded(lambda: bnn.MLP(3, outputs, hidden=(4,), dtype=torch.float64))
    params = {name: value.detach() for name, value in network.named_parameters()}
    likelihood = Bernoulli() if outputs == 1 else Categorical(outputs)
    data, prior = Data(x, y, weights), bnn.gaussian_prior(network).weights
    trained = Trained(network, params, likelihood, None, {}, 1.0, data)
    precision = prior_precision(prior, list(params), "diagonal", setting)
    return Problem.build(trained, prior, list(params), data, structure="diagonal", precision=precision)


def exact(case, log_precision):
    """`-(log |H + P| - log |P|) / 2` over the weights."""
    from bayeskit.bnn.curvature import ggn

    h = ggn.full(case.function, case.start, case.data, case.likelihood).matrix
    p = torch.diag(case.prior.scaled(log_precision))
    return -0.5 * (torch.logdet(h + p) - torch.logdet(p))


def bound(case, log_precision, blocking=evidence_bound.DEFAULT_BLOCKING):
    return occam_bound(case, case.start, case.likelihood, log_precision, blocking)


OUTPUTS_ALONE = Blocking(fewest=10**6)


@pytest.mark.parametrize("outputs", [1, 3])
def test_one_block_is_the_evidence_and_smaller_ones_bound_it_from_below(outputs, generator):
    case = problem(generator, outputs)
    log_precision = torch.tensor([0.3, -0.5], dtype=torch.float64)
    assert float(bound(case, log_precision)) == pytest.approx(float(exact(case, log_precision)), abs=1e-8)
    values = []
    for size in (24, 12, 6, 3, 1):  # nested partitions
        blocking = Blocking(size * outputs, fewest=1)
        assert [len(part) for part in blocking.partition(case)] == [size] * (24 // size)
        values.append(float(bound(case, log_precision, blocking)))
    assert values == sorted(values, reverse=True)
    assert values[1] < values[0] - 1e-3  # and not by rounding


def test_outputs_alone_bound_the_evidence_too(generator):
    for seed in range(20):
        case = problem(generator.manual_seed(seed), outputs=4, n=8)
        log_precision = torch.randn(2, generator=generator, dtype=torch.float64)
        assert float(bound(case, log_precision, OUTPUTS_ALONE)) < float(exact(case, log_precision))


def test_outputs_with_a_head_of_their_own_and_gaussian_noise_lose_nothing_alone(generator):
    """Linear outputs with independent weights: neither the kernel nor Lambda has entries between outputs."""
    x = torch.randn(10, 3, generator=generator, dtype=torch.float64)
    data = Data(x, torch.randn(10, 2, generator=generator, dtype=torch.float64))
    network = seeded(lambda: bnn.MLP(3, 2, hidden=(), dtype=torch.float64))
    params = {name: value.detach() for name, value in network.named_parameters()}
    prior = bnn.gaussian_prior(network).weights
    likelihood = Gaussian(torch.tensor([0.1, 0.4]))
    case = Problem.build(
        Trained(network, params, likelihood, None, {}, 1.0, data),
        prior,
        list(params),
        data,
        structure="diagonal",
        precision=prior_precision(prior, list(params), "diagonal", "bound"),
    )
    zero = torch.zeros(1, dtype=torch.float64)
    assert float(bound(case, zero, OUTPUTS_ALONE)) == pytest.approx(float(exact(case, zero)), abs=1e-8)


@pytest.mark.monte_carlo
def test_one_random_block_scaled_is_unbiased_for_the_average_bound(generator):
    """All ways to cut 6 data points into two blocks of 3: twice one block averages to the average bound."""
    case = problem(generator, n=6)
    log_precision = torch.tensor([0.3, -0.5], dtype=torch.float64)
    single, both = [], []

    def part(points):
        rest = replace(case, data=case.data.rows(torch.tensor(points)))
        return float(bound(rest, log_precision))

    for points in itertools.combinations(range(6), 3):
        single.append(2 * part(points))
        both.append(part(points) + part(sorted(set(range(6)) - set(points))))
    assert math.fsum(single) / len(single) == pytest.approx(math.fsum(both) / len(both), abs=1e-10)
    assert max(both) < float(exact(case, log_precision))


def test_some_of_the_blocks_are_scaled_to_all(generator, monkeypatch):
    case, blocking = problem(generator), Blocking(4, fewest=1)
    log_precision, zero = torch.tensor([0.3, -0.5], dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    expansion = case.expansion(case.start, case.likelihood, None)
    whole = block_evidence(case, case.start, case.likelihood, expansion, blocking)
    assert len(whole.blocks) == 6 and whole.scale == 1
    occam = whole.occam(log_precision, zero)
    assert float(occam) == pytest.approx(float(bound(case, log_precision, blocking)), abs=1e-10)
    difference = whole.value(log_precision, zero) - case.log_joint(case.start, case.likelihood, log_precision)
    assert float(difference) == pytest.approx(float(occam), abs=1e-10)
    monkeypatch.setattr("bayeskit.core.operators.chunking.CHUNK_ELEMENTS", 2 * 3 * 16)
    some = block_evidence(case, case.start, case.likelihood, expansion, blocking)
    assert len(some.blocks) == 3 and some.scale == 2


@pytest.mark.monte_carlo
@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
def test_laplace_learns_by_the_bound(structure, generator):
    """The bound at the learnt factors is a maximum of it, and below the evidence there."""
    case = problem(generator, n=600)  # two blocks
    network = seeded(lambda: bnn.MLP(3, 1, hidden=(4,), dtype=torch.float64))
    prior = bnn.gaussian_prior(network)

    def fit(structure, setting):
        inference = bnn.Laplace("all", structure, setting, pretrained=True)
        return inference.infer(prior, Bernoulli(), case.data, generator=generator)

    learnt = fit(structure, {"1": "bound", "": "bound"})
    factors = dict(zip(learnt.diagnostics["parts of the prior"], learnt.diagnostics["prior precision"], strict=True))
    assert learnt.log_evidence.kind == "Laplace bound"
    assert float(learnt.log_evidence) < float(fit("full", factors).log_evidence)
    log_precision = torch.tensor([factors["1"], factors[""]], dtype=torch.float64).log()

    def value(shift):
        at = log_precision + torch.tensor(shift, dtype=torch.float64)
        return float(case.log_joint(case.start, case.likelihood, at) + bound(case, at))

    assert value([0.0, 0.0]) == pytest.approx(float(learnt.log_evidence), abs=1e-8)
    for shift in ([0.05, 0.0], [-0.05, 0.0], [0.0, 0.05], [0.0, -0.05]):
        assert value(shift) < value([0.0, 0.0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"structure": "full", "prior_precision": "bound"}, "for structures whose own evidence drops terms"),
        ({"structure": "diagonal", "prior_precision": {"1": "bound", "": "evidence"}}, "by one rule"),
    ],
)
def test_settings_that_contradict_each_other(settings, words, generator):
    prior = bnn.gaussian_prior(seeded(lambda: bnn.MLP(3, 1, hidden=(4,))))
    with pytest.raises(ValueError, match=words):
        bnn.Laplace("all", **settings).infer(
            prior, Gaussian(), Data(torch.zeros(4, 3), torch.zeros(4, 1)), generator=generator
        )
