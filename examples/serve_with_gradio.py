"""Show the best network of a search in a browser, where people try it on pictures of their own.

    pip install gradio
    python examples/serve_with_gradio.py quickstart

The argument is what `tune-rescon predict` takes too: a search's name, models:/NAME@champion or a checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import gradio as gr

from tune_rescon.inference import batches_of, load_model, predictions
from tune_rescon.training.device import resolve_device
from tune_rescon.tuning import SearchLocation

#: Classes that are shown for a picture.
TOP = 3


def classifier(model: str, storage: Path) -> Callable[[str | None], dict[str, float]]:
    """Return a function of a picture's path: the most probable classes and their probabilities."""
    network, about = load_model(model, SearchLocation(storage=storage))
    placement = resolve_device("auto", precision=about.config.precision)

    def refuse(path: Path, reason: str) -> None:
        raise gr.Error(f"{path.name} cannot be read: {reason}")

    def classify(picture: str | None) -> dict[str, float]:
        if picture is None:
            raise gr.Error("Choose a picture first.")
        # The picture is decoded and resized as the validation images were.
        batches = batches_of([Path(picture)], about, batch_size=1, on_bad=refuse)
        (found,) = predictions(network, about, batches, placement, top=TOP)
        return dict(found.classes)

    return classify


def page(model: str, storage: Path = Path("runs")) -> gr.Interface:
    """Return the page: a picture, a button, and the classes."""
    return gr.Interface(
        fn=classifier(model, storage),
        # Without a mode, gradio passes the file on as it is: in "RGB", its default, it would drop what is
        # transparent and clip what has more than 8 bits.
        inputs=gr.Image(type="filepath", image_mode=None, label="Picture"),
        outputs=gr.Label(num_top_classes=TOP, label="Class"),
        title=model,
        flagging_mode="never",
        analytics_enabled=False,
    )


if __name__ == "__main__":
    # On this machine's loopback only: the page asks for no password.
    page(sys.argv[1]).launch(server_name="127.0.0.1")
