import copy
import pickle

import numpy as np
import pytest
import torch

from bayeskit import GPClassifier, GPRegressor, gp, load, save
from bayeskit.core.likelihood import Bernoulli, Categorical, Gaussian, StudentT
from bayeskit.core.types import Data
from bayeskit.gp import DualProcess, DualSVGP, MemoryDualGP, MemoryProcess, default_prior
from bayeskit.gp.kernels.evaluate import gram
from bayeskit.gp.model.hyperparameters import learnable
from bayeskit.gp.variational.collapsed_bound import collapsed
from bayeskit.gp.variational.elbo_row_sites import TOLERANCE
from bayeskit.gp.variational.per_datum_sites import RowSites
from bayeskit.gp.variational.streaming_posterior import Memory
from bayeskit.gp.variational.whitened_gaussian import Sites

from ..problems import close, constant, generator, noise, process, regression, same_gp, test_inputs

FIXED = {"learn": False, "move": False}


def labels(data):
    return Data(data.x, (data.y[:, 0] > 0).long(), data.weights)


def stream(method, prior, likelihood, batches, seed=0):
    """The fit after each batch."""
    fits, g = [], generator(seed)
    for batch in batches:
        fits.append(method.infer(prior, likelihood, batch, generator=g))
        prior, likelihood = fits[-1].posterior, fits[-1].likelihood
    return fits


def started(z, k=1, mean=None):
    """A process without data at Z; `move=False` then keeps Z."""
    base = process(k=k, mean=mean).frozen()
    with torch.no_grad():
        tril = torch.linalg.cholesky(gram(base.kernel, z, z))
    return DualProcess.of(base, z, tril, Sites.none(k, z))


def parts(data, *sizes):
    return [data.rows(index) for index in torch.arange(len(data)).split(list(sizes))]


def memory_sites(process, likelihood):
    """The sites of the data in memory."""
    model = learnable(process.base, likelihood, learn=False)
    x = process.memory.rows.x
    projection = torch.linalg.solve_triangular(process.tril, gram(model.kernel, process.z, x), upper=False)
    return process.memory.sites.on(model, projection, x)


# -- every data point counts once -------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [0, 7, 100])
@pytest.mark.parametrize("k", [1, 2])
def test_a_stream_of_gaussian_noise_is_the_collapsed_bound_of_all_data_in_any_order(memory, k):
    data, z, x = regression(40, k=k), test_inputs(8), test_inputs()
    likelihood, prior = noise([0.05, 0.2][:k]), started(z, k, constant(0.2, k))
    best = collapsed(learnable(prior.base, likelihood, learn=False), z, data)
    method = MemoryDualGP(memory=memory, **FIXED)
    shuffled = data.rows(torch.randperm(40, generator=generator(3)))
    for batches in (parts(data, 9, 1, 20, 10), parts(shuffled, 25, 10, 5), [data]):
        fits = stream(method, prior, likelihood, batches)
        close(fits[-1].posterior.sites.moments()[0], best.whitened, 1e-8)
        same_gp(fits[-1].posterior, best.posterior(prior.base, z), x, 1e-8)
        assert abs(sum(float(fit.log_evidence) for fit in fits) - best.bound.item()) < 1e-8
        again = stream(DualSVGP(), prior, likelihood, batches)[-1].posterior
        close(fits[-1].posterior(x).variance, again(x).variance, 1e-8)


@pytest.mark.monte_carlo
@pytest.mark.parametrize("move", [False, True])
@pytest.mark.parametrize("how", ["site", "marginal"])
def test_every_data_point_is_in_memory_or_discarded(move, how):
    """After each batch the sites are those of discarded data plus those of the memory."""
    data, likelihood = regression(60), noise()
    method = MemoryDualGP(num_inducing=12, memory=10, transfer=how, learn=False, move=move)
    seen = 0
    for fit in stream(method, process(), likelihood, parts(data, 20, 20, 20)):
        one, seen = fit.posterior, seen + 20
        total = one.rest.sites + memory_sites(one, likelihood)
        close(one.sites.shift, total.shift, 1e-8)
        close(one.sites.precision, total.precision, 1e-8)
        assert (len(one.memory), one.seen) == (10, seen)
        rows = one.memory.rows
        close(one.memory.sites.precision, torch.full((1, 10), 20.0).double(), 1e-6)  # 1 / noise, each row once
        close(one.memory.sites.pull[0], rows.y[:, 0] / likelihood.noise, 1e-10)
        known = [(data.x == row).all(-1).nonzero().item() for row in rows.x]
        assert max(known) < seen and len(set(known)) == 10


