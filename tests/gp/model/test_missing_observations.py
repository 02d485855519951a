"""Missing (NaN) targets and noise by entry: what Exact, SGPR and SVGP owe to separate problems."""

import pytest
import torch
from gpytorch.kernels import MaternKernel
from gpytorch.means import ZeroMean

from bayeskit.core.likelihood import Conjugate, Dirichlet, Gaussian, Heteroscedastic, Poisson, StudentT
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data
from bayeskit.gp import SGPR, SVGP, Exact, GaussianProcess, default_prior
from bayeskit.gp.methods.exact import log_evidence
from bayeskit.gp.model.hyperparameters import learnable
from bayeskit.gp.model.training_set import training_set
from bayeskit.gp.variational.collapsed_bound import collapsed
from bayeskit.gp.variational.whitened_gaussian import WhitenedGaussian
from bayeskit.gp.variational.whitened_posterior import bound, optimal_q

from ..problems import close, constant, generator, noise, process, regression, same_gp, test_inputs

FIXED = {
    "exact": Exact(learn=False),
    "sgpr": SGPR(num_inducing=8, learn=False, learn_inducing=False),
    "svgp": SVGP(num_inducing=8, learn=False, learn_inducing=False),
}
LEVELS = [0.05, 0.1, 0.3]


def with_gaps(n=30, k=3, weighted=False, share=0.3):
    data = regression(n, k=k)
    gaps = torch.rand(n, k, generator=generator(7)) < share
    gaps[3] = True  # nothing observed in this row
    weights = 0.5 + torch.rand(n, dtype=torch.float64, generator=generator(8)) if weighted else None
    return Data(data.x, data.y.masked_fill(gaps, torch.nan), weights)


def column(data, j):
    seen = ~data.y[:, j].isnan()
    return Data(data.x[seen], data.y[seen][:, [j]], None if data.weights is None else data.weights[seen])


def fit(data, prior, likelihood, method):
    return method.infer(prior, likelihood, data, generator=generator())


def own_kernels(k=3):
    kernel = MaternKernel(batch_shape=torch.Size([k])).double()
    kernel.lengthscale = torch.linspace(0.5, 1.5, k, dtype=torch.float64).reshape(k, 1, 1)
    return GaussianProcess(ZeroMean(), kernel, k)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("levels", [0.05, LEVELS])
def test_exact_is_a_problem_for_each_output(weighted, levels):
    data, x = with_gaps(weighted=weighted), test_inputs()
    offsets = [0.1, -0.2, 0.3]
    joint = fit(data, process(k=3, mean=constant(offsets, 3)), noise(levels), FIXED["exact"])
    values, evidence = joint.posterior(x), 0.0
    for j in range(3):
        level = levels[j] if isinstance(levels, list) else levels
        alone = fit(column(data, j), process(mean=constant(offsets[j])), noise(level), FIXED["exact"])
        close(values.mean[:, [j]], alone.posterior(x).mean)
        close(values.variance[:, [j]], alone.posterior(x).variance)
        block = values.covariance.to_dense().reshape(len(x), 3, len(x), 3)[:, j, :, j]
        close(block, alone.posterior(x).covariance.to_dense())
        evidence += float(alone.log_evidence)
    assert abs(float(joint.log_evidence) - evidence) < 1e-8


@pytest.mark.parametrize("weighted", [False, True])
def test_evidence_bound_and_gradients_equal_the_textbook(weighted):
    data, z = with_gaps(weighted=weighted), test_inputs(6)
    prior, likelihood = process(k=3, mean=constant([0.1, -0.2, 0.3], 3)), noise(LEVELS, learn=True)
    for sparse in (False, True):
        model, plain = (learnable(prior, likelihood, learn=True) for _ in range(2))
        rows = training_set(prior, likelihood, data)
        value = collapsed(model, z, rows).bound if sparse else log_evidence(model, rows)
        total = torch.stack([textbook(plain, column(data, j), j, z if sparse else None) for j in range(3)]).sum()
        close(value, total)
        slopes = (torch.autograd.grad(v, m.parameters) for v, m in ((value, model), (total, plain)))
        for one, two in zip(*slopes, strict=True):
            close(one, two)


