"""Pages, navigation and lists keep step with what exists."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import bayeskit
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


HEADINGS = ["When to use", "Equation", "Cost", "Defaults", "Example", "Known limits", "References"]


def sections(name):
    """The text of a method's page under each heading."""
    text = (ROOT / "docs" / "methods" / f"{name}.md").read_text()
    found = re.findall(r"^## (.*)$", text, re.MULTILINE)
    return dict(zip(found, re.split(r"^## .*\n", text, flags=re.MULTILINE)[1:], strict=True))


@pytest.mark.parametrize("name", registry.names())
def test_every_method_page_has_the_same_sections(name):
    page = sections(name)
    assert list(page) == HEADINGS
    assert page["Equation"].count("$$") >= 2
    assert "```python\n" in page["Example"]
    assert "../benchmarks/" in page["Known limits"]


def callable_of(name, defaults):
    """What the table of defaults is about: the class its header names, or the method."""
    named = re.search(r"\| argument of `([\w.]+)` \|", defaults)
    if named is None:
        return registry.inference_class(name)
    module, _, attribute = named[1].rpartition(".")
    return getattr(importlib.import_module(f"bayeskit.{module or 'bnn'}"), attribute)


def default_values(text):
    """The values of a cell, `"auto"`, 2,000, (1, 1), as Python objects; calls as `inspect.Parameter.empty`."""
    for value in re.findall(r"\([^)]*\)|[^\s,](?:[^,]|,(?=\d))*", text):
        try:
            yield ast.literal_eval(re.sub(r"(?<=\d),(?=\d{3})", "", value.strip().strip("`")))
        except (ValueError, SyntaxError):
            yield inspect.Parameter.empty


@pytest.mark.parametrize("name", registry.names())
def test_defaults_on_method_pages_are_those_of_the_code(name):
    """Every argument stands in the table with its default, or by name in a row that refers to another method."""
    defaults = sections(name)["Defaults"]
    parameters = inspect.signature(callable_of(name, defaults)).parameters
    named = set()
    for cell, values in re.findall(r"^\| (`[^|]*`) \| ([^|]*) \|", defaults, re.MULTILINE):
        arguments = re.findall(r"`(\w+)`", cell)
        named |= set(arguments)
        if values.startswith("as "):
            continue
        stated = list(default_values(values)) * (len(arguments) if "," not in values else 1)
        for argument, value in zip(arguments, stated, strict=True):
            assert value in (parameters[argument].default, inspect.Parameter.empty), argument
    assert named == set(parameters)


PAGES = sorted(p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_every_page_is_in_the_navigation(page):
    assert f": {page}\n" in NAV


REFERENCE = {
    path.stem: set(re.findall(r"^::: bayeskit\.(\S+)$", path.read_text(), re.MULTILINE))
    for path in (ROOT / "docs" / "reference").glob("*.md")
}
PACKAGES = ["gp", "bnn", "mcmc", "metrics", "plots", "active", "continual", "benchmark"]
CORE = [
    "likelihood",
    "operators",
    "optimize",
    "predictive",
    "types",
    "validation_split",
    "posterior",
    "lazy_moments",
    "inference",
]
ADAPTERS = ["avalanche", "baal", "botorch", "skactiveml", "skorch"]


def public(module):
    """What a package exports (`from ... import A as A`), or what a module defines."""
    path = ROOT / "bayeskit" / module
    tree = ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())
    if path.is_dir():
        imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
        names = {a.asname for node in imports for a in node.names if a.asname and not _is_module(node.module, a.asname)}
    else:
        names = {name for node in tree.body for name in _defined(node)}
    return {f"{module.replace('/', '.')}.{name}" for name in names if not name.startswith("_")}


def _defined(node):
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _is_module(package, name):
    return (ROOT / package.replace(".", "/") / f"{name}.py").exists()


@pytest.mark.parametrize("package", PACKAGES)
def test_reference_lists_every_public_name(package):
    """An entry `::: bayeskit.<package>.<name>` in docs/reference/<package>.md for each name, and no other."""
    assert public(package) == REFERENCE[package], f"docs/reference/{package}.md does not list what `{package}` exports"


@pytest.mark.parametrize(("page", "modules"), [("core", CORE), ("integrations", ADAPTERS), ("registry", ["registry"])])
def test_reference_lists_the_public_names_of_modules(page, modules):
    names = set().union(*(public(m if m == page else f"{page}/{m}") for m in modules))
    assert names == REFERENCE[page], f"docs/reference/{page}.md does not list what the modules of `{page}` define"


def test_reference_lists_the_top_level():
    classes_and_functions = public("estimators") | public("persistence")
    assert classes_and_functions == REFERENCE["bayeskit"]
    entries = {name.split(".")[-1] for name in classes_and_functions | REFERENCE["benchmark"] | REFERENCE["registry"]}
    assert {name for name in bayeskit.__all__ if name not in entries} <= set(REFERENCE)


def test_every_decision_is_listed():
    folder = ROOT / "docs" / "decisions"
    listed = set(re.findall(r"\(([\w-]+\.md)\)", (folder / "README.md").read_text()))
    assert listed == {path.name for path in folder.glob("*.md")} - {"README.md"}


def test_every_example_is_listed():
    text = (ROOT / "docs" / "guide" / "examples.md").read_text()
    assert all(path.stem in text for path in (ROOT / "examples").glob("[0-9]*.py"))
    assert all(f"integrations/{path.name}" in text for path in (ROOT / "examples" / "integrations").glob("*.py"))


def test_every_figure_of_the_gallery_has_a_script_and_is_small():
    text = (ROOT / "docs" / "guide" / "gallery.md").read_text()
    figures = {path.stem: path.stat().st_size for path in (ROOT / "docs" / "images" / "gallery").glob("*.png")}
    assert set(figures) == {path.stem for path in (ROOT / "examples" / "gallery").glob("*.py")}
    assert all(f"(../images/gallery/{name}.png)" in text and f"gallery/{name}.py" in text for name in figures)
    assert max(figures.values()) < 80_000


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_to_files_resolve(page):
    links = re.findall(r"\]\((?!http|#)([^)]+)\)", (ROOT / page).read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_one_version():
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()
