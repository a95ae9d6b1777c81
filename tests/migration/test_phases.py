"""An illegal order is a typed error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayvisor.migration.errors import IllegalPhaseError
from rayvisor.migration.phases import (
    DestinationPhase,
    SourcePhase,
    destination_phases,
    source_phases,
)
from rayvisor.vmm.errors import MigrationError

S, D = SourcePhase, DestinationPhase


def test_the_way_of_a_migration() -> None:
    source, destination = source_phases(), destination_phases()
    for phase in (S.GREETING, S.PRECOPY, S.STOPPED, S.HANDOVER, S.MOVED):
        source.enter(phase)
    for there in (D.RECEIVING, D.READY, D.CLAIMING, D.RUNNING, D.DONE):
        destination.enter(there)
    assert (source.now, destination.now) == (S.MOVED, D.DONE)


@given(st.lists(st.sampled_from(list(SourcePhase)), max_size=12))
def test_a_source_that_let_go_has_stood_still_and_an_end_is_an_end(
    asked: list[SourcePhase],
) -> None:
    phases, been = source_phases(), [S.IDLE]
    for phase in asked:
        try:
            phases.enter(phase)
        except IllegalPhaseError:
            assert phases.now is been[-1]
        else:
            been.append(phase)
    assert S.HANDOVER not in been or been[been.index(S.HANDOVER) - 1] is S.STOPPED
    assert S.MOVED not in been or S.HANDOVER in been
    assert not {S.MOVED, S.KEPT, S.LOST} & set(been[:-1])
    assert S.LOST not in been or S.POSTCOPY in been


@given(st.lists(st.sampled_from(list(DestinationPhase)), max_size=12))
def test_a_destination_runs_only_after_it_has_claimed(asked: list[DestinationPhase]) -> None:
    phases, been = destination_phases(), [D.WAITING]
    for phase in asked:
        try:
            phases.enter(phase)
        except IllegalPhaseError:
            assert phases.now is been[-1]
        else:
            been.append(phase)
    for runs in {D.RUNNING, D.FILLING} & set(been):
        assert been[been.index(runs) - 1] is D.CLAIMING
    assert D.DISCARDED not in been[:-1]


def test_the_error_says_what_was_asked_and_is_a_migration_error() -> None:
    phases = source_phases()
    with pytest.raises(MigrationError, match="handover does not follow idle"):
        phases.enter(S.HANDOVER)
    with pytest.raises(IllegalPhaseError, match="idle: only in handover"):
        phases.require(S.HANDOVER)
