"""Every example and every notebook runs from top to bottom and writes its figure into the given folder."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = sorted(FOLDER.glob("[0-9]*.py"))
NOTEBOOKS = sorted((FOLDER / "integrations").glob("*.py"))
GALLERY = sorted((FOLDER / "gallery").glob("*.py"))
CELL = "# %%"


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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_open_with_a_title_and_are_short(path):
    """Cells as Jupytext and editors read them; named so that running one does not hide the library it is about."""
    lines = path.read_text().splitlines()
    assert lines[:1] == [f"{CELL} [markdown]"] and lines[1].startswith("# # ") and len(lines) < 60
    assert {line for line in lines if line.startswith(CELL)} == {CELL, f"{CELL} [markdown]"}
    assert path.stem.startswith("with_")


# Avalanche has an installation of its own: tests/integrations/test_avalanche.py runs its notebook.
@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.stem != "with_avalanche"], ids=lambda path: path.stem)
def test_notebook(path, clean, capsys):
    runpy.run_path(str(path), run_name="__main__")
    assert any(character.isdigit() for character in capsys.readouterr().out)
    assert (clean / f"{path.stem}.png").exists() == ("savefig" in path.read_text())


@pytest.mark.parametrize("path", GALLERY, ids=lambda path: path.stem)
def test_gallery(path, clean, monkeypatch):
    assert len(path.read_text().splitlines()) < 60
    monkeypatch.setattr(sys, "argv", [str(path), str(clean)])
    runpy.run_path(str(path), run_name="__main__")
    assert [file.name for file in clean.iterdir()] == [f"{path.stem}.png"]
