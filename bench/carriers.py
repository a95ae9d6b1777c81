"""What carries a migration between two Ray actors: actor calls, or a socket of their own.

    .venv/bin/python -m bench.carriers

Two actors on this machine. Ray: each chunk is the argument of a call, four calls in flight. Socket:
the product's own transport, frames sealed under a one-time key; and the same without the seal. Told
are bytes a second with frames of 4 MiB, and how long a frame of 100 bytes and its answer take: a
guest that is handed over stands still for one and a half of these.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import threading
import time
from typing import Any

import ray

from rayvisor.migration.sealed import SealedArrival, SealedTransport, new_key
from rayvisor.migration.socket_transport import SocketTransport, serve

MIB = 1 << 20
IN_FLIGHT = 4


class Counter:
    """A destination that counts; an empty frame, and a small one, are answered."""

    urgent = True

    def idle(self, *, heard: bool) -> list[bytes]:
        """No frame has come for some time."""
        del heard
        return []

    def feed(self, frame: bytes | bytearray) -> list[bytes]:
        """Take a frame."""
        return [b"!"] if len(frame) < MIB else []

    def disconnected(self) -> None:
        """The source is gone."""


@ray.remote(num_cpus=0)
class There:
    """The destination."""

    def feed(self, frame: bytes) -> int:
        """A chunk by an actor call."""
        return len(frame)

    def listen(self, key: bytes) -> int:
        """Serve one connection; its port. An empty key: not sealed."""
        listener = socket.create_server(("127.0.0.1", 0))

        def work() -> None:
            connection, _ = listener.accept()
            counter: Any = Counter()
            if key:
                counter = SealedArrival(counter, key)
                assert counter.greeted(connection, 5)
            serve(connection, counter)

        threading.Thread(target=work, daemon=True).start()
        return int(listener.getsockname()[1])


@ray.remote(num_cpus=0)
class Here:
    """The source."""

    def by_calls(self, there: Any, chunk: bytes, count: int) -> float:  # noqa: ANN401 - a handle
        """Seconds for `count` chunks."""
        begin_s = time.perf_counter()
        flying: list[Any] = []
        for _ in range(count):
            if len(flying) == IN_FLIGHT:
                ray.get(flying.pop(0))
            flying.append(there.feed.remote(chunk))
        ray.get(flying)
        return time.perf_counter() - begin_s

    def by_socket(self, port: int, key: bytes, chunk: bytes, count: int) -> float:
        """Seconds for `count` chunks."""
        connection = socket.create_connection(("127.0.0.1", port))
        transport: Any = SocketTransport(connection)
        if key:
            transport = SealedTransport(connection, key, transport)
        begin_s = time.perf_counter()
        if len(chunk) < MIB:
            for _ in range(count):
                transport.send(chunk)
                assert transport.receive(10) is not None
        else:
            for _ in range(count):
                transport.send(chunk)
            transport.send(b"end")
            assert transport.receive(60) is not None
        seconds = time.perf_counter() - begin_s
        transport.close()
        return seconds

    def trips(self, there: Any, count: int) -> float:  # noqa: ANN401 - a handle
        """Seconds for `count` calls, one after another."""
        begin_s = time.perf_counter()
        for _ in range(count):
            ray.get(there.feed.remote(b"x" * 100))
        return time.perf_counter() - begin_s


def measure(runs: int, chunks: int) -> dict[str, dict[str, float]]:
    """Median of `runs`, for each carrier."""
    made: Any = (Here, There)
    here, there = (kind.remote() for kind in made)
    chunk, small = os.urandom(4 * MIB), os.urandom(100)
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(runs):
        rates: dict[str, tuple[float, float]] = {
            "ray": (
                ray.get(here.by_calls.remote(there, chunk, chunks)),
                ray.get(here.trips.remote(there, 200)),
            )
        }
        for name, key in (("socket, sealed", new_key()), ("socket", b"")):
            seconds = [
                ray.get(here.by_socket.remote(ray.get(there.listen.remote(key)), key, data, count))
                for data, count in ((chunk, chunks), (small, 200))
            ]
            rates[name] = (seconds[0], seconds[1])
        for name, (bulk_s, trips_s) in rates.items():
            entry = found.setdefault(name, {"bytes_per_s": [], "trip_s": []})
            entry["bytes_per_s"].append(chunks * len(chunk) / bulk_s)
            entry["trip_s"].append(trips_s / 200)
    return {n: {k: statistics.median(v) for k, v in e.items()} for n, e in found.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--chunks", type=int, default=64, help="of 4 MiB")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    found = measure(arguments.runs, arguments.chunks)
    if arguments.json:
        print(json.dumps(found))
        return
    for name, entry in found.items():
        print(f"{name:15} {entry['bytes_per_s'] / 1e6:7.0f} MB/s   {entry['trip_s'] * 1e3:6.3f} ms")


if __name__ == "__main__":
    main()
