"""Metrics over HTTP: pages, addresses, and what a busy port does."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from rayvisor.migration.report import MigrationReport
from rayvisor.ops.collectors import ClusterCollector, ClusterFacts, HostFacts
from rayvisor.ops.event_book import EventBook
from rayvisor.ops.exposition import (
    HOST_PORT,
    MetricsServer,
    look_at,
    serve_cluster,
    serve_host,
    targets,
)
from rayvisor.vmm.errors import ConfigError
from tests.ops.snapshots import AN_HA, a_host, a_vm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rayvisor.actors.guardian import HaStats
    from rayvisor.vmm.stats import HostStats

    Serve = Callable[..., tuple[MetricsServer, str]]


class Host:
    """What a host actor offers."""

    def stats(self) -> HostStats:
        return a_host(a_vm("web"))


@dataclass
class Status:
    host_id: str
    name: str
    alive: bool = True
    cores: int = 2
    vms: int = 0
    maintenance: bool = False


@dataclass
class Event:
    id: str
    kind: str
    data: dict[str, Any] = field(default_factory=dict)


@dataclass
class Cluster:
    """What the cluster actor offers."""

    found: list[Status] = field(default_factory=list)
    where: dict[str, str] = field(default_factory=dict)
    happened: list[Event] = field(default_factory=list)

    def hosts(self) -> list[Status]:
        return self.found

    def events(self, after: str, limit: int) -> list[Event]:
        return [e for e in self.happened if e.id > after][:limit]

    def ha_stats(self) -> HaStats:
        return AN_HA

    def outcomes(self) -> dict[str, int]:
        return {"placed": 1}

    def service_addresses(self) -> dict[str, str]:
        return self.where


@pytest.fixture(autouse=True)
def _any_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYVISOR_METRICS_PORT", "0")
    monkeypatch.setenv("RAYVISOR_METRICS_CLUSTER_PORT", "0")
    monkeypatch.delenv("RAYVISOR_METRICS_ADDRESS", raising=False)


@pytest.fixture(name="serve")
def _serve() -> Iterator[Callable[..., tuple[MetricsServer, str]]]:
    servers: list[MetricsServer] = []

    def start(how: Callable[..., MetricsServer], subject: object) -> tuple[MetricsServer, str]:
        said: list[str] = []
        server = how(subject, said.append)
        servers.append(server)
        return server, said[0]

    yield start
    for server in servers:
        server.stop()


def get(address: str, path: str) -> tuple[int, str, str]:
    """(status, content type, body)."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}") as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read().decode()


def test_a_host_serves_its_metrics_on_the_loopback_address(serve: Serve) -> None:
    server, said = serve(serve_host, Host())
    assert said == server.address
    assert said.startswith("127.0.0.1:")
    status, kind, body = get(said, "/metrics")
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert 'rayvisor_vm_info{vm="web",image="debian"} 1\n' in body
    assert get(said, "/healthz")[::2] == (200, "ok\n")


def test_what_is_not_there_is_told_in_a_line(serve: Serve) -> None:
    _, address = serve(serve_host, Host())
    assert get(address, "/sd?x=1") == (
        404,
        "text/plain; charset=utf-8",
        "nothing here: see /metrics, /healthz\n",
    )


def test_the_cluster_tells_prometheus_where_its_hosts_are(serve: Serve) -> None:
    hosts = [Status("id-a", "a"), Status("id-b", "b", alive=False, cores=0)]
    where = {"id-a": "127.0.0.1:1", "id-b": "127.0.0.1:2", "cluster": "127.0.0.1:3"}
    _, address = serve(serve_cluster, Cluster(hosts, where))
    # The first look is under way while it starts to listen.
    for _ in range(500):
        found = json.loads(get(address, "/sd")[2])
        if found:
            break
    assert [(t["targets"], t["labels"]["host"]) for t in found] == [
        (["127.0.0.1:1"], "a"),
        (["127.0.0.1:2"], "b"),
    ]
    assert 'rayvisor_cluster_host_up{host="b"} 0\n' in get(address, "/metrics")[2]


