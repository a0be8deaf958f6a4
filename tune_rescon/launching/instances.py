"""A node type's ``node_config`` against what EC2's RunInstances takes.

Ray's schema lets anything through there, and EC2 refuses it when the node is wanted: a typo in a worker's
comes to light when the first trial waits. botocore has the call's description in a file.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Mapping
from typing import Any, Final

from tune_rescon.errors import explain, unknown_name
from tune_rescon.launching.document import Steps, dotted
from tune_rescon.launching.findings import Severity

__all__ = ["instance_problems"]

#: Not RunInstances's: Ray draws a SubnetId from it.
_RAYS_OWN: Final = ("SubnetIds",)

_SCALARS: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "long": (int,),
    "double": (int, float),
    "float": (int, float),
}


def instance_problems(config: Any, steps: Steps) -> Iterator[tuple[Steps, str, Severity]]:
    """What RunInstances would not take: where, what to tell, how bad.

    Args:
        config: the ``node_config``.
        steps: where it stands.
    """
    shapes = _shapes()
    if shapes is None:
        rule = "node_config is checked against botocore's description of EC2, which is not installed"
        yield steps, explain(rule, hint="pip install 'tune_rescon[cluster]'"), "warning"
        return
    if isinstance(config, Mapping):
        config = {key: value for key, value in config.items() if key not in _RAYS_OWN}
    yield from _walk(config, "RunInstancesRequest", steps, shapes)


def _walk(
    value: Any, name: str, steps: Steps, shapes: Mapping[str, Any]
) -> Iterator[tuple[Steps, str, Severity]]:
    shape = shapes[name]
    kind = shape["type"]
    if kind == "structure":
        if not isinstance(value, Mapping):
            yield steps, explain("must be a mapping", got=repr(value), where=dotted(steps)), "error"
            return
        members = shape["members"]
        for key, inner in value.items():
            below = (*steps, key)
            if key in members:
                yield from _walk(inner, members[key]["shape"], below, shapes)
            else:
                yield below, unknown_name("key", key, members, where=dotted(below)), "error"
    elif kind == "list":
        if not isinstance(value, list):
            yield steps, explain("must be a list", got=repr(value), where=dotted(steps)), "error"
            return
        for index, inner in enumerate(value):
            yield from _walk(inner, shape["member"]["shape"], (*steps, index), shapes)
    elif kind in _SCALARS:
        if not isinstance(value, _SCALARS[kind]) or (isinstance(value, bool) and kind != "boolean"):
            yield steps, explain(f"must be of type {kind}", got=repr(value), where=dotted(steps)), "error"
        elif "enum" in shape and value not in shape["enum"]:
            # EC2 may know more than the botocore that is installed.
            close = difflib.get_close_matches(str(value), shape["enum"], n=1)
            hint = f"Did you mean {close[0]!r}?" if close else ""
            rule = "should be a value that botocore knows"
            yield steps, explain(rule, got=repr(value), where=dotted(steps), hint=hint), "warning"


@functools.cache
def _shapes() -> Mapping[str, Any] | None:
    try:
        # Imported here: it comes with the extra `cluster`.
        from botocore.loaders import Loader
    except ImportError:
        return None
    model: Mapping[str, Any] = Loader().load_service_model("ec2", "service-2")
    shapes: Mapping[str, Any] = model["shapes"]
    return shapes
