"""The model classes of gpytorch's examples: converted and equal to their own predictions, or refused by name.

Strategies, variational distributions, kernels and means one by one are in `test_convert.py`.
"""

import gpytorch
import pytest
import torch
from gpytorch import kernels as K
from gpytorch import likelihoods as L
from gpytorch import means as M
from gpytorch import variational as V
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from gpytorch.models.deep_gps import DeepGP, DeepGPLayer
from gpytorch.models.deep_gps.dspp import DSPP, DSPPLayer

from bayeskit import gp
from bayeskit.gp.gpytorch.model_conversion import exact_algebra, values_of

from ..problems import close, generator

pytestmark = pytest.mark.filterwarnings("ignore")

X = torch.rand(20, 2, generator=generator(3), dtype=torch.float64)
Y = torch.sin(5 * X[:, 0]) + X[:, 1]
SLOPES = torch.stack([Y, 5 * torch.cos(5 * X[:, 0]), torch.ones_like(Y)], -1)
QUERY = 0.1 + 0.8 * torch.rand(7, 2, generator=generator(4), dtype=torch.float64)
TWO = torch.Size([2])


class Exact(gpytorch.models.ExactGP):
    def __init__(self, kernel, mean=None, likelihood=None, x=X, y=Y, distribution=MultivariateNormal):
        super().__init__(x, y, likelihood or L.GaussianLikelihood())
        self.mean_module, self.covar_module, self.distribution = mean or M.ConstantMean(), kernel, distribution
        self.double()

    def forward(self, x):
        return self.distribution(self.mean_module(x), self.covar_module(x))


class Approximate(gpytorch.models.ApproximateGP):
    def __init__(self, strategy, mean=None, kernel=None):
        super().__init__(strategy(self))
        self.mean_module, self.covar_module = mean or M.ConstantMean(), kernel or K.ScaleKernel(K.RBFKernel())

    def forward(self, x):
        return MultivariateNormal(self.mean_module(x), self.covar_module(x))


def trained(model, y=Y, likelihood=None):
    """The model after some steps of Adam, as in the tutorials."""
    exact = likelihood is None
    likelihood = model.likelihood if exact else likelihood.double()
    bound = gpytorch.mlls.ExactMarginalLogLikelihood if exact else gpytorch.mlls.VariationalELBO
    bound = bound(likelihood, model) if exact else bound(likelihood, model, len(y))
    model.double().train()
    optimizer = torch.optim.Adam({*model.parameters(), *likelihood.parameters()}, 0.05)
    for _ in range(5):
        optimizer.zero_grad()
        (-bound(model(X), model.train_targets if exact else y)).sum().backward()
        optimizer.step()
    return model


def called(model):
    model.eval()(QUERY)  # its caches cannot be copied
    return model


def approximate(strategy, y=Y, likelihood=None, **parts):
    return trained(Approximate(strategy, **parts), y, likelihood or L.GaussianLikelihood())


def q(batch=(), size=8, cls=V.CholeskyVariationalDistribution):
    return cls(size, batch_shape=torch.Size(batch))


def inducing(model, batch=()):
    return V.VariationalStrategy(model, X[:8].clone(), q(batch))


def independent(model):
    return V.IndependentMultitaskVariationalStrategy(inducing(model, TWO), num_tasks=2)


def batch_parts(batch=TWO):
    return {
        "mean": M.ConstantMean(batch_shape=batch),
        "kernel": K.ScaleKernel(K.RBFKernel(batch_shape=batch), batch_shape=batch),
    }


def interpolated(dims=2, **bounds):
    return K.GridInterpolationKernel(K.RBFKernel(), grid_size=10, num_dims=dims, **bounds)


def slopes(kernel, mean):
    likelihood = L.MultitaskGaussianLikelihood(num_tasks=3)
    return Exact(kernel, mean, likelihood, y=SLOPES, distribution=MultitaskMultivariateNormal)


def dirichlet():
    likelihood = L.DirichletClassificationLikelihood((Y > 1).long(), learn_additional_noise=True, dtype=torch.float64)
    return Exact(**batch_parts(), likelihood=likelihood, y=likelihood.transformed_targets.double())


