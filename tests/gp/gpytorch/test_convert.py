"""gpytorch's models as posteriors: the same numbers, functions to draw, priors of more data."""

import copy

import gpytorch
import pytest
import torch
from gpytorch import kernels as K
from gpytorch import likelihoods as L
from gpytorch import variational as V
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from gpytorch.means import ConstantMean, LinearMean, MultitaskMean, ZeroMean

from bayeskit import gp
from bayeskit.core import likelihood as ours
from bayeskit.core.types import Data
from bayeskit.gp.gpytorch.model_conversion import GPyTorchModel, exact_algebra, values_of

from ..problems import close, generator, noise, regression

JITTER = 1e-9
"""gpytorch adds it to predicted variances, and this library does not."""


def two():
    return torch.Size([2])


def inputs(n=9, d=2, seed=5):
    return torch.randn(n, d, generator=generator(seed), dtype=torch.float64)


def randomized(module, seed=0):
    """The module in float64 with other values than it starts with, as training would give it."""
    g = generator(seed)
    module = module.double()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "variational" not in name and "inducing" not in name:
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=g, dtype=torch.float64))
    return module


def theirs(model, x):
    with exact_algebra(), torch.no_grad():
        return values_of(model.eval()(x))


def same(posterior, model, x, tolerance=1e-8):
    """Mean, variance and covariance agree with what the model predicts."""
    values, expected = posterior(x), theirs(model, x)
    close(values.mean, expected.mean, tolerance)
    close(values.variance, expected.variance, tolerance)
    close(values.covariance.to_dense(), expected.covariance.to_dense(), tolerance)


class Exact(gpytorch.models.ExactGP):
    def __init__(self, x, y, likelihood, mean, kernel, distribution=MultivariateNormal):
        super().__init__(x, y, likelihood)
        self.mean_module, self.covar_module, self.distribution = mean, kernel, distribution

    def forward(self, x):
        return self.distribution(self.mean_module(x), self.covar_module(x))


class Features(Exact):
    """The network of a deep kernel sits in `forward`."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.network = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))

    def forward(self, x):
        return super().forward(self.network(x))


def exact(mean=None, kernel=None, likelihood=None, k=1, cls=Exact, **settings):
    data = regression(k=k)
    y = data.y[:, 0] if k == 1 else settings.pop("targets", lambda y: y)(data.y)
    model = cls(data.x, y, likelihood or L.GaussianLikelihood(), mean or ConstantMean(), kernel or rbf(), **settings)
    return randomized(model)


def rbf(batch=()):
    return K.ScaleKernel(K.RBFKernel(batch_shape=torch.Size(batch)), batch_shape=torch.Size(batch))


KERNELS = {
    "RBF": rbf,
    "RBF with a lengthscale each": lambda: K.ScaleKernel(K.RBFKernel(ard_num_dims=2)),
    "Matern 1/2": lambda: K.ScaleKernel(K.MaternKernel(nu=0.5)),
    "Matern 3/2": lambda: K.ScaleKernel(K.MaternKernel(nu=1.5, ard_num_dims=2)),
    "Matern 5/2": lambda: K.MaternKernel(nu=2.5),
    "rational quadratic": lambda: K.ScaleKernel(K.RQKernel()),
    "periodic": lambda: K.ScaleKernel(K.PeriodicKernel()),
    "linear": K.LinearKernel,
    "polynomial": lambda: K.ScaleKernel(K.PolynomialKernel(power=2)),
    "cosine": lambda: K.ScaleKernel(K.CosineKernel(active_dims=[0])),
    "spectral mixture": lambda: K.SpectralMixtureKernel(num_mixtures=2, ard_num_dims=2),
    "piecewise polynomial": lambda: K.PiecewisePolynomialKernel(q=2),
    "arc": lambda: K.ArcKernel(K.MaternKernel(nu=2.5)),
    "constant": lambda: K.ConstantKernel() + K.RBFKernel(),
    "sum": lambda: rbf() + K.ScaleKernel(K.LinearKernel()),
    "product": lambda: rbf() * K.PeriodicKernel(),
    "columns": lambda: K.ScaleKernel(K.RBFKernel(active_dims=[0])) + K.ScaleKernel(K.MaternKernel(active_dims=[1])),
}
MEANS = {"zero": ZeroMean, "constant": ConstantMean, "linear": lambda: LinearMean(2)}
WAVES = ("RBF", "Matern", "columns")


# -- exact models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KERNELS)
def test_exact_model_with_each_kernel(name):
    likelihood = L.GaussianLikelihood()
    model = exact(kernel=KERNELS[name](), likelihood=likelihood)
    posterior = gp.from_gpytorch(model, likelihood)
    assert type(posterior) is gp.GaussianProcess
    same(posterior, model, inputs())
    f = posterior.sample_functions(3, generator=generator())
    close(f(inputs())[:, 4:], f(inputs()[4:]))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("method", [gp.Exact(), gp.SGPR(num_inducing=30), gp.SVGP(num_inducing=30)])
def test_each_kernel_in_each_method_at_frozen_hyperparameters(name, method):
    """With inducing points at all the inputs the sparse methods are exact, and so all are gpytorch's exact GP."""
    model = exact(kernel=KERNELS[name](), mean=ZeroMean())
    prior = gp.GaussianProcess(model.mean_module, model.covar_module.requires_grad_(False))
    likelihood = gp.likelihood_from_gpytorch(model.likelihood)
    fit = method.infer(prior, likelihood, regression(), generator=generator())
    same(fit.posterior, model, inputs(), 1e-6)


