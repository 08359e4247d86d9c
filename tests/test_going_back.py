"""Rungs 6 and 7: a run goes back to a verified moment, office and journal together, or gets its system anew; never for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.stage import Stage, step_of, words_of
from fixtures.workers import WorkerPool, at_rest, until
from tenure.database import ControlDatabase
from tenure.errors import Conflict, NotFound, SandboxDead
from tenure.testing.fake_hands import FakeHands
from tenure.work.runs import Runs

SPOILED = """
name: spoiled
defaults: {retry: 0}
steps:
  - id: load
    run: echo load >> effects; echo good > data; echo load >> OUTSIDE
    verify: {file: data}
  - id: table
    needs: load
    sql: create table rows (n int); insert into rows values (1); select 1
  - id: spoil
    needs: table
    run: echo spoil-$TENURE_ATTEMPT >> effects; [ $TENURE_ATTEMPT != 1 ] || rm data
  - id: keep
    needs: spoil
    put: {path: effects, bucket: kept}
  - id: report
    needs: keep
    run: echo report-$TENURE_ATTEMPT >> effects; cat data > report || true
    verify: {file: report}
"""
FOREVER = """
name: forever
defaults: {retry: 0}
steps:
  - {id: one, run: echo one >> OUTSIDE, verify: {run: 'true'}, snapshot: true}
  - {id: two, needs: one, run: echo two >> OUTSIDE, verify: {run: 'true'}, snapshot: true}
  - id: three
    needs: two
    run: echo three-$TENURE_ATTEMPT >> OUTSIDE
    verify: {run: "false"}
"""


async def restored(stage: Stage, run: object) -> list[dict[str, object]]:
    return [event.data for event in await stage.events(run, "office_restored")]  # type: ignore[arg-type]


async def test_rung_6_brings_back_office_and_journal_of_one_moment(stage: Stage) -> None:
    run = await stage.play(SPOILED)
    assert run.state == "succeeded"
    assert await stage.rungs(run) == [(6, "verification")]
    assert stage.effects() == ["load", "spoil-2", "report-2"], (
        "something of before the restore is left, or was not redone"
    )
    assert (await stage.office.sql("analyst", "select n from rows")).rows == [[1]]
    assert {step.id: step.attempts for step in run.steps} == {"load": 1, "table": 2, "spoil": 2, "keep": 2, "report": 2}
    (event,) = await restored(stage, run)
    assert event["undone"] == ["table", "spoil", "keep", "report"]
    taken = step_of(run, "load").snapshots[0]
    assert (event["snapshot"], taken.verified) == (taken.id, True)
    assert words_of(stage.home.parent / "snapshots" / str(event["before"]) / "home" / "effects") == [
        "load",
        "spoil-1",
        "report-1",
    ], "the evidence is not there"


async def test_each_restore_goes_back_further_and_then_a_person_is_asked(stage: Stage) -> None:
    run = await stage.play(FOREVER)
    assert run.state == "parked"
    assert step_of(run, "three").rungs == [6, 6, 8]
    one, two = (step_of(run, name).snapshots[0] for name in ("one", "two"))
    gone_to = await restored(stage, run)
    assert [event["snapshot"] for event in gone_to] == [two.id, one.id]
    assert stage.done_outside() == ["one", "two", "three-1", "three-2", "two", "three-3"]
    parked = (await stage.events(run, "parked"))[-1]
    for event in gone_to:
        assert str(event["before"]) in parked.data["evidence"]


async def test_without_a_verified_snapshot_the_rung_is_left_out(stage: Stage) -> None:
    run = await stage.play(FOREVER.replace("snapshot: true", "snapshot: false"))
    assert step_of(run, "three").rungs == [8]


async def test_a_pruned_snapshot_is_passed_over(stage: Stage) -> None:
    gone = stage.hands.add("restore", lambda: NotFound("pruned"))
    early = "id: early\n    run: 'true'\n    verify: {run: 'true'}\n    snapshot: true\n  - "
    text = SPOILED.replace("id: load\n", f"{early}id: load\n    needs: early\n    snapshot: true\n", 1)
    run = await stage.play(text)
    assert (run.state, gone.fired) == ("succeeded", 1)
    (event,) = await restored(stage, run)
    assert event["snapshot"] == step_of(run, "early").snapshots[0].id
    assert step_of(run, "load").attempts == 2


async def test_a_restore_that_is_refused_leads_further_up(stage: Stage) -> None:
    stage.hands.add("restore", lambda: Conflict("another run is at work"), times=9)
    run = await stage.play(FOREVER)
    assert step_of(run, "three").rungs == [6, 6, 8]
    done = [event.data for event in await stage.events(run, "rung_done")]
    assert [(event["ok"], "another run" in event["evidence"]) for event in done] == [(False, True)] * 2
    assert stage.done_outside() == ["one", "two", "three-1"], "undone without having been"


async def test_what_is_final_is_never_undone(stage: Stage) -> None:
    text = FOREVER.replace("{id: two, needs: one, run: echo two", "{id: two, needs: one, final: true, run: echo two")
    run = await stage.play(
        text.replace("verify: {run: 'true'}, snapshot: true}\n  - id: three", "snapshot: false}\n  - id: three")
    )
    assert step_of(run, "three").rungs == [8]
    assert stage.done_outside() == ["one", "two", "three-1"]


async def test_a_message_is_left_once(stage: Stage) -> None:
    text = SPOILED.replace("put: {path: effects, bucket: kept}", "notify: hello")
    run = await stage.play(text)
    assert (run.state, await stage.rungs(run)) == ("succeeded", [(6, "verification")])
    assert [message["subject"] for message in stage.office.messages("analyst")] == ["hello"]
    assert step_of(run, "keep").attempts == 1


async def test_branches_under_way_are_let_go_and_begin_anew(stage: Stage) -> None:
    run = await stage.play("""
