"""``tune-rescon init``: a space file that loads, with a line for every field, each of which is valid."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from tune_rescon.__main__ import main
from tune_rescon.config import DatasetConfig, TrialConfig, field_names
from tune_rescon.errors import SpaceError
from tune_rescon.spaces import Space, list_spaces, load_space, parse_space
from tune_rescon.spaces.json_schema import space_template
from tune_rescon.spaces.sections import Budget, Fidelity, Metric, Sampler, Scheduler, Section

#: A setting that is commented out: `#key: value`. Every other comment is prose, `# text`.
SETTING = re.compile(r"^(\s*)#(\w+): (.*)$")
PROSE = re.compile(r"^\s*#( |$)")


def settings(text: str) -> list[int]:
    return [number for number, line in enumerate(text.splitlines()) if SETTING.match(line)]


def uncommented(text: str, numbers: list[int]) -> str:
    lines = text.splitlines()
    for number in numbers:
        lines[number] = SETTING.sub(r"\1\2: \3", lines[number])
    return "\n".join(lines)


def parsed(text: str) -> tuple[Space, TrialConfig]:
    """Return the space without its fixed fields, and the configuration that they give a trial."""
    space = parse_space(text, source="x.yaml")
    return space.model_copy(update={"fixed": {}}), TrialConfig.from_dict(space.fixed)


@pytest.mark.parametrize("base", list_spaces())
def test_an_unchanged_template_equals_its_base_space(base: str) -> None:
    needs = ["dataset.path=photos/"] if base == "folder" else []
    parsed_space = parse_space(space_template("mine", base=base), source="mine.yaml")
    assert parsed_space == load_space(base, [*needs, "name=mine", "description="])


@pytest.mark.parametrize("base", list_spaces())
def test_uncommenting_all_settings_changes_nothing(base: str) -> None:
    text = space_template("mine", base=base)
    assert len(settings(text)) > 20
    assert parsed(uncommented(text, settings(text))) == parsed(text)


def test_every_comment_is_a_valid_setting_or_prose_above_one() -> None:
    text = space_template("mine")
    lines = text.splitlines()
    expected = parsed(text)
    for number in settings(text):
        assert parsed(uncommented(text, [number])) == expected, lines[number]
        assert PROSE.match(lines[number - 1]), f"a setting without a description: {lines[number]}"
    comments = [line for line in lines if line.lstrip().startswith("#")]
    assert [line for line in comments if not SETTING.match(line) and not PROSE.match(line)] == []


def test_every_field_has_a_line() -> None:
    text = space_template("mine")
    keys = set(re.findall(r"^\s*#?(\w+):", text, re.MULTILINE))
    sections: tuple[type[Section], ...] = (Metric, Fidelity, Sampler, Scheduler, Budget)
    below = set().union(*(section.keys() for section in sections))
    trial = set(field_names()) - {"dataset"}
    dataset = {field.name for field in dataclasses.fields(DatasetConfig)}
    assert (set(Space.model_fields) | below | trial | dataset) - keys == set()


def test_a_changed_setting_is_used() -> None:
    text = space_template("mine").replace("  #width: 1.0", "  width: 0.5")
    assert parse_space(text, source="x.yaml").fixed["width"] == 0.5


@pytest.mark.parametrize("argument", ["mine", "mine.yaml"])
def test_init_does_not_overwrite_an_existing_file(
    argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", argument]) == 0
    assert "tune-rescon search --space mine.yaml --dry-run" in capsys.readouterr().out
    path = tmp_path / "mine.yaml"
    assert load_space(path).name == "mine"
    path.write_text("of mine")
    assert main(["init", argument]) == 2
    assert "mine.yaml: must not exist yet, but got a file." in capsys.readouterr().err
    assert path.read_text() == "of mine"


@pytest.mark.parametrize("name", ["../x", "a b", "-x", ""])
def test_an_invalid_name_is_refused_without_writing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "--", name]) == 2
    assert "Error: NAME: must be letters, digits," in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_base_lists_the_known_ones() -> None:
    with pytest.raises(SpaceError, match="att92"):
        space_template("mine", base="att93")


def test_a_folder_that_cannot_be_written_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").symlink_to(tmp_path / "gone" / "mine.yaml")
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine"]) == 2
    assert "mine.yaml: must" in capsys.readouterr().err
