"""Imports run one way: the test reads every import of the package and fails on an upward edge."""

import ast
from pathlib import Path

import bayeskit

ROOT = Path(bayeskit.__file__).parent

CORE_ORDER = ["checks", "inputs", "modules", "types", "compiled", "normals", "generators"]
CORE_ORDER += ["operators", "posterior", "lazy_moments", "predictive", "likelihood", "inference"]
CORE_APART = ["progress", "checkpoint", "optimize"]

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


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Every bayeskit module that a file imports, wherever in the file, without the leading package name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    names = {name.removeprefix("bayeskit.") for name in found if name.startswith("bayeskit.")}
    return names - {"__version__"}


FILES = {module_name(path): imports(path) for path in ROOT.rglob("*.py")}


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


def test_core_modules_keep_their_order():
    wrong = []
    for module, imported in FILES.items():
        if not module.startswith("core."):
            continue
        own = module.split(".")[1]
        for name in (n.split(".")[1] for n in imported if n.startswith("core.")):
            # generators and types stand beside checks; the rest in the order of the list.
            allowed = CORE_ORDER if own in CORE_APART else CORE_ORDER[: CORE_ORDER.index(own) + 1]
            if name not in allowed and not (own in CORE_APART and name in CORE_APART):
                wrong.append(f"{module} imports core.{name}")
    assert not wrong


def test_every_part_is_in_the_table():
    parts = {module.split(".")[0] for module in FILES} - {""}
    assert parts == set(ALLOWED)
