"""What is decided after a round."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayvisor.migration.config import MigrationConfig
from rayvisor.migration.convergence import MOST_SAMPLES, SMALLEST_SHARE, Convergence, Step
from rayvisor.vmm.errors import ConfigError


def test_a_quiet_guest_is_stopped_after_one_round() -> None:
    decision = Convergence(MigrationConfig(), 0.003).after(20_000, 0.5, 100)
    assert (decision.step, decision.throttle) == (Step.STOP, 0)


def test_rounds_go_on_while_they_shrink() -> None:
    convergence = Convergence(MigrationConfig(downtime_s=0.01), 0.003)
    steps = [convergence.after(n, n / 10_000, n // 2) for n in (40_000, 20_000, 10_000, 5_000)]
    assert {s.step for s in steps} == {Step.ROUND}
    assert {s.throttle for s in steps} == {0}
    assert convergence.after(140, 0.014, 70).step is Step.STOP


def run(config: MigrationConfig, dirty_pages_per_s: float, pages: int) -> list[tuple[Step, float]]:
    """A guest that rewrites `pages` at a rate, sent at 50,000 a second."""
    convergence = Convergence(config, 0.003)
    sent, out = float(pages), []
    for _ in range(60):
        seconds = sent / 50_000 + 0.001
        dirty = min(pages, dirty_pages_per_s * seconds * (1 - convergence.throttle))
        decision = convergence.after(int(sent), seconds, int(dirty))
        out.append((decision.step, decision.throttle))
        if decision.step is Step.TRY:
            convergence.after_sample(256, 1.0, int(dirty), 0.0)
        elif decision.step is not Step.ROUND:
            break
        sent = dirty
    return out


def test_a_guest_that_writes_too_fast_is_slowed_down_and_then_stopped() -> None:
    course = run(MigrationConfig(downtime_s=0.01), 200_000, 12_800)
    shares = [share for _, share in course]
    assert course[-1][0] is Step.STOP
    assert shares == sorted(shares)
    assert shares[-1] > 0.5
    assert shares[:3] == [0, 0, 0], "the first that does not help may be chance"


def test_what_might_fit_once_the_guest_stands_still_is_tried() -> None:
    convergence = Convergence(MigrationConfig(downtime_s=0.06), 0.003)
    convergence.after(14_000, 0.16, 12_800)
    assert convergence.after(12_800, 0.1, 12_800).step is Step.TRY
    assert convergence.after_sample(1_000, 0.0025, 11_000, 0.008).step is Step.STOP


def test_pages_that_have_not_been_sent_at_all_are_not_hoped_to_go_as_differences() -> None:
    convergence = Convergence(MigrationConfig(downtime_s=0.06), 0.003)
    assert convergence.after(14_000, 0.16, 12_800).step is Step.ROUND
    convergence = Convergence(MigrationConfig(downtime_s=0.06), 0.003)
    assert convergence.after(14_000, 0.16, 8_000).step is Step.TRY


def test_a_sample_that_says_too_long_lets_the_guest_run_on() -> None:
    convergence = Convergence(MigrationConfig(downtime_s=0.06), 0.003)
    convergence.after(14_000, 0.16, 12_800)
    assert convergence.after(14_000, 0.16, 12_800).step is Step.TRY
    assert convergence.after_sample(1_000, 0.005, 11_000, 0.008).step is Step.ROUND
    assert convergence.after_sample(0, 0.0, 11_000, 0.008).step is Step.ROUND


def test_what_cannot_fit_is_not_tried_and_a_guest_is_not_paused_for_ever() -> None:
    convergence = Convergence(MigrationConfig(downtime_s=0.01), 0.003)
    assert convergence.after(14_000, 0.16, 12_800).step is Step.ROUND
    convergence = Convergence(MigrationConfig(downtime_s=0.06), 0.003)
    steps = []
    for _ in range(20):
        steps.append(convergence.after(14_000, 0.16, 12_800).step)
        if steps[-1] is Step.TRY:
            convergence.after_sample(1_000, 0.005, 11_000, 0.008)
    assert steps.count(Step.TRY) == MOST_SAMPLES


def test_a_sample_takes_a_part_of_the_downtime_target() -> None:
    for downtime_s in (0.01, 0.03, 0.06, 1.0):
        convergence = Convergence(MigrationConfig(downtime_s=downtime_s), 0.003)
        convergence.after(14_000, 0.16, 12_800)
        pages = convergence.sample_pages
        assert pages == 256 or pages / (14_000 / 0.16) <= 0.3 * downtime_s


def test_without_slowing_down_it_is_given_up_at_the_last_round() -> None:
    config = MigrationConfig(downtime_s=0.01, auto_converge=False, max_rounds=20)
    course = run(config, 200_000, 12_800)
    assert course[-1][0] is Step.GIVE_UP
    assert len(course) == 20


def test_post_copy_comes_when_rounds_do_not_help() -> None:
    config = MigrationConfig(downtime_s=0.01, auto_converge=False, post_copy=True)
    assert run(config, 200_000, 12_800)[-1][0] is Step.POST_COPY
    config = MigrationConfig(downtime_s=0.01, post_copy=True)
    course = run(config, 1e9, 12_800)
    assert course[-1] == (Step.POST_COPY, 0), "nobody is slowed down who can go at once"
    assert run(config, 100, 12_800)[-1][0] is Step.STOP


def test_a_guest_does_not_crawl_for_ever() -> None:
    convergence = Convergence(MigrationConfig(downtime_s=0.01), 0.003)
    steps = [convergence.after(10_000, 1.0, 10_000).step for _ in range(100)]
    assert steps.index(Step.GIVE_UP) < 80


@given(
    st.floats(0.001, 1),
    st.lists(
        st.tuples(st.integers(0, 10**6), st.floats(0, 100), st.integers(0, 10**6)), max_size=40
    ),
)
def test_the_guest_always_keeps_a_share_and_is_never_sped_up(
    downtime_s: float, rounds: list[tuple[int, float, int]]
) -> None:
    convergence = Convergence(MigrationConfig(downtime_s=downtime_s), 0.003)
    before = 0.0
    for sent, seconds, dirty in rounds:
        decision = convergence.after(sent, seconds, dirty)
        assert before <= decision.throttle <= 1 - SMALLEST_SHARE
        before = decision.throttle
        if decision.step is Step.STOP:
            assert dirty <= 64 or convergence.expected_downtime_s(dirty) <= downtime_s


@pytest.mark.parametrize(
    "bad",
    [
        {"downtime_s": 0},
        {"timeout_s": -1},
        {"bandwidth_bytes_per_s": 0},
        {"max_rounds": 0},
        {"chunk_bytes": 1},
        {"stop_chunk_bytes": 1 << 30},
        {"delta_cache_bytes": -1},
    ],
    ids=lambda bad: next(iter(bad)),
)
def test_limits_that_make_no_sense_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        MigrationConfig(**bad)  # type: ignore[arg-type]
