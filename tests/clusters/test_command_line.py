"""The flags of `python -m tune_rescon.cluster`, as the contract has them."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from tests.test_command_options import LOG_FLAGS
from tune_rescon.cluster import cluster, main

#: A command's flags, and the word for each value ("" = none).
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
    said = capsys.readouterr()
    assert said.err == ""
    assert all(flag in said.out for flag in FLAGS[command])


@pytest.mark.parametrize("words", [["nope"], ["up"], ["up", "a", "b"], ["check"], ["mlflow", "--port", "x"]])
def test_bad_usage_exits_with_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "Error: " in capsys.readouterr().err


@pytest.mark.timeout(20)  # an interpreter
def test_the_module_imports_neither_ray_nor_mlflow() -> None:
    script = "import sys, tune_rescon.cluster as c; c.main(['status', 'nope.yaml']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.startswith("Error: FILE: must be a cluster's file")
    assert not {"ray", "mlflow", "torch"} & set(done.stdout.split())
