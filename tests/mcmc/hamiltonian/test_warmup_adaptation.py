import itertools
import math

import pytest
import torch

from bayeskit.mcmc.hamiltonian.warmup_adaptation import DualAveraging, MassEstimate, Window, windows


def test_dual_averaging_finds_the_root_for_every_chain():
    # Acceptance exp(-e / scale) meets 0.8 at e = -scale log 0.8, whatever the scale and the start.
    scales = torch.tensor([0.01, 1.0, 300.0], dtype=torch.float64)
    tuner = DualAveraging(torch.ones(3, dtype=torch.float64), 0.8)
    for _ in range(2000):
        tuner.update(torch.exp(-tuner.current / scales))
    assert torch.allclose(tuner.average, -scales * math.log(0.8), rtol=0.05)  # the average forgets slowly


@pytest.mark.parametrize("number", [*range(0, 60), 200, 1000, 5000])
@pytest.mark.parametrize("chains", [1, 100])
def test_windows_add_up_and_grow(number, chains):
    first, middle, last = windows(number, chains)
    assert first + sum(middle) + last == number and all(size > 0 for size in middle)
    assert all(a <= b for a, b in itertools.pairwise(middle))
    assert number < 3 or len(middle) > 0


def test_a_window_keeps_a_bounded_number_of_draws():
    window = Window(100, 3, 50)
    for i in range(50):
        window.add(torch.full((100, 3), float(i)))
    assert len(window.draws) * 100 <= 2000 and window.draws[-1][0, 0] >= 47


@pytest.mark.monte_carlo
def test_geometry_of_many_draws(generator):
    root = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.0, 0.0, 50.0]], dtype=torch.float64)
    draws = torch.randn(50, 400, 3, generator=generator, dtype=torch.float64) @ root.mT + 7
    covariance = root @ root.mT
    whole, diagonal = (MassEstimate.from_draws(draws, None, dense=dense) for dense in (None, False))
    # 20,000 draws: relative standard error 1 % of a variance, of which 5 are allowed; the start counts for 5 draws.
    scale = (covariance.diagonal()[:, None] * covariance.diagonal()).sqrt()
    assert ((whole.inverse_mass - covariance).abs() / scale < 0.05).all() and whole.largest_std == 1
    assert torch.allclose(diagonal.inverse_mass, covariance.diagonal(), rtol=0.05)
    correlation = 0.9 / 0.82**0.5
    assert diagonal.largest_std == pytest.approx((1 + correlation) ** 0.5, rel=0.03)


@pytest.mark.monte_carlo
def test_correlations_survive_short_windows(generator):
    # What the window before knew is mixed in whole: a shrunk correlation would make all steps short.
    root = torch.tensor([[1.0, 0.0], [1.0, 1e-3]], dtype=torch.float64)
    known = None
    for _ in range(6):
        draws = torch.randn(20, 10, 2, generator=generator, dtype=torch.float64) @ root.mT
        known = MassEstimate.from_draws(draws, known, dense=True).inverse_mass
    white = torch.linalg.solve(root, torch.linalg.solve(root, known).mT)
    assert (
        torch.linalg.eigvalsh(white) - 1
    ).abs().max() < 0.6  # 200 draws: relative standard error 10 %, and some more for the extreme eigenvalues


@pytest.mark.monte_carlo
def test_few_draws_of_many_parameters_do_not_overestimate_the_largest_std(generator):
    # The largest eigenvalue of 40 draws of 1,000 independent numbers is about (1 + sqrt(25))^2 = 36.
    draws = torch.randn(4, 10, 1000, generator=generator, dtype=torch.float64)
    found = MassEstimate.from_draws(draws, None, dense=None)
    # In a direction that other draws chose, 40 squares of standard normals: above 1.5^2 on average once in 100,000.
    assert found.inverse_mass.shape == (1000,) and found.largest_std < 1.5


def test_one_draw_of_one_chain_is_not_enough_to_learn_from():
    found = MassEstimate.from_draws(torch.ones(1, 1, 3), torch.tensor([1.0, 4.0, 9.0]), dense=None)
    assert found.largest_std == 1 and torch.allclose(found.inverse_mass, torch.tensor([1.0, 4.0, 9.0]) * 5 / 6)
