"""`rayvisor run`: one VM in the foreground, without Ray, its console on the standard streams."""

from __future__ import annotations

import json
import sys
import threading
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayvisor.runtime.cli.output import JsonOption
from rayvisor.vmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rayvisor.runtime.terminal import AttachEnd
    from rayvisor.vmm.spec import BootSource, MachineSpec
    from rayvisor.vmm.vm import Vm

EXIT_CRASHED = 1
EXIT_TIMEOUT = 124
POLL_S = 3600.0
"""The console is closed when the guest ends: nobody need look."""

EPILOG = """
[bold]Examples[/bold]

Debian to a shell, until `exit` or ctrl-]: [cyan]rayvisor run[/cyan]

The same from a script: [cyan]echo 'uname -a; exit' | rayvisor run --timeout 60[/cyan]

A kernel of yours: [cyan]rayvisor run --kernel vmlinuz --initrd initrd.img --append loglevel=7[/cyan]

An OS of yours: [cyan]rayvisor run --kernel os.elf --module "disk.img root" --memory 64M[/cyan]

A test in CI: [cyan]rayvisor run --kernel test.bin --format flat --timeout 5 --report r.json[/cyan]

[bold]Exit status[/bold]: 0 the guest powered off or halted (or you left with ctrl-]), the byte written to port 0xf4, 1 a crash (report on standard error), 2 a wrong request, 124 the timeout.
"""  # noqa: E501 - one line is one paragraph of help


class Format(StrEnum):
    """What a kernel file is."""

    AUTO = "auto"
    LINUX = "linux"
    ELF = "elf"
    MULTIBOOT = "multiboot"
    FLAT = "flat"


def register(app: typer.Typer) -> None:
    """Put `run` on the command line."""
    app.command("run", epilog=EPILOG)(run)


def _complete_image(incomplete: str) -> list[str]:
    from rayvisor.runtime.images import KINDS, ImageStore

    names = {*KINDS, *(image.name for image in ImageStore().ls())}
    return sorted(name for name in names if name.startswith(incomplete))


