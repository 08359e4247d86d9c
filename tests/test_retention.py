"""Automatic snapshots go by their rules; those that somebody asked for, and what a run may need, stay."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenure.offices.models import SnapshotKind, SnapshotRecord, StepMark
from tenure.offices.retention import DAY, HOUR, VERIFIED_KEPT, Retention, outdated, verified
from tenure.server.main import environment_of
from tenure.settings import Settings

START = datetime(2026, 1, 1, tzinfo=UTC)
RUNS = ("run_a", "run_b")
LATER_MAX_MIN = 3 * 24 * 60


def record(number: int, kind: SnapshotKind, minute: int, step: StepMark | None = None) -> SnapshotRecord:
    at = START + timedelta(minutes=minute)
    return SnapshotRecord(f"snap_{number:06}", "a", None, kind, "whole", "image", None, {}, at, step)


@st.composite
def histories(draw: st.DrawFn) -> list[SnapshotRecord]:
    """Snapshots in the order in which they were taken."""
    pauses = draw(st.lists(st.sampled_from([0, 1, 19, 40, 300, 1500]), max_size=40))
    found: list[SnapshotRecord] = []
    for number, minute in enumerate(itertools.accumulate(pauses)):
        kind = draw(st.sampled_from(SnapshotKind))
        step = StepMark(draw(st.sampled_from(RUNS)), "node", draw(st.booleans())) if kind.is_of_step else None
        found.append(record(number, kind, minute, step))
    return found


rules = st.builds(Retention, last=st.integers(0, 5), hourly=st.integers(0, 5), daily=st.integers(0, 5))
open_runs = st.sets(st.sampled_from(RUNS))


def later(history: list[SnapshotRecord], minutes: int = 0) -> datetime:
    return (history[-1].created_at if history else START) + timedelta(minutes=minutes)


@given(histories(), rules, open_runs, st.integers(0, LATER_MAX_MIN))
def test_what_somebody_asked_for_and_what_an_open_run_may_go_back_to_stay(
    history: list[SnapshotRecord], kept: Retention, runs: set[str], minutes: int
) -> None:
    gone = outdated(history, kept, later(history, minutes), runs)
    assert all(one.kind.is_automatic for one in gone)
    for run in runs:
        of_run = [one for one in history if one.step == StepMark(run, "node", True)]
        assert verified(history[::-1], run) == of_run[::-1]
        assert not set(ids(of_run[-VERIFIED_KEPT:])) & set(ids(gone))
    for of_steps in (True, False):
        newest = [one for one in history if one.kind.is_automatic and one.kind.is_of_step is of_steps]
        assert not set(ids(newest[len(newest) - min(kept.last, len(newest)) :])) & set(ids(gone))


@given(histories(), rules, open_runs, st.integers(0, LATER_MAX_MIN))
def test_of_each_hour_and_day_that_a_rule_covers_the_newest_stays_and_there_are_no_more(
    history: list[SnapshotRecord], kept: Retention, runs: set[str], minutes: int
) -> None:
    now = later(history, minutes)
    gone = ids(outdated(history, kept, now, runs))
    automatic = [one for one in history if one.kind.is_automatic]
    for period, periods in ((HOUR, kept.hourly), (DAY, kept.daily)):
        for ago in range(periods):
            start = START + ((now - START) // period - ago) * period
            within = [one for one in automatic if start <= one.created_at < start + period]
            assert not within or within[-1].id not in gone
    assert len(automatic) - len(gone) <= 2 * kept.last + kept.hourly + kept.daily + VERIFIED_KEPT * len(runs)


@given(histories(), rules, open_runs, st.data())
def test_it_does_not_matter_how_often_one_prunes(
    history: list[SnapshotRecord], kept: Retention, runs: set[str], data: st.DataObject
) -> None:
    there: list[SnapshotRecord] = []
    for one in history:
        there.append(one)
        if data.draw(st.booleans()):
            gone = ids(outdated(there, kept, one.created_at, runs))
            there = [left for left in there if left.id not in gone]
    now = later(history)
    at_once = ids(outdated(history, kept, now, runs))
    in_the_end = ids(outdated(there, kept, now, runs))
    assert [one.id for one in there if one.id not in in_the_end] == [one.id for one in history if one.id not in at_once]


def test_a_long_run_does_not_push_out_what_undoes_a_restore() -> None:
    undo = record(0, SnapshotKind.BEFORE_RESTORE, 0)
    mark = StepMark("run_a", "node")
    steps = [record(number, SnapshotKind.AFTER_STEP, number, mark) for number in range(1, 50)]
    gone = ids(outdated([undo, *steps], Retention(), later(steps), ()))
    assert gone == ids(steps[:39])


@pytest.mark.parametrize("minutes", [-600, -1])
def test_a_clock_that_was_set_back_deletes_nothing_by_its_age(minutes: int) -> None:
    history = [record(0, SnapshotKind.FORK, 0)]
    assert outdated(history, Retention(last=0, hourly=1, daily=0), later(history, minutes), ()) == []


def test_a_server_in_the_background_keeps_the_snapshots_that_its_starter_was_told_to() -> None:
    told = {"TENURE_SNAPSHOTS_LAST": "3", "TENURE_SNAPSHOTS_HOURLY": "2", "TENURE_SNAPSHOTS_DAILY": "0"}
    settings = Settings.from_environment(told)
    assert (settings.snapshots_last, settings.snapshots_hourly, settings.snapshots_daily) == (3, 2, 0)
    assert Settings.from_environment(environment_of(settings, {})) == settings


def ids(records: list[SnapshotRecord]) -> list[str]:
    return [one.id for one in records]
