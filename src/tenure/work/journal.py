"""The journal: append-only, numbered without gaps, and written only by who holds the run.

The fence is compared in the statement that appends: the claim's row is locked (so that it cannot be failed or taken over
meanwhile), the run's row gives the number and takes the state that the events imply, the events are inserted. No claim,
no row, no event: `LeaseLost`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import errors as pg

from tenure.channels import inbox
from tenure.database.connect import Connection, ControlDatabase
from tenure.errors import LeaseLost
from tenure.faultpoints import reach
from tenure.work import claims, owner
from tenure.work import events as e
from tenure.work.thoughts import Question

EVENTS_MAX = 200_000
DEADLOCK_TRIES = 5

_APPEND = """
    with held as (
        select task_id from absurd.r_work
        where run_id = %(fence)s and state = 'running' and claim_expires_at > clock_timestamp()
        for share
    ), run as (
        update runs set
            last_seq = last_seq + %(count)s,
            state = coalesce(%(state)s, state),
            question = case when %(state)s is null then question else %(question)s end,
            started_at = coalesce(started_at, clock_timestamp()),
            finished_at = case when %(over)s then clock_timestamp() else finished_at end
        where id = %(run)s and task_id = (select task_id from held) and state in ('queued', 'running', 'parked')
        returning last_seq - %(count)s as base
    ), added as (
        insert into journal (run_id, seq, at, kind, body, fence)
        select %(run)s, run.base + entry.number, clock_timestamp(), entry.kind, entry.body::jsonb, %(fence)s
        from run, unnest(%(kinds)s::text[], %(bodies)s::text[]) with ordinality as entry (kind, body, number)
        returning seq, at
    )
    select seq, at, pg_notify('tenure_journal', %(run)s) from added order by seq
"""


@dataclass(frozen=True)
class RunRow:
    """What events imply for the run's row; `state` None leaves it as it is."""

    state: str | None = None
    question: str | None = None
    over: bool = False


def implied_row(events: tuple[e.AnyEvent, ...]) -> RunRow:
    """The run's row after `events`. Pure."""
    row = RunRow()
    for event in events:
        match event:
            case e.RunClaimed():
                row = RunRow("running")
            case e.Parked():
                row = RunRow("parked", event.question)
            case e.RunSucceeded():
                row = RunRow("succeeded", over=True)
            case e.RunFailed():
                row = RunRow("failed", over=True)
            case e.RunCancelled():
                row = RunRow("cancelled", over=True)
            case _:
                pass
    return row


async def load(database: ControlDatabase, run_id: str, *, after: int = 0, limit: int = EVENTS_MAX) -> list[e.Record]:
    """The run's records with `seq > after`, in order; none for a run that does not exist."""
    found = await database.fetch(
        "select seq, at, kind, body from journal where run_id = %s and seq > %s order by seq limit %s",
        (run_id, after, limit),
    )
    return [e.Record(row["seq"], row["at"], e.decode(row["kind"], row["body"])) for row in found]


