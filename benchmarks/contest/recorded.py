"""Recorded learning curves: a drawn configuration reports what the nearest recorded one did.

A table is a CSV file with one row for each trained configuration: its hyperparameters, ``epoch_seconds``, and
``v_1 ... v_T``, the validation metric after each epoch (larger is better; empty: not finite).
"""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune_rescon.spaces import Parameter
from tune_rescon.spaces.parameters import CategoricalParameter, FloatParameter, IntParameter

__all__ = ["RecordedCurve", "Table", "load_table"]

#: A column with at most this number of different values is a categorical parameter, unless they are
#: consecutive integers.
MOST_CHOICES = 6

#: A range is logarithmic only if its ends differ by this factor, and its logarithms are not spread less
#: evenly than its values by more than the second factor. Such ranges are usually meant to be logarithmic.
LOG_RATIO = 100
LOG_UNEVENNESS = 2


@dataclass(frozen=True, kw_only=True)
class RecordedCurve:
    """The curve of a recorded configuration, as the simulator reads it."""

    values: tuple[float, ...]
    epoch_seconds: float
    crashes_at: int = 0

    def at(self, epoch: int) -> float:
        """Return the value after ``epoch`` epochs."""
        return self.values[epoch - 1]


@dataclass(frozen=True, kw_only=True)
class Table:
    """All recorded configurations of one task."""

    name: str
    parameters: Mapping[str, Parameter]
    """The searched parameters; their ranges are those of the rows."""
    rows: NDArray[np.float64]
    """The hyperparameters, one row for each configuration, scaled to 0..1. A choice is its index."""
    curves: NDArray[np.float64]
    seconds: NDArray[np.float64]

    @property
    def last(self) -> int:
        """The last epoch."""
        return int(self.curves.shape[1])

    @cached_property
    def best(self) -> float:
        """The best value of any configuration at any epoch."""
        return float(np.nanmax(np.where(np.isfinite(self.curves), self.curves, np.nan)))

    def nearest(self, drawn: Mapping[str, Any], used: Collection[int]) -> int:
        """Return the row nearest to a drawn configuration, of those that are not used yet.

        A difference of choice counts as 1, and a number by the square of its scaled difference.
        """
        point = np.array([_scaled(parameter, drawn[name]) for name, parameter in self.parameters.items()])
        chosen = np.array([isinstance(p, CategoricalParameter) for p in self.parameters.values()])
        distances = np.where(chosen, self.rows != point, (self.rows - point) ** 2).sum(axis=1)
        if len(used) < len(distances):
            distances[list(used)] = np.inf
        return int(distances.argmin())

    def curve(self, row: int) -> RecordedCurve:
        """Return the curve of a row."""
        return RecordedCurve(
            values=tuple(map(float, self.curves[row])), epoch_seconds=float(self.seconds[row])
        )


@lru_cache(maxsize=16)
def load_table(path: Path) -> Table:
    """Read a table, and take the searched ranges from its rows.

    Raises:
        ValueError: the file is not such a table.
    """
    with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as file:
        header, *lines = csv.reader(file)
    epochs = [index for index, name in enumerate(header) if name.startswith("v_")]
    names = [name for name in header if not name.startswith("v_") and name != "epoch_seconds"]
    if not lines or not epochs or not names or "epoch_seconds" not in header:
        raise ValueError(
            f"{path}: a table has columns of hyperparameters, epoch_seconds, and v_1, v_2, ...;"
            f" this one has {', '.join(header[:8])}"
        )
    short = next((number for number, line in enumerate(lines, 2) if len(line) != len(header)), None)
    if short is not None:
        raise ValueError(f"{path}:{short}: a row has as many columns as the header, {len(header)}")
    read = {name: _numbers([line[header.index(name)] for line in lines]) for name in names}
    # A column with one value is not searched.
    columns = {name: values for name, values in read.items() if len(set(values)) > 1}
    parameters = {name: _parameter(values) for name, values in columns.items()}
    rows = [
        [_scaled(parameter, columns[name][i]) for name, parameter in parameters.items()]
        for i in range(len(lines))
    ]
    return Table(
        name=path.name.removesuffix(".gz").removesuffix(".csv"),
        parameters=parameters,
        rows=np.array(rows),
        curves=np.array([[float(line[i] or "nan") for i in epochs] for line in lines]),
        seconds=np.array([float(line[header.index("epoch_seconds")]) for line in lines]),
    )


def _numbers(texts: list[str]) -> list[float] | list[str]:
    try:
        return [float(text) for text in texts]
    except ValueError:
        return texts


def _parameter(column: list[float] | list[str]) -> Parameter:
    """Infer a parameter from its values: a choice if they are few, else a range, logarithmic if that fits."""
    if isinstance(column[0], str):
        return CategoricalParameter(type="categorical", choices=tuple(sorted(set(column))))
    values = [float(value) for value in column]
    distinct = sorted(set(values))
    low, high = distinct[0], distinct[-1]
    integers = all(value.is_integer() for value in distinct)
    consecutive = integers and high - low + 1 == len(distinct)
    if len(distinct) <= MOST_CHOICES and not consecutive:
        return CategoricalParameter(type="categorical", choices=tuple(distinct))
    log = (
        low > 0
        and high / low >= LOG_RATIO
        and _unevenness(np.log(values)) < LOG_UNEVENNESS * _unevenness(np.array(values))
    )
    if integers and not log:
        return IntParameter(type="int", low=int(low), high=int(high), log=False)
    return FloatParameter(type="float", low=low, high=high, log=log)


def _unevenness(values: NDArray[np.float64]) -> float:
    """Return the distance to a uniform distribution over the same range (Kolmogorov-Smirnov)."""
    ordered = np.sort((values - values.min()) / np.ptp(values))
    expected = (np.arange(len(ordered)) + 0.5) / len(ordered)
    return float(np.abs(ordered - expected).max())


def _scaled(parameter: Parameter, value: Any) -> float:
    if isinstance(parameter, CategoricalParameter):
        return float(parameter.choices.index(value))
    scale = math.log if parameter.log else float
    low, high = scale(parameter.low), scale(parameter.high)
    return (scale(value) - low) / (high - low)
