"""TensorBoard's event files of a search: ``tensorboard/trial_0007/``, a directory beside the record.

The files are a copy of the record. Each run of a search writes the files of each trial again from the record.
Every point therefore appears exactly once, no matter how often or when the search was interrupted. The files
are written on a separate thread, so that a slow or full disk does not delay the search.
"""

from __future__ import annotations

import logging
import queue
import shutil
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from typing_extensions import override

from tune_rescon.config import TrialState, trial_name
from tune_rescon.errors import ConfigError, format_error
from tune_rescon.spaces import Space
from tune_rescon.tuning.callbacks import SearchCallback
from tune_rescon.tuning.stopping.rule import Verdict
from tune_rescon.tuning.trial import INACTIVE, TrialRecord

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

__all__ = ["EventFiles", "check_tensorboard"]


#: Seconds for which the end of a search waits until the files are written.
TIMEOUT: Final = 30.0

_LOGGER = logging.getLogger(__name__)


def check_tensorboard() -> None:
    """Check that the files can be written.

    Raises:
        ConfigError: If the package that writes the files is not installed.
    """
    if find_spec("tensorboard") is None:
        rule = "TensorBoard's files are written by the package `tensorboard`, which must be installed"
        hint = 'Install the extra: pip install "tune_rescon[tensorboard]".'
        raise ConfigError(format_error(rule, where="--tensorboard", hint=hint))


class EventFiles(SearchCallback):
    """A callback that only queues trials; its thread writes the files while the context is active."""

    def __init__(self, folder: Path, space: Space) -> None:
        """Write TensorBoard's files of a search of ``space`` below ``folder``."""
        self._folder, self._space = folder, space
        self._queue: queue.Queue[TrialRecord | None] = queue.Queue()
        self._open: dict[int, _TrialFiles] = {}
        self._thread = threading.Thread(target=self._run, name="tensorboard", daemon=True)

    def __enter__(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Write the queued trials for at most :data:`TIMEOUT` seconds; the next resume writes the rest."""
        self._queue.put(None)
        self._thread.join(TIMEOUT)
        if self._thread.is_alive():
            _LOGGER.warning("TensorBoard's files lack %d updates; a resume writes them", self._queue.qsize())

    @override
    def on_search_start(self, trials: Sequence[TrialRecord]) -> None:
        """Write every trial of the record again: a driver that died may not have written all points."""
        self._forget_others(trials)
        for trial in trials:
            self._queue.put(trial)

    @override
    def on_trial_start(self, trial: TrialRecord) -> None:
        """Write the trial's parameters."""
        self._queue.put(trial)

    @override
    def on_epoch(self, trial: TrialRecord, metrics: Mapping[str, float], verdict: Verdict) -> None:
        """Write the points of the trial's new epoch."""
        del metrics, verdict
        self._queue.put(trial)

    @override
    def on_trial_end(self, trial: TrialRecord) -> None:
        """Write how the trial ended."""
        self._queue.put(trial)

    def _forget_others(self, trials: Sequence[TrialRecord]) -> None:
        """Delete the directories of trials that a record restored from a backup does not have."""
        known = {trial_name(trial.number) for trial in trials}
        for path in self._folder.glob("trial_*"):
            if path.name not in known and path.name.removeprefix("trial_").isdecimal():
                shutil.rmtree(path, ignore_errors=True)

    def _run(self) -> None:
        while (trial := self._queue.get()) is not None:
            try:
                self._write(trial)
            except Exception:
                # For example, the disk is full. The trial's next update writes all of its points again.
                _LOGGER.exception("TensorBoard's files of trial %d were not written", trial.number)
                self._drop(trial.number)
        for files in self._open.values():
            files.close()

    def _write(self, trial: TrialRecord) -> None:
        files = self._open.get(trial.number)
        if files is None:
            path = self._folder / trial_name(trial.number)
            files = self._open[trial.number] = _TrialFiles(path, self._parameters(trial), trial.metric)
        files.write(trial)
        if trial.state is not TrialState.RUNNING:
            # Close the files, because each trial has a thread and a file. A trial that is resumed is written
            # again.
            files.close()
            del self._open[trial.number]

    def _drop(self, number: int) -> None:
        files = self._open.pop(number, None)
        # Closing may fail again before it releases the file.
        with suppress(Exception):
            if files is not None:
                files.close()

    def _parameters(self, trial: TrialRecord) -> dict[str, Any]:
        # An earlier version of the space may have had other parameters.
        names = dict.fromkeys((*self._space.parameters, *trial.parameters))
        return {name: _plain(trial.setting(name, INACTIVE)) for name in names}


class _TrialFiles:
    """The files of one trial; opening them empties the trial's directory."""

    def __init__(self, path: Path, parameters: dict[str, Any], metric: str) -> None:
        # Imported here because these modules need an optional extra, which few users request.
        from torch.utils.tensorboard.summary import hparams
        from torch.utils.tensorboard.writer import SummaryWriter

        shutil.rmtree(path, ignore_errors=True)
        # purge_step makes a running TensorBoard drop the points of the files that it has read before.
        self._writer: SummaryWriter = SummaryWriter(str(path), purge_step=1)
        self._epochs = 0
        # Not SummaryWriter.add_hparams, which creates a separate run for each call.
        make: Any = hparams  # torch does not annotate it
        experiment, begins, _ = make(parameters, {metric: 0.0})
        for summary in (experiment, begins):
            self._file.add_summary(summary)

    @property
    def _file(self) -> Any:
        # SummaryWriter's constructor creates the file writer; it is None only after close.
        return self._writer.file_writer

    def write(self, trial: TrialRecord) -> None:
        """Write the epochs that the files do not contain yet."""
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
    """Return the summary of an ended trial for the HParams tab."""
    # Built here because hparams.summary.session_end_pb needs TensorFlow, and torch's version always reports
    # success.
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

    went_well = state in (TrialState.FINISHED, TrialState.STOPPED)
    ended = SessionEndInfo(status=api_pb2.STATUS_SUCCESS if went_well else api_pb2.STATUS_FAILURE)
    about = metadata.create_summary_metadata(HParamsPluginData(session_end_info=ended))
    return Summary(value=[Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=about)])


def _plain(value: Any) -> Any:
    """Convert a value to a type that the HParams tab accepts."""
    return value if isinstance(value, bool | int | float | str) else str(value)
