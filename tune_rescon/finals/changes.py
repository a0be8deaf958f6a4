"""Changes since an earlier search: of the images, the initial weights and the user's code."""

from __future__ import annotations

from pathlib import Path

from tune_rescon.data import describe
from tune_rescon.spaces import Space
from tune_rescon.tuning import StudyResult
from tune_rescon.tuning.input_digests import changed_functions, code_digests
from tune_rescon.tuning.prepare import read_weights

__all__ = ["changed_code", "changed_images", "changed_weights", "changes_since"]


def changes_since(result: StudyResult, space: Space, data_root: Path) -> list[str]:
    """Return a message for each input of the search ``result`` that has changed since.

    See :func:`changed_images`, :func:`changed_weights` and :func:`changed_code`.

    Args:
        result: the search.
        space: the space of the finals.
        data_root: the directory of the datasets on this machine.
    """
    messages = (
        changed_images(result, space, data_root),
        changed_weights(result, space),
        changed_code(result, space),
    )
    return [message for message in messages if message is not None]


def changed_images(result: StudyResult, space: Space, data_root: Path) -> str | None:
    """Return a message if the images are not those of the search ``result``; None if they are.

    Only the classes and their numbers of images are compared, so replaced images are not noticed.

    Args:
        result: the search.
        space: the space of the finals.
        data_root: the directory of the datasets on this machine.

    Raises:
        DataError: the images are missing, or their folders are faulty.
    """
    dataset = space.dataset
    then = result.accounts.get(dataset.name)
    if then is None:
        return None
    now = describe(dataset, data_root=data_root).account
    if now is None or (now.class_names, now.per_class) == (then.class_names, then.per_class):
        return None
    parts = ", ".join(
        f"{part} {then.images[part]} then, {now.images[part]} now"
        for part in then.images
        if then.images[part]
    )
    changes = [f"{len(then.class_names)} classes then, {len(now.class_names)} now", parts]
    return (
        f"The images are not those of {result.name} any more ({'; '.join(changes)}). Its configurations are"
        " trained and evaluated on the current images, so do not compare the values with the search's."
    )


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
    changed = changed_functions(result.code, code_digests(space)) if result.code else []
    if not changed:
        return None
    return (
        f"The code of {', '.join(changed)} has changed since {result.name}. Its configurations are trained"
        " with the current code, so do not compare the values with the search's."
    )
