"""Exactly once: a worker killed at any point leaves a run that the next one finishes, with every effect done once.

A reference run of a playbook with every kind of step writes down each fault point that it reaches: before and after
every journal write and every effect. Then, for each of them, a real worker process kills itself with SIGKILL there, and
another one finishes the run.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.workers import WorkerPool, at_rest, until
from tenure import wire
from tenure.database import ControlDatabase
from tenure.testing.fake_hands import FakeHands
from tenure.work.runs import Runs

EVERYTHING = """
name: everything
concurrency: 4
defaults: {retry: 0}
steps:
  - id: prepare
    risky: true
    run: echo prepare >> effects; echo "three"
    verify: [{run: test -s effects}, {file: effects}]
    snapshot: true # always, so that the points are the same each time
  - id: table
    needs: prepare
    snapshot: true
    sql: create table scores (label text); insert into scores values ('made')
    verify: {sql: select count(*) from scores, equals: 1}
  - id: year
    needs: table
    for_each: [2012, 2013, 2014]
    run: echo year-$TENURE_ITEM >> effects; sleep 0.1; echo ${{ item }}
  - id: score
    needs: table
    for_each: {sql: "select 'x' union select 'y'"}
    sql: insert into scores values ('${{ item }}')
  - id: again
    needs: prepare
    run: echo again-$TENURE_ATTEMPT >> effects; test $TENURE_ATTEMPT = 2
    retry: {attempts: 1, delay: 0}
  - id: mended
    needs: again
    run: echo mended-$TENURE_ATTEMPT >> effects; test -e mended
    on_error: {run: 'echo on_error >> effects; touch mended; test "$TENURE_FAILED_STEP" = mended'}
  - id: never
    if: ${{ steps.prepare.output }} == four
    needs: prepare
    run: echo never >> effects
  - id: report
    needs: [year, score, mended, never]
    snapshot: true
    run: echo "${{ steps.year.output }}" > report; echo report >> effects
  - id: put
    needs: report
    put: {path: report, bucket: reports}
  - id: tell
    needs: put
    notify: {subject: done, body: "years ${{ steps.year.output }}"}
  - id: shut # breaks the door of its own (fake) office: rung 4
    needs: tell
    run: echo shut >> effects; touch ../door-is-broken; sleep 0.3
"""
EFFECTS = [
    *("prepare", "year-2012", "year-2013", "year-2014"),
    *("again-1", "again-2", "mended-1", "on_error", "mended-2", "report", "shut"),
]
KINDS = (
    "effect.run",
    "effect.sql",
    "effect.put",
    "effect.notify",
    "effect.forget",
    "effect.snapshot",
    "effect.reconnect",
    "journal.append",
)
BROKEN_SHOWN_MAX = 5
LANES = 3
POINTS_MIN = 100
"""The playbook reaches more; fewer mean that points were lost, and with them this test's meaning."""


async def create(runs: Runs, playbook: str = EVERYTHING, agent: str = "analyst") -> str:
    run = await runs.create(agent=agent, goal="everything once", playbook=playbook, playbook_name="t.yaml", inputs={})
    return run.id


def effects_of(root: Path, agent: str) -> list[str]:
    return (root / agent / "home" / "effects").read_text().split()


async def assert_once(
    runs: Runs, database: ControlDatabase, hands: FakeHands, root: Path, agent: str, run: wire.Run
) -> None:
    """Everything happened, nothing twice, and the journal tells it without a gap."""
    assert run.state == wire.RunState.SUCCEEDED, (run.question, run.error)
    assert {step.id: step.state for step in run.steps if step.id != "never"} == {
        step.id: wire.StepState.SUCCEEDED for step in run.steps if step.id != "never"
    }
    assert Counter(effects_of(root, agent)) == Counter(EFFECTS)
    # A worker that was slow between knocking and asking got its answer through the door that was just being broken.
    (root / agent / "door-is-broken").unlink(missing_ok=True)
    rows = (await hands.sql(agent, "select label from scores order by label")).rows
    assert rows == [["made"], ["x"], ["y"]]
    assert (root / agent / "objects" / "reports" / "report").read_text() == "2012\n2013\n2014\n"
    assert [message["subject"] for message in hands.messages(agent)] == ["done"]
    events = await runs.events(run.id, limit=1000)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    started = Counter((event.step, event.data["attempt"]) for event in events if event.kind == "step_started")
    assert set(started.values()) == {1}, "an attempt was begun twice"
    succeeded = Counter(event.step for event in events if event.kind == "step_succeeded")
    assert set(succeeded.values()) == {1}, "a finished step ran again"
    snapshots = [event.data["snapshot"] for event in events if event.kind == "snapshot_taken"]
    assert sorted(snapshots) == hands.snapshots(agent), "a snapshot was lost, or taken twice"
    assert {event.step for event in events if event.kind == "snapshot_taken"} == {"prepare", "table", "report"}
    left = await database.fetch("select 1 from absurd.r_work where state in ('running', 'pending', 'sleeping')")
    assert not left, "a claim was left behind"


