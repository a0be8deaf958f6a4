"""``python -m tests.cluster.enclosed``: the tests of clusters, in namespaces of their own.

They need root and some of Debian's packages; without them it says so and ends well, or badly where
``REQUIRE_HOSTS=1`` says that they must run. Arguments go to pytest.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

__all__ = ["LAB", "enclosing", "kept_in_tmp", "missing"]

#: Where the lab keeps its hosts' files; a file system in memory that only the namespaces see.
LAB: Final = Path("/mnt/lab")

#: Command -> Debian's package.
_NEEDED: Final = {
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "ip": "iproute2",
    "ss": "iproute2",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "rsync": "rsync",
    "curl": "curl",
    "pgrep": "procps",
}

_ROOT: Final = Path(__file__).resolve().parents[2]

#: ``/tmp`` is the operator's own: Ray keeps the state of clusters there, by name. So is the home, which ssh
#: takes from passwd and nowhere else.
_SCRIPT: Final = """
set -eu
mount --make-rprivate /
mount -t tmpfs -o size=8g tmpfs /mnt
mkdir -p {lab}/operator/home {lab}/operator/tmp
{keep}
mount --bind {lab}/operator/tmp /tmp
sed "1s#:[^:]*:/bin/bash#:{lab}/operator/home:/bin/bash#" /etc/passwd > {lab}/operator/passwd
mount --bind {lab}/operator/passwd /etc/passwd
ip link set lo up
export HOME={lab}/operator/home TMPDIR=/tmp TUNE_RESCON_LAB={lab}
exec {command}
"""


def missing() -> list[str]:
    """What is not there, in words."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    packages = {package for name, package in _NEEDED.items() if shutil.which(name, path=path) is None}
    found = [f"Debian's packages {' '.join(sorted(packages))}"] if packages else []
    return found if os.geteuid() == 0 else ["root", *found]


def kept_in_tmp(target: Path) -> str:
    """Shell commands that have a new ``/tmp`` made of ``target`` show what Python needs of the old one."""
    needed = {Path(sys.prefix), Path(sys.base_prefix), _ROOT}
    lines = []
    for path in sorted(path for path in needed if path.is_relative_to("/tmp")):
        inside = shlex.quote(str(target / path.relative_to("/tmp")))
        lines += [f"mkdir -p {inside}", f"mount --rbind {shlex.quote(str(path))} {inside}"]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Become pytest, in there; or its exit code without."""
    lacking = missing()
    if lacking:
        required = os.environ.get("REQUIRE_HOSTS") == "1"
        verdict = "and REQUIRE_HOSTS=1 says that they must run." if required else "they are SKIPPED."
        print(f"The tests of clusters need {' and '.join(lacking)}: {verdict}", file=sys.stderr)
        return 1 if required else 0
    tests = str(Path(__file__).parent)
    command = enclosing([sys.executable, "-m", "pytest", "-m", "hosts", tests, *arguments])
    return os.execvp(command[0], command)


def enclosing(command: Sequence[str]) -> list[str]:
    """Return a command that runs ``command`` in new namespaces: its end is the end of all that it started."""
    # --kill-child: with this process goes the first one of the namespaces, and with that all of them.
    unshare = ["unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
    keep = kept_in_tmp(LAB / "operator" / "tmp")
    script = _SCRIPT.format(lab=LAB, keep=keep, command=shlex.join(command))
    return [*unshare, "--mount-proc", "bash", "-c", script]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
