"""HTTP of a host (/metrics) and of the cluster (/metrics, /sd), for Prometheus.

Listens on the loopback address unless RAYVISOR_METRICS_ADDRESS says otherwise: there is neither
encryption nor a login, and VMs' names are told. RAYVISOR_METRICS_PORT and
RAYVISOR_METRICS_CLUSTER_PORT set the ports; without them the usual one is taken, or any if
another host on this machine has it already. Whoever scrapes learns them from /sd, and /sd is told
by `rayvisor metrics --targets`.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final, Protocol

from rayvisor.ops.collectors import (
    ClusterCollector,
    ClusterFacts,
    HostCollector,
    HostFacts,
    Lookout,
)
from rayvisor.ops.event_book import READ_AT_ONCE, EventBook
from rayvisor.ops.page import CONTENT_TYPE
from rayvisor.vmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rayvisor.ops.collectors import HaLike
    from rayvisor.ops.event_book import EventLike
    from rayvisor.ops.page import Page
    from rayvisor.vmm.stats import HostStats

_log = logging.getLogger(__name__)

HOST_PORT: Final = 9470
CLUSTER_PORT: Final = 9471
LOOPBACK: Final = "127.0.0.1"
REQUEST_S: Final = 10.0


class HostSubject(Protocol):
    """What serves a host's metrics asks of it."""

    def stats(self) -> HostStats:
        """A new snapshot."""


class HostStatusLike(Protocol):
    """What is read of a host's status."""

    @property
    def host_id(self) -> str: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def alive(self) -> bool: ...  # noqa: D102
    @property
    def cores(self) -> int: ...  # noqa: D102
    @property
    def maintenance(self) -> bool: ...  # noqa: D102
    @property
    def vms(self) -> int: ...  # noqa: D102


class ClusterSubject(Protocol):
    """What serves the cluster's metrics asks of it."""

    def hosts(self) -> Sequence[HostStatusLike]:
        """Every host; may take long when one does not answer."""

    def events(self, after: str, limit: int) -> Sequence[EventLike]:
        """What happened after the event of this id, oldest first."""

    def outcomes(self) -> Mapping[str, int]:
        """Requests to create a VM, by outcome."""

    def ha_stats(self) -> HaLike:
        """What is counted of high availability."""

    def service_addresses(self) -> Mapping[str, str]:
        """Where hosts serve their metrics, by host id."""


class Paged(Protocol):
    """What /metrics shows."""

    def page(self) -> Page:
        """The samples of one scrape."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True


class MetricsServer:
    """An HTTP server on a thread of its own.

    Attributes:
        address: where it listens, as HOST:PORT.
    """

    def __init__(
        self,
        collector: Paged,
        *,
        address: str = LOOPBACK,
        port: int = 0,
        pages: Mapping[str, Callable[[], Any]] | None = None,
    ) -> None:
        """Listen.

        Args:
            collector: what /metrics shows.
            address: an address of this machine.
            port: 0 for any.
            pages: further paths, each with what gives a value to be shown as JSON.

        Raises:
            OSError: the address cannot be listened on.
        """
        self._server = _Server((address, port), _handler(collector, pages or {}))
        self.address = f"{address}:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(
    collector: Paged, pages: Mapping[str, Callable[[], Any]]
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_S  # a client that says nothing holds no thread for ever
        server_version = "rayvisor"
        sys_version = ""

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            status, kind = HTTPStatus.OK, "application/json"
            if path == "/metrics":
                body, kind = collector.page().text(), CONTENT_TYPE
            elif path == "/healthz":
                body, kind = b"ok\n", "text/plain; charset=utf-8"
            elif path in pages:
                body = json.dumps(pages[path]()).encode()
            else:
                known = ", ".join(("/metrics", "/healthz", *pages))
                body, kind = f"nothing here: see {known}\n".encode(), "text/plain; charset=utf-8"
                status = HTTPStatus.NOT_FOUND
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
            _log.debug(format, *args)

    return Handler


def serve_host(subject: HostSubject, announce: Callable[[str], None]) -> MetricsServer:
    """Serve a host's metrics, and say where."""
    server = _listen(HostCollector(subject.stats), "RAYVISOR_METRICS_PORT", HOST_PORT)
    server.start()
    announce(_reachable(server.address))
    return server


def serve_cluster(subject: ClusterSubject, announce: Callable[[str], None]) -> MetricsServer:
    """Serve the cluster's metrics and where its hosts' are, and say where."""
    book = EventBook()
    lookout = Lookout(lambda: look_at(subject, book))
    server = _listen(
        ClusterCollector(lambda: lookout.facts),
        "RAYVISOR_METRICS_CLUSTER_PORT",
        CLUSTER_PORT,
        {"/sd": lambda: targets(lookout.facts)},
    )
    lookout.start()
    server.start()
    announce(_reachable(server.address))
    return server


def look_at(subject: ClusterSubject, book: EventBook) -> ClusterFacts:
    """The cluster as it is now; after an error, as if nothing were there."""
    try:
        hosts = tuple(facts_of(host) for host in subject.hosts())
        book.read(subject.events(book.last, READ_AT_ONCE))
        return ClusterFacts(
            hosts,
            subject.outcomes(),
            time.time(),
            book,
            dict(subject.service_addresses()),
            subject.ha_stats(),
        )
    except Exception as error:  # noqa: BLE001 - Ray's, while it goes down: the next look may see
        _log.warning("the cluster cannot be looked at: %s", error)
        return ClusterFacts()


def facts_of(host: HostStatusLike) -> HostFacts:
    """A host's status, as metrics have it. A host whose actor is silent has no cores to tell."""
    return HostFacts(
        name=host.name,
        up=host.alive and host.cores > 0,
        vms=host.vms,
        host_id=host.host_id,
        maintenance=host.maintenance,
    )


def targets(facts: ClusterFacts) -> list[dict[str, Any]]:
    """Where to scrape, as Prometheus' HTTP service discovery has it, one group a host.

    A host that does not answer stays a target, so that its `up` says 0.
    """
    return [
        {
            "targets": [facts.addresses[host.host_id]],
            "labels": {"host": host.name, "__meta_rayvisor_host_id": host.host_id},
        }
        for host in facts.hosts
        if host.host_id in facts.addresses
    ]


def _listen(
    collector: Paged,
    variable: str,
    usual_port: int,
    pages: Mapping[str, Callable[[], Any]] | None = None,
) -> MetricsServer:
    address = os.environ.get("RAYVISOR_METRICS_ADDRESS") or LOOPBACK
    asked = os.environ.get(variable, "")
    if asked and not asked.isdigit():
        raise ConfigError(f"{variable}={asked!r} is no port: give a number, 0 for any")
    try:
        port = int(asked) if asked else usual_port
        return MetricsServer(collector, address=address, port=port, pages=pages)
    except OSError as error:
        if asked:
            raise ConfigError(f"cannot listen on {address}:{asked}: {error.strerror}") from error
        return MetricsServer(collector, address=address, pages=pages)


def _reachable(address: str) -> str:
    """The address for others, where it listens on all of them: this machine's own."""
    host, _, port = address.rpartition(":")
    if host != "0.0.0.0":  # noqa: S104 - compared with, not bound to
        return address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # no packet is sent: this asks the routing table
            return f"{probe.getsockname()[0]}:{port}"
        except OSError:
            return f"{LOOPBACK}:{port}"
