"""Imports run one way: every import of every file of the package is read, lazy and type-only ones included."""

import ast
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import bayeskit

ROOT = Path(bayeskit.__file__).parent

# part -> the parts of the library that it may import (itself always).
ALLOWED = {
    "core": set(),
    "mcmc": {"core.types", "core.checks", "core.generators", "core.progress", "core.checkpoint"},
    "gp": {"core", "mcmc"},
    "bnn": {"core", "mcmc"},
    "version": set(),
    "registry": {"core"},
    "estimators": {"core", "registry"},
    "persistence": {"core"},
    "metrics": {"core"},
    "plots": {"core", "metrics"},
    "active": {"core"},
    "continual": {"core", "metrics"},
    "integrations": {"core", "gp", "bnn", "mcmc", "registry", "estimators", "active"},
    "benchmark": {"version", "core", "registry", "estimators", "persistence", "metrics", "plots"},
    "cli": {"core", "registry", "estimators", "persistence", "metrics", "plots", "benchmark"},
    "__main__": {"cli"},
}

# Within a part, from the bottom up: a folder (or file of `core`) may import those of earlier lines, and itself.
ORDER = {
    "core": [
        {"checks", "progress", "checkpoint", "compiled"},
        {"inputs", "normals"},
        {"generators", "modules", "types"},
        {"validation_split"},
        {"validation_plan"},
        {"operators", "optimize"},
        {"posterior"},
        {"lazy_moments", "predictive"},
        {"likelihood"},
        {"inference"},
    ],
    "gp": [{"kernels"}, {"process"}, {"model"}, {"variational"}, {"methods"}, {"analysis", "gpytorch"}],
    "bnn": [
        {"networks"},
        {"weights"},
        {"curvature"},
        {"pushforward"},
        {"training", "analysis"},
        {"laplace_approximation", "ivon", "variational_inference", "methods"},
        {"vbll"},
    ],
    "mcmc": [{"base"}, {"hamiltonian", "sgmcmc", "analysis"}, {"sampling"}, {"federated"}],
    "benchmark": [{"data"}, {"run"}, {"report"}, {"comparison"}],
}

MOST_FILES = 18
"""Files of one folder that a reader still takes in at a glance."""


def module_name(path: Path) -> str:
    """The dotted name below `bayeskit`; a folder's `__init__` has the name of the folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {module_name(path): path for path in ROOT.rglob("*.py")}


def imports(path: Path) -> set[str]:
    """The files of the package that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name.removeprefix("bayeskit.") in PATHS else node.module for name in names}
    inside = {name.removeprefix("bayeskit").lstrip(".") for name in found if name.split(".")[0] == "bayeskit"}
    return {name for name in inside if name in PATHS}


FILES = {name: imports(path) - {name} for name, path in PATHS.items()}


def within(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")


def test_no_upward_edge():
    wrong = []
    for module, imported in FILES.items():
        part = module.split(".")[0]
        if not part:  # the package's own __init__ names everything
            continue
        for name in imported:
            if not (within(name, part) or any(within(name, allowed) for allowed in ALLOWED[part])):
                wrong.append(f"{module} imports {name}")
    assert not wrong


def test_every_part_is_in_the_table():
    parts = {module.split(".")[0] for module in FILES} - {""}
    assert parts == set(ALLOWED)


@pytest.mark.parametrize("part", ORDER)
def test_folders_keep_their_order(part):
    level = {name: i for i, names in enumerate(ORDER[part]) for name in names}
    inner = {module: module.split(".")[1] for module in FILES if module.startswith(f"{part}.")}
    assert set(inner.values()) == set(level)
    wrong = []
    for module, own in inner.items():
        for name in FILES[module] & set(inner):
            if inner[name] != own and level[inner[name]] >= level[own]:
                wrong.append(f"{module} imports {name}")
    assert not wrong


def test_files_do_not_import_each_other_in_a_circle():
    try:
        tuple(TopologicalSorter(FILES).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_folder_is_crowded():
    crowded = Counter(path.parent for path in PATHS.values())
    assert {str(folder): number for folder, number in crowded.items() if number > MOST_FILES} == {}


def test_a_module_name_stands_once():
    """So that a traceback or a search names one file."""
    names = Counter(path.stem for path in PATHS.values() if path.stem not in {"__init__", "__main__"})
    assert [name for name, number in names.items() if number > 1] == []
