"""``python -m tune_rescon.clusters.guard COMMAND...``: run a command; kill all its processes at the end.

The caller starts this module as the leader of a process group and holds the other end of its standard input.
The whole group is killed when that end closes, also by a SIGKILL of the caller, and when the command ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str]) -> None:
    """Run a command until it or this process's standard input ends, then kill the process group.

    This function does not return.
    """
    # Handlers instead of SIG_IGN, because the command would inherit ignored signals.
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, lambda *_: None)
    command = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    threading.Thread(target=_wait, args=(command,), daemon=True).start()
    sys.stdin.buffer.read()
    os.killpg(os.getpgid(0), signal.SIGKILL)


def _wait(command: subprocess.Popen[bytes]) -> None:
    code = command.wait()
    print(f"mlflow server ended with code {code}", file=sys.stderr, flush=True)
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
