"""``python -m tune_rescon.launching.guard COMMAND...``: run a command, and let no process of it stay.

Whoever starts this makes it the leader of a process group and holds the other end of its standard input. When
that end closes, be it by a SIGKILL, or when the command ends, the whole group is killed.
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
    """Does not return."""
    # Handlers, for what is ignored here would be ignored by the command as well.
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
