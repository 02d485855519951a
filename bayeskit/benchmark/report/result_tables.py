"""The table of a comparison as Markdown and for a terminal, and the format of its entries."""

import math
from collections.abc import Sized
from typing import TYPE_CHECKING

from bayeskit.benchmark.run.metric_definitions import Metric
from bayeskit.benchmark.run.results import Results, Summary

if TYPE_CHECKING:
    from rich.table import Table

NOT_SIGNIFICANT = "≈"
"""Mark of a mean that is not significantly different from the best."""

OTHERS = {
    "log evidence (kind)": "log marginal likelihood of the training targets in nats, averaged over seeds, and how it "
    "was computed; a dash where the method computes none",
    "seeds": "number of seeds that finished, of those requested",
}
"""Definitions of the columns that are not metrics."""


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


def mean_and_error(summary: Summary, metric: Metric) -> str:
    """Mean and standard error with the same number of decimals, without marks."""
    mean = number(summary.mean, metric.digits)
    if math.isnan(summary.error):
        return mean
    if "e" in mean:
        return f"{mean} ± {summary.error:.1e}"
    return f"{mean} ± {summary.error:.{_decimals(summary.mean, metric.digits)}f}"


def _decimals(value: float, digits: int) -> int:
    """Decimals that show at most five significant digits."""
    size = math.floor(math.log10(abs(value))) if value and math.isfinite(value) else 0
    return min(digits, max(0, 4 - size))


def evidence(results: Results, method: str) -> str:
    """Mean log evidence with its kind, which is never ranked against another kind."""
    rows = [row for row in results.done(method) if row.get("log_evidence") is not None]
    if not rows:
        return "-"
    mean = sum(row["log_evidence"] for row in rows) / len(rows)
    return f"{number(mean, 1)} ({rows[0]['evidence_kind']})"


def heading(metric: Metric) -> str:
    """A column's heading with the direction that is better."""
    return f"{metric.title} {direction(metric)}"


def direction(metric: Metric) -> str:
    """An arrow for the direction that is better, with the target value where there is one."""
    return {"low": "↓", "high": "↑", "target": f"→ {metric.target:g}"}[metric.better]


def count(items: Sized, name: str) -> str:
    """The number of items with their name in singular or plural.

    >>> count([1, 2], "method"), count([1], "seed")
    ('2 methods', '1 seed')
    """
    return f"{len(items)} {name}{'' if len(items) == 1 else 's'}"


def finished(results: Results, method: str) -> str:
    """How many seeds a method finished."""
    return f"{len(results.done(method))} of {len(results.seeds)}"


def failures(results: Results) -> list[str]:
    """One line for each trial that did not finish, with the reason."""
    return [f"{row['method']}, seed {row['seed']}: {row['status']}: {row['reason']}" for row in results.failures]


def legend(results: Results) -> list[str]:
    """Sentences that explain the marks in the table."""
    seeds = len(results.seeds)
    if seeds == 1:
        first = "One seed: standard errors and significance tests need at least two."
    else:
        own = "split and initialization" if results.paired_by == "split" else "initialization, all on one split"
        test = "corrected resampled t-test" if results.paired_by == "split" else "t-test of the NLL"
        first = (
            f"Mean ± standard error over {seeds} seeds (each its own {own}). Best mean in bold; {NOT_SIGNIFICANT}: not "
            f"significantly different from the best ({test} paired by {results.paired_by}, 5 %, corrected by Holm)."
        )
    return [first, "Log evidence is in nats over the training set; only values of the same kind are comparable."]


def markdown(results: Results) -> str:
    """The table in Markdown with its legend and its failures."""
    columns = results.metrics
    head = ["method", *(heading(m) for m in columns), "log evidence (kind)", "seeds"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for method, values in results.summary.items():
        marked = [_marked(mean_and_error(values[m.key], m), values[m.key]) for m in columns]
        lines.append("| " + " | ".join([method, *marked, evidence(results, method), finished(results, method)]) + " |")
    failed = [f"- {failure}" for failure in failures(results)]
    parts = ["\n".join(lines), *legend(results)]
    parts += ["Trials that did not finish:\n\n" + "\n".join(failed)] if failed else []
    return "\n\n".join(parts) + "\n"


def terminal(results: Results) -> "Table":
    """The table for a terminal; failures and legend are left to the caller."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{results.name}, {results.task}", title_justify="left")
    table.add_column("method", style="bold", no_wrap=True)
    for metric in results.metrics:
        table.add_column(heading(metric), justify="right")
    table.add_column("log evidence", justify="right")
    for method, values in results.summary.items():
        texts = []
        for m in results.metrics:
            value = values[m.key]
            text = mean_and_error(value, m)
            mark = f" {NOT_SIGNIFICANT}" if value.not_significant else ""
            texts.append(f"[bold green]{text}[/]" if value.best else text + mark)
        table.add_row(escape(method), *texts, evidence(results, method))
    return table


def _marked(text: str, summary: Summary) -> str:
    return f"**{text}**" if summary.best else f"{text} {NOT_SIGNIFICANT}" if summary.not_significant else text
