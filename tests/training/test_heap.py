from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from tune_rescon.training.device import freed_memory_kept

#: Allocates and frees blocks of the size of feature maps and counts the pages that the kernel cleared. Runs
#: in a separate process, because the state of the heap decides where a block comes from.
PROGRAM = """
import resource
from tune_rescon.training.device import freed_memory_kept

def faults(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        x = b"x" * size
        del x
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

pages = 40 * 2**20 // resource.getpagesize()
print(faults(40 * 2**20) / pages)
with freed_memory_kept():
    faults(40 * 2**20)
    print(faults(40 * 2**20) / pages)
print(faults(80 * 2**20) / pages / 2)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no such switch")
def test_large_blocks_reuse_freed_pages_within_the_context() -> None:
    process = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    before, within, after = map(float, process.stdout.split())
    assert before >= 3
    assert within < 0.1
    # Larger than the retained memory: the kernel provides it each time.
    assert after >= 3


def test_a_c_library_without_the_switch_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    with freed_memory_kept():
        pass
