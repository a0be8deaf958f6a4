"""Lightning's way to a checkpoint file; apart from :mod:`.checkpoint`, whose readers need no Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_fabric.plugins import TorchCheckpointIO
from typing_extensions import override

from tune_rescon.training.checkpoint import write_durably

__all__ = ["DurableCheckpointIO"]


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes through :func:`.write_durably`, and keeps the checkpoint before."""

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``; what was there gets the suffix ``.previous.ckpt``."""
        assert storage_options is None
        path = Path(path)
        write_durably(checkpoint, path, previous=path.with_suffix(".previous.ckpt"))
