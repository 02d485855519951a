import os
import runpy
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import numpy as np
import pytest
import torch

import bayeskit

from . import seeds
from .properties import outcomes

torch.set_num_threads(1)

# `make test` tries few cases of each property, `make test-slow` many; both the same in every run.
for profile, cases in (("few", 20), ("many", 1500)):
    hypothesis.settings.register_profile(
        profile,
        max_examples=cases,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
hypothesis.settings.load_profile("few")


def pytest_addoption(parser):
    parser.addoption("--seeds", type=int, default=1, help="run each test marked monte_carlo with so many seeds")


def pytest_configure(config):
    if seeds.FIRST or config.getoption("seeds") > 1:
        seeds.install()


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # a process of pytest-xdist
        session.config.workeroutput["cases"] = outcomes.number


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    outcomes.number += getattr(node, "workeroutput", {}).get("cases", 0)


def pytest_terminal_summary(terminalreporter):
    if outcomes.number:
        terminalreporter.write_line(f"{outcomes.number:,} cases of properties tried")


def pytest_generate_tests(metafunc):
    number = metafunc.config.getoption("seeds")
    if number > 1 and metafunc.definition.get_closest_marker("monte_carlo"):
        metafunc.fixturenames.append("seed_offset")
        metafunc.parametrize(
            "seed_offset", range(seeds.FIRST, seeds.FIRST + number), ids="seed{}".format, indirect=True
        )


@pytest.fixture
def seed_offset(request):
    return request.param


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def _seeded(request):
    """Every test begins with the same seed of torch's global generator, from which layers draw their first weights.

    So does the generator `RNG` of a module, whose draws would otherwise depend on the tests that ran before.
    """
    chosen = getattr(request.node, "callspec", None)
    seeds.offset = seeds.FIRST if chosen is None else chosen.params.get("seed_offset", seeds.FIRST)
    torch.manual_seed(0)
    if hasattr(request.module, "RNG"):
        request.module.RNG.bit_generator.state = np.random.default_rng(1).bit_generator.state


ENTRY = """

if __name__ == "__main__":
    import os, sys, time
    from pathlib import Path

    import torch, torch.distributed

    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(work(rank, str(folder)), folder / f"part{rank}")
    (folder / f"part{rank}").rename(folder / f"out{rank}")
    for _ in range(6000):  # up to a minute, as the other may still be reading what this one sent
        if (folder / f"out{1 - rank}").exists():
            break
        time.sleep(0.01)
    os._exit(0)  # torch has aborted while an interpreter that had ranks was taken down
"""


@pytest.fixture
def two_ranks(tmp_path):
    """Runs a source's `work(rank, folder)` in two processes, ranks of one group: their results, and `work` itself."""

    def run(source):
        worker = tmp_path / "worker.py"
        worker.write_text(source + ENTRY)
        here = os.environ | {"PYTHONPATH": str(Path(bayeskit.__file__).parents[1])}
        command = [sys.executable, worker]
        running = [subprocess.Popen([*command, str(rank), str(tmp_path)], env=here) for rank in range(2)]
        assert [process.wait(timeout=120) for process in running] == [0, 0]
        first, second = (torch.load(tmp_path / f"out{rank}") for rank in range(2))
        return first, second, runpy.run_path(str(worker))["work"]

    return run
