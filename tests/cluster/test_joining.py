"""A Ray that somebody else started: joined, grown by a node, left as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rayvisor.runtime import cluster_file, local_ray

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SCRIPT = """
import os, signal, sys
import ray
from rayvisor import Cluster, VmSpec
from rayvisor.actors.link import connect
from rayvisor.actors.names import NAMESPACE

address, kernel = sys.argv[1:]
cluster = Cluster.up(address)
assert cluster.started
hosts = cluster.hosts()
assert len(hosts) == 2, hosts
assert len({h.name for h in hosts}) == 2, hosts
vms = [
    cluster.create(VmSpec(name=f"vm{n}", kernel=kernel, format="flat", memory="4M", host=h.name))
    for n, h in enumerate(hosts)
]
for vm, host in zip(vms, hosts, strict=True):
    vm.console.read_until("ready\\n")
    assert vm.status().host == host.name
# Nobody is preferred while both are equal; the emptier one is, when they are not.
third = cluster.create(VmSpec(name="vm2", kernel=kernel, format="flat", memory="64M"))
fourth = cluster.create(VmSpec(name="vm3", kernel=kernel, format="flat", memory="4M"))
assert third.status().host != fourth.status().host

# The node that is no head dies with all its processes.
head = ray.get_runtime_context().get_node_id()
lost = next(h for h in hosts if h.host_id != head)
os.kill(int(sys.stdin.readline()), signal.SIGKILL)
while cluster.status(f"vm{hosts.index(lost)}").state != "failed":
    pass
gone = [vm for vm in cluster.vms() if vm.host == lost.name]
kept = [vm for vm in cluster.vms() if vm.host != lost.name]
assert {(vm.state, vm.reason) for vm in gone} == {("failed", f"its host {lost.name} is gone")}, gone
assert {vm.state for vm in kept} == {"running"}, kept
(listed,) = [h for h in cluster.hosts() if h.host_id == lost.host_id]
assert not listed.alive
assert listed.vms == len(gone)
for vm in gone:
    cluster.remove(vm.name)
assert len(cluster.hosts()) == 1
print("left", cluster.down())
print("again", cluster.down())
assert not ray.is_initialized()
connect(address, loopback=True)
named = ray.util.list_named_actors(all_namespaces=True)
assert [a for a in named if a["namespace"] == NAMESPACE] == [], named
print("Ray is there")
"""


@pytest.fixture
def own_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[cluster_file.ClusterFile]:
    """A Ray with two nodes, as somebody who knows nothing of Rayvisor has it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "theirs"))
    # Ray gives up a node sooner than after its half minute.
    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "2")
    file = local_ray.start(
        object_store_bytes=100 << 20, cpus=1, dashboard=False, progress=lambda _text: None
    )
    try:
        environment = {
            **os.environ,
            **local_ray.client_environment(file),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
            local_ray.MARK: file.cluster_id,
        }
        subprocess.run(
            [
                *(sys.executable, "-c", JOIN, f"--address={file.address}", "--num-cpus=1"),
                *("--node-ip-address=127.0.0.1", "--object-store-memory=100000000"),
                f"--temp-dir={file.temp_dir}",
                "--dashboard-agent-listen-port=0",
            ],
            env=environment,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        yield file
    finally:
        local_ray.stop(file)


JOIN = """
import sys
from ray._private import services
from ray.scripts.scripts import start
services.resolve_ip_for_localhost = lambda host: host
start(sys.argv[1:])
"""
"""`ray start` for a second node on the loopback address, which Ray takes for a mistake."""


def raylet_of_second_node(file: cluster_file.ClusterFile) -> int:
    """Its pid: the younger one."""
    raylets = [
        pid
        for pid in local_ray.processes(file)
        if b"/raylet\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert len(raylets) == 2
    return max(raylets)


def test_a_ray_is_joined_and_left(
    own_ray: cluster_file.ClusterFile, tmp_path: Path, echo_guest: bytes
) -> None:
    kernel = tmp_path / "echo.bin"
    kernel.write_bytes(echo_guest)
    environment = {
        **os.environ,
        **local_ray.client_environment(own_ray),
        "XDG_STATE_HOME": str(tmp_path / "ours"),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, own_ray.address, str(kernel)],
        env=environment,
        input=f"{raylet_of_second_node(own_ray)}\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    assert "again None\nRay is there\n" in done.stdout
    assert not (tmp_path / "ours" / "rayvisor" / "cluster" / "cluster.json").exists()
