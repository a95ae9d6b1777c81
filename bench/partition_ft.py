"""A fault tolerant guest whose hosts are cut off from the network, and come back.

    sudo .venv/bin/python -m bench.partition_ft --failures 30

Each host is a Ray node in a network namespace of its own; cables (veth) lead to a switch (a
bridge) in another one, and a host is cut off by taking down its end there: from its partner, from
the cluster's store and from the client, while everything on it runs on. The guest, its client and
the comparison are those of bench.chaos_ft; a primary that was cut off is asked afterwards what it
has shown meanwhile. Needs root, for the namespaces. Ends with status 1 at the first thing that is
wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from bench.chaos_ft import Chaos, Tally, report, see_through
from bench.report import finish
from bench.soak_migration import PATIENCE_S, SoakError, guest_spec
from rayvisor.actors.calls import find_actor
from rayvisor.runtime.cluster import Cluster
from rayvisor.runtime.local_ray import marked_processes
from rayvisor.runtime.protecting import wait_until_protected
from rayvisor.vmm.errors import RayvisorError

if TYPE_CHECKING:
    from rayvisor.actors.records import Placement, Spot

HOSTS = 3
PORT = 6399
KINDS = {"primary cut off": 3, "secondary cut off": 1}
CUT_S = (0.7, 2.5)
"""Longer than a host may be silent, shorter than Ray waits for a node."""
MARK = "RAYVISOR_BENCH_PARTITION"
INSIDE = "RAYVISOR_BENCH_NET"


def ip(*words: str) -> None:
    """Change the network."""
    subprocess.run(["ip", *words], check=True, stdin=subprocess.DEVNULL)


@dataclass
class Net:
    """Namespaces `NAME-1` to `NAME-3`, joined by a switch in `NAME-s`."""

    name: str
    made: list[str] = field(default_factory=list)

    def of(self, host: int | str) -> str:
        """The namespace of a host, or of the switch."""
        return f"{self.name}-{host}"

    @staticmethod
    def address(host: int) -> str:
        """Where a host is."""
        return f"10.77.0.{host}"

    def build(self) -> None:
        """Make it."""
        for part in ("s", *range(1, HOSTS + 1)):
            ip("netns", "add", self.of(part))
            self.made.append(self.of(part))
            ip("-n", self.of(part), "link", "set", "lo", "up")
        ip("-n", self.of("s"), "link", "add", "sw", "type", "bridge")
        ip("-n", self.of("s"), "link", "set", "sw", "up")
        for host in range(1, HOSTS + 1):
            here, there = self.of(host), self.of("s")
            port = ("name", f"p{host}", "netns", there)
            ip("-n", here, "link", "add", "eth0", "type", "veth", "peer", *port)
            ip("-n", there, "link", "set", f"p{host}", "master", "sw", "up")
            ip("-n", here, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            ip("-n", here, "link", "set", "eth0", "up")

    def plug(self, host: int, *, on: bool) -> None:
        """Put a host's cable in, or take it out."""
        ip("-n", self.of("s"), "link", "set", f"p{host}", "up" if on else "down")

    def remove(self) -> None:
        """Take it away."""
        for part in self.made:
            ip("netns", "del", part)


class Partitions(Chaos):
    """A guest whose hosts are cut off."""

    def __init__(self, net: Net, *arguments: Any) -> None:  # noqa: ANN401 - those of Chaos
        super().__init__(*arguments)
        self._net = net

    def strike(self) -> str:
        """See `Chaos.strike`; the first host, where the client is, has only a secondary."""
        if self.vm.status().host == "host-1":
            wait_until_protected(self._cluster, self.vm.name, PATIENCE_S)
            self.vm.migrate(f"host-{self._random.choice((2, 3))}")
            self._failovers += 1
        return super().strike()

    def _choose(self, placement: Placement) -> str:
        if placement.pair is None or placement.pair.secondary.host_name == "host-1":
            return "primary cut off"
        return self._random.choices(list(KINDS), list(KINDS.values()))[0]

    def _do(self, kind: str, placement: Placement) -> None:
        if placement.pair is None:
            raise SoakError("it is not protected after all")
        spot = placement.spot if kind == "primary cut off" else placement.pair.secondary
        host = int(spot.host_name.removeprefix("host-"))
        offset = self.witness.base + len(self.witness.shown)
        self._net.plug(host, on=False)
        try:
            time.sleep(self._random.uniform(*CUT_S))
        finally:
            self._net.plug(host, on=True)
        if kind == "primary cut off":
            self._hear(spot, offset)

    def _hear(self, spot: Spot, offset: int) -> None:
        """What the primary that was cut off has to say now."""
        with contextlib.suppress(ray.exceptions.RayError, RayvisorError):
            call = find_actor(spot.actor).read_console.remote(offset, 1 << 16, 0.5)
            chunk = ray.get(call, timeout=10)
            self.witness.confirm(chunk.offset, chunk.data)


