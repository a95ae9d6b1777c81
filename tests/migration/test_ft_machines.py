"""Real machines, protected, with guests that notice everything."""

from __future__ import annotations

import struct
import threading
import time
from typing import TYPE_CHECKING

import pytest

from rayvisor.migration.errors import OwnershipLostError
from rayvisor.migration.ft_config import FtConfig
from rayvisor.migration.ft_inputs import Inputs
from rayvisor.migration.ft_protocol import SecondaryPhase, Verdict
from rayvisor.vmm.errors import ConfigError
from rayvisor.vmm.machine import PowerState
from tests.migration.moving import MIB
from tests.migration.protecting import Protected, protected
from tests.migration.test_machines import _CLOCK, _ECHO, _MIRROR
from tests.support.flat import long_mode, missing_tools
from tests.support.travelling import Journal, traveller

if TYPE_CHECKING:
    from rayvisor.vmm.vm import Vm

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason="needs binutils")

MIRROR = long_mode(_MIRROR.format(more=""))


def number(vm: Vm, gpa: int = 0x9000) -> int:
    return int(struct.unpack("<Q", vm.machine.ram.read(gpa, 8))[0])


def lives(vm: Vm) -> None:
    """The guest's counter goes on."""
    before, deadline = number(vm), time.monotonic() + 20
    while number(vm) == before:
        assert vm.power is PowerState.RUNNING, vm.machine.exit_status
        assert time.monotonic() < deadline
        time.sleep(0.001)


def read_on(journal: Journal, vm: Vm) -> None:
    """What somebody attached to the console sees now."""
    while True:
        offset, data = vm.console.read(journal.offset)
        if not data:
            return
        journal.add(offset, data)


def says_more(pair: Protected, journal: Journal, vm: Vm, steps: int = 50) -> None:
    """The guest goes on, and what it says follows what it said."""

    def more() -> bool:
        read_on(journal, vm)
        return journal.steps > goal

    read_on(journal, vm)
    goal = journal.steps + steps
    pair.wait_for(more)


@pytest.mark.parametrize("delta_cache_bytes", [0, 4 * MIB])
def test_the_secondary_has_each_epoch_byte_for_byte(delta_cache_bytes: int) -> None:
    with protected(MIRROR, FtConfig(epoch_s=0.01, delta_cache_bytes=delta_cache_bytes)) as pair:
        pair.source.copies = {}
        pair.wait_for(lambda: pair.standby.compared >= 10)
        pair.source.copies = None
        pair.cut_line()
        pair.wait_for(lambda: pair.standby.phase is not SecondaryPhase.STANDBY)


def test_more_dirty_pages_than_can_be_kept_aside_are_sent_while_the_guest_stands_still() -> None:
    with protected(MIRROR, FtConfig(epoch_s=0.02, aside_bytes=256 << 10)) as pair:
        pair.source.copies = {}
        pair.wait_for(lambda: pair.standby.compared >= 5)
        assert pair.protector.stats().dirty_bytes > 1 * MIB
        pair.source.copies = None


@pytest.mark.parametrize("seed", range(4))
def test_the_survivor_goes_on_from_what_clients_saw(seed: int) -> None:
    """Killed at some moment, the guest goes on with its memory and output as they should be."""
    journal = Journal()
    with protected(traveller(pause=3000)) as pair:
        for _ in range(5 + 7 * seed):
            read_on(journal, pair.vm)
            time.sleep(0.01)
        pair.cell.verdict = Verdict.SECONDARY  # whatever the primary still asks comes too late
        pair.cut_line()
        pair.wait_for(lambda: pair.standby.takeover)
        assert not pair.ends()
        read_on(journal, pair.vm)
        says_more(pair, journal, pair.other, 100)
        assert pair.vm.power is PowerState.OFF


def test_checkpoints_do_not_wait_for_who_is_told_of_them() -> None:
    """The record may take longer than the silence after which a primary is taken for dead."""
    told = threading.Event()
    with protected(traveller(pause=3000), before=lambda pair: pair.tell(told.wait)) as pair:
        pair.epochs(20)
        assert not pair.standby.takeover
        told.set()


