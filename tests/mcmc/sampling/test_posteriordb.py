"""The protocol of `benchmarks/mcmc_posteriordb.py`; slow where it needs the folder `BAYESKIT_POSTERIORDB`."""

import importlib
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.distributions import Beta, Cauchy, Gamma, HalfCauchy, HalfNormal, MultivariateNormal, Normal

from bayeskit import mcmc

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
NAMES = [path.stem for path in BENCHMARKS.glob("*posteriordb*.py")]


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield SimpleNamespace(
        sets=importlib.import_module("posteriordb"),
        model=importlib.import_module("posteriordb_model"),
        models=importlib.import_module("posteriordb_models"),
        runs=importlib.import_module("mcmc_posteriordb_runs"),
        script=importlib.import_module("mcmc_posteriordb"),
    )
    for name in NAMES:
        sys.modules.pop(name, None)


def gaussian(modules, mean=(1.0, -2.0), sd=(0.5, 3.0)):
    """A target that is known exactly."""
    mean, sd = torch.tensor(mean, dtype=torch.float64), torch.tensor(sd, dtype=torch.float64)
    model = modules.model.Model(
        ("a", "b"), 2, lambda q: -0.5 * ((q - mean) / sd).square().sum(-1), lambda q: q, lambda v: v
    )
    return modules.sets.Target(model, mean, sd, 0.0)


@pytest.mark.monte_carlo
def test_the_protocol_tells_right_draws_from_wrong_ones(modules, generator):
    target, compare = gaussian(modules), modules.runs.compare
    z = torch.randn(20, 500, 2, generator=generator, dtype=torch.float64)
    z = (z - z.mean((0, 1))) / z.flatten(0, 1).std(0)  # with the moments of the target, so that no chance decides
    draws = target.mean + target.sd * z
    assert compare(target, draws, 0.0, 1, 1.0).accepted
    assert compare(target, draws, 0.0, 1, 1.0).stein < 4.5
    # 10,000 independent draws: 4 standard errors are 0.04 of a mean and 0.028 of a standard deviation.
    assert not compare(target, draws + 0.06 * target.sd, 0.0, 1, 1.0).accepted
    wide = target.mean + 1.05 * (draws - target.mean)
    assert not compare(target, wide, 0.0, 1, 1.0).accepted
    assert compare(target, wide, 0.1, 1, 1.0).accepted
    assert compare(target, target.mean + 1.1 * (draws - target.mean), 0.0, 1, 1.0).stein > 4.5
    assert compare(target, wide, None, 1, 1.0).accepted is None


@pytest.mark.monte_carlo
def test_a_posterior_of_ones_own_is_judged(modules, generator, tmp_path, capsys, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def log_density(q):\n    return -0.5 * (q - 3).square().sum(-1)\n"
        "draws = 3 + torch.randn(10_000, 2, generator=torch.Generator().manual_seed(1))\n"
    )
    out = tmp_path / "runs.jsonl"
    command = ["mcmc_posteriordb.py", "--own", str(tmp_path / "mine.py"), "--samplers", "hmc", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    modules.script.main()
    entry = json.loads(out.read_text())
    assert entry["posterior"] == "mine" and entry["worst"] <= 1 and entry["stein"] < 4.5
    modules.script.main()  # what has been run is not run again
    assert len(out.read_text().splitlines()) == 1
    monkeypatch.setattr(sys, "argv", ["mcmc_posteriordb.py", "--table", str(out)])
    capsys.readouterr()
    modules.script.main()
    printed = capsys.readouterr().out
    assert "### mine" in printed and "| `hmc` | " in printed and "batches:" not in printed


def test_draws_that_are_not_of_the_density_are_told(modules, generator, capsys):
    draws = torch.randn(5_000, 2, generator=generator, dtype=torch.float64)
    for factor, told in ((1.0, False), (1.3, True)):
        target = modules.sets.own(lambda q, f=factor: -0.5 * (q / f).square().sum(-1), draws)
        modules.script.contradicted("mine", target)
        assert ("contradict its log density" in capsys.readouterr().out) == told


def test_what_is_not_known_is_said_in_a_sentence(modules, tmp_path, monkeypatch):
    monkeypatch.setenv("BAYESKIT_POSTERIORDB", str(tmp_path))
    with pytest.raises(
        ValueError, match="the model 'theirs' of 'data-theirs' is not known: add a function .* by `--own"
    ):
        modules.sets.load("data-theirs")
    with pytest.raises(FileNotFoundError, match="no data of 'sesame'"):
        modules.sets.load("sesame-sesame_one_pred_a")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sesame.json").write_text('{"encouraged": [0, 1, 1], "watched": [1, 0, 1]}')
    with pytest.raises(ValueError, match="nothing to hold 'sesame-sesame_one_pred_a' against"):
        modules.sets.load("sesame-sesame_one_pred_a")
    monkeypatch.delenv("BAYESKIT_POSTERIORDB")
    with pytest.raises(ValueError, match="set BAYESKIT_POSTERIORDB"):
        modules.sets.load("sesame-sesame_one_pred_a")


def test_posteriordb_itself_is_read_where_it_has_its_files(modules, tmp_path, monkeypatch):
    monkeypatch.setenv("BAYESKIT_POSTERIORDB", str(tmp_path))
    files = {
        "data/data/schools.json": {"J": 2, "y": [28, 8], "sigma": [15, 10]},
        "posteriors/schools-eight_schools_centered.json": {
            "data_name": "schools",
            "model_name": "eight_schools_centered",
            "reference_posterior_name": "schools-eight_schools_noncentered",
        },
        "reference_posteriors/draws/draws/schools-eight_schools_noncentered.json": [
            {key: [float(i), 1.0 + i] for i, key in enumerate(("theta[1]", "theta[2]", "mu", "tau"))} for _ in range(2)
        ],
    }
    for name, content in files.items():
        path = tmp_path / "posterior_database" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    target = modules.sets.load("schools-eight_schools_centered")
    assert target.model.dimension == 4 and target.draws.shape == (4, 4) and target.error == 1 / 4
    assert torch.equal(target.mean, torch.tensor([0.5, 1.5, 2.5, 3.5], dtype=torch.float64))


# -- every model, written out with distributions ---------------------------------------------------------------------

N = 12


def data():
    rng = np.random.default_rng(0)
    keys = ("diam1", "diam2", "canopy_height", "total_height", "density", "weight", "earn", "height", "educ", "arsenic")
    found = {key: rng.uniform(1, 3, N) for key in keys}
    found |= {key: rng.integers(0, 2, N) for key in ("mom_hs", "male", "group", "switched", "vote", "encouraged")}
    found |= {key: rng.normal(size=N) for key in ("x", "y", "mom_iq", "kid_score", "real_ideo", "race_adj", "educ1")}
    found |= {key: rng.normal(size=N) for key in ("gender", "income", "partyid7", "log_radon", "watched", "dist")}
    found |= {
        "mom_work": rng.integers(1, 5, N),
        "age_discrete": rng.integers(1, 5, N),
        "floor_measure": rng.normal(size=N),
    }
    found |= {
        "k": rng.poisson(2, N),
        "X": rng.normal(size=(N, 3)),
        "K": 2,
        "sigma": rng.uniform(1, 2, N),
        "sigma1": 0.5,
    }
    found |= {"pmualpha": 9.0, "psalpha": 100.0, "pmubeta": 0.0, "psbeta": 0.03}
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in found.items()}


