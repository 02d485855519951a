"""Every registered GP method on difficult data and starts; `benchmarks/gp_trust.py` has more."""

import math

import numpy as np
import pytest
import torch
from gpytorch.kernels import Kernel

from bayeskit import GPClassifier, GPRegressor, registry
from bayeskit.core.likelihood import Bernoulli, Gaussian, Poisson
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data
from bayeskit.gp.model.gp_priors import kernel_prior

from ..problems import generator, regression

DATA = regression(n=24, d=2)
X, Y = DATA.x, DATA.y
LABELS = (Y[:, 0] > 0).long()

# name -> inputs, targets, likelihood, logarithms of lengthscales and output scale to start from
HARD = {
    "one input, many targets": (X[:1].repeat(24, 1), Y, Gaussian(), {}),
    "nearly duplicate data": (torch.cat([X, X + 1e-9]), torch.cat([Y, -Y]), Gaussian(1e-10, learn=False), {}),
    "short lengthscales": (X, Y, Gaussian(), {"raw_lengthscale": 1e-6}),
    "long lengthscales, no noise": (X, Y, Gaussian(1e-10, learn=False), {"raw_lengthscale": 1e6}),
    "long and large": (X, Y, Gaussian(), {"raw_lengthscale": 1e6, "raw_outputscale": 1e6}),
    "small": (X, Y, Gaussian(), {"raw_outputscale": 1e-10}),
    "no noise": (X, X.sum(-1, keepdim=True).sin(), Gaussian(1.0001e-6), {}),
    "a constant column and target": (torch.cat([X, 0 * X[:, :1] + 7], -1), 0 * Y + 3, Gaussian(), {}),
    "offsets": (X + 1e8, Y + 1e8, Gaussian(), {}),
    "one data point": (X[:1], Y[:1], Gaussian(), {}),
    "one data point twice": (X[:1].repeat(2, 1), Y[:2], Gaussian(), {}),
    "200 columns": (regression(n=24, d=200).x, Y, Gaussian(), {}),
    "one label": (X, 0 * LABELS, Bernoulli(), {}),
    "labels that contradict": (torch.cat([X, X]), torch.cat([LABELS, 1 - LABELS]), Bernoulli(), {}),
    "labels, large": (X, LABELS, Bernoulli(), {"raw_outputscale": 1e10}),
    "large counts": (X, (1e6 * Y.exp()).round(), Poisson(), {}),
}
CASES = [
    (name, hard)
    for name in registry.names(family="gp")
    for hard, (_, _, likelihood, _) in HARD.items()
    if isinstance(likelihood, registry.inference_class(name).likelihoods)
]
every_method = pytest.mark.parametrize("name", registry.names(family="gp"))


def sound(fit, x):
    """Finite everywhere, no negative variance, and the jitter among the diagnostics."""
    x = torch.cat([x[:4], x[:2] * 1.1 + 0.1, 1e6 * x[:1]])
    values = fit.posterior(x)
    dense = values.covariance.to_dense()
    draws = fit.posterior.sample_functions(2, generator=generator())(x)
    curves = [torch.tensor(curve, dtype=torch.float64) for curve in fit.history.values()]
    numbers = [values.mean, values.variance, dense, draws, *curves]
    assert all(torch.isfinite(one).all() for one in numbers)
    assert (values.variance >= 0).all() and (dense.diagonal() >= 0).all()
    assert fit.log_evidence is None or math.isfinite(float(fit.log_evidence))
    assert any(key.startswith("jitter of ") for key in fit.diagnostics)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("name", "hard"), CASES)
def test_a_fit_is_finite(name, hard, dtype):
    x, y, likelihood, scales = HARD[hard]
    x, y = x.to(dtype), y.to(dtype) if y.is_floating_point() else y
    prior = kernel_prior(None, x, 1, dtype=dtype, generator=generator())
    for key, value in scales.items():
        owner = prior.kernel.base_kernel if key == "raw_lengthscale" else prior.kernel
        getattr(owner, key).data.fill_(math.log(value))
    sound(registry.quick(name).infer(prior, likelihood, Data(x, y), generator=generator()), x)


