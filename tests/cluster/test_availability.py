"""What is done about what is seen: the state machine of high availability."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayvisor.actors.availability import (
    AT_ONCE,
    NO_ROOM_RETRY_S,
    Availability,
    Forget,
    HostState,
    Instruction,
    NodeSeen,
    Outcome,
    Start,
    Tell,
    World,
)
from rayvisor.actors.lease import GRACE_S, LEASE_S, Beat
from rayvisor.actors.policy import STABLE_S, HaPolicy, Restart
from rayvisor.actors.records import (
    Comeback,
    LastWords,
    Pair,
    Placement,
    Protection,
    Spot,
    VmRequest,
    VmState,
)
from rayvisor.actors.turns import NOBODY

KEPT = HaPolicy(restart=Restart.ON_FAILURE)
ENOUGH_S = LEASE_S + GRACE_S + 0.1


def vm(name: str, host: str = "a", policy: HaPolicy = KEPT, token: int = 1) -> Placement:
    return Placement(VmRequest(name, 1 << 20, ha=policy), token, host, host, 0.0, 9, f"on-{name}")


@dataclass
class Bench:
    """A machine, and the world it sees."""

    machine: Availability = field(default_factory=Availability)
    now_s: float = 100.0
    marks: dict[str, int] = field(default_factory=lambda: {"a": 0, "b": 0})
    silent: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    placements: list[Placement] = field(default_factory=list)
    ends: dict[str, LastWords] = field(default_factory=dict)

    def look(self, seconds: float = 0.0) -> list[Instruction]:
        """What is to be done, after so many seconds in which it looked all the time."""
        out: list[Instruction] = []
        end_s = self.now_s + seconds
        while True:
            for host in self.marks:
                self.marks[host] += host not in self.silent
            beats = {h: Beat(str(m), LEASE_S) for h, m in self.marks.items()}
            nodes = {h: NodeSeen(h, h not in self.gone) for h in self.marks}
            out += self.machine.look(self.now_s, World(beats, nodes, self.placements, self.ends))
            if self.now_s >= end_s:
                return out
            self.now_s = min(end_s, self.now_s + 0.2)

    def starts(self, seconds: float = 0.0) -> list[Start]:
        return [i for i in self.look(seconds) if isinstance(i, Start)]

    def told(self, seconds: float = 0.0) -> list[str]:
        return [i.kind.value for i in self.look(seconds) if isinstance(i, Tell)]

    def done(self, start: Start, outcome: Outcome, said: str = "b") -> list[str]:
        told = self.machine.done(self.now_s, start, outcome, said)
        return [i.text for i in told if isinstance(i, Tell)]

    def state(self, host: str = "a") -> HostState:
        found = self.machine.host(host)
        assert found is not None
        return found[0]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def failed(reason: str = "killed") -> LastWords:
    return LastWords(VmState.FAILED, reason, 1.0)


def test_a_silent_host_goes_through_its_states(bench: Bench) -> None:
    bench.look(1)
    bench.silent.add("a")
    assert bench.told(LEASE_S / 2 - 0.3) == []
    assert bench.told(0.4) == ["host_late"]
    assert bench.state() is HostState.LATE
    assert bench.told(ENOUGH_S) == ["host_isolated"]
    bench.gone.add("a")
    assert bench.told() == ["host_dead"]
    bench.silent.clear()
    bench.gone.clear()
    assert bench.told() == ["host_back"]
    assert bench.state() is HostState.HELD


def test_that_ray_gives_a_host_up_is_not_enough(bench: Bench) -> None:
    bench.placements = [vm("web")]
    bench.look(1)
    bench.gone.add("a")
    assert bench.starts(20) == []
    bench.silent.add("a")
    assert bench.starts(LEASE_S) == []
    (start,) = bench.starts(GRACE_S + 0.4)
    assert (start.name, start.token, start.cause, start.in_place) == ("web", 1, "host-dead", False)


def test_a_new_machine_waits_a_whole_lease(bench: Bench) -> None:
    bench.silent.add("a")
    bench.gone.add("a")
    bench.placements = [vm("web")]
    assert bench.starts(LEASE_S + GRACE_S - 0.3) == []
    assert len(bench.starts(0.5)) == 1


def test_whom_nobody_starts(bench: Bench) -> None:
    pair = Protection(0.02, 0.5, pair=Pair("id", 2, Spot("b", "b")))
    never = vm("never", policy=HaPolicy())
    bench.placements = [never, replace(vm("paired"), ft=pair), replace(vm("made"), pid=0)]
    bench.ends = dict.fromkeys(("never", "paired", "made"), failed())
    bench.silent.add("a")
    assert bench.starts(30) == []
    assert bench.machine.waiting() == {}


def test_the_urgent_go_first_and_not_all_at_once(bench: Bench) -> None:
    bench.placements = [
        vm(f"vm-{n}", policy=replace(KEPT, priority=10 * n)) for n in range(AT_ONCE + 2)
    ]
    bench.look(1)
    bench.silent.add("a")
    first = bench.starts(ENOUGH_S)
    assert [s.name for s in first] == [f"vm-{n}" for n in range(AT_ONCE + 1, 1, -1)]
    assert bench.starts(1) == []
    bench.done(first[0], Outcome.RESTARTED)
    bench.placements = [
        replace(p, host_id="b", token=2) if p.name == first[0].name else p for p in bench.placements
    ]
    (one_more,) = bench.starts()
    assert one_more.name == "vm-1"


def test_the_urgent_do_not_wait_for_a_place_behind_others(bench: Bench) -> None:
    low, high = replace(KEPT, priority=1), replace(KEPT, priority=2)
    bench.placements = [vm(f"low-{n}", policy=low) for n in range(AT_ONCE + 1)]
    bench.ends = {p.name: failed() for p in bench.placements}
    assert len(bench.starts()) == AT_ONCE
    assert bench.machine.foremost() == 1
    urgent = [vm(f"high-{n}", policy=high) for n in range(AT_ONCE + 1)]
    bench.placements += urgent
    bench.ends |= {p.name: failed() for p in urgent}
    assert [s.name for s in bench.starts()] == [f"high-{n}" for n in range(AT_ONCE)]
    assert bench.machine.foremost() == 2


def test_a_host_in_doubt_holds_up_the_less_urgent(bench: Bench) -> None:
    """Two hosts die together, and are found dead one after the other."""
    bench.placements = [
        vm("low", "a", replace(KEPT, priority=1)),
        vm("high", "b", replace(KEPT, priority=9)),
    ]
    bench.look(1)
    assert bench.machine.foremost() == NOBODY
    bench.silent.add("a")
    bench.look(0.6)
    bench.silent.add("b")
    (low,) = bench.starts(ENOUGH_S - 0.6)
    assert (low.name, bench.machine.foremost()) == ("low", 9)
    (high,) = bench.starts(0.6)
    assert (high.name, high.priority, bench.machine.foremost()) == ("high", 9, NOBODY)


def test_a_guest_that_ended_is_started_in_its_process(bench: Bench) -> None:
    bench.placements = [vm("web")]
    bench.ends = {"web": LastWords(VmState.CRASHED, "triple fault", 1.0)}
    (start,) = bench.starts()
    assert (start.in_place, start.why, start.cause) == (True, "triple fault", "guest")
    bench.ends = {"web": LastWords(VmState.HALTED, "it powered off", 1.0)}
    assert Bench(placements=bench.placements, ends=bench.ends).starts(5) == []


def test_failures_in_a_row_wait_longer(bench: Bench) -> None:
    bench.placements = [vm("web", policy=replace(KEPT, delay_s=4.0))]
    bench.ends = {"web": failed()}
    waits = []
    for _ in range(4):
        began_s = bench.now_s
        while not (starts := bench.starts(0.2)):
            pass
        waits.append(bench.now_s - began_s)
        bench.done(starts[0], Outcome.RESTARTED)
        bench.ends = {}
        bench.look(1)
        bench.ends = {"web": failed()}
    assert waits == pytest.approx([0.2, 4.2, 8.2, 16.2], abs=0.3)
    bench.ends = {}
    bench.look(STABLE_S + 20)
    bench.ends = {"web": failed()}
    assert len(bench.starts()) == 1


def test_no_room_is_told_once_and_tried_on(bench: Bench) -> None:
    bench.placements = [vm("web")]
    bench.ends = {"web": failed("killed")}
    (start,) = bench.starts()
    (text,) = bench.done(start, Outcome.REFUSED, "no room: 1 of 2 MiB free")
    assert text == "VM web was not started again: no room: 1 of 2 MiB free"
    assert bench.machine.waiting() == {"web": "killed; no room: 1 of 2 MiB free"}
    assert bench.starts(NO_ROOM_RETRY_S - 0.3) == []
    (again,) = bench.starts(0.5)
    assert bench.done(again, Outcome.REFUSED, "no room: 1 of 2 MiB free") == []
    assert len(bench.starts(NO_ROOM_RETRY_S)) == 1


def test_a_comeback_that_was_broken_off_is_gone_on_with(bench: Bench) -> None:
    comeback = Comeback("its host a is dead", Spot("a", "a"), 1.0)
    bench.placements = [replace(vm("web", "b", token=5), pid=0, comeback=comeback)]
    (start,) = bench.starts()
    assert (start.token, start.why) == (5, "its host a is dead")


def test_a_host_that_comes_back_in_time_keeps_its_vms(bench: Bench) -> None:
    bench.placements = [vm("web")]
    bench.look(1)
    bench.silent.add("a")
    (start,) = bench.starts(ENOUGH_S)
    bench.silent.clear()
    bench.placements = [vm("web", token=2)]  # it took it back
    assert bench.done(start, Outcome.OVERTAKEN) == []
    assert bench.starts(10) == []
    assert bench.machine.waiting() == {}


def test_dead_hosts_are_forgotten_when_they_are_empty(bench: Bench) -> None:
    bench.placements = [vm("plain", policy=HaPolicy())]
    bench.silent.add("a")
    bench.gone.add("a")
    assert not any(isinstance(i, Forget) for i in bench.look(30))
    bench.placements = []
    assert Forget("a") in bench.look()
    del bench.marks["a"]
    bench.look()
    assert bench.machine.host("a") is None


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), st.sampled_from([0.2, 1.0, ENOUGH_S])),
        st.tuples(st.just("silence"), st.sampled_from("ab")),
        st.tuples(st.just("voice"), st.sampled_from("ab")),
        st.tuples(st.just("end"), st.integers(0, 5)),
        st.tuples(st.just("done"), st.sampled_from(list(Outcome))),
        st.tuples(st.just("remove"), st.integers(0, 5)),
    ),
    max_size=40,
)


@given(EVENTS)
def test_whatever_happens(events: list[tuple[str, object]]) -> None:
    """Never two restarts of one VM at a time, never too many, never for one that is well."""
    bench = Bench()
    bench.placements = [vm(f"vm-{n}", "ab"[n % 2]) for n in range(6)]
    busy: list[Start] = []
    token = 1
    for kind, what in events:
        if kind == "silence":
            bench.silent.add(str(what))
        elif kind == "voice":
            bench.silent.discard(str(what))
        elif kind == "end":
            bench.ends[f"vm-{what}"] = failed()
        elif kind == "remove":
            bench.placements = [p for p in bench.placements if p.name != f"vm-{what}"]
        elif kind == "done" and busy:
            start = busy.pop(0)
            bench.done(start, Outcome(str(what)))
            if what is Outcome.RESTARTED:
                token += 1
                bench.ends.pop(start.name, None)
                bench.placements = [
                    replace(p, token=token, host_id="b") if p.name == start.name else p
                    for p in bench.placements
                ]
        for start in bench.starts(float(str(what)) if kind == "pass" else 0.0):
            assert start.name not in [b.name for b in busy if _there(bench, b.name)]
            busy.append(start)
            (placement,) = [p for p in bench.placements if p.name == start.name]
            assert placement.token == start.token
            assert placement.host_id in bench.silent or start.name in bench.ends
        assert len([b for b in busy if _there(bench, b.name)]) <= AT_ONCE
        busy = [b for b in busy if _there(bench, b.name)]


def _there(bench: Bench, name: str) -> bool:
    return any(p.name == name for p in bench.placements)
