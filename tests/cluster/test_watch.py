"""How processes that are not ours to wait for are seen to end."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading

import pytest

from rayvisor.actors.watch import ProcessWatch, describe_end

PARENT = """
import os, signal, sys
child = os.fork()
if not child:
    signal.pause()
    os._exit(3)
print(child, flush=True)
os.waitpid(child, 0)
"""


def ends_with(action: str) -> tuple[str, int]:
    """What a watch says of a grandchild that gets the signal `action`, and its pid."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        said: queue.Queue[str] = queue.Queue()
        ProcessWatch().add(pid, said.put)
        assert said.empty()
        os.kill(pid, signal.Signals[f"SIG{action}"])
        return said.get(timeout=10), pid


@pytest.mark.parametrize("action", ["KILL", "SEGV", "TERM"])
def test_it_names_the_process(action: str) -> None:
    said, pid = ends_with(action)
    assert said.startswith(f"the VM's process {pid} ")


def test_finish_waits_for_one_that_ends_and_kills_one_that_does_not() -> None:
    said: queue.Queue[str] = queue.Queue()
    watch = ProcessWatch()
    for command, patience_s in (("sleep 0.2", 20.0), ("sleep 600", 0.05)):
        with subprocess.Popen(command.split()) as process:
            reaper = threading.Thread(target=process.wait)
            reaper.start()
            watch.add(process.pid, said.put)
            watch.finish(process.pid, patience_s)
            assert f"process {process.pid} " in said.get(timeout=10)
            reaper.join(20)
            assert process.returncode == (0 if patience_s > 1 else -signal.SIGKILL)
            watch.finish(process.pid, patience_s)


def test_a_process_that_is_gone_is_told_at_once() -> None:
    with subprocess.Popen(["true"]) as process:
        pass
    said: list[str] = []
    ProcessWatch().add(process.pid, said.append)
    assert said == [f"the VM's process {process.pid} is gone: killed, or ended by the host"]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (None, "is gone: killed, or ended by the host"),
        (3 << 8, "ended with exit status 3"),
        (signal.SIGSEGV | 0x80, "was killed by SIGSEGV"),
        (signal.SIGKILL, "was killed by SIGKILL: by hand, or by the host because memory ran out"),
        (64, f"was killed by {signal.Signals(64).name}"),
    ],
)
def test_a_wait_status_in_words(code: int | None, said: str) -> None:
    assert describe_end(5, code) == f"the VM's process 5 {said}"
