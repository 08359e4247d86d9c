"""What is written into a run's journal without a claim: by its owner, or by another run.

Each function works in the caller's transaction; who writes has locked the run's row.
"""

from __future__ import annotations

from psycopg.rows import DictRow

from tenure.database.connect import Connection
from tenure.errors import NotFound
from tenure.work import claims
from tenure.work import events as e

JOURNAL_CHANNEL = "tenure_journal"
"""NOTIFY with the run's id at every append, for those who follow it."""
OWNER_CHANNEL = "tenure_owner"
"""NOTIFY with the run's id when somebody else wrote something that the run's worker must see."""
SUMMARY_CHARS_MAX = 4000


async def lock(connection: Connection, run_id: str) -> DictRow:
    """The run's `id` and `state`; nobody else writes to it before the transaction ends. Raises `NotFound`."""
    found = await connection.execute("select id, state from runs where id = %s for update", (run_id,))
    return there(await found.fetchone(), run_id)


def there(row: DictRow | None, run_id: str) -> DictRow:
    if row is None:
        raise NotFound(f"There is no run {run_id[:60]!r}.", hint="`tenure runs list` shows them.")
    return row


async def write(
    connection: Connection, run_id: str, *events: e.AnyEvent, state: str | None = None, over: bool = False
) -> None:
    """Appends; the row's `state` and question change with it."""
    await connection.execute(
        """
        with run as (
            update runs set
                last_seq = last_seq + %(count)s,
                state = coalesce(%(state)s, state),
                question = case when %(state)s::text is null then question end,
                finished_at = case when %(over)s then clock_timestamp() else finished_at end
            where id = %(run)s returning last_seq - %(count)s as base
        ), added as (
            insert into journal (run_id, seq, at, kind, body)
            select %(run)s, run.base + entry.number, clock_timestamp(), entry.kind, entry.body::jsonb
            from run, unnest(%(kinds)s::text[], %(bodies)s::text[]) with ordinality as entry (kind, body, number)
        )
        select pg_notify(%(channel)s, %(run)s)
        """,
        {
            "run": run_id,
            "count": len(events),
            "state": state,
            "over": over,
            "kinds": [event.kind for event in events],
            "bodies": [e.encode(event) for event in events],
            "channel": JOURNAL_CHANNEL,
        },
    )


async def queue(connection: Connection, run_id: str) -> None:
    """Has a worker claim it soon."""
    await claims.spawn(connection, run_id)


async def queue_again(connection: Connection, run_id: str) -> None:
    """Has a worker claim a parked run soon. One that was to be looked at when a question expires has a task already."""
    if not await claims.wake_suspended(connection, run_id):
        await queue(connection, run_id)


async def wake(connection: Connection, run_id: str) -> None:
    """Tells the run's worker that something was written, or has one claim it that was suspended."""
    await connection.execute("select pg_notify(%s, %s)", (OWNER_CHANNEL, run_id))
    await claims.wake_suspended(connection, run_id)


async def tell_parent(connection: Connection, run_id: str, outcome: str, summary: str = "") -> None:
    """Writes into the journal of the run of which `run_id` is a sub-goal, if it is one, that it is over."""
    found = await connection.execute(
        "select body->>'parent' as parent from journal where run_id = %s and seq = 1", (run_id,)
    )
    row = await found.fetchone()
    if row is None or not row["parent"]:
        return
    found = await connection.execute("select state from runs where id = %s for update", (row["parent"],))
    parent = await found.fetchone()
    if parent is None or parent["state"] not in ("queued", "running", "parked"):
        return
    ended = e.SubGoalEnded(run=run_id, outcome=outcome, summary=summary[:SUMMARY_CHARS_MAX])
    await write(connection, row["parent"], ended)
    await wake(connection, row["parent"])