async def reference_points(runs: Runs, dsn: str, root: Path, pool: WorkerPool, trace: Path) -> list[str]:
    worker = pool.start(dsn, root, TENURE_FAULT_TRACE=str(trace))
    run_id = await create(runs)
    assert (await at_rest(runs, run_id)).state == wire.RunState.SUCCEEDED
    await worker.end()
    return sorted(set(trace.read_text().split("\n")) - {""})


@pytest.mark.timeout(900)
async def test_killed_at_every_point_everything_happens_once(
    new_control_dsn: Callable[[], str], worker_pool: WorkerPool, fake_hands: FakeHands, tmp_path: Path
) -> None:
    root, dsns = tmp_path / "offices", [new_control_dsn() for _ in range(LANES)]
    async with ControlDatabase(dsns[0]) as database:
        points = await reference_points(Runs(database), dsns[0], root, worker_pool, tmp_path / "trace")
    assert len(points) >= POINTS_MIN, points
    for kind in KINDS:
        assert any(point.startswith(f"{kind}.before") for point in points), kind
        assert any(point.startswith(f"{kind}.after") for point in points), kind
    broken: list[str] = []
    left = iter(enumerate(points))

    async def lane(dsn: str) -> None:
        """Each lane has a control database of its own, so that its workers take no other lane's runs."""
        async with ControlDatabase(dsn) as database:
            for number, point in left:
                if len(broken) >= BROKEN_SHOWN_MAX:
                    return
                try:
                    await kill_at(point, f"agent{number}", database, dsn)
                except (AssertionError, OSError) as error:
                    broken.append(f"{point}: {error}")

    async def kill_at(point: str, agent: str, database: ControlDatabase, dsn: str) -> None:
        runs, log = Runs(database), tmp_path / f"{agent}-fired"
        fake_hands.add_agent(agent)
        run_id = await create(runs, agent=agent)
        victim = worker_pool.start(dsn, root, TENURE_FAULT=f"{point}:kill", TENURE_FAULT_LOG=str(log))
        await victim.wait_for("", "Z")
        heir = worker_pool.start(dsn, root)
        run = await at_rest(runs, run_id)
        await heir.end()
        assert log.read_text() == f"{point}:kill\n", "the fault did not fire"
        await assert_once(runs, database, fake_hands, root, agent, run)

    await asyncio.gather(*(lane(dsn) for dsn in dsns))
    assert not broken, "\n".join(broken)


LOSING = """
name: losing
steps:
  - id: risky
    run: echo risky-$TENURE_ATTEMPT >> effects; [ "$TENURE_ATTEMPT" != 1 ] || {slow}; echo yes > finished
{extra}
  - id: after
    needs: risky
    run: echo after >> effects
"""


async def lose_the_effect(
    runs: Runs, dsn: str, root: Path, pool: WorkerPool, hands: FakeHands, log: Path, extra: str, slow: str = "sleep 600"
) -> wire.Run:
    """Kills the worker after it began the effect, and the sandbox with it; another worker goes on."""
    run_id = await create(runs, LOSING.replace("{extra}", extra).replace("{slow}", slow))
    point = "effect.run.after/risky:1:kill"
    victim = pool.start(dsn, root, TENURE_FAULT=point, TENURE_FAULT_LOG=str(log))
    await victim.wait_for("", "Z")
    assert log.read_text() == f"{point}\n"
    effects = root / "analyst" / "home" / "effects"
    await until(lambda: effects.exists() and effects.read_text())
    await hands.restart("analyst")
    heir = pool.start(dsn, root)
    run = await at_rest(runs, run_id)
    await heir.end()
    return run