@pytest.mark.parametrize("name", MEANS)
@pytest.mark.parametrize("method", [gp.Exact(), gp.SGPR(num_inducing=30), gp.SVGP(num_inducing=30)])
def test_each_mean_in_each_method_at_frozen_hyperparameters(name, method):
    model = exact(mean=MEANS[name]())
    same(gp.from_gpytorch(model), model, inputs())
    prior = gp.GaussianProcess(model.mean_module.requires_grad_(False), model.covar_module.requires_grad_(False))
    likelihood = gp.likelihood_from_gpytorch(model.likelihood)
    fit = method.infer(prior, likelihood, regression(), generator=generator())
    same(fit.posterior, model, inputs(), 1e-6)


@pytest.mark.parametrize("name", ["rational quadratic", "periodic", "linear", "sum", "product", "spectral mixture"])
@pytest.mark.parametrize("method", [gp.Exact(max_iter=5), gp.SGPR.quickly(), gp.SVGP.quickly()])
def test_kernels_are_learned(name, method):
    prior = gp.GaussianProcess(ConstantMean(), KERNELS[name]())
    fit = method.infer(prior, ours.Gaussian(), regression(), generator=generator())
    assert bool((fit.posterior(inputs()).variance > 0).all())


@pytest.mark.parametrize("extra", [False, True])
def test_exact_model_with_a_noise_for_each_row(extra):
    variances = 0.01 + 0.1 * torch.rand(30, generator=generator(), dtype=torch.float64)
    likelihood = L.FixedNoiseGaussianLikelihood(variances, learn_additional_noise=extra)
    model = exact(likelihood=likelihood)
    same(gp.from_gpytorch(model, likelihood), model, inputs())


def test_exact_model_with_features_in_its_forward():
    model = exact(cls=Features)
    same(gp.from_gpytorch(model), model, inputs())


def test_exact_model_beyond_the_size_where_gpytorch_turns_to_conjugate_gradients():
    data = regression(n=900)
    model = randomized(Exact(data.x, data.y[:, 0], L.GaussianLikelihood(), ConstantMean(), rbf()))
    same(gp.from_gpytorch(model), model, inputs())


def test_exact_model_of_independent_outputs():
    batch = two()
    settings = {"mean": ConstantMean(batch_shape=batch), "kernel": rbf(batch), "k": 2}
    model = exact(likelihood=L.GaussianLikelihood(batch_shape=batch), targets=lambda y: y.mT, **settings)
    posterior = gp.from_gpytorch(model)
    assert type(posterior) is gp.GaussianProcess and posterior.num_outputs == 2
    same(posterior, model, inputs())


