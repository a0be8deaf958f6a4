"""The data of a search, made ready before Ray starts: bad images end a search before it has begun."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tune_rescon.data import DatasetFacts, describe, is_url, local_path, open_dataset
from tune_rescon.data.decode import levels_words
from tune_rescon.errors import DataError, explain
from tune_rescon.spaces import Space
from tune_rescon.tuning.initial_weights import with_absolute_weights
from tune_rescon.tuning.options import RunOptions
from tune_rescon.tuning.pricing import datasets_of
from tune_rescon.tuning.record.study import StudyRecord
from tune_rescon.tuning.stored_side import cache_words

__all__ = ["Prepared", "anchored", "check_same_images", "judging_words", "note_images", "prepare_data"]

#: The study's attribute: the digest of each dataset's images and splits, by name.
_IMAGES: Final = "image_digests"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A dataset that this machine's cache holds."""

    facts: DatasetFacts
    digest: str
    """Equal where images, labels and splits are."""


def anchored(space: Space) -> Space:
    """``space`` with absolute paths: workers run elsewhere, and so may whoever resumes."""
    space = with_absolute_weights(space)
    if space.dataset.path is None or is_url(space.dataset.path):
        return space
    absolute = dataclasses.replace(space.dataset, path=str(local_path(space.dataset.path)))
    return space.model_copy(update={"dataset": absolute})


def prepare_data(space: Space, options: RunOptions, say: Callable[[str], object]) -> dict[str, Prepared]:
    """Decode what this machine's cache does not hold yet; each dataset, by its name.

    Args:
        space: whose datasets.
        options: where they are kept.
        say: told, before the first image is decoded, what is read of a folder and what is left out.

    Raises:
        DataError: images are missing, unreadable or too few.
    """
    prepared = {}
    for dataset in datasets_of(space):
        facts = describe(dataset, data_root=options.data_root)
        account = facts.account.lines() if facts.account else []
        judging = [] if facts.account is None else judging_words(space, facts)
        for line in (*account, *cache_words(space, facts), *judging):
            say(f"{dataset.name}: {line}")
        images = open_dataset(
            dataset,
            data_root=options.data_root,
            cache_root=options.cache_root,
            progress=options.show_progress,
        )
        if images.levels is not None:
            say(f"{dataset.name}: {levels_words(images.levels)}")
        if space.metric.of_test_images and not facts.test_images:
            rule = "there must be test images for a network to be judged by"
            hint = "Put some into test/CLASS beside train/, or set dataset.test_fraction."
            raise DataError(explain(rule, got=f"none in {facts.name}", where="dataset", hint=hint))
        prepared[dataset.name] = Prepared(facts=facts, digest=images.digest)
    return prepared


def judging_words(space: Space, facts: DatasetFacts) -> list[str]:
    """Which images will judge the winners of a search, so that it is known before it is paid for."""
    if space.metric.of_test_images:
        words = (
            f"there are no test images, so the {facts.test_images} validation images judge the networks, and"
            " do not train; networks that a search chose by these very images do slightly worse on others"
        )
        return [words] if facts.validation_tests else []
    if facts.test_images:
        return [f"`tune_rescon.train` will judge the winners by the {facts.test_images} test images"]
    words = (
        f"there are no test images: `tune_rescon.train` will judge the winners by the {facts.val_images}"
        " validation images that chose them, unless `--set dataset.test_fraction=0.15` holds some out now"
    )
    return [words]


def check_same_images(record: StudyRecord, prepared: Mapping[str, Prepared]) -> None:
    """Check that a resumed search has the images and splits that its trials had, wherever they are now.

    A record that an earlier version of this package wrote does not know them: nothing is checked.

    Raises:
        DataError: a dataset differs.
    """
    noted = record.attribute(_IMAGES) or {}
    known = record.attribute("datasets") or {}
    for name, dataset in prepared.items():
        if noted.get(name, dataset.digest) != dataset.digest:
            rule = "a resumed search must have the images that its trials were trained and validated on"
            got = f"other images in {name} ({_counts(known.get(name), dataset.facts)})"
            hint = (
                "Put back the images, or begin a search of another --name with --warm-start and this one's"
                " name, which learns from its trials."
            )
            raise DataError(explain(rule, got=got, where="dataset", hint=hint))


def _counts(known: Mapping[str, Any] | None, facts: DatasetFacts) -> str:
    """What differs, as far as counting tells."""
    parts = ("train", "val", "test")
    found = {part: getattr(facts, f"{part}_images") for part in parts}
    had = {part: (known or {}).get(f"{part}_images") for part in parts}
    changed = [f"{part} {had[part]} then, {found[part]} now" for part in parts if had[part] != found[part]]
    return "; ".join(changed) if known and changed else "as many as before, and not the same"


def note_images(record: StudyRecord, digests: Mapping[str, str]) -> None:
    """Write down which images the trials have: a digest for each dataset."""
    record.set_attribute(_IMAGES, {**(record.attribute(_IMAGES) or {}), **digests})
