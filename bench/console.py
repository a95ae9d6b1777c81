"""The serial console: bytes a second out of the guest, and how soon typing echoes under load."""

from __future__ import annotations

import argparse
import random
import time

from bench.contestants import OURS, QEMU_PVH, Guest, boot_files, contestants
from bench.report import Report, finish, median, percentile, take_precedence, verdict

LIMIT_MB_S = 1.0
LIMIT_ECHO_MS = 20.0


def throughput_mb_s(guest: Guest, megabytes: int) -> float:
    """From the first to the last byte of a file that is copied to the console."""
    guest.run(f"dd if=/dev/zero bs=1M count={megabytes} 2>/dev/null | tr '\\0' x > /tmp/bytes")
    guest.run("stty -opost")
    guest.send(b'cat /tmp/bytes; echo; echo "END"OF\n')
    guest.until(b"x")
    start_s = time.perf_counter()
    data = guest.until(b"ENDOF", 300)
    took_s = time.perf_counter() - start_s
    guest.shell()
    guest.run("stty opost; rm /tmp/bytes")
    lost = (megabytes << 20) - 1 - data.count(b"x")
    if lost:
        raise SystemExit(f"{guest.who}: {lost} bytes of {megabytes} MiB did not arrive")
    return megabytes * 1.048576 / took_s


def echo_ms(guest: Guest, count: int) -> list[float]:
    """From a key to its echo, while another process computes."""
    guest.run("yes > /dev/null & sleep 1")
    guest.send(b"cat > /dev/null; echo\n")
    guest.until(b"\n")
    time.sleep(0.5)
    choose = random.Random(1)  # noqa: S311 - any spacing will do, the same each time
    delays = []
    for _ in range(count):
        time.sleep(choose.uniform(0.005, 0.05))
        start_s = time.perf_counter()
        guest.send(b"k")
        guest.until(b"k", 10)
        delays.append(1000 * (time.perf_counter() - start_s))
    return delays


def main() -> None:
    take_precedence()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=4, help="how much to write")
    parser.add_argument("--keys", type=int, default=200, help="how often to type")
    parser.add_argument("--runs", type=int, default=3, help="measurements of each contestant")
    arguments = parser.parse_args()
    names = [name for name in contestants() if name in {OURS, QEMU_PVH}]
    rates: dict[str, list[float]] = {name: [] for name in names}
    echoes: dict[str, list[float]] = {name: [] for name in names}
    with boot_files() as files:
        for name in names * arguments.runs:
            with Guest(name, files) as guest:
                guest.shell()
                rates[name].append(throughput_mb_s(guest, arguments.megabytes))
                echoes[name] += echo_ms(guest, arguments.keys)
            print(f"{name}: {rates[name][-1]:.2f} MB/s", flush=True)
    finish(
        Report(
            name="console",
            title="The serial console",
            columns=("contestant", "out of the guest, MB/s", "echo, median ms", "echo, p99 ms"),
            rows=tuple(
                (n, median(rates[n]), median(echoes[n]), percentile(echoes[n], 99)) for n in names
            ),
            verdicts=(
                verdict("throughput", median(rates[OURS]), LIMIT_MB_S, " MB/s", at_most=False),
                verdict("echo under load, p99", percentile(echoes[OURS], 99), LIMIT_ECHO_MS, " ms"),
            ),
            notes=(
                f"{arguments.megabytes} MiB from a file, every byte counted on arrival",
                f"{arguments.keys} keys a run, echoed by the guest's terminal line",
                "while typing, `yes > /dev/null` runs in the guest",
            ),
            samples={
                **{f"{n}, MB/s": v for n, v in rates.items()},
                **{f"{n}, echo ms": v for n, v in echoes.items()},
            },
        )
    )


if __name__ == "__main__":
    main()
