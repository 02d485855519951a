"""Draws in BaaL's own heuristics, by the real library."""

import warnings

import numpy as np
import torch

from bayeskit import BNNClassifier, BNNRegressor, bnn
from bayeskit.integrations import baal

for operator in ("nms", "qnms"):  # torchvision asks for them at its import, and has none beside a torch without CUDA
    if not hasattr(torch.ops.torchvision, operator):
        torch.library.define(f"torchvision::{operator}", "(Tensor a, Tensor b, float c) -> Tensor")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what BaaL and its requirements say when they are imported
    from baal.active.heuristics import BALD, Entropy, Variance

RNG = np.random.default_rng(0)
X = RNG.uniform(-2, 2, (60, 2))
LABELS = np.digitize(X[:, 0] + 0.3 * RNG.normal(size=60), [-0.5, 0.5])


def test_its_scores_are_the_librarys_own():
    model = BNNClassifier(inference=bnn.DeepEnsemble.quickly(), random_state=0).fit(X, LABELS)
    drawn, predictive = baal.draws(model, X, iterations=4000), model.predictive(X)
    # Four thousand draws of five members: each member's share is known to 4 standard errors of 0.4 / sqrt(4000).
    np.testing.assert_allclose(Entropy().compute_score(drawn), predictive.total, atol=0.03)
    np.testing.assert_allclose(BALD().compute_score(drawn), predictive.epistemic, atol=0.03)
    first = BALD().get_ranks(drawn)[0][:10]
    assert predictive.epistemic.numpy()[first].mean() > 1.5 * predictive.epistemic.numpy().mean()


def test_values_of_numbers_are_ranked_by_their_variance():
    model = BNNRegressor(inference=bnn.VBLL.quickly(), random_state=0).fit(X, X[:, 0])
    drawn = baal.draws(model, X, iterations=2000)
    variance = model.latent(X).variance[:, 0].numpy()
    # a variance of 2,000 draws is known to 4 sqrt(2 / 2000) of itself
    np.testing.assert_allclose(Variance().compute_score(drawn)[:, 0], variance, rtol=0.13)
