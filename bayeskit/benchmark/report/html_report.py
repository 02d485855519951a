"""`report.html`: one file that opens offline, without scripts, and starts with the answer."""

import html
import os
import platform
from importlib.resources import files
from pathlib import Path
from string import Template

from bayeskit import __version__
from bayeskit.benchmark.report import figures, result_tables, summary_text
from bayeskit.benchmark.run.comparison import Comparison


def write(comparison: Comparison) -> Path:
    """Write `report.html`, `table.md` and the figures as PNG into the comparison's folder.

    Returns:
        The path of the report.
    """
    folder = comparison.store.folder
    _replace(folder / "table.md", result_tables.markdown(comparison))
    pictures = figures.draw(comparison, folder / "figures")
    answer = summary_text.verdict(comparison)
    page = Template(files("bayeskit.benchmark.report").joinpath("report.template.html").read_text("utf-8")).substitute(
        title=html.escape(f"{comparison.name}: which method to trust"),
        first=html.escape(answer[0]),
        rest="".join(f"<p>{html.escape(sentence)}</p>" for sentence in answer[1:]),
        facts=_facts(comparison),
        table=result_tables.html(comparison) if comparison.summary else "<p>No cell finished.</p>",
        legend="".join(f"<p>{html.escape(sentence)}</p>" for sentence in result_tables.legend(comparison)),
        failures=_failures(comparison),
        pictures="".join(_picture(comparison, picture) for picture in pictures),
        definitions=_definitions(comparison),
        noticed=_noticed(comparison),
        version=__version__,
    )
    _replace(comparison.report, page)
    return comparison.report


def _facts(comparison: Comparison) -> str:
    rows = [row for row in comparison.rows if row["status"] == "ok"]
    sentences = []
    if rows:
        first = rows[0]
        sentences.append(
            f"{comparison.task.capitalize()} with {first['num_train']} training and {first['num_test']} test rows; "
            f"{result_tables.count(comparison.methods, 'method')}, {result_tables.count(comparison.seeds, 'seed')}."
        )
        held = [row["start_memory_mb"] for row in rows if row.get("start_memory_mb")]
        if held:
            sentences.append(
                f"Peak memory is that of the whole worker process, which held {min(held):.0f} MB when idle."
            )
        jobs = max((row.get("jobs", 0) for row in rows), default=0)
        side = f", including up to {jobs} fits side by side," if jobs > 1 else ""
        sentences.append(
            f"Seconds are on one thread ({platform.machine()}, {os.cpu_count()} processors) and depend on what else "
            f"ran at the time{side or ','} so small differences mean little."
        )
    ood = comparison.ood
    sentences.append(f"Out-of-distribution inputs: {ood}." if ood else "No out-of-distribution partner was given.")
    return _list([*sentences, *comparison.notes])


def _failures(comparison: Comparison) -> str:
    if not comparison.failures:
        return ""
    lines = [f"{row['method']}, seed {row['seed']}: {row['status']}: {row['reason']}" for row in comparison.failures]
    return f'<section><h2>What did not finish</h2><div class="warning">{_list(lines)}</div></section>'


def _picture(comparison: Comparison, picture: figures.Picture) -> str:
    text = picture.text
    if picture.name == "distances":
        points = sorted({row["method"] for row in comparison.rows if row.get("kind") == "point"})
        text = f"{text} {summary_text.closeness(comparison)}"
        text += f" Point methods here: {', '.join(points)}." if points and comparison.task == "regression" else ""
    return (
        f'<section><h2>{html.escape(picture.title)}</h2><figure><div class="scroll">{picture.svg}</div>'
        f"<figcaption>{html.escape(text)}</figcaption></figure></section>"
    )


def _definitions(comparison: Comparison) -> str:
    meanings = [(m.title, m.meaning) for m in comparison.measures] + [*result_tables.OTHERS.items()]
    items = [f"<dt>{html.escape(title)}</dt><dd>{html.escape(meaning)}.</dd>" for title, meaning in meanings]
    return f"<dl>{''.join(items)}</dl>"


def _noticed(comparison: Comparison) -> str:
    """What methods warned of and what their numerics needed, once each, with the number of cells."""
    seen: dict[str, int] = {}
    for row in comparison.rows:
        said = [f"{row['method']}: {text}" for text in row.get("warnings", [])]
        said += [f"{row['method']}: no distance: {row['distance_reason']}"] if row.get("distance_reason") else []
        for text in said:
            seen[text] = seen.get(text, 0) + 1
    lines = [text + (f" ({count} seeds)" if count > 1 else "") for text, count in seen.items()]
    return f"<section><h2>What the methods warned of</h2>{_list(lines)}</section>" if lines else ""


def _list(sentences: list[str]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(sentence)}</li>' for sentence in sentences)}</ul>"


def _replace(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