def textbook(model, data, j, z):
    """Evidence of output j, or its collapsed bound at z, by automatic differentiation."""
    level = model.likelihood.noise[j]
    weights = torch.ones(len(data), dtype=torch.float64) if data.weights is None else data.weights
    covariance, lost = model.kernel(data.x).to_dense(), 0.0
    if z is not None:
        cross = model.kernel(z, data.x).to_dense()
        covariance = cross.mT @ torch.linalg.solve(model.kernel(z).to_dense(), cross)
        lost = 0.5 * (weights * (model.kernel(data.x, diag=True) - covariance.diagonal())).sum() / level
    normal = torch.distributions.MultivariateNormal(model.mean(data.x)[j], covariance + torch.diag(level / weights))
    correction = 0.5 * ((weights - 1) * (2 * torch.pi * level).log() + weights.log()).sum()
    return normal.log_prob(data.y[:, 0]) - lost - correction


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("levels", [0.05, LEVELS])
def test_sparse_is_a_problem_for_each_output_at_the_same_inducing_points(weighted, levels):
    data, x, z = with_gaps(weighted=weighted), test_inputs(), test_inputs(8)
    prior, likelihood = process(k=3), noise(levels)
    model = learnable(prior, likelihood, learn=False)
    joint = collapsed(model, z, training_set(prior, likelihood, data))
    values, total = joint.posterior(model.process(), z)(x), 0.0
    for j in range(3):
        one = learnable(process(), noise(levels[j] if isinstance(levels, list) else levels), learn=False)
        alone = collapsed(one, z, training_set(process(), one.likelihood, column(data, j)))
        single = alone.posterior(one.process(), z)(x)
        close(values.mean[:, [j]], single.mean)
        close(values.variance[:, [j]], single.variance)
        total += alone.bound.item()
    assert abs(joint.bound.item() - total) < 1e-8


def test_sparse_with_all_inputs_is_exact():
    data, x = with_gaps(weighted=True), test_inputs()
    for prior in (process(k=3), own_kernels()):
        full = fit(data, prior, noise(LEVELS), FIXED["exact"])
        sparse = fit(data, prior, noise(LEVELS), SGPR(learn=False))
        same_gp(full.posterior, sparse.posterior, x)
        assert abs(float(full.log_evidence) - float(sparse.log_evidence)) < 1e-8


def test_blocks_and_recomputation_change_nothing(monkeypatch):
    data, z, likelihood = with_gaps(50), test_inputs(7), noise(LEVELS, learn=True)
    results = []
    for block, kept in ((2**19, 2**28), (7 * 24, 2**28), (7 * 24, 0)):
        monkeypatch.setattr("bayeskit.gp.variational.collapsed_bound.BLOCK_ELEMENTS", block)
        monkeypatch.setattr("bayeskit.gp.variational.collapsed_bound.KEPT_ELEMENTS", kept)
        where, model = z.clone().requires_grad_(True), learnable(process(k=3), likelihood, learn=True)
        value = collapsed(model, where, training_set(process(k=3), likelihood, data)).bound
        results.append((value, *torch.autograd.grad(value, [*model.parameters, where])))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            close(one, two, 1e-10)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("prior", [process(k=3), own_kernels()], ids=["shared", "own"])
def test_svgp_is_sgpr(weighted, prior):
    data, x = with_gaps(40, weighted=weighted), test_inputs()
    one, two = (fit(data, prior, noise(LEVELS), FIXED[name]) for name in ("sgpr", "svgp"))
    assert abs(float(one.log_evidence) - float(two.log_evidence)) < 1e-8
    same_gp(one.posterior, two.posterior, x)


def test_one_natural_step_from_anywhere_is_sgpr():
    data, z = with_gaps(40), test_inputs(8)
    prior, likelihood = process(k=3), noise(LEVELS)
    rows, model = training_set(prior, likelihood, data), learnable(prior, likelihood, learn=False)
    anywhere = WhitenedGaussian(
        torch.randn(3, 8, dtype=torch.float64, generator=generator(4)), WhitenedGaussian.prior(3, z).root
    )
    reached, value = optimal_q(model, z, anywhere, rows, max_steps=1)
    best = collapsed(model, z, rows)
    assert abs(value - best.bound.item()) < 1e-8
    close(bound(model, z, reached, rows), best.bound)
    same_gp(reached.posterior(model, z), best.posterior(model.process(), z), test_inputs())


