"""Where a VM goes, and what is said when it goes nowhere."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rayvisor.actors.placing import PROCESS_BYTES, choose_host, footprint_bytes
from rayvisor.actors.records import HostStatus, VmRequest
from rayvisor.vmm.errors import PlacementError

GIB = 1 << 30
A = HostStatus("aa11", "alpha", "10.0.0.1", alive=True, cores=2, vcpus=16, memory_bytes=8 * GIB)
B = replace(A, host_id="bb22", name="beta", memory_bytes=4 * GIB)


def ask(**values: object) -> VmRequest:
    plain: dict[str, object] = {"name": "web", "memory_bytes": GIB, **values}
    return VmRequest(**plain)  # type: ignore[arg-type]


def test_the_host_with_most_memory_left_takes_it() -> None:
    assert choose_host(ask(), [A, B]) is A
    full = replace(A, memory_used_bytes=7 * GIB)
    assert choose_host(ask(), [full, B]) is B


def test_it_goes_where_it_is_sent() -> None:
    assert choose_host(ask(host="beta"), [A, B]) is B
    assert choose_host(ask(host="bb2"), [A, B]) is B


def test_an_exact_fit_fits_and_a_byte_more_does_not() -> None:
    request = ask()
    room = replace(A, memory_bytes=footprint_bytes(request))
    assert choose_host(request, [room]) is room
    with pytest.raises(PlacementError):
        choose_host(request, [replace(room, memory_used_bytes=1)])


@pytest.mark.parametrize(
    ("request_", "host", "said"),
    [
        (ask(memory_bytes=9 * GIB), A, "alpha: 8192 of 8192 MiB free"),
        (ask(), replace(A, vcpus_used=16), "alpha: 0 of 16 vCPUs free"),
        (ask(cpus=3), A, "alpha: has 2 cores, fewer than the VM has vCPUs"),
        (ask(), replace(A, reason="its host actor does not answer"), "does not answer"),
        (ask(), replace(A, alive=False), "alpha: not alive"),
        (ask(host="gamma"), A, "no host is called 'gamma'; hosts: alpha"),
    ],
)
def test_no_room_names_the_numbers(request_: VmRequest, host: HostStatus, said: str) -> None:
    with pytest.raises(PlacementError) as caught:
        choose_host(request_, [host])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_it_needs_is_said_with_its_process() -> None:
    with pytest.raises(PlacementError) as caught:
        choose_host(ask(memory_bytes=100 * GIB), [A])
    process = PROCESS_BYTES >> 20
    assert f"1 vCPU and {100 * 1024 + process} MiB ({process} MiB of it" in str(caught.value)


def test_a_start_of_an_id_that_fits_two_is_refused() -> None:
    with pytest.raises(PlacementError, match="2 hosts' ids start with 'a'"):
        choose_host(ask(host="a"), [A, replace(B, host_id="ab")])


def test_no_host_at_all() -> None:
    with pytest.raises(PlacementError, match="the cluster has no host"):
        choose_host(ask(), [])
