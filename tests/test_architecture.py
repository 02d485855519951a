"""The page docs/development/architecture.md names files that exist, and walks in the order of real calls."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

import bayeskit
from bayeskit import GPRegressor, compare, gp

PACKAGE = Path(bayeskit.__file__).parent
PAGE = (PACKAGE.parent / "docs" / "development" / "architecture.md").read_text()
WALKS = {
    section.split("\n")[0]: re.findall(r"^\d+\. `([\w/]+\.py)`", section, re.MULTILINE)
    for section in PAGE.split("\n### ")[1:]
}


def files_called(function):
    """The files of the package whose functions are called, in the order of their first call."""
    found = {}

    def profile(frame, event, _):
        if event == "call" and frame.f_code.co_name != "<module>":
            found.setdefault(frame.f_code.co_filename)

    previous = sys.getprofile()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(previous)
    root = f"{PACKAGE}/"
    return [path.removeprefix(root) for path in found if path.startswith(root)]


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    rng = np.random.default_rng(0)
    X = rng.uniform(-2, 2, (40, 2))
    y = np.sin(X[:, 0])
    model = GPRegressor(inference=gp.Exact(max_iter=3), random_state=0)
    settings = {"methods": ["exact"], "seeds": 1, "n_jobs": 1, "verbose": False}
    folder = tmp_path_factory.mktemp("compare")
    return {
        "fit": files_called(lambda: model.fit(X[:30], y[:30])),
        "predict": files_called(lambda: model.predict(X, return_std=True)),
        "sample_functions": files_called(lambda: model.sample_functions(3, random_state=0)(X)),
        "partial_fit": files_called(lambda: model.partial_fit(X[30:], y[30:])),
        "compare": files_called(lambda: compare("linnerud", out=folder, **settings)),
    }


def test_files_on_the_page_exist():
    names = re.findall(r"`([\w/]+\.py)`", PAGE)
    roots = [PACKAGE, PACKAGE.parent]
    missing = {name for name in names if not any((root / name).exists() for root in roots)}
    assert {name for name in missing if "NAME" not in name} == set()


@pytest.mark.parametrize("walk", ["fit", "predict", "sample_functions", "partial_fit", "compare"])
def test_walk_is_in_the_order_of_the_calls(walk, calls):
    """Each file of the walk is called, first calls come in this order, and no file stands twice."""
    assert len(WALKS[walk]) == len(set(WALKS[walk])) > 5
    assert [path for path in calls[walk] if path in WALKS[walk]] == WALKS[walk]