def test_exact_model_of_independent_tasks():
    batch = two()

    def distribution(mean, covariance):
        return MultitaskMultivariateNormal.from_batch_mvn(MultivariateNormal(mean, covariance))

    settings = {"mean": ConstantMean(batch_shape=batch), "kernel": rbf(batch), "k": 2, "distribution": distribution}
    model = exact(likelihood=L.MultitaskGaussianLikelihood(num_tasks=2), **settings)
    posterior = gp.from_gpytorch(model)
    assert type(posterior) is gp.GaussianProcess
    same(posterior, model, inputs())


def multitask(kernel=None, rank=0):
    kernel = kernel or K.MultitaskKernel(K.RBFKernel(), num_tasks=2, rank=1)
    mean = MultitaskMean([ConstantMean(), LinearMean(2)], num_tasks=2)
    likelihood = L.MultitaskGaussianLikelihood(num_tasks=2, rank=rank)
    return exact(mean, kernel, likelihood, k=2, distribution=MultitaskMultivariateNormal)


@pytest.mark.monte_carlo
@pytest.mark.parametrize("lcm", [False, True])
def test_exact_model_with_correlated_tasks(lcm):
    model = multitask(K.LCMKernel([K.RBFKernel(), K.MaternKernel()], num_tasks=2) if lcm else None)
    posterior = gp.from_gpytorch(model)
    assert type(posterior) is gp.StackedProcess
    same(posterior, model, inputs())
    x = inputs(4)
    f = posterior.sample_functions(600, generator=generator())
    assert f(x).shape == (600, 4, 2)
    close(f(x)[:2, 2:], f(x[2:])[:2])
    values, draws = posterior(x), f(x).flatten(-2)
    deviation = values.variance.sqrt().flatten()
    assert bool(((draws.mean(0) - values.mean.flatten()).abs() < 5 * deviation / 600**0.5).all())
    scale = float(values.variance.max())
    assert float((draws.mT.cov() - values.covariance.to_dense()).abs().max()) < 0.3 * scale


@pytest.mark.parametrize("lcm", [False, True])
def test_more_data_on_a_model_with_correlated_tasks(lcm):
    """A rest of the rows here after the first ones in gpytorch is all of them in gpytorch."""
    whole = multitask(K.LCMKernel([K.RBFKernel(), K.MaternKernel()], num_tasks=2) if lcm else None)
    whole.likelihood.raw_task_noises.data.fill_(-1.0)  # one noise for all tasks
    half, (x,), y = copy.deepcopy(whole), whole.train_inputs, whole.train_targets
    half.set_train_data(x[:15], y[:15], strict=False)
    fit = gp.Exact().infer(
        gp.from_gpytorch(half),
        ours.Gaussian((whole.likelihood.task_noises[0] + whole.likelihood.noise).item(), learn=False),
        Data(x[15:], y[15:]),
        generator=generator(),
    )
    same(fit.posterior, whole, inputs())


def test_exact_model_with_features_before_correlated_tasks_is_asked_itself():
    arguments = {"distribution": MultitaskMultivariateNormal, "k": 2, "cls": Features}
    likelihood = L.MultitaskGaussianLikelihood(num_tasks=2)
    model = exact(MultitaskMean(ConstantMean(), 2), K.MultitaskKernel(K.RBFKernel(), 2), likelihood, **arguments)
    posterior = gp.from_gpytorch(model)
    assert type(posterior) is GPyTorchModel
    same(posterior, model, inputs())


def test_exact_model_whose_multitask_kernel_passes_over_columns_is_asked_itself():
    """gpytorch does not see `active_dims` inside a MultitaskKernel, so taking it apart would give other numbers."""
    model = multitask(K.MultitaskKernel(K.RBFKernel(active_dims=[0]), num_tasks=2))
    posterior = gp.from_gpytorch(model)
    assert type(posterior) is GPyTorchModel
    same(posterior, model, inputs())


def test_exact_model_whose_tasks_share_their_noise_is_asked_itself():
    model = multitask(rank=1)
    posterior = gp.from_gpytorch(model)
    assert type(posterior) is GPyTorchModel
    same(posterior, model, inputs())
    with pytest.raises(ValueError, match="gives joint distributions at given inputs and no functions"):
        posterior.sample_functions(2, generator=generator())