@pytest.mark.parametrize("likelihood", [Gaussian(LEVELS), StudentT(), Poisson(), Heteroscedastic()], ids=repr)
def test_a_row_of_gaps_is_not_there(likelihood):
    data, x = with_gaps(30), test_inputs()
    if isinstance(likelihood, Poisson):
        data = Data(data.x, data.y.abs().round())
    there = ~data.y.isnan().all(-1)
    assert not there.all()
    methods = [SVGP(num_inducing=8, training=Training(max_epochs=3, batch_size=16))]
    methods += [Exact(max_iter=5), SGPR(num_inducing=8, max_iter=5)] if isinstance(likelihood, Gaussian) else []
    for method in methods:
        prior = default_prior(data.x[there], likelihood.num_latents(data.y))
        one, two = (fit(d, prior, likelihood, method) for d in (data, Data(data.x[there], data.y[there])))
        assert float(one.log_evidence) == float(two.log_evidence)
        same_gp(one.posterior, two.posterior, x, 0)


@pytest.mark.parametrize("name", ["exact", "sgpr", "svgp"])
def test_order_and_repetition_of_rows_change_nothing(name):
    data, x = with_gaps(24), test_inputs()
    order = torch.randperm(24, generator=generator()).repeat(2)
    prior = process(k=3)
    one = fit(data.rows(torch.arange(24)), prior, noise(LEVELS), FIXED[name])
    two = fit(data.rows(order[:24]), prior, noise(LEVELS), FIXED[name])
    same_gp(one.posterior, two.posterior, x, 0)
    rows = training_set(prior, noise(), data.rows(order))
    assert len(rows) == 23 and (rows.weights == 2).all()
    doubled = fit(Data(data.x, data.y, torch.full((24,), 2.0, dtype=torch.float64)), prior, noise(LEVELS), FIXED[name])
    same_gp(fit(data.rows(order), prior, noise(LEVELS), FIXED[name]).posterior, doubled.posterior, x, 0)


@pytest.mark.parametrize("name", ["exact", "sgpr"])
def test_fold_over_three_tasks_is_the_batch(name):
    data, x = with_gaps(36), test_inputs()
    method = FIXED["exact"] if name == "exact" else SGPR(learn=False)
    posterior, evidence = process(k=3), 0.0
    for start in (0, 12, 24):
        step = fit(data.rows(slice(start, start + 12)), posterior, noise(LEVELS), method)
        posterior, evidence = step.posterior, evidence + float(step.log_evidence)
    batch = fit(data, process(k=3), noise(LEVELS), FIXED["exact"])
    same_gp(posterior, batch.posterior, x)
    if name == "exact":
        assert abs(evidence - float(batch.log_evidence)) < 1e-8


def test_later_data_need_not_have_every_output():
    data, x = with_gaps(30), test_inputs()
    first, later = data.rows(slice(0, 20)), data.rows(slice(20, 30))
    only = Data(later.x, torch.cat([later.y[:, :2], torch.full((10, 1), torch.nan, dtype=torch.float64)], -1))
    for method in (FIXED["exact"], SGPR(learn=False)):
        before = fit(first, process(k=3), noise(LEVELS), method).posterior
        after = fit(only, before, noise(LEVELS), method).posterior
        close(after(x).mean[:, 2], before(x).mean[:, 2])
        close(after(x).variance[:, 2], before(x).variance[:, 2])
        with pytest.raises(ValueError, match=r"`data\.y` must have an observation of every output.*column 2"):
            fit(only, process(k=3), noise(LEVELS), method)


@pytest.mark.monte_carlo
def test_function_samples_are_distributed_as_the_posterior():
    data, x = with_gaps(20), test_inputs(4)
    posterior = fit(data, process(k=3), noise(LEVELS), FIXED["exact"]).posterior
    draws = posterior.sample_functions(3000, generator=generator())(x)  # (s, n, k)
    values = posterior(x)
    std = values.variance.sqrt()
    assert ((draws.mean(0) - values.mean).abs() < 5 * std / 3000**0.5).all()
    assert ((draws.std(0) / std - 1).abs() < 5 / (2 * 3000) ** 0.5).all()  # relative standard error of a deviation


