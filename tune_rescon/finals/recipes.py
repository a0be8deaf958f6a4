"""Published ways to train: what is done with a network, whichever it is, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from tune_rescon.errors import ConfigError, unknown_name

__all__ = ["RECIPES", "Recipe", "find_recipe"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long a network is trained, and with what."""

    about: str
    epochs: int
    settings: Mapping[str, Any]
    """TrialConfig's fields; those left out have its defaults."""


#: The paper's 160,000 iterations on batches of 64 of CIFAR's 50,000 images are 204.8 epochs.
_PAPER_EPOCHS: Final = 205

RECIPES: Final[Mapping[str, Recipe]] = MappingProxyType(
    {
        # Wang et al., section 4.1; the rate falls at 64k and 96k of 160k iterations.
        "paper": Recipe(
            about="Wang et al.: 160k iterations on batches of 64, Nesterov SGD, 0.1 divided by 10 twice",
            epochs=_PAPER_EPOCHS,
            settings={
                "batch_size": 64,
                "optimizer": "sgd",
                "learning_rate": 0.1,
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 1e-4,
                "schedule": "multistep",
                "step_fractions": [40, 60],
                "crop_padding": 4,
                "flip": True,
            },
        ),
        # Its README has no weight decay: the paper's is taken.
        "rescon": Recipe(
            about="ResCon: 10 epochs on batches of 16, Nesterov SGD at 0.1, images as they are",
            epochs=10,
            settings={
                "batch_size": 16,
                "optimizer": "sgd",
                "learning_rate": 0.1,
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 1e-4,
                "schedule": "constant",
                "normalize": False,
                "crop_padding": 0,
                "flip": False,
            },
        ),
        "modern": Recipe(
            about="100 epochs on batches of 128, cosine, TrivialAugment, label smoothing, averaged weights",
            epochs=100,
            settings={
                "batch_size": 128,
                "optimizer": "sgd",
                "learning_rate": 0.1,
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 5e-4,
                "schedule": "cosine",
                "warmup_epochs": 5,
                "label_smoothing": 0.1,
                "augment": "trivialaugment",
                "ema_decay": 0.999,
                "crop_padding": 4,
                "flip": True,
            },
        ),
    }
)


def find_recipe(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        ConfigError: there is none; the names there are, are listed.
    """
    if name not in RECIPES:
        raise ConfigError(unknown_name("recipe", name, list(RECIPES), where="--recipe"))
    return RECIPES[name]