def test_exact_model_with_inducing_points():
    """Off the diagonal gpytorch keeps the covariance of the approximate kernel; mean and variances are the same."""
    likelihood = L.GaussianLikelihood()
    kernel = K.InducingPointKernel(rbf(), inputs(12), likelihood)
    model = exact(kernel=kernel, likelihood=likelihood)
    posterior = gp.from_gpytorch(model)
    assert type(posterior) is gp.GaussianProcess
    close(posterior(inputs()).mean, theirs(model, inputs()).mean)
    close(posterior(inputs()).variance, theirs(model, inputs()).variance)
    assert likelihood.raw_noise.requires_grad  # gpytorch's copy of such a kernel shares the likelihood


def test_a_model_without_data_is_its_prior():
    model = randomized(Exact(None, None, L.GaussianLikelihood(), ConstantMean(), rbf()))
    same(gp.from_gpytorch(model), model, inputs())


def test_float32_model():
    data = regression()
    model = Exact(data.x.float(), data.y[:, 0].float(), L.GaussianLikelihood(), ConstantMean(), rbf())
    values, expected = gp.from_gpytorch(model)(inputs()), theirs(model, inputs().float())
    assert values.mean.dtype == torch.float64
    close(values.mean, expected.mean.double(), 1e-4)
    close(values.variance, expected.variance.double(), 1e-4)


def test_the_model_stays_as_it_is_even_after_it_has_predicted():
    model = exact()
    model.eval()(inputs())  # its caches cannot be copied
    cache = model.prediction_strategy
    posterior = gp.from_gpytorch(model.train(False))
    assert model.prediction_strategy is cache and model.covar_module.raw_outputscale.requires_grad
    before = posterior(inputs()).mean
    with torch.no_grad():
        model.covar_module.raw_outputscale.add_(1.0)
    assert torch.equal(posterior(inputs()).mean, before)


def test_more_data_on_a_converted_model():
    """Half the rows in gpytorch and half here is all of them in gpytorch."""
    data = regression(n=30)
    whole = randomized(Exact(data.x, data.y[:, 0], L.GaussianLikelihood(), ConstantMean(), rbf()))
    half = randomized(Exact(data.x[:15], data.y[:15, 0], L.GaussianLikelihood(), ConstantMean(), rbf()))
    likelihood = gp.likelihood_from_gpytorch(half.likelihood)
    rest = Data(data.x[15:], data.y[15:])
    fit = gp.Exact().infer(gp.from_gpytorch(half), likelihood, rest, generator=generator())
    same(fit.posterior, whole, inputs())


# -- variational models ------------------------------------------------------------------------------------------------


class Approximate(gpytorch.models.ApproximateGP):
    def __init__(self, strategy, mean=None, kernel=None):
        super().__init__(strategy(self))
        self.mean_module, self.covar_module = mean or ConstantMean(), kernel or rbf()

    def forward(self, x):
        return MultivariateNormal(self.mean_module(x), self.covar_module(x))