def test_a_primary_that_was_replaced_never_shows_what_was_not_acknowledged() -> None:
    with protected(traveller(pause=3000)) as pair:
        pair.epochs(3)
        pair.cell.verdict = Verdict.SECONDARY
        pair.cut_line()
        assert not pair.ends()
        console = pair.vm.console
        shown = console.read(0, max_bytes=1 << 20)[1]
        known = pair.other.console.read(0, max_bytes=1 << 20)[1]
        assert console.held_bytes > 0
        assert known[: len(shown)] == shown
        assert console.read(len(shown), timeout_s=0.05)[1] == b""
        pair.vm.console.close()


def test_a_silent_primary_is_replaced_and_a_silent_secondary_done_without() -> None:
    config = FtConfig(epoch_s=0.01, silence_s=0.2)
    with protected(traveller(pause=3000), config) as pair:
        with pair.standby._lock:  # frozen
            assert pair.protector.wait(10)
        assert pair.cell.verdict is Verdict.PRIMARY
        assert pair.ends()
        assert pair.standby.phase is SecondaryPhase.DISCARDED
        assert pair.vm.power is PowerState.RUNNING
        assert pair.vm.console.held_bytes == 0
    with protected(traveller(pause=3000), config) as pair:
        hold = pair.vm.machine
        hold.post(lambda: time.sleep(1))
        began_s = time.monotonic()
        pair.wait_for(lambda: pair.standby.takeover)
        assert time.monotonic() - began_s > 0.15
        assert not pair.ends()


@pytest.mark.parametrize("first", [None, Verdict.PRIMARY, Verdict.SECONDARY])
def test_of_two_that_cannot_see_each_other_one_goes_on(first: Verdict | None) -> None:
    """A partition: both live, and each must take the other for dead."""
    with protected(traveller(pause=3000), FtConfig(epoch_s=0.01, silence_s=0.2)) as pair:
        pair.epochs(3)
        pair.cell.verdict = first
        pair.line.silent = True
        here = pair.protector.wait(10) and pair.protector.phase == "alone"
        pair.wait_for(lambda: not pair.standby.phase.startswith(("standby", "claiming")))
        there = pair.standby.phase is SecondaryPhase.RUNNING
        assert here != there
        assert pair.cell.verdict is (Verdict.PRIMARY if here else Verdict.SECONDARY)
        journal = Journal()
        read_on(journal, pair.vm)
        says_more(pair, journal, pair.vm if here else pair.other)
        pair.line.silent = False


def test_death_of_the_secondary_leaves_the_guest_running_and_shows_what_was_held() -> None:
    journal = Journal()
    with protected(traveller(pause=3000)) as pair:
        pair.epochs(3)
        pair.cell.verdict = Verdict.PRIMARY  # as when the secondary has died with its stream
        pair.cut_line()
        assert pair.ends()
        assert "connection" in pair.protector.reason
        assert pair.protector.stats().state == "unprotected"
        says_more(pair, journal, pair.vm, 50)
        assert pair.other.machine.ram.fd < 0


def test_a_planned_switch_over_loses_nothing() -> None:
    journal = Journal()
    with protected(traveller(pause=3000)) as pair:
        pair.epochs(3)
        pair.protector.switch_over()
        assert not pair.ends()
        read_on(journal, pair.vm)
        # What the last epoch said is shown there, and the guest has not run since.
        assert pair.vm.console.written_offset == pair.vm.console.end_offset
        assert pair.standby.takeover
        says_more(pair, journal, pair.other, 50)


def test_a_switch_over_to_a_secondary_that_dies_leaves_the_guest_here() -> None:
    with protected(MIRROR) as pair:
        pair.epochs(2)
        pair.cell.verdict = Verdict.PRIMARY
        pair.protector.switch_over()
        assert pair.ends()
        lives(pair.vm)


def test_disabling_is_clean() -> None:
    with protected(MIRROR) as pair:
        pair.protector.dissolve("disabled")
        assert pair.ends()
        assert pair.protector.reason == "disabled"
        lives(pair.vm)
        assert pair.vm.console.held_bytes == 0
        assert pair.standby.phase is SecondaryPhase.DISCARDED


def test_a_guest_that_ends_shows_its_last_words() -> None:
    with protected(traveller(pause=3000)) as pair:
        pair.vm.console.send(b"Q")
        assert pair.ends()
        assert "halted" in pair.protector.reason
        journal = Journal()
        read_on(journal, pair.vm)
        assert pair.vm.console.held_bytes == 0
        assert journal.offset == pair.vm.console.written_offset


