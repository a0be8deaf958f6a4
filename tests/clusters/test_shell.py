"""The shell parser: the environment variables of a `ray start` match those that bash passes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tune_rescon.clusters.shared_rules import ray_starts
from tune_rescon.clusters.shell import ShellSyntaxError, commands_in

#: A script, and whether its only `ray start` gets RAY_AUTH_MODE=token.
MODES: list[tuple[str, bool]] = [
    ("RAY_AUTH_MODE=token ray start --head", True),
    ("RAY_AUTH_MODE=token true; ray start --head", False),
    ("RAY_AUTH_MODE=token && ray start", False),
    ("RAY_AUTH_MODE=token; export RAY_AUTH_MODE; ray start", True),
    ("RAY_AUTH_MODE=token; ray start", False),
    ("export RAY_AUTH_MODE=token; ray start", True),
    ("export RAY_AUTH_MODE=token && ray start", True),
    ("export X=RAY_AUTH_MODE=token; ray start", False),
    ("export RAY_AUTH_MODE=token; export RAY_AUTH_MODE=disabled; ray start", False),
    ("export RAY_AUTH_MODE=token; RAY_AUTH_MODE=disabled; ray start", False),
    ("export RAY_AUTH_MODE=token; unset RAY_AUTH_MODE; ray start", False),
    ("export RAY_AUTH_MODE=token; export -n RAY_AUTH_MODE; ray start", False),
    ("RAY_AUTH_MODE=token RAY_AUTH_MODE=disabled ray start", False),
    ("RAY_AUTH_MODE=disabled RAY_AUTH_MODE=token ray start", True),
    ("declare -x RAY_AUTH_MODE=token; ray start", True),
    ("set -a; RAY_AUTH_MODE=token; ray start", True),
    ("set -a; RAY_AUTH_MODE=token; set +a; ray start", True),
    ("(export RAY_AUTH_MODE=token); ray start", False),
    ("(export RAY_AUTH_MODE=token; ray start)", True),
    ("export RAY_AUTH_MODE=token | cat; ray start", False),
    ("export RAY_AUTH_MODE=token & wait; ray start", False),
    ("true || export RAY_AUTH_MODE=token; ray start", False),
    ("{ export RAY_AUTH_MODE=token; }; ray start", True),
    ("if true; then export RAY_AUTH_MODE=token; ray start; fi", True),
    ("env RAY_AUTH_MODE=token ray start", True),
    ("env -u RAY_AUTH_MODE X=1 ray start", False),
    ('export RAY_AUTH_MODE=token; env -i PATH="$PATH" OUT="$OUT" ray start', False),
    ("export RAY_AUTH_MODE=token; env -u RAY_AUTH_MODE ray start", False),
    ("RAY_AUTH_MODE=token bash -c 'ray start --head'", True),
    ("bash -c 'RAY_AUTH_MODE=token ray start --head'", True),
    ("bash -c 'RAY_AUTH_MODE=token true; ray start --head'", False),
    ('bash -c "export RAY_AUTH_MODE=token; ray start"', True),
    ("RAY_AUTH_MODE=token; bash -c 'ray start'", False),
    ("bash -c \"bash -c 'RAY_AUTH_MODE=token ray start'\"", True),
    ("eval 'export RAY_AUTH_MODE=token'; true; eval 'RAY_AUTH_MODE=token ray start'", True),
    ("RAY_AUTH_MODE='token' ray start", True),
    ('RAY_AUTH_MODE="to"ken ray start', True),
    ("RAY_AUTH_MODE=\\\ntoken ray start", True),
    ("RAY_AUTH_MODE=token \\\n ray start", True),
    ("RAY_AUTH_MODE=token\nray start", False),
    ("RAY_AUTH_MODE=tokens ray start", False),
    ("XRAY_AUTH_MODE=token ray start", False),
    ("echo RAY_AUTH_MODE=token; ray start", False),
    ("echo '; RAY_AUTH_MODE=token ' ray start; ray start", False),
    ("# export RAY_AUTH_MODE=token\nray start", False),
    ("ray start # RAY_AUTH_MODE=token", False),
    ("cat <<E > /dev/null\nexport RAY_AUTH_MODE=token\nE\nray start", False),
    ("RAY_AUTH_MODE=token nohup ray start > /dev/null 2>&1 < /dev/null", True),
    ("RAY_AUTH_MODE=token timeout 9 ray start", True),
    ("x=$(echo a | cat) RAY_AUTH_MODE=token ray start", True),
    ("x=$(export RAY_AUTH_MODE=token); ray start", False),
    ('test "$(echo "a)b")" = "a)b" && RAY_AUTH_MODE=token ray start', True),
    ('echo "$(RAY_AUTH_MODE=token ray start)"', True),
    ('export RAY_AUTH_MODE=token; echo "$(env -u RAY_AUTH_MODE ray start)"', False),
    ("echo `RAY_AUTH_MODE=token ray start`", True),
    ("y=${x#a}; RAY_AUTH_MODE=token ray start", True),
]

#: Scripts that cannot run in the test: with another user, a container, or a program that is not installed.
WRAPPERS: list[tuple[str, bool]] = [
    ("export RAY_AUTH_MODE=token; sudo ray start", False),
    ("export RAY_AUTH_MODE=token; sudo -E ray start", True),
    ("export RAY_AUTH_MODE=token; sudo --preserve-env=HOME,RAY_AUTH_MODE ray start", True),
    ("sudo -u ray RAY_AUTH_MODE=token ray start", True),
    ("RAY_AUTH_MODE=token sudo ray start", False),
    ("docker run -e RAY_AUTH_MODE=token image ray start --head", True),
    ("docker run --env=RAY_AUTH_MODE=token image bash -c 'ray start --head'", True),
    ("export RAY_AUTH_MODE=token; docker run image ray start --head", False),
    ("export RAY_AUTH_MODE=token; docker exec -e RAY_AUTH_MODE c ray start --head", True),
    ("docker run -e X=RAY_AUTH_MODE=token image ray start --head", False),
    ("RAY_AUTH_MODE=token srun --nodes=1 ray start --head", True),
    ("srun --export=RAY_AUTH_MODE=token ray start --head", False),
    ("ssh host 'RAY_AUTH_MODE=token ray start --head'", True),
]


def auth_mode(text: str) -> str | None:
    (start,) = ray_starts(text)
    return start.environment.get("RAY_AUTH_MODE")


@pytest.mark.parametrize(("text", "is_token"), MODES)
def test_ray_start_gets_the_same_variables_as_in_bash(text: str, is_token: bool, tmp_path: Path) -> None:
    assert (auth_mode(text) == "token") is is_token
    # A fake `ray` writes its variable to a file.
    ray = tmp_path / "ray"
    ray.write_text('#!/bin/sh\necho "[$RAY_AUTH_MODE]" >> "$OUT"\n')
    ray.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "OUT": str(tmp_path / "out")}
    subprocess.run(["bash", "-c", text], env=environment, check=True, stdout=subprocess.DEVNULL)
    assert ("[token]" in (tmp_path / "out").read_text()) is is_token


@pytest.mark.parametrize(("text", "is_token"), WRAPPERS)
def test_wrapper_programs_pass_the_environment_on(text: str, is_token: bool) -> None:
    assert (auth_mode(text) == "token") is is_token


@pytest.mark.parametrize("text", ["echo 'a", 'echo "a', "echo `a", "echo ${a", "(ray start", "x=$(ray start"])
def test_invalid_shell_syntax_is_an_error(text: str) -> None:
    with pytest.raises(ShellSyntaxError):
        commands_in(text)


@pytest.mark.parametrize("opening", ["(", "$(", '"$('])
def test_too_deeply_nested_brackets_are_an_error(opening: str) -> None:
    with pytest.raises(ShellSyntaxError, match="without end"):
        commands_in(opening * 3000)


def test_too_deeply_nested_evals_are_an_error() -> None:
    text = "ray start"
    for _ in range(12):
        text = f"eval {text!r}" if "'" not in text else "eval " + "".join(f"\\{char}" for char in text)
    with pytest.raises(ShellSyntaxError, match="without end"):
        commands_in(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("ray start --dashboard-host=127.0.0.1 --dashboard-host=0.0.0.0", "0.0.0.0"),
        ("ray start --dashboard-host 0.0.0.0 --dashboard-host '127.0.0.1'", "127.0.0.1"),
        ("ray start --dashboard-host", ""),
        ("ray start; echo --dashboard-host=127.0.0.1", None),
        ("/opt/ray/bin/ray start --dashboard-host=::1", "::1"),
    ],
)
def test_the_last_value_of_an_option_counts(text: str, value: str | None) -> None:
    (start,) = ray_starts(text)
    assert start.option("dashboard-host") == value
