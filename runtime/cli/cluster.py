"""`rayvisor up`, `down`, `hosts`, `create`, `ls`, `show`, `console`, `stop`, `reset`, `rm`."""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from rayvisor.actors.policy import Restart
from rayvisor.runtime.cli.output import JsonOption, emit, step
from rayvisor.runtime.cli.run import Format
from rayvisor.vmm.errors import ClusterError, MachineStateError
from rayvisor.vmm.spec import HangAction

if TYPE_CHECKING:
    from types import FrameType

    from rayvisor.actors.records import VmStatus
    from rayvisor.runtime.cluster import Cluster
    from rayvisor.runtime.vm_handle import VmHandle


def register(app: typer.Typer) -> None:
    """Put the commands of the cluster on the command line."""
    for command in (up, down, hosts, create, show, console, stop, reset):
        app.command(command.__name__)(command)
    app.command("ls")(list_vms)
    app.command("rm")(remove)


def _complete_vm(incomplete: str) -> Iterator[str]:
    try:
        names = [vm.name for vm in _connect().vms()]
    except ClusterError:
        return iter(())
    return (name for name in names if name.startswith(incomplete))


Name = Annotated[
    str, typer.Argument(metavar="NAME", help="The VM's name.", autocompletion=_complete_vm)
]


def _connect() -> Cluster:
    from rayvisor.runtime.cluster import Cluster

    return Cluster.connect()


