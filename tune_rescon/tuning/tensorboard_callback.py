"""TensorBoard's event files of a search: ``tensorboard/trial_0007/``, written beside the record.

The files are a copy of the record. A run of a search writes those of each trial anew from its record, so a
point is there once, however often the search was interrupted, and none is missing, wherever it was struck
down. They are written on a thread of their own: a disk that is slow or full holds up nobody.
"""

from __future__ import annotations

import logging
import queue
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from typing_extensions import override

from tune_rescon.config import TrialState
from tune_rescon.errors import ConfigError, format_error
from tune_rescon.spaces import Space
from tune_rescon.tuning.callbacks import SearchListener
from tune_rescon.tuning.schedulers import Verdict
from tune_rescon.tuning.trial import TrialRecord

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

__all__ = [
    "EventFiles",
    "check_tensorboard",
    "event_files",
]


#: A parameter a trial does not have.
INACTIVE: Final = "none"

#: Seconds the end of a search waits for the files.
PATIENCE: Final = 30.0

_LOGGER = logging.getLogger(__name__)


def check_tensorboard() -> None:
    """See that the files can be written.

    Raises:
        ConfigError: the package that writes them is not installed.
    """
    if find_spec("tensorboard") is None:
        rule = "TensorBoard's files are written by the package `tensorboard`, which must be installed"
        hint = 'Install the extra: pip install "tune_rescon[tensorboard]".'
        raise ConfigError(format_error(rule, where="--tensorboard", hint=hint))


@contextmanager
def event_files(folder: Path, space: Space) -> Iterator[EventFiles]:
    """Keep TensorBoard's files of a search of ``space`` in ``folder``; at the end, wait for them."""
    files = EventFiles(folder, space)
    try:
        yield files
    finally:
        files.close(PATIENCE)


class EventFiles(SearchListener):
    """A listener that only queues; its thread writes."""

    def __init__(self, folder: Path, space: Space) -> None:
        """Write below ``folder``."""
        self._folder, self._space = folder, space
        self._queue: queue.Queue[TrialRecord | None] = queue.Queue()
        self._open: dict[int, _TrialFiles] = {}
        self._thread = threading.Thread(target=self._run, name="tensorboard", daemon=True)
        self._thread.start()

    @override
    def search_started(self, trials: Sequence[TrialRecord]) -> None:
        """Write anew what the record holds: a driver that died may have had points it had not written."""
        for trial in trials:
            self._queue.put(trial)

    @override
    def trial_started(self, trial: TrialRecord) -> None:
        """Its parameters."""
        self._queue.put(trial)

    @override
    def epoch_done(self, trial: TrialRecord, metrics: Mapping[str, float], verdict: Verdict) -> None:
        """Its points."""
        del metrics, verdict
        self._queue.put(trial)

    @override
    def trial_noted(self, trial: TrialRecord, text: str) -> None:
        """Nothing: a note is no point."""

    @override
    def trial_ended(self, trial: TrialRecord) -> None:
        """That it ended, and how."""
        self._queue.put(trial)

    def close(self, patience: float) -> None:
        """Write what waits, for ``patience`` seconds at most; the next resume writes what is left then."""
        self._queue.put(None)
        self._thread.join(patience)
        if self._thread.is_alive():
            _LOGGER.warning("TensorBoard's files lack %d updates; a resume writes them", self._queue.qsize())

    def _run(self) -> None:
        while (trial := self._queue.get()) is not None:
            try:
                self._write(trial)
            except Exception:
                # The disk is full, say. The trial's next update writes all of it once more.
                _LOGGER.exception("TensorBoard's files of trial %d were not written", trial.number)
                self._drop(trial.number)
        for files in self._open.values():
            files.close()

    def _write(self, trial: TrialRecord) -> None:
        files = self._open.get(trial.number)
        if files is None:
            path = self._folder / f"trial_{trial.number:04d}"
            files = self._open[trial.number] = _TrialFiles(path, self._parameters(trial), trial.metric)
        files.write(trial)
        if trial.state is not TrialState.RUNNING:
            # Each has a thread and a file. One that goes on is written anew.
            files.close()
            del self._open[trial.number]

    def _drop(self, number: int) -> None:
        files = self._open.pop(number, None)
        # It may fail once more, on its way to let go of its file.
        with suppress(Exception):
            if files is not None:
                files.close()

    def _parameters(self, trial: TrialRecord) -> dict[str, Any]:
        names = self._space.parameters
        return {name: _plain(trial.setting(name, INACTIVE)) for name in names}


class _TrialFiles:
    """One trial's directory, emptied when it is opened."""

    def __init__(self, path: Path, parameters: dict[str, Any], metric: str) -> None:
        # Imported here: they are an extra's, and few ask for it.
        from torch.utils.tensorboard.summary import hparams
        from torch.utils.tensorboard.writer import SummaryWriter

        shutil.rmtree(path, ignore_errors=True)
        # purge_step: a TensorBoard that watches drops the points of the files it had read.
        self._writer: SummaryWriter = SummaryWriter(str(path), purge_step=1)
        self._epochs = 0
        # Not SummaryWriter.add_hparams, which makes a run of its own for each.
        make: Any = hparams  # torch does not annotate it
        experiment, begins, _ = make(parameters, {metric: 0.0})
        for summary in (experiment, begins):
            self._file.add_summary(summary)

    @property
    def _file(self) -> Any:
        # Made by the constructor: None only after close.
        return self._writer.file_writer

    def write(self, trial: TrialRecord) -> None:
        """The epochs that are not there yet."""
        for epoch in range(self._epochs + 1, trial.epochs + 1):
            seconds = trial.times_ms[epoch - 1] / 1000
            for name, series in trial.history.items():
                self._writer.add_scalar(name, series[epoch - 1], epoch, walltime=seconds)
        self._epochs = trial.epochs
        if trial.state.is_final:
            self._file.add_summary(_end(trial.state))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _end(state: TrialState) -> Any:
    """What the HParams tab shows of a trial that will not go on."""
    # Put together here: hparams.summary.session_end_pb needs TensorFlow, and torch's always says success.
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

    went_well = state in (TrialState.FINISHED, TrialState.STOPPED)
    ended = SessionEndInfo(status=api_pb2.STATUS_SUCCESS if went_well else api_pb2.STATUS_FAILURE)
    about = metadata.create_summary_metadata(HParamsPluginData(session_end_info=ended))
    return Summary(value=[Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=about)])


def _plain(value: Any) -> Any:
    """As the HParams tab takes it."""
    return value if isinstance(value, bool | int | float | str) else str(value)
