"""The command line: one sentence for an invalid argument, exit codes, and a comparison in a process of its own."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from bayeskit.cli import app

COMMANDS = CliRunner()


def test_methods_lists_the_registry():
    from bayeskit import registry

    result = COMMANDS.invoke(app, ["methods"])
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.output.splitlines()] == registry.names()
    swsgp = next(line.split() for line in result.output.splitlines() if line.startswith("swsgp"))
    assert swsgp[1:5] == ["gp", "classification,", "regression", "experimental"]
    result = COMMANDS.invoke(app, ["methods", "--task", "classification"])
    assert [line.split()[0] for line in result.output.splitlines()] == registry.names("classification")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--data", "diabets"], "did you mean 'diabetes'"),
        (["compare", "--data", "nowhere.csv"], "there is no file nowhere.csv"),
        (["compare", "--methods", "exakt"], "did you mean 'exact'"),
        (["compare", "--task", "clustering"], "`task` must be one of"),
        (["compare", "--seeds", "0"], "`seeds` must be a positive integer"),
        (["compare", "--groups", "sexx"], "did you mean 'sex'"),
        (["compare", "--time", "when"], "`time` must be a column"),
        (["compare", "--folds", "1"], "`folds` must be at least 2"),
        (["methods", "--task", "clustering"], "`task` must be one of"),
    ],
)
def test_a_wrong_argument_is_one_sentence_and_exit_code_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = COMMANDS.invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_methods_that_differ_by_their_kernel_have_different_descriptions():
    lines = COMMANDS.invoke(app, ["methods"]).output.splitlines()
    nuts, sgld = (next(line for line in lines if line.startswith(name)) for name in ("nuts", "sgld"))
    assert nuts.split()[1:] != sgld.split()[1:]


def test_ctrl_c_says_how_to_continue(monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("bayeskit.benchmark.compare", stopped)
    result = COMMANDS.invoke(app, ["compare"])
    assert result.exit_code == 130
    assert result.stderr == "stopped; run the same command to continue\n"


def test_an_unknown_option_is_exit_code_2():
    assert COMMANDS.invoke(app, ["compare", "--dataset", "iris"]).exit_code == 2


def test_compare_as_a_module(tmp_path):
    command = [sys.executable, "-m", "bayeskit", "compare", "--data", "linnerud", "--methods", "exact", "--seeds", "1"]
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert "Task: regression." in done.stdout
    assert "| exact |" in done.stdout
    assert f"Report: {tmp_path / 'report.html'}" in done.stdout
    assert "[1/1] exact, seed 0: NLL" in done.stderr
    assert (tmp_path / "report.html").exists()


def test_importing_the_comparison_loads_no_tables_or_figures():
    # pandas comes with scikit-learn's own imports on some versions, so only what the comparison adds is counted.
    code = (
        "import sys, torch, gpytorch, sklearn.base, joblib; before = set(sys.modules); import bayeskit.benchmark;"
        "new = set(sys.modules) - before; print(sorted(new & {'pandas', 'matplotlib', 'pyro', 'rich', 'typer'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.strip() == "[]"


def test_a_comparison_says_how_it_split(tmp_path):
    pandas = pytest.importorskip("pandas")
    square = [i * i % 7 for i in range(60)]
    table = {"k": range(60), "site": [i // 6 for i in range(60)], "a": square}
    table["y"] = [a + i % 3 for i, a in enumerate(square)]
    pandas.DataFrame(table).to_csv(tmp_path / "t.csv", index=False)
    options = ["--data", str(tmp_path / "t.csv"), "--methods", "sgpr", "--jobs", "1", "--out", str(tmp_path / "out")]
    result = COMMANDS.invoke(app, ["compare", "--groups", "site", "--folds", "2", *options])
    report = (tmp_path / "out" / "report.html").read_text()
    for text in (result.stdout, report):
        assert "one of 2 folds" in text and "(10 groups) are never on both sides" in text
        assert "Warning: k looks like a row index" in text
    assert "| 2/2 |" in result.stdout or "2 of 2" in result.stdout
    again = COMMANDS.invoke(app, ["compare", "--folds", "2", *options])
    assert again.exit_code == 2 and "holds a comparison with groups 'site' and not None" in again.stderr