@pytest.mark.parametrize("likelihood", [Bernoulli(), StudentT(learn=False)], ids=["bernoulli", "student_t"])
def test_bookkeeping_of_other_likelihoods(likelihood):
    data = labels(regression(60)) if isinstance(likelihood, Bernoulli) else regression(60)
    method = MemoryDualGP(num_inducing=12, memory=10, learn=False)
    for fit in stream(method, process(), likelihood, parts(data, 20, 20, 20)):
        total = fit.posterior.rest.sites + memory_sites(fit.posterior, likelihood)
        # Sites are formed where q is optimal to a gain of 1e-9 of the bound: to the root of that in the sites.
        close(fit.posterior.sites.precision, total.precision, 1e-3 * float(total.precision.abs().max()))
        assert torch.linalg.eigvalsh(fit.posterior.rest.sites.precision).min() > -1e-10


def test_without_a_memory_all_data_are_discarded():
    fit = stream(MemoryDualGP(num_inducing=8, memory=0, learn=False), process(), noise(), [regression(20)])[-1]
    close(fit.posterior.rest.sites.precision, fit.posterior.sites.precision, 1e-12)
    assert len(fit.posterior.memory) == 0


def test_a_memory_of_all_data_is_the_fit_to_all_data():
    """Nothing is discarded, so that even labels, at another Z, give the fit to all of them."""
    data, x = labels(regression(45)), test_inputs()
    method = MemoryDualGP(num_inducing=10, memory=45, learn=False)
    streamed = stream(method, process(), Bernoulli(), parts(data, 15, 15, 15))[-1].posterior
    assert not streamed.rest.sites.shift.any()
    whole = DualProcess.of(streamed.base, streamed.z, streamed.tril, Sites.none(1, streamed.z))
    fit = DualSVGP().infer(whole, Bernoulli(), data, generator=generator())
    close(streamed(x).mean, fit.posterior(x).mean, 1e-3)  # both are optimal to 1e-7 of the bound or better
    close(streamed(x).variance, fit.posterior(x).variance, 1e-3)


def test_weights_count_copies_in_the_stream():
    data = regression(30)
    weights = torch.ones(30, dtype=torch.float64)
    weights[::3] = 2.0
    method = MemoryDualGP(num_inducing=10, memory=6)
    weighted = stream(method, default_prior(data.x), Gaussian(), parts(Data(data.x, data.y, weights), 15, 15))[-1]
    twice = torch.arange(30).repeat_interleave(weights.long())
    sizes = [int(weights[:15].sum()), int(weights[15:].sum())]
    repeated = stream(method, default_prior(data.x), Gaussian(), parts(data.rows(twice), *sizes))[-1]
    close(weighted.posterior(data.x).mean, repeated.posterior(data.x).mean, 1e-7)
    assert weighted.posterior.seen == repeated.posterior.seen == 40


# -- the memory -------------------------------------------------------------------------------------------------------


def remembered(leverage, size, seed):
    n = len(leverage)
    tickets = torch.empty(n, dtype=torch.float64).exponential_(generator=generator(seed))
    rows = Data(torch.arange(n).double().unsqueeze(-1), torch.zeros(n, 1).double())
    none = torch.zeros(1, n).double()
    return Memory(rows, RowSites(none, none, None, leverage), tickets).kept(size)