def start_node(net: Net, host: int, folder: Path, environment: dict[str, str]) -> None:
    """Start a Ray node in its namespace.

    Raises:
        SoakError: it does not start.
    """
    first = ["--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={folder}/ray"]
    others = [f"--address={net.address(1)}:{PORT}"]
    command = [
        *("ip", "netns", "exec", net.of(host)),
        *(sys.executable, "-m", "ray.scripts.scripts", "start"),
        *(first if host == 1 else others),
        *(f"--node-ip-address={net.address(host)}", f"--node-name=host-{host}", "--num-cpus=1"),
        *("--dashboard-agent-listen-port=0", "--object-store-memory=100000000"),
        *("--include-log-monitor=false", "--disable-usage-stats"),
    ]
    done = subprocess.run(
        command,
        env=environment,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    if done.returncode:
        raise SoakError(f"host-{host} does not start: {done.stdout[-500:]}")


def outside(words: list[str]) -> int:
    """Make the network and the hosts, and run this program again on the first of them."""
    net = Net(f"rv{secrets.token_hex(2)}")
    mark = f"{MARK}={net.name}"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        environment = {
            **os.environ,
            MARK: net.name,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "XDG_STATE_HOME": place,
            INSIDE: net.name,
        }
        try:
            net.build()
            for host in range(1, HOSTS + 1):
                start_node(net, host, folder, environment)
            signal.signal(signal.SIGINT, lambda *_: None)  # ctrl-C is for the one inside
            again = [sys.executable, "-m", "bench.partition_ft", *words]
            return subprocess.run(
                ["ip", "netns", "exec", net.of(1), *again], env=environment, check=False
            ).returncode
        finally:
            for pid in marked_processes(mark, set()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            net.remove()


def inside(arguments: argparse.Namespace) -> int:
    """Cut hosts off, from the first of them."""
    net, tally = Net(os.environ[INSIDE]), Tally()
    with tempfile.TemporaryDirectory() as folder:
        spec = guest_spec(Path(folder), arguments.memory).model_copy(update={"host": "host-2"})
        with Cluster.up(f"{net.address(1)}:{PORT}") as cluster:
            try:
                run = Partitions(net, cluster, spec, tally, 16, arguments.seed)
                see_through(run, arguments.failures, arguments.seed)
            except SoakError as error:
                for event in cluster.events(limit=20):
                    print(event.text, file=sys.stderr)
                print(f"partition: {error}", file=sys.stderr)
                return 1
    finish(
        report(
            tally,
            f"{HOSTS} hosts in network namespaces on this machine",
            name="partition_ft",
            title="A fault tolerant guest whose hosts are cut off from the network",
            kinds=KINDS,
        )
    )
    return 0


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--failures", type=int, default=30)
    parser.add_argument("--memory", default="256M")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))  # noqa: S311
    arguments = parser.parse_args()
    if INSIDE in os.environ:
        return inside(arguments)
    if os.geteuid() != 0:
        sys.exit("partition: network namespaces need root: sudo .venv/bin/python -m ...")
    words = [f"--failures={arguments.failures}", f"--memory={arguments.memory}"]
    return outside([*words, f"--seed={arguments.seed}"])


if __name__ == "__main__":
    sys.exit(main())
