"""A space as YAML: resolved, every default written out, and read back equal."""

from __future__ import annotations

from io import StringIO

from ruamel.yaml import YAML

from tune_rescon.spaces.space import Space

__all__ = ["dump_space"]


def dump_space(space: Space) -> str:
    """The space as a file's text; :func:`load_space` reads it back equal."""
    values = space.model_dump(by_alias=True)
    # A parameter without step or `when` reads better without the words; every other null is a choice.
    values["parameters"] = {
        name: parameter.model_dump(by_alias=True, exclude_none=True)
        for name, parameter in space.parameters.items()
    }
    yaml = YAML(typ="safe", pure=True)
    yaml.width = 1_000  # a section on a line, as people write them
    yaml.representer.sort_base_mapping_type_on_output = False
    yaml.representer.ignore_aliases = lambda _: True  # the loader reads no anchors
    text = StringIO()
    yaml.dump(values, text)
    return text.getvalue()
