"""The table of a comparison as text: Markdown, HTML, and for a terminal."""

import html as escaping
import math
import re
from collections.abc import Sized
from typing import TYPE_CHECKING

from bayeskit.benchmark.run.comparison import Comparison, Summary
from bayeskit.benchmark.run.metric_definitions import Measure

if TYPE_CHECKING:
    from rich.table import Table

TIED = "≈"

OTHERS = {
    "log evidence (kind)": "log marginal likelihood of the training targets in nats, averaged over seeds, and how it "
    "was computed; a dash where the method states none",
    "seeds": "seeds that finished, of those asked",
}
"""What the columns mean that are not measures."""


def number(value: float, digits: int) -> str:
    """A number with `digits` decimals, fewer where it is large, and in powers of ten where they would hide it.

    >>> number(0.12345, 3), number(12345.6, 3), number(float("inf"), 3), number(0.00001234, 3)
    ('0.123', '12346', 'inf', '1.23e-05')
    """
    if not math.isfinite(value):
        return "inf" if value > 0 else "-inf" if value < 0 else "-"
    if value and abs(value) < 0.5 * 10**-digits and digits:
        return f"{value:.2e}"
    return f"{value:.{_decimals(value, digits)}f}"


def cell(summary: Summary, measure: Measure) -> str:
    """Mean and standard error with as many decimals, without marks."""
    mean = number(summary.mean, measure.digits)
    if math.isnan(summary.error):
        return mean
    if "e" in mean:
        return f"{mean} ± {summary.error:.1e}"
    return f"{mean} ± {summary.error:.{_decimals(summary.mean, measure.digits)}f}"


def _decimals(value: float, digits: int) -> int:
    """Decimals that show at most five significant digits."""
    size = math.floor(math.log10(abs(value))) if value and math.isfinite(value) else 0
    return min(digits, max(0, 4 - size))


def evidence(comparison: Comparison, method: str) -> str:
    """Mean log evidence with its kind, which is never ranked against another kind."""
    rows = [row for row in comparison.done(method) if row.get("log_evidence") is not None]
    if not rows:
        return "-"
    mean = sum(row["log_evidence"] for row in rows) / len(rows)
    return f"{number(mean, 1)} ({rows[0]['evidence_kind']})"


def heading(measure: Measure) -> str:
    """A column's heading with the direction that is better."""
    arrow = {"low": "↓", "high": "↑", "target": f"→ {measure.target:g}"}[measure.better]
    return f"{measure.title} {arrow}"


def count(things: Sized, name: str) -> str:
    """A number of things in words.

    >>> count([1, 2], "method"), count([1], "seed")
    ('2 methods', '1 seed')
    """
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def finished(comparison: Comparison, method: str) -> str:
    """How many seeds a method finished."""
    return f"{len(comparison.done(method))} of {len(comparison.seeds)}"


def legend(comparison: Comparison) -> list[str]:
    """Sentences on what the table's marks mean."""
    seeds = len(comparison.seeds)
    if seeds == 1:
        first = "One seed: no standard error and no ties can be stated; ask for more seeds."
    else:
        first = (
            f"Mean ± standard error over {seeds} seeds (each its own split and initialization). Best mean in bold; "
            f"{TIED} marks what a corrected resampled t-test, paired by seed, does not tell apart from it at 5 %."
        )
    return [first, "Log evidence is in nats over the training set; only numbers of one kind may be compared."]


def markdown(comparison: Comparison) -> str:
    """The table in Markdown with its legend and its failures."""
    columns = comparison.measures
    head = ["method", *(heading(m) for m in columns), "log evidence (kind)", "seeds"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for method, values in comparison.summary.items():
        marked = [_marked(cell(values[m.key], m), values[m.key]) for m in columns]
        lines.append(
            "| " + " | ".join([method, *marked, evidence(comparison, method), finished(comparison, method)]) + " |"
        )
    failed = [f"- {row['method']}, seed {row['seed']}: {row['status']}: {row['reason']}" for row in comparison.failures]
    parts = ["\n".join(lines), *legend(comparison)]
    parts += ["Cells that did not finish:\n\n" + "\n".join(failed)] if failed else []
    return "\n\n".join(parts) + "\n"


def html(comparison: Comparison) -> str:
    """The table as an HTML `<table>` with a caption and scoped headings."""
    columns = comparison.measures
    head = "".join(f'<th scope="col">{_one_arrow(heading(m))}</th>' for m in columns)
    body = []
    for method, values in comparison.summary.items():
        cells = "".join(_html_cell(cell(values[m.key], m), values[m.key]) for m in columns)
        last = f"<td>{escaping.escape(evidence(comparison, method))}</td><td>{finished(comparison, method)}</td>"
        body.append(f'<tr><th scope="row">{escaping.escape(method)}</th>{cells}{last}</tr>')
    caption = f"{escaping.escape(comparison.name)}: {count(comparison.summary, 'method')}"
    return (
        f'<table><caption>{caption}</caption><thead><tr><th scope="col">method</th>{head}'
        f'<th scope="col">log evidence (kind)</th><th scope="col">seeds</th></tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>"
    )


def terminal(comparison: Comparison) -> "Table":
    """The table for a terminal; failures and legend are left to the caller."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{comparison.name}, {comparison.task}", title_justify="left")
    table.add_column("method", style="bold", no_wrap=True)
    for measure in comparison.measures:
        table.add_column(heading(measure), justify="right")
    table.add_column("log evidence", justify="right")
    for method, values in comparison.summary.items():
        texts = []
        for m in comparison.measures:
            value = values[m.key]
            text = cell(value, m)
            texts.append(f"[bold green]{text}[/]" if value.best else f"{text} {TIED}" if value.tied else text)
        table.add_row(escape(method), *texts, evidence(comparison, method))
    return table


def _marked(text: str, summary: Summary) -> str:
    return f"**{text}**" if summary.best else f"{text} {TIED}" if summary.tied else text


def _one_arrow(text: str) -> str:
    """A heading that never breaks before its arrow."""
    return re.sub(r" (?=[↓↑→])", "&nbsp;", escaping.escape(text))


def _html_cell(text: str, summary: Summary) -> str:
    """The mean with its mark, and its standard error on a line below."""
    mean, _, error = text.partition(" ")
    mark = f' <span title="not told apart from the best">{TIED}</span>' if summary.tied else ""
    below = f' <span class="error">{error}</span>' if error else ""
    if summary.best:
        return f'<td class="best"><strong>{mean}</strong>{below}</td>'
    return f'<td class="tied">{mean}{mark}{below}</td>' if summary.tied else f"<td>{mean}{below}</td>"
