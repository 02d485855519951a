"""BoTorch's models as posteriors: what `model.posterior` states, in the units of the data, or a refusal by name."""

import pytest
import torch

from bayeskit import gp

from ..problems import close, generator

botorch = pytest.importorskip("botorch")

from botorch import models as B  # noqa: E402
from botorch.models.transforms import input as I  # noqa: E402
from botorch.models.transforms import outcome as O  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

X = 2 * torch.rand(12, 2, generator=generator(3), dtype=torch.float64)
Y = 1000 + 50 * torch.sin(2.5 * X[:, :1])
BOTH = torch.cat([Y, -Y / 7], 1)
CODES = torch.cat([X, (torch.arange(12) % 2).double()[:, None]], 1)
QUERY = 2 * torch.rand(5, 2, generator=generator(4), dtype=torch.float64)


def noises(like):
    return 4 * torch.rand(like.shape, generator=generator(5), dtype=torch.float64)


def called(model):
    model.eval().posterior(QUERY)  # its caches cannot be copied
    return model


def chained(**parts):
    return O.ChainedOutcomeTransform(**parts)


def single(y=Y, noise=None, **transforms):
    return B.SingleTaskGP(X, y, noise, **transforms)


def fantasies():
    sampler = botorch.sampling.SobolQMCNormalSampler(torch.Size([3]), seed=0)
    return single(input_transform=I.Normalize(2)).fantasize(QUERY[:2], sampler)


CONVERTED = {
    "defaults": single,
    "no transform": lambda: single(outcome_transform=None),
    "two outcomes": lambda: single(BOTH),
    "normalized inputs": lambda: single(input_transform=I.Normalize(2)),
    "normalized inputs, two outcomes": lambda: single(BOTH, input_transform=I.Normalize(2)),
    "noise for each observation": lambda: single(BOTH, noises(BOTH), input_transform=I.Normalize(2)),
    "two affine outcome transforms": lambda: single(
        outcome_transform=chained(first=O.Standardize(1), second=O.Standardize(1))
    ),
    "warped inputs": lambda: single(input_transform=I.ChainedInputTransform(n=I.Normalize(2), w=I.Warp(2, [0, 1]))),
    "rounded inputs": lambda: single(input_transform=I.Round(integer_indices=[0])),
    "standardized inputs": lambda: single(input_transform=I.InputStandardize(2)),
    "chosen inputs": lambda: single(input_transform=I.FilterFeatures(torch.tensor([0]))),
    "inputs transformed in training alone": lambda: single(input_transform=I.Normalize(2, transform_on_eval=False)),
    "after a call": lambda: called(single(BOTH, input_transform=I.Normalize(2))),
    "one outcome of two": lambda: called(single(BOTH, input_transform=I.Normalize(2))).subset_output([1]),
    "conditioned": lambda: called(single(input_transform=I.Normalize(2))).condition_on_observations(QUERY[:2], Y[:2]),
    "fantasies": fantasies,
    "batch": lambda: B.SingleTaskGP(X.expand(3, -1, -1), Y + torch.arange(3.0)[:, None, None] * X[:, :1]),
    "categories": lambda: B.MixedSingleTaskGP(torch.cat([X[:, :1], (X[:, 1:] > 1).double()], 1), Y, cat_dims=[1]),
    "fidelities": lambda: B.SingleTaskMultiFidelityGP(X / 2, Y, data_fidelities=[1]),
    "tasks as a column": lambda: B.MultiTaskGP(CODES, Y, task_feature=2),
    "Kronecker tasks": lambda: B.KroneckerMultiTaskGP(X, BOTH),
    "Kronecker tasks with transforms": lambda: B.KroneckerMultiTaskGP(
        X, BOTH, outcome_transform=O.Standardize(2), input_transform=I.Normalize(2)
    ),
    "variational": lambda: B.SingleTaskVariationalGP(X, Y, inducing_points=8),
    "variational with transforms": lambda: B.SingleTaskVariationalGP(
        X, Y, inducing_points=8, outcome_transform=O.Standardize(1), input_transform=I.Normalize(2)
    ),
    "additive sparse axes": lambda: B.AdditiveMapSaasSingleTaskGP(X, Y),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_what_botorch_states_in_the_units_of_the_data(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CONVERTED[name]()
    if "variational" in name:
        called(model)  # its variational distribution begins at random
    posterior = gp.from_gpytorch(model)
    x = QUERY
    if name == "categories":
        x = torch.cat([QUERY[:, :1], (QUERY[:, 1:] > 1).double()], 1)
    if name == "tasks as a column":
        x = torch.cat([QUERY, (torch.arange(5) % 2).double()[:, None]], 1)
    stated, values = model.eval().posterior(x), posterior(x)
    for found, expected in ((values.mean, stated.mean.detach()), (values.variance, stated.variance.detach())):
        as_here = expected if expected.dim() == 2 else expected.squeeze(-1).mT  # a batch is one of outputs here
        close(found, as_here, 1e-6 * float(as_here.abs().max()))


def test_functions_and_float32():
    model = B.SingleTaskGP(X.float(), BOTH.float(), input_transform=I.Normalize(2))
    posterior = gp.from_gpytorch(model)
    close(posterior(QUERY).mean, model.eval().posterior(QUERY.float()).mean.detach().double(), 0.5)
    functions = posterior.sample_functions(400, generator=generator())
    assert functions(QUERY).shape == (400, 5, 2)
    close(functions(QUERY)[:, 2:], functions(QUERY[2:]))
    error = (functions(QUERY).mean(0) - posterior(QUERY).mean) / posterior(QUERY).variance.sqrt()
    assert float(error.abs().max()) < 6 / 400**0.5


REFUSED = {
    "Log": lambda: single(outcome_transform=O.Log()),
    "Power": lambda: single(Y - 900, outcome_transform=O.Power(0.5)),
    "Bilog": lambda: single(outcome_transform=O.Bilog()),
    "ChainedOutcomeTransform": lambda: single(outcome_transform=chained(log=O.Log(), then=O.Standardize(1))),
    "StratifiedStandardize": lambda: B.MultiTaskGP(
        CODES,
        Y,
        task_feature=2,
        outcome_transform=O.StratifiedStandardize(stratification_idx=2, all_task_values=torch.tensor([0, 1])),
    ),
    "FlattenedStandardize": lambda: B.HigherOrderGP(X, Y[..., None] * torch.ones(3, 2).double()),
    "InputPerturbation": lambda: single(input_transform=I.InputPerturbation(0.1 * X[:3])),
    "AppendFeatures": lambda: B.SingleTaskGP(
        torch.cat([X, X[:, :1]], 1), Y, input_transform=I.AppendFeatures(X[:2, :1])
    ),
    "ModelListGP": lambda: B.ModelListGP(single(), single()),
    "EnsembleMapSaasSingleTaskGP": lambda: B.EnsembleMapSaasSingleTaskGP(X, Y),
    "SingleTaskVariationalGP": lambda: B.SingleTaskVariationalGP(X, Y, inducing_points=8),  # never called
    "PairwiseGP": lambda: B.PairwiseGP(X, torch.tensor([[0, 1], [2, 3]])),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name):
    with torch.random.fork_rng(devices=[]), pytest.raises(ValueError, match=name):
        gp.from_gpytorch(REFUSED[name]())
