"""The winner put to use: found by whatever it is called, shown pictures, and given to other tools.

::

    load_model      a search's name, models:/NAME@ALIAS or a file -> network and what goes with it
    find_pictures, batches_of   a person's pictures, as the network wants them
    predictions     what it says of them
    attention_maps, draw_maps   what it attends to
    export_model    a file that needs no package of ours, checked against the network

Names are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_rescon.lazy import lazy_names

if TYPE_CHECKING:
    from tune_rescon.using.exporting import FORMATS, export_model
    from tune_rescon.using.finding import load_model
    from tune_rescon.using.images import Pictures, batches_of, find_pictures
    from tune_rescon.using.masks import ModuleMaps, attention_maps, draw_maps, index_page
    from tune_rescon.using.predicting import Prediction, pixels, predictions

__all__ = [
    "FORMATS",
    "ModuleMaps",
    "Pictures",
    "Prediction",
    "attention_maps",
    "batches_of",
    "draw_maps",
    "export_model",
    "find_pictures",
    "index_page",
    "load_model",
    "pixels",
    "predictions",
]

__getattr__ = lazy_names(
    __name__,
    {
        "FORMATS": "exporting",
        "ModuleMaps": "masks",
        "Pictures": "images",
        "Prediction": "predicting",
        "attention_maps": "masks",
        "batches_of": "images",
        "draw_maps": "masks",
        "export_model": "exporting",
        "find_pictures": "images",
        "index_page": "masks",
        "load_model": "finding",
        "pixels": "predicting",
        "predictions": "predicting",
    },
)