@every_method
def test_inputs_as_users_pass_them(name):
    """Integers, a constant column, duplicates, several outputs with missing entries."""
    pandas = pytest.importorskip("pandas")
    whole = (10 * X).round().int().numpy()
    table = pandas.DataFrame({"a": whole[:, 0], "b": whole[:, 1], "c": 1})
    model = GPRegressor(inference=registry.quick(name), random_state=0)
    assert np.isfinite(model.fit(table, whole[:, 0]).predict(table, return_std=True)).all()
    assert any(key.startswith("jitter of ") for key in model.diagnostics_)
    targets = pandas.DataFrame({"u": Y[:, 0].numpy(), "v": -Y[:, 0].numpy()})
    targets.iloc[:5, 1] = np.nan
    mean, std = model.fit(table, targets).predict(table, return_std=True)
    assert mean.shape == std.shape == (24, 2) and np.isfinite(mean).all() and (std > 0).all()


@every_method
def test_bad_inputs_raise_clear_errors(name):
    x, y = X.numpy(), Y[:, 0].numpy()
    model = GPRegressor(inference=registry.quick(name))
    for bad, word in ((np.nan, "NaN"), (np.inf, "infinity")):
        broken = x.copy()
        broken[3, 1] = bad
        with pytest.raises(ValueError, match=word):
            model.fit(broken, y)
        target = y.copy()
        target[3] = bad
        with pytest.raises(ValueError, match=word):
            model.fit(x, target)
    model.fit(x, y)
    with pytest.raises(ValueError, match="3 features.* 2 features"):
        model.predict(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="did you mean"):
        GPRegressor(inference=name + "x").fit(x, y)
    for number in {"num_inducing", "num_points"} & set(registry.inference_class(name).__dataclass_fields__):
        with pytest.raises(ValueError, match=f"`{number}` must be a positive integer; got 0"):
            GPRegressor(inference=registry.get(name, **{number: 0})()).fit(x, y)
        more = registry.quick(name).set_params(**{number: 1000})
        assert np.isfinite(GPRegressor(inference=more).fit(x, y).predict(x)).all()


TRAINED = [
    name for name in registry.names(family="gp") if "training" in registry.inference_class(name).__dataclass_fields__
]


class Interrupting(Kernel):
    """A squared-exponential kernel whose evaluation is interrupted as soon as the file `when` exists."""

    has_lengthscale = True
    when = None

    def forward(self, x1, x2, diag=False, **params):
        if self.when is not None and self.when.exists():
            raise KeyboardInterrupt
        distance = self.covar_dist(x1 / self.lengthscale, x2 / self.lengthscale, square_dist=True, diag=diag, **params)
        return (-0.5 * distance).exp()


@pytest.mark.parametrize("name", TRAINED)
def test_an_interrupted_fit_resumes_from_its_checkpoint(name, tmp_path, monkeypatch):
    x, y = X.repeat(3, 1).numpy() + np.arange(72)[:, None] / 100, np.tile(LABELS.numpy(), 3)

    def fit(path):
        method = registry.quick(name).set_params(
            training=Training(lr=0.05, max_epochs=6, batch_size=20, checkpoint=path)
        )
        if hasattr(method, "by_rows"):
            method.set_params(by_rows=1)
        return GPClassifier(kernel=Interrupting(), inference=method, random_state=0).fit(x, y)

    whole, path = fit(None), tmp_path / "run"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Interrupting, "when", path)
        fit(path)
    assert path.exists()
    resumed = fit(path)
    assert np.array_equal(whole.predict_proba(x), resumed.predict_proba(x))
    assert whole.history_ == resumed.history_
