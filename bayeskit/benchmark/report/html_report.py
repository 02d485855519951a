"""`report.html`: one file that opens offline, without scripts, and starts with the conclusions."""

import os
import platform
from collections import Counter
from pathlib import Path

from jinja2 import Environment, PackageLoader

from bayeskit.benchmark.report import figures, result_tables, summary_text
from bayeskit.benchmark.run.results import Results
from bayeskit.version import __version__

_TEMPLATES = Environment(loader=PackageLoader("bayeskit.benchmark", "report"), autoescape=True)
_TEMPLATES.globals.update(
    {
        name: getattr(result_tables, name)
        for name in ("count", "direction", "evidence", "failures", "finished", "legend")
    },
    mean_and_error=result_tables.mean_and_error,
    mark=result_tables.NOT_SIGNIFICANT,
)


def path(results: Results) -> Path:
    """Where the report is written."""
    return results.store.folder / "report.html"


def table(results: Results) -> str:
    """The table as an HTML `<table>` with a caption and scoped headings."""
    return _TEMPLATES.get_template("table.html.jinja").render(results=results)


def write(results: Results) -> None:
    """Write `report.html`, `table.md` and the figures as PNG into the comparison's folder."""
    folder = results.store.folder
    _replace(folder / "table.md", result_tables.markdown(results))
    page = _TEMPLATES.get_template("report.html.jinja").render(
        results=results,
        title=f"{results.name}: comparison of methods",
        conclusions=summary_text.conclusions(results),
        setup=_setup(results),
        pictures=figures.draw(results, folder / "figures"),
        warnings=_warnings(results),
        definitions=[(m.title, m.meaning) for m in results.metrics] + [*result_tables.OTHERS.items()],
        version=__version__,
    )
    _replace(path(results), page)


def _setup(results: Results) -> list[str]:
    """Sentences on the data, the time and the memory measurements."""
    rows = [row for row in results.rows if row["status"] == "ok"]
    sentences = []
    if rows:
        first = rows[0]
        sentences.append(
            f"{results.task.capitalize()} with {first['num_train']} training and {first['num_test']} test points; "
            f"{result_tables.count(results.methods, 'method')}, {result_tables.count(results.seeds, 'seed')}."
        )
        idle = [row["start_memory_mb"] for row in rows if row.get("start_memory_mb")]
        if idle:
            sentences.append(
                f"Peak memory is that of the whole worker process, which used {min(idle):.0f} MB when idle."
            )
        jobs = max((row.get("jobs", 0) for row in rows), default=0)
        parallel = f", including up to {jobs} fits in parallel," if jobs > 1 else ""
        sentences.append(
            f"Times are wall-clock seconds on one thread ({platform.machine()}, {os.cpu_count()} processors) and "
            f"depend on the load of the machine{parallel or ','} so small differences mean little."
        )
    ood = results.ood
    sentences.append(f"Out-of-distribution inputs: {ood}." if ood else "No out-of-distribution data were given.")
    return [*sentences, *results.notes]


def _warnings(results: Results) -> list[str]:
    """The methods' warnings and missing distances, once each, with the number of seeds."""
    seen = Counter(
        f"{row['method']}: {text}"
        for row in results.rows
        for text in [
            *row.get("warnings", []),
            *([f"no distance: {row['distance_reason']}"] if row.get("distance_reason") else []),
        ]
    )
    return [text + (f" ({count} seeds)" if count > 1 else "") for text, count in seen.items()]


def _replace(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
