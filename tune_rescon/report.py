"""``python -m tune_rescon.report``: report on searches, compare them and list them.

Exit: 0 done; 1 the report failed; 2 bad usage, or unknown search; 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from rich.console import Console

from tune_rescon.command import print_line, progress_shown, run_command
from tune_rescon.command_options import (
    OptionsCommand,
    data_root_option,
    storage_option,
    study_option,
)
from tune_rescon.errors import counted
from tune_rescon.paths import check_output_file, expanded_path, writing_file

if TYPE_CHECKING:
    from tune_rescon.tuning import SearchLocation, StudyResult

__all__ = ["main"]

#: Seconds within which MLflow must accept the missing updates.
SYNC_TIMEOUT: Final = 120.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command(report, argv, name="tune_rescon.report", what="The report")


@click.command(
    cls=OptionsCommand,
    groups={
        "What is shown": ["--list", "--compare", "--storage", "--study"],
        "Form": ["--json", "--markdown", "--csv", "--html"],
        "MLflow": ["--sync"],
        "Errors": ["--errors", "--data-root"],
    },
)
@click.argument("name", required=False)
@storage_option
@study_option("The study's database, if the search was started with --study.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print a summary in markdown.")
@click.option("--csv", "as_csv", is_flag=True, help="Print a line for each trial.")
@click.option("--html", "html_file", metavar="FILE", help="Write the page that a browser opens.")
@click.option("--sync", is_flag=True, help="Send MLflow the missing updates.")
@click.option(
    "--errors",
    "errors_file",
    metavar="FILE",
    help="Evaluate the best network, and write a page with its confusion matrix and most confident mistakes.",
)
@data_root_option
@click.option("--list", "list_all", is_flag=True, help="List the searches of the storage.")
@click.option(
    "--compare", "others", multiple=True, metavar="OTHER", help="Another search to compare; may be repeated."
)
def report(
    name: str | None,
    storage: str | None,
    study: str | None,
    as_json: bool,
    as_markdown: bool,
    as_csv: bool,
    html_file: str | None,
    sync: bool,
    errors_file: str | None,
    data_root: str | None,
    list_all: bool,
    others: tuple[str, ...],
) -> int:
    """Report on the search NAME, while it runs or after."""
    form_flags = {
        "--json": as_json,
        "--markdown": as_markdown,
        "--csv": as_csv,
        "--html": html_file is not None,
    }
    forms = [flag for flag, is_given in form_flags.items() if is_given]
    action_flags = {"--list": list_all, "--sync": sync, "--errors": errors_file is not None}
    _check_flags(name, forms, [flag for flag, is_given in action_flags.items() if is_given], others)
    page, errors_page = (
        None if file is None else expanded_path(file, where=flag)
        for flag, file in (("--html", html_file), ("--errors", errors_file))
    )
    for flag, path in (("--html", page), ("--errors", errors_page)):
        if path is not None:
            check_output_file(path, where=flag)
    if sync:
        print_line(f"Reading {name} to send MLflow the missing updates", err=True)
    elif sys.stderr.isatty():
        print_line("Reading the storage" if list_all else f"Reading {name}", err=True)
    location = _location(storage, study)
    if list_all:
        _list(location, as_json=as_json)
        return 0
    assert name is not None, "checked above"
    if sync:
        return _sync(location, name)
    if errors_page is not None:
        return _write_errors(location, name, errors_page, data_root)
    results = _read(location, name, others)
    if page is not None:
        _write_page(results, page)
    elif forms:
        click.echo(_text(forms[0], results), nl=False)
    else:
        _show(results)
    return 0


def _check_flags(
    name: str | None, forms: Sequence[str], actions: Sequence[str], others: Sequence[str]
) -> None:
    """Check that the flags go together.

    Args:
        name: the search.
        forms: the given flags that choose a form.
        actions: the given flags that do something other than show a search.
        others: the searches to compare.
    """
    for flags in (forms, actions):
        if len(flags) > 1:
            raise click.UsageError(f"Give one of {' and '.join(flags)}.")
    if actions == ["--list"]:
        if name is not None or others or set(forms) - {"--json"}:
            raise click.UsageError("--list takes no NAME, and no form but --json.")
    elif name is None:
        raise click.UsageError("Give the NAME of a search, or --list to see their names.")
    elif actions and (forms or others):
        raise click.UsageError(f"{actions[0]} takes a NAME alone.")


def _sync(location: SearchLocation, name: str) -> int:
    from tune_rescon.finals import FinalsPresentation
    from tune_rescon.reporting import SearchPresentation
    from tune_rescon.tuning import sync_tracking

    def present(result: StudyResult) -> SearchPresentation:
        return FinalsPresentation() if result.space.metric.of_test_images else SearchPresentation()

    with progress_shown(click.echo):
        done = sync_tracking(location, name, timeout=SYNC_TIMEOUT, present=present)
    if not done.pending_updates:
        print_line(f"MLflow shows all {counted(done.trials, 'trial')} of {name}: {done.uri}")
        return 0
    click.echo(
        f"The report failed: {done.uri} did not accept {counted(done.pending_updates, 'update')}"
        f" ({done.last_error.rstrip('.') or f'in {SYNC_TIMEOUT:g} s'})."
        " All updates are in the study: try again when MLflow accepts them.",
        err=True,
    )
    return 1


def _write_errors(location: SearchLocation, name: str, path: Path, data_root: str | None) -> int:
    """Write the page of the mistakes of a search's best network."""
    from tune_rescon.atomic_write import atomic_write
    from tune_rescon.inference import find_search_mistakes, load_model, mistakes_document, mistakes_lines
    from tune_rescon.reporting import mistakes_page
    from tune_rescon.tuning import default_cache_root, read_search, resolve_data_root

    result = read_search(location, name)
    network, about = load_model(name, location)
    mistakes, split_name = find_search_mistakes(
        result,
        network,
        about,
        data_root=resolve_data_root(data_root),
        cache_root=default_cache_root(),
    )
    for line in mistakes_lines(mistakes, split_name=split_name):
        print_line(line)
    title = f"{name}: what its best network gets wrong"
    page = mistakes_page(mistakes_document(mistakes, split_name=split_name), title=title)
    with writing_file(path, where="--errors"), atomic_write(path) as scratch:
        scratch.write_text(page, encoding="utf-8")
    print_line(f"Errors: {path}")
    return 0


