"""``python -m tune_rescon.train``: train the best trials of a search, or a published network.

Each training is run in full, and its network is evaluated once.

Exit: 0 done; 1 every training failed; 2 bad usage, search or data; 130 interrupted (and resumable).

No object of this module may be sent to a worker process: this file runs as ``__main__``, and the ``__main__``
of a worker process is another module.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import click
from click.core import ParameterSource

from tune_rescon.command import print_line, run_command
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
from tune_rescon.config import DatasetConfig, trial_name
from tune_rescon.errors import StorageError, counted, format_error

if TYPE_CHECKING:
    from rich.console import Console

    from tune_rescon.config import TrialConfig
    from tune_rescon.spaces import Space
    from tune_rescon.tuning import RunOptions, SearchLocation, StudyResult

__all__ = ["main"]

#: Suffix of the default name of the final trainings of a search.
SUFFIX: Final = "-final"

#: Number of configurations to train if neither --top nor --trial is given.
TOP: Final = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command(
        train,
        argv,
        name="tune_rescon.train",
        what="The training",
        interrupted="Interrupted before the first training; nothing was started.",
    )


_SOURCES: Final = {"--from", "--preset", "--resume"}

#: The sources with which an option may be given. An option that is not listed may be given with every source.
_GOES_WITH: Final = {
    **dict.fromkeys(("--top", "--trial", "--budget"), ("--from",)),
    **dict.fromkeys(("--dataset", "--recipe"), ("--preset",)),
    **dict.fromkeys(
        ("--name", "--seeds", "--seed", "--epochs", "--image-size", "--init-from"), ("--from", "--preset")
    ),
}


@click.command(
    cls=OptionsCommand,
    groups={
        "What is trained": [
            *("--from", "--top", "--trial", "--preset", "--recipe", "--dataset", "--init-from", "--set"),
        ],
        "How": ["--seeds", "--epochs", "--budget", "--image-size", "--concurrent", "--seed"],
        "Begin or resume": ["--name", "--resume"],
        "Where it runs and is kept": ["--storage", "--study", "--tracking-uri", "--data-root", "--address"],
        "Output": ["--dry-run", "--plain"],
    },
)
@click.option("--from", "source", metavar="NAME", help="The search whose trials are trained.")
@click.option(
    "--preset", metavar="NAME", help="A network by name, instead: attention56, cifar_attention92, ..."
)
@click.option("--resume", metavar="N", help="Resume the trainings of this name.")
@click.option(
    "--name", metavar="N", help="Name of the trainings [default: NAME-final, or PRESET-DATASET-RECIPE]."
)
@click.option(
    "--top", type=click.IntRange(1), help="Number of the best trials of --from to train [default: 3]."
)
@click.option(
    "--trial",
    "numbers",
    type=click.IntRange(0),
    multiple=True,
    metavar="N",
    help="A trial of --from, finished or not, instead of its best; may be repeated.",
)
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Trainings of each configuration, each with another seed.",
)
@click.option(
    "--epochs", type=click.IntRange(1), help="Epochs of each training [default: the search's or recipe's]."
)
@click.option("--budget", metavar="TIME", help="As many epochs as fit into 2h, 90m, ...; with --from.")
@click.option(
    "--image-size", type=click.IntRange(16), metavar="P", help="Image size in pixels, instead of the trial's."
)
@click.option("--init-from", metavar="FILE", help="Initial weights, as for a search.")
@click.option("--dataset", default="cifar10", show_default=True, help="With --preset: a name, or a path.")
@click.option("--recipe", default="modern", show_default=True, help="With --preset: paper, rescon, modern.")
@storage_option
@study_option("The studies' database [default: SQLite in the storage].")
@tracking_uri_option
@data_root_option
@address_option
@click.option(
    "--concurrent", type=click.IntRange(1), metavar="N", help="Maximum number of trainings at once."
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    metavar="S",
    default=0,
    show_default=True,
    help="Seed from which all seeds are derived.",
)
@set_option("Change a key of the space.")
@click.option("--dry-run", is_flag=True, help="Show what would be trained, and its cost, and stop.")
@plain_option
def train(
    source: str | None,
    preset: str | None,
    resume: str | None,
    name: str | None,
    top: int | None,
    numbers: tuple[int, ...],
    seeds: int,
    epochs: int | None,
    budget: str | None,
    image_size: int | None,
    init_from: str | None,
    dataset: str,
    recipe: str,
    storage: str | None,
    study: str | None,
    tracking_uri: str | None,
    data_root: str | None,
    address: str | None,
    concurrent: int | None,
    seed: int,
    settings: tuple[str, ...],
    dry_run: bool,
    plain: bool,
) -> int:
    """Train the best of a search, or a network by name, in full, and evaluate it on the test images.

    Nothing is held out of the training images. Each configuration is trained --seeds times, without early
    stopping; each network sees the test images once, after its last epoch.
    """
    from tune_rescon.reporting import open_console, print_opening
    from tune_rescon.tuning import RunOptions, SearchLocation, resolve_data_root, resolve_storage

    chosen = _check_options()
    # An option on the command line counts before the variables of the other two.
    source, preset, resume = (
        value if flag == chosen else None
        for flag, value in (("--from", source), ("--preset", preset), ("--resume", resume))
    )
    if not dry_run:
        print_line(f"Preparing the training of {resume or source or preset}")
    data = resolve_data_root(data_root)
    location = SearchLocation(storage=resolve_storage(storage), study_url=study, data_root=data)
    own = {"concurrent": [f"budget.concurrent={concurrent}"], "settings": settings}
    flags = _Flags(
        name=name,
        top=TOP if top is None else top,
        numbers=numbers,
        seeds=seeds,
        epochs=epochs,
        budget=budget,
        image_size=image_size,
        concurrent=concurrent,
        seed=seed,
        dry_run=dry_run,
        settings=ordered_changes(
            {
                "epochs": [f"fidelity.max={epochs}"],
                **own,
                # Last, because a --set of the whole section would drop it.
                "init_from": [f"fixed.init_from={json.dumps(init_from)}"],
            }
        ),
    )
    with open_console(plain=plain) as console:
        if resume is not None:
            space = _resumed(location, resume, ordered_changes(own))
        elif source is not None:
            space = _from_search(location, source, flags, console)
        else:
            assert preset is not None, "one of the three is given"
            space = _from_preset(preset, dataset, recipe, flags)
        if dry_run:
            from tune_rescon.reporting import print_dry_run

            print_dry_run(space, console, data_root=data)
            return 0
        options = RunOptions(
            name=resume or space.name,
            resume=resume is not None,
            storage=location.storage,
            study_url=study,
            tracking_uri=tracking_uri,
            data_root=data,
            address=address,
            show_progress=console.is_interactive,
            divert_output=True,
        )
        print_opening(space, options, console)
        return _run(space, options, console)


def _check_options() -> str:
    """Check that the options may be given together, and return the source of the trainings.

    An option without an effect is refused. Its variable is not: it may be set for other calls.

    Raises:
        click.UsageError: the options may not be given together.
    """
    context = click.get_current_context()
    ways = {one.opts[0]: context.get_parameter_source(one.name or "") for one in context.command.params}
    typed = {flag for flag, way in ways.items() if way is ParameterSource.COMMANDLINE}
    given = typed | {flag for flag, way in ways.items() if way is ParameterSource.ENVIRONMENT}
    sources = typed & _SOURCES or given & _SOURCES
    if len(sources) != 1:
        raise click.UsageError("Give one of --from NAME, --preset NAME and --resume NAME.")
    (source,) = sources
    for option in sorted(typed):
        goes_with = _GOES_WITH.get(option, (source,))
        if source not in goes_with:
            raise click.UsageError(f"{option} goes with {' and '.join(goes_with)}, not with {source}.")
    for option, other in (("--budget", "--epochs"), ("--trial", "--top")):
        if source in _GOES_WITH[option] and {option, other} <= given:
            raise click.UsageError(f"{option} replaces {other}; give one, as an option or a variable.")
    return source


def _run(space: Space, options: RunOptions, console: Console) -> int:
    """Run the trainings and return the exit code."""
    # Imported after the first line of output, because these modules import the driver's libraries.
    from tune_rescon.finals import FinalsPresentation, print_finals
    from tune_rescon.inference import write_mistakes
    from tune_rescon.reporting import resume_command, run_with_display

    return run_with_display(
        space,
        options,
        console,
        resume=resume_command(options, "tune_rescon.train"),
        presentation=FinalsPresentation(partial(write_mistakes, options=options)),
        show_result=print_finals,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Flags:
    """The options of the trainings, which are the same for every source of configurations."""

    name: str | None
    top: int
    numbers: tuple[int, ...]
    """The trials to train; empty: the best ``top``."""
    seeds: int
    epochs: int | None
    budget: str | None
    image_size: int | None
    concurrent: int | None
    seed: int
    dry_run: bool
    settings: Sequence[str]


def _resumed(location: SearchLocation, name: str, settings: Sequence[str]) -> Space:
    from tune_rescon.spaces import load_space
    from tune_rescon.tuning import command_at, find_search

    folder = find_search(location, name, where="--resume")
    space = load_space(str(folder.space_yaml), settings, drop_rows=False)
    if not space.metric.of_test_images:
        command = command_at(location, ["python", "-m", "tune_rescon.search", "--resume", name])
        hint = f"Resume it with: {command}"
        rule = "must name trainings that `tune_rescon.train` has started"
        raise StorageError(format_error(rule, got=f"{name}, a search", where="--resume", hint=hint))
    return space


def _from_search(location: SearchLocation, source: str, flags: _Flags, console: Console) -> Space:
    from tune_rescon.finals import (
        TrainingPlan,
        changed_layout,
        changes_since,
        finals_space,
        image_growth,
        limit_message,
        of_dataset,
    )
    from tune_rescon.tuning import read_search

    result = read_search(location, source, where="--from")
    chosen, about = _finalists(result, flags, console)
    configs, dataset = of_dataset(chosen, result.space)
    growth = image_growth(dataset, location.data_root)
    if flags.image_size is not None:
        if (dataset.store_size or 0) < flags.image_size:
            # The search's squares are too small for the larger images.
            dataset = dataclasses.replace(dataset, store_size=None)
        configs = tuple(dataclasses.replace(config, image_size=flags.image_size) for config in configs)
    configs = tuple(dict.fromkeys(configs))
    trainings = flags.seeds * len(configs)
    epochs, message = _planned_epochs(result, chosen, flags, growth=growth, trainings=trainings)
    console.print(message, soft_wrap=True)
    space = finals_space(
        flags.name or f"{source}{SUFFIX}",
        configs,
        TrainingPlan(
            epochs=epochs,
            seeds=flags.seeds,
            seed=flags.seed,
            resources=result.space.resources_per_trial,
            concurrent=flags.concurrent or result.space.budget.concurrent,
        ),
        dataset=dataset,
        about=f"{about}, trained to the last epoch.",
        overrides=flags.settings,
    )
    changes = changes_since(result, space, location, decode=not flags.dry_run)
    for words in filter(None, [limit_message(space), changed_layout(chosen, space), *changes]):
        console.print(words, markup=False, soft_wrap=True)
    return space


def _finalists(result: StudyResult, flags: _Flags, console: Console) -> tuple[tuple[TrialConfig, ...], str]:
    """Return the configurations to train, and their description."""
    from tune_rescon.finals import top_configs, trial_configs

    if flags.numbers:
        names = ", ".join(map(trial_name, flags.numbers))
        return trial_configs(result, flags.numbers), f"{names} of the search {result.name}"
    configs = top_configs(result, flags.top)
    if len(configs) < flags.top:
        reached = f"Configurations of {result.name} that reached its last epoch"
        console.print(f"{reached}: {len(configs)}, not {flags.top}.")
    return configs, f"The best of the search {result.name}"


def _planned_epochs(
    result: StudyResult, configs: Sequence[TrialConfig], flags: _Flags, *, growth: float, trainings: int
) -> tuple[int, str]:
    """Return the number of epochs of each training, and a message with the time that all trainings take.

    ``growth`` is the ratio of the finals' number of training images to the search's, ``trainings`` the number
    of trainings of ``configs``, of which another image size may make several the same.
    """
    from tune_rescon.finals import (
        as_trained_now,
        epochs_within,
        finals_seconds,
        read_duration,
        seconds_per_epoch,
    )
    from tune_rescon.reporting.formatting import roughly
    from tune_rescon.reporting.timeline import timeline

    trained = as_trained_now(result, configs)
    seconds = growth * seconds_per_epoch(trained, configs, image_size=flags.image_size)
    slots = max(1, timeline(trained).slots)
    if flags.concurrent is not None:
        slots = min(slots, flags.concurrent)
    epochs = flags.epochs or result.space.fidelity.max
    if flags.budget is not None:
        epochs = epochs_within(
            read_duration(flags.budget), seconds, configs, trainings=trainings, slots=slots
        )
    total = finals_seconds(seconds, epochs=epochs, trainings=trainings, slots=slots)
    message = (
        f"{counted(trainings, 'training')} of {counted(epochs, 'epoch')}, {roughly(total)} if an epoch"
        f" takes as long as in {result.name} and {slots} run at once as there"
    )
    return epochs, message


def _from_preset(preset: str, dataset: str, recipe: str, flags: _Flags) -> Space:
    from tune_rescon.finals import TrainingPlan, finals_space, find_recipe, local_resources, preset_config

    how = find_recipe(recipe)
    images, epochs = _images(dataset), flags.epochs or how.epochs
    return finals_space(
        flags.name or f"{preset}-{images.name}-{recipe}",
        [preset_config(preset, how, epochs=epochs, image_size=flags.image_size)],
        TrainingPlan(
            epochs=epochs,
            seeds=flags.seeds,
            seed=flags.seed,
            resources=local_resources(),
            concurrent=flags.concurrent,
        ),
        dataset=images,
        about=f"{preset} on {images.name} by the recipe {recipe} ({how.about}).",
        overrides=flags.settings,
    )


def _images(dataset: str) -> DatasetConfig:
    """Return the dataset of a name, of the path of a folder or .zip, or of a URL.

    A known name comes first: a folder ``cifar10`` in the current directory is given as ``./cifar10``.
    """
    from tune_rescon.data import is_url, list_datasets, local_path

    if dataset in list_datasets():
        return DatasetConfig(name=dataset)
    if is_url(dataset):
        return DatasetConfig(name="folder", path=dataset)
    if (path := local_path(dataset)).exists():
        return DatasetConfig(name="folder", path=str(path))
    return DatasetConfig(name=dataset)


if __name__ == "__main__":
    sys.exit(main())