@pytest.mark.monte_carlo
def test_the_memory_is_bounded_and_samples_the_whole_stream():
    data = regression(80)
    ages = []
    method = MemoryDualGP(num_inducing=10, memory=9, learn=False, learn_inducing=False)
    for fit in stream(method, process(), noise(), parts(data, *[20] * 4)):
        assert len(fit.posterior.memory) == 9
        rows = [(data.x == row).all(-1).nonzero().item() for row in fit.posterior.memory.rows.x]
        ages.append({row // 20 for row in rows})
    assert ages[0] == {0} and len(ages[-1]) >= 3  # a sample of the whole stream, not of the last batch


@pytest.mark.monte_carlo
def test_data_are_kept_in_proportion_to_leverage_and_counted_for_discarded_ones():
    """With one point kept, frequencies are the leverages; sums over the counts are nearly unbiased."""
    leverage = torch.tensor([0.5, 1.0, 1.5, 3.0], dtype=torch.float64)
    first = torch.tensor([int(remembered(leverage, 1, seed)[0].rows.x) for seed in range(2_000)])
    share = first.bincount(minlength=4) / 2_000
    close(share.double(), leverage / leverage.sum(), 5 * 0.5 / 2_000**0.5)  # five standard errors at most
    leverage = torch.linspace(0.2, 2.0, 50, dtype=torch.float64)
    sums = []
    for seed in range(400):
        kept, left = remembered(leverage, 20, seed)
        counts = kept.counted(50.0)
        assert abs(float(counts.sum()) - 50) < 1e-6 and len(left) == 30
        sums.append((counts * kept.rows.x[:, 0]).sum())
    sums = torch.stack(sums)
    # Counts are scaled to sum to 50: a ratio estimator, whose bias is 2 % here (over 6 times 400 seeds).
    assert abs(sums.mean() / sum(range(50)) - 1.02) < 5 * sums.std() / 20 / sum(range(50)) + 0.01


def test_counts_are_the_weights_while_all_data_are_kept():
    kept, left = remembered(torch.ones(5).double(), 8, 0)
    assert torch.equal(kept.counted(5.0), torch.ones(5).double()) and len(left) == 0
    assert kept.some(torch.arange(0)).counted(0.0).shape == (0,)


def test_leverage_under_gaussian_noise_is_that_of_the_hat_matrix():
    """With Z = X, h is the diagonal of K (K + s^2 I)^-1: between 0 and 1, the effective degrees of freedom in all."""
    data, prior = regression(20), started(regression(20).x)
    fit = stream(MemoryDualGP(memory=20, **FIXED), prior, noise(), [data])[-1]
    x = fit.posterior.memory.rows.x
    k = gram(prior.base.kernel, x, x).detach()
    hat = torch.linalg.solve(k + 0.05 * torch.eye(20).double(), k)
    close(fit.posterior.memory.sites.leverage, hat.diagonal(), 1e-6)


# -- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.monte_carlo
def test_hyperparameters_are_learned_and_end_near_those_of_all_data():
    data = regression(240)
    batches = parts(data, *[40] * 6)
    fits = stream(MemoryDualGP(num_inducing=60, memory=60), default_prior(data.x), Gaussian(), batches)
    noises = [fit.likelihood.noise.item() for fit in fits]
    assert len({round(value, 12) for value in noises}) == 6  # each batch moves it
    whole = DualSVGP(num_inducing=60).infer(default_prior(data.x), Gaussian(), data, generator=generator())
    assert abs(np.log(noises[-1] / whole.likelihood.noise.item())) < 0.5
    assert all(p.requires_grad for p in fits[-1].posterior.learnt.kernel.parameters())


def test_frozen_parameters_stay():
    data, prior = regression(40), default_prior(regression(40).x)
    prior.kernel.requires_grad_(False)
    fit = stream(MemoryDualGP(num_inducing=10), prior, noise(0.3), parts(data, 20, 20))[-1]
    assert fit.likelihood.noise.item() == noise(0.3).noise.item()
    assert torch.equal(fit.posterior.base.kernel.outputscale, prior.kernel.outputscale)


# -- kinds of data ----------------------------------------------------------------------------------------------------


def test_inputs_in_single_precision_are_those_in_double():
    data = regression(40)
    single = Data(data.x.float(), data.y.float())
    double = Data(single.x.double(), single.y.double())
    method, x = MemoryDualGP(num_inducing=10, memory=8), test_inputs()
    one, two = (stream(method, default_prior(data.x), Gaussian(), parts(d, 20, 20))[-1] for d in (single, double))
    assert one.posterior(x).mean.dtype == torch.float64
    assert torch.equal(one.posterior(x).mean, two.posterior(x).mean)


@pytest.mark.monte_carlo
def test_missing_targets_add_nothing():
    """An output that is missing throughout a batch keeps its posterior; a data point without any target is ignored."""
    data = regression(40, k=2)
    holes = data.y.clone()
    holes[20:, 1] = torch.nan
    holes[30:] = torch.nan
    method, z, x = MemoryDualGP(memory=8, **FIXED), test_inputs(8), test_inputs()
    first, last = stream(method, started(z, 2), noise(), parts(Data(data.x, holes), 20, 20))
    close(last.posterior(x).variance[:, 1], first.posterior(x).variance[:, 1], 1e-10)
    assert (last.posterior(x).variance[:, 0] < first.posterior(x).variance[:, 0]).all()
    assert last.posterior.seen == 30


def test_an_empty_batch_changes_nothing():
    data = regression(20)
    fits = stream(MemoryDualGP(num_inducing=8), default_prior(data.x), Gaussian(), parts(data, 20, 0))
    assert fits[1].posterior is fits[0].posterior
    assert fits[1].likelihood.raw_noise.requires_grad


def test_much_data_in_one_call_is_a_stream():
    data = regression(50)
    method = MemoryDualGP(num_inducing=10, memory=8, batch_size=20)
    fit = stream(method, default_prior(data.x), Gaussian(), [data])[-1]
    assert fit.posterior.seen == 50 and len(fit.posterior.memory) == 8
    backward = stream(method, default_prior(data.x), Gaussian(), [data.rows(torch.arange(50).flip(0))])[-1]
    assert torch.equal(fit.posterior(data.x).mean, backward.posterior(data.x).mean)


@pytest.mark.monte_carlo
def test_a_class_missing_from_the_first_batch_is_learned_later():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 2)) * 0.4 + np.repeat([[0, 0], [3, 0], [0, 3]], 30, axis=0)
    y = np.repeat(["a", "b", "c"], 30)
    model = GPClassifier(inference=MemoryDualGP(num_inducing=20, memory=20), random_state=0)
    for start in range(0, 90, 30):
        model.partial_fit(x[start : start + 30], y[start : start + 30], classes=["a", "b", "c"])
    assert model.score(x, y) > 0.95  # three clusters far apart, and none forgotten


