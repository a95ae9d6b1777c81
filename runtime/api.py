"""What a VM is asked for: the request as people and files write it."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from rayvisor.actors.policy import HaPolicy, Restart
from rayvisor.runtime import ha
from rayvisor.runtime.units import parse_bytes, parse_seconds
from rayvisor.vmm.errors import ConfigError
from rayvisor.vmm.memory import MIN_MEMORY_BYTES, PAGE_BYTES
from rayvisor.vmm.spec import HangAction

if TYPE_CHECKING:
    from collections.abc import Iterator

KernelFormat = Literal["auto", "linux", "elf", "multiboot", "flat"]

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?", re.ASCII)


def _check_name(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise ValueError(
            f"{name!r} is no name for a VM: use 1 to 63 of a-z, 0-9, '-', '_' and '.',"
            " with a letter or digit at both ends"
        )
    return name


def _check_memory(text: str) -> str:
    try:
        count = parse_bytes(text)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    if count < MIN_MEMORY_BYTES:
        raise ValueError(f"memory of {text} is less than the 1 MiB a machine needs: try 256M")
    if count % PAGE_BYTES:
        raise ValueError(
            f"memory of {count} bytes is not whole pages of {PAGE_BYTES} bytes:"
            f" {count - count % PAGE_BYTES} would be"
        )
    return text


def _check_cpus(count: int) -> int:
    if count != 1:
        way_out = "create more VMs for more work" if count > 1 else "leave it out"
        raise ValueError(f"cpus {count}: this engine gives a VM exactly one vCPU; {way_out}")
    return count


def _check_priority(priority: int) -> int:
    with _as_value_error():
        ha.check_priority(priority)
    return priority


def _check_delay(text: str) -> str:
    with _as_value_error():
        ha.check_delay(text)
    return text


def _check_heartbeat(text: str) -> str:
    with _as_value_error():
        ha.check_heartbeat(text)
    return text


@contextmanager
def _as_value_error() -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise ValueError(str(error)) from None


def _check_file(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    return path


File = Annotated[Path, AfterValidator(_check_file)]


class VmSpec(BaseModel):
    """A VM to create.

    Args:
        name: What it is called in its cluster.
        image: An image of the image store, unless `kernel` is given.
        memory: Guest RAM, such as "256M" or "1.5G".
        cpus: Number of vCPUs; this engine has one.
        kernel: A kernel file of this machine instead of the image's.
        initrd: An initial RAM disk to go with it, or instead of the image's.
        append: More for the kernel command line.
        format: What the kernel is, when its content does not say it.
        host: The host to run on; the cluster chooses one by default.
        direct: Execute user code on the processor itself where the host allows it.
        restart: When it is started again after it ended: "never", "on-failure" (its process or
            its host died, its guest crashed) or "always" (also when the guest powered off).
        priority: Of several VMs that are down the one with the greater goes first; 0 to 100.
        restart_delay: The pause before a second restart in a row; it doubles with each one more.
        on_hang: What is done when its watchdog expires or its heartbeat stops: "reset", "stop"
            or "ignore".
        heartbeat: How long its console may be silent before it counts as hung; "0s" for ever.
        detached: Whether it outlives the Ray job that creates it. VMs of a program that was not
            submitted to Ray as a job outlive it in any case.

    Raises:
        ConfigError: a value that cannot be used, in one line.

    Example:
        >>> VmSpec(name="web", memory="512M").memory_bytes
        536870912
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, AfterValidator(_check_name)]
    image: str = "debian"
    memory: Annotated[str, AfterValidator(_check_memory)] = "256M"
    cpus: Annotated[int, AfterValidator(_check_cpus)] = 1
    kernel: Annotated[File | None, Field(strict=False)] = None
    initrd: Annotated[File | None, Field(strict=False)] = None
    append: str = ""
    format: KernelFormat = "auto"
    host: str | None = None
    direct: bool = True
    restart: Annotated[Restart, Field(strict=False)] = Restart.NEVER
    priority: Annotated[int, AfterValidator(_check_priority)] = 50
    restart_delay: Annotated[str, AfterValidator(_check_delay)] = "1s"
    on_hang: Annotated[HangAction, Field(strict=False)] = HangAction.RESET
    heartbeat: Annotated[str, AfterValidator(_check_heartbeat)] = "0s"
    detached: bool = False

    def __init__(self, **values: Any) -> None:  # noqa: ANN401 - pydantic's own signature
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_one_line(error)) from None

    @property
    def memory_bytes(self) -> int:
        """Guest RAM in bytes."""
        return parse_bytes(self.memory)

    @property
    def ha(self) -> HaPolicy:
        """What is done about it when it ends or hangs."""
        return HaPolicy(
            restart=self.restart,
            priority=self.priority,
            delay_s=parse_seconds(self.restart_delay),
            on_hang=self.on_hang,
            heartbeat_s=parse_seconds(self.heartbeat),
        )


def _one_line(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"][:1])
    message = first["msg"]
    if first["type"] == "value_error":
        return message.removeprefix("Value error, ")
    return f"VmSpec: {where}: {message[0].lower()}{message[1:]}, found {first['input']!r}"
