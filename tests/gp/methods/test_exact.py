import numpy as np
import pytest
import torch
from gpytorch.kernels import LinearKernel, MaternKernel, RBFKernel
from gpytorch.means import ZeroMean
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process import kernels as sk

from bayeskit.core.likelihood import Bernoulli, Gaussian
from bayeskit.core.types import Data
from bayeskit.gp import Exact, GaussianProcess, default_prior
from bayeskit.gp.methods.exact import log_evidence
from bayeskit.gp.model.hyperparameters import learnable
from bayeskit.gp.model.training_set import training_set

from ..problems import close, constant, generator, matern, noise, process, rbf, regression, same_gp, test_inputs

FIXED = Exact(learn=False)


def fit(data, prior=None, likelihood=None, method=FIXED):
    return method.infer(prior or process(k=data.y.shape[-1]), likelihood or noise(), data, generator=generator())


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (rbf(0.8), sk.ConstantKernel(1.7) * sk.RBF(0.8)),
        (matern((0.9, 1.4)), sk.ConstantKernel(1.7) * sk.Matern([0.9, 1.4], nu=2.5)),
        (matern((0.9, 1.4), nu=1.5), sk.ConstantKernel(1.7) * sk.Matern([0.9, 1.4], nu=1.5)),
        (matern((0.9, 1.4), nu=0.5), sk.ConstantKernel(1.7) * sk.Matern([0.9, 1.4], nu=0.5)),
    ],
    ids=["rbf", "matern52", "matern32", "matern12"],
)
def test_equals_scikit_learn(ours, theirs):
    data, x = regression(), test_inputs()
    result = fit(data, process(ours), noise(0.05))
    reference = GaussianProcessRegressor(theirs, alpha=0.05, optimizer=None).fit(data.x.numpy(), data.y[:, 0].numpy())
    mean, std = reference.predict(x.numpy(), return_std=True)
    values = result.posterior(x)
    close(values.mean[:, 0], torch.from_numpy(mean))
    close(values.variance[:, 0].sqrt(), torch.from_numpy(std))
    close(values.covariance.to_dense(), torch.from_numpy(reference.predict(x.numpy(), return_cov=True)[1]))
    assert abs(float(result.log_evidence) - reference.log_marginal_likelihood_value_) < 1e-8
    assert result.log_evidence.kind == "exact"
    assert result.diagnostics["jitter of k(X, X) + noise"] == 0


def test_fold_over_three_tasks_equals_the_batch():
    data, x = regression(36), test_inputs()
    batch = fit(data)
    posterior, evidence = process(), 0.0
    for start in (0, 12, 24):
        step = fit(data.rows(slice(start, start + 12)), posterior, noise())
        posterior, evidence = step.posterior, evidence + float(step.log_evidence)
    same_gp(posterior, batch.posterior, x)
    assert abs(evidence - float(batch.log_evidence)) < 1e-8  # p(y1) p(y2 | y1) p(y3 | y1, y2) = p(y)


def test_a_conditioned_process_learns_nothing_further():
    first = Exact(max_iter=10).infer(default_prior(regression().x), Gaussian(), regression(), generator=generator())
    assert not any(p.requires_grad for p in first.posterior.kernel.parameters())
    second = Exact().infer(first.posterior, first.likelihood, regression(seed=3), generator=generator())
    assert not second.history
    assert second.likelihood.noise == first.likelihood.noise


def test_no_data_returns_the_prior():
    prior = process(mean=constant(0.3))
    empty = regression().rows(slice(0, 0))
    result = fit(empty, prior)
    same_gp(result.posterior, prior, test_inputs(), 0)
    assert float(result.log_evidence) == 0


def test_order_of_rows_changes_nothing():
    data, x = regression(), test_inputs()
    shuffled = data.rows(torch.randperm(len(data), generator=generator()))
    method = Exact(max_iter=20)
    one, two = (method.infer(default_prior(data.x), Gaussian(), d, generator=generator()) for d in (data, shuffled))
    same_gp(one.posterior, two.posterior, x, 0)


