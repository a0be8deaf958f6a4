"""Changes since an earlier search: of the images, the initial weights, the user's code and the networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tune_rescon.config import DatasetConfig, TrialConfig
from tune_rescon.data import Account, describe, open_dataset
from tune_rescon.models import ExternalSpec, describe_network
from tune_rescon.spaces import Space, trial_config
from tune_rescon.tuning import SearchLocation, SearchState, StudyResult
from tune_rescon.tuning.input_digests import changed_digests, code_digests
from tune_rescon.tuning.prepare import read_weights

__all__ = ["changed_code", "changed_images", "changed_layout", "changed_weights", "changes_since"]


def changes_since(result: StudyResult, space: Space, location: SearchLocation, *, decode: bool) -> list[str]:
    """Return a message if the search ``result`` still runs, and one for each input that has changed since.

    See :func:`changed_images`, :func:`changed_weights` and :func:`changed_code`, which have these arguments.
    """
    is_running = result.state is SearchState.RUNNING
    messages = (
        f"{result.name} still runs: a later trial of it may be better than these." if is_running else None,
        changed_images(result, space, location, decode=decode),
        changed_weights(result, space),
        changed_code(result, space),
    )
    return [message for message in messages if message is not None]


def changed_images(
    result: StudyResult, space: Space, location: SearchLocation, *, decode: bool
) -> str | None:
    """Return a message if the images are not those of the search ``result``; None if they are.

    Args:
        result: the search.
        space: the space of the finals.
        location: the directories of the datasets and of the cache on this machine.
        decode: whether the pixels are compared too, if the classes and their numbers of images are the same.
            Images that this machine's cache lacks are then decoded.

    Raises:
        DataError: the images are missing or broken, or their folders are faulty.
    """
    dataset = space.dataset
    then = result.accounts.get(dataset.name)
    if then is None:
        return None
    now = describe(dataset, data_root=location.data_root).account
    if now is None:
        return None
    if not _are_as_many(then, now):
        parts = ", ".join(
            f"{part} {then.images[part]} then, {now.images[part]} now"
            for part in then.images
            if then.images[part] or now.images[part]
        )
        changes = f"{len(then.class_names)} classes then, {len(now.class_names)} now; {parts}"
    elif decode and _were_replaced(result, dataset, location):
        changes = "as many as then, but not the same"
    else:
        return None
    return (
        f"The images are not those of {result.name} any more ({changes}). Its configurations are"
        " trained and evaluated on the current images, so do not compare the values with the search's."
    )


def _are_as_many(known: Account, now: Account) -> bool:
    """Return whether the account of a search agrees with a listing, which counts its broken images too."""
    if now.class_names != known.class_names:
        return False
    more = [
        count - before
        for part, counts in now.per_class.items()
        for count, before in zip(counts, known.per_class[part], strict=True)
    ]
    return min(more) >= 0 and sum(more) == known.broken


def _were_replaced(result: StudyResult, dataset: DatasetConfig, location: SearchLocation) -> bool:
    """Return whether the images at the path of ``dataset`` differ from those that the search recorded."""
    searched = dataclasses.replace(result.space.dataset_config(dataset.name), path=dataset.path)
    recorded = result.images.get(dataset.name)
    if recorded is None:
        return False
    found = open_dataset(searched, data_root=location.data_root, cache_root=location.cache_root)
    return found.digest != recorded


def changed_weights(result: StudyResult, space: Space) -> str | None:
    """Return a message if the content of a file of ``init_from`` has changed since the search ``result``.

    Args:
        result: the search.
        space: the space of the finals.

    Raises:
        StorageError, NetworkError: a file is missing, damaged, or not a file of initial weights.
    """
    files = read_weights(space).items() if result.weights else ()
    changed = [name for name, now in files if result.weights.get(name, now.digest) != now.digest]
    if not changed:
        return None
    return (
        f"The weights in {', '.join(changed)} are not those that the trials of {result.name} began with. Its"
        " configurations are trained from the current ones, so do not compare the values with the search's."
    )


def changed_code(result: StudyResult, space: Space) -> str | None:
    """Return a message if the code of a user's function has changed since the search ``result``.

    Args:
        result: the search.
        space: the space of the finals.

    Raises:
        ConfigError: a function cannot be imported.
    """
    changed = changed_digests(result.code, code_digests(space)) if result.code else []
    if not changed:
        return None
    return (
        f"The code of {', '.join(changed)} has changed since {result.name}. Its configurations are trained"
        " with the current code, so do not compare the values with the search's."
    )


def changed_layout(configs: Sequence[TrialConfig], space: Space) -> str | None:
    """Return a message if ``layout: auto`` has become another network; None if it has not.

    Args:
        configs: the chosen configurations of the search.
        space: the space of the finals, perhaps with another image size.
    """
    before = sorted({_layout(config) for config in configs})
    now = sorted({_layout(trial_config(space, row)) for row in space.initial})
    if now == before:
        return None
    hint = f" To keep the layout: `--set layout={before[0]}`." if len(before) == 1 else ""
    return (
        f"These networks have the layout {', '.join(now)}, and those of the search have {', '.join(before)}."
        f" `layout: auto` follows from the image size, so they are different networks.{hint}"
    )


def _layout(config: TrialConfig) -> str:
    """Return the layout of a network; "none" for a network of timm or of a user's function."""
    spec = describe_network(config, classes=2, in_channels=3)
    return "none" if isinstance(spec, ExternalSpec) else spec.layout
