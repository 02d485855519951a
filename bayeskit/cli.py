"""The command line: `bayeskit compare` and `bayeskit methods`.

Exit codes: 0 done, 1 no trial finished, 2 an invalid argument (one sentence on stderr), 130 stopped by Ctrl-C.
"""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bayeskit.benchmark import Comparison

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def main() -> None:
    """Entry point of `bayeskit` and `python -m bayeskit`."""
    app()


@app.callback()
def _about() -> None:
    """Gaussian processes and Bayesian deep learning behind one posterior interface."""


_METHODS = (
    "Names separated by commas; 'stable': all but experimental ones; 'all'; or 'fast': the stable ones that run no "
    "Markov chain (nuts, sgld ...). A suffix (map+temperature, map+isotonic, map+conformal) calibrates post hoc."
)


@app.command()
def compare(  # noqa: PLR0917  # typer reads options off the signature
    data: Annotated[str, typer.Option(help="A name (diabetes, digits-0-4, openml:NAME ...) or a file.")] = "diabetes",
    target: Annotated[str | None, typer.Option(help="Column to predict; the last one if not given.")] = None,
    task: Annotated[str | None, typer.Option(help="regression or classification; inferred if not given.")] = None,
    methods: Annotated[str, typer.Option(help=_METHODS)] = "stable",
    seeds: Annotated[
        int | None, typer.Option(help="Number of seeds, each with its own split; 3, or that of the folds.")
    ] = None,
    groups: Annotated[
        str | None, typer.Option(help="Column whose equal rows are never in both training and test set.")
    ] = None,
    time: Annotated[str | None, typer.Option(help="Column of time: test rows are later than training rows.")] = None,
    folds: Annotated[int | None, typer.Option(help="Number of folds, one held out by each seed in turn.")] = None,
    ood: Annotated[str | None, typer.Option(help="Name or file whose inputs are out of distribution.")] = None,
    time_limit: Annotated[
        float | None, typer.Option(help="Seconds for each fit with its predictions; none if not given.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Folder for results and report; compare-NAME if not given.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Number of processes; that of the processors if not given.")] = None,
) -> None:
    """Compare the predictive uncertainty of several methods on one data set and write a report."""
    from bayeskit import benchmark

    names = (
        methods
        if methods in ("all", "stable", "fast")
        else [name.strip() for name in methods.split(",") if name.strip()]
    )
    try:
        comparison = benchmark.compare(
            data,
            target=target,
            task=task,  # type: ignore[arg-type]  # checked by `compare`
            methods=names,
            seeds=seeds,
            groups=groups,
            time=time,
            folds=folds,
            ood=ood,
            time_limit=time_limit,
            out=out,
            n_jobs=jobs,
            verbose=True,
        )
    except (ValueError, TypeError, FileNotFoundError) as error:
        print(f"bayeskit compare: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        print("stopped; run the same command to continue", file=sys.stderr)
        raise typer.Exit(130) from None
    _show(comparison)
    if not comparison.summary:
        raise typer.Exit(1)


@app.command()
def methods(
    task: Annotated[str | None, typer.Option(help="Only those that do regression, or classification.")] = None,
) -> None:
    """List the registered methods: name, family, tasks, status and a description."""
    from bayeskit import registry

    try:
        names = registry.names(task)  # type: ignore[arg-type]  # checked by `names`
    except ValueError as error:
        print(f"bayeskit methods: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    for name in names:
        entry, tasks = registry.METHODS[name], ", ".join(sorted(registry.tasks(name)))
        print(f"{name:<16} {entry.family:<4} {tasks:<27} {entry.status:<13} {registry.description(name)}")


def _show(comparison: "Comparison") -> None:
    """Print how the data were read, the table (by Rich at a terminal, else as Markdown), conclusions and the report."""
    from bayeskit.benchmark.report import result_tables, summary_text

    print(f"Task: {comparison.task}.", *comparison.notes)
    print()
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console()
        console.print(result_tables.terminal(comparison))
        for sentence in result_tables.legend(comparison):
            console.print(sentence, style="dim", markup=False)
        for failure in result_tables.failures(comparison):
            console.print(failure, style="red", markup=False)
    else:
        print(comparison.to_markdown())
    print()
    for sentence in summary_text.conclusions(comparison):
        print(sentence)
    print(f"Report: {comparison.report}")
