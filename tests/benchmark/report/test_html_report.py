"""The report is one self-contained file: no network, no scripts, no errors."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from bayeskit import compare


@pytest.fixture
def report(tmp_path, ridge):
    methods = {"right": ridge(), "wide <b>": ridge(width=3.0), "broken": ridge(error=RuntimeError("a < b"))}
    return compare("diabetes", methods=methods, seeds=2, out=tmp_path / "out", n_jobs=1).report


def test_it_opens_with_the_conclusions_and_has_every_part(report):
    page = report.read_text("utf-8")
    conclusion = page.index(
        "On diabetes no single method is significantly best: wide &lt;b&gt; is not significantly different from right"
    )
    assert conclusion < page.index("<table")
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings[:4] == ["Results", "Trials that did not finish", "Data and setup", "PIT histograms"]
    assert "2-Wasserstein distance" in page
    assert page.count("<svg") == 4


def test_times_and_columns_are_defined(report, tmp_path, ridge):
    page = report.read_text("utf-8")
    assert "<dt>log evidence (kind)</dt>" in page
    assert "<dt>seeds</dt>" in page
    assert "depend on the load of the machine" in page
    head = re.findall(r'<th scope="col">(.*?)</th>', page)
    assert head[:4] == ["method", "NLL&nbsp;↓", "fit s&nbsp;↓", "predict s&nbsp;↓"]
    alone = compare("diabetes", methods={"right": ridge()}, seeds=1, out=tmp_path / "alone", n_jobs=1).report
    assert "1 method, 1 seed." in alone.read_text("utf-8")
    assert "1 methods" not in alone.read_text("utf-8")
    assert "`" not in alone.read_text("utf-8").split("</style>")[1]


def test_text_from_outside_is_escaped(report):
    page = report.read_text("utf-8")
    assert "wide &lt;b&gt;" in page
    assert "a &lt; b" in page
    assert "wide <b>" not in page


def test_it_refers_to_nothing_outside(report):
    page = report.read_text("utf-8")
    references = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page)
    assert references
    assert all(reference.startswith(("#", "data:")) for reference in references)
    assert "<script" not in page


def test_ids_are_unique_and_headings_in_order(report):
    class Reader(HTMLParser):
        def __init__(self):
            super().__init__()
            self.ids, self.levels = [], []

        def handle_starttag(self, tag, attrs):
            self.ids += [value for name, value in attrs if name == "id"]
            self.levels += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []
            if tag == "svg":
                assert {"role", "aria-label"} <= {name for name, _ in attrs}
            if tag == "th":
                assert "scope" in dict(attrs)

    reader = Reader()
    reader.feed(report.read_text("utf-8"))
    repeated = {i for i in reader.ids if reader.ids.count(i) > 1}
    assert not repeated
    assert reader.levels[0] == 1
    assert all(after - before <= 1 for before, after in zip(reader.levels, reader.levels[1:], strict=False))


def test_a_report_is_the_same_when_written_again(report, tmp_path, ridge):
    before = report.read_text("utf-8")
    methods = {"right": ridge(), "wide <b>": ridge(width=3.0)}
    first = compare("diabetes", methods=methods, seeds=2, out=tmp_path / "out", n_jobs=1).report.read_text("utf-8")
    again = compare("diabetes", methods=methods, seeds=2, out=tmp_path / "out", n_jobs=1).report.read_text("utf-8")
    assert first == again != before


@pytest.mark.browser
def test_a_browser_opens_it_offline_without_errors(report, tmp_path):
    chromium = shutil.which("chromium")
    assert chromium, "chromium is not on the path; install Debian's package `chromium`"
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    quiet += ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    offline = ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=5000", "--enable-logging=stderr"]
    shot = tmp_path / "report.png"
    for mode in (["--dump-dom"], [f"--screenshot={shot}", "--window-size=1200,3000"]):
        command = [chromium, *quiet, *offline, *mode, report.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        assert ":CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        if mode == ["--dump-dom"]:
            assert "On diabetes no single method is significantly best" in done.stdout
            assert done.stdout.count("<svg") == 4
    assert shot.stat().st_size > 50_000
