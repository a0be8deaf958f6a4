"""Balanced class weights and balanced sampling on a heavily unbalanced subset, against neither.

    python benchmarks/imbalance.py [--seeds 5] [--epochs 12]

The images are scikit-learn's digits: all of the classes 0 to 4, and a tenth of the classes 5 to 9. The
validation images are balanced. It prints the macro F1 of each setting with its standard error, and the paired
differences.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from table import estimate_text

from tune_rescon.config import DatasetConfig, TrialConfig
from tune_rescon.data import ImageDataset, open_dataset
from tune_rescon.training import EpochReport, Objective, TrialProcess, train_trial

#: Images of each class that validate.
VALIDATION: Final = 40

#: The share of the images that a rare class keeps.
RARE: Final = 0.1

NEITHER: Final = TrialConfig(
    layout="cifar",
    depth=56,
    width=0.25,
    image_size=16,
    batch_size=32,
    learning_rate=0.1,
    schedule="cosine",
    flip=False,
    crop_padding=0,
    precise_bn_batches=8,
)

SETTINGS: Final = {
    "neither": NEITHER,
    "class_weights: balanced": replace(NEITHER, class_weights="balanced"),
    "class_sampling: balanced": replace(NEITHER, class_sampling="balanced"),
}


def write_images(root: Path) -> None:
    """Write the unbalanced training images and the balanced validation images as folders of PNG files."""
    digits = load_digits()
    rng = np.random.default_rng(0)
    for label in range(10):
        rows = rng.permutation(np.flatnonzero(digits.target == label))
        training = rows[VALIDATION:]
        kept = training if label < 5 else training[: round(RARE * len(training))]
        for part, chosen in (("train", kept), ("val", rows[:VALIDATION])):
            folder = root / part / str(label)
            folder.mkdir(parents=True)
            for row in chosen:
                pixels = (digits.images[row] * 255 / 16).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{row}.png")


def macro_f1(dataset: ImageDataset, config: TrialConfig, *, seed: int, epochs: int) -> float:
    """Return the validation macro F1 after the last epoch of one training."""
    reports: list[EpochReport] = []
    train_trial(
        config,
        dataset,
        epochs=epochs,
        seed=seed,
        checkpoint_dir=None,
        on_epoch=reports.append,
        objective=Objective(log=("val_macro_f1",)),
        process=TrialProcess(device="cpu", threads=1),
    )
    return reports[-1].metrics["val_macro_f1"]


def main() -> None:
    """Train each setting with each seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_images(root / "images")
        chosen = DatasetConfig(name="folder", path=str(root / "images"))
        dataset = open_dataset(chosen, data_root=root, cache_root=root / "cache")
        found: dict[str, list[float]] = {name: [] for name in SETTINGS}
        for seed in range(options.seeds):
            for name, config in SETTINGS.items():
                found[name].append(macro_f1(dataset, config, seed=seed, epochs=options.epochs))
                print(f"seed {seed}, {name}: {found[name][-1]:.3f}", flush=True)
    print(f"\n| setting | macro F1, n = {options.seeds} | minus neither, paired |\n|---|---|---|")
    for name, values in found.items():
        gain = [mine - theirs for mine, theirs in zip(values, found["neither"], strict=True)]
        print(
            f"| {name} | {estimate_text(values, 3)} | {estimate_text(gain, 3) if name != 'neither' else ''} |"
        )


if __name__ == "__main__":
    main()
