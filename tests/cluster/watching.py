"""What tests of monitoring share."""

from __future__ import annotations

import time
import urllib.request
from typing import TYPE_CHECKING, Any

from rayvisor.actors.observing import service_addresses
from rayvisor.ops.grafana.dashboards import ALL, queries, render

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.ops.prometheus_server import PrometheusServer

PATIENCE_S = 60.0
WINDOW = {"$__rate_interval": "30s", "$host": ".+", "$vm": ".+"}


def until(done: Callable[[], Any], what: str) -> Any:  # noqa: ANN401 - what `done` gives
    """The first true answer of `done`."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not (answer := done()):
        assert time.monotonic() < deadline_s, f"not in time: {what}"
        time.sleep(0.3)
    return answer


def addresses(count: int = 2) -> dict[str, str]:
    """Where the cluster and its hosts serve their metrics, once so many do."""
    found: dict[str, str] = until(
        lambda: len(a := service_addresses()) >= count and a, "addresses of hosts and cluster"
    )
    return found


def page(address: str, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://{address}{path}") as answer:
        return str(answer.read().decode())


def every_panel_shows_something(prometheus: PrometheusServer, *dashboards: str) -> None:
    """Ask the dashboards' own queries until each has given something."""
    left = {(name, *query) for name in dashboards for query in queries(render(ALL[name]))}
    assert len(left) > 10

    def ask() -> bool:
        for case in sorted(left):
            promql = case[2]
            for variable, meaning in WINDOW.items():
                promql = promql.replace(variable, meaning)
            if prometheus.query(promql):
                left.discard(case)
        return not left

    deadline_s = time.monotonic() + 2 * PATIENCE_S
    while not ask() and time.monotonic() < deadline_s:
        time.sleep(1)
    assert not left, f"panels that show nothing: {sorted(left)}"
