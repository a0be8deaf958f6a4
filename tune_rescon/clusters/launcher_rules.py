"""The rules for a file of Ray's cluster launcher (``ray up``), in addition to Ray's schema."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tune_rescon.clusters.cluster_file import (
    TOKEN,
    ClusterDocument,
    Severity,
    is_command,
    machine_type,
    texts_in,
    value_at,
)
from tune_rescon.clusters.shared_rules import (
    HEAD_METRICS_OFF,
    METRICS_OFF,
    command_findings,
    image_problems,
    ray_starts,
    schema_problems,
    storage_problems,
)
from tune_rescon.clusters.shell import ShellCommand
from tune_rescon.errors import KeyPath, dotted, format_error, unknown_name_message

__all__ = ["check_launcher"]

_HEAD_STARTS: Final = "head_start_ray_commands"
_WORKER_STARTS: Final = "worker_start_ray_commands"


def check_launcher(document: ClusterDocument) -> None:
    """Add every finding to ``document``."""
    shaped = dict(document.value)
    if _provider(document) == "local":
        # Ray removes this key before it validates against its schema.
        shaped.pop("min_workers", None)
    for name, steps, text in schema_problems(shaped):
        document.add(name, steps, text)
    for check in (
        _check_head_type,
        _check_workers,
        _check_addresses,
        _check_starts,
        _check_shells,
        _check_token,
        _check_head_resources,
        _check_spot,
        _check_images,
        _check_storage,
        _check_mounts,
        _check_node_config,
        _check_metadata,
        _check_costs,
    ):
        check(document)


def _provider(document: ClusterDocument) -> str:
    return str(value_at(document.value, "provider", "type"))


def _node_types(document: ClusterDocument) -> Iterator[tuple[str, Mapping[str, Any], KeyPath]]:
    """Yield the name, content and place of each node type that is a mapping."""
    types = document.value.get("available_node_types")
    for name, node_type in types.items() if isinstance(types, Mapping) else ():
        if isinstance(node_type, Mapping):
            yield name, node_type, ("available_node_types", name)


def _commands(document: ClusterDocument) -> Iterator[tuple[str, KeyPath]]:
    """Yield every command, and docker's options, with its place."""
    for steps, text in texts_in(document.value):
        if is_command(steps):
            yield text, steps


def _check_head_type(document: ClusterDocument) -> None:
    if _provider(document) == "local":
        for key in ("head_ip", "worker_ips"):
            if value_at(document.value, "provider", key) is None:
                document.add_violation("head-type", ("provider",), "is missing", where=f"provider.{key}")
        return
    names = [name for name, _, _ in _node_types(document)]
    head = document.value.get("head_node_type")
    if head not in names:
        text = unknown_name_message("node type", head, names, where="head_node_type")
        document.add("head-type", ("head_node_type",), text)


def _check_workers(document: ClusterDocument) -> None:
    max_workers, sum_of_min = document.value.get("max_workers"), 0
    local = _provider(document) == "local"
    sections: list[tuple[Mapping[str, Any], KeyPath]] = [(t, steps) for _, t, steps in _node_types(document)]
    for section, steps in [(document.value, ())] if local else sections:
        low, high = section.get("min_workers", 0), section.get("max_workers", max_workers)
        if not isinstance(low, int) or not isinstance(high, int):
            continue
        sum_of_min += low
        if not 0 <= low <= high:
            rule, got = "`0 <= min_workers <= max_workers` must hold", f"{low} and {high}"
            place = (*steps, "min_workers") if "min_workers" in section else steps
            document.add_violation("workers", place, rule, got=got, where=dotted(steps))
    if not local and isinstance(max_workers, int) and sum_of_min > max_workers:
        rule = "the sum of all `min_workers` must be at most `max_workers`"
        got = f"{sum_of_min} and {max_workers}"
        document.add_violation("workers", ("max_workers",), rule, got=got, where="")


def _check_addresses(document: ClusterDocument) -> None:
    """Check that no rule of a security group admits the whole internet."""
    for steps, text in texts_in(document.value):
        for everywhere in ("0.0.0.0/0", "::/0"):
            if everywhere in text:
                rule = "nothing may be open to the whole internet"
                hint = "Name the addresses you come from."
                document.add_violation("ingress", steps, rule, got=everywhere, hint=hint)
    if _provider(document) != "aws":
        return
    for _, node_type, steps in _node_types(document):
        config = node_type.get("node_config") or {}
        if not value_at(config, "SecurityGroupIds") and not value_at(config, "NetworkInterfaces"):
            rule = "every node type must name your own SecurityGroupIds"
            hint = "A group that Ray makes lets the whole internet in to port 22."
            document.add_violation("ingress", (*steps, "node_config"), rule, hint=hint)