async def test_a_lost_effect_is_reported_unverified(
    control_database: ControlDatabase, control_dsn: str, worker_pool: WorkerPool, fake_hands: FakeHands, tmp_path: Path
) -> None:
    runs, root = Runs(control_database), tmp_path / "offices"
    run = await lose_the_effect(runs, control_dsn, root, worker_pool, fake_hands, tmp_path / "fired", "")
    assert run.state == wire.RunState.PARKED
    assert "unverified" in (run.question or "")
    assert [(step.id, step.state) for step in run.steps] == [("risky", "unverified"), ("after", "pending")]
    assert effects_of(root, "analyst") == ["risky-1"], "it was repeated without anybody knowing whether it happened"
    messages = await control_database.fetch("select subject, run_id from inbox")
    assert messages == [{"subject": f"{run.id} needs an answer", "run_id": run.id}]

    await runs.resume(run.id, "accept")
    worker = worker_pool.start(control_dsn, root)
    assert (await at_rest(runs, run.id)).state == wire.RunState.SUCCEEDED
    await worker.end()
    assert effects_of(root, "analyst") == ["risky-1", "after"]


async def test_a_lost_effect_that_a_check_finds_is_not_repeated(
    control_database: ControlDatabase, control_dsn: str, worker_pool: WorkerPool, fake_hands: FakeHands, tmp_path: Path
) -> None:
    runs, root = Runs(control_database), tmp_path / "offices"
    extra = "    verify: {file: effects}"
    run = await lose_the_effect(runs, control_dsn, root, worker_pool, fake_hands, tmp_path / "fired", extra)
    assert run.state == wire.RunState.SUCCEEDED
    assert effects_of(root, "analyst") == ["risky-1", "after"]
    assert any(event.kind == "step_unverified" for event in await runs.events(run.id))


@pytest.mark.parametrize(
    "extra",
    [
        "    verify: {file: finished}\n    retry: {attempts: 1, delay: 0}",
        "    on_lost: retry\n    retry: {attempts: 1, delay: 0}",
    ],
)
async def test_a_lost_effect_is_retried_when_a_check_or_the_playbook_says_so(
    control_database: ControlDatabase,
    control_dsn: str,
    worker_pool: WorkerPool,
    fake_hands: FakeHands,
    tmp_path: Path,
    extra: str,
) -> None:
    runs, root = Runs(control_database), tmp_path / "offices"
    run = await lose_the_effect(runs, control_dsn, root, worker_pool, fake_hands, tmp_path / "fired", extra)
    assert run.state == wire.RunState.SUCCEEDED
    assert effects_of(root, "analyst") == ["risky-1", "risky-2", "after"]
    assert [(step.attempts, step.rungs) for step in run.steps if step.id == "risky"] == [(2, [0])]


async def test_a_running_command_outlives_its_worker(
    control_database: ControlDatabase, control_dsn: str, worker_pool: WorkerPool, fake_hands: FakeHands, tmp_path: Path
) -> None:
    """The next worker finds it by its key and waits on."""
    runs, root = Runs(control_database), tmp_path / "offices"
    slow = "while [ ! -e go ]; do sleep 0.02; done"
    run_id = await create(runs, LOSING.replace("{extra}", "").replace("{slow}", slow))
    victim = worker_pool.start(control_dsn, root, TENURE_FAULT="effect.run.after/risky:1:kill")
    await victim.wait_for("", "Z")
    heir = worker_pool.start(control_dsn, root)
    while [event.kind for event in await runs.events(run_id)].count("run_claimed") < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    (root / "analyst" / "home" / "go").touch()
    run = await at_rest(runs, run_id)
    heir.signal(signal.SIGTERM)
    assert run.state == wire.RunState.SUCCEEDED
    assert effects_of(root, "analyst") == ["risky-1", "after"]
    assert [(step.attempts, step.rungs) for step in run.steps] == [(1, []), (1, [])]
