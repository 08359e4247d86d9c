"""What is tried for an office that does not boot: the cheapest step that may help, nothing lost without need, and an end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenure.offices.boot import Failure, Stage
from tenure.offices.healing import (
    EPISODES_MAX,
    REPLACEMENTS_MAX,
    Case,
    Lately,
    Step,
    candidates,
    next_step,
)
from tenure.offices.history import OfficeEvent, What
from tenure.offices.models import SnapshotKind, SnapshotRecord, StepMark

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LOSING = (Step.RESTORE, Step.REBUILD)


def failure(stage: Stage, damage: str = "", code: str = "sandbox") -> Failure:
    return Failure(stage, "it fails", {"damage": [damage]} if damage else {}, code)


def way(
    first: Failure,
    *,
    host_sound: bool = True,
    candidates: int = 0,
    at_work: bool = False,
    replacements: int = 0,
    episodes: int = 0,
) -> list[Step]:
    """All steps to the end when none helps."""
    steps: list[Step] = []
    while not steps or steps[-1] not in (Step.ASK, Step.LEAVE):
        case = Case(
            first,
            tuple(steps),
            host_sound=host_sound if Step.TEST in steps else None,
            candidates=candidates - steps.count(Step.RESTORE),
            at_work=at_work,
            replacements=replacements,
            episodes=episodes,
        )
        steps.append(next_step(case).step)
        assert len(steps) < 20, steps
    return steps


@pytest.mark.parametrize(
    ("first", "steps"),
    [
        (failure(Stage.PROBE), "again mend test restore restore rebuild ask"),
        (failure(Stage.DOOR), "again mend test restore restore rebuild ask"),
        (failure(Stage.SANDBOX), "again mend test restore restore rebuild ask"),
        (failure(Stage.SANDBOX, code="setup"), "ask"),
        (failure(Stage.DATABASE), "again mend test restore restore ask"),
        (failure(Stage.CHECK, "rootfs/ is missing"), "test restore restore rebuild ask"),
        (failure(Stage.CHECK, "postgres/ is missing"), "test restore restore ask"),
        (failure(Stage.CHECK, "it is the volume of somebody"), "ask"),
        (failure(Stage.CHECK), "again ask"),
        (failure(Stage.FURNISH), "again ask"),
        (failure(Stage.LOCATE, code="setup"), "ask"),
    ],
)
def test_each_failure_has_its_way_from_the_cheapest_step_to_a_person(first: Failure, steps: str) -> None:
    assert way(first, candidates=2) == [Step(step) for step in steps.split()]


def test_a_volume_is_not_replaced_and_an_office_not_repaired_again_and_again() -> None:
    tried = [Step.AGAIN, Step.MEND, Step.TEST, Step.ASK]
    assert way(failure(Stage.PROBE), candidates=2, replacements=REPLACEMENTS_MAX) == tried
    assert way(failure(Stage.PROBE), candidates=2, episodes=EPISODES_MAX + 1) == [Step.ASK]


def test_a_volume_that_is_gone_is_brought_back_or_a_person_is_asked() -> None:
    gone = failure(Stage.LOCATE, code="not_found")
    assert next_step(Case(gone, candidates=1, has_volume=False)).step is Step.RESTORE
    assert next_step(Case(gone, candidates=0, has_volume=False)).step is Step.ASK


FAILURES = st.builds(
    failure,
    st.sampled_from(Stage),
    st.sampled_from(["", "rootfs/ is missing", "postgres/ is missing", "it is the volume of x"]),
    st.sampled_from(["sandbox", "setup", "door_closed", "internal", "disk_full"]),
)


@given(FAILURES, st.booleans(), st.integers(0, 3), st.booleans())
def test_every_way_ends_and_tries_nothing_twice_but_snapshots(
    first: Failure, host_sound: bool, snapshots: int, at_work: bool
) -> None:
    steps = way(first, host_sound=host_sound, candidates=snapshots, at_work=at_work)
    assert all(steps.count(step) == 1 for step in set(steps) - {Step.RESTORE})
    assert steps.count(Step.RESTORE) <= snapshots


@given(FAILURES, st.booleans(), st.integers(0, 3), st.booleans(), st.integers(0, 5), st.integers(0, 9))
def test_work_is_put_back_only_on_a_machine_known_to_be_sound_with_no_run_at_work_and_not_again_and_again(
    first: Failure, host_sound: bool, snapshots: int, at_work: bool, replacements: int, episodes: int
) -> None:
    steps = way(
        first,
        host_sound=host_sound,
        candidates=snapshots,
        at_work=at_work,
        replacements=replacements,
        episodes=episodes,
    )
    losing = [step for step in steps if step in LOSING]
    if at_work or not host_sound or replacements >= REPLACEMENTS_MAX or episodes > EPISODES_MAX:
        assert not losing
    for step in losing:
        assert Step.TEST in steps[: steps.index(step)]
        if first.stage is not Stage.CHECK:  # there the check has lent what can be lent
            assert Step.MEND in steps[: steps.index(step)]
    if first.stage is Stage.DATABASE:
        assert Step.REBUILD not in steps, "a rebuild keeps the database as it is"


# --- which snapshots -----------------------------------------------------------------------------------------------------
def taken(number: int, kind: SnapshotKind = SnapshotKind.MANUAL, *, verified: bool | None = None) -> SnapshotRecord:
    step = None if verified is None else StepMark("run_1", "a", verified)
    return SnapshotRecord(
        f"snap_{number}", "a", None, kind, "whole", "i", None, {}, NOW + timedelta(hours=number), step
    )


def test_the_newest_snapshots_are_tried_first_and_one_that_a_run_verified() -> None:
    verified = taken(1, SnapshotKind.AFTER_STEP, verified=True)
    rest = [taken(2), taken(3, SnapshotKind.BEFORE_STEP, verified=False), taken(4)]
    assert [one.id for one in candidates([verified, *rest])] == ["snap_4", "snap_3", "snap_1"]
    assert [one.id for one in candidates(rest)] == ["snap_4", "snap_3", "snap_2"]


def test_what_was_there_before_a_restore_is_no_candidate() -> None:
    assert candidates([taken(1, SnapshotKind.BEFORE_RESTORE)]) == []


# --- budgets -------------------------------------------------------------------------------------------------------------
def event(what: What, minutes_ago: float) -> OfficeEvent:
    return OfficeEvent(1, "a", NOW - timedelta(minutes=minutes_ago), what, "why")


def test_what_happened_counts_for_its_period_and_until_somebody_acts() -> None:
    events = [event(What.FAILED, 1), event(What.RESTORED, 5), event(What.FAILED, 6), event(What.RESTORED, 90)]
    assert Lately.of(events, NOW) == Lately(replacements=1, episodes=2)
    assert Lately.of([*events, event(What.CLEARED, 2)], NOW) == Lately(replacements=0, episodes=1)
