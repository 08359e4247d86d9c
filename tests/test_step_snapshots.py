"""The snapshots that a run takes around its steps: which, when, and that each belongs to one moment of the journal."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fixtures.stage import Stage, step_of, words_of
from fixtures.workers import WorkerPool, at_rest
from tenure.database import ControlDatabase
from tenure.errors import Conflict, VolumeError
from tenure.testing.fake_hands import FakeHands
from tenure.work import events as e
from tenure.work.hands import TakenSnapshot
from tenure.work.keeper import Keeper
from tenure.work.plan import FileCheck, Plan, PlanStep, RunScript
from tenure.work.runs import Runs
from tenure.work.snapshots import SPACING, Spacing
from tenure.work.state import RunState

VERIFIED = "run: echo done > data; echo $TENURE_ATTEMPT >> effects\nverify: {file: data}\n"


async def test_a_verified_step_and_its_snapshot_are_written_together(stage: Stage) -> None:
    run = await stage.finish(VERIFIED)
    events = await stage.events(run)
    (index,) = [index for index, event in enumerate(events) if event.kind == "snapshot_taken"]
    taken, succeeded = events[index], events[index + 1]
    assert (taken.step, succeeded.step, succeeded.kind) == ("work", "work", "step_succeeded")
    assert taken.at == succeeded.at or (succeeded.at - taken.at).total_seconds() < 1
    assert taken.data["verified"] is True
    (snapshot,) = stage.office.snapshots("analyst")
    assert taken.data["snapshot"] == snapshot == step_of(run).snapshots[0].id
    before = [event for event in events if event.seq <= taken.data["at_seq"]]
    assert before[-1].kind == "effect_done", "the moment of the journal is not that of the office"
    assert words_of(stage.home.parent / "snapshots" / snapshot / "home" / "effects") == ["1"]


async def test_only_steps_with_checks_or_a_wish_have_one_after_them(stage: Stage) -> None:
    run = await stage.finish("run: 'true'")
    assert step_of(run).snapshots == []
    run = await stage.finish("run: 'true'\nsnapshot: true")
    assert [(one.before, one.verified) for one in step_of(run).snapshots] == [(False, True)]
    run = await stage.finish(f"{VERIFIED}snapshot: false")
    assert step_of(run).snapshots == []


async def test_a_risky_step_has_one_before_its_first_attempt_only(stage: Stage) -> None:
    run = await stage.finish(
        "run: echo $TENURE_ATTEMPT >> effects; [ $TENURE_ATTEMPT = 3 ]\nrisky: true\nretry: {attempts: 2, delay: 0}"
    )
    (taken,) = step_of(run).snapshots
    assert (taken.before, taken.verified) == (True, True)
    assert words_of(stage.home.parent / "snapshots" / taken.id / "home" / "effects") == []
    kinds = [event.kind for event in await stage.events(run) if event.step == "work"]
    assert kinds[:2] == ["snapshot_taken", "step_started"]


async def test_a_risky_step_does_not_begin_without_its_snapshot(stage: Stage) -> None:
    full = stage.hands.add("take_snapshot", lambda: VolumeError("no snapshot"), times=1000)
    run = await stage.finish("run: echo begun >> effects\nrisky: true\nretry: 0")
    assert run.state == "parked"
    assert full.fired > 0
    assert stage.effects() == []
    assert "no snapshot" in (run.question or "")


async def test_a_step_is_done_though_the_snapshot_after_it_fails(stage: Stage) -> None:
    stage.hands.add("take_snapshot", lambda: Conflict("too many"))
    run = await stage.finish(VERIFIED)
    assert (run.state, stage.effects()) == ("succeeded", ["1", "after"])
    (succeeded,) = [event for event in await stage.events(run, "step_succeeded") if event.step == "work"]
    assert "too many" in succeeded.data["evidence"]


async def test_no_step_begins_while_the_office_is_copied(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise its effect could be in the snapshot, and its intent not in the journal of that moment."""
    take, seen = stage.office.take_snapshot, list[list[str]]()

    async def slowly(*args: Any, **wanted: Any) -> TakenSnapshot:
        for _ in range(20):
            seen.append([event.kind for event in await stage.runs.events(wanted["run_id"])])
            await stage.rest()
        return await take(*args, **wanted)

    monkeypatch.setattr(stage.office, "take_snapshot", slowly)
    run = await stage.play("""
name: beside
steps:
  - {id: work, run: 'true', risky: true}
  - {id: beside, for_each: [a, b, c], run: 'true'}
""")
    assert run.state == "succeeded"
    assert seen
    assert all(kinds == seen[0] for kinds in seen)


async def test_the_values_of_a_for_each_have_one_together(stage: Stage) -> None:
    run = await stage.play("""
name: each
steps:
  - {id: year, for_each: [a, b, c, d], run: 'echo $TENURE_ITEM >> effects', verify: {run: 'true'}}
""")
    taken = [one for step in run.steps for one in step.snapshots]
    assert [one.verified for one in taken] == [True]
    assert sorted(words_of(stage.home.parent / "snapshots" / taken[0].id / "home" / "effects")) == ["a", "b", "c", "d"]


