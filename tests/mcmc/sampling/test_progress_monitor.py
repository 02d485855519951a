import pytest
import torch

from bayeskit import mcmc
from bayeskit.core import progress
from bayeskit.mcmc.sampling.progress_monitor import DRAWS, Monitor


def test_few_draws_are_watched_as_they_are(generator):
    x, monitor = torch.randn(3, 60, 2, generator=generator), Monitor()
    assert monitor.numbers() == {}
    for draw in range(60):
        monitor.add({"x": x[:, draw]})
    assert monitor.numbers() == {"R-hat": mcmc.rhat(x).max().item(), "ESS": mcmc.ess(x).min().item()}


def test_memory_is_bounded_and_draws_stay_evenly_spaced():
    monitor = Monitor()
    for draw in range(5 * DRAWS):
        monitor.add({"x": torch.full((2, 80), float(draw))})
    seen = torch.stack(monitor.draws)[:, 0]
    assert len(seen) < DRAWS and seen.shape[1] == 50
    assert torch.equal(seen[:, 0], torch.arange(len(seen)) * float(monitor.stride))


def test_the_bar_shows_them(monkeypatch, generator):
    shown = []

    class Bar:
        visible = True

        def update(self, advance=1, **numbers):
            shown.append(numbers)

    class Track:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return Bar()

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(progress, "track", Track)
    start = {"x": torch.zeros(3)}
    mcmc.run(mcmc.SGLD(lr=0.1), lambda q: -q["x"].square(), start, num_samples=50, burn_in=5, generator=generator)
    assert {"R-hat", "ESS", "log_density"} == shown[-1].keys() and shown[-1]["R-hat"] == pytest.approx(1, abs=0.5)
    assert "R-hat" not in shown[5]
