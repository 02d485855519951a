"""Figures show the numbers given, on the axes given."""

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from scipy.stats import binom

from bayeskit import metrics, plots
from bayeskit.core.predictive import MixturePredictive
from bayeskit.plots.distance_plots import leaf_order

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def closed_figures():
    with mpl.rc_context({"backend": "agg"}):
        yield
        plt.close("all")


def normal(n):
    zeros = torch.zeros(1, n, 1, dtype=torch.float64)
    return MixturePredictive(torch.distributions.Normal(zeros, 1 + zeros)).squeeze()


P, LABELS = RNG.dirichlet(np.ones(3), 200), RNG.integers(0, 3, 200)
CALLS = {
    "reliability_diagram": lambda ax: plots.reliability_diagram(P, LABELS, ax=ax),
    "pit_histogram": lambda ax: plots.pit_histogram(RNG.uniform(size=100), ax=ax),
    "coverage_curve": lambda ax: plots.coverage_curve({"a": RNG.uniform(size=50)}, ax=ax),
    "risk_coverage_curve": lambda ax: plots.risk_coverage_curve(
        {"a": (RNG.uniform(size=9), RNG.uniform(size=9))}, ax=ax
    ),
    "ood_histogram": lambda ax: plots.ood_histogram(RNG.uniform(size=30), RNG.uniform(size=20) + 0.5, ax=ax),
    "score_curves": lambda ax: plots.score_curves(RNG.uniform(size=(3, 3)), ax=ax),
    "score_matrix": lambda ax: plots.score_matrix(RNG.uniform(size=(3, 3)), ax=ax),
    "learning_curve": lambda ax: plots.learning_curve({"a": ([1, 2], RNG.uniform(size=(3, 2)))}, ax=ax),
    "distance_map": lambda ax: plots.distance_map(1 - np.eye(3), ["a", "b", "c"], ax=ax),
    "regression_band": lambda ax: plots.regression_band(np.arange(5.0), normal(5), ax=ax),
}


@pytest.mark.parametrize("name", CALLS)
def test_draws_on_the_axes_given_or_on_new_ones(name):
    _, ax = plt.subplots()
    assert CALLS[name](ax) is ax
    assert ax.has_data()
    assert CALLS[name](None) is not ax


def test_reliability_diagram_shows_accuracy_and_occupancy():
    ax = plots.reliability_diagram(P, LABELS, num_bins=5)
    r = metrics.reliability(P, LABELS, num_bins=5)
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], r.occupancy)
    full = r.counts > 0
    np.testing.assert_allclose(ax.lines[1].get_xydata(), np.stack([r.confidence, r.accuracy], 1)[full])


def test_pit_band_is_binomial():
    ax = plots.pit_histogram(RNG.uniform(size=400), num_bins=8)
    low, high = binom.interval(0.95, 400, 1 / 8)
    band = ax.patches[-1].get_bbox() if not hasattr(ax.patches[-1], "get_xy") else ax.patches[-1]
    assert band.get_y() == pytest.approx(low / 50)
    assert band.get_y() + band.get_height() == pytest.approx(high / 50)


def test_coverage_curve_is_the_metric():
    y = np.random.default_rng(1).normal(size=300)
    ax = plots.coverage_curve({"normal": metrics.pit(normal(300), y)})
    x, share = ax.lines[1].get_data()
    for index in (30, 50, 90):
        assert share[index] == pytest.approx(metrics.coverage(normal(300), y, float(x[index])), abs=1e-12)


@pytest.mark.parametrize(("band", "half"), [("std", 1.0), ("error", 2 / 3**0.5)])
def test_learning_curve_is_the_mean_over_seeds_within_its_band(band, half):
    scores = np.array([[0.1, 0.5], [0.3, 0.6], [0.2, 0.9]])
    ax = plots.learning_curve({"a": ([10, 20], scores)}, band=band, score="accuracy")
    np.testing.assert_allclose(ax.lines[0].get_xydata(), np.stack([[10, 20], scores.mean(0)], 1))
    low, high = ax.collections[0].get_datalim(ax.transData).intervaly
    spread = half * scores.std(0, ddof=1)
    assert (low, high) == pytest.approx(((scores.mean(0) - spread).min(), (scores.mean(0) + spread).max()))


def test_learning_curve_of_one_seed_has_no_band():
    assert not plots.learning_curve({"a": ([10, 20], [0.1, 0.2])}).collections
    with pytest.raises(ValueError, match=r"'a' must have scores \(seeds, 2\)"):
        plots.learning_curve({"a": ([10, 20], [[0.1, 0.2, 0.3]])})


def test_neighbors_are_side_by_side():
    points = np.array([0.0, 10.0, 0.5, 10.4, 5.0])
    order = leaf_order(np.abs(points[:, None] - points))
    assert points[order].tolist() in (sorted(points), sorted(points, reverse=True))


def test_methods_have_different_styles_and_colors_are_distinguishable():
    looks = {tuple(plots.style(i).items()) for i in range(24)}
    assert len(looks) == 24
    # In the color space of a viewer without red cones (Vienot, Brettel and Mollon, 1999) no two colors may coincide.
    linear = np.array([mpl.colors.to_rgb(c) for c in plots.PALETTE]) ** 2.2
    blind = linear @ np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]).T
    apart = np.linalg.norm(blind[:, None] ** (1 / 2.2) - blind[None] ** (1 / 2.2), axis=-1) + np.eye(len(linear))
    assert apart.min() > 0.1


def test_panels_share_their_axes():
    predictive = normal(5)
    axes = plots.regression_bands(
        np.arange(5.0), {"a": predictive, "b": predictive, "c": predictive, "d": predictive}, data=([1.0], [0.2])
    )
    assert [ax.get_title() for ax in axes] == ["a", "b", "c", "d"]
    assert len({ax.get_ylim() for ax in axes}) == 1


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"`distances` must have shape \(3, 3\)"):
        plots.distance_map(np.eye(2), ["a", "b", "c"])


@pytest.mark.parametrize("draw", [plots.score_matrix, plots.score_curves])
def test_scores_of_more_stages_than_tasks_are_refused(draw):
    with pytest.raises(ValueError, match=r"no more stages than tasks; got \(3, 2\)"):
        draw(RNG.uniform(size=(3, 2)))
