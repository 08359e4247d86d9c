"""Who may drive a run, until when: absurd's claims, called as the PostgreSQL functions that they are.

A claim is one row of `absurd.r_work`; its id is the *fence*. Claims of one run never share a fence: a lapsed one is failed
by absurd, and so is one that is suspended, and the next claim is a new row. (absurd's own `schedule_run` would bring the
same row back, so it is not used.)
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from tenure.database.connect import Connection, ControlDatabase

LEASE_S = 15
QUEUE = "work"
TASK = "run"
WORK_CHANNEL = "tenure_work"
"""NOTIFY: there is something to claim."""
KEEP_FINISHED_S = 86_400
"""How long absurd's rows of finished work are kept; the journal keeps everything."""
CLEANUP_ROWS_MAX = 1000


@dataclass(frozen=True)
class Claim:
    fence: UUID
    task_id: UUID
    run_id: str
    attempt: int
    """1 for the first claim of a task; more when a worker before this one died, or the run was suspended."""


async def spawn(connection: Connection, run_id: str) -> None:
    """Queues the run, in the caller's transaction; its row names absurd's task."""
    await connection.execute(
        """
        update runs set task_id = spawned.task_id
        from (select task_id from absurd.spawn_task(%(queue)s, %(task)s, %(params)s, %(options)s)) as spawned
        where id = %(run)s
        returning pg_notify(%(channel)s, %(run)s)
        """,
        {
            "queue": QUEUE,
            "task": TASK,
            "params": Jsonb({"run": run_id}),
            "options": Jsonb({"retry_strategy": {"kind": "none"}}),
            "run": run_id,
            "channel": WORK_CHANNEL,
        },
    )


async def claim(database: ControlDatabase, worker: str, lease_s: int, claims_max: int) -> list[Claim]:
    """At most `claims_max` runs that nobody drives, among them those whose worker's lease has lapsed."""
    statement = "select run_id, task_id, attempt, params from absurd.claim_task(%s, %s, %s, %s)"
    found = await database.fetch(statement, (QUEUE, worker, lease_s, claims_max))
    if len(found) < claims_max:
        # absurd queues a lapsed claim's successor some microseconds *after* the moment at which it looks for work: without
        # a second look a run whose worker died would wait for the next poll.
        found += await database.fetch(statement, (QUEUE, worker, lease_s, claims_max - len(found)))
    return [Claim(row["run_id"], row["task_id"], row["params"]["run"], row["attempt"]) for row in found]


async def renew(database: ControlDatabase, worker: str, fences: Iterable[UUID], lease_s: int) -> dict[UUID, int]:
    """Extends the leases that `worker` still holds and returns the journal length of each; a lapsed one is not revived."""
    found = await database.fetch(
        """
        with renewed as (
            update absurd.r_work set claim_expires_at = clock_timestamp() + make_interval(secs => %(lease)s)
            where run_id = any(%(fences)s) and state = 'running' and claimed_by = %(worker)s
              and claim_expires_at > clock_timestamp()
            returning run_id, task_id
        )
        select renewed.run_id, coalesce(runs.last_seq, 0) as last_seq
        from renewed left join runs on runs.task_id = renewed.task_id
        """,
        {"lease": lease_s, "fences": list(fences), "worker": worker},
    )
    return {row["run_id"]: row["last_seq"] for row in found}


async def complete(connection: Connection, fence: UUID) -> None:
    """Ends the claim and its task, in the caller's transaction. Nothing when the claim is not held any more."""
    held = "select 1 from absurd.r_work where run_id = %s and state = 'running' for update"
    if await (await connection.execute(held, (fence,))).fetchone():
        await connection.execute("select absurd.complete_run(%s, %s, null)", (QUEUE, fence))


async def suspend(connection: Connection, fence: UUID, until: datetime) -> bool:
    """Ends the claim and queues the task's next one for `until`. False when the claim is not held any more."""
    held = "select 1 from absurd.r_work where run_id = %s and state = 'running' for update"
    if not await (await connection.execute(held, (fence,))).fetchone():
        return False
    reason = Jsonb({"name": "$Suspended"})
    await connection.execute("select absurd.fail_run(%s, %s, %s, %s)", (QUEUE, fence, reason, until))
    return True


async def wake_suspended(connection: Connection, run_id: str) -> bool:
    """Makes a suspended run claimable at once: the owner has something to say. False when it is not suspended."""
    woken = await connection.execute(
        """
        update absurd.r_work r set available_at = clock_timestamp()
        from runs where runs.id = %s and r.task_id = runs.task_id and r.state = 'sleeping'
        """,
        (run_id,),
    )
    await connection.execute("select pg_notify(%s, %s)", (WORK_CHANNEL, run_id))
    return woken.rowcount > 0


async def clean_up(database: ControlDatabase) -> None:
    """Deletes absurd's rows of work that ended long ago. Bounded; call it now and then."""
    await database.execute("select absurd.cleanup_tasks(%s, %s, %s)", (QUEUE, KEEP_FINISHED_S, CLEANUP_ROWS_MAX))


# --- workers that are known to be dead -----------------------------------------------------------------------------------
def worker_id(pid: int | None = None) -> str:
    """Names the process `pid` (this one by default) so that no other one, now or later, has the same name: host, boot, process
    space, pid, start time. Raises `ProcessLookupError` when there is no such process."""
    pid = os.getpid() if pid is None else pid
    started = _start_ticks(pid)
    if started is None:
        raise ProcessLookupError(pid)
    return f"{_machine()}/{pid}/{started}"


def is_dead(worker: str) -> bool:
    """Whether `worker` surely runs no more: it was of this machine, boot and process space, and its process is gone."""
    machine, _, process = worker.partition("/")
    pid, _, started = process.partition("/")
    return machine == _machine() and pid.isdigit() and str(_start_ticks(int(pid))) != started


async def release_claims(database: ControlDatabase, worker: str) -> int:
    """Lets the leases of a worker *known to be dead* lapse now; returns how many. A supervisor that reaped the process calls
    this, so that the next worker need not wait; of a living worker it would take the runs away."""
    async with database.transaction() as connection:
        released = await connection.execute(
            """
            update absurd.r_work set claim_expires_at = clock_timestamp()
            where claimed_by = %s and state = 'running' and claim_expires_at > clock_timestamp()
            """,
            (worker,),
        )
        if released.rowcount:
            await connection.execute("select pg_notify(%s, '')", (WORK_CHANNEL,))
        return released.rowcount


async def release_dead_claims(database: ControlDatabase) -> int:
    """`release_claims` for every worker of this machine that is gone: for a start after everything was killed."""
    holders: list[dict[str, Any]] = await database.fetch(
        "select distinct claimed_by from absurd.r_work where state = 'running' and claimed_by is not null"
    )
    dead = [row["claimed_by"] for row in holders if is_dead(row["claimed_by"])]
    return sum([await release_claims(database, worker) for worker in dead])


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    processes = Path("/proc/self/ns/pid").stat().st_ino
    return f"{socket.gethostname()}.{boot}.{processes}"


def _start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])
