"""The wheel holds the package and nothing else, and runs from an empty environment."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RUN = """
import bayeskit, numpy as np
x = np.linspace(0, 1, 15)[:, None]
model = bayeskit.GPRegressor(random_state=0).fit(x, x[:, 0])
assert model.predict(x).shape == (15,)
print(bayeskit.__file__)
"""


def run(*command, **settings):
    return subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True, **settings).stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    return next(folder.glob("bayeskit-*.whl"))


def empty_environment(folder: Path) -> Path:
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


def test_wheel_holds_the_package_alone(wheel):
    import zipfile

    names = zipfile.ZipFile(wheel).namelist()
    assert "bayeskit/py.typed" in names and "bayeskit/estimators/gp_estimators.py" in names
    assert {name.split("/")[0] for name in names} == {"bayeskit", f"bayeskit-{wheel.name.split('-')[1]}.dist-info"}


def test_wheel_runs_where_only_its_dependencies_are(wheel, tmp_path):
    python = empty_environment(tmp_path / "env")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel)
    # The dependencies are lent by the environment of the tests; a `.pth` line does not lend its editable installs.
    site = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    (site / "lent.pth").write_text(sysconfig.get_path("purelib"))
    assert str(tmp_path) in run(python, "-c", RUN, cwd=tmp_path)


@pytest.mark.slow
def test_wheel_installs_with_its_dependencies(wheel, tmp_path):
    python = empty_environment(tmp_path / "env")
    run(python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel)
    assert str(tmp_path) in run(python, "-c", RUN, cwd=tmp_path)