name: branches
defaults: {retry: 0}
steps:
  - {id: base, run: 'true', verify: {run: 'true'}}
  - id: slow
    needs: base
    run: echo slow-$TENURE_ATTEMPT >> OUTSIDE; [ $TENURE_ATTEMPT != 1 ] || sleep 600; echo slow >> effects
  - id: bad
    needs: base
    run: until grep -q slow-1 OUTSIDE; do sleep 0.02; done; echo bad-$TENURE_ATTEMPT >> OUTSIDE
    verify: {run: grep -q bad-2 OUTSIDE}
""")
    assert run.state == "succeeded"
    assert await stage.rungs(run) == [(6, "verification")]
    assert sorted(stage.done_outside()) == ["bad-1", "bad-2", "slow-1", "slow-2"]
    assert stage.effects() == ["slow"]
    assert (await restored(stage, run))[0]["undone"] == ["slow", "bad"]


async def test_a_snapshot_with_unfinished_work_of_a_branch_is_not_gone_back_to(stage: Stage) -> None:
    run = await stage.play("""
name: unfinished
defaults: {retry: 0}
steps:
  - {id: base, run: 'true', verify: {run: 'true'}, snapshot: true}
  - {id: slow, needs: base, run: 'touch slow; until [ -e ../go ]; do sleep 0.02; done'}
  - {id: quick, needs: base, run: 'until [ -e slow ]; do sleep 0.02; done', verify: {run: 'true'}, snapshot: true}
  - {id: go, needs: quick, run: touch ../go}
  - id: bad
    needs: [go, slow]
    run: echo $TENURE_ATTEMPT >> OUTSIDE
    verify: {run: grep -q 2 OUTSIDE}
""")
    assert run.state == "succeeded"
    assert [one.verified for one in step_of(run, "quick").snapshots] == [False, True]
    (event,) = await restored(stage, run)
    assert event["snapshot"] == step_of(run, "base").snapshots[0].id


async def test_a_risky_step_is_tried_again_in_the_office_without_its_mess(stage: Stage) -> None:
    run = await stage.finish(
        "run: echo $TENURE_ATTEMPT >> OUTSIDE; [ ! -e mess ] || exit 1; touch mess; [ $TENURE_ATTEMPT != 1 ]\n"
        "risky: true\nretry: {attempts: 1, delay: 0}"
    )
    assert run.state == "succeeded"
    assert await stage.rungs(run) == [(0, "command"), (6, "command")]
    assert stage.done_outside() == ["1", "2", "3"]
    before = [one for one in step_of(run).snapshots if one.before]
    assert [one.verified for one in before] == [True, True]
    assert not (stage.home.parent / "snapshots" / before[0].id / "home" / "mess").exists()


BREAKS = """
name: breaks
defaults: {retry: 0}
steps:
  - {id: base, run: 'true', verify: {run: 'true'}, snapshot: SNAPSHOT}
  - id: work
    needs: base
    run: echo $TENURE_ATTEMPT >> OUTSIDE; [ $TENURE_ATTEMPT != 1 ] || { echo LEAST > ../sandbox-is-broken; sleep 60; }
    on_lost: retry
    retry: {attempts: 3, delay: 0}