def test_conjugate_gradients_refuse_with_the_remedy():
    for data, likelihood in ((with_gaps(), noise()), (regression(k=2), Dirichlet(2))):
        targets = data if isinstance(likelihood, Gaussian) else Data(data.x, (data.y[:, 0] > 0).long())
        prior = process(k=likelihood.num_latents(targets.y))
        with pytest.raises(ValueError, match=r"conjugate gradients need.*gp\.SGPR"):
            fit(targets, prior, likelihood, Exact(solver="cg", learn=False))


def test_infinite_targets_are_refused():
    data = with_gaps()
    data.y[0, 0] = torch.inf
    for name in ("exact", "sgpr", "svgp"):
        with pytest.raises(ValueError, match=r"`data\.y` must be finite"):
            fit(data, process(k=3), noise(LEVELS), FIXED[name])


@pytest.mark.parametrize("likelihood", [StudentT(), Poisson(), Heteroscedastic()], ids=repr)
def test_other_likelihoods_are_a_problem_for_each_output(likelihood):
    data, z, x = with_gaps(40, k=2), test_inputs(8), test_inputs()
    if isinstance(likelihood, Poisson):
        data = Data(data.x, data.y.abs().round())
    k = likelihood.num_latents(data.y)
    prior, model = process(k=k), learnable(process(k=k), likelihood, learn=False)
    rows = training_set(prior, likelihood, data)
    # a fixed number of full steps: the line search judges the sum over outputs, and would stop at another point
    joint, value = optimal_q(model, z, WhitenedGaussian.prior(k, z), rows, max_steps=200, tolerance=1e-14)
    total = 0.0
    for j in range(2):
        part, latents = column(data, j), [j] if k == 2 else [j, j + 2]
        one = learnable(process(k=len(latents)), likelihood, learn=False)
        alone, each = optimal_q(
            one,
            z,
            WhitenedGaussian.prior(len(latents), z),
            training_set(process(k=len(latents)), likelihood, part),
            max_steps=200,
            tolerance=1e-14,
        )
        close(joint.posterior(model, z)(x).mean[:, latents], alone.posterior(one, z)(x).mean, 1e-5)
        total += each
    assert abs(value - total) < 1e-7  # the bound is flat at its top: quadratic in what the steps left


@pytest.mark.monte_carlo
@pytest.mark.parametrize("likelihood", [Gaussian(), StudentT(), Heteroscedastic()], ids=repr)
def test_hyperparameters_are_learned_without_a_nan(likelihood):
    data = with_gaps(60, share=0.5)
    methods = [SVGP(num_inducing=10, training=Training(max_epochs=4, batch_size=16))]
    methods += [Exact(max_iter=10), SGPR(num_inducing=10, max_iter=10)] if isinstance(likelihood, Gaussian) else []
    for method in methods:
        prior = default_prior(data.x, likelihood.num_latents(data.y))
        result = fit(data, prior, likelihood, method)
        values = result.posterior(data.x)
        assert values.mean.isfinite().all() and (values.variance > 0).all()
        seen = ~data.y.isnan()
        assert (values.mean[:, :3] - data.y)[seen].square().mean() < 0.9 * data.y[seen].var()


