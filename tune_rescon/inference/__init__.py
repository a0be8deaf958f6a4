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
    from tune_rescon.inference.export import FORMATS, export_model
    from tune_rescon.inference.masks import (
        PAGE,
        ModuleMaps,
        attention_maps,
        draw_gallery,
        draw_maps,
        draw_overlay,
        make_gallery,
    )
    from tune_rescon.inference.pictures import Pictures, batches_of, find_pictures
    from tune_rescon.inference.predict import Prediction, pixels, predictions
    from tune_rescon.inference.resolve_model import load_model

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
        "FORMATS": "export",
        "ModuleMaps": "masks",
        "Pictures": "pictures",
        "Prediction": "predict",
        "attention_maps": "masks",
        "batches_of": "pictures",
        "PAGE": "masks",
        "draw_gallery": "masks",
        "draw_maps": "masks",
        "draw_overlay": "masks",
        "export_model": "export",
        "find_pictures": "pictures",
        "load_model": "resolve_model",
        "make_gallery": "masks",
        "pixels": "predict",
        "predictions": "predict",
    },
)
