"""What the held-out data decide is right for repeated rows, rare classes and case weights."""

import numpy as np
import pytest
import torch

from bayeskit import BNNClassifier, BNNRegressor
from bayeskit.bnn.training.validation_search import bounded_average, gains


@pytest.mark.monte_carlo
def test_every_row_twice_predicts_as_well_as_weight_two():
    """Over these seeds the difference is -0.13, 0.24 and 0.08 nats; the noise alone costs 1.42."""
    excess = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        x, new = rng.normal(size=(60, 6)), rng.normal(size=(1000, 6))
        y, target = x[:, 0] + rng.normal(size=60), new[:, 0] + rng.normal(size=1000)
        once = BNNRegressor(inference="map", random_state=seed).fit(x, y, sample_weight=np.full(60, 2.0))
        twice = BNNRegressor(inference="map", random_state=seed).fit(np.repeat(x, 2, 0), np.repeat(y, 2))
        once, twice = (-float(model.predictive(new).log_prob(target).mean()) for model in (once, twice))
        excess.append(twice - once)
    assert np.median(excess) < 1, excess


@pytest.mark.monte_carlo
def test_the_only_row_of_a_class_is_trained_on():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2))
    y = (x[:, 0] > 0).astype(int)
    x[0], y[0] = [9, 9], 2
    model = BNNClassifier(inference="deep_ensemble", random_state=0).fit(x, y)
    assert model.predict_proba(x[:1])[0, 2] > 0.2
    assert -np.log(model.predict_proba(x[1:])[np.arange(199), y[1:]]).mean() < 0.1


@pytest.mark.parametrize("seed", range(5))
def test_gains_honor_case_weights(seed):
    gain = torch.randn(30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.2
    ignored = torch.cat([gain, torch.full((100,), -5.0, dtype=torch.float64)])
    weights = torch.cat([torch.ones(30), torch.full((100,), 1e-12)])
    ordered = gain.sort().values.numpy()  # Yuen's test by its textbook formula: one observation off each end
    winsorized = np.r_[ordered[1], ordered[1:-1], ordered[-2]]
    usual = ordered[1:-1].mean() > winsorized.std(ddof=1) / ((28 / 30) * 30**0.5)
    assert gains(gain, None) == gains(gain, torch.full((30,), 2.0)) == gains(ignored, weights) == usual
    assert not gains(gain, torch.zeros(30))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("copies", [1, 3])
def test_one_observation_cannot_decide(seed, copies):
    """The sign of the others decides; how far out the one lies changes nothing, nor how often it stands there."""
    better = torch.rand(12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5
    clusters = torch.cat([torch.arange(12), torch.full((copies,), 12)])
    for size in (10.0, 1e3, 1e9):
        outlier = torch.full((copies,), size, dtype=torch.float64)
        assert gains(torch.cat([better, -outlier]), None, clusters=clusters)
        assert not gains(torch.cat([-better, outlier]), None, clusters=clusters)
        losses = [bounded_average(torch.cat([-better, -f * outlier]), None, clusters=clusters) for f in (1, 50)]
        assert losses[0] == losses[1]


@pytest.mark.parametrize("seed", range(5))
def test_weight_two_is_two_copies_to_the_criteria(seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(20, generator=generator, dtype=torch.float64) + 0.2
    weights = torch.randint(1, 4, (20,), generator=generator)
    codes = torch.arange(20).repeat_interleave(weights)
    assert gains(values, weights) == gains(values[codes], None, clusters=codes)
    repeated = bounded_average(values[codes], None, clusters=codes)
    assert torch.isclose(bounded_average(values, weights), repeated, rtol=1e-12)
    plain = (weights * values).sum() / weights.sum()
    assert torch.isclose(repeated, plain)  # nothing is bounded where there is no gross outlier


def test_few_observations_choose_no_weaker_prior():
    assert not gains(torch.ones(3), None) and gains(torch.ones(4) + torch.arange(4) / 100, None)


def test_the_size_of_an_outlier_does_not_matter():
    """A target 10 or 1000 standard deviations off, in the validation set, leads to the same network."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 2))
    y = np.sin(2 * x[:, 0]) + 0.1 * rng.normal(size=80)
    held_out = np.arange(80) < 16
    predictions = []
    for size in (10, 1000):
        y[0] = size
        model = BNNRegressor(inference="map", random_state=0, validation_split=held_out).fit(x, y)
        predictions.append(model.predict(x))
    assert (predictions[0] == predictions[1]).all()