def test_integer_weights_are_repeated_rows():
    data, x = regression(20), test_inputs()
    weights = torch.arange(20, dtype=torch.float64) % 4  # zeros included
    repeated = data.rows(torch.arange(20).repeat_interleave(weights.long()))
    weighted = Data(data.x, data.y, weights)
    one, two = fit(weighted), fit(repeated)
    same_gp(one.posterior, two.posterior, x)
    assert abs(float(one.log_evidence) - float(two.log_evidence)) < 1e-8
    gradients = []
    for rows in (weighted, repeated):
        prior = process(matern(), mean=constant(0.1))
        model = learnable(prior, noise(learn=True), learn=True)
        value = log_evidence(model, training_set(prior, noise(), rows))
        gradients.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, model.parameters)]))
    close(gradients[0], gradients[1])


def test_gradient_by_hand_equals_automatic():
    data = training_set(process(k=2), noise(), regression(k=2))
    model = learnable(process(matern(), 2), Gaussian([0.05, 0.2]), learn=True)
    value = log_evidence(model, data)
    covariance = model.kernel(data.x).to_dense() + model.likelihood.noise[:, None, None] * torch.eye(len(data))
    distribution = torch.distributions.MultivariateNormal(torch.zeros(2, len(data), dtype=torch.float64), covariance)
    expected = distribution.log_prob(data.y.mT).sum()
    close(value, expected)
    for one, two in zip(*(torch.autograd.grad(v, model.parameters) for v in (value, expected)), strict=True):
        close(one, two)


def test_several_outputs_are_separate_problems():
    data, x = regression(k=3), test_inputs()
    levels = [0.05, 0.1, 0.3]
    joint = fit(data, process(k=3), noise(levels))
    alone = [fit(Data(data.x, data.y[:, [j]]), process(), noise(levels[j])) for j in range(3)]
    close(joint.posterior(x).mean, torch.cat([one.posterior(x).mean for one in alone], -1))
    close(joint.posterior(x).variance, torch.cat([one.posterior(x).variance for one in alone], -1))
    assert abs(float(joint.log_evidence) - sum(float(one.log_evidence) for one in alone)) < 1e-8


def test_outputs_with_kernels_of_their_own():
    data, x = regression(k=2), test_inputs(2)  # as many inputs as kernels: shapes must not be confused
    kernel = RBFKernel(batch_shape=torch.Size([2])).double()
    kernel.lengthscale = torch.tensor([[[0.5]], [[1.5]]], dtype=torch.float64)
    joint = fit(data, GaussianProcess(ZeroMean(), kernel, 2))
    for j, lengthscale in enumerate((0.5, 1.5)):
        single = RBFKernel().double()
        single.lengthscale = torch.tensor(lengthscale, dtype=torch.float64)
        alone = fit(Data(data.x, data.y[:, [j]]), process(single))
        close(joint.posterior(x).mean[:, [j]], alone.posterior(x).mean)
        close(joint.posterior(x).variance[:, [j]], alone.posterior(x).variance)
    blocks = joint.posterior(x).output_covariance()
    close(blocks, torch.diag_embed(joint.posterior(x).variance))


def test_one_row():
    data = Data(torch.zeros(1, 2), torch.ones(1, 1))
    result = fit(data, process(rbf()), noise(0.3))
    close(result.posterior(data.x).mean, torch.tensor([[1.7 / 2.0]], dtype=torch.float64))
    close(result.posterior(data.x).variance, torch.tensor([[1.7 - 1.7**2 / 2.0]], dtype=torch.float64))
    Exact().infer(default_prior(data.x), Gaussian(), data, generator=generator())


def test_float32_is_lifted():
    data, x = regression(), test_inputs()
    low = Data(data.x.float(), data.y.float())
    kernel = MaternKernel(nu=2.5)  # float32, as gpytorch makes it
    result = fit(low, process(kernel))
    values = result.posterior(x.float())
    assert values.mean.dtype == values.variance.dtype == torch.float64
    again = fit(Data(low.x.double(), low.y.double()), process(MaternKernel(nu=2.5).double()))
    same_gp(result.posterior, again.posterior, x.float().double())


@pytest.mark.monte_carlo
def test_duplicate_rows_and_constant_columns():
    data = regression(15)
    x = torch.cat([data.x, torch.full((15, 1), 3.0, dtype=torch.float64)], -1)
    repeated = Data(torch.cat([x, x]), torch.cat([data.y, data.y + 0.01]))
    result = Exact().infer(default_prior(repeated.x), Gaussian(), repeated, generator=generator())
    assert torch.isfinite(result.posterior(repeated.x).variance).all()
    assert (result.posterior(x).mean - data.y).abs().mean() < 0.1


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1e5, 1e12])
def test_scale_of_the_inputs_does_not_matter(scale):
    data, x = regression(40), test_inputs()
    plain = Exact().infer(default_prior(data.x), Gaussian(), data, generator=generator())
    moved = Data(data.x * scale, data.y)
    result = Exact().infer(default_prior(moved.x), Gaussian(), moved, generator=generator())
    close(result.posterior(x * scale).mean, plain.posterior(x).mean, 1e-3)


