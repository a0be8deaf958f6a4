"""``--set KEY=VALUE``."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tune_rescon.errors import SpaceError
from tune_rescon.search import main
from tune_rescon.spaces import (
    FloatParameter,
    Space,
    chosen_values,
    dump_space,
    load_space,
    parse_space,
    to_optuna,
)

ErrorLines = Callable[..., list[str]]
LoadChanged = Callable[..., Space]


def test_override_values_are_parsed_as_yaml(load_changed: LoadChanged) -> None:
    overrides = (
        "budget.hours=1e-1",
        "fidelity.max=27",
        "fixed.flip=false",
        "dataset={name: cifar10, limit: 100}",
    )
    space = load_changed({}, overrides)
    assert (space.budget.hours, space.fidelity.max, space.fixed["flip"]) == (0.1, 27, False)
    assert (space.dataset.name, space.dataset.limit) == ("cifar10", 100)


def test_the_value_of_an_enqueued_trial_may_be_a_list() -> None:
    steps = "parameters.step_fractions={type: categorical, choices: [[40, 60], [30, 70]]}"
    chosen = chosen_values(load_space("digits", [steps, "initial=[]"]), ["step_fractions=[30, 70]"])
    assert to_optuna(chosen) == {"step_fractions": "[30, 70]"}


@pytest.mark.parametrize(("augment", "remaining"), [("augmix", ["flip", "crop_padding"]), ("none", [])])
def test_pinning_a_value_removes_indirectly_inactive_parameters(augment: str, remaining: list[str]) -> None:
    parameters = (
        "parameters={learning_rate: {type: float, low: 0.01, high: 0.1},"
        " augment: {type: categorical, choices: [none, augmix]},"
        " flip: {type: categorical, choices: [true, false], when: {parameter: augment, in: [augmix]}},"
        " crop_padding: {type: categorical, choices: [0, 4], when: {parameter: flip, in: [true]}}}"
    )
    space = load_space("digits", ["fixed={}", "initial=[]", parameters, f"augment={augment}"])
    assert list(space.parameters) == ["learning_rate", *remaining]


def test_the_last_of_two_overrides_is_used(load_changed: LoadChanged) -> None:
    assert load_changed({}, ("budget.trials=3", "budget.trials=4")).budget.trials == 4


def test_a_nested_key_can_be_overridden(load_changed: LoadChanged) -> None:
    parameter = load_changed({}, ("parameters.learning_rate.low=0.02",)).parameters["learning_rate"]
    assert isinstance(parameter, FloatParameter)
    assert parameter.low == 0.02


def test_a_missing_section_is_created(load_changed: LoadChanged) -> None:
    assert load_changed({9: ""}, ("resources_per_trial.gpu=1",)).resources_per_trial.gpu == 1


def test_a_section_left_empty_is_filled(load_changed: LoadChanged) -> None:
    assert load_changed({10: "fixed:"}, ("fixed.flip=false",)).fixed == {"flip": False}


def test_changing_a_type_drops_keys_of_the_old_type(load_changed: LoadChanged) -> None:
    space = load_changed({}, ("sampler.type=random", "scheduler.type=none"))
    assert (space.sampler.type, space.sampler.seed, space.scheduler.type) == ("random", 3, "none")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "budget.trails=3",
            "--set budget.trails: budget.trails: unknown key 'trails' (did you mean 'trials'?); known: ",
        ),
        ("foo.bar=3", "--set foo.bar: foo: unknown key 'foo'; known: budget, constraints,"),
        ("budget.trials=many", "--set budget.trials: budget.trials: must be a whole number, but got 'many'."),
        ("budget.trials=[", "--set budget.trials: is not YAML"),
        ("budget.trials.low=3", "--set budget.trials.low: budget.trials: must be a section"),
        ("parameters.lr.low=3", "--set parameters.lr.low: parameters.lr: unknown parameter 'lr'"),
        (
            "parameters.depth.choices=[92, 156]",
            "--set parameters.depth.choices: parameters.depth.choices[1]: depth: ",
        ),
        ("fixed={lr: 1}", "--set fixed: fixed.lr: unknown parameter 'lr'"),
        ("initial.0.depth=92", "--set initial.0.depth: initial: must be a section"),
        ("metric.mode=min", "--set metric.mode: metric.mode: val_accuracy goes with mode max, but got min."),
        (
            "budget.trials",
            "--set budget.trials: --set takes KEY=VALUE, with a dotted key, but got 'budget.trials'.",
        ),
        ("=3", "--set =3: --set takes KEY=VALUE"),
        ("budget..trials=3", "--set takes KEY=VALUE"),
    ],
)
def test_a_bad_override_is_reported_as_an_override(
    error_lines: ErrorLines, override: str, message: str
) -> None:
    assert any(line.startswith(message) or message in line for line in error_lines({}, (override,)))


def test_an_override_replaces_an_invalid_value(load_changed: LoadChanged) -> None:
    assert load_changed({8: "budget: {trials: x}"}, ("budget.trials=5",)).budget.trials == 5


def test_a_rule_broken_by_an_override_names_the_line_of_the_broken_key(error_lines: ErrorLines) -> None:
    errors = error_lines({}, ("parameters.depth.choices=[56]",))
    assert errors == [
        "s.yaml:15: parameters.drop_path.when.in[0]: must be one of the choices 56, but got 92."
    ]


FOLDER = "dataset={name: folder, path: x}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("my photos #1", "my photos #1"),
        ("2024", "2024"),
        ("007", "007"),
        ("true", "true"),
        ("[old]", "[old]"),
        ("~/photos", "~/photos"),
        ("a: b", "a: b"),
        ("'my photos #1'", "my photos #1"),
        ('"photos"', "photos"),
    ],
)
def test_string_fields_are_not_parsed_as_yaml(load_changed: LoadChanged, text: str, expected: str) -> None:
    assert load_changed({}, (FOLDER, f"dataset.path={text}")).dataset.path == expected


def test_null_is_none_for_optional_string_fields(load_changed: LoadChanged) -> None:
    for null in ("null", ""):
        assert (
            load_changed({}, (FOLDER, "dataset.ignore=*.gif", f"dataset.ignore={null}")).dataset.ignore
            is None
        )
    assert load_changed({}, ("description=null",)).description == "null"


def test_string_fields_of_every_section_stay_strings(load_changed: LoadChanged) -> None:
    space = load_changed({}, ("name=2024", "fixed.init_from=1.0"))
    assert (space.name, space.fixed["init_from"]) == ("2024", "1.0")


@pytest.mark.parametrize("value", ["2024", "007", "true", "[old]"])
def test_an_unquoted_non_string_in_a_file_suggests_quotes(error_lines: ErrorLines, value: str) -> None:
    errors = error_lines({3: f"dataset: {{name: folder, path: {value}}}"})
    assert any('in quotes: `path: "..."`.' in line for line in errors)


def test_an_unquoted_number_as_name_suggests_quotes(error_lines: ErrorLines) -> None:
    assert any('in quotes: `name: "..."`.' in line for line in error_lines({2: "name: 2024"}))


def test_ignore_is_refused_for_a_builtin_dataset(error_lines: ErrorLines) -> None:
    errors = error_lines({}, ("dataset.ignore=*.gif",))
    assert errors == [
        "--set dataset.ignore: dataset.ignore: only the dataset `folder` has `ignore`, but got '*.gif'."
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("max=27", lambda space: space.fidelity.max == 27),
        ("hours=2", lambda space: space.budget.hours == 2),
        ("width=0.5", lambda space: space.fixed["width"] == 0.5),
        ("split_seed=7", lambda space: space.dataset.split_seed == 7),
        ("cpu=2", lambda space: space.resources_per_trial.cpu == 2),
        ("learning_rate.low=0.02", lambda space: space.parameters["learning_rate"].low == 0.02),
    ],
)
def test_a_field_can_be_set_without_its_section(
    load_changed: LoadChanged, override: str, expected: Callable[[Space], bool]
) -> None:
    assert expected(load_changed({}, (override,)))


def test_a_value_pins_a_searched_field(load_changed: LoadChanged) -> None:
    before = load_changed({})
    space = load_changed({}, ("learning_rate=0.1",))
    assert space.fixed == {**before.fixed, "learning_rate": 0.1}
    assert list(space.parameters) == [name for name in before.parameters if name != "learning_rate"]


def test_a_range_replaces_a_searched_fields_range(load_changed: LoadChanged) -> None:
    space = load_changed({}, ("learning_rate={type: float, low: 0.05, high: 0.2}",))
    assert space.parameters["learning_rate"] == FloatParameter(type="float", low=0.05, high=0.2)
    assert "learning_rate" not in space.fixed


def test_a_dependent_of_a_pinned_parameter_is_unconditional_or_removed() -> None:
    assert load_space("att92", ["depth=92"], drop_rows=False).parameters["drop_path"].when is None
    assert "drop_path" not in load_space("att92", ["depth=56"]).parameters


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "type=grid",
            "--set type: 'type' must be given by its full key, but got sampler.type or scheduler.type.",
        ),
        ("depth=57", "--set depth: fixed.depth: "),
        ("learning_rate=fast", "--set learning_rate: fixed.learning_rate: must be"),
        ("learnig_rate=0.1", "--set learnig_rate: learnig_rate: unknown key"),
        ("depth.low=1", "--set depth.low: parameters.depth.low: unknown key 'low'"),
    ],
)
def test_a_value_that_a_field_cannot_have_is_reported(
    error_lines: ErrorLines, setting: str, message: str
) -> None:
    assert any(line.startswith(message) for line in error_lines({}, (setting,)))


def test_an_initial_row_excluded_by_an_override_is_dropped_and_reported(progress: list[str]) -> None:
    space = load_space("att92", ["learning_rate=0.05"])
    assert space.initial == ()
    (line,) = progress
    assert "att92.yaml:" in line
    assert (
        "this row of `initial` is left out, because it does not fit --set: learning_rate is fixed at" in line
    )
    assert line.endswith("learning_rate is fixed at 0.05, and the row has 0.1.")
    space = load_space("att92", ["parameters.learning_rate.high=0.05"])
    assert space.initial == ()
    assert "learning_rate must be in [0.001, 0.05], but got 0.1" in progress[1]


def test_an_initial_row_with_the_pinned_value_is_kept(progress: list[str]) -> None:
    space = load_space("folder", ["path=x", "image_size=64", "depth=56"])
    assert (space.fixed["image_size"], space.fixed["depth"]) == (64, 56)
    assert [row["learning_rate"] for row in space.initial] == [0.05]
    assert progress == []


def test_dropping_a_row_keeps_the_line_numbers_of_the_others(progress: list[str]) -> None:
    text = dump_space(load_space("pareto"))
    space = parse_space(text, source="s.yaml", overrides=["width.choices=[0.5, 1.0]"], drop_rows=True)
    assert [row["width"] for row in space.initial] == [0.5, 1.0]
    assert len(progress) == 1
    rows = [number for number, line in enumerate(text.splitlines(), 1) if line.startswith("- ")]
    assert progress[0].startswith(f"s.yaml:{rows[0]}: ")
    with pytest.raises(SpaceError, match=rf"s.yaml:{rows[0]}: initial\[0\]"):
        parse_space(text, source="s.yaml", overrides=["width.choices=[0.5, 1.0]"])


def test_an_invalid_row_is_refused_despite_overrides() -> None:
    """Only rows that an override itself excludes are dropped."""
    text = dump_space(load_space("att92")).replace("learning_rate: 0.1,", "learning_rate: 9.0,")
    with pytest.raises(SpaceError, match="learning_rate: must be in"):
        parse_space(text, source="s.yaml", overrides=["fidelity.max=9"], drop_rows=True)


def test_the_command_prints_the_dropped_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--space", "att92", "--set", "learning_rate=0.05", "--dry-run", "--plain"]) == 0
    output = capsys.readouterr().out
    assert "this row of `initial` is left out" in output.splitlines()[0]
    assert "learning_rate: 0.05" in output
