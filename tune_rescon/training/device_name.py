"""What a trial runs on, by the name its maker gave it: searches on several kinds of GPU cost differently."""

from __future__ import annotations

import torch

__all__ = ["device_name"]


def device_name(device: str) -> str:
    """The kind of ``device`` ("cpu", "cuda") of this process; GPUs of one kind have one name.

    >>> device_name("cpu")
    'CPU'
    """
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"
