"""A space as YAML: resolved, every default written out, and read back equal."""

from __future__ import annotations

from collections.abc import Mapping
from io import StringIO
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import VersionedResolver

from tune_rescon.config import plain_number
from tune_rescon.spaces.space import Space

__all__ = ["dump_space", "yaml_text"]

_STRING: Final = "tag:yaml.org,2002:str"


def dump_space(space: Space) -> str:
    """The space as a file's text; :func:`load_space` reads it back equal."""
    values = space.model_dump(by_alias=True)
    # A parameter without step or `when` reads better without the words; every other null is a choice.
    values["parameters"] = {
        name: parameter.model_dump(by_alias=True, exclude_none=True)
        for name, parameter in space.parameters.items()
    }
    return yaml_text(values)


def yaml_text(values: Mapping[str, Any], *, block: bool = False) -> str:
    """``values`` as YAML that tools for YAML 1.1 and for YAML 1.2 read alike.

    Args:
        values: plain values; a tuple is written as a list, a number of any real type as a number.
        block: whether inner lists and mappings have a line for each item.

    >>> print(yaml_text({"compile": "off", "learning_rate": 1e-05}), end="")
    compile: "off"
    learning_rate: 1.0e-05
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False if block else None
    yaml.width = 1_000  # a section on a line, as people write them
    yaml.representer.sort_base_mapping_type_on_output = False
    yaml.representer.ignore_aliases = lambda _: True  # the loader reads no anchors
    text = StringIO()
    yaml.dump(_plain(values), text)
    return text.getvalue()


class _Representer(SafeRepresenter):
    """Writes scalars so that YAML 1.1, which PyYAML reads, gives them the same type as YAML 1.2."""

    def represent_str(self, data: str) -> ScalarNode:
        """Quote what YAML 1.1 takes for another type: ``off``, ``yes``, ``1:30``."""
        style = None if _YAML_1_1.resolve(ScalarNode, data, (True, False)) == _STRING else '"'
        node: ScalarNode = self.represent_scalar(_STRING, data, style=style)
        return node

    def represent_float(self, data: float) -> ScalarNode:
        """Write ``1.0e-05``: without the dot YAML 1.1 reads a string."""
        node: ScalarNode = super().represent_float(data)
        if "." not in node.value:
            node.value = node.value.replace("e", ".0e", 1)
        return node


_Representer.add_representer(str, _Representer.represent_str)
_Representer.add_representer(float, _Representer.represent_float)

_YAML_1_1: Final = VersionedResolver(version=(1, 1))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return plain_number(value)