def _check_starts(document: ClusterDocument) -> None:
    """Check every command: those that start Ray, and the servers that others start."""
    for command, steps in _commands(document):
        head = True if steps[0] == _HEAD_STARTS else None
        for found in command_findings(command, where=dotted(steps), head=head):
            # The finding has the command's line in the file, not its line within the command.
            document.add(found.rule, steps, found.text, found.severity)
        for start in ray_starts(command):
            wanted = HEAD_METRICS_OFF if start.is_head else METRICS_OFF
            missing = [
                f"{name}={value}" for name, value in wanted.items() if start.environment.get(name) != value
            ]
            if missing:
                rule = f"a `ray start` should have `{' '.join(missing)}` in its environment"
                hint = "Otherwise the node answers for its metrics without the token."
                document.add_violation("metrics", steps, rule, hint=hint, severity="warning")
    for key in (_HEAD_STARTS, _WORKER_STARTS):
        commands = document.value.get(key)
        if not any(ray_starts(str(command)) for command in (commands if isinstance(commands, list) else ())):
            hint = "Ray's defaults take no token, and on a cloud show the dashboard to everybody."
            document.add_violation("auth-mode", (key,), "must start Ray", got="no `ray start`", hint=hint)
    head_ip = value_at(document.value, "provider", "head_ip")
    for start in _head_starts(document):
        address = start.option("node-ip-address")
        if head_ip and address is not None and address != head_ip:
            rule = "--node-ip-address must be provider.head_ip"
            document.add_violation("head-address", (_HEAD_STARTS,), rule, got=f"{address} and {head_ip}")


def _head_starts(document: ClusterDocument) -> Iterator[ShellCommand]:
    commands = document.value.get(_HEAD_STARTS)
    for command in commands if isinstance(commands, list) else ():
        yield from ray_starts(str(command))


def _check_shells(document: ClusterDocument) -> None:
    """Check that the head's shells have the token mode: `ray status` through `ray exec` and jobs need it."""
    setting = "RAY_AUTH_MODE=token"
    # In `X=RAY_AUTH_MODE=token` it is the value of another variable.
    pattern = re.compile(rf"(?<![\w=]){setting}(?!\w)")
    shells = ("setup_commands", "head_setup_commands", "run_options")
    for command, steps in _commands(document):
        if pattern.search(command) and any(str(step) in shells for step in steps):
            return
    rule = f"the shells of the head should have {setting}, or `ray exec ... 'ray status'` is refused"
    document.add_violation("auth-shells", ("setup_commands",), rule, severity="warning")


def _check_token(document: ClusterDocument) -> None:
    """Check that every node gets the token: made on the head, or brought from this machine."""
    mounts = document.value.get("file_mounts")
    mounts = (
        {str(target): str(source) for target, source in mounts.items()} if isinstance(mounts, Mapping) else {}
    )
    makes = any("get-auth-token --generate" in command for command, _ in _commands(document))
    # A worker's mounts come from the head, with what the head's commands have put there.
    if makes and any(target.rstrip("/").endswith("/.ray") for target in mounts):
        return
    source = next((source for target, source in mounts.items() if target.endswith("/.ray/auth_token")), None)
    if source is None:
        rule = "must hold `~/.ray: ./cluster/token`, and head_setup_commands `ray get-auth-token --generate`"
        hint = "Without the token no node may join. cluster.yaml shows both lines."
        document.add_violation("auth-token", ("file_mounts",), rule, hint=hint)
    elif not _exists(source):
        rule = "names a file that is not there: plain `ray up` starts the head, and then fails"
        creates = "`tune-rescon cluster up` makes it, as does `ray get-auth-token --generate`."
        hint = creates if source == TOKEN else ""
        document.add_violation(
            "auth-token", ("file_mounts",), rule, got=source, hint=hint, severity="warning"
        )


def _exists(source: str) -> bool:
    try:
        return Path(source).expanduser().exists()
    except RuntimeError:  # no such user
        return False


def _check_head_resources(document: ClusterDocument) -> None:
    hint = "A trial on the head takes the driver's and MLflow's time, and dies with them."
    if _provider(document) == "local":
        for start in _head_starts(document):
            for what in ("num-cpus", "num-gpus"):
                if (count := start.option(what)) != "0":
                    rule = f"the head must be started with `--{what}=0`"
                    got = count or "none"
                    document.add_violation("head-resources", (_HEAD_STARTS,), rule, got=got, hint=hint)
        return
    head = document.value.get("head_node_type")
    for name, node_type, steps in _node_types(document):
        resources = node_type.get("resources")
        if name == head and (value_at(resources, "CPU") != 0 or value_at(resources, "GPU") != 0):
            where, rule = (*steps, "resources"), "the head's must be {CPU: 0, GPU: 0}"
            document.add_violation("head-resources", where, rule, got=str(resources), hint=hint)


