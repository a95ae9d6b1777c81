"""The commands that move VMs: what they print, and what they say when it cannot be done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from rayvisor.migration.report import Progress
from rayvisor.runtime.cli.app import main
from rayvisor.runtime.cli.migrate import describe
from tests.cluster.moving import PATIENCE_S, Reader, make_traveller, spec_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rayvisor.runtime.cluster import Cluster
    from rayvisor.runtime.vm_handle import VmHandle

    Run = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.timeout(400)

COMMAND = [sys.executable, "-m", "rayvisor"]


@pytest.fixture
def run(two_hosts: Cluster, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process, which is connected already."""
    assert two_hosts.started

    def command(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main(words)
        said = capfd.readouterr()
        return status, said.out, said.err

    return command


@pytest.fixture
def vm(two_hosts: Cluster, tmp_path: Path) -> Iterator[VmHandle]:
    made = two_hosts.create(spec_of("web", make_traveller(tmp_path), host="host-1"))
    with Reader(made) as reader:
        reader.wait_for(3)
    yield made
    for left in two_hosts.vms():
        two_hosts.remove(left.name, force=True)


def as_json(run: Run, *words: str) -> Any:  # noqa: ANN401 - whatever the command prints
    status, out, err = run(*words, "--json")
    assert (status, err) == (0, "")
    return json.loads(out)


def test_a_progress_line_has_what_one_wants_to_know() -> None:
    progress = Progress(
        phase="precopy",
        round=2,
        remaining_pages=12_345,
        dirty_pages_per_s=678.0,
        bytes_per_s=float(9 << 20),
        bytes_sent=1,
        expected_downtime_s=0.0123,
        throttle=0.2,
        elapsed_s=1.0,
    )
    assert describe(progress) == (
        "precopy, round 2, 12,345 pages left, 678 written/s, 9 MiB/s, downtime 12 ms, slowed by 20%"
    )


@pytest.mark.cluster
@pytest.mark.usefixtures("vm")
def test_the_report_as_table_and_as_json(run: Run) -> None:
    status, out, err = run("migrate", "web", "--downtime", "50ms", "--bandwidth", "1G")
    assert status == 0, err
    assert "web moved from host-1 to host-2" in out
    for word in ("total", "downtime", "ROUND", "WRITTEN"):
        assert word in out
    report = as_json(run, "migrate", "web", "--host", "host-1")
    assert set(report) >= {
        *("vm", "source", "destination", "outcome", "total_s", "downtime_s", "phases", "rounds"),
        *("bytes_sent", "pages_sent", "zero_pages", "compression_ratio"),
    }
    assert (report["source"], report["destination"]) == ("host-2", "host-1")


@pytest.mark.cluster
@pytest.mark.usefixtures("vm")
def test_what_cannot_be_done_is_one_line(run: Run) -> None:
    for words, status, text in (
        (["migrate", "nobody"], 1, "no VM is called 'nobody'"),
        (["migrate", "web", "--host", "host-1"], 1, "VM 'web' is on host host-1 already"),
        (["migrate", "web", "--host", "mars"], 1, "no host is called 'mars'"),
        (["migrate", "web", "--downtime", "x"], 2, "'x' is not a span of time"),
        (["migrate", "web", "--bandwidth", "0"], 2, "give more than 0 bytes a second"),
        (["evacuate", "mars"], 1, "no host is called 'mars'"),
        (["resume-host", "mars"], 1, "no host is called 'mars'"),
        (["up", "--hosts", "3"], 2, "a cluster of 2 on this machine is up"),
        (["up", "--hosts", "0"], 2, "this machine can be 1 to 16 hosts"),
    ):
        found, out, err = run(*words)
        assert (found, out) == (status, ""), words
        assert text in err
        assert "Traceback" not in err
    assert as_json(run, "migrate", "web", "--cancel") == {"vm": "web", "cancelled": False}


@pytest.mark.cluster
@pytest.mark.usefixtures("vm")
def test_a_failed_migration_reports_and_fails(run: Run) -> None:
    limits = ["--bandwidth", "200K", "--timeout", "1s"]
    status, out, err = run("migrate", "web", *limits, "--json")
    assert status == 1
    assert json.loads(out)["outcome"] == "failed"
    assert json.loads(err)["kind"] == "MigrationFailedError"


@pytest.mark.cluster
def test_ctrl_c_calls_it_off(vm: VmHandle) -> None:
    process = subprocess.Popen(
        [*COMMAND, "migrate", "web", "--bandwidth", "300K"],
        env=dict(os.environ),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not vm.status().moving_to:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=PATIENCE_S)[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "called off: web is running where it was" in said
    assert (vm.status().host, vm.status().moving_to) == ("host-1", "")


@pytest.mark.cluster
@pytest.mark.usefixtures("vm")
def test_evacuate_resume_and_events(run: Run) -> None:
    status, out, _ = run("evacuate", "host-1")
    assert status == 0
    assert "host-1 is in maintenance: 1 moved, 0 stayed." in out
    table = run("hosts")[1]
    assert "in maintenance" in table
    # Nowhere to go: said, and the status tells.
    status, out, err = run("evacuate", "host-2", "--json")
    assert status == 1
    assert "host-1: in maintenance" in json.loads(out)["stayed"]["web"]
    assert "1 of 1 VMs are still on host-2" in json.loads(err)["error"]
    assert as_json(run, "resume-host", "host-1")["maintenance"] is False
    assert run("evacuate", "host-2", "--undo")[0] == 0
    assert {h["maintenance"] for h in as_json(run, "hosts")} == {False}
    kinds = [event["kind"] for event in as_json(run, "events")]
    assert kinds.count("maintenance_begun") == kinds.count("maintenance_ended") == 2
    assert "vm_created" in run("events", "--limit", "1000")[1]


@pytest.mark.cluster
@pytest.mark.usefixtures("vm")
def test_events_are_followed(two_hosts: Cluster) -> None:
    follow = [*COMMAND, "events", "--follow", "--json"]
    with subprocess.Popen(follow, env=dict(os.environ), stdout=subprocess.PIPE, text=True) as said:
        assert said.stdout is not None
        try:
            assert json.loads(said.stdout.readline())["id"]
            two_hosts.remove("web", force=True)
            for line in said.stdout:
                event = json.loads(line)
                if event["kind"] == "vm_removed" and event["vm"] == "web":
                    break
            said.send_signal(signal.SIGINT)
            assert said.wait(PATIENCE_S) == 130
        finally:
            said.kill()