def up(
    *,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Join this Ray instead of starting one; auto finds it."
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option("--hosts", metavar="N", help="Split this machine into so many hosts."),
    ] = None,
    object_store: Annotated[
        str, typer.Option(metavar="SIZE", help="Shared memory for Ray's objects.")
    ] = "256M",
    ha_reserve: Annotated[
        int | None,
        typer.Option("--ha-reserve", metavar="N", help="Keep room for the loss of so many hosts."),
    ] = None,
    dashboard: Annotated[
        bool, typer.Option("--dashboard", help="Start Ray's dashboard, on this machine only.")
    ] = False,
    working_dir: Annotated[
        Path | None,
        typer.Option(help="Send this folder, which holds rayvisor, to the hosts that join."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Start a Ray on this machine and a host on it, or join a Ray that runs. Harmless twice.

    With --hosts this machine stands for several, each with its share and processes of its own.
    It listens on the loopback address only and asks for a token that up makes.
    """
    from rayvisor.runtime.cluster import Cluster

    signal.signal(signal.SIGTERM, _interrupt)
    with step("Bringing the cluster up", quiet=as_json) as progress:
        cluster = Cluster.up(
            address,
            hosts=count,
            object_store=object_store,
            dashboard=dashboard,
            working_dir=None if working_dir is None else str(working_dir),
            ha_reserve=ha_reserve,
            progress=progress,
        )
        found = len(cluster.hosts())
    result = {
        "address": cluster.address,
        "hosts": found,
        "started": cluster.started,
        "dashboard_url": cluster.dashboard_url,
    }

    def render() -> str:
        first = "The cluster is up" if cluster.started else "The cluster was up already"
        where = f" ([cyan]{cluster.dashboard_url}[/cyan])" if cluster.dashboard_url else ""
        return (
            f"{first} at {cluster.address}: {found} host{'s' * (found != 1)}{where}.\n"
            "Next: [cyan]rayvisor create NAME[/cyan], [cyan]rayvisor console NAME[/cyan];"
            " [cyan]rayvisor down[/cyan] ends it."
        )

    emit(result, as_json=as_json, render=render)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    """SIGTERM as ctrl-C, so that nothing is left half-made."""
    raise KeyboardInterrupt


def down(*, as_json: JsonOption = False) -> None:
    """End the cluster and its VMs; of Ray only what up started. Harmless twice."""
    from rayvisor.runtime.cluster import down as bring_down

    with step("Taking the cluster down", quiet=as_json) as progress:
        ended = bring_down(progress)
    emit(
        {"was_up": ended is not None, "ended": ended or 0},
        as_json=as_json,
        render=lambda: "The cluster is down." if ended is not None else "There was no cluster.",
    )


def hosts(*, as_json: JsonOption = False) -> None:
    """List the hosts: what each has, and what is promised to VMs."""
    from rayvisor.runtime.cli.cluster_view import host_table

    found = _connect().hosts()
    emit(
        [dataclasses.asdict(host) for host in found],
        as_json=as_json,
        render=lambda: host_table(found),
    )


def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call the VM.")],
    *,
    image: Annotated[str, typer.Option(help="An image's name.")] = "debian",
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Memory, such as 256M or 1G.")] = (
        "256M"
    ),
    cpus: Annotated[int, typer.Option(help="Number of vCPUs; this engine has one.")] = 1,
    kernel: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Boot this file instead of an image.")
    ] = None,
    initrd: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Initial RAM disk for --kernel.")
    ] = None,
    append: Annotated[
        str, typer.Option(metavar="TEXT", help="Added to the kernel's command line.")
    ] = "",
    kind: Annotated[
        Format, typer.Option("--format", help="What --kernel is; auto looks at its content.")
    ] = Format.AUTO,
    direct: Annotated[
        bool,
        typer.Option(
            "--direct/--no-direct",
            help="Execute user code on the processor itself where this host allows it.",
        ),
    ] = True,
    host: Annotated[
        str | None, typer.Option(metavar="HOST", help="Run it there; see rayvisor hosts.")
    ] = None,
    restart: Annotated[
        Restart, typer.Option(help="When to start it again after it ended: on-failure, always.")
    ] = Restart.NEVER,
    priority: Annotated[
        int, typer.Option(help="Of VMs that are down the greater goes first; 0 to 100.")
    ] = 50,
    restart_delay: Annotated[
        str, typer.Option(metavar="TIME", help="Before a second restart in a row; it doubles.")
    ] = "1s",
    on_hang: Annotated[
        HangAction, typer.Option(help="When its watchdog expires or its heartbeat stops.")
    ] = HangAction.RESET,
    heartbeat: Annotated[
        str, typer.Option(metavar="TIME", help="It hangs when its console is silent for so long.")
    ] = "0s",
    as_json: JsonOption = False,
) -> None:
    """Create a VM on a host with room for it and start it."""
    from rayvisor.runtime.api import VmSpec

    spec = VmSpec(
        name=name,
        image=image,
        memory=memory,
        cpus=cpus,
        kernel=kernel,
        initrd=initrd,
        append=append,
        format=kind.value,
        host=host,
        direct=direct,
        restart=restart,
        priority=priority,
        restart_delay=restart_delay,
        on_hang=on_hang,
        heartbeat=heartbeat,
        detached=True,  # this command ends at once
    )
    cluster = _connect()
    if kernel is None:
        from rayvisor.runtime.cli.bootsource import ensure_image
        from rayvisor.runtime.images import ImageStore

        ensure_image(ImageStore(), image, quiet=as_json)
    with step(f"Creating {name}", quiet=as_json):
        vm = cluster.create(spec)
    status = vm.status()
    emit(
        _as_dict(status),
        as_json=as_json,
        render=lambda: (
            f"{name} is {status.state.value} on {status.host}."
            f" Its console: [cyan]rayvisor console {name}[/cyan]"
        ),
    )


def list_vms(*, as_json: JsonOption = False) -> None:
    """List the VMs and how each is."""
    from rayvisor.runtime.cli.cluster_view import vm_table

    found = _connect().vms()
    emit([_as_dict(status) for status in found], as_json=as_json, render=lambda: vm_table(found))


def show(name: Name, *, as_json: JsonOption = False) -> None:
    """Show one VM: power, process, exits, and the crash report of a guest that crashed."""
    from rayvisor.runtime.cli.cluster_view import vm_details

    vm = _connect().vm(name)
    status = vm.status()
    report = _report(vm)
    emit(
        {**_as_dict(status), "report": report},
        as_json=as_json,
        render=lambda: vm_details(status, report),
    )


def _report(vm: VmHandle) -> dict[str, Any] | None:
    """The VM's own report; None when there is no process to ask."""
    try:
        return vm.report()
    except MachineStateError:
        return None


def console(
    name: Name,
    *,
    from_start: Annotated[
        bool,
        typer.Option("--from-start", help="Begin with all the output that is kept."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Attach this terminal to a VM's console; ctrl-] leaves, the VM goes on.

    With --json nothing is attached: the output so far is printed as one JSON object.
    """
    vm = _connect().vm(name)
    status = vm.status()
    if as_json:
        offset, data = vm.console_output()
        text = data.decode(errors="replace")
        emit(
            {"name": name, "state": status.state, "offset": offset, "output": text},
            as_json=True,
            render=lambda: "",
        )
        return
    if status.state.is_live:
        _attach(vm, name, from_start=from_start)
        return
    ended = f"VM {name!r} is {status.state.value}: {status.reason}"
    if not vm.has_process():
        raise MachineStateError(f"no console: {ended}")
    if not from_start:
        raise MachineStateError(f"no console: {ended}; --from-start shows its last output")
    sys.stdout.buffer.write(vm.console_output()[1])
    sys.stdout.flush()
    _say(ended)


def _attach(vm: VmHandle, name: str, *, from_start: bool) -> None:
    from rayvisor.runtime.terminal import AttachEnd, attach, is_interactive

    link = vm.console_link()
    first, end = vm.console_offsets()
    offset = first if from_start else max(first, end - REPLAY_BYTES)

    def read(start: int, timeout_s: float) -> tuple[int, bytes]:
        nonlocal offset
        found, data = link.read(start, timeout_s)
        offset = found + len(data)
        return found, data

    if is_interactive():
        _say(f"this is the console of {name}; ctrl-] leaves")
    how = attach(read, vm.send, start_offset=offset, alive=link.alive, eof_ends=True)
    if how is AttachEnd.EOF:
        # What a pipe typed is answered before this leaves.
        while data := read(offset, QUIET_S)[1]:
            sys.stdout.buffer.write(data)
            sys.stdout.flush()
    if how is AttachEnd.ENDED:
        status = vm.status()
        _say(f"{name} is {status.state.value}: {status.reason}")
    else:
        _say(f"left the console of {name}")


QUIET_S = 1.0
"""After the end of a pipe that types: how long no output must come before the console is left."""

REPLAY_BYTES = 4096
"""Output shown on attaching, so that the prompt is there."""


def _say(text: str) -> None:
    sys.stderr.write(f"rayvisor: {text}\n")
    sys.stderr.flush()


def stop(name: Name, *, as_json: JsonOption = False) -> None:
    """Power a VM off at once. Its record stays; rm removes it, reset starts it again."""
    vm = _connect().vm(name)
    vm.stop()
    _emit_status(vm, as_json=as_json)


def reset(name: Name, *, as_json: JsonOption = False) -> None:
    """Reboot a VM, or start it again after it has ended."""
    vm = _connect().vm(name)
    vm.reset()
    _emit_status(vm, as_json=as_json)


def remove(
    name: Name,
    *,
    force: Annotated[bool, typer.Option("--force", "-f", help="Also when it runs.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove a VM that has ended."""
    status = _connect().remove(name, force=force)
    emit({"removed": name, "was": status.state}, as_json=as_json, render=lambda: f"Removed {name}.")


def _emit_status(vm: VmHandle, *, as_json: bool) -> None:
    status = vm.status()
    emit(
        _as_dict(status),
        as_json=as_json,
        render=lambda: (
            f"{vm.name} is {status.state.value}" + (f": {status.reason}." if status.reason else ".")
        ),
    )


def _as_dict(status: VmStatus) -> dict[str, Any]:
    return dataclasses.asdict(status)
