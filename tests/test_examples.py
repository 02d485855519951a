"""Every example runs from top to bottom, and keeps its figure in the folder it is given."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("[0-9]*.py"))


@pytest.fixture
def clean(monkeypatch, tmp_path):
    """Figures without a screen, nothing left behind, and the global random state as it was."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        yield tmp_path
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def test_numbers_follow_each_other():
    assert [int(path.name[:2]) for path in EXAMPLES] == list(range(1, len(EXAMPLES) + 1))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, clean, monkeypatch, capsys):
    assert len(path.read_text().splitlines()) < 100
    monkeypatch.setattr(sys, "argv", [str(path), str(clean)])
    runpy.run_path(str(path), run_name="__main__")
    assert any(character.isdigit() for character in capsys.readouterr().out)
    figure = clean / f"{path.stem}.png"
    assert figure.exists() == ("savefig" in path.read_text())
