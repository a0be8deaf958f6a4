"""What ran out of memory on this node, so that no trial of that shape does it again.

A micro-batch is given up for ever only against as much memory as it failed with: what did not fit beside a
neighbour on the same GPU may fit alone.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import torch
from filelock import FileLock

from tune_rescon import __version__
from tune_rescon.config import TrialConfig
from tune_rescon.models import NetworkSpec
from tune_rescon.training.memory import available_memory
from tune_rescon.training.microbatches import twice_as_many
from tune_rescon.training.placement import Placement

__all__ = ["Overrun", "OverrunFile", "Shape", "merged", "shape_key", "starting_pieces"]

_log = logging.getLogger(__name__)

#: Of two memories the smaller counts as large as the other if no more than this share is missing: drivers and
#: contexts take a little more or less each time.
_AS_MUCH: Final = 0.95

#: Seconds to wait for another process that writes; it takes milliseconds.
_PATIENCE: Final = 10


@dataclass(frozen=True, kw_only=True, order=True)
class Overrun:
    """A step that ran out of memory."""

    images: int
    """Of its largest micro-batch."""
    available: int
    """Bytes the process could have had when its trial began."""


def starting_pieces(images: int, available: int, known: Iterable[Overrun]) -> int:
    """Micro-batches to start with: the fewest of which none is known to be too large for ``available`` bytes.

    Where the smallest ones are too, those: the trial then fails on its own account.

    >>> known = [Overrun(images=64, available=1000)]
    >>> [starting_pieces(images, 1000, known) for images in (256, 128, 64, 63, 32)]
    [8, 4, 2, 1, 1]
    >>> starting_pieces(128, 2000, known)
    1
    """
    known = list(known)
    count: int = 1
    while any(_is_hopeless(-(-images // count), available, overrun) for overrun in known):
        finer = twice_as_many(count, images=images)
        if finer is None:
            break
        count = finer
    return count


def _is_hopeless(images: int, available: int, overrun: Overrun) -> bool:
    return images >= overrun.images and overrun.available >= _AS_MUCH * available


def merged(known: Iterable[Overrun], new: Overrun) -> list[Overrun]:
    """``known`` and ``new`` without what another of them says already.

    >>> merged([Overrun(images=64, available=1000)], Overrun(images=32, available=2000))
    [Overrun(images=32, available=2000)]
    >>> len(merged([Overrun(images=64, available=1000)], Overrun(images=32, available=500)))
    2
    """
    every = sorted({*known, new})
    return [one for one in every if not any(_says_more(other, one) for other in every if other != one)]


def _says_more(one: Overrun, other: Overrun) -> bool:
    return one.images <= other.images and one.available >= other.available


def shape_key(spec: NetworkSpec, placement: Placement, *ways: object) -> str:
    """What decides how much memory an image takes: network, image size, precision, device, and the versions.

    ``ways``: what else does, of how it is trained.

    Optimiser and averaged weights count for little beside a batch's activations.
    """
    name = torch.cuda.get_device_name(placement.device) if placement.device.type == "cuda" else "cpu"
    versions = [torch.__version__, __version__]
    parts = json.dumps([spec.to_dict(), placement.precision, name, versions, *ways], sort_keys=True)
    return f"{name} {blake2b(parts.encode(), digest_size=12).hexdigest()}"


class OverrunFile:
    """A small JSON file that the trials of a node share: for each shape, its overruns.

    It only saves time, so it never fails a trial: one that cannot be read knows nothing, one that cannot be
    written keeps nothing. Reading needs no lock: a new file takes the old one's place whole.
    """

    def __init__(self, path: Path) -> None:
        """``path`` need not exist."""
        self._path = path

    def known(self, key: str) -> list[Overrun]:
        """The overruns of a shape."""
        try:
            return [Overrun(**values) for values in self._read().get(key, [])]
        except (TypeError, AttributeError):  # JSON, but not ours
            return []

    def add(self, key: str, overrun: Overrun) -> None:
        """Remember one."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._path.with_name(f"{self._path.name}.lock"), timeout=_PATIENCE):
                everything = self._read() | {key: [asdict(one) for one in merged(self.known(key), overrun)]}
                partial = self._path.with_name(f"{self._path.name}.{os.getpid()}.partial")
                partial.write_text(json.dumps(everything, indent=1, sort_keys=True))
                partial.replace(self._path)
        except OSError as error:
            _log.warning("what ran out of memory could not be remembered in %s: %s", self._path, error)

    def _read(self) -> dict[str, Any]:
        try:
            values = json.loads(self._path.read_text())
        except (OSError, ValueError):  # none yet, or damaged: it is written anew
            return {}
        return values if isinstance(values, dict) else {}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A trial's shape, the bytes it could have, and the node's file of overruns (None: nothing is kept)."""

    key: str
    available: int
    file: OverrunFile | None

    @classmethod
    def of(cls, config: TrialConfig, spec: NetworkSpec, placement: Placement, path: Path | None) -> Shape:
        """Of a trial about to begin, as it is configured to train."""
        return cls(
            key=shape_key(spec, placement, config.compile),
            available=available_memory(placement.device),
            file=None if path is None else OverrunFile(path),
        )

    def when(self, *, recorded: bool = False, recomputes: bool = False) -> Shape:
        """The same, trained in another way: from a CUDA graph, or with activations computed again."""
        ways = [way for way, taken in (("recorded", recorded), ("recomputes", recomputes)) if taken]
        return dataclasses.replace(self, key=" ".join((self.key, *ways)))

    def pieces(self, images: int) -> int:
        """Micro-batches to start with for a batch of ``images``."""
        return starting_pieces(images, self.available, self.file.known(self.key) if self.file else ())

    def ran_out(self, images: int, pieces: int) -> None:
        """A batch of ``images`` did not fit in so many micro-batches."""
        if self.file is not None:
            self.file.add(self.key, Overrun(images=-(-images // pieces), available=self.available))