def _check_spot(document: ClusterDocument) -> None:
    is_spot: Callable[[Any], bool] | None = {"aws": _is_spot, "gcp": _is_preemptible}.get(_provider(document))
    head = document.value.get("head_node_type")
    for name, node_type, steps in _node_types(document):
        if is_spot is None or (is_spot(node_type.get("node_config")) == (name != head)):
            continue
        where = (*steps, "node_config")
        if name == head:
            rule, hint = "the head must not be a spot instance", "Its loss ends the driver of every search."
            document.add_violation("spot", where, rule, hint=hint)
        else:
            rule = "workers should be spot instances, which cost less"
            hint = "A trial continues elsewhere from its checkpoint."
            document.add_violation("spot", where, rule, hint=hint, severity="warning")


def _is_spot(config: Any) -> bool:
    return bool(value_at(config, "InstanceMarketOptions", "MarketType") == "spot")


def _is_preemptible(config: Any) -> bool:
    scheduling = value_at(config, "scheduling")
    for section in scheduling if isinstance(scheduling, list) else [scheduling]:
        if value_at(section, "preemptible") is True or value_at(section, "provisioningModel") == "SPOT":
            return True
    return False


def _check_images(document: ClusterDocument) -> None:
    places: list[KeyPath] = [("docker", key) for key in ("image", "head_image", "worker_image")]
    places += [(*steps, "docker", "worker_image") for _, _, steps in _node_types(document)]
    for steps in places:
        if image := value_at(document.value, *steps):
            for text, severity in image_problems(str(image), where=dotted(steps)):
                document.add("image", steps, text, severity)


def _check_storage(document: ClusterDocument) -> None:
    if document.value.get("max_workers") == 0:
        return
    commands = [(dotted(steps), command) for command, steps in _commands(document)]
    places = {dotted(steps): steps for _, steps in _commands(document)}
    for where, text in storage_problems(commands):
        document.add("storage", places.get(where, ("setup_commands",)), text)


def _check_mounts(document: ClusterDocument) -> None:
    mounts = document.value.get("file_mounts")
    for target, source in mounts.items() if isinstance(mounts, Mapping) else ():
        if str(source).rstrip("/") in (".", "..", "~", "$PWD"):
            rule = "a whole checkout must not be mounted: Ray reads all of it each time, .venv/ too"
            hint = "Name the paths that the nodes need."
            document.add_violation("mounts", ("file_mounts", target), rule, got=source, hint=hint)


def _check_node_config(document: ClusterDocument) -> None:
    if _provider(document) != "aws":
        return
    reported: set[tuple[int, str]] = set()
    for _, node_type, steps in _node_types(document):
        where = (*steps, "node_config")
        for below, text, severity in _instance_problems(node_type.get("node_config"), where):
            # A merge key repeats the same finding on the same line, so it is reported once.
            key = (document.line(below), str(below[len(where) :]))
            if key not in reported:
                reported.add(key)
                document.add("node-config", below, text, severity)


def _check_metadata(document: ClusterDocument) -> None:
    """Check that reading a machine's credentials needs a token: a forged request must not get them."""
    if _provider(document) != "aws":
        return
    reported: set[int] = set()
    for _, node_type, steps in _node_types(document):
        config = node_type.get("node_config")
        # A launch template may set the option.
        if value_at(config, "MetadataOptions", "HttpTokens") == "required" or value_at(
            config, "LaunchTemplate"
        ):
            continue
        where = (*steps, "node_config", "MetadataOptions")
        if document.line(where) not in reported:
            reported.add(document.line(where))
            rule = "must be {HttpTokens: required}"
            hint = "Version 1 of the metadata service gives the machine's credentials without a token."
            document.add_violation(
                "metadata", where, rule, got=str(value_at(config, "MetadataOptions")), hint=hint
            )


#: The longest idle time-out, in minutes, that gives no finding.
_LONGEST_IDLE: Final = 60.0

#: Machine types with an accelerator, by provider.
_ACCELERATED: Final[Mapping[str, re.Pattern[str]]] = {
    "aws": re.compile(r"(p\d|g\d|gr\d|trn\d|inf\d|dl\d)\w*[.-]"),
    "gcp": re.compile(r"(a\d|g\d|ct\d)\w*-"),
    "azure": re.compile(r"Standard_N[A-Z]", re.IGNORECASE),
}


