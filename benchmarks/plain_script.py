"""The plain Ray Tune script: what one writes today to search these networks on the embedded digits.

A function trainable that builds network, DataLoader and Trainer for each trial, in a process of its own for
each trial; OptunaSearch, ASHAScheduler, MLflowLoggerCallback. Given the configurations to try, and the epochs
after which each ends, so that it can be held against another search that tried them; ASHA is asked after each
epoch, and stops none by itself::

    python benchmarks/plain_script.py CONFIGURATIONS.json FOLDER
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import ray
import torch
import torch.nn.functional as F
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.integration.pytorch_lightning import TuneReportCheckpointCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

EPOCHS, BATCH_SIZE, SIDE = 9, 32, 16


class Digits(Dataset[tuple[Tensor, int]]):
    """Images and labels through torchvision's transforms, one at a time."""

    def __init__(self, images: Any, labels: Any) -> None:
        self._images, self._labels = images, labels
        self._transform = transforms.Compose(
            [
                transforms.ToPILImage(),
                transforms.Resize((SIDE, SIDE)),
                transforms.ToTensor(),
                transforms.Normalize(0.3, 0.38),
            ]
        )

    def __len__(self) -> int:
        """How many."""
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One of them."""
        return self._transform(self._images[index]), int(self._labels[index])


class Classifier(pl.LightningModule):
    """A network with its loss and optimiser."""

    def __init__(self, config: dict[str, Any], steps: int) -> None:
        super().__init__()
        from tune_rescon.config import TrialConfig
        from tune_rescon.models import build_from_spec, resolve_network

        self._config, self._steps = config, steps
        trial = TrialConfig(
            layout="cifar", depth=config["depth"], width=0.5, image_size=SIDE, drop_path=config["drop_path"]
        )
        self.network = build_from_spec(resolve_network(trial, classes=10, in_channels=1))

    def training_step(self, batch: tuple[Tensor, Tensor], _index: int) -> Tensor:
        """Cross entropy."""
        images, labels = batch
        return F.cross_entropy(self.network(images), labels, label_smoothing=self._config["label_smoothing"])

    def validation_step(self, batch: tuple[Tensor, Tensor], _index: int) -> None:
        """Loss and accuracy."""
        images, labels = batch
        logits = self.network(images)
        self.log("val_loss", F.cross_entropy(logits, labels))
        self.log("val_accuracy", (logits.argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> Any:
        """SGD with a cosine."""
        optimizer = torch.optim.SGD(
            self.parameters(),
            lr=self._config["learning_rate"],
            momentum=0.9,
            nesterov=True,
            weight_decay=self._config["weight_decay"],
        )
        cosine = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / self._steps, 1.0)))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


def train(config: dict[str, Any]) -> None:
    """One trial."""
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels.reshape(-1, 8, 8, 1) * 15.9).astype("uint8")
    images, _, labels, _ = train_test_split(images, labels, test_size=360, stratify=labels, random_state=0)
    split = train_test_split(images, labels, test_size=288, stratify=labels, random_state=0)
    loader = DataLoader(Digits(split[0], split[2]), batch_size=BATCH_SIZE, shuffle=True)
    validation = DataLoader(Digits(split[1], split[3]), batch_size=BATCH_SIZE)
    trainer = pl.Trainer(
        max_epochs=config["epochs"],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[TuneReportCheckpointCallback(["val_loss", "val_accuracy"], on="validation_end")],
    )
    trainer.fit(Classifier(config, EPOCHS * len(loader)), loader, validation)


def main() -> None:
    """Search, with the given configurations first; says how many trials there were."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configurations", type=Path, help="a JSON list of values and epochs")
    parser.add_argument("folder", help="gets Ray's results and MLflow's database")
    options = parser.parse_args()
    configurations, folder = json.loads(options.configurations.read_text()), options.folder
    ray.init(include_dashboard=False)
    results = tune.Tuner(
        tune.with_resources(train, {"cpu": 1}),
        param_space={
            "depth": tune.choice([56, 92]),
            "learning_rate": tune.loguniform(3e-2, 3e-1),
            "weight_decay": tune.loguniform(1e-5, 1e-3),
            "label_smoothing": tune.uniform(0.0, 0.1),
            "drop_path": tune.uniform(0.0, 0.1),
            "epochs": tune.randint(1, EPOCHS + 1),
        },
        tune_config=tune.TuneConfig(
            num_samples=len(configurations),
            search_alg=OptunaSearch(
                metric="val_accuracy", mode="max", points_to_evaluate=configurations, seed=0
            ),
            scheduler=ASHAScheduler(
                metric="val_accuracy", mode="max", grace_period=EPOCHS, max_t=EPOCHS, reduction_factor=3
            ),
            max_concurrent_trials=2,
        ),
        run_config=tune.RunConfig(
            storage_path=folder,
            verbose=0,
            callbacks=[
                MLflowLoggerCallback(tracking_uri=f"sqlite:///{folder}/mlflow.db", experiment_name="plain")
            ],
        ),
    ).fit()
    epochs = sum(result.metrics["training_iteration"] for result in results)
    best = max(result.metrics["val_accuracy"] for result in results)
    print(json.dumps({"trials": len(results), "epochs": epochs, "best": best, "errors": len(results.errors)}))


if __name__ == "__main__":
    main()
