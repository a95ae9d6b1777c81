"""Real VMs as actors on a real Ray."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import ray

from rayvisor.actors.calls import find_vm
from rayvisor.actors.carrier import host_actor
from rayvisor.actors.cluster import cluster_actor
from rayvisor.actors.errors import ActorGoneError
from rayvisor.actors.ledger import NameTakenError
from rayvisor.runtime import cluster_file, local_ray
from rayvisor.runtime.cluster import Cluster
from rayvisor.runtime.expect import ExpectConsole
from rayvisor.vmm.errors import (
    ClusterError,
    ImageError,
    LoaderError,
    MachineStateError,
    PlacementError,
    UnknownVmError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.runtime.api import VmSpec
    from rayvisor.runtime.vm_handle import VmHandle

    MakeSpec = Callable[..., VmSpec]

pytestmark = pytest.mark.cluster


def names(cluster: Cluster) -> list[str]:
    return [vm.name for vm in cluster.vms()]


def ready(cluster: Cluster, spec: VmSpec) -> VmHandle:
    vm = cluster.create(spec)
    vm.console.read_until("ready\n")
    return vm


def type_slowly(console: ExpectConsole, text: str) -> None:
    """The guest polls its UART, so a key is sent once the one before came back."""
    for key in text:
        console.send(key)
        console.read_until(key)


def test_a_vm_is_a_process_of_its_own(cluster: Cluster, make_spec: MakeSpec) -> None:
    one, two = (ready(cluster, make_spec(name)) for name in ("one", "two"))
    first, second = one.status(), two.status()
    assert (first.state, second.state) == ("running", "running")
    assert len({first.pid, second.pid, os.getpid()}) == 3
    assert second.token > first.token
    os.kill(first.pid, signal.SIGKILL)
    assert one.status().state == "failed"
    assert f"process {first.pid} " in one.status().reason
    assert two.status().state == "running"
    type_slowly(two.console, "still here")


def test_what_a_dead_vm_says_is_why_it_died(cluster: Cluster, make_spec: MakeSpec) -> None:
    vm = ready(cluster, make_spec("dead"))
    os.kill(vm.status().pid, signal.SIGSEGV)
    reason = vm.status().reason
    for call in (vm.console_offsets, vm.stop, vm.reset, vm.report, vm.exits, vm.disasm):
        with pytest.raises(MachineStateError) as caught:
            call()
        assert str(caught.value) == f"VM 'dead' is failed: {reason}"
    with pytest.raises(MachineStateError, match="is failed"):
        vm.console.read_until("never")
    assert not vm.has_process()
    vm.remove()
    with pytest.raises(UnknownVmError, match="no VM is called 'dead'"):
        vm.status()
    assert ready(cluster, make_spec("dead")).status().state == "running"


@pytest.mark.parametrize(
    ("key", "state", "status"), [("Q", "halted", None), ("X", "exited", 7), ("T", "crashed", None)]
)
def test_how_a_guest_ends(
    cluster: Cluster, make_spec: MakeSpec, key: str, state: str, status: int | None
) -> None:
    vm = ready(cluster, make_spec("ends"))
    assert vm.wait(0.01) is None
    vm.console.send(key)
    ended = vm.wait(20)
    assert ended is not None
    assert (ended.state, ended.exit_status) == (state, status)
    # Known without its process, too.
    os.kill(ended.pid, signal.SIGKILL)
    after = vm.status()
    assert (after.state, after.exit_status, after.reason) == (state, status, ended.reason)


def test_stop_and_reset(cluster: Cluster, make_spec: MakeSpec) -> None:
    vm = ready(cluster, make_spec("again"))
    assert vm.stop().state == "stopped"
    assert vm.status().reason == "powered off by `stop`"
    with pytest.raises(MachineStateError, match="the guest ended before"):
        vm.console.read_until("more")
    assert vm.reset().state == "running"
    vm.console.read_until("ready\n")
    assert vm.reset().state == "running"
    vm.console.read_until("ready\n")
    assert vm.status().reason == ""


def test_several_consoles_at_once_and_none_loses_a_byte(
    cluster: Cluster, make_spec: MakeSpec
) -> None:
    vm = ready(cluster, make_spec("shared"))
    text = "".join(f"{n:03}." for n in range(60))
    seen: dict[int, str] = {}

    def read(number: int) -> None:
        link = vm.console_link()
        console = ExpectConsole(link.read, vm.send, link.alive)
        seen[number] = console.read_until("059.")

    readers = [threading.Thread(target=read, args=(n,)) for n in range(3)]
    for reader in readers:
        reader.start()
    type_slowly(vm.console, text[:100])
    # One that comes late has all of it, one that left and came back goes on where it was.
    late = vm.console_link()
    offset, data = late.read(0, 5.0)
    assert (offset, data[:6]) == (0, b"ready\n")
    type_slowly(vm.console, text[100:])
    for reader in readers:
        reader.join(20)
    assert set(seen.values()) == {f"ready\n{text}"}
    end = offset + len(data)
    rest = b""
    while len(data) + len(rest) < len(text) + 6:
        rest += late.read(end + len(rest), 5.0)[1]
    assert (data + rest).decode() == f"ready\n{text}"
    assert vm.console_output() == (0, f"ready\n{text}".encode())


def test_a_waiting_console_does_not_block_control(cluster: Cluster, make_spec: MakeSpec) -> None:
    vm = ready(cluster, make_spec("polled"))
    links = [vm.console_link() for _ in range(20)]
    for link in links:
        assert link.read(vm.console_offsets()[1], 0.0)[1] == b""
    assert vm.stop().state == "stopped"
    for link in links:
        end = vm.console_offsets()[1]
        while link.alive():
            assert link.read(end, 5.0) == (end, b"")


def test_refusals_leave_nothing(
    cluster: Cluster, make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready(cluster, make_spec("taken"))
    with pytest.raises(NameTakenError, match="'taken' already, on host"):
        cluster.create(make_spec("taken"))
    with pytest.raises(PlacementError, match="no room for VM 'big': it needs 1 vCPU and"):
        cluster.create(make_spec("big", memory="64T"))
    with pytest.raises(PlacementError, match="no host is called 'nowhere'"):
        cluster.create(make_spec("lost", host="nowhere"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ImageError, match="no image 'nope'"):
        cluster.create(make_spec("odd", kernel=None, format="auto", image="nope"))
    broken = tmp_path / "broken"
    broken.write_bytes(b"#!/bin/sh\n")
    with pytest.raises(LoaderError) as caught:
        cluster.create(make_spec("broken", kernel=broken, format="auto"))
    assert "\n" not in str(caught.value)
    assert names(cluster) == ["taken"]
    with pytest.raises(ActorGoneError, match="no process of VM 'broken'"):
        find_vm("broken")
    (host,) = cluster.hosts()
    assert host.vms == 1


def test_a_running_vm_is_removed_only_by_force(cluster: Cluster, make_spec: MakeSpec) -> None:
    vm = ready(cluster, make_spec("busy"))
    pid = vm.status().pid
    with pytest.raises(MachineStateError, match="is running: `rayvisor stop busy` first"):
        vm.remove()
    vm.remove(force=True)
    assert names(cluster) == []
    # Gone, or a zombie that Ray has not waited for yet.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        assert Path(f"/proc/{pid}/cmdline").read_bytes() == b""
    (host,) = cluster.hosts()
    assert (host.vms, host.memory_used_bytes) == (0, 0)


def kill_process_of(actor: Any) -> None:  # noqa: ANN401 - Ray's handles have no static type
    """End the process behind an actor, as a crash does."""
    pid: Any = ray.get(actor.__ray_call__.remote(lambda _self: os.getpid()))
    os.kill(pid, signal.SIGKILL)


def test_vms_outlive_the_cluster_actor(cluster: Cluster, make_spec: MakeSpec) -> None:
    vm = ready(cluster, make_spec("tough"))
    before = vm.status()
    ray.kill(cluster_actor())
    after = cluster.status("tough")
    assert (after.pid, after.token, after.state) == (before.pid, before.token, "running")
    kill_process_of(cluster_actor())
    assert names(cluster) == ["tough"]
    type_slowly(vm.console, "alive")
    other = ready(cluster, make_spec("later"))
    assert other.status().token > before.token


def test_vms_outlive_the_host_actor(cluster: Cluster, make_spec: MakeSpec) -> None:
    vm = ready(cluster, make_spec("tough"))
    (host,) = cluster.hosts()
    kill_process_of(host_actor(host.host_id))
    (again,) = cluster.hosts()
    assert (again.vms, again.reason) == (1, "")
    type_slowly(vm.console, "alive")
    # The new one sees it end.
    os.kill(vm.status().pid, signal.SIGKILL)
    assert "was killed by SIGKILL" in vm.status().reason or "is gone" in vm.status().reason


def test_debugging_tools(cluster: Cluster, make_spec: MakeSpec) -> None:
    vm = ready(cluster, make_spec("open"))
    assert vm.exits().counts["io_in"] > 0
    assert vm.exit_sites(1)["sites"][0]["kind"] in {"io_in", "io_out"}
    (first,) = vm.disasm(0x7C00, 1)
    assert first.text == "cli"
    assert vm.report()["power"] == "running"


def test_up_twice_is_the_same_cluster(cluster: Cluster) -> None:
    before = cluster_file.load()
    again = Cluster.up()
    assert not again.started
    assert again.address == cluster.address
    assert cluster_file.load() == before


@pytest.mark.usefixtures("cluster")
def test_joining_another_while_one_is_up_is_refused() -> None:
    with pytest.raises(ClusterError, match=r"run `rayvisor down` before joining 127\.0\.0\.1:1"):
        Cluster.up("127.0.0.1:1")


@pytest.mark.usefixtures("cluster")
def test_only_the_loopback_address_is_listened_on() -> None:
    file = cluster_file.load()
    assert file is not None
    sockets = set()
    for pid in local_ray.processes(file):
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(FileNotFoundError):
                sockets.add(str(descriptor.readlink()))
    open_to_all = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            address, state, inode = (line.split()[n] for n in (1, 3, 9))
            loopback = address.split(":")[0].endswith(("0100007F", "01000000"))
            if state == "0A" and f"socket:[{inode}]" in sockets and not loopback:
                open_to_all.append(address)
    assert sockets
    assert open_to_all == []


def test_a_stranger_without_the_token_is_not_let_in(cluster: Cluster, tmp_path: Path) -> None:
    script = f"import ray; ray.init(address={cluster.address!r}, log_to_driver=False)"
    wrong = tmp_path / "token"
    wrong.write_text("0" * 64)
    quick = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_NUM_REDIS_GET_RETRIES": "2"}
    env = {**os.environ, **quick, "RAY_AUTH_TOKEN_PATH": str(wrong)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode != 0
    assert "nauthenticated" in done.stderr or "oken" in done.stderr


def test_another_is_not_started_while_the_program_is_connected_to_one(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Otherwise all that is asked of the new one would be asked of the one that was there."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(ClusterError, match=rf"connected to the Ray at {cluster.address}: leave it"):
        Cluster.up()
    assert cluster_file.load() is None
    assert cluster.hosts()