def test_the_clock_never_goes_back_across_failovers() -> None:
    with protected(long_mode(_CLOCK)) as pair:
        lives(pair.vm)
        pair.epochs(5)
        before_ns = pair.vm.machine.clock.now_ns()
        pair.cell.verdict = Verdict.SECONDARY
        pair.cut_line()
        assert not pair.ends()
        lives(pair.other)
        assert pair.other.machine.clock.now_ns() > before_ns - 50_000_000


def test_what_is_typed_arrives_once_whoever_survives() -> None:
    words = [f"<{i:04}>".encode() for i in range(120)]
    with protected(long_mode(_ECHO)) as pair:
        for i, word in enumerate(words[:60]):
            mark = pair.inputs.type(word, "me", i + 1)
            if i % 20 == 0:
                pair.protector.commit(mark, 10)
        # The last that was typed: nobody knows whether it got through.
        mark = pair.inputs.type(words[60], "me", 61)
        pair.cell.verdict = Verdict.SECONDARY
        pair.cut_line()
        assert not pair.ends()
        try:
            pair.protector.commit(mark, 10)
        except OwnershipLostError:
            lost = True
        else:
            lost = False
        # So all that was not committed is typed again, under the same numbers.
        for i, word in enumerate(words):
            pair.other_inputs.type(word, "me", i + 1)
        output = b"".join(words)
        pair.wait_for(lambda: pair.other.console.end_offset >= len(output))
        time.sleep(0.05)
        assert pair.other.console.read(0)[1] == output, lost


def test_commit_says_when_the_secondary_does_not_know() -> None:
    with protected(long_mode(_ECHO)) as pair:
        pair.cell.silent = True
        pair.cut_line()
        pair.wait_for(lambda: pair.protector.phase == "deciding")
        mark = pair.inputs.type(b"x", "me", 1)
        pair.cell.verdict, pair.cell.silent = Verdict.SECONDARY, False
        with pytest.raises(OwnershipLostError):
            pair.protector.commit(mark, 10)


def test_while_the_record_is_away_nothing_is_shown_and_memory_is_bounded() -> None:
    config = FtConfig(epoch_s=0.01, held_bytes=4096)
    with protected(traveller(pause=1), config) as pair:
        pair.cell.silent = True
        pair.cut_line()
        console = pair.vm.console
        pair.wait_for(lambda: console.held_bytes > 4096)
        time.sleep(0.1)
        shown, held = console.end_offset, console.held_bytes
        time.sleep(0.2)
        assert (console.end_offset, console.held_bytes) == (shown, held)
        pair.cell.verdict, pair.cell.silent = Verdict.PRIMARY, False
        assert pair.ends()
        journal = Journal()
        says_more(pair, journal, pair.vm)
        assert journal.offset > shown + held


def test_a_stream_that_is_damaged_leaves_the_guest_where_it_is() -> None:
    with protected(MIRROR) as pair:
        pair.epochs(2)
        pair.standby._expected += 1  # a frame seems to be missing
        assert pair.ends()
        assert "one was lost" in pair.protector.reason
        assert pair.standby.phase is SecondaryPhase.DISCARDED
        lives(pair.vm)


def test_the_survivor_is_protected_again() -> None:
    """A chain of failovers: each time the survivor gets a secondary, and the primary dies."""
    journal = Journal()
    with protected(traveller(pause=3000)) as first:
        pair: Protected = first
        made = [first]
        for _ in range(3):
            pair.epochs(3)
            read_on(journal, pair.vm)
            pair.cell.verdict = Verdict.SECONDARY
            pair.cut_line()
            assert not pair.ends()
            pair = Protected(pair.other, inputs=pair.other_inputs)
            made.append(pair)
            pair.begin()
        says_more(pair, journal, pair.vm, 50)
        for old in reversed(made[1:]):
            old.close()


def test_quiet_guests_are_cut_rarely_and_an_epoch_is_within_its_bounds() -> None:
    config = FtConfig(epoch_s=0.02)
    with protected(long_mode(_ECHO), config) as pair:
        pair.epochs(3)
        assert pair.protector.stats().epoch_s >= 0.9 * config.longest_epoch_s
        with pytest.raises(ConfigError, match="a third of the silence"):
            FtConfig(epoch_s=0.3)


def test_inputs_are_forgotten_in_order_of_age() -> None:
    typed: list[bytes] = []
    inputs = Inputs(typed.append)
    for i in range(300):
        inputs.type(b"x", f"typist {i}", 1)
    with inputs.still() as (table, count):
        assert count == 300
        assert len(table) == 256
        assert "typist 0" not in table
