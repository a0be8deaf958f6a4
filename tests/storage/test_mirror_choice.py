"""Which copy is newer: the table, and any number of runs on any machines that die at any moment."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_rescon.storage import Copy, choose_copies, choose_copy
from tune_rescon.storage.sqlite import Version


def version(term: int | None, copies: int = 0) -> Version | None:
    return None if term is None else Version(term, copies)


@pytest.mark.parametrize(
    ("here", "at_url", "expected"),
    [
        (None, None, Copy.NOWHERE),
        (None, 1, Copy.URL),
        (1, None, Copy.HERE),
        (0, None, Copy.HERE),
        (2, 2, Copy.HERE),
        (2, 3, Copy.URL),
        (0, 1, Copy.URL),
        (3, 2, Copy.HERE),
    ],
)
def test_the_copy_is_chosen_by_version(here: int | None, at_url: int | None, expected: Copy) -> None:
    assert choose_copy(here=version(here), at_url=version(at_url)) is expected


@pytest.mark.parametrize(
    ("here", "at_url", "expected"),
    [
        (Version(2, 5), Version(2, 5), Copy.HERE),
        (Version(2, 6), Version(2, 5), Copy.HERE),
        (Version(2, 5), Version(2, 6), Copy.URL),
        (Version(3, 1), Version(2, 6), Copy.HERE),
        (Version(2, 6), Version(3, 1), Copy.URL),
    ],
)
def test_copies_compare_by_run_then_by_copy_number(here: Version, at_url: Version, expected: Copy) -> None:
    assert choose_copy(here=here, at_url=at_url) is expected


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        ([], []),
        ([(2, 2), (None, None)], [Copy.HERE, Copy.NOWHERE]),
        ([(2, 2), (1, 2)], [Copy.HERE, Copy.URL]),
        ([(2, 2), (None, 1)], [Copy.HERE, Copy.URL]),
        ([(2, 3), (2, 2)], [Copy.URL, Copy.URL]),
        ([(None, 3), (4, 2)], [Copy.URL, Copy.URL]),
        ([(2, 3), (2, None)], [Copy.URL, Copy.NOWHERE]),
    ],
)
def test_the_first_database_decides(terms: list[tuple[int | None, int | None]], expected: list[Copy]) -> None:
    assert choose_copies([(version(here), version(at_url)) for here, at_url in terms]) == expected


@dataclass
class DatabaseCopy:
    """A copy of the database: its version and its epochs."""

    version: Version | None = None
    epochs: list[str] = field(default_factory=list)

    @property
    def term(self) -> int:
        return self.version.term if self.version else 0

    @property
    def copies(self) -> int:
        return self.version.copies if self.version else 0


@dataclass(frozen=True)
class Run:
    """One run of the search and the point at which its machine dies."""

    machine: int
    start: str
    """"dies first", "sends" (dies before it stamps its local database) or "stamps"."""
    epochs: tuple[str, ...]
    """Of each epoch: "sent", "counted" (the machine dies while sending it) or "unsent"."""
    image: str
    """"restored": the disk is the machine's last image; "made": an image is made before the last epoch."""


RUNS = st.lists(
    st.builds(
        Run,
        machine=st.integers(0, 2),
        start=st.sampled_from(["dies first", "sends", "stamps"]),
        epochs=st.lists(st.sampled_from(["sent", "counted", "unsent"]), max_size=4).map(tuple),
        image=st.sampled_from(["", "restored", "made"]),
    ),
    max_size=8,
)


@given(runs=RUNS)
def test_no_sent_epoch_is_lost_and_one_machine_loses_none(runs: list[Run]) -> None:
    url, machines = DatabaseCopy(), [DatabaseCopy() for _ in range(3)]
    images = [DatabaseCopy() for _ in range(3)]
    last_sender = None
    for n, run in enumerate(runs):
        if run.image == "restored":
            machines[run.machine] = copy.deepcopy(images[run.machine])
            last_sender = -1
        here = machines[run.machine]
        term = max(here.term, url.term) + 1
        epochs_before = list(here.epochs)
        if choose_copy(here=here.version, at_url=url.version) is Copy.URL:
            here.version, here.epochs = url.version, list(url.epochs)
        assert here.epochs[: len(url.epochs)] == url.epochs
        if last_sender in (None, run.machine):
            assert here.epochs == epochs_before
        if run.start == "dies first":
            continue
        sent = Version(term, 1 + max(here.copies, url.copies))
        url.version, url.epochs, last_sender = sent, list(here.epochs), run.machine
        if run.start == "sends":
            continue
        here.version = sent
        for epoch, outcome in enumerate(run.epochs):
            if run.image == "made" and epoch == len(run.epochs) - 1:
                images[run.machine] = copy.deepcopy(here)
            here.epochs.append(f"{n}.{epoch}")
            if outcome != "unsent":
                here.version = Version(term, here.copies + 1)
            if outcome == "sent":
                url.version, url.epochs = here.version, list(here.epochs)