def run(
    image: Annotated[
        str | None,
        typer.Argument(
            metavar="IMAGE",
            help="An image's name. [dim]Default: debian, built on first use.[/dim]",
            show_default=False,
            autocompletion=_complete_image,
        ),
    ] = None,
    *,
    kernel: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Boot this file instead of an image.")
    ] = None,
    initrd: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Initial RAM disk for --kernel.")
    ] = None,
    append: Annotated[
        str, typer.Option(metavar="TEXT", help="Added to the kernel's command line.")
    ] = "",
    module: Annotated[
        list[str] | None,
        typer.Option(metavar="'FILE [ARGUMENTS]'", help="Multiboot module; may be repeated."),
    ] = None,
    kind: Annotated[
        Format, typer.Option("--format", help="What --kernel is; auto looks at its content.")
    ] = Format.AUTO,
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Memory, such as 256M or 1G.")] = (
        "256M"
    ),
    cpus: Annotated[int, typer.Option(help="Number of vCPUs; this engine has one.")] = 1,
    direct: Annotated[
        bool,
        typer.Option(
            "--direct/--no-direct",
            help="Execute user code on the processor itself where this host allows it.",
        ),
    ] = True,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Stop the guest after this long.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write times, exits and the guest's state as JSON."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run one VM here, without Ray; its console is this terminal, and ctrl-] leaves.

    Without a terminal the standard input is fed to the guest. With --json the report goes to standard output and the console to standard error.
    """  # noqa: E501 - one line is one paragraph of help
    from rayvisor.runtime.units import parse_memory
    from rayvisor.vmm.spec import MachineSpec

    memory_bytes = parse_memory(memory)
    if cpus != 1:
        way_out = "start more VMs for more work" if cpus > 1 else "leave --cpus out"
        raise ConfigError(f"--cpus {cpus}: this engine gives a VM exactly one vCPU; {way_out}")
    if timeout is not None and not 0 < timeout <= threading.TIMEOUT_MAX:
        raise ConfigError(f"--timeout {timeout:g}: give a positive number of seconds")
    if report is not None and not report.parent.is_dir():
        raise ConfigError(f"report {report}: there is no folder {report.parent}")
    boot = _boot_source(
        image, kernel, initrd=initrd, append=append, modules=module or [], kind=kind, quiet=as_json
    )
    spec = MachineSpec(memory_bytes=memory_bytes, boot=boot, cpus=cpus, name="run", direct=direct)
    raise typer.Exit(_run_vm(spec, timeout, report, as_json=as_json))


def _boot_source(
    image: str | None,
    kernel: Path | None,
    *,
    initrd: Path | None,
    append: str,
    modules: list[str],
    kind: Format,
    quiet: bool,
) -> BootSource:
    from rayvisor.runtime.cli import bootsource

    if kernel is None:
        for option, given in (
            ("--initrd", initrd is not None),
            ("--module", bool(modules)),
            ("--format", kind is not Format.AUTO),
        ):
            if given:
                raise ConfigError(f"{option} goes with --kernel: an image brings its own")
        return bootsource.from_image(image or bootsource.DEFAULT_IMAGE, append, quiet=quiet)
    if image is not None:
        raise ConfigError(f"both the image {image!r} and --kernel {kernel}: give one of them")
    return bootsource.from_files(kernel, initrd, append, modules, kind.value)


def _run_vm(
    spec: MachineSpec, timeout_s: float | None, report_path: Path | None, *, as_json: bool
) -> int:
    """Run the VM to its end and give the exit status."""
    from rayvisor.runtime.terminal import AttachEnd
    from rayvisor.vmm.vm import Vm

    vm = Vm(spec)
    try:
        try:
            with _deadline(vm, timeout_s) as timed_out:
                vm.start()
                end = _attach(vm, output_fd=2 if as_json else 1)
        finally:
            vm.stop()
            if report_path is not None:
                report_path.write_text(json.dumps(vm.report(), indent=2) + "\n", encoding="utf-8")
        if as_json:
            sys.stdout.write(json.dumps(vm.report()) + "\n")
        if timed_out.is_set():
            _say(
                f"the guest was still running after {timeout_s:g} s"
                " and has been stopped (--timeout)"
            )
            return EXIT_TIMEOUT
        if end is AttachEnd.DETACHED:
            _say("left the console; the VM has been stopped")
            return 0
        return _status(vm)
    finally:
        vm.close()


def _attach(vm: Vm, *, output_fd: int) -> AttachEnd:
    from rayvisor.runtime.terminal import attach, is_interactive
    from rayvisor.vmm.machine import PowerState

    def read(offset: int, timeout_s: float) -> tuple[int, bytes]:
        return vm.console.read(offset, timeout_s=timeout_s)

    if is_interactive():
        _say("the console is on this terminal; ctrl-] leaves and stops the VM")
    return attach(
        read,
        vm.console.send,
        start_offset=0,
        alive=lambda: vm.power in {PowerState.RUNNING, PowerState.PAUSED},
        ready=lambda: _listens(vm),
        hang_up=vm.console.close,
        poll_s=POLL_S,
        output_fd=output_fd,
    )


def _listens(vm: Vm) -> bool:
    """Whether the guest has its serial port open: receive interrupts on, or ready to send."""
    uart = vm.machine.devices["uart"].snapshot()
    return bool(uart.ier & 0b01 or uart.mcr & 0b10)


def _status(vm: Vm) -> int:
    """The exit status of a guest that has ended; a crash is shown on the way."""
    from rayvisor.vmm.machine import PowerState

    if vm.power is PowerState.CRASHED:
        crash = vm.report()["crash"]
        sys.stderr.write(crash["text"])
        _say(f"the guest crashed: {crash['reason']}")
        return EXIT_CRASHED
    return vm.machine.exit_status or 0


@contextmanager
def _deadline(vm: Vm, timeout_s: float | None) -> Iterator[threading.Event]:
    """Stop the VM after `timeout_s`; the event says that this happened to a running guest."""
    timed_out = threading.Event()
    done = threading.Event()

    def watch() -> None:
        if not done.wait(timeout_s) and vm.wait(0) is None:
            timed_out.set()
            vm.stop()

    if timeout_s is None:
        yield timed_out
        return
    watcher = threading.Thread(target=watch, name="timeout")
    watcher.start()
    try:
        yield timed_out
    finally:
        done.set()
        watcher.join()


def _say(text: str) -> None:
    sys.stderr.write(f"rayvisor: {text}\n")
    sys.stderr.flush()
