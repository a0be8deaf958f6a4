"""A picture of MLflow's comparison of a search's trials: how docs/mlflow.png was made.

MLflow is served from the storage's own store, and its page opened in a headless Chromium::

    python -m tune_rescon.search --space digits --name demo --storage runs
    python benchmarks/mlflow_picture.py runs demo docs/mlflow.png
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from browser import browser
from mlflow_pages import open_comparison, trials_of
from mlflow_server import MlflowServer
from PIL import Image

from tune_rescon.spaces import load_space

WIDTH, HEIGHT = 1360, 640

#: Enough for letters and a scale of colours, in a third of the bytes.
COLOURS = 192

#: Seconds for what moves in the page to come to rest.
REST = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("storage", type=Path)
    parser.add_argument("search")
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    server = MlflowServer(options.storage.resolve())
    server.start()
    try:
        take(server.uri, options.search, options.storage / options.search / "space.yaml", options.picture)
    finally:
        server.kill()
    Image.open(options.picture).quantize(COLOURS).save(options.picture, optimize=True)
    print(f"{options.picture}: {options.picture.stat().st_size} bytes")


def take(uri: str, search: str, space: Path, picture: Path) -> None:
    """The comparison, with an axis for each searched parameter and one for the last value of the metric."""
    searched = load_space(space)
    with browser() as chromium:
        comparison = open_comparison(chromium, uri, trials_of(uri, search), width=WIDTH, height=HEIGHT)
        page = comparison.page
        page.evaluate("document.querySelector('button[aria-label=Close]')?.click()")
        for name in searched.parameters:
            if name not in comparison.titles():
                comparison.choose_parameter(name)
        # It begins with whichever metric comes first.
        others = set(comparison.titles()) - set(searched.parameters)
        for name in others ^ {searched.metric.name}:
            comparison.choose_metric(name)
        page.evaluate("document.activeElement.blur()")
        time.sleep(REST)
        page.screenshot(picture)


if __name__ == "__main__":
    main()
