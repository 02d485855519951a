"""The acceptance protocol of `benchmarks/mcmc_posteriordb.py`, where the folder `BAYESKIT_POSTERIORDB` is there."""

import importlib
import os
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module("posteriordb"), importlib.import_module("mcmc_posteriordb")
    for name in ("posteriordb", "mcmc_posteriordb"):
        sys.modules.pop(name, None)


def test_the_protocol_tells_right_draws_from_wrong_ones(modules, generator):
    posteriordb, protocol = modules
    mean, sd = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([0.5, 3.0], dtype=torch.float64)

    def log_density(q):
        return -0.5 * ((q - mean) / sd).square().sum(-1)

    target = posteriordb.Target(2, log_density, lambda q: q, ("a", "b"), mean, sd, 0.0)
    draws = mean + sd * torch.randn(20, 500, 2, generator=generator, dtype=torch.float64)
    assert protocol.compare(target, draws, 0.0, 1, 1.0).accepted
    assert protocol.compare(target, draws, 0.0, 1, 1.0).stein < 4.5
    # 10,000 independent draws: 4 standard errors are 0.04 of a mean and 0.028 of a standard deviation.
    assert not protocol.compare(target, draws + 0.06 * sd, 0.0, 1, 1.0).accepted
    wide = mean + 1.05 * (draws - mean)
    assert not protocol.compare(target, wide, 0.0, 1, 1.0).accepted
    assert protocol.compare(target, wide, 0.1, 1, 1.0).accepted
    assert protocol.compare(target, wide, 0.0, 1, 1.0).stein > 4.5
    assert protocol.compare(target, wide, None, 1, 1.0).accepted is None


needs_data = pytest.mark.skipif("BAYESKIT_POSTERIORDB" not in os.environ, reason="needs the folder of posteriordb")
LINEAR = ("kidiq-kidscore_momiq", "kidiq_with_mom_work-kidscore_interaction_c2", "nes2000-nes", "sblrc-blr", "arK-arK")
LOGISTIC = ("wells_data-wells_dist", "nes_logit_data-nes_logit_model")


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("name", [*LINEAR, "kilpisjarvi_mod-kilpisjarvi", "gp_pois_regr-gp_pois_regr"])
def test_the_density_is_that_of_the_reference_draws(modules, name):
    posteriordb, _ = modules
    assert posteriordb.stein(posteriordb.load(name), posteriordb.unconstrained(name)) < 4  # of 26 identities at most


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("name", [*LINEAR, *LOGISTIC, "kilpisjarvi_mod-kilpisjarvi"])
def test_hmc_passes_from_where_nothing_is_known(modules, name):
    posteriordb, protocol = modules
    found = protocol.judge(posteriordb.load(name), "hmc")
    assert found.accepted and found.stein < 4.5, found


@pytest.mark.slow
@needs_data
def test_hmc_passes_where_it_reports_divergences_once_it_is_told_to_be_careful(modules):
    posteriordb, protocol = modules
    name = "gp_pois_regr-gp_pois_regr"
    settings, budget = protocol.CAREFUL[name, "hmc"]
    found = protocol.judge(posteriordb.load(name), "hmc", settings=settings, **budget)
    assert found.accepted and found.stein < 4.5, found


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("name", [*LINEAR, *LOGISTIC])
def test_sgld_is_biased_by_no_more_than_it_says(modules, name):
    posteriordb, protocol = modules
    found = protocol.judge(posteriordb.load(name), "sgld")
    assert found.accepted, found