"""


@pytest.mark.parametrize(
    ("least", "snapshot", "rungs"),
    [
        (6, "true", [5, 5, 6]),
        (7, "true", [5, 5, 6, 7]),
        (7, "false", [5, 5, 7, 0]),
        (8, "true", [5, 5, 6, 7, 8]),
    ],
)
async def test_a_sandbox_that_does_not_start_is_restored_then_rebuilt_then_a_person_is_asked(
    stage: Stage, least: int, snapshot: str, rungs: list[int]
) -> None:
    run = await stage.play(BREAKS.replace("LEAST", str(least)).replace("SNAPSHOT", snapshot))
    assert step_of(run).rungs == rungs
    assert run.state == ("parked" if least == 8 else "succeeded")
    assert [call["rung"] for call in stage.office.calls("analyst")] == [rung for rung in rungs if rung in (5, 6, 7)]
    done = [event.data for event in await stage.events(run, "rung_done")]
    assert all(event["evidence"] for event in done), "a rung without evidence"
    assert stage.done_outside() == (["1"] if least == 8 else ["1", "2"])


async def test_the_ladder_ends_though_steps_that_are_done_again_succeed(stage: Stage) -> None:
    """What a restore undid is no new ground when it is done again, so it renews no budget."""
    stage.hands.add("start_command", lambda: SandboxDead("dead"), times=1000, key=".three.")
    run = await stage.play(FOREVER)
    assert run.state == "parked"
    assert step_of(run, "three").rungs == [5, 5, 6, 6, 7, 8]
    assert stage.done_outside() == ["one", "two", "two"]


async def test_an_answer_lets_it_climb_anew(stage: Stage) -> None:
    run = await stage.play(FOREVER)
    before = step_of(run, "three").rungs
    await stage.runs.resume(run.id)
    run = await at_rest(stage.runs, run.id)
    assert step_of(run, "three").rungs[len(before) :] == [6, 8], "only the snapshot of the last time was not tried"


@pytest.mark.parametrize(
    "point",
    [
        "effect.restore.before/report",
        "effect.restore.after/report",
        "journal.append.before/rung_entered/report",
        "journal.append.before/rung_done/report",
        "journal.append.after/rung_done/report",
    ],
)
async def test_killed_at_any_point_of_a_restore_it_happens_once_in_the_journal(
    control_database: ControlDatabase,
    control_dsn: str,
    worker_pool: WorkerPool,
    fake_hands: FakeHands,
    tmp_path: Path,
    point: str,
) -> None:
    runs, root, log = Runs(control_database), tmp_path / "offices", tmp_path / "fired"
    text = SPOILED.replace("OUTSIDE", str(tmp_path / "outside"))
    run = await runs.create(agent="analyst", goal="g", playbook=text, playbook_name=None, inputs={})
    victim = worker_pool.start(control_dsn, root, TENURE_FAULT=f"{point}:1:kill", TENURE_FAULT_LOG=str(log))
    await victim.wait_for("", "Z")
    assert log.read_text() == f"{point}:1:kill\n"
    heir = worker_pool.start(control_dsn, root)
    run = await at_rest(runs, run.id)
    await heir.end()
    assert run.state == "succeeded"
    assert words_of(root / "analyst" / "home" / "effects") == ["load", "spoil-2", "report-2"]
    events = await runs.events(run.id, limit=1000)
    gone_back = [event.data for event in events if event.kind == "office_restored"]
    assert len(gone_back) == 1
    assert words_of(root / "analyst" / "snapshots" / gone_back[0]["before"] / "home" / "effects") == [
        "load",
        "spoil-1",
        "report-1",
    ], "the evidence of the first time was replaced"
    assert step_of(run, "report").rungs == [6]


async def test_a_cancelled_run_is_not_restored_first(stage: Stage) -> None:
    run_id = await stage.begin(FOREVER.replace('{run: "false"}', '{run: "sleep 60; false"}'))
    await until(lambda: "three-1" in stage.done_outside())
    await stage.runs.cancel(run_id)
    assert (await at_rest(stage.runs, run_id)).state == "cancelled"
    assert stage.office.calls("analyst") == []
