"""The console as a gate: what is held is shown to nobody, and lost by nobody."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from rayvisor.vmm.console import Console


def console(capacity_bytes: int = 1 << 20) -> Console:
    return Console(lambda _data: None, capacity_bytes)


def test_held_output_is_shown_when_it_is_released() -> None:
    gate = console()
    gate.write(b"before ")
    gate.hold()
    gate.write(b"held")
    assert gate.read(0) == (0, b"before ")
    assert (gate.end_offset, gate.written_offset, gate.held_bytes) == (7, 11, 4)
    assert gate.written(7, 100) == (7, b"held")
    gate.release(9)
    assert gate.read(7) == (7, b"he")
    gate.release(8)  # late: nothing is taken back
    assert gate.read(7) == (7, b"he")
    gate.release()
    gate.write(b" after")
    assert gate.read(0) == (0, b"before held after")
    assert gate.held_bytes == 0


def test_a_reader_that_waits_is_woken_by_the_release() -> None:
    gate = console()
    gate.hold()
    gate.write(b"x")
    got: list[tuple[int, bytes]] = []
    reader = threading.Thread(target=lambda: got.append(gate.read(0, timeout_s=20)))
    reader.start()
    gate.close()  # the guest has ended, and what it said last is still held
    reader.join(0.05)
    assert not got
    gate.release(1)
    reader.join()
    assert got == [(0, b"x")]
    assert gate.read(1, timeout_s=20) == (1, b"")


def test_what_is_held_is_never_trimmed() -> None:
    gate = console(capacity_bytes=10)
    gate.write(b"a" * 15)
    gate.hold()
    gate.write(b"b" * 100)
    assert gate.written(15, 1000) == (15, b"b" * 100)
    gate.release()
    gate.write(b"c")
    assert gate.start_offset == 106


@given(st.lists(st.one_of(st.binary(min_size=1, max_size=9), st.integers(0, 60), st.none())))
def test_readers_see_a_prefix_of_what_was_written(steps: list[bytes | int | None]) -> None:
    gate, written, shown = console(), b"", b""
    for step in steps:
        if isinstance(step, bytes):
            gate.write(step)
            written += step
        elif step is None:
            gate.hold()
        else:
            gate.release(step)
        now = gate.read(0)[1]
        assert now[: len(shown)] == shown
        assert written[: len(now)] == now
        shown = now
    gate.release()
    assert gate.read(0)[1] == written