def batch_of_inputs():
    x = torch.stack([X, X.flip(0)])
    return Exact(**batch_parts(), likelihood=L.GaussianLikelihood(batch_shape=TWO), x=x, y=x[..., 0])


def grid():
    axes = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None].expand(-1, 2)
    x = gpytorch.utils.grid.create_data_from_grid(axes)
    return Exact(K.GridKernel(K.RBFKernel(), grid=axes), x=x, y=x.sum(-1))


def sparse():
    likelihood = L.GaussianLikelihood()
    return trained(
        Exact(K.InducingPointKernel(K.ScaleKernel(K.RBFKernel()), X[:6].clone(), likelihood), None, likelihood)
    )


def fixed_noise():
    return Exact(K.RBFKernel(), likelihood=L.FixedNoiseGaussianLikelihood(torch.linspace(0.01, 0.1, 20).double()))


def fantasy(model, shape=(2,), **settings):
    targets = torch.randn(shape, generator=generator(), dtype=torch.float64)
    return called(model).get_fantasy_model(QUERY[:2], targets, **settings)


def by_pyro():
    class ByPyro(gpytorch.models.PyroGP):
        def __init__(self):
            super().__init__(inducing(self), L.GaussianLikelihood(), num_data=20)
            self.mean_module, self.covar_module = M.ConstantMean(), K.RBFKernel()

        def forward(self, x):
            return MultivariateNormal(self.mean_module(x), self.covar_module(x))

    return called(ByPyro().double())


KISS = {"grid_bounds": [(-0.1, 1.1), (-0.1, 1.1)]}
CONVERTED = {
    "KISS-GP": lambda: trained(Exact(interpolated())),
    "KISS-GP after a call": lambda: called(trained(Exact(K.ScaleKernel(interpolated())))),
    "KISS-GP with bounds": lambda: called(trained(Exact(interpolated(**KISS)))),
    "additive KISS-GP": lambda: trained(Exact(K.AdditiveStructureKernel(interpolated(1), num_dims=2))),
    "SKIP": lambda: trained(Exact(K.ProductStructureKernel(interpolated(1), num_dims=2))),
    "product over columns": lambda: trained(Exact(K.ProductStructureKernel(K.RBFKernel(), num_dims=2))),
    "additive by Newton and Girard": lambda: Exact(K.NewtonGirardAdditiveKernel(K.RBFKernel(), num_dims=2)),
    "data on a grid": grid,
    "SGPR": sparse,
    "SGPR after a call": lambda: called(sparse()),
    "random features": lambda: Exact(K.ScaleKernel(K.RFFKernel(num_samples=20, num_dims=2))),
    "derivatives": lambda: trained(slopes(K.ScaleKernel(K.RBFKernelGrad(ard_num_dims=2)), M.ConstantMeanGrad())),
    "derivatives, Matern": lambda: slopes(K.Matern52KernelGrad(), M.ConstantMeanGrad()),
    "derivatives, polynomial": lambda: slopes(K.PolynomialKernelGrad(power=2), M.ConstantMeanGrad()),
    "Dirichlet classification": dirichlet,
    "batch with inputs of its own": batch_of_inputs,
    "fantasy": lambda: fantasy(Exact(K.RBFKernel())),
    "batch of fantasies": lambda: fantasy(Exact(K.RBFKernel()), (3, 2)),
    "fantasy with fixed noise": lambda: fantasy(fixed_noise(), noise=torch.full((2,), 0.05).double()),
    "noise for each task": lambda: Exact(
        K.RBFKernel(),
        likelihood=L.HadamardGaussianLikelihood(num_tasks=2, task_feature_index=1),
        x=torch.stack([X[:, 0], (torch.arange(20) % 2).double()], -1),
    ),
    "grid interpolation": lambda: approximate(
        lambda m: V.GridInterpolationVariationalStrategy(m, 6, [(-0.1, 1.1)] * 2, q(size=36))
    ),
    "additive grid interpolation": lambda: approximate(
        lambda m: V.AdditiveGridInterpolationVariationalStrategy(
            m, 6, [(-0.1, 1.1)], num_dim=2, variational_distribution=q(TWO, 6)
        )
    ),
    "batch-decoupled": lambda: approximate(lambda m: V.BatchDecoupledVariationalStrategy(m, X[:8].clone(), q())),
    "nearest neighbors": lambda: approximate(
        lambda m: V.NNVariationalStrategy(m, X.clone(), q(size=20, cls=V.MeanFieldVariationalDistribution), k=4)
    ),
    "Bernoulli": lambda: approximate(inducing, (Y > 1).double(), L.BernoulliLikelihood()),
    "Student-t": lambda: approximate(inducing, Y, L.StudentTLikelihood()),
    "Beta": lambda: approximate(inducing, Y.sigmoid(), L.BetaLikelihood()),
    "softmax": lambda: approximate(
        independent, (Y > 1).long(), L.SoftmaxLikelihood(num_features=2, num_classes=3), **batch_parts()
    ),
    "coregionalization": lambda: approximate(
        lambda m: V.LMCVariationalStrategy(inducing(m, TWO), num_tasks=3, num_latents=2),
        SLOPES,
        L.MultitaskGaussianLikelihood(num_tasks=3),
        **batch_parts(),
    ),
    "Pyro": by_pyro,
}