def _check_costs(document: ClusterDocument) -> None:
    """Add a finding for each setting with which unused machines or disks are billed."""
    provider = _provider(document)
    if provider not in _ACCELERATED:
        return
    _check_stopped_nodes(document, provider)
    _check_idle(document)
    head = document.value.get("head_node_type")
    steps: KeyPath = ("available_node_types", str(head), "node_config")
    config = value_at(document.value, *steps)
    machine = machine_type(config)
    if _ACCELERATED[provider].match(machine) or value_at(config, "guestAccelerators"):
        rule = "the head should be a machine without a GPU"
        hint = "It is billed all the time, and no trial runs on it."
        document.add_violation("cost", steps, rule, got=machine, hint=hint, severity="warning")


def _check_stopped_nodes(document: ClusterDocument, provider: str) -> None:
    steps: KeyPath = ("provider", "cache_stopped_nodes")
    # Without the key, Ray stops machines on AWS and Azure, and ends them on Google Cloud.
    given = value_at(document.value, *steps)
    if given is False or (given is None and provider == "gcp"):
        return
    hint = "Ray stops machines instead of ending them, and their disks are billed until you find them."
    got = "nothing, which is true for Ray" if given is None else str(given).lower()
    document.add_violation("cost", steps, "should be false", got=got, hint=hint, severity="warning")


def _check_idle(document: ClusterDocument) -> None:
    places: list[tuple[KeyPath, float]] = [(("idle_timeout_minutes",), 1.0)]
    types = document.value.get("available_node_types")
    names = list(types) if isinstance(types, Mapping) else []
    places += [(("available_node_types", name, "idle_timeout_s"), 1 / 60) for name in names]
    for steps, minutes in places:
        value = value_at(document.value, *steps)
        if isinstance(value, int | float) and value * minutes > _LONGEST_IDLE:
            rule = f"should be at most {_LONGEST_IDLE:g} minutes"
            hint = "So long a worker with nothing to do is billed."
            got = f"{value * minutes:g}"
            document.add_violation("cost", steps, rule, got=got, hint=hint, severity="warning")


#: Not an argument of RunInstances: Ray chooses a SubnetId from it.
_RAY_ONLY_KEYS: Final = ("SubnetIds",)

_SCALARS: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "long": (int,),
    "double": (int, float),
    "float": (int, float),
}


def _instance_problems(config: Any, steps: KeyPath) -> Iterator[tuple[KeyPath, str, Severity]]:
    """Yield what RunInstances refuses of a ``node_config`` at ``steps``: place, text and severity."""
    shapes = _shapes()
    if shapes is None:
        rule = "node_config is checked against botocore's description of EC2, which is not installed"
        yield steps, format_error(rule, hint="pip install 'tune_rescon[cluster]'"), "warning"
        return
    if isinstance(config, Mapping):
        config = {key: value for key, value in config.items() if key not in _RAY_ONLY_KEYS}
    yield from _shape_problems(config, "RunInstancesRequest", steps, shapes)


def _shape_problems(
    value: Any, name: str, steps: KeyPath, shapes: Mapping[str, Any]
) -> Iterator[tuple[KeyPath, str, Severity]]:
    shape = shapes[name]
    kind = shape["type"]
    if kind == "structure":
        if not isinstance(value, Mapping):
            yield steps, format_error("must be a mapping", got=repr(value), where=dotted(steps)), "error"
            return
        members = shape["members"]
        for key, inner in value.items():
            below = (*steps, key)
            if key in members:
                yield from _shape_problems(inner, members[key]["shape"], below, shapes)
            else:
                yield below, unknown_name_message("key", key, members, where=dotted(below)), "error"
    elif kind == "list":
        if not isinstance(value, list):
            yield steps, format_error("must be a list", got=repr(value), where=dotted(steps)), "error"
            return
        for index, inner in enumerate(value):
            yield from _shape_problems(inner, shape["member"]["shape"], (*steps, index), shapes)
    elif kind in _SCALARS:
        if not isinstance(value, _SCALARS[kind]) or (isinstance(value, bool) and kind != "boolean"):
            yield (
                steps,
                format_error(f"must be of type {kind}", got=repr(value), where=dotted(steps)),
                "error",
            )
        elif "enum" in shape and value not in shape["enum"]:
            # EC2 may have newer values than the installed botocore.
            close = difflib.get_close_matches(str(value), shape["enum"], n=1)
            hint = f"Did you mean {close[0]!r}?" if close else ""
            rule = "should be a value that botocore knows"
            yield steps, format_error(rule, got=repr(value), where=dotted(steps), hint=hint), "warning"


@functools.cache
def _shapes() -> Mapping[str, Any] | None:
    try:
        # Imported here, because only the extra `cluster` installs it.
        from botocore.loaders import Loader
    except ImportError:
        return None
    model: Mapping[str, Any] = Loader().load_service_model("ec2", "service-2")
    shapes: Mapping[str, Any] = model["shapes"]
    return shapes
