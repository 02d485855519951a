import pickle

import pytest
import torch
from linear_operator.operators import DiagLinearOperator

from bayeskit.core.lazy_moments import DeferredValues, Moments
from bayeskit.core.predictive import GaussianPredictive

MEAN, VARIANCE = torch.tensor([[1.0, -1.0], [0.5, 2.0]]), torch.tensor([[1.0, 4.0], [9.0, 0.5]])
SHIFT, SCALE = torch.tensor([10.0, 20.0]), torch.tensor([2.0, 3.0])


class Counted(Moments):
    def __init__(self):
        self.asked = []

    def mean(self):
        self.asked.append("mean")
        return MEAN

    def both(self):
        self.asked.append("both")
        return MEAN, VARIANCE


def observed(values):
    return GaussianPredictive(values, torch.tensor(0.1))


@pytest.fixture
def source():
    return Counted()


@pytest.fixture
def values(source):
    return DeferredValues(source, DiagLinearOperator(VARIANCE.flatten()))


def test_nothing_is_formed_before_it_is_asked_for(source, values):
    observed(values.affine(SHIFT, SCALE)).affine(1.0, 2.0)
    assert source.asked == []


def test_a_mean_does_not_pay_for_the_variance(source, values):
    joint = observed(values.affine(SHIFT, SCALE))
    assert torch.equal(joint.mean, SHIFT + SCALE * MEAN) and torch.equal(joint.mean, SHIFT + SCALE * MEAN)
    assert source.asked == ["mean"]


@pytest.mark.parametrize("ask", ["moments", "variance"])
def test_the_variance_brings_the_mean_along(source, values, ask):
    for joint in (values, values.affine(SHIFT, SCALE)):
        getattr(joint, ask)
        assert joint.mean.shape == joint.variance.shape
    assert torch.equal(joint.mean, SHIFT + SCALE * MEAN) and torch.equal(joint.variance, SCALE**2 * VARIANCE)
    assert source.asked == ["both"]


@pytest.mark.parametrize(
    "ask", [lambda joint: joint.interval(0.9), lambda joint: joint.std, lambda joint: joint.cdf(0.0)]
)
def test_what_needs_both_asks_once(source, values, ask):
    ask(observed(values))
    assert source.asked == ["both"]


def test_a_change_of_units_is_that_of_the_covariance(values):
    changed = values.affine(SHIFT, SCALE)
    torch.testing.assert_close(changed.variance.flatten(), changed.covariance.diagonal())


def test_values_survive_pickling(values):
    again = pickle.loads(pickle.dumps(values.affine(SHIFT, SCALE)))
    assert torch.equal(again.mean, SHIFT + SCALE * MEAN) and torch.equal(again.variance, SCALE**2 * VARIANCE)
