"""The rules for KubeRay's manifests: clusters and jobs."""

from __future__ import annotations

from importlib.metadata import version
from typing import Final

from tune_rescon.clusters.documents import ClusterDocument, Severity, at, texts_in
from tune_rescon.clusters.lint import check_image, check_storage
from tune_rescon.errors import KeyPath, dotted, format_error

__all__ = ["check_manifest"]


#: The path of the cluster in a manifest, by the manifest's kind.
_CLUSTERS: Final = {"RayCluster": ("spec",), "RayJob": ("spec", "rayClusterSpec")}


def check_manifest(document: ClusterDocument) -> None:
    """Add every finding to ``document``, if it is a KubeRay cluster or job."""
    steps: KeyPath | None = _CLUSTERS.get(str(document.value.get("kind")))
    if steps is None:
        return
    cluster = at(document.value, *steps)
    if at(cluster, "authOptions", "mode") != "token":
        rule = "must be {mode: token}"
        where = (*steps, "authOptions")
        got = str(at(cluster, "authOptions"))
        document.complain("auth-mode", where, format_error(rule, got=got, where=dotted(where)))
    if (ray := at(cluster, "rayVersion")) is not None and str(ray) != version("ray"):
        rule = f"must be the Ray of this environment, {version('ray')}"
        where = (*steps, "rayVersion")
        document.complain("image", where, format_error(rule, got=ray, where=dotted(where)))
    if (count := at(cluster, "headGroupSpec", "rayStartParams", "num-cpus")) != "0":
        rule = 'the head must be started with num-cpus: "0"'
        where = (*steps, "headGroupSpec", "rayStartParams")
        text = format_error(rule, got=repr(count), where=dotted(where))
        document.complain("head-resources", where, text)
    groups: list[KeyPath] = [(*steps, "headGroupSpec")]
    workers = at(cluster, "workerGroupSpecs")
    for index, group in enumerate(workers if isinstance(workers, list) else ()):
        below = (*steps, "workerGroupSpecs", index)
        groups.append(below)
        low, high = at(group, "minReplicas") or 0, at(group, "maxReplicas")
        if isinstance(low, int) and isinstance(high, int) and low > high:
            rule = "`minReplicas <= maxReplicas` must hold"
            text = format_error(rule, got=f"{low} and {high}", where=dotted(below))
            document.complain("workers", below, text)
    for below in groups:
        _check_container(document, below)
    _check_storage(document)


def _check_container(document: ClusterDocument, steps: KeyPath) -> None:
    # The first container of a pod runs Ray; the other containers may run any image.
    where = (*steps, "template", "spec", "containers", 0, "image")
    image = at(document.value, *where)

    def complain(text: str, severity: Severity) -> None:
        document.complain("image", where, text, severity)

    check_image(str(image), complain, where=dotted(where))


def _check_storage(document: ClusterDocument) -> None:
    given = [(dotted(steps), text) for steps, text in texts_in(document.value) if "--storage" in text]
    for steps, text in texts_in(document.value):
        if text == "TUNE_RESCON_STORAGE" and steps[-1] == "name":
            value = at(document.value, *steps[:-1], "value")
            given.append((dotted(steps[:-1]), f"TUNE_RESCON_STORAGE={value}"))
    check_storage(given, lambda _where, text: document.complain("storage", (), text))
