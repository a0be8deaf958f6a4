"""Use a trained network: load it, predict classes of pictures, draw its attention masks, and export it.

::

    load_model      load a network and its metadata by a search's name, models:/NAME@ALIAS or a file
    find_pictures, batches_of   find and decode a user's pictures for the network
    predictions     predict the classes of the pictures
    find_mistakes   compare the predictions for a split with its labels; mistakes_document: as plain values
    write_mistakes  write those of a search's best network to a file for the report
    draw_gallery    write a folder of attention masks, with an HTML page
    export_model    write a file that does not need this package, checked against the network

Names are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_rescon.lazy import lazy_names

if TYPE_CHECKING:
    from tune_rescon.inference.best_mistakes import find_search_mistakes, write_mistakes
    from tune_rescon.inference.export import FORMATS, check_export, export_model, timm_transform_message
    from tune_rescon.inference.masks import (
        PAGE,
        ModuleMaps,
        attention_maps,
        check_has_masks,
        draw_gallery,
        draw_maps,
        draw_overlay,
    )
    from tune_rescon.inference.mistakes import Mistakes, find_mistakes, mistakes_document, mistakes_lines
    from tune_rescon.inference.model import Prediction, load_model, pixels, predictions
    from tune_rescon.inference.pictures import Pictures, batches_of, find_pictures
else:  # hidden from the type checker, which would accept any name
    __getattr__, __all__ = lazy_names(__name__)
