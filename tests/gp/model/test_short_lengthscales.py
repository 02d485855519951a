"""Fast functions are found from the default start, and pure noise stays noise."""

import numpy as np
import pytest
import torch
from gpytorch.constraints import Interval
from gpytorch.kernels import MaternKernel, RBFKernel, ScaleKernel
from gpytorch.means import ConstantMean

from bayeskit import GPClassifier, GPRegressor, gp
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data
from bayeskit.gp.model.hyperparameters import learnable
from bayeskit.gp.model.short_lengthscales import FEWEST, shorten_lengthscales

GRID = np.linspace(0.02, 0.98, 200)[:, None]
QUICK = Training(lr=0.05, max_epochs=60, batch_size=256)


def oscillation(frequency, n, seed=0):
    x = np.linspace(0, 1, n)[:, None]
    return x, np.sin(frequency * x[:, 0]) + 0.1 * np.random.default_rng(seed).standard_normal(n)


def rmse(model, frequency):
    return np.sqrt(np.mean((model.predict(GRID) - np.sin(frequency * GRID[:, 0])) ** 2))


def shortened(kernel, x, y, likelihood=None):
    """The factor of every lengthscale."""
    k = 1 if y.ndim == 1 else y.shape[-1]
    prior = gp.default_prior(x, k) if kernel is None else gp.GaussianProcess(ConstantMean(), kernel, k)
    model = learnable(prior, likelihood or Gaussian(), learn=True)
    part = next(one for one in model.kernel.modules() if getattr(one, "has_lengthscale", False))
    before = part.lengthscale.detach().clone()
    shorten_lengthscales(model, Data(x, y))
    return (part.lengthscale.detach() / before).squeeze(-2)


@pytest.mark.parametrize("n", [40, 60, 150])
@pytest.mark.parametrize("frequency", [25, 40, 50, 60, 90])
def test_exact_finds_an_oscillation(frequency, n):
    if frequency > 1.6 * n:
        frequency = n  # fewer than four points a period carry no smooth function
    model = GPRegressor(inference="exact", random_state=0).fit(*oscillation(frequency, n))
    assert rmse(model, frequency) < 0.15  # noise alone gives 0.71


@pytest.mark.parametrize(
    "inference",
    [
        gp.SGPR(),
        gp.SVGP(training=QUICK),
        gp.DualSVGP(),
        gp.OrthogonalSVGP(training=QUICK),
        gp.CoresetGP(),
        gp.MemoryDualGP(),
        gp.SWSGP(training=QUICK),
        gp.FullyBayesian(num_chains=2, num_samples=4, burn_in=4, num_components=4),
    ],
    ids=lambda method: type(method).__name__,
)
def test_every_method_finds_an_oscillation(inference):
    model = GPRegressor(inference=inference, random_state=0).fit(*oscillation(60, 60))
    assert rmse(model, 60) < 0.2


def test_a_trend_does_not_hide_it():
    x, y = oscillation(60, 80)
    model = GPRegressor(random_state=0).fit(x, y + 10 * x[:, 0])
    truth = np.sin(60 * GRID[:, 0]) + 10 * GRID[:, 0]
    assert np.sqrt(np.mean((model.predict(GRID) - truth) ** 2)) < 0.2


def test_labels_that_change_fast():
    x = np.linspace(0, 1, 100)[:, None]
    labels = np.array(["low", "high"])[(np.sin(40 * x[:, 0]) > 0).astype(int)]
    model = GPClassifier(random_state=0).fit(x, labels)
    truth = np.where(np.sin(40 * GRID[:, 0]) > 0, "high", "low")
    assert (model.predict(GRID) == truth).mean() > 0.85


@pytest.mark.parametrize("d", [2, 4])
def test_one_fast_feature_among_slow_ones(d):
    rng = np.random.default_rng(d)
    x, new = rng.uniform(size=(300, d)), rng.uniform(size=(300, d))
    f = lambda x: np.sin(40 * x[:, 1]) + x[:, 0]  # noqa: E731
    model = GPRegressor(inference="exact", random_state=0).fit(x, f(x) + 0.1 * rng.standard_normal(300))
    assert np.sqrt(np.mean((model.predict(new) - f(new)) ** 2)) < 0.2


@pytest.mark.parametrize(("n", "d"), [(20, 1), (40, 1), (60, 1), (300, 1), (60, 4), (100, 10)])
def test_pure_noise_keeps_its_lengthscales(n, d):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x, y = torch.tensor(rng.uniform(size=(n, d))), torch.tensor(rng.standard_normal((n, 1)))
        assert bool((shortened(None, x, y) == 1).all())


def test_outputs_with_kernels_of_their_own_are_judged_apart():
    x, fast = oscillation(60, 60)
    x = torch.tensor(x)
    y = torch.stack([torch.tensor(fast), (3 * x[:, 0]).sin()], dim=-1)
    kernel = MaternKernel(batch_shape=torch.Size([2]))
    kernel.lengthscale = 0.3
    factors = shortened(kernel.double(), x, y)
    assert factors[0] < 0.3 and factors[1] == 1
    y[::3, 1] = torch.nan
    assert torch.equal(shortened(kernel, x, y), factors)


def test_only_what_may_be_learned_is_changed():
    x, y = (torch.tensor(t) for t in oscillation(60, 60))
    frozen, bounded = RBFKernel().double().requires_grad_(False), RBFKernel(lengthscale_constraint=Interval(0.2, 5.0))
    assert shortened(ScaleKernel(frozen), x, y) == 1
    bounded.lengthscale = 0.3
    assert 0.2 < 0.3 * shortened(bounded.double(), x, y) <= 0.3
    few = slice(0, FEWEST - 1)
    assert shortened(None, x[few], y[few, None]) == 1
