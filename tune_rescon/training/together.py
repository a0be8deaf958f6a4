"""Where a trial of several processes begins: shares large enough, and the first one's checkpoint for all."""

from __future__ import annotations

from typing import Final

from tune_rescon.config import TrialConfig
from tune_rescon.data import ImageDataset
from tune_rescon.errors import ConfigError, explain
from tune_rescon.training.checkpoint import CheckpointFolder
from tune_rescon.training.notes import OnNote
from tune_rescon.training.peers import Peers
from tune_rescon.training.record import TrialRecord
from tune_rescon.training.start import Start, find_start

__all__ = ["check_shares", "find_start_together"]

#: Images of a training batch that each process must have: batch norm's variance of one is none.
_LEAST: Final = 2


def check_shares(peers: Peers, config: TrialConfig, dataset: ImageDataset) -> None:
    """Check that there is something of every batch for each process.

    Raises:
        ConfigError: there is not.
    """
    if peers.alone:
        return
    batch, count = min(config.batch_size, len(dataset.train)), peers.share.count
    if batch < _LEAST * count:
        rule = f"a batch must have {_LEAST} images for each of {count} workers"
        raise ConfigError(explain(rule, got=str(batch)))
    judged = dataset.val if len(dataset.val) else dataset.test
    if len(judged) < count:
        rule = f"there must be an image to judge by for each of {count} workers"
        raise ConfigError(explain(rule, got=str(len(judged))))


def find_start_together(
    record: TrialRecord, folder: CheckpointFolder | None, on_note: OnNote, peers: Peers
) -> Start:
    """:func:`.find_start` by the first process; the others are sent the checkpoint it has found.

    Their folders need not be on its machine. A folder of theirs that has files loses them.

    Raises:
        StorageError: as :func:`.find_start`.
    """
    if peers.alone or folder is None:
        return find_start(record, folder, on_note)
    if not peers.first:
        folder.create()
        peers.share_file(folder.last)
        return find_start(record, folder, on_note)
    start = find_start(record, folder, on_note)
    peers.share_file(folder.last)
    return start
