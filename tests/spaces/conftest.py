"""A small valid space file, and functions that load it with other lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import optuna
import pytest

from tune_rescon.errors import SpaceError
from tune_rescon.spaces import Space, parse_space

#: Line numbers matter: the tables of test_bad_*.py count them.
VALID_YAML = """\
version: 1
name: small
dataset: {name: digits}
metric: {name: val_accuracy, mode: max}
fidelity: {name: epoch, min: 1, max: 9}
sampler: {type: tpe, seed: 3}
scheduler: {type: asha}
budget: {trials: 12}
resources_per_trial: {cpu: 1, gpu: 0}
fixed: {layout: cifar, momentum: 0.9}
parameters:
  depth: {type: categorical, choices: [56, 92]}
  learning_rate: {type: float, low: 0.01, high: 0.3, log: true}
  batch_size: {type: int, low: 16, high: 64, step: 16}
  drop_path: {type: float, low: 0.0, high: 0.2, when: {parameter: depth, in: [92]}}
initial:
  - {depth: 92, learning_rate: 0.1, batch_size: 32, drop_path: 0.0}
"""


@pytest.fixture
def valid_yaml() -> str:
    return VALID_YAML


@pytest.fixture
def load_changed(valid_yaml: str) -> Callable[..., Space]:
    """Loads VALID_YAML with lines replaced: ``load_changed({4: "metric: 3"})``."""

    def load(lines: dict[int, str], overrides: tuple[str, ...] = ()) -> Space:
        text = valid_yaml.splitlines()
        for number, line in lines.items():
            text[number - 1] = line
        return parse_space("\n".join(text), source="s.yaml", overrides=overrides)

    return load


@pytest.fixture
def error_lines(load_changed: Callable[..., Space]) -> Callable[..., list[str]]:
    """Loads VALID_YAML with lines replaced, and returns the lines of the error that must be raised."""

    def load_invalid(lines: dict[int, str], overrides: tuple[str, ...] = ()) -> list[str]:
        with pytest.raises(SpaceError) as error:
            load_changed(lines, overrides)
        return str(error.value).splitlines()

    return load_invalid


@pytest.fixture(autouse=True, scope="session")
def _quiet_optuna() -> Iterator[None]:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(verbosity)
