"""Continual learning over tasks: the same as all data at once where inference is exact; the matrix of scores."""

import copy

import numpy as np
import pytest
import torch
from gpytorch.kernels import RBFKernel, ScaleKernel
from gpytorch.means import ZeroMean
from sklearn.datasets import load_iris
from torch import nn

from bayeskit import BNNClassifier, BNNRegressor, GPClassifier, GPRegressor, bnn, continual, gp
from bayeskit.bnn.training.map_training import QUICK_TRAINING
from bayeskit.continual import Coreset, Fold, run, scores
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.types import Data

RNG = np.random.default_rng(0)
X = RNG.uniform(-2, 2, (60, 2))
Y = np.sin(2 * X[:, 0]) * X[:, 1] + 0.1 * RNG.normal(size=60)
DOMAINS = continual.domain_tasks(X, Y, np.repeat([0, 1, 2], 20), random_state=0)
FLOWERS = load_iris(return_X_y=True)


def fixed_prior():
    return gp.GaussianProcess(ZeroMean().double(), ScaleKernel(RBFKernel()).double().requires_grad_(False))


def in_tensors(memory=None):
    x, y = torch.tensor(X), torch.tensor(Y)[:, None]
    tasks = continual.domain_tasks(x, y, np.repeat([0, 1, 2], 20), random_state=0)
    likelihood = Gaussian(0.01).requires_grad_(False)
    return list(run(gp.Exact(), tasks, prior=fixed_prior(), likelihood=likelihood, memory=memory, random_state=0))


@pytest.mark.parametrize("memory", [None, Coreset(5), Coreset(4, "k_center")])
def test_exact_conditioning_makes_the_fold_all_rows_at_once(memory):
    # With a memory too: what is held out of the fold is learnt after it, so that each row counts once.
    stages = in_tensors(memory)
    x = torch.tensor(np.concatenate([task.train()[0] for task in DOMAINS]))
    y = torch.tensor(np.concatenate([task.train()[1] for task in DOMAINS]))[:, None]
    likelihood, generator = Gaussian(0.01).requires_grad_(False), torch.Generator()
    batch = gp.Exact().infer(fixed_prior(), likelihood, Data(x, y), generator=generator).posterior(x[:9])
    last = stages[-1].learner.posterior(x[:9])
    assert torch.allclose(last.mean, batch.mean, atol=1e-8)
    assert torch.allclose(last.variance, batch.variance, atol=1e-8)


@pytest.mark.monte_carlo
def test_a_stage_keeps_its_own_posterior():
    stages = in_tensors(Coreset(5))
    x = torch.tensor(X[:9])
    widths = [float(stage.learner.posterior(x).variance.mean()) for stage in stages]
    assert widths[0] > widths[1] > widths[2]


def test_scores_are_those_of_the_metrics_at_each_stage():
    stages = list(run(GPRegressor(inference=gp.Exact(), random_state=0), DOMAINS))
    for stage in stages:
        for j, task in enumerate(DOMAINS):
            x, y = task.test()
            expected = float(np.mean((stage.learner.predict(x) - y) ** 2) ** 0.5)
            assert stage.scores["rmse"][j] == pytest.approx(expected, rel=1e-10)
    assert set(stages[0].scores) == {"rmse", "nll", "coverage_90"}
    assert scores(stages).shape == scores(stages, "nll").shape == (3, 3)
    with pytest.raises(ValueError, match="`name` must be one of"):
        scores(stages, "accuracy")
    with pytest.raises(ValueError, match="at least one stage"):
        scores([])


@pytest.mark.monte_carlo
@pytest.mark.parametrize(
    "model",
    [
        BNNClassifier(inference=bnn.Laplace(), random_state=0),
        BNNClassifier(inference=bnn.Laplace("all", "kronecker", training=QUICK_TRAINING), random_state=0),
        BNNClassifier(inference=bnn.VBLL.quickly(), random_state=0),
        BNNClassifier(inference=bnn.IVON.quickly(), random_state=0),
        BNNClassifier(inference=bnn.MeanFieldVI.quickly(), random_state=0),
        BNNClassifier(inference=bnn.SSVI.quickly(), random_state=0),
        GPClassifier(inference=gp.SVGP.quickly(), random_state=0),
        BNNClassifier(network=nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), random_state=0),
    ],
    ids=lambda model: f"{type(model.inference).__name__}",
)
def test_every_posterior_that_can_continue_learns_classes_in_sequence(model):
    x, names = FLOWERS[0], np.array(["setosa", "versicolor", "virginica"])[FLOWERS[1]]
    tasks = continual.split_tasks(x, names, x, names, num_tasks=3)
    stages = list(run(model, tasks, memory=Coreset(15), random_state=0))
    assert not hasattr(model, "posterior_")  # the one given is left as it was
    matrix = scores(stages, "accuracy")
    assert matrix.shape == (3, 3) and all(np.isfinite(stage.scores["nll"]).all() for stage in stages)
    assert stages[-1].learner.classes_.tolist() == ["setosa", "versicolor", "virginica"]
    assert matrix[0, 0] == matrix[0].max()  # labels that had not come are not learnt
    assert matrix[-1].max() > 0.9


def test_a_loop_may_stop_and_what_it_has_is_its_own():
    stages = run(GPRegressor(inference=gp.Exact(), random_state=0), DOMAINS)
    first = next(stages)
    before = first.learner.predict(X)
    next(stages)
    del stages
    assert np.array_equal(first.learner.predict(X), before)


def test_scoring_of_the_users_own():
    def width(learner, x, y):
        return {"width": float(learner.predict(x, return_std=True)[1].mean())}

    stages = list(run(GPRegressor(inference=gp.Exact(), random_state=0), DOMAINS, scoring=width))
    assert list(stages[0].scores) == ["width"] and (scores(stages) > 0).all()


def test_what_cannot_go_on_says_so():
    with pytest.raises(TypeError, match="DeepEnsemble cannot continue from its posterior"):
        run(BNNRegressor(inference=bnn.DeepEnsemble()), DOMAINS)
    with pytest.raises(TypeError, match="needs `prior` and `likelihood`"):
        run(gp.Exact(), DOMAINS)
    with pytest.raises(ValueError, match="at least one task"):
        run(GPRegressor(), [])
    with pytest.raises(TypeError, match="`tasks` must hold `continual.Task`s.*got tuple"):
        run(GPRegressor(), [(X, Y)])
    with pytest.raises(TypeError, match="`memory` must be a `continual.Coreset`.*got 20"):
        run(GPRegressor(), DOMAINS, memory=20)


def test_a_fold_leaves_what_it_was_given():
    likelihood = Gaussian(0.3)
    before = copy.deepcopy(likelihood.state_dict())
    Fold(gp.Exact(), fixed_prior(), likelihood).partial_fit(torch.tensor(X), torch.tensor(Y)[:, None])
    assert all(torch.equal(a, before[name]) for name, a in likelihood.state_dict().items())


def test_labels_that_the_learner_does_not_know_are_refused():
    x, y = FLOWERS
    learner = BNNClassifier(inference=bnn.MAP.quickly(), random_state=0).fit(x, np.array([0, 10, 30])[y])
    assert continual.score(learner, x[:50], np.zeros(50, dtype=int))["accuracy"] > 0.5
    with pytest.raises(ValueError, match=r"labels among \[0, 10, 30\]; got \[-5, 20\] as well"):
        continual.score(learner, x[:2], np.array([20, -5]))
