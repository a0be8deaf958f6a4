"""``python -m tune_rescon.search``: run a hyperparameter search over a space.

Exit: 0 done; 1 the search failed; 2 bad usage, space or data; 75 another driver runs the search that
``--resume-or-start`` names; 130 interrupted (and resumable).

No object of this module may be sent to a worker process: this file runs as ``__main__``, and the ``__main__``
of a worker process is another module.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from tune_rescon.command import print_line, progress_shown, run_command
from tune_rescon.command_options import (
    OptionsCommand,
    address_option,
    data_root_option,
    ordered_changes,
    plain_option,
    set_option,
    storage_option,
    study_option,
    tracking_uri_option,
)
from tune_rescon.errors import LeaseError, StorageError, counted, format_error

if TYPE_CHECKING:
    from rich.console import Console

    from tune_rescon.spaces import Space
    from tune_rescon.storage import StorageUrl
    from tune_rescon.tuning import RunOptions, SearchFolder

__all__ = ["main"]

#: The exit code of ``--resume-or-start`` if another driver runs the search (EX_TEMPFAIL: try again later).
HELD: Final = 75

#: The key of the space file that each option changes.
_KEYS: Final = {
    "trials": "budget.trials",
    "hours": "budget.hours",
    "concurrent": "budget.concurrent",
    "seed": "sampler.seed",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command(
        search,
        argv,
        name="tune_rescon.search",
        what="The search",
        interrupted="Interrupted before the first trial; nothing was started.",
    )


@click.command(
    cls=OptionsCommand,
    groups={
        "The search": ["--space", "--set", "--trials", "--hours", "--concurrent", "--seed"],
        "Its budget, by measuring": ["--quick", "--quality"],
        "Begin or resume": ["--name", "--resume", "--resume-or-start", "--warm-start", "--init-from"],
        "Where it runs and is kept": ["--storage", "--study", "--tracking-uri", "--data-root", "--address"],
        "Output": ["--dry-run", "--measure", "--tensorboard", "--plain"],
    },
)
@click.option("--space", "space_name", metavar="NAME|FILE", help="The search space: a shipped one or a file.")
@click.option("--name", metavar="N", help="Name of the search [default: the space's].")
@click.option("--resume", metavar="N", help="Resume the search of this name.")
@click.option(
    "--resume-or-start",
    metavar="N",
    help="Resume the search N if it exists, else start it: a command to be repeated until it is finished.",
)
@click.option("--warm-start", metavar="OTHER", help="Learn from the trials of this earlier search.")
@click.option(
    "--init-from",
    metavar="FILE",
    help="Initial weights of every trial: a best.ckpt, an exported .safetensors, a ResCon checkpoint.",
)
@click.option("--trials", type=int, metavar="N", help="Total number of trials, also on resume.")
@click.option(
    "--hours", type=float, metavar="H", help="Total hours, also on resume, after which no trial continues."
)
@click.option("--quick", is_flag=True, help="Choose epochs and trials for ten minutes of this machine.")
@click.option(
    "--quality",
    type=click.Choice(["good", "best"]),
    metavar="good|best",
    help="Choose epochs and trials for one hour (good) or eight (best).",
)
@click.option("--concurrent", type=int, metavar="N", help="Maximum number of trials at once.")
@click.option("--seed", type=int, metavar="S", help="Seed of the sampler and of the trials.")
@storage_option
@study_option("The study's database [default: SQLite in the storage].")
@tracking_uri_option
@data_root_option
@address_option
@set_option("Change a key of the space file.")
@click.option("--dry-run", is_flag=True, help="Show what would be searched, and its cost, and stop.")
@click.option(
    "--measure",
    is_flag=True,
    help="With --dry-run: time the first networks on this machine, in seconds each.",
)
@click.option(
    "--tensorboard",
    is_flag=True,
    help="Write TensorBoard's files too, to tensorboard/ in the search's folder; of a storage at a URL, to"
    " this machine's copy of it only.",
)
@plain_option
def search(
    space_name: str | None,
    name: str | None,
    resume: str | None,
    resume_or_start: str | None,
    warm_start: str | None,
    init_from: str | None,
    trials: int | None,
    hours: float | None,
    quick: bool,
    quality: str | None,
    concurrent: int | None,
    seed: int | None,
    storage: str | None,
    study: str | None,
    tracking_uri: str | None,
    data_root: str | None,
    address: str | None,
    settings: tuple[str, ...],
    dry_run: bool,
    measure: bool,
    tensorboard: bool,
    plain: bool,
) -> int:
    """Search a space of Residual Attention Networks with Ray Tune, ASHA and Optuna, and log to MLflow."""
    from tune_rescon.reporting import open_console, print_opening
    from tune_rescon.tuning import RunOptions, fit_to_machine, resolve_data_root, resolve_storage

    root = resolve_storage(storage)
    _check_names({"--name": name, "--resume": resume, "--resume-or-start": resume_or_start})
    _check_required(space_name, resume_or_start, measure=measure, dry_run=dry_run)
    if resume is not None:
        _check_new({"--warm-start": warm_start, "--init-from": init_from})
        if not dry_run:
            print_line(f"Resuming {resume} from {root}")
    shortcuts = {"trials": trials, "hours": hours, "concurrent": concurrent, "seed": seed}
    changes = _changes(shortcuts, settings, init_from)
    with progress_shown(print_line):
        space = _load(space_name, resume, root, changes)
    data = resolve_data_root(data_root)
    effort = _effort(quick, quality, resumes=resume or resume_or_start, address=address)
    if effort is not None:
        fitted = _fitted(space, effort, data_root=data)
        space = _load(space_name, None, root, [*fitted, *changes])
    with open_console(plain=plain) as console:
        if dry_run:
            if warm_start is not None:
                _find(root, warm_start, where="--warm-start")
            _check_resumed(space, root, study, resume=resume, resume_or_start=resume_or_start)
            _print_dry_run(space, console, data_root=data, measure=measure, is_here=address is None)
            return 0
        options = RunOptions(
            name=resume_or_start or resume or name or space.name,
            resume=resume is not None,
            resume_or_start=resume_or_start is not None,
            storage=root,
            study_url=study,
            tracking_uri=tracking_uri,
            data_root=data,
            address=address,
            warm_start=warm_start,
            show_progress=console.is_interactive,
            divert_output=True,
            tensorboard=tensorboard,
        )
        if address is None:
            # An error must come before the first line of output, which reports that the search begins.
            fit_to_machine(space)
        print_opening(space, options, console)
        return _run(space, options, console)


def _changes(
    shortcuts: Mapping[str, float | None], settings: Sequence[str], init_from: str | None
) -> list[str]:
    """Return the changes to the space file: those of the options in ``shortcuts``, then ``--set``."""
    return ordered_changes(
        {
            **{name: [f"{_KEYS[name]}={value}"] for name, value in shortcuts.items()},
            "settings": settings,
            # Last, because `--set fixed={...}` would drop it. Quoted, because a path may contain YAML syntax.
            "init_from": [f"fixed.init_from={json.dumps(init_from)}"],
        }
    )


def _check_resumed(
    space: Space,
    storage: Path | StorageUrl,
    study: str | None,
    *,
    resume: str | None,
    resume_or_start: str | None,
) -> None:
    """Check that the search, if it has begun, can be resumed with ``space``, and print what it has run.

    Args:
        space: The space to resume the search with.
        storage: Where the searches are.
        study: The URL of ``--study``, or None.
        resume: The name of the search to resume, or None.
        resume_or_start: The name of the search to resume or start, or None.

    Raises:
        StorageError: If the record cannot be read.
        SpaceError: If a change is refused.
    """
    from tune_rescon.tuning import SearchLocation, read_search, with_store_size
    from tune_rescon.tuning.prepare import with_absolute_paths
    from tune_rescon.tuning.resume import check_changes
    from tune_rescon.tuning.search_storage import has_begun

    name, flag = resume or resume_or_start, "--resume" if resume else "--resume-or-start"
    location = SearchLocation(storage=storage, study_url=study)
    if name is None or not has_begun(location, name):
        return
    result = read_search(location, name, where=flag)
    new = with_store_size(with_absolute_paths(space), result.space)
    check_changes(name, result.space, new, result.trials, flag=flag)
    print_line(f"{name} has {counted(len(result.trials), 'trial')} already; below is the whole search.")


def _print_dry_run(space: Space, console: Console, *, data_root: Path, measure: bool, is_here: bool) -> None:
    """Print what the search would do and cost and, if it would run on this machine, what this machine has."""
    from tune_rescon.reporting import print_dry_run
    from tune_rescon.tuning import machine_message

    print_dry_run(space, console, data_root=data_root, measure=measure)
    if is_here:
        console.print(machine_message(space), markup=False, highlight=False, soft_wrap=True)


def _run(space: Space, options: RunOptions, console: Console) -> int:
    """Run the search and return the exit code."""
    # Imported after the first line of output, because it imports the driver's libraries.
    from tune_rescon.finals import FinalsPresentation, print_finals
    from tune_rescon.inference import write_mistakes
    from tune_rescon.reporting import SearchPresentation, print_result, resume_command, run_with_display

    # The space may be that of final trainings, which `train` has begun.
    is_final = space.metric.of_test_images
    presentation = FinalsPresentation if is_final else SearchPresentation
    try:
        return run_with_display(
            space,
            options,
            console,
            resume=resume_command(options, "tune_rescon.train" if is_final else "tune_rescon.search"),
            presentation=presentation(partial(write_mistakes, options=options)),
            show_result=print_finals if is_final else print_result,
        )
    except LeaseError as error:
        if not options.resume_or_start:
            raise
        print_line(f"Error: {error}", err=True)
        return HELD


def _load(
    space_name: str | None, resume: str | None, storage: Path | StorageUrl, overrides: Sequence[str]
) -> Space:
    from tune_rescon.spaces import load_space

    if resume is None:
        if space_name is None:
            raise click.UsageError("Give --space NAME|FILE, or --resume NAME to resume a search.")
        return load_space(space_name, overrides)
    if space_name is not None:
        hint = "Leave out --space; --trials and --set can change it."
        rule = "a resumed search keeps its own space"
        raise StorageError(format_error(rule, got=f"--space {space_name}", where="--resume", hint=hint))
    return load_space(str(_find(storage, resume, where="--resume").space_yaml), overrides)


def _effort(quick: bool, quality: str | None, *, resumes: str | None, address: str | None) -> str | None:
    """Return the effort for which the budget is chosen; None to leave it as it is."""
    if not quick and quality is None:
        return None
    flag = "--quick" if quick else "--quality"
    if quick and quality is not None:
        raise click.UsageError("Give one of --quick and --quality.")
    if resumes is not None:
        raise click.UsageError(f"{flag} is for a new search; --hours extends one that is resumed.")
    if address is not None:
        raise click.UsageError(f"{flag} measures this machine, so it cannot be used with --address.")
    return "quick" if quick else quality


def _fitted(space: Space, effort: str, *, data_root: Path) -> list[str]:
    """Measure networks and return the settings of the budget of the effort, which must precede the user's."""
    from tune_rescon.reporting.dry_run import EFFORTS, fit_to_hours

    settings, message = fit_to_hours(space, EFFORTS[effort], data_root=data_root, progress=print_line)
    print_line(message)
    return settings


