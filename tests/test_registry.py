"""The registry: names, defaults, status, and methods of other packages."""

import inspect
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bayeskit
from bayeskit import compare, registry
from bayeskit.bnn import MAP
from bayeskit.core.inference import Inference
from bayeskit.core.likelihood import Gaussian, Poisson, StudentT
from bayeskit.core.posterior import Posterior


def test_every_entry_is_an_inference_with_a_kind():
    for name in registry.names():
        cls = registry.inference_class(name)
        assert issubclass(cls, Inference)
        assert cls.kind in ("GP posterior", "weights", "draws", "point")
        assert registry.tasks(name)
        assert isinstance(registry.get(name)(), cls)
        assert isinstance(registry.quick(name), cls)


def test_unknown_names_get_a_suggestion():
    with pytest.raises(ValueError, match="did you mean 'laplace'"):
        registry.get("laplase")


def test_defaults_by_task_and_size():
    assert registry.default("gp", "regression", 500) == "exact"
    assert registry.default("gp", "regression", 50_000) == "sgpr"
    assert registry.default("gp", "regression", 1_000_000) == "dual_svgp"
    assert registry.default("gp", "regression", 500, stream=True) == "memory_dual_gp"
    assert registry.default("gp", "regression", 500, Gaussian()) == "exact"
    assert registry.default("gp", "regression", 500, StudentT()) == "dual_svgp"
    assert registry.default("gp", "regression", 50_000, Poisson()) == "dual_svgp"
    assert registry.default("gp", "regression", 500, num_correlated=3) == "exact"
    assert registry.default("gp", "regression", 5_000, num_correlated=3) == "dual_svgp"
    assert registry.default("gp", "regression", 500, StudentT(), num_correlated=3) == "dual_svgp"
    assert registry.default("gp", "classification", 50) == "dual_svgp"
    assert registry.default("bnn", "regression", 50) == "laplace"


def test_the_status_is_the_same_in_registry_page_and_docstring():
    for name in sorted(set(registry.names()) - set(registry.added())):
        entry = registry.METHODS[name]
        page = (Path(__file__).parents[1] / "docs" / "methods" / f"{name}.md").read_text().split("\n")
        kernel = registry.get(name)().get_params(deep=False).get("kernel")
        documented = " ".join((type(kernel).__doc__ if kernel else registry.inference_class(name).__doc__).split())
        if entry.status == "experimental":
            assert any(character.isdigit() for character in entry.experimental), "the reason has a measured figure"
            assert page[2] == f"Status: experimental ({entry.experimental})"
            assert f"Status: experimental. {entry.experimental[0].upper()}{entry.experimental[1:]}." in documented
        else:
            assert page[2] == "Status: stable"
            assert "Status: experimental" not in documented


def test_no_default_is_experimental():
    stable = registry.names(status="stable")
    sizes = (10, 10_000, 1_000_000)
    for family, task in itertools.product(("gp", "bnn"), ("regression", "classification")):
        for size, correlated, stream in itertools.product(sizes, (1, 3), (False, True)):
            assert registry.default(family, task, size, num_correlated=correlated, stream=stream) in stable
    assert inspect.signature(compare).parameters["methods"].default == "stable"
    assert registry.default("gp", "regression", 10, Poisson()) in stable


class Mine(MAP):
    """A method of a user's own package."""


@pytest.fixture
def mine():
    bayeskit.register("mine", Mine)
    yield "mine"
    del registry.METHODS["mine"]


def test_a_method_registered_in_this_process(mine):
    assert mine in registry.names("regression", family="bnn", status="stable")
    assert isinstance(bayeskit.BNNRegressor(inference=mine)._resolve_inference(10), Mine)
    assert registry.parts("mine+conformal", task="classification") == ("mine", ("conformal",))
    assert registry.description(mine) == "A method of a user's own package."
    bayeskit.register("mine", Mine, experimental="few data")  # the same class again, as in a notebook
    assert registry.METHODS[mine].status == "experimental"


def test_settings_of_a_registered_name_are_constructed():
    from bayeskit import mcmc

    class Kernel(mcmc.SGLD):
        pass

    bayeskit.register("my_sampler", "bayeskit.bnn:MCMC", settings={"kernel": Kernel, "num_chains": 2})
    method = registry.get("my_sampler")()
    del registry.METHODS["my_sampler"]
    assert isinstance(method.kernel, Kernel) and method.num_chains == 2


@pytest.mark.parametrize(
    ("name", "method", "error", "message"),
    [
        ("My+Method", Mine, ValueError, "`name` must be lower-case letters, digits and underscores"),
        ("svgp", Mine, ValueError, "`name` 'svgp' is taken by bayeskit.gp:SVGP"),
        ("map", "bayeskit.bnn:MAP", ValueError, "`name` 'map' is taken"),
        ("mine", Poisson, TypeError, "`method` must be a subclass of bayeskit.core.inference.Inference"),
        ("mine", Mine(), TypeError, "`method` must be a subclass of bayeskit.core.inference.Inference"),
    ],
)
def test_what_cannot_be_registered(name, method, error, message):
    with pytest.raises(error, match=re.escape(message)):
        bayeskit.register(name, method)
    assert "mine" not in registry.METHODS


def test_a_family_that_priors_do_not_determine_is_asked_for():
    class AnyPrior(Mine):
        priors = (Posterior,)

    with pytest.raises(ValueError, match="`family` must be given"):
        bayeskit.register("mine", AnyPrior)


PLUGIN = """
from dataclasses import dataclass

from bayeskit.bnn import MAP


@dataclass(eq=False, repr=False)
class Plugin(MAP):
    \"\"\"A method of an installed package.\"\"\"
"""


@pytest.fixture
def installed(tmp_path):
    """An environment with a distribution that adds the method "plugged", and one method that cannot be imported."""
    (tmp_path / "plugged_package.py").write_text(PLUGIN)
    info = tmp_path / "plugged-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1.0\n")
    points = "[bayeskit.methods]\nplugged = plugged_package:Plugin\nlost = plugged_package:Nothing\n"
    (info / "entry_points.txt").write_text(points)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


def run(arguments, environment):
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=200, check=True
    )


def test_a_method_of_an_installed_package_in_the_command_line(installed):
    listed = run(["-m", "bayeskit", "methods"], installed)
    line = next(line for line in listed.stdout.splitlines() if line.startswith("plugged"))
    assert line.split()[1:5] == ["bnn", "classification,", "regression", "stable"]
    assert line.endswith("A method of an installed package.")
    assert "the method 'lost' of the package plugged could not be registered" in listed.stderr


def test_methods_of_other_packages_in_worker_processes(installed, tmp_path):
    """One by its entry point, one by `register` with a class of the script: two workers run both."""
    script = tmp_path / "script.py"
    script.write_text(
        PLUGIN
        + """
import bayeskit

if __name__ == "__main__":
    bayeskit.register("mine", Plugin)
    methods = ["plugged", "mine"]
    result = bayeskit.compare("linnerud", methods=methods, seeds=1, out="out", n_jobs=2)
    print([row["status"] for row in result.rows], {row["nll"] for row in result.rows}.__len__())
    print(bayeskit.BNNRegressor(inference="plugged"))
"""
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        env=installed,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=250,
        check=True,
    )
    assert done.stdout.splitlines()[0] == "['ok', 'ok'] 1", done.stderr