@pytest.mark.parametrize("c", [2, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_dirichlet_is_solved_alike_by_all_three(c, weighted):
    data, x = regression(30), test_inputs()
    codes = (data.y[:, 0] * c / 2 + c / 2).long().clamp(0, c - 1)
    data = Data(data.x, codes, torch.linspace(0.5, 2, 30, dtype=torch.float64) if weighted else None)
    likelihood, prior = Dirichlet(c, concentration=0.1), process(k=c, mean=constant(-1.0, c))
    exact = fit(data, prior, likelihood, Exact(learn=False))
    sparse = fit(data, prior, likelihood, SGPR(learn=False))
    same_gp(exact.posterior, sparse.posterior, x)
    assert abs(float(exact.log_evidence) - float(sparse.log_evidence)) < 1e-8
    one, two = (fit(data, prior, likelihood, FIXED[name]) for name in ("sgpr", "svgp"))
    same_gp(one.posterior, two.posterior, x)
    assert abs(float(one.log_evidence) - float(two.log_evidence)) < 1e-8
    rows, model, z = training_set(prior, likelihood, data), learnable(prior, likelihood, learn=False), test_inputs(8)
    reached, value = optimal_q(model, z, WhitenedGaussian.prior(c, z), rows, max_steps=1)
    best = collapsed(model, z, rows)
    assert abs(value - best.bound.item()) < 1e-8
    same_gp(reached.posterior(model, z), best.posterior(model.process(), z), x)


def test_dirichlet_is_regression_with_noise_by_entry():
    data, x = regression(25), test_inputs()
    codes = (data.y[:, 0] > 0).long()
    likelihood = Dirichlet(2)
    result = fit(Data(data.x, codes), process(k=2), likelihood, Exact(learn=False))
    values, noise_rows = likelihood.observations(codes)
    kernel, f = process().kernel, result.posterior(x)
    cross, total = kernel(x, data.x).to_dense(), 0.0
    for j in range(2):
        covariance = kernel(data.x).to_dense() + torch.diag(noise_rows[:, j])
        close(f.mean[:, j], cross @ torch.linalg.solve(covariance, values[:, j]))
        close(f.variance[:, j], 1.7 - (cross * torch.linalg.solve(covariance, cross.mT).mT).sum(-1))
        zero = torch.zeros(25, dtype=torch.float64)
        total += torch.distributions.MultivariateNormal(zero, covariance).log_prob(values[:, j]).item()
    assert abs(float(result.log_evidence) - total) < 1e-8


def test_duplicates_without_noise_and_float32_give_an_answer():
    data = with_gaps(30)
    x = torch.cat([data.x, data.x, data.x[:5] + 1e-9])
    y = torch.cat([data.y, data.y.flip(-1), data.y[:5]])
    for level in (1e-12, 1e-4):
        for method in (Exact(learn=False), Exact(max_iter=5), SGPR(num_inducing=12, max_iter=5)):
            for dtype in (torch.float64, torch.float32):
                likelihood = Gaussian([level] * 3, learn=False)
                values = fit(Data(x.to(dtype), y.to(dtype)), default_prior(x, 3), likelihood, method).posterior(x)
                assert values.mean.isfinite().all() and (values.variance >= 0).all()


class KnownNoise(Conjugate):
    """A noise variance of its own for every entry, and one factor on all of them to learn."""

    def __init__(self):
        super().__init__()
        self.log_factor = torch.nn.Parameter(torch.tensor(0.1, dtype=torch.float64))

    def distribution(self, f):
        return torch.distributions.Independent(torch.distributions.Normal(f, 0.1), 1)

    def observations(self, y):
        return y, self.log_factor.exp() * (0.01 + 0.1 * y.nan_to_num().square())


def test_noise_by_entry_is_learned_alike_and_solved_by_conjugate_gradients():
    data, x, z = with_gaps(30, k=2), test_inputs(), test_inputs(6)
    for targets in (data, column(data, 0)):
        k, likelihood = targets.y.shape[-1], KnownNoise()
        prior = process(k=k)
        rows, model = training_set(prior, likelihood, targets), learnable(prior, likelihood, learn=True)
        value = log_evidence(model, rows)
        plain = learnable(prior, likelihood, learn=True)
        total = torch.zeros((), dtype=torch.float64)
        for j in range(k):
            part = column(targets, j)
            covariance = plain.kernel(part.x).to_dense() + torch.diag(plain.likelihood.observations(part.y)[1][:, 0])
            normal = torch.distributions.MultivariateNormal(torch.zeros(len(part), dtype=torch.float64), covariance)
            total = total + normal.log_prob(part.y[:, 0])
        close(value, total)
        slopes = (torch.autograd.grad(v, m.parameters) for v, m in ((value, model), (total, plain)))
        for one, two in zip(*slopes, strict=True):
            close(one, two)
        sparse = collapsed(model, z, rows).bound
        assert all(slope.isfinite().all() for slope in torch.autograd.grad(sparse, model.parameters))
    direct, iterative = (fit(targets, prior, likelihood, Exact(learn=False, solver=s)) for s in ("cholesky", "cg"))
    same_gp(direct.posterior, iterative.posterior, x, 1e-6)