class Journal:
    """One run's journal, written under one claim."""

    def __init__(self, database: ControlDatabase, run_id: str, fence: UUID) -> None:
        self._database = database
        self._run_id = run_id
        self._fence = fence

    async def load(self, after: int = 0) -> list[e.Record]:
        return await load(self._database, self._run_id, after=after)

    async def append(self, *events: e.AnyEvent) -> list[e.Record]:
        """Commits `events`, all or none. Raises `LeaseLost`, and `ServerUnreachable` when the database went away: then they may
        or may not have been written, and only the journal can tell."""
        return await self.append_all([events])

    async def append_all(self, groups: Sequence[tuple[e.AnyEvent, ...]]) -> list[e.Record]:
        """As `append`, for what several wrote at the same time: one after the other, in one transaction."""
        events = tuple(event for group in groups for event in group)
        with _points(*groups):
            for left in reversed(range(DEADLOCK_TRIES)):
                try:
                    async with self._database.connection() as connection:
                        return await self._append(connection, events)
                except (pg.DeadlockDetected, pg.SerializationFailure):
                    if not left:
                        raise
        raise AssertionError("unreachable")

    async def end(
        self,
        event: e.RunSucceeded | e.RunFailed | e.RunCancelled | e.Parked,
        agent: str,
        summary: str = "",
        *,
        seen_seq: int | None = None,
    ) -> bool:
        """Writes the last event and gives the claim back, in one transaction; a question also goes to the inbox, and the end to
        the run of which this one is a sub-goal. A run that is parked until some time is claimed again then. False, and nothing
        is written, when the journal goes on beyond `seen_seq`: an answer that came just now would be lost."""
        with _points((event,)):
            async with self._database.transaction() as connection:
                if not await self._ends_at(connection, seen_seq):
                    return False
                record = (await self._append(connection, (event,)))[0]
                if isinstance(event, e.Parked) and (event.nodes or not event.questions):
                    await inbox.leave(
                        connection,
                        agent=agent,
                        key=f"{self._run_id}.parked.{record.seq}",
                        subject=f"{self._run_id} needs an answer",
                        body=f"{event.question}\n\n{event.evidence}\n\ntenure runs resume {self._run_id} --answer …",
                        run_id=self._run_id,
                    )
                if isinstance(event, e.Parked) and event.until is not None:
                    if not await claims.suspend(connection, self._fence, event.until):
                        raise _lost(self._run_id)
                    return True
                await claims.complete(connection, self._fence)
                if not isinstance(event, e.Parked):
                    outcome = event.kind.removeprefix("run_")
                    said = event.reason if isinstance(event, e.RunFailed) else summary
                    await owner.tell_parent(connection, self._run_id, outcome, said)
        return True

    async def suspend(self, until: datetime, *, seen_seq: int | None = None) -> bool:
        """Gives the claim back until `until`. False, and it is kept, when the journal goes on beyond `seen_seq`: who wrote there
        found nothing that slept to be woken. Raises `LeaseLost`."""
        reach("journal.suspend.before")
        async with self._database.transaction() as connection:
            if not await self._ends_at(connection, seen_seq):
                return False
            if not await claims.suspend(connection, self._fence, until):
                raise _lost(self._run_id)
        reach("journal.suspend.after")
        return True

    async def _ends_at(self, connection: Connection, seq: int | None) -> bool:
        """Whether nobody wrote after `seq`; nobody can before the transaction ends."""
        found = await connection.execute("select last_seq from runs where id = %s for update", (self._run_id,))
        row = await found.fetchone()
        return seq is None or (row is not None and row["last_seq"] == seq)

    async def _append(self, connection: Connection, events: tuple[e.AnyEvent, ...]) -> list[e.Record]:
        row = implied_row(events)
        params: dict[str, Any] = {
            "fence": self._fence,
            "run": self._run_id,
            "count": len(events),
            "state": row.state,
            "question": row.question,
            "over": row.over,
            "kinds": [event.kind for event in events],
            "bodies": [e.encode(event) for event in events],
        }
        added = await (await connection.execute(_APPEND, params)).fetchall()
        if not added:
            raise _lost(self._run_id)
        for event in events:
            if isinstance(event, e.Asked):
                await self._leave_question(connection, event.question)
        return [e.Record(new["seq"], new["at"], event) for new, event in zip(added, events, strict=True)]

    async def _leave_question(self, connection: Connection, question: Question) -> None:
        """In the inbox of the run's agent, with how to answer."""
        found = await connection.execute("select agent from runs where id = %s", (self._run_id,))
        row = await found.fetchone()
        options = f"\n\nOne of: {', '.join(question.options)}" if question.options else ""
        whom = f"For {question.to}: " if question.to else ""
        await inbox.leave(
            connection,
            agent=row["agent"] if row else "",
            key=f"{self._run_id}.asked.{question.id}",
            subject=f"{whom}{self._run_id} {'wants to go on' if question.approval else 'has a question'}",
            body=f"{question.text}\n\n{question.evidence}{options}\n\ntenure answer {question.id} …",
            run_id=self._run_id,
        )


def _lost(run_id: str) -> LeaseLost:
    return LeaseLost(f"This worker's claim on {run_id} has lapsed.")


class _points:
    """The fault points around one journal write."""

    def __init__(self, *groups: tuple[e.AnyEvent, ...]) -> None:
        firsts = [events[0] for events in groups]
        self._names = ["/".join(part for part in (one.kind, str(getattr(one, "node", ""))) if part) for one in firsts]

    def __enter__(self) -> None:
        for name in self._names:
            reach(f"journal.append.before/{name}")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            for name in self._names:
                reach(f"journal.append.after/{name}")
