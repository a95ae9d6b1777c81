"""Room is kept for the loss of hosts, and a refusal has the numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayvisor.actors.admission import ReserveError, check
from rayvisor.actors.placing import PROCESS_BYTES, footprint_bytes
from rayvisor.actors.policy import HaPolicy, Restart
from rayvisor.actors.records import HostStatus, Placement, VmRequest

MIB = 1 << 20
KEPT = HaPolicy(restart=Restart.ON_FAILURE)


def vm(name: str, mib: int, policy: HaPolicy = KEPT) -> VmRequest:
    return VmRequest(name, mib * MIB - PROCESS_BYTES, ha=policy)


def cluster(
    rooms: dict[str, int], placed: dict[str, list[VmRequest]], vcpus: int = 16
) -> tuple[list[HostStatus], list[Placement]]:
    hosts, placements = [], []
    for name, mib in rooms.items():
        here = placed.get(name, [])
        placements += [Placement(r, 1, name, name, 0.0, pid=1, actor=r.name) for r in here]
        hosts.append(
            HostStatus(
                name,
                name,
                "",
                alive=True,
                cores=2,
                vcpus=vcpus,
                vcpus_used=len(here),
                memory_bytes=mib * MIB,
                memory_used_bytes=sum(map(footprint_bytes, here)),
            )
        )
    return hosts, placements


def test_without_a_reserve_nothing_is_kept() -> None:
    hosts, placements = cluster({"a": 1000}, {})
    check(vm("new", 900), hosts[0], hosts, placements, 0)


def test_what_still_fits_after_a_loss_is_let_in() -> None:
    hosts, placements = cluster({"a": 1000, "b": 1000}, {"a": [vm("x", 400)]})
    check(vm("new", 500), hosts[1], hosts, placements, 1)


def test_what_would_find_no_room_is_refused_with_numbers() -> None:
    hosts, placements = cluster({"a": 1000, "b": 1000}, {"a": [vm("x", 600)]})
    with pytest.raises(ReserveError) as refusal:
        check(vm("new", 500), hosts[1], hosts, placements, 1)
    text = str(refusal.value)
    assert "--ha-reserve 1 keeps room for the loss of 1 host;" in text
    assert "with this VM on b, losing a would leave 1 VM in need of 600 MiB" in text
    assert "the others have 500 MiB free, and 1 of 600 MiB would find no room" in text
    assert "`rayvisor ha --reserve 0`" in text


def test_an_unprotected_vm_takes_room_from_the_others_and_needs_none() -> None:
    hosts, placements = cluster({"a": 1000, "b": 1000}, {"a": [vm("x", 600)]})
    free = vm("new", 500, HaPolicy())
    with pytest.raises(ReserveError):
        check(free, hosts[1], hosts, placements, 1)
    check(vm("new", 300, HaPolicy()), hosts[1], hosts, placements, 1)
    hosts, placements = cluster({"a": 1000, "b": 1000}, {"a": [vm("x", 600, HaPolicy())]})
    check(free, hosts[1], hosts, placements, 1)


def test_two_halves_do_not_make_a_whole() -> None:
    """700 MiB are free after the loss of c, but nowhere 600."""
    hosts, placements = cluster({"a": 700, "b": 700, "c": 700}, {"c": [vm("x", 600)]})
    check(vm("new", 100), hosts[0], hosts, placements, 1)
    hosts, placements = cluster(
        {"a": 700, "b": 700, "c": 700}, {"c": [vm("x", 600)], "b": [vm("y", 300)]}
    )
    with pytest.raises(ReserveError, match="losing c would leave 1 VM in need of 600 MiB"):
        check(vm("new", 300), hosts[0], hosts, placements, 1)


def test_vcpus_count_too() -> None:
    hosts, placements = cluster({"a": 9000, "b": 9000}, {"a": [vm("x", 200)] * 2}, vcpus=3)
    with pytest.raises(ReserveError):
        check(vm("new", 200), hosts[1], hosts, [*placements, *placements], 1)


def test_no_more_hosts_than_are_to_be_lost() -> None:
    hosts, placements = cluster({"a": 1000, "b": 1000}, {})
    with pytest.raises(ReserveError, match="2 of the hosts are ready, and --ha-reserve 2"):
        check(vm("new", 200), hosts[0], hosts, placements, 2)
    away = [hosts[0], replace(hosts[1], reason="in maintenance", maintenance=True)]
    with pytest.raises(ReserveError, match="1 of the hosts are ready"):
        check(vm("new", 200), hosts[0], away, placements, 1)


@given(
    st.lists(st.lists(st.integers(150, 600), max_size=4), min_size=2, max_size=4),
    st.integers(150, 600),
)
def test_what_is_let_in_survives_the_loss_of_any_host(loads: list[list[int]], mib: int) -> None:
    """Played through by trying every way to place what is homeless."""
    placed = {f"h{n}": [vm(f"v{n}{i}", m) for i, m in enumerate(ms)] for n, ms in enumerate(loads)}
    hosts, placements = cluster(dict.fromkeys(placed, 2500), placed)
    new = vm("new", mib)
    try:
        check(new, hosts[0], hosts, placements, 1)
    except ReserveError:
        return
    placed["h0"] = [*placed["h0"], new]
    for lost, homeless in placed.items():
        free = [
            2500 - sum(footprint_bytes(r) // MIB for r in there)
            for name, there in placed.items()
            if name != lost
        ]
        assert _fits([footprint_bytes(r) // MIB for r in homeless], free)


def _fits(sizes: list[int], rooms: list[int]) -> bool:
    if not sizes:
        return True
    return any(
        _fits(sizes[1:], [*rooms[:n], room - sizes[0], *rooms[n + 1 :]])
        for n, room in enumerate(rooms)
        if room >= sizes[0]
    )
