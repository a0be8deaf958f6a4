"""``python -m tune_rescon.cluster``: start a Ray cluster from a file, submit searches, show it and stop it.

Exit: 0 done; 1 the cluster, or the search, failed; 2 the user's input is wrong; 130 interrupted.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from tune_rescon.command import progress_shown, run_command
from tune_rescon.command_options import HELP_SETTINGS, OptionsCommand
from tune_rescon.paths import expanded_path

__all__ = ["main"]

#: Width of a line, in characters, where the output is not a terminal.
PIPE_WIDTH: Final = 120

_PORT: Final = click.IntRange(1, 65535)

_FILE = click.argument("file", metavar="FILE", type=click.Path(path_type=Path))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    with progress_shown(click.echo):
        return run_command(cluster, argv, name="tune_rescon.cluster", what="The command")


class _Subcommand(OptionsCommand):
    above = ("cluster",)


class _Cluster(click.Group):
    command_class = _Subcommand


@click.group(cls=_Cluster, context_settings=HELP_SETTINGS)
def cluster() -> None:
    """Start a Ray cluster from a cluster.yaml, send it searches, watch it, and end it."""


@cluster.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
def check(files: tuple[Path, ...]) -> int:
    """Check each FILE for errors, needless cost and open access."""
    return max(_check(path) for path in files)


@cluster.command()
@_FILE
@click.option("--stack", required=True, metavar="NAME", help="The stack of cluster/aws/stack.yaml.")
@click.option("--region", metavar="REGION", help="The stack's region [default: as AWS is configured].")
def configure(file: Path, stack: str, region: str | None) -> int:
    """Write a CloudFormation stack's outputs into FILE.

    They go into the lines that are marked CHANGE.
    """
    from tune_rescon.clusters import configure_file, has_spot_role

    outputs, changes = configure_file(file, stack, region=region)
    for change in changes:
        click.echo(f"{file}:{change.line}: {change.place}: {change.before} -> {change.after}")
    if not changes:
        click.echo(f"{file} has the outputs of {stack} already.")
    if not has_spot_role(outputs.region):
        click.echo(
            "This account has no role for spot machines yet, so no worker could start. Create it once:"
        )
        click.echo("    aws iam create-service-linked-role --aws-service-name spot.amazonaws.com")
    return 0


@cluster.command()
@_FILE
@click.option("--yes", is_flag=True, help="Do not ask first.")
@click.option("--restart", is_flag=True, help="Restart Ray if it runs; this ends running jobs.")
@click.option(
    "--wait",
    type=float,
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="Time to wait for the workers.",
)
@click.option(
    "--end-after-idle",
    type=click.FloatRange(min=0, max=24 * 365),
    metavar="HOURS",
    help="Have the cluster end itself after HOURS without use; 0: never [default: as it was].",
)
def up(file: Path, yes: bool, restart: bool, wait: float, end_after_idle: float | None) -> int:
    """Start the cluster of FILE, or bring it up to date.

    Then count the workers that came.
    """
    from tune_rescon.clusters import bring_up, check_can_end, max_hourly_cost, read_cluster_file

    read = read_cluster_file(file)
    if end_after_idle:
        check_can_end(read)
    if _check(file) != 0:
        click.echo(f"Nothing was started: {file} has errors.", err=True)
        return 2
    if (most := max_hourly_cost(read)) is not None:
        click.echo(most)
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("Give --yes where no terminal can ask.")
        click.confirm(f"Start {read.name} ({read.provider})?", abort=True)
    bring_up(read, restart=restart, wait=wait, end_after_idle=end_after_idle)
    return 0


@cluster.command()
@_FILE
@click.option("--name", metavar="N", help="Name of the search.")
@click.option("--resume", metavar="N", help="Resume the search of this name.")
@click.option("--resume-or-start", metavar="N", help="Resume the search N if it exists, else start it.")
@click.option("--follow/--no-follow", default=True, help="Show its log until it ends [default: --follow].")
@click.option(
    "--down",
    is_flag=True,
    help="End the cluster once the job has ended, also if it failed. After Ctrl-C both continue.",
)
@click.option(
    "--train", is_flag=True, help="Run the finals of a search; the arguments are those of tune_rescon.train."
)
@click.argument("arguments", metavar="-- SEARCH ARGS...", nargs=-1, type=click.UNPROCESSED)
def submit(
    file: Path,
    name: str | None,
    resume: str | None,
    resume_or_start: str | None,
    follow: bool,
    down: bool,
    train: bool,
    arguments: tuple[str, ...],
) -> int:
    """Run a search on the cluster of FILE.

    The arguments after `--` are those of tune_rescon.search.
    """
    from tune_rescon.clusters import read_cluster_file, submit_job
    from tune_rescon.storage import check_name

    flags = {"--name": name, "--resume": resume, "--resume-or-start": resume_or_start}
    given = {flag: value for flag, value in flags.items() if value is not None}
    if len(given) > 1:
        raise click.UsageError(f"Give one of {' and '.join(given)}.")
    if down and not follow:
        raise click.UsageError("--down waits for the job's end: leave out --no-follow.")
    if train and resume_or_start is not None:
        raise click.UsageError("--resume-or-start is for a search: tune_rescon.train has --resume.")
    for flag, value in given.items():
        check_name(value, where=flag)
    read = read_cluster_file(file)
    module = "tune_rescon.train" if train else "tune_rescon.search"
    named = [word for option in given.items() for word in option]
    name = next(iter(given.values()), None)
    return submit_job(read, module, [*named, *arguments], name=name, follow=follow, down=down)


@cluster.command()
@_FILE
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def status(file: Path, as_json: bool) -> int:
    """Show the nodes, jobs and MLflow of the cluster of FILE."""
    from rich.console import Console

    from tune_rescon.clusters import ask_head, print_state, read_cluster_file

    state = ask_head(read_cluster_file(file))
    if as_json:
        click.echo(state.as_json())
    else:
        print_state(state, Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH))
    return 0


@cluster.command()
@_FILE
@click.option(
    "--mlflow-port", type=_PORT, default=5000, show_default=True, metavar="PORT", help="Of this machine."
)
@click.option(
    "--dashboard-port", type=_PORT, default=8265, show_default=True, metavar="PORT", help="Of this machine."
)
def tunnel(file: Path, mlflow_port: int, dashboard_port: int) -> int:
    """Open MLflow and Ray's dashboard on this machine, until Ctrl-C."""
    from tune_rescon.clusters import hold_tunnel, read_cluster_file

    if mlflow_port == dashboard_port:
        raise click.UsageError("--mlflow-port and --dashboard-port must differ.")
    hold_tunnel(read_cluster_file(file), mlflow=mlflow_port, dashboard=dashboard_port)
    return 0


