"""Search on your own images from Python, and classify pictures by the best network.

    python examples/own_images.py photos/ holiday/

``photos/`` holds one folder for each class, or ``train/CLASS/*``; ``holiday/`` has the pictures to classify.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tune_rescon as tr
from tune_rescon.data import describe
from tune_rescon.spaces import Space
from tune_rescon.tuning import RunOptions, StudyResult

NAME = "own_images"


def make_space(photos: Path, *, trials: int = 12, epochs: int = 18) -> Space:
    """Return the shipped space for folders, made small: small networks, few and short trials."""
    settings = [f"path={photos}", f"trials={trials}", f"fidelity.max={epochs}", "image_size=64", "depth=56"]
    return tr.load_space("folder", settings)


def look(space: Space) -> None:
    """Print what is found in the folder, and what is left out. No image is decoded."""
    found = describe(space.dataset, data_root=Path("data"))
    assert found.account is not None, "a folder has an account of its files"
    print(*found.account.lines(), sep="\n")


def search(space: Space, storage: Path) -> StudyResult:
    """Search, and print what a person should know meanwhile."""
    with tr.progress_shown(print):
        return tr.run_search(space, RunOptions(name=NAME, storage=storage))


def classify(checkpoint: Path | str, pictures: Path) -> list[tuple[Path, str, float]]:
    """Return path, class and probability of each picture in a folder."""
    from tune_rescon.inference import batches_of, find_pictures, predictions
    from tune_rescon.training.device import resolve_device

    network, about = tr.load_trained(checkpoint)
    files = find_pictures([pictures])
    batches = batches_of(files, about, batch_size=64, on_bad=lambda path, why: print(path, why))
    found = predictions(
        network, about, batches, resolve_device("auto", precision=about.config.precision), top=1
    )
    return [(one.path, *one.best) for one in found]


def main(photos: Path, pictures: Path) -> None:
    """Look, search and classify."""
    space = make_space(photos)
    look(space)
    result = search(space, Path("runs"))
    print(result)
    assert result.best is not None, "every trial failed"
    checkpoint = result.kept_checkpoint(result.best)
    assert checkpoint is not None, "the network of the best trial is missing"
    for path, name, probability in classify(checkpoint, pictures):
        print(f"{path}  {name}  {probability:.3f}")


# Ray imports this file in its worker processes, which must not search as well.
if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