def known(modules, name):
    entries = data() | ({"y": (np.arange(20).reshape(4, 5) % 2).tolist()} if name == "dogs" else {})
    return modules.models.MODELS[name](entries)


def every_model(test):
    sys.path.insert(0, str(BENCHMARKS))
    try:
        models = importlib.import_module("posteriordb_models").MODELS
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in NAMES:
            sys.modules.pop(name, None)
    return pytest.mark.parametrize("name", sorted(models))(test)


@every_model
def test_a_model_is_whole(modules, generator, name):
    model = known(modules, name)
    q = 0.3 * torch.randn(5, model.dimension, generator=generator, dtype=torch.float64)
    values = model.parameters(q)
    assert values.shape == (5, len(model.names)) and torch.allclose(model.positions(values), q, atol=1e-6)
    whole = model.log_density(q)
    assert whole.shape == (5,) and torch.isfinite(whole).all()
    if model.num_rows:
        rows = torch.arange(model.num_rows)
        halves = [model.log_density(q, some) for some in (rows[: model.num_rows // 2], rows[model.num_rows // 2 :])]
        shares = [len(some) / model.num_rows for some in (rows[: model.num_rows // 2], rows[model.num_rows // 2 :])]
        assert torch.allclose(sum(share * half for share, half in zip(shares, halves, strict=True)), whole)


def joint(name, values, entries):
    """log p(parameters, data) of one set of parameters, by torch's distributions."""
    y = torch.tensor(entries["y"], dtype=torch.float64)
    if name == "low_dim_gauss_mix":
        mu, sigma, theta = values[:2], values[2:4], values[4]
        prior = Normal(0.0, 2.0).log_prob(mu).sum() + HalfNormal(2.0).log_prob(sigma).sum()
        parts = torch.stack([Normal(mu[i], sigma[i]).log_prob(y) for i in range(2)])
        weights = torch.stack([theta, 1 - theta]).log()[:, None]
        return prior + Beta(5.0, 5.0).log_prob(theta) + (weights + parts).logsumexp(0).sum()
    if name == "gp_regr":
        x, (rho, alpha, sigma) = torch.tensor(entries["x"], dtype=torch.float64), values
        kernel = alpha**2 * torch.exp(-0.5 * ((x[:, None] - x) / rho) ** 2) + sigma * torch.eye(N)
        prior = Gamma(25.0, 4.0).log_prob(rho) + HalfNormal(2.0).log_prob(alpha) + HalfNormal(1.0).log_prob(sigma)
        return prior + MultivariateNormal(torch.zeros(N).double(), kernel).log_prob(y)
    if name == "arma11":
        mu, phi, theta, sigma = values
        error, total = y[0] - mu - phi * mu, 0.0
        for t in range(N):
            error = error if t == 0 else y[t] - mu - phi * y[t - 1] - theta * error
            total = total + Normal(0.0, sigma).log_prob(error)
        prior = Normal(0.0, 10.0).log_prob(mu) + Normal(0.0, 2.0).log_prob(values[1:3]).sum()
        return prior + HalfCauchy(2.5).log_prob(sigma) + total
    if name == "garch11":
        mu, a0, a1, b1 = values
        s2, total = torch.tensor(entries["sigma1"] ** 2, dtype=torch.float64), 0.0
        for t in range(N):
            s2 = s2 if t == 0 else a0 + a1 * (y[t - 1] - mu) ** 2 + b1 * s2
            total = total + Normal(mu, s2.sqrt()).log_prob(y[t])
        return total
    theta, mu, tau = values[:N], values[N], values[N + 1]
    prior = Normal(mu, tau).log_prob(theta).sum() + Normal(0.0, 5.0).log_prob(mu) + Cauchy(0.0, 5.0).log_prob(tau)
    return prior + Normal(theta, torch.tensor(entries["sigma"], dtype=torch.float64)).log_prob(y).sum()


OTHERS = ["low_dim_gauss_mix", "gp_regr", "arma11", "garch11", "eight_schools_centered", "eight_schools_noncentered"]


@pytest.mark.parametrize("name", OTHERS)
def test_a_model_with_its_jacobian_is_the_joint_density(modules, generator, name):
    model, entries = known(modules, name), data()
    q = 0.3 * torch.randn(4, model.dimension, generator=generator, dtype=torch.float64)
    expected = torch.stack([joint(name, values, entries) for values in model.parameters(q)])
    for i, one in enumerate(q):
        jacobian = torch.autograd.functional.jacobian(lambda point: model.parameters(point[None])[0], one)
        expected[i] += torch.linalg.slogdet(jacobian).logabsdet
    gaps = model.log_density(q) - expected
    assert torch.allclose(gaps, gaps[:1].expand(4), atol=1e-8)  # up to a constant


# -- with the folder ---------------------------------------------------------------------------------------------------

needs_data = pytest.mark.skipif("BAYESKIT_POSTERIORDB" not in os.environ, reason="needs the folder of posteriordb")
LINEAR = ("kidiq-kidscore_momiq", "kidiq_with_mom_work-kidscore_interaction_c2", "nes2000-nes", "sblrc-blr", "arK-arK")
LOGISTIC = ("wells_data-wells_dist", "nes_logit_data-nes_logit_model")
REGRESSIONS = (*LINEAR, *LOGISTIC, "kilpisjarvi_mod-kilpisjarvi")
NECK = "gp_pois_regr-gp_pois_regr"


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("name", [*LINEAR, "kilpisjarvi_mod-kilpisjarvi", NECK])
def test_the_density_is_that_of_the_reference_draws(modules, name):
    target = modules.sets.load(name)
    assert modules.sets.stein(target, target.model.positions(target.draws)) < 4  # of 26 identities at most


@pytest.mark.monte_carlo
@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("name", [*REGRESSIONS, NECK])
def test_hmc_passes_from_where_nothing_is_known(modules, name):
    found = modules.runs.judge(modules.sets.load(name), "hmc")
    assert found.accepted and found.stein < 4.5, found


FEW = ("kidiq-kidscore_momiq", "kidiq_with_mom_work-kidscore_interaction_c2", "arK-arK", "nes2000-nes")
JUDGED = [(name, sampler) for name in REGRESSIONS for sampler in ("sgld", "sghmc", "baoab")]
JUDGED += [(name, sampler) for name in FEW for sampler in ("csgld", "csghmc", "entropy_mcmc")]
JUDGED += [("kidiq-kidscore_momiq", "federated_sgld")]
BATCHED = [("kidiq-kidscore_momiq", sampler) for sampler in ("sgld", "sghmc", "baoab", "sgld_cv", "sgld_svrg")]
BATCHED += [("nes2000-nes", sampler) for sampler in ("sgld", "sghmc", "baoab")]  # 476 rows, which leave a rest


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize(("name", "sampler"), JUDGED)
def test_the_others_are_biased_by_no_more_than_they_say(modules, name, sampler):
    found = modules.runs.judge(modules.sets.load(name), sampler)
    assert found.accepted, found


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize(("name", "sampler"), BATCHED)
def test_mini_batches_add_no_more_than_they_say(modules, name, sampler):
    found = modules.runs.judge(modules.sets.load(name), sampler, batch=0.2)
    assert found.accepted, found


def test_mini_batches_of_a_model_average_to_the_whole(modules, generator):
    model = known(modules, "nes")
    density = modules.runs.Moved(model, torch.zeros(10).double(), torch.eye(10).double())
    q = {"q": torch.randn(3, 10, generator=generator, dtype=torch.float64)}
    batches = list(modules.runs.Batches(density, 4, generator))
    assert torch.allclose(torch.stack([one(q) for one in batches]).mean(0), density(q), rtol=1e-12)
    assert sum(density.calls) == 3 * (1 + 1)  # three chains: a pass of the batches, and the whole
    assert isinstance(density, mcmc.Divisible)