@cluster.command()
@_FILE
def down(file: Path) -> int:
    """End the cluster of FILE, and list what may remain."""
    from tune_rescon.clusters import read_cluster_file, take_down

    take_down(read_cluster_file(file))
    return 0


@cluster.command()
@click.option("--port", type=_PORT, default=5000, show_default=True, metavar="PORT", help="To listen on.")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDR", help="To listen on.")
@click.option(
    "--database",
    envvar="TUNE_RESCON_MLFLOW_DATABASE",
    show_envvar=True,
    metavar="URL",
    help="MLflow's database [default: SQLite in the folder].",
)
@click.option("--artifacts", metavar="URL", help="Location of the artifacts [default: the folder].")
@click.option("--keep", metavar="URL", help="Where the SQLite database is copied to, and restored from.")
@click.option(
    "--allowed-hosts", metavar="HOSTS", help="Host names that requests may use [default: local ones]."
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("~/.tune_rescon/mlflow"),
    show_default=True,
    metavar="DIR",
    help="Folder of its files on this machine.",
)
@click.option("--end", is_flag=True, help="End the server of this folder, once its database is kept.")
def mlflow(
    port: int,
    host: str,
    database: str | None,
    artifacts: str | None,
    keep: str | None,
    allowed_hosts: str | None,
    folder: Path,
    end: bool,
) -> int:
    """Keep an MLflow server running on this machine, the head."""
    from tune_rescon.clusters import MlflowSettings, end_mlflow, supervise_mlflow

    folder = expanded_path(folder, where="--folder")
    if end:
        end_mlflow(folder)
        return 0
    if database is not None and keep is not None:
        raise click.UsageError("--keep is for the folder's SQLite: leave it out where there is a --database.")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    settings = MlflowSettings(
        folder=folder,
        host=host,
        port=port,
        database=database,
        artifacts=artifacts,
        keep=keep,
        allowed_hosts=allowed_hosts,
    )
    supervise_mlflow(settings)
    return 0


@cluster.command("end-when-idle", hidden=True)
@click.option(
    "--hours",
    type=click.FloatRange(min=0, max=24 * 365),
    metavar="HOURS",
    help="Set the hours without use, 0 for never, and watch in a background process.",
)
def end_when_idle(hours: float | None) -> int:
    """Watch this head, and end its cluster after hours without use. Run it on the head."""
    from tune_rescon.clusters import IdleFiles, head_actions, set_idle_hours, watch

    files = IdleFiles.of_head()
    if hours is not None:
        set_idle_hours(files, hours, log=Path.home() / "idle.log")
        return 0
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    watch(files, head_actions())
    return 0


@cluster.command(hidden=True)
@click.option("--json", "as_json", is_flag=True, required=True, help="Print one line of JSON.")
def inspect(as_json: bool) -> int:
    """Print the state of the cluster. Run it on the head."""
    from tune_rescon.clusters import inspect_head

    assert as_json
    click.echo(inspect_head().as_json())
    return 0


def _check(path: Path) -> int:
    """Print the findings of a file; return 2 if any of them is an error, else 0."""
    from tune_rescon.clusters.check import check_file

    findings = check_file(path)
    for finding in findings:
        click.echo(f"{path}:{finding}")
    return 2 if any(finding.severity == "error" for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(main())
