"""Frames over a real socket: whole, in order, and an end that is noticed."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

import pytest

from rayvisor.migration import frames
from rayvisor.migration.arrival import Arrival
from rayvisor.migration.background import NICER, PATIENCE_S
from rayvisor.migration.config import MigrationConfig
from rayvisor.migration.errors import MigrationFailedError, TransportError
from rayvisor.migration.frames import MAX_FRAME_BYTES
from rayvisor.migration.precopy import Migration
from rayvisor.migration.socket_transport import SocketTransport, serve
from tests.migration.fakes import FakeDestination, FakeSource, Record

if TYPE_CHECKING:
    from collections.abc import Iterator

Ends = tuple[SocketTransport, socket.socket]


@pytest.fixture(name="ends", params=["pair", "tcp"])
def _ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    if request.param == "pair":
        here, there = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            here = socket.create_connection(listener.getsockname())
            there, _ = listener.accept()
    transport = SocketTransport(here)
    yield transport, there
    transport.close()
    there.close()


def test_frames_arrive_whole_and_in_order(ends: Ends) -> None:
    transport, there = ends
    sent = [bytes([i]) * size for i, size in enumerate((0, 1, 5_000_000, 3, 100_000))]
    raw = b"".join(struct.pack(">I", len(frame)) + frame for frame in sent)
    sender = threading.Thread(target=there.sendall, args=(raw,))
    sender.start()
    received = [transport.receive(20) for _ in sent]
    sender.join()
    assert received == sent
    assert transport.receive(0) is None


def test_frames_that_are_sent_together_arrive_as_they_are(ends: Ends) -> None:
    transport, there = ends
    sent = [bytes([i]) * size for i, size in enumerate((3, 0, 9_000_000, 5))]
    sender = threading.Thread(target=transport.send, args=sent)
    sender.start()
    other = SocketTransport(there)
    assert [other.receive(20) for _ in sent] == sent
    sender.join()


def test_a_frame_that_comes_in_pieces_is_waited_for(ends: Ends) -> None:
    transport, there = ends
    for piece in (b"\0", b"\0\0\x03", b"a", b"b"):
        there.sendall(piece)
        assert transport.receive(0.01) is None
    there.sendall(b"c")
    assert transport.receive(20) == b"abc"


def test_a_length_beyond_all_frames_is_not_believed(ends: Ends) -> None:
    transport, there = ends
    there.sendall(struct.pack(">I", MAX_FRAME_BYTES + 1))
    with pytest.raises(TransportError, match="at most"):
        transport.receive(20)


def test_what_was_sent_before_the_end_is_received(ends: Ends) -> None:
    transport, there = ends
    there.sendall(struct.pack(">I", 2) + b"ok" + b"\0\0")
    there.close()
    assert transport.receive(20) == b"ok"
    with pytest.raises(TransportError, match="closed"):
        transport.receive(20)
    with pytest.raises(TransportError, match="lost"):
        transport.send(bytes(MAX_FRAME_BYTES))


def test_a_side_that_takes_nothing_lets_a_sender_go_when_it_is_closed(ends: Ends) -> None:
    transport, _ = ends
    failed: list[TransportError] = []

    def work() -> None:
        try:
            while True:
                transport.send(bytes(1 << 20))
        except TransportError as error:
            failed.append(error)

    sender = threading.Thread(target=work)
    sender.start()
    time.sleep(0.05)
    transport.close()
    transport.close()
    sender.join(20)
    assert failed


def test_a_migration_over_it(ends: Ends) -> None:
    transport, there = ends
    source, destination, record = FakeSource(), FakeDestination(), Record()
    for page in range(200):
        source.write(page, bytes([page + 1]) * 4096)
    source.late_input = b"typed"
    server = threading.Thread(target=serve, args=(there, Arrival(destination, record)))
    server.start()
    report = Migration(source, transport, record, token=1).run()
    server.join(20)
    assert report.outcome == "moved"
    assert destination.memory == source.memory
    assert destination.typed == b"typed"


def test_only_a_guest_that_stands_still_is_served_first(ends: Ends) -> None:
    """What comes while it runs is taken at a lower priority, and it is started at the usual."""
    transport, there = ends
    source, destination, record = FakeSource(), FakeDestination(), Record()
    source.write(3, b"!")
    nice: dict[str, int] = {}
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    arrival = Arrival(destination, record)
    feed = arrival.feed

    def feeding(frame: bytes | bytearray) -> list[bytes]:
        kind = frames.decode(frame, arrival._expected).KIND
        nice.setdefault(kind, os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return feed(frame)

    arrival.feed = feeding  # type: ignore[method-assign]
    server = threading.Thread(target=serve, args=(there, arrival))
    server.start()
    Migration(source, transport, record, token=1).run()
    server.join(20)
    lower = min(19, usual + NICER)
    assert (nice["hello"], nice["pages"], nice["state"], nice["commit"]) == (
        *(lower, lower),
        *(usual, usual),
    )


def test_a_destination_that_dies(ends: Ends) -> None:
    transport, there = ends
    source, record = FakeSource(), Record()
    there.close()
    config = MigrationConfig(reply_timeout_s=1)
    with pytest.raises(MigrationFailedError, match="stays at here"):
        Migration(source, transport, record, token=1, config=config).run()
    assert source.running


class Overloaded:
    """A destination whose thread gets nothing of a core while it works. Not urgent, ever."""

    urgent = False

    def __init__(self) -> None:
        self.threads: list[str] = []

    def feed(self, frame: bytes | bytearray) -> list[bytes]:
        self.threads.append(threading.current_thread().name)
        time.sleep(PATIENCE_S / 2)
        return [bytes(frame)]

    def idle(self, *, heard: bool) -> list[bytes]:
        raise AssertionError(heard)

    def disconnected(self) -> None:
        pass


def test_a_destination_on_an_overloaded_host_does_not_give_way_for_ever(ends: Ends) -> None:
    transport, there = ends
    arrival = Overloaded()
    server = threading.Thread(target=serve, args=(there, arrival), name="serving", daemon=True)
    server.start()
    for frame in (b"1", b"2", b"3", b"4", b"5"):
        transport.send(frame)
        assert transport.receive(20) == frame
    transport.close()
    server.join(20)
    assert arrival.threads[0] == "migration-in"
    assert arrival.threads[-1] == "serving"