def test_a_host_that_serves_nothing_is_no_target() -> None:
    assert targets(ClusterFacts((HostFacts("a", True, 0, "id-a"),), addresses={})) == []


def test_a_cluster_that_fails_is_shown_as_nothing() -> None:
    class Broken(Cluster):
        def hosts(self) -> list[Status]:
            raise RuntimeError("Ray is going down")

    assert look_at(Broken(), EventBook()) == ClusterFacts()


def test_two_hosts_on_a_machine_do_not_fight_for_the_usual_port(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAYVISOR_METRICS_PORT")
    addresses = {serve(serve_host, Host())[1] for _ in range(2)}
    assert len(addresses) == 2
    assert sum(a.endswith(f":{HOST_PORT}") for a in addresses) <= 1


def test_a_port_that_was_asked_for_is_used_or_refused(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        monkeypatch.setenv("RAYVISOR_METRICS_PORT", str(port))
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: Address"):
            serve(serve_host, Host())
    assert serve(serve_host, Host())[1] == f"127.0.0.1:{port}"


def test_a_port_that_is_none_is_refused(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYVISOR_METRICS_PORT", "http")
    with pytest.raises(ConfigError, match="RAYVISOR_METRICS_PORT='http' is no port"):
        serve(serve_host, Host())


def test_listening_everywhere_is_announced_under_an_address_others_reach(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYVISOR_METRICS_ADDRESS", "0.0.0.0")  # noqa: S104 - what it is about
    server, said = serve(serve_host, Host())
    assert server.address.startswith("0.0.0.0:")
    assert said.partition(":")[0] != server.address.partition(":")[0]
    assert get(said, "/healthz")[0] == 200


def test_a_host_in_maintenance_is_up_and_a_silent_one_is_not() -> None:
    hosts = [
        Status("a", "rests", maintenance=True),
        Status("b", "silent", cores=0),
        Status("c", "gone", alive=False),
    ]
    facts = look_at(Cluster(hosts), EventBook())
    assert [(h.up, h.maintenance) for h in facts.hosts] == [
        (True, True),
        (False, False),
        (False, False),
    ]


def test_migrations_are_counted_once_each_from_the_event_log() -> None:
    report = MigrationReport("web", "a", "b", "moved", total_s=1.5, downtime_s=0.04, bytes_sent=700)
    moved = {"move": "m1", "report": report.as_dict()}
    cluster = Cluster(
        happened=[
            Event("1", "migration_started"),
            Event("2", "migration_moved", moved),
            Event("3", "migration_failed", {"report": {"bytes_sent": 30}}),
        ]
    )
    book = EventBook()
    for _ in range(2):
        facts = look_at(cluster, book)
    cluster.happened.append(Event("4", "migration_cancelled"))
    facts = look_at(cluster, book)
    text = ClusterCollector(lambda: facts).page().text().decode()
    for line in (
        'rayvisor_cluster_migrations_total{outcome="moved"} 1',
        'rayvisor_cluster_migrations_total{outcome="failed"} 1',
        'rayvisor_cluster_migrations_total{outcome="cancelled"} 1',
        "rayvisor_cluster_migration_sent_bytes_total 730",
        'rayvisor_cluster_migration_duration_seconds_bucket{le="1.0"} 0',
        'rayvisor_cluster_migration_duration_seconds_bucket{le="2.0"} 1',
        'rayvisor_cluster_migration_downtime_seconds_bucket{le="0.05"} 1',
        'rayvisor_cluster_migration_downtime_seconds_bucket{le="+Inf"} 1',
        "rayvisor_cluster_migration_downtime_seconds_sum 0.04",
        "rayvisor_cluster_migration_downtime_seconds_count 1",
    ):
        assert f"{line}\n" in text