async def test_small_steps_share_the_time_for_snapshots(stage: Stage) -> None:
    """Far fewer than steps; and each is still of a moment when nothing was under way."""
    text = "name: many\nsteps:\n  - {id: s0, run: 'true', verify: {run: 'true'}}\n"
    for number in range(1, 20):
        text += f"  - {{id: s{number}, needs: s{number - 1}, sql: select 1, verify: {{sql: select 1}}}}\n"
    run = await stage.play(text)
    taken = [one for step in run.steps for one in step.snapshots]
    assert run.state == "succeeded"
    assert 1 <= len(taken) < 20
    assert all(one.verified for one in taken)


def test_there_is_room_for_a_snapshot_when_the_last_one_is_long_enough_ago() -> None:
    spacing = Spacing()
    assert spacing.is_due(0.0, verified=True)
    spacing.taken(10.0, 10.5, verified=False)
    assert not spacing.is_due(10.5 + SPACING * 0.5 - 0.01, verified=False)
    assert spacing.is_due(10.5 + SPACING * 0.5, verified=False)
    assert spacing.is_due(10.6, verified=True), "one that can be gone back to waits for one that cannot"
    spacing.taken(10.6, 10.8, verified=True)
    assert not spacing.is_due(10.9, verified=True)
    assert not spacing.is_due(10.9, verified=False)


async def test_what_another_worker_may_have_taken_is_asked_for_in_any_case(fake_hands: FakeHands) -> None:
    steps = tuple(
        PlanStep(id=name, effect=RunScript(script="true"), verify=(FileCheck(path="a"),)) for name in ("a", "b", "c")
    )
    state = RunState("run_x", agent="analyst")
    state.apply(e.Record(1, datetime(2026, 1, 1, tzinfo=UTC), e.Planned(plan=Plan(steps=steps))))
    keeper = Keeper(fake_hands, frozenset({"c"}))
    taken = [(await keeper.after(state, node))[0] for node in state.nodes.values()]
    assert [len(events) for events in taken] == [1, 0, 1]


TWO = """
name: two
defaults: {retry: 0}
steps:
  - id: work
    run: echo work >> effects
    risky: true
    verify: {file: effects}
    snapshot: true
  - id: beside
    run: echo beside >> other
    verify: {file: other}
    snapshot: true
  - id: after
    needs: [work, beside]
    run: cat effects other > all
    verify: {file: all}
    snapshot: true
"""


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("side", ["before", "after"])
async def test_killed_between_snapshot_and_journal_it_is_neither_lost_nor_taken_twice(
    control_database: ControlDatabase,
    control_dsn: str,
    worker_pool: WorkerPool,
    fake_hands: FakeHands,
    tmp_path: Path,
    moment: str,
    side: str,
) -> None:
    """`moment`: of the step; `side`: of the call that takes it."""
    runs, root, log = Runs(control_database), tmp_path / "offices", tmp_path / "fired"
    point = f"effect.snapshot.{side}/work/{moment}:1:kill"
    run = await runs.create(agent="analyst", goal="g", playbook=TWO, playbook_name=None, inputs={})
    victim = worker_pool.start(control_dsn, root, TENURE_FAULT=point, TENURE_FAULT_LOG=str(log))
    await victim.wait_for("", "Z")
    assert log.read_text() == f"{point}\n"
    taken = fake_hands.snapshots("analyst")
    heir = worker_pool.start(control_dsn, root)
    run = await at_rest(runs, run.id)
    await heir.end()
    assert run.state == "succeeded"
    told = [one.id for step in run.steps for one in step.snapshots]
    assert len(told) == 4
    assert sorted(told) == fake_hands.snapshots("analyst"), "one is not in the journal, or one was taken twice"
    assert set(taken) <= set(told)
    assert words_of(root / "analyst" / "home" / "all") == ["work", "beside"]


async def test_a_snapshot_of_before_a_crash_belongs_to_the_journal_of_then(
    control_database: ControlDatabase, control_dsn: str, worker_pool: WorkerPool, fake_hands: FakeHands, tmp_path: Path
) -> None:
    """What other branches did between the snapshot and the death is not said to be in it."""
    runs, root, log = Runs(control_database), tmp_path / "offices", tmp_path / "fired"
    text = TWO.replace("echo beside >> other", "until [ -e ../go ]; do sleep 0.02; done; echo beside >> other")
    run = await runs.create(agent="analyst", goal="g", playbook=text, playbook_name=None, inputs={})
    victim = worker_pool.start(
        control_dsn, root, TENURE_FAULT="effect.snapshot.after/work/after:1:kill", TENURE_FAULT_LOG=str(log)
    )
    await victim.wait_for("", "Z")
    (root / "analyst" / "go").touch()
    heir = worker_pool.start(control_dsn, root)
    run = await at_rest(runs, run.id)
    await heir.end()
    assert run.state == "succeeded"
    (taken,) = [one for one in step_of(run).snapshots if not one.before]
    events = await runs.events(run.id, limit=1000)
    assert ("beside", "effect_done") not in [(event.step, event.kind) for event in events if event.seq <= taken.seq]
    assert words_of(root / "analyst" / "snapshots" / taken.id / "home" / "other") == []
    assert not taken.verified
