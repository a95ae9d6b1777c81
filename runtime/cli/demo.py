"""`rayvisor demo`: from nothing to a shell in an unmodified Debian, on a Ray of this machine."""

from __future__ import annotations

import re
import signal
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from rayvisor.runtime.cli.output import JsonOption, emit, step
from rayvisor.vmm.errors import RayvisorError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from rayvisor.runtime.cluster import Cluster
    from rayvisor.runtime.vm_handle import VmHandle

NAME = "demo"
BOOT_S = 120.0
COMMAND_S = 60.0
PROMPT = "# "

SESSION = (
    ("uname -a", r"Linux .* x86_64 GNU/Linux"),
    ("head -5 /proc/cpuinfo", r"processor\s+: 0"),
    ("free", r"Mem:\s+\d+"),
    ("cat /proc/interrupts | head -6", r"XT-PIC\s+timer"),
    ("i=0; s=0; while [ $i -lt 1000 ]; do i=$((i+1)); s=$((s+i*i)); done; echo $s", "333833500"),
    ("seq 100000 | sha256sum", "b2bc7d3f8b652d2e"),
    ("dmesg | tail -3", r"\[ *\d+\.\d+\]"),
)
"""Commands for the guest's shell, and what each must print."""

EPILOG = """
On a terminal the guest's shell is yours; `exit` or ctrl-] ends the demo. Without one, a scripted session runs in the guest and the exit status says whether it went as it should.

What the demo started it also ends: the VM, and the cluster if none was up before.

[bold]Examples[/bold]

[cyan]rayvisor demo[/cyan]

[cyan]rayvisor demo --script < /dev/null[/cyan]
"""  # noqa: E501 - one line is one paragraph of help


class DemoError(RayvisorError):
    """The scripted session did not go as it should."""


def register(app: typer.Typer) -> None:
    """Put `demo` on the command line."""
    app.command("demo", epilog=EPILOG)(demo)


def demo(
    *,
    script: Annotated[
        bool, typer.Option("--script", help="Run the scripted session, on a terminal too.")
    ] = False,
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Memory of the VM.")] = "256M",
    as_json: JsonOption = False,
) -> None:
    """Boot an unmodified Debian in a VM on a local Ray host and hand you its console."""
    from rayvisor.runtime.api import VmSpec
    from rayvisor.runtime.cli.bootsource import DEFAULT_IMAGE, ensure_image, terminal_size
    from rayvisor.runtime.images import ImageStore
    from rayvisor.runtime.terminal import is_interactive

    signal.signal(signal.SIGTERM, _interrupt)
    begin_s = time.monotonic()
    ensure_image(ImageStore(), DEFAULT_IMAGE, quiet=as_json)
    interactive = is_interactive() and sys.stdout.isatty() and not (script or as_json)
    with _cluster(quiet=as_json) as cluster:
        name = _free_name(cluster)
        with step(f"Creating the VM {name}: {memory} of memory, Debian", quiet=as_json):
            spec = VmSpec(name=name, image=DEFAULT_IMAGE, memory=memory, append=terminal_size())
            vm = cluster.create(spec)
        try:
            if interactive:
                _hand_over(vm)
                return
            transcript = _scripted_session(vm, live=not as_json)
        finally:
            with step(f"Removing the VM {name}", quiet=as_json):
                vm.remove(force=True)
    took_s = time.monotonic() - begin_s
    emit(
        {"ok": True, "seconds": round(took_s, 3), "session": transcript},
        as_json=as_json,
        render=lambda: f"All {len(SESSION)} commands ran as they should; {took_s:.1f} s in all.",
    )


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    """SIGTERM as ctrl-C, so that what was started is ended."""
    raise KeyboardInterrupt


@contextmanager
def _cluster(*, quiet: bool) -> Iterator[Cluster]:
    """A cluster; one that had to be started is brought down at the end."""
    from rayvisor.runtime.cluster import Cluster

    with step("Starting a Ray host on this machine", quiet=quiet) as progress:
        cluster = Cluster.up(progress=progress)
    try:
        yield cluster
    finally:
        if cluster.started:
            with step("Bringing the cluster down", quiet=quiet) as progress:
                cluster.down(progress)
        else:
            cluster.close()


def _free_name(cluster: Cluster) -> str:
    taken = {vm.name for vm in cluster.vms()}
    return next(name for name in _names() if name not in taken)


def _names() -> Iterator[str]:
    yield NAME
    number = 2
    while True:
        yield f"{NAME}-{number}"
        number += 1


def _hand_over(vm: VmHandle) -> None:
    from rayvisor.runtime.terminal import AttachEnd, attach

    _say("Debian boots below; the console is yours. `exit` or ctrl-] ends the demo.")
    link = vm.console_link()
    first, _ = vm.console_offsets()
    end = attach(link.read, vm.send, start_offset=first, alive=link.alive)
    _say("left the console" if end is AttachEnd.DETACHED else f"the guest is {vm.status().state}")


def _scripted_session(vm: VmHandle, *, live: bool) -> list[dict[str, str]]:
    """Run the session and give what each command printed.

    Raises:
        DemoError: a command failed or did not print what it must.
        RayvisorError: the guest ended or did not answer in time.
    """
    from rayvisor.runtime.images import BANNER_PREFIX

    if live:
        _say("no terminal: a scripted session runs in the guest")
    boot = vm.console.read_until(BANNER_PREFIX, BOOT_S) + vm.console.read_until(PROMPT, BOOT_S)
    _print(boot, live=live)
    prompt = boot.rpartition("\n")[2]
    transcript = []
    for command, expected in SESSION:
        _print(f"{command}\n", live=live)
        result = vm.console.run(command, COMMAND_S)
        _print(f"{result.output}{prompt}", live=live)
        if result.status or re.search(expected, result.output) is None:
            raise DemoError(
                f"{command!r} in the guest gave status {result.status} and"
                f" {result.output.strip()[-200:]!r}; {expected!r} was expected"
            )
        transcript.append({"command": command, "output": result.output})
    _print("\n", live=live)
    return transcript


def _print(text: str, *, live: bool) -> None:
    if live:
        sys.stdout.write(text)
        sys.stdout.flush()


def _say(text: str) -> None:
    sys.stderr.write(f"rayvisor: {text}\n")
    sys.stderr.flush()