def test_correlated_outputs():
    data = regression(40, k=2)
    prior = gp.default_prior(data.x, 2, 1)
    fit = stream(MemoryDualGP(num_inducing=15, memory=10), prior, Gaussian(), parts(data, 20, 20))[-1]
    assert fit.posterior.mixing.shape == (2, 1) and fit.posterior.learnt.mixing.requires_grad
    assert torch.isfinite(fit.posterior(data.x).mean).all()


def test_softmax_latents_share_one_memory():
    data = regression(60)
    three = Data(data.x, data.y[:, 0].sort().indices.argsort() // 20)
    method = MemoryDualGP(num_inducing=15, memory=10)
    fit = stream(method, default_prior(data.x, 3), Categorical(3), parts(three, 30, 30))[-1]
    assert fit.posterior.memory.sites.pull.shape == (3, 10)


def test_the_tolerance_of_softmax_steps_does_not_change_predictions(monkeypatch):
    data = regression(60)
    three = Data(data.x, data.y[:, 0].sort().indices.argsort() // 20)
    method, probs = MemoryDualGP(num_inducing=15, memory=10, learn=False), []
    for tolerance in (TOLERANCE, 1e-14):
        for module in ("methods.memory_dual_gp", "variational.elbo_row_sites"):
            monkeypatch.setattr(f"bayeskit.gp.{module}.TOLERANCE", tolerance)
        fit = stream(method, default_prior(data.x, 3), Categorical(3), parts(three, 20, 20, 20))[-1]
        probs.append(Categorical(3).predictive(fit.posterior(data.x)).probs)
    assert not torch.equal(*probs)
    close(probs[0], probs[1], 1.3e-4)  # 8.5e-5 here; 1.8e-4 if the steps ended a hundred times sooner


# -- continued fits ---------------------------------------------------------------------------------------------------


def test_partial_fit_of_a_process_is_this_method_unless_another_is_named():
    x = test_inputs(20).numpy()
    model = GPRegressor(random_state=0).partial_fit(x, x[:, 0])
    assert type(model.inference_) is MemoryDualGP and isinstance(model.posterior_, MemoryProcess)
    assert type(GPRegressor(random_state=0).fit(x, x[:, 0]).inference_) is gp.Exact
    assert type(GPRegressor(inference="exact").partial_fit(x, x[:, 0]).inference_) is gp.Exact


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_a_stream_that_is_saved_and_loaded_continues_with_the_same_bits(tmp_path, task):
    data = regression(60)
    x, y = data.x.numpy(), data.y[:, 0].numpy()
    y, make, extra = (y, GPRegressor, {}) if task == "regression" else (y > 0, GPClassifier, {"classes": [False, True]})
    model = make(inference=MemoryDualGP(num_inducing=15, memory=10), random_state=0)
    model.partial_fit(x[:20], y[:20], **extra).partial_fit(x[20:40], y[20:40])
    save(model, tmp_path / "stream.bayeskit")
    again = load(tmp_path / "stream.bayeskit")
    pickled = pickle.loads(pickle.dumps(model))
    for one in (model, again, pickled):
        one.partial_fit(x[40:], y[40:])
    assert (again.predict(x) == model.predict(x)).all() and (pickled.predict(x) == model.predict(x)).all()
    assert torch.equal(again.latent(x).variance, model.latent(x).variance)


def test_the_prior_of_the_next_batch_is_not_changed():
    data = regression(40)
    first, second = parts(data, 20, 20)
    method = MemoryDualGP(num_inducing=10, memory=8)
    prior = method.infer(default_prior(data.x), Gaussian(), first, generator=generator())
    before = copy.deepcopy(prior)
    method.infer(prior.posterior, prior.likelihood, second, generator=generator())
    for one, two in ((prior, before), (prior, pickle.loads(pickle.dumps(before)))):
        again = method.infer(one.posterior, one.likelihood, second, generator=generator())
        reference = method.infer(two.posterior, two.likelihood, second, generator=generator())
        assert torch.equal(again.posterior(data.x).mean, reference.posterior(data.x).mean)


@pytest.mark.monte_carlo
def test_other_inferences_continue_from_a_stream():
    data = regression(40)
    first, second = parts(data, 20, 20)
    fit = stream(MemoryDualGP(num_inducing=10, memory=8), default_prior(data.x), Gaussian(), [first])[-1]
    for method in (DualSVGP(), gp.Exact()):
        more = method.infer(fit.posterior, fit.likelihood, second, generator=generator())
        assert (more.posterior(second.x).variance < fit.posterior(second.x).variance).all()
    few = fit.posterior.condition(second.x[:2], second.y[:2], fit.likelihood)
    assert isinstance(few, DualProcess)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"memory": -1}, "`memory` must be a whole number"),
        ({"memory": 1.5}, "`memory` must be a whole number"),
        ({"transfer": "move"}, "transfer"),
        ({"num_inducing": 0}, "num_inducing"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_settings_out_of_range(settings, match):
    with pytest.raises(ValueError, match=match):
        stream(MemoryDualGP(**settings), process(), noise(), [regression(5)])
