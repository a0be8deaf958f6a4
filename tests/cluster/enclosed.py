"""``python -m tests.cluster.enclosed``: run the cluster tests in new Linux namespaces.

They need root and some Debian packages. If one is missing, the tests are skipped; with ``REQUIRE_HOSTS=1``
that is an error. Arguments are passed to pytest.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

__all__ = ["LAB", "in_new_namespaces", "missing_requirements", "tmp_bind_mounts"]

#: Directory of the hosts' files: an in-memory file system that only the namespaces see.
LAB: Final = Path("/mnt/lab")

#: The Debian package of each required command.
_REQUIRED_COMMANDS: Final = {
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

#: The operator gets its own ``/tmp``, because Ray keeps the state of clusters there by name, and its own
#: home, which ssh only reads from passwd.
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


def missing_requirements() -> list[str]:
    """Return a description of each requirement that is missing."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    packages = {
        package for name, package in _REQUIRED_COMMANDS.items() if shutil.which(name, path=path) is None
    }
    found = [f"Debian's packages {' '.join(sorted(packages))}"] if packages else []
    return found if os.geteuid() == 0 else ["root", *found]


def tmp_bind_mounts(target: Path) -> str:
    """Return shell commands that mount what Python needs from ``/tmp`` below ``target``, the new ``/tmp``."""
    needed = {Path(sys.prefix), Path(sys.base_prefix), _ROOT}
    lines = []
    for path in sorted(path for path in needed if path.is_relative_to("/tmp")):
        inside = shlex.quote(str(target / path.relative_to("/tmp")))
        lines += [f"mkdir -p {inside}", f"mount --rbind {shlex.quote(str(path))} {inside}"]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Replace this process by pytest in new namespaces; return an exit code if requirements are missing."""
    missing = missing_requirements()
    if missing:
        required = os.environ.get("REQUIRE_HOSTS") == "1"
        consequence = "and REQUIRE_HOSTS=1 says that they must run." if required else "they are SKIPPED."
        print(f"The tests of clusters need {' and '.join(missing)}: {consequence}", file=sys.stderr)
        return 1 if required else 0
    tests = str(Path(__file__).parent)
    command = in_new_namespaces([sys.executable, "-m", "pytest", "-m", "hosts", tests, *arguments])
    return os.execvp(command[0], command)


def in_new_namespaces(command: Sequence[str]) -> list[str]:
    """Return a command that runs ``command`` in new namespaces, which end with it."""
    # --kill-child: the end of this process kills the first process of the namespaces, and so all of them.
    unshare = ["unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
    keep = tmp_bind_mounts(LAB / "operator" / "tmp")
    script = _SCRIPT.format(lab=LAB, keep=keep, command=shlex.join(command))
    return [*unshare, "--mount-proc", "bash", "-c", script]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