def _location(storage: str | None, study: str | None) -> SearchLocation:
    from tune_rescon.tuning import SearchLocation, resolve_storage

    return SearchLocation(storage=resolve_storage(storage), study_url=study)


def _read(location: SearchLocation, name: str, others: Sequence[str]) -> list[StudyResult]:
    from tune_rescon.tuning import read_search

    # Each search once: the curves of one that is given twice would cover each other.
    distinct = [other for other in dict.fromkeys(others) if other != name]
    return [
        read_search(location, name),
        *(read_search(location, other, where="--compare") for other in distinct),
    ]


def _text(form: str, results: Sequence[StudyResult]) -> str:
    from tune_rescon.reporting import csv_text, json_text, markdown_text

    result, *compared = results
    if form == "--csv":
        return csv_text(results)
    return f"{json_text(result, compared)}\n" if form == "--json" else markdown_text(result, compared)


def _write_page(results: Sequence[StudyResult], path: Path) -> None:
    from tune_rescon.reporting import write_report

    result, *compared = results
    with writing_file(path, where="--html"):
        write_report(result, path, compared=compared)
    print_line(f"Report: {path}")


def _show(results: Sequence[StudyResult]) -> None:
    from tune_rescon.reporting import print_comparison, print_result

    console = _console()
    console.print(f"{results[0].name}: {results[0].state.value}", markup=False)
    print_result(results[0], console, from_record=True)
    if len(results) > 1:
        print_comparison(results, console)


def _list(location: SearchLocation, *, as_json: bool) -> None:
    from tune_rescon.reporting import overviews_json, print_overviews
    from tune_rescon.tuning import list_searches

    overviews = list_searches(location)
    if as_json:
        click.echo(overviews_json(overviews))
    elif overviews:
        print_overviews(overviews, _console(), now=datetime.now(UTC))
    else:
        print_line(f"There is no search in {location.storage} yet.")


def _console() -> Console:
    from tune_rescon.reporting.terminal import PIPE_WIDTH

    # In a file or a pipe, tables are as wide as they need to be.
    return Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


if __name__ == "__main__":
    sys.exit(main())