@pytest.mark.monte_carlo
@pytest.mark.parametrize("scale", [1e-1, 1e6, 1e12])
def test_large_targets_are_learnt_without_standardization(scale):
    data = regression(40)
    moved = Data(data.x, 5 * scale + scale * data.y)
    result = Exact().infer(default_prior(moved.x), Gaussian(), moved, generator=generator())
    assert float((result.posterior(moved.x).mean - moved.y).std()) < 0.2 * scale


def test_restarts_never_lose():
    data = regression()
    plain, more = (
        Exact(restarts=r).infer(default_prior(data.x), Gaussian(), data, generator=generator()) for r in (0, 2)
    )
    assert min(more.history["loss"]) <= min(plain.history["loss"])


def test_learning_is_on_copies():
    data = regression()
    prior, likelihood = default_prior(data.x), Gaussian()
    before = [p.clone() for module in (prior.mean, prior.kernel, likelihood) for p in module.parameters()]
    Exact(max_iter=5).infer(prior, likelihood, data, generator=generator())
    after = [p for module in (prior.mean, prior.kernel, likelihood) for p in module.parameters()]
    assert all(torch.equal(a, b) and b.requires_grad for a, b in zip(before, after, strict=True))


def test_any_kernel_of_gpytorch():
    data, x = regression(), test_inputs()
    result = Exact(max_iter=5).infer(process(LinearKernel()), noise(), data, generator=generator())
    assert torch.isfinite(result.posterior(x).variance).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": Data(torch.zeros(3, 2, 2), torch.zeros(3, 1))}, r"\(n, d\)"),
        ({"data": Data(torch.zeros(3, 2), torch.zeros(3, 2))}, "num_outputs"),
        ({"data": Data(torch.full((3, 2), torch.nan), torch.zeros(3, 1))}, "data.x"),
        ({"data": Data(torch.zeros(3, 2), torch.full((3, 1), torch.inf))}, "data.y"),
        ({"data": Data(torch.zeros(2, 2), torch.zeros(2, 1), torch.tensor([1.0, -1.0]))}, "negative"),
        ({"method": Exact(solver="lu")}, "solver"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    settings = {"data": regression(), "prior": process(), "method": FIXED} | arguments
    with pytest.raises(ValueError, match=message):
        fit(settings["data"], settings["prior"], method=settings["method"])


def test_a_likelihood_that_does_not_fit_is_refused_by_name():
    with pytest.raises(TypeError, match="Conjugate; got Bernoulli"):
        fit(regression(), likelihood=Bernoulli())


def test_evidence_equals_a_dense_normal():
    data = regression(k=2)
    result = fit(data, process(matern(), 2, constant([0.2, -0.1], 2)), noise([0.05, 0.2]))
    kernel = matern()(data.x).to_dense()
    total = 0.0
    for j, (level, offset) in enumerate(zip((0.05, 0.2), (0.2, -0.1), strict=True)):
        covariance = (kernel + level * torch.eye(len(data), dtype=torch.float64)).detach().numpy()
        residual = data.y[:, j].numpy() - offset
        total += (
            -0.5 * residual @ np.linalg.solve(covariance, residual) - 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
        )
    assert abs(float(result.log_evidence) - total) < 1e-8


def test_equal_rows_are_merged_and_sorted():
    x = torch.tensor([[2.0], [1.0], [2.0], [1.0]])
    y = torch.tensor([[0.0], [3.0], [0.0], [4.0]])
    rows = training_set(process(), noise(), Data(x, y, torch.tensor([1.0, 1.0, 2.0, 0.0])))
    assert rows.x.tolist() == [[1.0], [2.0]]
    assert rows.y.tolist() == [[3.0], [0.0]]
    assert rows.weights.tolist() == [1.0, 3.0]
    codes = training_set(process(), Bernoulli(), Data(x, torch.tensor([1, 0, 1, 0])))
    assert codes.y.tolist() == [0, 1]
    assert codes.y.dtype == torch.long
    assert codes.weights.tolist() == [2.0, 2.0]
