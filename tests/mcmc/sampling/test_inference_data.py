import sys
import warnings

import numpy as np
import pytest
import torch

from bayeskit import mcmc


def chain(generator):
    start = {"x": torch.zeros(3, 2), "y": torch.zeros(3)}
    density = lambda q: -q["x"].square().sum(-1) - q["y"].square()  # noqa: E731
    return mcmc.run(mcmc.HMC(), density, start, num_samples=8, burn_in=10, generator=generator)


def test_draws_and_statistics_arrive(generator):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz
    done = chain(generator)
    found = mcmc.inference_data(done)
    assert np.array_equal(found.posterior["x"].values, done.samples["x"].numpy())
    assert found.posterior["y"].dims == ("chain", "draw")
    assert {"lp", "acceptance_rate", "diverging", "step_size"} == set(found.sample_stats.data_vars)
    assert found.sample_stats["diverging"].dtype == bool
    assert float(arviz.rhat(found)["y"]) == pytest.approx(mcmc.rhat(done.samples["y"]).item())


def test_without_arviz_it_says_what_to_install(generator, monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r"bayeskit\[arviz\]"):
        mcmc.inference_data(chain(generator))
