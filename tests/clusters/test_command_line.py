"""The flags of `python -m tune_rescon.cluster`."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from tests.test_command_options import LOG_FLAGS
from tune_rescon.cluster import cluster, main

#: The flags of each command, with the metavar of their values ("" for a flag without a value).
FLAGS = {
    "check": {},
    "configure": {"--stack": "NAME", "--region": "REGION"},
    "up": {"--yes": "", "--restart": "", "--wait": "SECONDS", "--end-after-idle": "HOURS"},
    "submit": {
        "--name": "N",
        "--resume": "N",
        "--resume-or-start": "N",
        "--follow": "",
        "--down": "",
        "--train": "",
    },
    "status": {"--json": ""},
    "tunnel": {"--mlflow-port": "PORT", "--dashboard-port": "PORT"},
    "down": {},
    "mlflow": {
        "--port": "PORT",
        "--host": "ADDR",
        "--database": "URL",
        "--artifacts": "URL",
        "--keep": "URL",
        "--allowed-hosts": "HOSTS",
        "--folder": "DIR",
        "--end": "",
    },
    "end-when-idle": {"--hours": "HOURS"},
    "inspect": {"--json": ""},
}


def test_flags_match_the_contract() -> None:
    found = {
        name: {
            option.opts[0]: "" if option.is_flag else option.metavar
            for option in command.params
            if isinstance(option, click.Option) and option.opts[0] not in LOG_FLAGS
        }
        for name, command in cluster.commands.items()
    }
    assert found == FLAGS


@pytest.mark.parametrize("command", FLAGS)
def test_help_names_every_flag(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert all(flag in captured.out for flag in FLAGS[command])


@pytest.mark.parametrize(
    "arguments", [["nope"], ["up"], ["up", "a", "b"], ["check"], ["mlflow", "--port", "x"]]
)
def test_bad_usage_exits_with_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "Error: " in capsys.readouterr().err


@pytest.mark.parametrize("port", ["0", "65536"])
@pytest.mark.parametrize(
    "arguments", [["mlflow", "--port"], ["tunnel", "f", "--mlflow-port"], ["tunnel", "f", "--dashboard-port"]]
)
def test_a_port_that_does_not_exist_is_refused(
    arguments: list[str], port: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, port]) == 2
    assert f"Invalid value for '{arguments[-1]}': {port} is not in the range" in capsys.readouterr().err


@pytest.mark.timeout(20)  # starts an interpreter
def test_the_module_imports_neither_ray_nor_mlflow() -> None:
    script = "import sys, tune_rescon.cluster as c; c.main(['status', 'nope.yaml']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.startswith("Error: FILE: must be a cluster's file")
    assert not {"ray", "mlflow", "torch"} & set(done.stdout.split())
