"""A search as text: the rows of the table, the differences of searches, JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import json
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from tune_rescon.config import TrialState
from tune_rescon.data import Account
from tune_rescon.data.selection import LeftOut
from tune_rescon.reporting import (
    csv_text,
    json_text,
    markdown_text,
    mlflow_note,
    overviews_json,
    print_comparison,
    print_overviews,
    print_result,
)
from tune_rescon.reporting.formats import (
    COMPARISON_HEADINGS,
    MAX_NOTE,
    comparison_row,
    differences,
    headings,
    ranked,
    row,
)
from tune_rescon.reporting.page import render_page
from tune_rescon.spaces import Space, load_space
from tune_rescon.tuning import SearchOverview, SearchState, StudyResult, TrialCost, TrialRecord

MakeTrial = Callable[..., TrialRecord]
MakeResult = Callable[..., StudyResult]
MakeCosts = Callable[..., dict[int, TrialCost]]

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)

OVERVIEWS = (
    SearchOverview(
        name="a",
        metric="val_accuracy",
        state=SearchState.RUNNING,
        best=0.5,
        ended=3,
        total=12,
        changed=NOW - timedelta(seconds=75),
    ),
    SearchOverview(name="b", problem="its study is [gone]"),
)


def reject_constant(name: str) -> float:
    raise AssertionError(f"{name} is no JSON")


def test_json_has_every_trial_and_no_nan(
    make_result: MakeResult, trials_of_every_state: list[TrialRecord]
) -> None:
    result = make_result(*trials_of_every_state)
    read = json.loads(json_text(result, [result]), parse_constant=reject_constant)
    assert [trial["trial"] for trial in read["trials"]] == [trial.number for trial in trials_of_every_state]
    assert [trial["state"] for trial in read["trials"]] == [
        trial.state.value for trial in trials_of_every_state
    ]
    assert read["best"]["trial"] == result.best.number if result.best else None
    assert [other["search"] for other in read["compared"]] == [result.name]


def test_json_of_an_empty_search_is_valid(make_result: MakeResult) -> None:
    read = json.loads(json_text(make_result()), parse_constant=reject_constant)
    assert (read["best"], read["best_command"], read["trials"], read["utilisation"]) == (None, None, [], 0.0)


def test_csv_has_one_row_per_trial_of_each_search(make_result: MakeResult, make_trial: MakeTrial) -> None:
    first = make_result(make_trial(0), make_trial(1, values=()))
    other = make_result(make_trial(0, parameters={"depth": 92, "drop_path": 0.1}), name="other")
    rows = list(csv.DictReader(io.StringIO(csv_text([first, other]))))
    assert [(row["search"], row["trial"]) for row in rows] == [("s", "0"), ("s", "1"), ("other", "0")]
    assert (rows[0]["drop_path"], rows[2]["drop_path"], rows[2]["learning_rate"]) == ("", "0.1", "")
    assert (rows[0]["value"], rows[1]["value"], rows[1]["best_epoch"]) == ("0.5", "", "")


def test_csv_text_is_never_a_formula(make_result: MakeResult, make_trial: MakeTrial) -> None:
    result = make_result(make_trial(0, parameters={"init_from": "@SUM(1)", "learning_rate": -0.1}))
    (row,) = csv.DictReader(io.StringIO(csv_text([result])))
    assert (row["init_from"], row["learning_rate"]) == ("'@SUM(1)", "-0.1")


def test_every_format_lists_the_image_counts(make_result: MakeResult, make_trial: MakeTrial) -> None:
    account = Account(
        class_names=("a", "<b>"),
        per_class={"train": (2, 3), "val": (1, 1), "test": (0, 0)},
        left_out=(LeftOut(kind="hidden files", count=1, names=(".<x>.png",)),),
    )
    result = make_result(make_trial(0), accounts={"folder": account})
    assert Account.from_json(json.loads(json_text(result))["images"]["folder"]) == account
    lines = [f"folder: {line}" for line in account.lines()]
    assert all(f"- {line}\n" in markdown_text(result) for line in lines)
    page = render_page(result, written=datetime(2026, 1, 1))
    assert all(f"<li>{html.escape(line)}</li>" in page for line in lines)
    assert "<h2>Images</h2>" not in render_page(make_result(make_trial(0)), written=datetime(2026, 1, 1))


def test_no_format_shows_a_password(make_result: MakeResult, make_trial: MakeTrial) -> None:
    source = "https://ann:s3cret@host/w.ckpt?sig=s3cret"
    trials = [make_trial(n, parameters={"init_from": source, "depth": 56}) for n in range(2)]
    result = make_result(*trials)
    result = dataclasses.replace(result, weights={source: "0" * 16})
    page = render_page(result, written=datetime(2026, 1, 1))
    for text in (json_text(result), csv_text([result]), markdown_text(result), page):
        assert "s3cret" not in text
        assert "https://ann:***@host/w.ckpt?sig=***" in text


def test_markdown_names_the_best_five(make_result: MakeResult, make_trial: MakeTrial) -> None:
    result = make_result(*(make_trial(n, values=(0.1, n / 10)) for n in range(1, 9)))
    text = markdown_text(result, [dataclasses.replace(result, name="other|x")])
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    numbers = [line.split("|")[1].strip() for line in lines]
    assert numbers[:7] == ["trial", "---", "8", "7", "6", "5", "4"]
    assert "other\\|x" in text
    assert "python -m tune_rescon.search --space" in text


def test_a_long_note_has_the_commands_and_shows_that_it_is_cut(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    """The search was resumed again and again, each time with another change."""
    history = tuple(f"Run {run}: fidelity.max is {run} instead of {run - 1}" for run in range(2, 200))
    result = make_result(make_trial(0), space_history=history, state=SearchState.INTERRUPTED)
    note = mlflow_note(result)
    assert len(note) == MAX_NOTE
    assert note.endswith("…")
    assert f"tune_rescon.search --resume s --storage {result.folder.parent}`" in note
    assert not mlflow_note(make_result(make_trial(0), space_history=history[:2])).endswith("…")


def test_a_bar_in_a_class_name_does_not_split_a_markdown_cell(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    head, line, *_ = [
        line
        for line in markdown_text(make_result(make_trial(0), metric="val_f1/a|b")).splitlines()
        if "|" in line
    ]
    assert "val f1/a\\|b" in head
    assert head.replace("\\|", "").count("|") == line.count("|")


def test_every_format_names_a_better_unfinished_trial(make_result: MakeResult, make_trial: MakeTrial) -> None:
    unfinished = make_trial(17, TrialState.PAUSED, (0.75,))
    result = make_result(make_trial(4), unfinished, state=SearchState.INTERRUPTED)
    line = (
        "Best in hand: trial_0017 has val_accuracy 0.75 after 1 of 2 epochs; the winner, trial_0004, has 0.5."
        " To train it to the end: python -m tune_rescon.train --from s --trial 17"
        f" --storage {result.folder.parent}"
    )
    out = io.StringIO()
    print_result(result, Console(file=out, width=60, highlight=False))
    assert f"\n{line}\n" in out.getvalue()
    assert f"\n\n{line}\n" in markdown_text(result)
    assert f"\n\n{line}\n" in mlflow_note(result)
    assert f"<p>{html.escape(line)}</p>" in render_page(result, written=datetime(2026, 1, 1))
    read = json.loads(json_text(result))
    assert (read["best"]["trial"], read["in_hand"]["trial"], read["in_hand"]["best_value"]) == (4, 17, 0.75)


@pytest.mark.parametrize(
    ("study_url", "shown"),
    [
        ("sqlite:////team/studies.db", "sqlite:////team/studies.db"),
        ("postgresql://ann:s3cret@db/studies", '"$TUNE_RESCON_STUDY"'),
    ],
    ids=["a file", "with a password"],
)
def test_every_command_names_the_shared_study(
    study_url: str, shown: str, make_result: MakeResult, make_trial: MakeTrial
) -> None:
    unfinished = make_trial(17, TrialState.PAUSED, (0.75,))
    trials = (make_trial(4), unfinished, *(make_trial(n) for n in range(20, 60)))
    result = make_result(*trials, state=SearchState.INTERRUPTED, study_url=study_url)
    place = f"--storage {result.folder.parent} --study {shown}"
    out = io.StringIO()
    print_result(result, Console(file=out, width=60, highlight=False), from_record=True)
    assert f"\nAll of it: python -m tune_rescon.report s {place} --csv\n" in out.getvalue()
    for text in (out.getvalue(), mlflow_note(result)):
        assert f"python -m tune_rescon.train --from s --trial 17 {place}\n" in text
    assert f"`python -m tune_rescon.report s {place}`" in mlflow_note(result)
    assert f"`python -m tune_rescon.search --resume s {place}`" in mlflow_note(result)


@pytest.mark.parametrize("repeats", [True, False])
def test_every_format_names_the_best_mean_of_repeated_parameters(
    repeats: bool, make_result: MakeResult, make_trial: MakeTrial, capsys: pytest.CaptureFixture[str]
) -> None:
    """The learning rate 0.1 has the best trial, and 0.2 the best mean. 0.4 ran once; 0.3 was stopped."""
    values = {0.1: (0.9, 0.3), 0.2: (0.8, 0.7), 0.3: (0.95, 0.95), 0.4: (0.85,)}
    states = {0.3: TrialState.STOPPED}
    runs = [(rate, value) for rate, each in values.items() for value in each]
    trials = [
        make_trial(number, states.get(rate, TrialState.FINISHED), (value,), {"learning_rate": rate})
        for number, (rate, value) in enumerate(runs)
    ]
    space = load_space("digits", [f"sampler={{type: random, repeats: {repeats}}}".lower()])
    result = make_result(*trials, space=space)
    line = (
        "The winner, trial_0000, is the best single trial. Of parameters that finished more than once, those"
        " of trial_0002 have the best mean val_accuracy: 0.75 over 2 trials. Those of the winner have 0.6"
        " over 2 trials."
    )
    print_result(result, Console(width=1000))
    page = html.unescape(render_page(result, written=datetime(2026, 1, 1)))
    texts = (capsys.readouterr().out, page, markdown_text(result), mlflow_note(result))
    assert [line in text for text in texts] == [repeats] * 4
    assert ("finished more than once" in markdown_text(result)) == repeats
    once = make_result(*(trial for trial in trials if trial.number not in (0, 1)), space=space)
    assert ("Those of the winner finished once." in markdown_text(once)) == repeats
    lucky = make_result(*trials[:2], space=space)
    assert ("0.6 over 2 trials. The winner is one of these." in markdown_text(lucky)) == repeats


def test_no_format_names_an_unfinished_trial_if_the_winner_is_best(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    result = make_result(make_trial(4), make_trial(17, TrialState.STOPPED, (0.25,)))
    out = io.StringIO()
    print_result(result, Console(file=out, width=60, highlight=False))
    page = render_page(result, written=datetime(2026, 1, 1))
    for text in (out.getvalue(), markdown_text(result), mlflow_note(result), page):
        assert "in hand" not in text
    assert json.loads(json_text(result))["in_hand"] is None


def test_a_running_search_shows_no_command_to_train_the_best_trial(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    running = make_trial(17, TrialState.RUNNING, (0.75,))
    text = markdown_text(make_result(make_trial(4), running, state=SearchState.RUNNING))
    assert "1 of 2 epochs; the winner so far, trial_0004, has 0.5.\n" in text
    assert "tune_rescon.train" not in text


def test_the_command_for_a_search_at_a_url_uses_the_storage_url(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    unfinished = make_trial(17, TrialState.PAUSED, (0.75,))
    assert "--trial 17 --storage s3://bucket/runs\n" in markdown_text(
        make_result(make_trial(4), unfinished, url="s3://bucket/runs/s")
    )


def test_overviews_are_available_as_text_and_json() -> None:
    out = io.StringIO()
    print_overviews(OVERVIEWS, Console(file=out, width=120, highlight=False), now=NOW)
    text = out.getvalue()
    assert "1 min 15 s ago" in text
    assert "3/12" in text
    assert "b: its study is [gone]" in text
    read = json.loads(overviews_json(OVERVIEWS), parse_constant=reject_constant)
    assert [(row["name"], row["state"], row["best"]) for row in read] == [
        ("a", "running", 0.5),
        ("b", None, None),
    ]


def test_the_name_of_a_folder_is_no_markup() -> None:
    """A user may have renamed it."""
    names = ("a [old]", "b [/b]")
    out = io.StringIO()
    overviews = [SearchOverview(name=name) for name in names]
    print_overviews(overviews, Console(file=out, width=120, highlight=False), now=NOW)
    assert all(name in out.getvalue() for name in names)


def test_a_narrow_terminal_shows_every_value_and_date_of_the_searches() -> None:
    name, state, changed = "demo-20261130-225600", SearchState.INTERRUPTED, NOW - timedelta(days=5)
    overview = dataclasses.replace(
        OVERVIEWS[0], name=name, state=state, best=0.9965, ended=12, total=128, changed=changed
    )
    out = io.StringIO()
    print_overviews([overview], Console(file=out, width=80, highlight=False), now=NOW)
    cells = [cell.strip() for cell in out.getvalue().splitlines()[4].split("│")[1:-1]]
    assert cells[:3] == ["demo-20261130-225600", "interrupted", "12/128"]
    assert cells[4:] == ["0.9965", "2025-12-28"]


@pytest.mark.parametrize("width", [80, 200])
def test_searches_are_compared_on_a_terminal(width: int, simulated: StudyResult) -> None:
    out = io.StringIO()
    other = dataclasses.replace(simulated, name="other")
    print_comparison([simulated, other], Console(file=out, width=width, highlight=False))
    lines = out.getvalue().splitlines()
    rows = [[cell.strip() for cell in re.split("[┃│]", line)[1:-1]] for line in lines if line[0] in "┃│"]
    expected = [COMPARISON_HEADINGS, comparison_row(simulated), comparison_row(other)]
    if width == 80:
        expected = list(zip(*expected, strict=True))
    assert rows == [list(cells) for cells in expected]


def test_a_row_has_a_cell_under_every_heading(
    make_result: MakeResult, trials_of_every_state: list[TrialRecord]
) -> None:
    result = make_result(*trials_of_every_state)
    for trial in result.trials:
        assert len(row(result, trial)) == len(headings(result))


def test_row_formats_each_column(make_result: MakeResult, make_trial: MakeTrial) -> None:
    result = make_result(make_trial(0, TrialState.STOPPED, (0.75, 0.123456)))
    cells = dict(zip(headings(result), row(result, result.trials[0]), strict=True))
    assert cells == {
        "trial": "0",
        "state": "stopped",
        "epochs": "2",
        "val_accuracy": "0.1235",
        "best": "0.75",
        "params M": "0.85",
        "GMACs": "0.125",
        "hours": "2.000",
        "depth": "56",
        "learning_rate": "0.1",
    }


def test_a_two_objective_search_has_a_pareto_front_column(
    make_result: MakeResult, make_trial: MakeTrial, make_costs: MakeCosts
) -> None:
    trials = [make_trial(n, values=(0.1, value)) for n, value in enumerate((0.9, 0.7, 0.8))]
    result = make_result(*trials, against="gmacs", costs=make_costs(4.0, 2.0, 1.0))
    column = headings(result).index("front")
    assert [row(result, trial)[column] for trial in trials] == ["*", "", "*"]


@pytest.mark.parametrize("values", [(), (math.nan,)], ids=["no epoch", "nan"])
def test_a_missing_value_is_a_dash(
    values: tuple[float, ...], make_result: MakeResult, make_trial: MakeTrial
) -> None:
    result = make_result(
        make_trial(0, TrialState.FAILED, values, {"depth": 56}),
        make_trial(1, parameters={"depth": 92, "drop_path": 0.1}),
    )
    cells = dict(zip(headings(result), row(result, result.trials[0]), strict=True))
    assert (cells["val_accuracy"], cells["best"], cells["drop_path"]) == ("-", "-", "-")


def test_an_empty_search_has_no_rows(make_result: MakeResult) -> None:
    assert ranked(make_result()) == []
    assert "val_accuracy" in headings(make_result())


def test_trials_are_ranked_best_first(make_result: MakeResult, make_trial: MakeTrial) -> None:
    trials = [
        make_trial(0, TrialState.FAILED, ()),
        make_trial(1, TrialState.STOPPED, (0.9,)),
        make_trial(2, values=(0.1, 0.5)),
        make_trial(3, values=(0.1, 0.6)),
    ]
    assert [trial.number for trial in ranked(make_result(*trials))] == [3, 2, 1, 0]


def test_searches_with_incomparable_values_are_reported(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    """Comparability depends on the digest of the images and the metric, not on paths and names."""
    first = make_result(make_trial(0), images={"digits": "0123"})
    same = make_result(make_trial(0), name="same", images={"digits": "0123"})
    earlier = make_result(make_trial(0), name="earlier")
    assert differences([first, same, earlier]) == []
    split = make_result(make_trial(0), name="split", images={"digits": "4567"})
    other = make_result(
        make_trial(0), name="other", space=load_space("digits", ["dataset.name=fashion_mnist"])
    )
    loss = make_result(make_trial(0), name="loss", metric="val_loss", maximize=False)
    assert differences([first, same, split, other, loss]) == [
        "split was evaluated on other images than s: do not compare their values",
        "other was evaluated on other images than s (digits and fashion_mnist): do not compare their values",
        "s was ranked by val_accuracy and loss by val_loss: do not compare their values",
    ]


def test_hours_of_cores_are_not_compared_with_hours_of_gpus(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    cores = make_result(make_trial(0), name="cores")
    gpus = make_result(make_trial(0), name="gpus", device="GPU")
    assert differences([cores, gpus, cores]) == [
        "The hours of cores are core-hours, and those of gpus GPU-hours: do not compare them"
    ]


def test_searches_over_different_datasets_are_not_comparable(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    choices = "parameters.dataset={type: categorical, choices: [digits, fashion_mnist]}"
    space = load_space("digits", [choices])
    images = {"digits": "0123", "fashion_mnist": "4567"}
    trials = [make_trial(n, parameters={"dataset": name}) for n, name in enumerate(images)]
    two_datasets = make_result(*trials, name="both", space=space, images=images)
    one_dataset = make_result(make_trial(0), name="one", images={"digits": "0123"})
    assert differences([two_datasets, two_datasets]) == []
    (line,) = differences([one_dataset, two_datasets])
    assert "both was evaluated on other images than one (digits and digits, fashion_mnist)" in line
    changed = make_result(*trials, name="new", space=space, images={**images, "fashion_mnist": "89ab"})
    assert differences([two_datasets, changed]) == [
        "new was evaluated on other images than both: do not compare their values"
    ]
    # Both searches have trials on the digits alone.
    digits_only = make_result(trials[0], name="begun", space=space, images=images)
    assert differences([one_dataset, digits_only]) == []


def test_metric_at_best_and_metric_at_last_are_not_comparable(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    best = make_result(make_trial(0), space=load_space("digits", ["metric.at=best"]))
    last = make_result(make_trial(0), name="last", space=load_space("digits", ["metric.at=last"]))
    assert differences([best, best]) == []
    assert differences([best, last]) == [
        "s counts val_accuracy at the best epoch and last at the last: do not compare their values"
    ]


def test_functions_of_one_name_are_different_metrics(make_result: MakeResult, make_trial: MakeTrial) -> None:
    ours, theirs = (
        make_result(
            make_trial(0),
            name=name,
            metric="val_score",
            space=load_space(
                "digits", [f"metric={{name: val_score, mode: max, log: ['{name}.metrics:score']}}"]
            ),
        )
        for name in ("ours", "theirs")
    )
    assert differences([ours, ours]) == []
    (line,) = differences([ours, theirs])
    assert line == (
        "ours was ranked by val_score (ours.metrics:score) and theirs by val_score (theirs.metrics:score):"
        " do not compare their values"
    )


def test_searches_for_the_largest_and_the_smallest_value_have_other_winners(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    largest, smallest = (
        make_result(
            make_trial(0),
            name=mode,
            metric="val_score",
            maximize=mode == "max",
            space=load_space(
                "digits", [f"metric={{name: val_score, mode: {mode}, log: ['ours.metrics:score']}}"]
            ),
        )
        for mode in ("max", "min")
    )
    assert differences([largest, smallest]) == [
        "max was ranked by larger and min by smaller values of val_score: do not compare which is best"
    ]


def test_values_of_a_metric_with_changed_code_are_not_comparable(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    by_score = load_space("digits", ["metric={name: val_score, mode: max, log: ['ours.metrics:score']}"])
    logged = load_space("digits", ["metric.log=['ours.metrics:score']"])

    def result(name: str, digest: str, space: Space = by_score) -> StudyResult:
        result = make_result(make_trial(0), name=name, metric=space.metric.name, space=space)
        return dataclasses.replace(result, code={"ours.metrics:score": digest} if digest else {})

    assert differences([result("a", "0"), result("b", "0"), result("earlier", "")]) == []
    assert differences([result("a", "0"), result("b", "1")]) == [
        "a and b had different code of ours.metrics:score: do not compare their values"
    ]
    # Trials are not ranked by a metric that is only logged.
    assert differences([result("a", "0", logged), result("b", "1", logged)]) == []


def test_every_format_shows_what_cannot_be_compared(make_result: MakeResult, make_trial: MakeTrial) -> None:
    first = make_result(make_trial(0), images={"digits": "0123"})
    split = make_result(make_trial(0), name="split", images={"digits": "4567"}, metric="val_loss")
    (line,) = differences([first, split])
    assert json.loads(json_text(first, [split]))["differences"] == [line]
    assert json.loads(json_text(first))["differences"] == []
    assert line in markdown_text(first, [split])
    assert line in render_page(first, compared=[split], written=datetime(2026, 1, 1))
    console = Console(file=io.StringIO(), width=250)
    print_comparison([first, split], console)
    assert isinstance(console.file, io.StringIO)
    assert line in console.file.getvalue()
    rows = list(csv.DictReader(io.StringIO(csv_text([first, split]))))
    assert [row["metric"] for row in rows] == ["val_accuracy", "val_loss"]