def trained(model, seed=1):
    """A model whose variational parameters have some values, as after training."""
    g = generator(seed)
    model = randomized(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = torch.randn(parameter.shape, generator=g, dtype=torch.float64)
            if name.endswith(("variational_mean", "natural_vec")):
                parameter.copy_(draw)
            elif name.endswith(("chol_variational_covar", "natural_tril_mat")):
                eye = torch.eye(parameter.shape[-1], dtype=torch.float64)
                parameter.copy_(0.2 * draw.tril() + 0.7 * eye)
            elif name.endswith("_variational_stddev"):
                parameter.copy_(0.3 + draw.abs())
            elif name.endswith("natural_mat"):
                parameter.copy_(-0.5 * (draw @ draw.mT / 10 + torch.eye(draw.shape[-1], dtype=torch.float64)))
        for part in model.modules():
            if "variational_params_initialized" in part._buffers:
                part.variational_params_initialized.fill_(1)
    return model


def strategy(cls=V.VariationalStrategy, q=V.CholeskyVariationalDistribution, *, batch=(), z=None):
    z = inputs(8, seed=2) if z is None else z
    return lambda model: cls(model, z, q(8, batch_shape=torch.Size(batch)), jitter_val=JITTER)


FAMILIES = [
    V.CholeskyVariationalDistribution,
    V.MeanFieldVariationalDistribution,
    V.DeltaVariationalDistribution,
    V.NaturalVariationalDistribution,
    V.TrilNaturalVariationalDistribution,
]


@pytest.mark.parametrize("q", FAMILIES)
@pytest.mark.parametrize("cls", [V.VariationalStrategy, V.LargeBatchVariationalStrategy])
def test_whitened_strategies(cls, q):
    model = trained(Approximate(strategy(cls, q)))
    posterior = gp.from_gpytorch(model)
    assert type(posterior) is gp.GaussianProcess
    same(posterior, model, inputs())
    f = posterior.sample_functions(2, generator=generator())
    close(f(inputs())[:, 3:], f(inputs()[3:]))


@pytest.mark.parametrize("cls", [V.VariationalStrategy, V.LargeBatchVariationalStrategy, V.CiqVariationalStrategy])
@pytest.mark.parametrize("jitter", [None, 1e-2])
def test_float32_strategies_keep_the_jitter_that_they_were_trained_with(cls, jitter):
    """Whitened values have a meaning with their factor alone, in which float32 has another jitter than float64."""
    z = torch.linspace(0, 1, 24)[:, None]

    def choice(model):
        return cls(model, z, V.CholeskyVariationalDistribution(24), jitter_val=jitter)

    model = Approximate(choice, kernel=K.RBFKernel())
    model.covar_module.lengthscale = 0.2
    model.variational_strategy.variational_params_initialized.fill_(1)
    mean = model.variational_strategy._variational_distribution.variational_mean
    mean.data = torch.randn(24, generator=generator())
    x = torch.linspace(0, 1, 50)[:, None]
    values, expected = gp.from_gpytorch(model)(x), theirs(model, x)
    close(values.mean, expected.mean.double(), 5e-3)
    close(values.variance, expected.variance.double(), 5e-3 if jitter is None else 2.1e-2)
    assert model.variational_strategy._jitter_val is jitter


@pytest.mark.parametrize("q", [q for q in FAMILIES if q is not V.DeltaVariationalDistribution])
def test_unwhitened_strategy(q):
    model = trained(Approximate(strategy(V.UnwhitenedVariationalStrategy, q)))
    same(gp.from_gpytorch(model), model, inputs())


@pytest.mark.parametrize("q", [V.CholeskyVariationalDistribution, V.NaturalVariationalDistribution])
def test_contour_integral_strategy(q):
    """gpytorch forms the square root by quadrature and iterations, which limits the agreement."""
    model = trained(Approximate(strategy(V.CiqVariationalStrategy, q)))
    posterior = gp.from_gpytorch(model)
    with exact_algebra(), torch.no_grad(), gpytorch.settings.minres_tolerance(1e-12):
        expected = values_of(model.eval()(inputs()))
    close(posterior(inputs()).mean, expected.mean, 1e-4)
    close(posterior(inputs()).variance, expected.variance, 1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")  # linear_operator's sparse tensors are of an old kind
def test_orthogonally_decoupled_strategy():
    def decoupled(model):
        mean_only = V.DeltaVariationalDistribution(5)
        return V.OrthogonallyDecoupledVariationalStrategy(strategy()(model), inputs(5, seed=7), mean_only, JITTER)

    model = trained(Approximate(decoupled))
    posterior = gp.from_gpytorch(model)
    assert type(posterior) is gp.GaussianProcess
    same(posterior, model, inputs(), 1e-7)


@pytest.mark.parametrize("q", FAMILIES)
def test_independent_tasks(q):
    batch = two()

    def tasks(model):
        return V.IndependentMultitaskVariationalStrategy(strategy(q=q, batch=batch)(model), num_tasks=2)

    for kernel in (rbf(), rbf(batch)):
        model = trained(Approximate(tasks, ConstantMean(batch_shape=batch), kernel))
        posterior = gp.from_gpytorch(model)
        assert type(posterior) is gp.GaussianProcess and posterior.num_outputs == 2
        same(posterior, model, inputs())


def test_tasks_that_share_one_variational_distribution():
    model = trained(Approximate(lambda m: V.IndependentMultitaskVariationalStrategy(strategy()(m), num_tasks=3)))
    posterior = gp.from_gpytorch(model)
    assert posterior.num_outputs == 3
    same(posterior, model, inputs())


@pytest.mark.parametrize("kernel_batch", [(), (2,)])
@pytest.mark.parametrize("q", FAMILIES)
def test_independent_tasks_with_inducing_points_of_their_own(q, kernel_batch):
    z = torch.stack([inputs(8, seed=2), inputs(8, seed=3)])

    def tasks(model):
        return V.IndependentMultitaskVariationalStrategy(strategy(q=q, batch=two(), z=z)(model), num_tasks=2)

    model = trained(Approximate(tasks, ConstantMean(batch_shape=two()), rbf(kernel_batch)))
    posterior = gp.from_gpytorch(model)
    assert type(posterior) is gp.StackedProcess
    same(posterior, model, inputs())


@pytest.mark.monte_carlo
@pytest.mark.parametrize("own", [False, True])
def test_linear_coregionalization(own):
    batch = two()
    z = torch.stack([inputs(8, seed=2), inputs(8, seed=3)]) if own else None

    def lmc(model):
        base = strategy(batch=batch, z=z)(model)
        return V.LMCVariationalStrategy(base, num_tasks=3, num_latents=2, jitter_val=JITTER)

    model = trained(Approximate(lmc, ConstantMean(batch_shape=batch), rbf(batch)))
    posterior = gp.from_gpytorch(model)
    assert type(posterior) is (gp.StackedProcess if own else gp.GaussianProcess)
    same(posterior, model, inputs())
    x = inputs(3)
    f = posterior.sample_functions(600, generator=generator())
    close(f(x)[:2, 1:], f(x[1:])[:2])
    draws = f(x).flatten(-2)
    covariance = posterior(x).covariance.to_dense()
    assert float((draws.mT.cov() - covariance).abs().max()) < 0.3 * float(covariance.diagonal().max())


@pytest.mark.filterwarnings("ignore:Tried to import faiss")
def test_strategies_without_counterpart_are_asked_themselves():
    def grid(model):
        q = V.CholeskyVariationalDistribution(36)
        return V.GridInterpolationVariationalStrategy(model, 6, [(-4.0, 4.0), (-4.0, 4.0)], q)

    def neighbors(model):
        return V.NNVariationalStrategy(model, inputs(20), V.MeanFieldVariationalDistribution(20), k=4)

    for choice in (grid, neighbors):
        model = trained(Approximate(choice))
        posterior = gp.from_gpytorch(model)
        assert type(posterior) is GPyTorchModel
        expected = theirs(model, inputs(seed=8))
        close(posterior(inputs(seed=8)).mean, expected.mean)
        close(posterior(inputs(seed=8)).variance, expected.variance)
        with pytest.raises(ValueError, match="no functions"):
            posterior.sample_functions(1, generator=generator())


def test_a_model_trained_for_real():
    """Half a minute of tutorials in one: Adam on the ELBO, then the same class probabilities."""
    x = inputs(40)
    y = (x[:, 0] > 0).double()
    model = Approximate(lambda m: V.VariationalStrategy(m, inputs(8, seed=2), V.CholeskyVariationalDistribution(8)))
    likelihood = L.BernoulliLikelihood()
    model, likelihood = model.double(), likelihood.double()
    elbo = gpytorch.mlls.VariationalELBO(likelihood, model, 40)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(30):
            optimizer.zero_grad()
            (-elbo(model(x), y)).backward()
            optimizer.step()
    posterior = gp.from_gpytorch(model, likelihood)  # straight after a step, its graph still cached
    with torch.no_grad():
        expected = likelihood.eval()(model.eval()(inputs())).probs
    probs = gp.likelihood_from_gpytorch(likelihood).predictive(posterior(inputs())).probs[:, 1]
    close(probs, expected, 1e-5)  # gpytorch adds 1e-6 to the variances


# -- what is refused, and the way back ---------------------------------------------------------------------------------


def test_what_is_refused():
    with pytest.raises(TypeError, match="must be a gpytorch model; got int"):
        gp.from_gpytorch(3)
    with pytest.raises(ValueError, match="has never been called"):
        gp.from_gpytorch(Approximate(strategy()).double())
    model = exact()
    model.train_targets[0] = torch.nan
    with pytest.raises(ValueError, match="train_targets` must be finite"):
        gp.from_gpytorch(model)
    with pytest.raises(TypeError, match="`model` must be a gpytorch model"):
        gp.from_gpytorch(torch.nn.Linear(2, 1).double())(inputs())


@pytest.mark.parametrize("k", [1, 2])
def test_values_go_back(k):
    data = regression(k=k)
    prior = gp.GaussianProcess(ZeroMean(), rbf().requires_grad_(False), k)
    values = gp.Exact().infer(prior, noise(), data, generator=generator()).posterior(inputs())
    normal = values.to_gpytorch()
    assert type(normal) is (MultivariateNormal if k == 1 else MultitaskMultivariateNormal)
    back = values_of(normal)
    close(back.mean, values.mean, 1e-12)
    close(back.covariance.to_dense(), values.covariance.to_dense(), 1e-12)
    close(normal.variance.reshape(-1, k), values.variance, 1e-12)
    targets = torch.zeros_like(normal.mean)
    close(normal.log_prob(targets), values_of(normal).to_gpytorch().log_prob(targets))


def test_tasks_one_after_the_other_become_point_major():
    covariance = torch.randn(6, 6, generator=generator(), dtype=torch.float64)
    covariance = covariance @ covariance.mT
    mean = torch.randn(3, 2, generator=generator(), dtype=torch.float64)
    normal = MultitaskMultivariateNormal(mean, covariance, interleaved=False)
    values = values_of(normal)
    close(values.variance, normal.variance)
    assert torch.equal(values.covariance.to_dense()[0, 1], covariance[0, 3])  # input 0: task 0 with task 1


def test_likelihoods():
    def converted(likelihood):
        return gp.likelihood_from_gpytorch(likelihood.double())

    likelihood = randomized(L.GaussianLikelihood())
    close(converted(likelihood).noise, likelihood.noise, 1e-14)
    close(converted(L.FixedNoiseGaussianLikelihood(torch.full((5,), 0.3).double())).noise, torch.tensor([0.3]), 1e-7)
    tasks = randomized(L.MultitaskGaussianLikelihood(num_tasks=2))
    close(converted(tasks).noise, tasks.task_noises + tasks.noise, 1e-14)
    student = randomized(L.StudentTLikelihood())
    f = torch.zeros(4, 1, dtype=torch.float64)
    y = torch.linspace(-2, 2, 4, dtype=torch.float64).unsqueeze(-1)
    close(converted(student).log_prob(f, y), student(f).log_prob(y).squeeze(-1), 1e-12)
    assert isinstance(converted(L.BernoulliLikelihood()), ours.Bernoulli)
    assert converted(L.SoftmaxLikelihood(num_classes=3, mixing_weights=False)).num_classes == 3


@pytest.mark.parametrize(
    ("likelihood", "reason"),
    [
        (lambda: L.FixedNoiseGaussianLikelihood(torch.tensor([0.1, 0.2])), "the noise at a new input is unknown"),
        (lambda: L.MultitaskGaussianLikelihood(num_tasks=2, rank=1), "the noise of the outputs is correlated"),
        (lambda: L.SoftmaxLikelihood(num_features=2, num_classes=3), "build it with `mixing_weights=False`"),
        (L.PoissonLikelihood, r"its rate is softplus\(f\)"),
        (L.BetaLikelihood, "write a `Likelihood`"),
    ],
)
def test_likelihoods_without_counterpart(likelihood, reason):
    with torch.random.fork_rng(devices=[]), pytest.raises(TypeError, match=reason):
        gp.likelihood_from_gpytorch(likelihood())
