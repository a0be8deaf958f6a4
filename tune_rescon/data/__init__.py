"""Images: their sources, the decoded cache that all trials of a node share, and batches on the device.

::

    describe         describe a dataset from constants or a listing       (no torch, decodes nothing)
    is_url           return whether a dataset's path is a URL of an archive
    open_dataset     decode once, memory-map, split                       (no torch once the cache is built)
    decode_image     decode one picture to a uint8 square as the cache does (no torch; for `predict`)
    ImageDataModule  Lightning's data module: gather, augment, resize, normalise on the device

Names are loaded on first use, so that packages without torch can call :func:`describe` and not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_rescon.lazy import lazy_names

if TYPE_CHECKING:
    from tune_rescon.data.account import Account
    from tune_rescon.data.catalog import DatasetInfo, describe, list_datasets, local_path
    from tune_rescon.data.datamodule import ImageDataModule
    from tune_rescon.data.dataset import ImageDataset, Split, open_dataset
    from tune_rescon.data.decode import USUAL_STORE_SIZE, decode_image
    from tune_rescon.data.downloads import is_url
    from tune_rescon.data.loader import RawBatch

__all__ = [
    "USUAL_STORE_SIZE",
    "Account",
    "DatasetInfo",
    "ImageDataModule",
    "ImageDataset",
    "RawBatch",
    "Split",
    "decode_image",
    "describe",
    "is_url",
    "list_datasets",
    "local_path",
    "open_dataset",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Account": "account",
        "USUAL_STORE_SIZE": "decode",
        "DatasetInfo": "catalog",
        "ImageDataModule": "datamodule",
        "ImageDataset": "dataset",
        "RawBatch": "loader",
        "Split": "dataset",
        "decode_image": "decode",
        "describe": "catalog",
        "is_url": "downloads",
        "list_datasets": "catalog",
        "local_path": "catalog",
        "open_dataset": "dataset",
    },
)
