"""QEMU TCG migrating the same guest between two of its processes, for bench.migration.

Debian's QEMU 7.2 loses stores when it migrates under TCG, so the peer is 10 or later: the machine's
own if it is, or one that has been unpacked into a folder (bench.backports does that).
"""

from __future__ import annotations

import json
import os
import re
import selectors
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from bench import backports

if TYPE_CHECKING:
    from bench.contestants import BootFiles

ENOUGH_BYTES_PER_S = 1 << 34
OLDEST = (10,)


@dataclass(frozen=True, slots=True)
class Qemu:
    """A QEMU that lies in a folder of its own, or (None) the installed one."""

    root: Path | None

    def command(self) -> tuple[list[str], dict[str, str]]:
        """How to start it, and its environment."""
        if self.root is None:
            return ["qemu-system-x86_64"], dict(os.environ)
        libraries = self.root / "usr/lib/x86_64-linux-gnu"
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": f"{libraries}:{self.root / 'lib/x86_64-linux-gnu'}",
            "QEMU_MODULE_DIR": str(libraries / "qemu"),
        }
        share = self.root / "usr/share"
        return [
            str(self.root / "usr/bin/qemu-system-x86_64"),
            *("-L", str(share / "qemu"), "-L", str(share / "seabios")),
        ], environment

    def version(self) -> tuple[int, ...]:
        """Such as (10, 0, 2)."""
        words, environment = self.command()
        try:
            done = subprocess.run(
                [words[0], "--version"], env=environment, capture_output=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return ()
        return tuple(int(n) for n in done.stdout.split()[3].split(b"."))

    @property
    def title(self) -> str:
        """Such as "10.0.2"."""
        return ".".join(map(str, self.version()))


def find(root: Path | None) -> tuple[Qemu | None, str]:
    """The peer: in `root`, or the machine's own, or brought here; or None, and why."""
    given = Qemu(root)
    if given.version() >= OLDEST:
        return given, ""
    if root is not None:
        return None, f"none of 10 or later in {root}"
    try:
        return Qemu(backports.qemu()), ""
    except backports.BackportsError as error:
        return None, f"none of 10 or later: {error}"


class Process:
    """One QEMU, with its console and its machine protocol."""

    def __init__(
        self,
        qemu: Qemu,
        files: BootFiles,
        memory_mib: int,
        port: int | None = None,
        *,
        deferred: bool = False,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rayvisor-qemu-")
        path = Path(self._folder.name) / "qmp"
        words, environment = qemu.command()
        left_out = {"noapic"}
        cmdline = " ".join(w for w in files.cmdline.split() if w not in left_out)
        words += [
            *("-accel", "tcg,thread=single", "-M", "pc", "-m", str(memory_mib)),
            *("-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"),
            *("-kernel", str(files.kernel), "-initrd", str(files.initrd), "-append", cmdline),
            *("-qmp", f"unix:{path},server=on,wait=off"),
        ]
        if port is not None:
            words += ["-incoming", "defer" if deferred else f"tcp:127.0.0.1:{port}"]
        self._process = subprocess.Popen(
            words,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.output = b""
        self._socket = socket.socket(socket.AF_UNIX)
        for _ in range(400):
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                time.sleep(0.025)
        self._lines = self._socket.makefile()
        self._lines.readline()
        self.run("qmp_capabilities")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._socket.close()
        self._folder.cleanup()

    def run(self, name: str, **arguments: object) -> Any:  # noqa: ANN401 - as QMP has it
        """The answer to a command."""
        request = {"execute": name, "arguments": arguments}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            answer = json.loads(self._lines.readline())
            if "error" in answer:
                raise RuntimeError(f"QEMU: {name}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def read(self, wait_s: float) -> bytes:
        """All console output so far."""
        stdout = self._process.stdout
        assert stdout is not None
        os.set_blocking(stdout.fileno(), False)
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while selector.select(wait_s):
                data = os.read(stdout.fileno(), 1 << 16)
                if not data:
                    break
                self.output += data
                wait_s = 0
        return self.output

    def wait_for(self, text: bytes) -> None:
        """Console output has `text`."""
        deadline_s = time.monotonic() + 120
        while text not in self.read(1):
            assert time.monotonic() < deadline_s, self.output[-300:]

    def type(self, data: bytes) -> None:
        """Type at the console."""
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(data)
        stdin.flush()


def work_in(output: bytes) -> int:
    """What a guest says that it has done: the last "w NUMBER", or how many "w" without one."""
    numbered = re.findall(rb"\nw (\d+)\r?\n", output[-4096:])
    return int(numbered[-1]) if numbered else output.count(b"\nw")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def migrate(source: Process, target: Process, port: int, downtime_ms: float, *, zstd: bool) -> Any:  # noqa: ANN401
    """QEMU's own numbers; "failed" if it does not end within 20 s."""
    first = work_in(source.read(0))
    time.sleep(1)
    before = work_in(source.read(0)) - first
    if zstd:
        for side in (source, target):
            capability = {"capability": "multifd", "state": True}
            side.run("migrate-set-capabilities", capabilities=[capability])
            side.run("migrate-set-parameters", **{"multifd-compression": "zstd"})
        target.run("migrate-incoming", uri=f"tcp:127.0.0.1:{port}")
    source.run(
        "migrate-set-parameters",
        **{"max-bandwidth": ENOUGH_BYTES_PER_S, "downtime-limit": max(1, round(downtime_ms))},
    )
    done, start_s = work_in(source.read(0)), time.monotonic()
    source.run("migrate", uri=f"tcp:127.0.0.1:{port}")
    while True:
        state = source.run("query-migrate")
        source.read(0)
        if state.get("status") in {"completed", "failed"}:
            break
        if time.monotonic() - start_s > 20:
            source.run("migrate_cancel")
            return {"outcome": "never"}
        time.sleep(0.005)
    total_s = state["total-time"] / 1000
    during = work_in(source.read(0)) - done
    return {
        "outcome": "moved",
        "total_s": total_s,
        "downtime_s": state["downtime"] / 1000,
        "bytes_sent": state["ram"]["transferred"],
        "kept_ratio": during / total_s / before if before else None,
    }