@pytest.mark.parametrize("name", CONVERTED)
def test_converted_models_predict_what_they_predict_in_gpytorch(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CONVERTED[name]()
    posterior = gp.from_gpytorch(model)
    with exact_algebra(), torch.no_grad():
        expected = values_of(model.eval()(QUERY))
    values = posterior(QUERY)
    close(values.mean, expected.mean, 1e-6)
    # gpytorch's jitters of 1e-6 on each variance, once or twice, and times the squared coefficients of mixed functions
    close(values.variance, expected.variance, 2.1e-6 if name != "coregionalization" else 2e-5)


def hadamard():
    class TwoInputs(gpytorch.models.ExactGP):
        def __init__(self):
            super().__init__((X, (torch.arange(20) % 2)[:, None]), Y, L.GaussianLikelihood())
            self.mean_module, self.covar_module, self.tasks = M.ConstantMean(), K.RBFKernel(), K.IndexKernel(2)

        def forward(self, x, task):
            return MultivariateNormal(self.mean_module(x), self.covar_module(x) * self.tasks(task))

    return TwoInputs().double()


def layered(model, layer, *settings, dims=2, batch=TWO):
    class Layer(layer):
        def __init__(self):
            z = torch.randn(*batch, 5, 2, generator=generator())
            super().__init__(V.VariationalStrategy(self, z, q(batch, 5)), 2, dims, *settings)
            self.mean_module, self.covar_module = M.ConstantMean(), K.RBFKernel()
            self.variational_strategy.variational_params_initialized.fill_(1)

        def forward(self, x):
            return MultivariateNormal(self.mean_module(x), self.covar_module(x))

    if model is None:
        return Layer().double()

    class Deep(model):
        def __init__(self):
            super().__init__(*settings)
            self.layer = Layer()

        def forward(self, x):
            return self.layer(x)

    return Deep().double()


def variational_fantasy():
    model = Approximate(inducing).double()
    model.likelihood = L.GaussianLikelihood().double()
    return called(model).variational_strategy.get_fantasy_model(QUERY[:2], torch.ones(2).double())


def with_gaps():
    y = Y.clone()
    y[3] = torch.nan
    return Exact(K.RBFKernel(), y=y)


REFUSED = {
    "TwoInputs takes 2 inputs": hadamard,
    "Deep is a DeepGP, which returns samples": lambda: layered(DeepGP, DeepGPLayer),
    "Layer gives no joint distribution": lambda: layered(None, DeepGPLayer),
    "Deep is a DeepGP, which returns samples ": lambda: layered(DSPP, DSPPLayer, 3, dims=1, batch=torch.Size([1])),
    "IndependentModelList is a list of models": lambda: gpytorch.models.IndependentModelList(
        Exact(K.RBFKernel()), Exact(K.MaternKernel())
    ),
    "a fantasy of a variational model": variational_fantasy,
    "Approximate has never been called": lambda: Approximate(inducing),
    "train_targets` must be finite": with_gaps,
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refused_at_conversion_by_name(reason):
    model = REFUSED[reason]()
    with pytest.raises(ValueError, match=reason.strip()):
        gp.from_gpytorch(model)
