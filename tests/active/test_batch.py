"""Batches: information of labels together, chain rule, nothing twice."""

import itertools
import math

import pytest
import torch
from linear_operator import to_linear_operator
from torch import distributions as td

from bayeskit import active
from bayeskit.core.likelihood import Bernoulli, Categorical, Gaussian, StudentT
from bayeskit.core.posterior import GaussianValues, SampledValues

from .joint_distributions import gaussian, sampled


def together(values, noise, chosen):
    """log det(I + K_b / noise) / 2 of the inputs chosen."""
    k = len(noise)
    at = torch.cat([torch.arange(i * k, (i + 1) * k) for i in chosen.tolist()])
    block = values.covariance.to_dense()[at][:, at].double()
    root = noise.repeat(len(chosen)).rsqrt()
    return torch.logdet(torch.eye(len(at)).double() + root[:, None] * block * root) / 2


@pytest.mark.parametrize("k", [1, 2])
def test_scores_of_a_gaussian_batch_add_up_to_its_joint_information(k):
    values, noise = gaussian(8, k, scale=2.0), torch.linspace(0.1, 0.3, k, dtype=torch.float64)
    chosen, scores = active.batch_bald(values, Gaussian(noise), 5)
    torch.testing.assert_close(scores.sum(), together(values, noise, chosen))
    assert (scores.diff() <= 1e-12).all()  # each label adds no more than the one before


def test_the_batch_is_the_greedy_one():
    values, noise = gaussian(7, scale=2.0), torch.tensor([0.2], dtype=torch.float64)
    chosen, _ = active.batch_bald(values, Gaussian(0.2), 3)
    taken = []
    for index in chosen.tolist():
        gains = {i: together(values, noise, torch.tensor([*taken, i])).item() for i in range(7) if i not in taken}
        assert gains[index] == pytest.approx(max(gains.values()))
        taken.append(index)


def test_float32_agrees_with_float64():
    exact, rough = (active.batch_bald(gaussian(8, dtype=d), Gaussian(0.1), 4) for d in (torch.float64, torch.float32))
    assert torch.equal(exact.indices, rough.indices)
    torch.testing.assert_close(exact.scores, rough.scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "likelihood"),
    [
        (gaussian(6), Gaussian(0.2)),
        (sampled(20, 6), Bernoulli()),
        (sampled(20, 6, 3), Categorical(3)),
    ],
)
def test_a_batch_of_one_is_bald(values, likelihood):
    chosen, scores = active.batch_bald(values, likelihood, 1)
    bald = active.bald(values, likelihood)
    assert chosen.item() == int(bald.argmax())
    torch.testing.assert_close(scores[0], bald.max().double())


@pytest.mark.monte_carlo
def test_a_batch_of_one_is_bald_on_draws_of_gaussian_labels():
    values = gaussian(6, scale=2.0)
    scores = active.batch_bald(values, Bernoulli(), 1).scores
    # 256 draws: the entropies averaged have a standard deviation of 0.2
    assert scores.item() == pytest.approx(active.bald(values, Bernoulli()).max().item(), abs=0.06)


def test_labels_of_draws_are_the_sum_over_all_outcomes():
    values = sampled(12, 5, 3, scale=2.0)
    chosen, scores = active.batch_bald(values, Categorical(3), 4)
    log_p = values.draws.log_softmax(-1)[:, chosen]  # (s, b, c)
    total = 0.0
    for outcome in itertools.product(range(3), repeat=4):
        log_joint = log_p[:, range(4), outcome].sum(-1).logsumexp(0) - math.log(12)
        total -= float(log_joint.exp() * log_joint)
    expected = total - float(td.Categorical(logits=log_p).entropy().mean(0).sum())
    assert float(scores.sum()) == pytest.approx(expected)


@pytest.mark.monte_carlo
def test_outcomes_drawn_come_close_to_all_of_them():
    values = sampled(12, 8, 3, scale=2.0)
    chosen, scores = active.batch_bald(values, Categorical(3), 8)  # 6561 outcomes, 512 of them followed
    log_p = values.draws.log_softmax(-1)[:, chosen]
    outcomes = torch.cartesian_prod(*[torch.arange(3)] * 8)
    log_joint = sum(log_p[:, b][:, outcomes[:, b]] for b in range(8)).logsumexp(0) - math.log(12)
    expected = -(log_joint.exp() * log_joint).sum() - td.Categorical(logits=log_p).entropy().mean(0).sum()
    assert float(scores.sum()) == pytest.approx(float(expected), abs=0.1)  # 512 outcomes: 2 / sqrt(512)


@pytest.mark.monte_carlo
def test_numbers_of_draws_come_close_to_the_gaussian_they_were_drawn_from():
    exact = gaussian(6, scale=1.0)
    draws = exact.sample(512, generator=torch.Generator().manual_seed(0))
    chosen, scores = active.batch_bald(SampledValues(draws), Gaussian(1.0), 2)
    expected = together(exact, torch.ones(1, dtype=torch.float64), chosen)
    assert float(scores.sum()) == pytest.approx(float(expected), abs=0.16)  # 512 log ratios of deviation 1


@pytest.mark.parametrize("likelihood", [Gaussian(0.5), StudentT(), Bernoulli()])
@pytest.mark.parametrize("stored", [False, True])
def test_two_inputs_with_the_same_value_are_not_both_chosen(likelihood, stored):
    K = torch.tensor([[2.0, 2.0, 0.0], [2.0, 2.0, 0.0], [0.0, 0.0, 1.5]], dtype=torch.float64)
    values = GaussianValues(torch.zeros(3, 1, dtype=torch.float64), to_linear_operator(K))
    if stored:
        values = SampledValues(values.sample(300, generator=torch.Generator().manual_seed(0)))
    chosen = active.batch_bald(values, likelihood, 2).indices.tolist()
    assert 2 in chosen
    assert active.bald(values, likelihood).argsort(descending=True)[:2].tolist() == [0, 1] or stored  # one by one: both


@pytest.mark.parametrize("likelihood", [Gaussian(0.1), StudentT(), Bernoulli()])
@pytest.mark.parametrize("values", [gaussian(9), sampled(3, 9)])
def test_a_batch_of_all_has_each_once(values, likelihood):
    chosen = active.batch_bald(values, likelihood, 9).indices
    assert sorted(chosen.tolist()) == list(range(9))


def test_when_the_draws_are_told_apart_the_rest_is_taken_one_by_one():
    draws = torch.zeros(2, 4, 1, dtype=torch.float64)
    draws[0], draws[1] = 30.0, -30.0  # any label tells which of the two it is
    draws[:, 3] *= 0.01
    chosen, scores = active.batch_bald(SampledValues(draws), Bernoulli(), 4)
    assert scores[0].item() == pytest.approx(math.log(2))
    assert scores[1:].abs().max() < 1e-9 and chosen[-1] == 3


def test_the_same_generator_gives_the_same_batch():
    first, second = (
        active.batch_bald(gaussian(9, 3), Categorical(3), 4, generator=torch.Generator().manual_seed(5))
        for _ in range(2)
    )
    assert torch.equal(first.indices, second.indices) and torch.equal(first.scores, second.scores)


def test_more_than_there_are_is_refused():
    with pytest.raises(ValueError, match="at most the number of inputs, 3; got 4"):
        active.batch_bald(gaussian(3), Gaussian(), 4)
