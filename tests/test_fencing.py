"""Fencing: a worker that was stopped for longer than its lease, and continued, changes nothing any more.

The worker is stopped by SIGSTOP at the worst points: just before it writes, and between the intent and the effect. Another
one takes over and finishes; then the first is continued, in the middle of what it was doing.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path
from uuid import UUID

import pytest

from fixtures.workers import WorkerPool, at_rest, until
from tenure import wire
from tenure.database import ControlDatabase
from tenure.errors import LeaseLost
from tenure.testing.fake_hands import FakeHands
from tenure.work import claims
from tenure.work import events as e
from tenure.work.journal import Journal, load
from tenure.work.runs import Runs

LEASE_S = 1
PLAYBOOK = """
name: fenced
steps:
  - id: first
    run: echo first >> effects
  - id: count
    needs: first
    sql: create table if not exists counted (label text); insert into counted values ('count')
  - id: last
    needs: count
    run: echo last >> effects
"""
WORST_POINTS = [
    "journal.append.before/step_started/first",
    "effect.run.before/first",
    "effect.start.before",  # after the worker's own check of its lease: only the key is left to hold
    "effect.run.after/first",
    "journal.append.before/step_succeeded/first",
    "effect.sql.before/count",
    "journal.append.before/run_succeeded",
]


async def create(runs: Runs, agent: str = "analyst") -> str:
    run = await runs.create(agent=agent, goal="once", playbook=PLAYBOOK, playbook_name=None, inputs={})
    return run.id


@pytest.mark.parametrize("point", WORST_POINTS)
async def test_a_worker_continued_after_its_lease_changes_nothing(
    control_database: ControlDatabase,
    control_dsn: str,
    worker_pool: WorkerPool,
    fake_hands: FakeHands,
    tmp_path: Path,
    point: str,
) -> None:
    runs, root, log = Runs(control_database), tmp_path / "offices", tmp_path / "fired"
    run_id = await create(runs)
    zombie = worker_pool.start(
        control_dsn, root, lease_s=LEASE_S, TENURE_FAULT=f"{point}:1:stop", TENURE_FAULT_LOG=str(log)
    )
    await zombie.wait_for("T")
    heir = worker_pool.start(control_dsn, root, lease_s=LEASE_S)
    run = await at_rest(runs, run_id)
    assert run.state == wire.RunState.SUCCEEDED
    before = await load(control_database, run_id)

    await heir.end()
    zombie.signal(signal.SIGCONT)
    fake_hands.add_agent("next")
    another = await create(runs, "next")
    assert (
        await at_rest(runs, another)
    ).state == wire.RunState.SUCCEEDED  # by the zombie: it had time to go on, and works
    await zombie.end()
    assert log.read_text() == f"{point}:1:stop\n"
    assert await load(control_database, run_id) == before, "the zombie wrote into the journal"
    assert (await runs.get(run_id)).state == wire.RunState.SUCCEEDED
    assert Counter((root / "analyst" / "home" / "effects").read_text().split()) == {"first": 1, "last": 1}
    assert (await fake_hands.sql("analyst", "select count(*) from counted")).rows == [[1]]


async def claimed(database: ControlDatabase, runs: Runs, worker: str, lease_s: int = 60) -> tuple[str, UUID, Journal]:
    run_id = await create(runs)
    (claim,) = await claims.claim(database, worker, lease_s, 1)
    assert claim.run_id == run_id
    return run_id, claim.fence, Journal(database, run_id, claim.fence)


async def test_without_a_valid_claim_nothing_is_appended(control_database: ControlDatabase) -> None:
    runs = Runs(control_database)
    run_id, fence, journal = await claimed(control_database, runs, "one")
    await journal.append(e.RunClaimed(worker="one", attempt=1))

    await claims.release_claims(control_database, "one")
    with pytest.raises(LeaseLost):  # lapsed, and nobody has taken it yet
        await journal.append(e.StepStarted(node="first", attempt=1, key="k"))
    with pytest.raises(LeaseLost):
        await journal.end(e.RunSucceeded(), "analyst")
    assert await claims.renew(control_database, "one", [fence], 60) == {}, "a lapsed lease was revived"

    (heirs,) = await claims.claim(control_database, "two", 60, 1)
    with pytest.raises(LeaseLost):  # taken over
        await journal.append(e.StepStarted(node="first", attempt=1, key="k"))
    heir = Journal(control_database, run_id, heirs.fence)
    await heir.append(e.StepStarted(node="first", attempt=1, key="k"))
    assert [record.event.kind for record in await load(control_database, run_id)] == [
        "run_created",
        "planned",
        "run_claimed",
        "step_started",
    ]


async def test_a_claim_of_one_run_cannot_write_into_another(control_database: ControlDatabase) -> None:
    runs = Runs(control_database)
    _, fence, _ = await claimed(control_database, runs, "one")
    other = await create(runs)
    with pytest.raises(LeaseLost):
        await Journal(control_database, other, fence).append(e.RunClaimed(worker="one", attempt=1))


async def test_every_claim_of_a_run_has_a_fence_of_its_own(control_database: ControlDatabase) -> None:
    """Also after a suspension: what was written under the claim before cannot come late."""
    runs = Runs(control_database)
    run_id, fence, journal = await claimed(control_database, runs, "one")
    started = await journal.append(e.RunClaimed(worker="one", attempt=1))
    await journal.suspend(started[0].at)
    with pytest.raises(LeaseLost):
        await journal.append(e.StepStarted(node="first", attempt=1, key="k"))
    (again,) = await claims.claim(control_database, "one", 60, 1)
    assert again.run_id == run_id
    assert again.fence != fence
    with pytest.raises(LeaseLost):
        await journal.append(e.StepStarted(node="first", attempt=1, key="k"))


async def test_appends_that_meet_a_take_over_are_all_or_nothing(control_database: ControlDatabase) -> None:
    """Two claims' appends race with the lapse of the first lease: the journal has no gap, and the old fence writes nothing after
    the new one has begun."""
    runs = Runs(control_database)
    run_id, fence, journal = await claimed(control_database, runs, "one")

    async def old_worker() -> None:
        async def write_on() -> None:
            while True:
                await journal.append(e.StepStarted(node="first", attempt=1, key="old"))

        with pytest.raises(LeaseLost):
            await write_on()

    async def take_over() -> UUID:
        await asyncio.sleep(0.05)
        await claims.release_claims(control_database, "one")
        while not (found := await claims.claim(control_database, "two", 60, 1)):  # noqa: ASYNC110
            await asyncio.sleep(0.001)  # passed over while an append holds its row
        for _ in range(20):
            await Journal(control_database, run_id, found[0].fence).append(
                e.StepStarted(node="first", attempt=2, key="new")
            )
        return found[0].fence

    _, new = await asyncio.gather(old_worker(), take_over())
    rows = await control_database.fetch("select seq, fence from journal where run_id = %s order by seq", (run_id,))
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
    fences = [row["fence"] for row in rows if row["fence"] is not None]
    assert fences == [fence] * fences.count(fence) + [new] * 20


async def test_a_dead_workers_claims_are_free_at_once(
    control_database: ControlDatabase, control_dsn: str, worker_pool: WorkerPool, fake_hands: FakeHands, tmp_path: Path
) -> None:
    """The lease is an hour; a worker that starts after everything was killed does not wait for it."""
    runs, root = Runs(control_database), tmp_path / "offices"
    run_id = await create(runs)
    point = "effect.run.before/first:1:kill"
    victim = worker_pool.start(control_dsn, root, lease_s=3600, TENURE_FAULT=point)
    await victim.wait_for("", "Z")
    heir = worker_pool.start(control_dsn, root, lease_s=3600)
    run = await at_rest(runs, run_id)
    await heir.end()
    assert run.state == wire.RunState.SUCCEEDED


HEIR_START_S = 3.0
"""A worker that starts frees the claims of the dead by itself; this one is to have started before the death."""


async def test_a_supervisor_frees_the_claims_of_the_worker_that_it_reaped(
    control_database: ControlDatabase, control_dsn: str, worker_pool: WorkerPool, fake_hands: FakeHands, tmp_path: Path
) -> None:
    """The heir ran before the death; it is told."""
    runs, root = Runs(control_database), tmp_path / "offices"
    run_id = await create(runs)
    victim = worker_pool.start(control_dsn, root, lease_s=3600, TENURE_FAULT="effect.run.before/first:1:stop")
    await victim.wait_for("T")
    name = claims.worker_id(victim.pid)
    heir = worker_pool.start(control_dsn, root, lease_s=3600)
    assert not claims.is_dead(name), "a stopped worker may go on: it is not dead"
    await asyncio.sleep(HEIR_START_S)
    victim.kill()
    await victim.wait_for("", "Z")
    assert claims.is_dead(name)
    assert await claims.release_claims(control_database, name) == 1
    assert (await at_rest(runs, run_id)).state == wire.RunState.SUCCEEDED
    await heir.end()


async def test_a_step_longer_than_the_lease_keeps_its_worker(
    control_database: ControlDatabase, control_dsn: str, worker_pool: WorkerPool, fake_hands: FakeHands, tmp_path: Path
) -> None:
    """Leases are renewed whatever the step does: a healthy worker is not replaced, though another one waits for it."""
    runs, root = Runs(control_database), tmp_path / "offices"
    workers = [worker_pool.start(control_dsn, root, lease_s=LEASE_S) for _ in range(2)]
    text = "name: long\nsteps: [{id: long, run: 'sleep 4; echo done >> effects'}]"
    run = await runs.create(agent="analyst", goal="g", playbook=text, playbook_name=None, inputs={})
    run = await at_rest(runs, run.id)
    for worker in workers:
        await worker.end()
    assert run.state == wire.RunState.SUCCEEDED
    assert [event.kind for event in await runs.events(run.id)].count("run_claimed") == 1


async def test_a_worker_that_is_stopped_cleanly_hands_over_at_once(
    control_database: ControlDatabase, control_dsn: str, worker_pool: WorkerPool, fake_hands: FakeHands, tmp_path: Path
) -> None:
    """SIGTERM: the lease of an hour is given back; the command goes on, and the next worker waits for it."""
    runs, root = Runs(control_database), tmp_path / "offices"
    first = worker_pool.start(control_dsn, root, lease_s=3600)
    text = "name: long\nsteps: [{id: long, run: 'echo once >> effects; while [ ! -e go ]; do sleep 0.02; done'}]"
    run = await runs.create(agent="analyst", goal="g", playbook=text, playbook_name=None, inputs={})
    home = root / "analyst" / "home"
    await until((home / "effects").exists)
    second = worker_pool.start(control_dsn, root, lease_s=3600)
    await first.end()
    (home / "go").touch()
    run = await at_rest(runs, run.id)
    await second.end()
    assert (run.state, run.steps[0].attempts) == (wire.RunState.SUCCEEDED, 1)
    assert (home / "effects").read_text() == "once\n"
