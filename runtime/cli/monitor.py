"""`rayvisor top` and `rayvisor metrics`."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayvisor.runtime.cli.output import JsonOption, emit
from rayvisor.vmm.errors import ClusterError, ConfigError

if TYPE_CHECKING:
    from rayvisor.ops.page import Page
    from rayvisor.ops.top import Sample
    from rayvisor.runtime.cluster import Cluster

MIN_INTERVAL_S = 0.2


def register(app: typer.Typer) -> None:
    """Put the commands for watching on the command line."""
    app.command("top")(top)
    app.command("metrics")(show_metrics)


def _connect() -> Cluster:
    from rayvisor.runtime.cluster import Cluster

    return Cluster.connect()


def _sample(cluster: Cluster) -> Sample:
    from rayvisor.actors.observing import host_stats
    from rayvisor.ops.exposition import facts_of
    from rayvisor.ops.top import Sample

    hosts = cluster.hosts()
    up = [h.host_id for h in hosts if facts_of(h).up]
    stats = dict(zip(up, host_stats(up), strict=True))
    return Sample(
        time.monotonic(),
        time.time(),
        tuple((facts_of(h), stats.get(h.host_id)) for h in hosts),
    )


def top(
    *,
    once: Annotated[bool, typer.Option("--once", help="Show it once and leave.")] = False,
    interval: Annotated[
        float, typer.Option(metavar="SECONDS", help="Time between two looks.")
    ] = 2.0,
    as_json: JsonOption = False,
) -> None:
    """Watch hosts and VMs: load, memory, exits, consolidation. Ctrl-C leaves.

    With --once or --json, or where the output is no terminal, it is shown once, with the load of
    the last interval.
    """
    from rayvisor.ops import top as screen

    if interval < MIN_INTERVAL_S:
        raise ConfigError(f"interval of {interval} s: give at least {MIN_INTERVAL_S}")
    cluster = _connect()
    before = _sample(cluster)
    if once or as_json or not sys.stdout.isatty():
        time.sleep(interval)
        shown = screen.view(_sample(cluster), before)
        emit(shown.as_dict(), as_json=as_json, render=lambda: screen.render(shown))
        return
    from rich.console import Console
    from rich.live import Live

    console = Console()
    first = screen.render(screen.view(before), rows=console.height)
    with Live(first, console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(interval)
                now = _sample(cluster)
                shown = screen.view(now, before)
                live.update(screen.render(shown, rows=console.height), refresh=True)
                before = now
        except KeyboardInterrupt:
            return


def show_metrics(
    *,
    host: Annotated[
        str | None, typer.Option(metavar="HOST", help="Of this host; see rayvisor hosts.")
    ] = None,
    cluster_wide: Annotated[
        bool, typer.Option("--cluster", help="Of the cluster as a whole instead of a host.")
    ] = False,
    targets: Annotated[
        bool, typer.Option("--targets", help="Where Prometheus finds them, as HOST:PORT.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the metrics of a host as Prometheus would read them now."""
    cluster = _connect()
    if targets:
        found = _targets(cluster)
        emit(
            found,
            as_json=as_json,
            render=lambda: "\n".join(
                [f"cluster {found['cluster'] or '-'}"]
                + [f"host {t['host']} {t['address']}" for t in found["hosts"]]
            ),
        )
        return
    page = _cluster_page(cluster) if cluster_wide else _host_page(cluster, host)
    if as_json:
        samples = [
            {"name": s.name, "labels": s.labels, "value": s.value}
            for family in page.families()
            for s in family.samples
        ]
        emit(samples, as_json=True, render=lambda: "")
        return
    sys.stdout.write(page.text().decode())


def _host_page(cluster: Cluster, name: str | None) -> Page:
    from rayvisor.actors.observing import host_stats
    from rayvisor.ops.collectors import HostCollector

    hosts = cluster.hosts()
    known = ", ".join(h.name for h in hosts)
    chosen = [h for h in hosts if name is None or h.name == name]
    if not chosen:
        raise ConfigError(f"no host is called {name!r}; hosts: {known}")
    if len(chosen) > 1:
        raise ConfigError(f"the cluster has {len(chosen)} hosts: --host takes one of {known}")
    (stats,) = host_stats([chosen[0].host_id])
    if stats is None:
        raise ClusterError(f"host {chosen[0].name} does not answer; see `rayvisor hosts`")
    return HostCollector(lambda: stats).page()


def _cluster_page(cluster: Cluster) -> Page:
    from rayvisor.actors.observing import events, outcomes
    from rayvisor.ops.collectors import ClusterCollector, ClusterFacts
    from rayvisor.ops.event_book import EventBook
    from rayvisor.ops.exposition import facts_of

    hosts = tuple(facts_of(h) for h in cluster.hosts())
    book = EventBook()
    book.read(events())
    facts = ClusterFacts(hosts, outcomes(), time.time(), book, ha=cluster.ha_stats())
    return ClusterCollector(lambda: facts).page()


def _targets(cluster: Cluster) -> dict[str, Any]:
    from rayvisor.actors.observing import service_addresses

    addresses = service_addresses()
    return {
        "cluster": addresses.get("cluster", ""),
        "hosts": [
            {"host": h.name, "address": addresses[h.host_id]}
            for h in cluster.hosts()
            if h.host_id in addresses
        ],
    }