def _find(storage: Path | StorageUrl, name: str, *, where: str) -> SearchFolder:
    from tune_rescon.tuning import SearchLocation, find_search

    return find_search(SearchLocation(storage=storage), name, where=where)


def _check_names(given: Mapping[str, str | None]) -> None:
    """Check that at most one of the flags is given, with a valid name.

    An empty name, as of a shell's variable that is not set, must not stand for the space's.
    """
    from tune_rescon.storage import check_name

    flags = [flag for flag, value in given.items() if value is not None]
    if len(flags) > 1:
        raise click.UsageError(f"Give one of {' and '.join(flags)}.")
    for flag in flags:
        check_name(given[flag] or "", where=flag)


def _check_required(
    space_name: str | None, resume_or_start: str | None, *, measure: bool, dry_run: bool
) -> None:
    """Check that an option which requires another one is given with it."""
    if measure and not dry_run:
        raise click.UsageError("--measure goes with --dry-run.")
    if resume_or_start is not None and space_name is None:
        raise click.UsageError("Give --space NAME|FILE with --resume-or-start, which may have to start.")


def _check_new(given: Mapping[str, str | None]) -> None:
    """Check that no flag is given which applies only to a new search."""
    for flag, value in given.items():
        if value is not None:
            hint = f"Leave out {flag}, or start a search with another --name."
            rule = "a resumed search keeps what it began with"
            raise StorageError(format_error(rule, got=f"{flag} {value}", where="--resume", hint=hint))


if __name__ == "__main__":
    sys.exit(main())
