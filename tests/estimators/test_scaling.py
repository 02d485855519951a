import pytest
import torch

from bayeskit.estimators.scaling import Standardizer


def test_columns_get_mean_zero_and_spread_one(generator):
    x = 5 + 3 * torch.randn(50, 2, generator=generator, dtype=torch.float64)
    z = Standardizer.fit(x)(x)
    assert torch.allclose(z.mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(z.std(0, correction=0), torch.ones(2, dtype=torch.float64))


def test_integer_weights_are_repetitions(generator):
    x = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    weights = torch.tensor([1, 2, 0, 3, 1, 1], dtype=torch.float64)
    repeated = Standardizer.fit(x.repeat_interleave(weights.long(), dim=0))
    weighted = Standardizer.fit(x, weights)
    assert torch.allclose(weighted.shift, repeated.shift) and torch.allclose(weighted.scale, repeated.scale)


@pytest.mark.parametrize("value", [0.0, 1e-12, 3.7, 1e12])
def test_constant_columns_keep_scale_one(value):
    scaler = Standardizer.fit(torch.full((7, 1), value, dtype=torch.float64))
    assert scaler.scale.item() == 1.0
    assert scaler(torch.full((2, 1), value, dtype=torch.float64)).abs().max() <= 1e-15 * max(value, 1)


def test_tiny_spread_around_a_huge_value_is_kept():
    x = 1e6 + torch.tensor([[0.0], [1e-3], [2e-3]], dtype=torch.float64)
    # 1e6 + 1e-3 is represented to 1e-10, which bounds the relative error of the spread by 1e-7.
    assert torch.isclose(Standardizer.fit(x).scale, torch.tensor(1e-3 * (2 / 3) ** 0.5, dtype=torch.float64), rtol=1e-6)
