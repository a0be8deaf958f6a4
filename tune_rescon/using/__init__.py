"""The winner put to use: found by whatever it is called, shown pictures, and given to other tools.

::

    load_model      a search's name, models:/NAME@ALIAS or a file -> network and what goes with it
    find_pictures, batches_of   a person's pictures, as the network wants them
    predictions     what it says of them
    draw_gallery    a folder of what it attends to, and a page of it
    export_model    a file that needs no package of ours, checked against the network

Names are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_rescon.lazy import lazy_names

if TYPE_CHECKING:
    from tune_rescon.using.exporting import FORMATS, export_model
    from tune_rescon.using.finding import load_model
    from tune_rescon.using.gallery import PAGE, draw_gallery, make_gallery
    from tune_rescon.using.images import Pictures, batches_of, find_pictures
    from tune_rescon.using.masks import ModuleMaps, attention_maps, draw_maps, draw_overlay
    from tune_rescon.using.predicting import Prediction, pixels, predictions

__all__ = [
    "FORMATS",
    "PAGE",
    "ModuleMaps",
    "Pictures",
    "Prediction",
    "attention_maps",
    "batches_of",
    "draw_gallery",
    "draw_maps",
    "draw_overlay",
    "export_model",
    "find_pictures",
    "load_model",
    "make_gallery",
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
        "PAGE": "gallery",
        "draw_gallery": "gallery",
        "draw_maps": "masks",
        "draw_overlay": "masks",
        "export_model": "exporting",
        "find_pictures": "images",
        "load_model": "finding",
        "make_gallery": "gallery",
        "pixels": "predicting",
        "predictions": "predicting",
    },
)
