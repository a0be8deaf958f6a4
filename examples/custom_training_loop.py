"""Use a Residual Attention Network in a LightningModule of your own.

    python examples/custom_training_loop.py

The network is a plain ``torch.nn.Module``: the loss and the optimiser are yours. Half a minute on two cores.
"""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import tune_rescon as tr


class DigitClassifier(pl.LightningModule):
    """A small network for 16 x 16 pictures, with a loss and an optimiser of one's own."""

    def __init__(self, *, learning_rate: float = 0.05, width: float = 0.25) -> None:
        """Build the network with random weights."""
        super().__init__()
        self.learning_rate = learning_rate
        self.network = tr.build_network(
            "cifar_attention56", num_classes=10, in_channels=1, width=width, image_size=16
        )

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return the logits, shape B x 10."""
        logits_BK: Tensor = self.network(images_BCHW)
        return logits_BK

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        del batch_idx
        images_BCHW, labels_B = batch
        loss = F.cross_entropy(self(images_BCHW), labels_B, label_smoothing=0.1)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the accuracy of a batch."""
        del batch_idx
        images_BCHW, labels_B = batch
        correct = self(images_BCHW).argmax(dim=1) == labels_B
        self.log("val_accuracy", correct.float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD with Nesterov momentum, as in the paper."""
        return torch.optim.SGD(
            self.parameters(), lr=self.learning_rate, momentum=0.9, weight_decay=1e-4, nesterov=True
        )


#: Batches of images and labels.
Batches = DataLoader[tuple[Tensor, ...]]


def load_batches(batch_size: int = 64) -> tuple[Batches, Batches]:
    """Return training and validation batches of scikit-learn's digits, enlarged to 16 x 16."""
    digits = load_digits()
    images_BCHW = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    images_BCHW = F.interpolate(images_BCHW, size=16, mode="bilinear")
    data = TensorDataset(images_BCHW, torch.tensor(digits.target))
    generator = torch.Generator().manual_seed(0)
    train, val = torch.utils.data.random_split(data, [0.8, 0.2], generator)
    return DataLoader(train, batch_size, shuffle=True), DataLoader(val, batch_size)


def main(*, epochs: int = 2, batches: int | float = 1.0) -> float:
    """Train, print and return the accuracy on the validation images."""
    train, val = load_batches()
    trainer = pl.Trainer(
        max_epochs=epochs,
        limit_train_batches=batches,
        limit_val_batches=batches,
        logger=False,
        enable_checkpointing=False,
    )
    module = DigitClassifier()
    trainer.fit(module, train, val)
    accuracy = float(trainer.callback_metrics["val_accuracy"])
    print(f"validation accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
