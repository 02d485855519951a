"""The Newton step of all classes against the one of the Hessian formed."""

import pytest
import torch

from bayeskit.bnn.vbll.multiclass_newton import newton_step
from bayeskit.bnn.vbll.row_prior import RowPrior


@pytest.mark.parametrize("dense", [False, True])
def test_the_step_is_that_of_the_hessian_formed(dense, generator):
    n, d, k = 30, 4, 3
    features = torch.randn(n, d, generator=generator, dtype=torch.float64)
    probs = torch.randn(n, k, generator=generator, dtype=torch.float64).softmax(-1)
    weights = torch.rand(n, 1, generator=generator, dtype=torch.float64).round(decimals=1)  # some are zero
    precision = 1 + torch.rand(k, d, generator=generator, dtype=torch.float64)
    prior = RowPrior(torch.zeros_like(precision), torch.diag_embed(precision) if dense else precision)
    curvature = weights.unsqueeze(-1) * (torch.diag_embed(probs) - probs.unsqueeze(-1) * probs.unsqueeze(-2))
    hessian = torch.einsum("ia,ikl,ib->kalb", features, curvature, features).reshape(k * d, k * d)
    hessian += torch.diag(precision.flatten())
    gradient = torch.randn(k, d, generator=generator, dtype=torch.float64)
    expected = torch.linalg.solve(hessian, gradient.flatten()).reshape(k, d)
    options = {"precondition": lambda g: g / precision, "tolerance": 1e-12}
    step = newton_step(prior, features, weights * probs, gradient, **options)
    torch.testing.assert_close(step, expected, rtol=1e-9, atol=1e-10)
