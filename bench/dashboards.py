"""The dashboards as pictures for the docs, from a real Prometheus and real VMs.

`python -m bench.dashboards` brings two hosts up, boots Debian on them, has guests work, moves
one, protects another, and draws what the dashboards show: docs/dashboards/NAME.svg.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from typing import Final

from bench.contestants import PROMPT
from bench.report import ROOT
from rayvisor.actors.observing import service_addresses
from rayvisor.ops.grafana.dashboards import ALL, render
from rayvisor.ops.grafana.draw import draw
from rayvisor.ops.prometheus_server import PrometheusServer
from rayvisor.runtime.api import VmSpec
from rayvisor.runtime.cluster import Cluster
from rayvisor.runtime.protecting import wait_until_protected

PICTURES: Final = ROOT / "docs" / "dashboards"
GUESTS: Final = ("web", "db", "ci")
WORK: Final = "while :; do dd if=/dev/urandom of=/tmp/x bs=64k count=32 2>&-; sleep 0.2; done &"


def main() -> None:
    """Have something happen, and draw it."""
    parser = argparse.ArgumentParser(description="Draw the dashboards for the docs.")
    parser.add_argument("--seconds", type=float, default=80, help="how long to watch")
    options = parser.parse_args()
    os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="rayvisor-bench-")
    with Cluster.up(hosts=2) as cluster:
        while len(service_addresses()) < 1 + len(cluster.hosts()):
            time.sleep(0.2)
        with PrometheusServer(service_addresses()["cluster"], every_s=1) as prometheus:
            begin_s = time.time()
            _play(cluster, options.seconds)
            PICTURES.mkdir(exist_ok=True)
            for name, build in ALL.items():
                picture = draw(render(build), prometheus, begin_s, time.time())
                (PICTURES / f"{name}.svg").write_text(picture)
                print(f"docs/dashboards/{name}.svg", flush=True)


def _play(cluster: Cluster, seconds: float) -> None:
    vms = {name: cluster.create(VmSpec(name=name, memory="128M", host="host-1")) for name in GUESTS}
    for vm in vms.values():
        vm.console.read_until(PROMPT.decode(), timeout_s=120)
        vm.console.send(f"{WORK}\n")
    vms["db"].protect(host="host-2")
    wait_until_protected(cluster, "db", 120)
    vms["web"].migrate()
    # The last one moves slowly until the pictures have been drawn, so that it is seen moving.
    slow = threading.Thread(target=_move_slowly, args=(cluster, "ci"), daemon=True)
    slow.start()
    time.sleep(seconds)


def _move_slowly(cluster: Cluster, name: str) -> None:
    cluster.vm(name).migrate(bandwidth="500K")


if __name__ == "__main__":
    main()
