import io
import subprocess
import sys

import pytest

from bayeskit.core import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def loop():
    with progress.track(3, "outer") as outer:
        for _ in range(3):
            with progress.track(2, "inner") as inner:
                inner.update(2)
            outer.update(1, loss=0.25)


@pytest.mark.parametrize("verbose", [False, True])
def test_silent_where_stderr_is_not_a_terminal(capfd, verbose):
    with progress.shown(verbose):
        loop()
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_silent_at_a_terminal_unless_asked(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    loop()
    assert sys.stderr.getvalue() == ""


def test_drawn_at_a_terminal_with_numbers_and_inner_loops(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.shown(True):
        loop()
        loop()  # the display of the first is closed
    drawn = sys.stderr.getvalue()
    assert "outer" in drawn and "loss 0.25" in drawn


def test_shown_ends_with_its_block():
    with progress.shown(True):
        pass
    assert progress._wanted.get() is False


def test_rich_is_not_imported_when_silent():
    code = "import sys; from bayeskit.core import progress\nwith progress.track(1, 'x') as t: t.update()\n"
    subprocess.run([sys.executable, "-c", code + "assert 'rich' not in sys.modules"], check=True)
