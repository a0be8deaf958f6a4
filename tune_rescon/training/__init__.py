"""Training: one trial from its configuration to its last epoch, and its files on disk.

::

    train_trial           train, validate, checkpoint and report each epoch; resumes an interrupted trial
    epochs_in_checkpoint  the epochs that the newest checkpoint of a folder has
    load_trained          the network of a best.ckpt, ready to use
    build_step            one training step on its own, for benchmarks

Names are loaded on first use, so a caller that only passes on an :class:`EpochReport` does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_rescon.lazy import lazy_names
from tune_rescon.training.messages import EpochReport

if TYPE_CHECKING:
    from tune_rescon.training.fit import TrialProcess
    from tune_rescon.training.probe import build_step
    from tune_rescon.training.trial import train_trial
    from tune_rescon.training.trial_files import Objective, epochs_in_checkpoint
    from tune_rescon.training.weights import TrainedNetwork, load_trained
else:  # hidden from the type checker, which would accept any name
    __getattr__, __all__ = lazy_names(__name__)
