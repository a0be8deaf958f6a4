"""What a process of ``forked`` has imported when it starts: all that a trial's own process imports."""

import importlib

from tune_rescon.lazy import import_lean_torchmetrics

import_lean_torchmetrics()
for module in ("tests.training.forked", "tests.training.killed_trials", "tests.training.peer"):
    importlib.import_module(module)
