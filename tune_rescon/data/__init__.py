"""Images: their sources, the decoded cache that all trials of a node share, and batches on the device.

::

    describe         describe a dataset from constants or a listing       (no torch, decodes nothing)
    is_url           return whether a dataset's path is a URL of an archive
    open_dataset     decode once, memory-map, split                       (no torch once the cache is built)
    decode_image     decode one picture to a uint8 square as the cache does (no torch; for `predict`)
    ImageDataModule  Lightning's data module: gather, augment, resize, normalise on the device

Names are loaded on first use, so that :func:`describe` does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_rescon.lazy import lazy_names

if TYPE_CHECKING:
    from tune_rescon.data.catalog import DatasetInfo, describe, is_url, list_datasets, local_path
    from tune_rescon.data.datamodule import ImageDataModule, RawBatch
    from tune_rescon.data.dataset import ImageDataset, Split, open_dataset
    from tune_rescon.data.decode import USUAL_STORE_SIZE, decode_image
    from tune_rescon.data.selection import Account
else:  # hidden from the type checker, which would accept any name
    __getattr__, __all__ = lazy_names(__name__)
