"""Which copy is newer: the table, and any number of runs on any machines that die at any moment."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_rescon.storage import Copy, choose_copies, choose_copy


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
def test_table(here: int | None, at_url: int | None, expected: Copy) -> None:
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
def test_the_first_leads(terms: list[tuple[int | None, int | None]], expected: list[Copy]) -> None:
    assert choose_copies(terms) == expected


@dataclass
class Place:
    """A copy of the database: its term, and what is in it."""

    term: int | None = None
    epochs: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """One run of the search, and how far it comes before its machine kills it."""

    machine: int
    begins: str
    """"dies first", "sends" (and dies before it stamps its live database), or "stamps"."""
    epochs: tuple[bool, ...]
    """Of each: whether it was sent."""


RUNS = st.lists(
    st.builds(
        Run,
        machine=st.integers(0, 2),
        begins=st.sampled_from(["dies first", "sends", "stamps"]),
        epochs=st.lists(st.booleans(), max_size=4).map(tuple),
    ),
    max_size=8,
)


@given(runs=RUNS)
def test_no_sent_epoch_is_lost_and_no_epoch_at_all_on_one_machine(runs: list[Run]) -> None:
    url, machines = Place(), [Place() for _ in range(3)]
    last_sender = None
    for n, run in enumerate(runs):
        here = machines[run.machine]
        term = max(here.term or 0, url.term or 0) + 1
        mine = list(here.epochs)
        if choose_copy(here=here.term, at_url=url.term) is Copy.URL:
            here.term, here.epochs = url.term, list(url.epochs)
        assert here.epochs[: len(url.epochs)] == url.epochs
        if last_sender in (None, run.machine):
            assert here.epochs == mine
        if run.begins == "dies first":
            continue
        url.term, url.epochs, last_sender = term, list(here.epochs), run.machine
        if run.begins == "sends":
            continue
        here.term = term
        for epoch, sent in enumerate(run.epochs):
            here.epochs.append(f"{n}.{epoch}")
            if sent:
                url.epochs = list(here.epochs)
