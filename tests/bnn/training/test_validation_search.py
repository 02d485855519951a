"""Calibration of a likelihood on held-out data."""

import pytest
import torch
from linear_operator.operators import DiagLinearOperator

from bayeskit.bnn.training.validation_search import calibrate
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.posterior import GaussianValues, SampledValues
from bayeskit.core.types import Data


@pytest.mark.monte_carlo
@pytest.mark.parametrize("form", ["Gaussian", "draws"])
def test_calibration_finds_the_noise_beyond_the_spread(form, generator):
    """Residuals of variance 1 about values of variance 0.36: the noise is what is left, 0.64.

    Five standard errors of a variance of n residuals, sqrt(2 / n); a mixture of 400 draws adds little to it.
    """
    n = 2000
    data = Data(torch.zeros(n, 1), torch.randn(n, 1, generator=generator, dtype=torch.float64))
    values = SampledValues(0.6 * torch.randn(400, n, 1, generator=generator, dtype=torch.float64))
    if form == "Gaussian":
        values = GaussianValues(data.y.new_zeros(n, 1), DiagLinearOperator(data.y.new_full((n,), 0.36)))
    likelihood = Gaussian(0.1)
    calibrate(likelihood, values, data)
    assert float(likelihood.noise.detach()) == pytest.approx(0.64, abs=5 * (2 / n) ** 0.5)


def test_calibration_by_one_draw_is_the_mean_square(generator):
    y = torch.randn(50, 1, generator=generator, dtype=torch.float64)
    likelihood = Gaussian(0.1)
    calibrate(likelihood, SampledValues(torch.zeros(1, 50, 1)), Data(torch.zeros(50, 1), y))
    assert float(likelihood.noise.detach()) == pytest.approx(float(y.square().mean()), rel=1e-4)
