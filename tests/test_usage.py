"""The code blocks of README.md, the guide and the methods, and the blocks of the usage contract, run as they stand."""

import re
import runpy
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from bayeskit import registry

ROOT = Path(__file__).parents[1]
CONTRACT = sorted(p for p in (Path(__file__).parent / "usage").glob("*.py") if p.name != "conftest.py")
DOCS = ROOT / "docs"
FOLDERS = ("guide", "methods", "benchmarks")
PAGES = [ROOT / "README.md", *sorted(p for folder in FOLDERS for p in (DOCS / folder).glob("*.md"))]


def blocks(page):
    """The Python blocks of a page, without indented fragments."""
    found = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [code for code in found if not code.startswith(" ")]


BLOCKS = [pytest.param(code, id=f"{page.stem}-{i}") for page in PAGES for i, code in enumerate(blocks(page), 1)]


@pytest.fixture
def clean(monkeypatch, tmp_path):
    """A folder of its own to write to, and the global random state and the registry as they were."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]), patch.dict(registry.METHODS):
        yield tmp_path
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.mark.parametrize("code", BLOCKS)
def test_block(code, clean):
    path = clean / "block.py"
    path.write_text(code)
    runpy.run_path(str(path), run_name="__main__")


@pytest.mark.parametrize("path", CONTRACT, ids=lambda path: path.stem)
def test_contract(path, clean):
    runpy.run_path(str(path), run_name="__main__")


def test_readme_has_a_block_for_each_user():
    assert len(blocks(ROOT / "README.md")) == 3
