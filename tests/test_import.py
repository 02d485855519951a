"""`import bayeskit` is light, and heavy libraries load at first use."""

import json
import subprocess
import sys

HEAVY = {"pyro", "matplotlib", "pandas", "rich", "typer"}
CODE = """
import json, sys
import torch, gpytorch, sklearn.base
before = set(sys.modules)  # gpytorch itself loads pyro where it is installed
import bayeskit
alone = sorted(set(sys.modules) - before)
from bayeskit import GPRegressor, BNNRegressor, gp, bnn, mcmc, metrics, plots, registry, save, compare
print(json.dumps([alone, sorted(set(sys.modules) - before)]))
"""


def test_heavy_libraries_wait_for_their_first_use():
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    alone, everything = json.loads(result.stdout)
    assert alone == ["bayeskit", "bayeskit.version"]
    assert not HEAVY & {name.split(".")[0] for name in everything}


def test_public_names_exist():
    import bayeskit

    for name in bayeskit.__all__:
        assert getattr(bayeskit, name) is not None
    assert set(bayeskit.__all__) <= set(dir(bayeskit))
