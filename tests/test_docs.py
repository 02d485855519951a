"""Pages, navigation and lists keep step with what exists."""

import re
from pathlib import Path

import pytest

from bayeskit import __version__, registry

ROOT = Path(__file__).parents[1]
NAV = (ROOT / "mkdocs.yml").read_text().split("nav:")[1]


@pytest.mark.parametrize("name", registry.names())
def test_every_method_has_a_page(name):
    page = ROOT / "docs" / "methods" / f"{name}.md"
    assert page.exists()
    assert f"methods/{name}.md" in NAV
    assert f"({name}.md)" in (ROOT / "docs" / "methods" / "README.md").read_text()
    assert f"docs/methods/{name}.md" in (ROOT / "README.md").read_text()


PAGES = sorted(p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_every_page_is_in_the_navigation(page):
    assert f": {page}\n" in NAV


def test_every_decision_is_listed():
    folder = ROOT / "docs" / "decisions"
    listed = set(re.findall(r"\(([\w-]+\.md)\)", (folder / "README.md").read_text()))
    assert listed == {path.name for path in folder.glob("*.md")} - {"README.md"}


def test_every_example_is_listed():
    text = (ROOT / "docs" / "guide" / "examples.md").read_text()
    assert all(path.stem in text for path in (ROOT / "examples").glob("[0-9]*.py"))
    assert all(f"integrations/{path.name}" in text for path in (ROOT / "examples" / "integrations").glob("*.py"))


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_to_files_resolve(page):
    links = re.findall(r"\]\((?!http|#)([^)]+)\)", (ROOT / page).read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_one_version():
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()
