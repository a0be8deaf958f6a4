"""All work of a process runs on one thread, in sequence."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref

import pytest

from tests.waiting import LONGEST_WAIT
from tune_rescon.tuning.ray.worker import on_one_thread


def test_concurrent_callers_share_one_thread() -> None:
    """In a new process, where the first two calls are concurrent."""
    program = (
        "import threading\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from tune_rescon.tuning.ray.worker import on_one_thread\n"
        "both = threading.Barrier(2)\n"
        "def ask(): both.wait(); return on_one_thread(threading.get_ident)\n"
        "with ThreadPoolExecutor(2) as pool:\n"
        "    futures = [pool.submit(ask) for _ in range(6)]\n"
        "[thread] = {future.result() for future in futures}\n"
        "assert thread != threading.get_ident()\n"
    )
    subprocess.run([sys.executable, "-c", program], timeout=LONGEST_WAIT, check=True)


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(0)])
def test_an_exception_is_raised_and_the_thread_continues(error: BaseException) -> None:
    def work() -> None:
        raise error

    before = on_one_thread(threading.get_ident)
    with pytest.raises(type(error)) as raised:
        on_one_thread(work)
    assert raised.value is error
    assert on_one_thread(threading.get_ident) == before


class Referenced:
    """An object with weak references."""


def test_the_result_of_the_work_is_not_kept() -> None:
    references: list[weakref.ref[Referenced]] = []

    def work() -> Referenced:
        result = Referenced()
        references.append(weakref.ref(result))
        return result

    on_one_thread(work)
    gc.collect()
    assert references[0]() is None


def test_the_process_exits_while_work_is_running() -> None:
    program = (
        "import threading, time\n"
        "from tune_rescon.tuning.ray.worker import on_one_thread\n"
        "begun = threading.Event()\n"
        "def work(): begun.set(); time.sleep(600)\n"
        "threading.Thread(target=on_one_thread, args=(work,), daemon=True).start()\n"
        "begun.wait()\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=LONGEST_WAIT, check=False).returncode == 0
