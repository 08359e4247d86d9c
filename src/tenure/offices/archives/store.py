"""Rows of exports and of their schedules in the control database (tables `exports`, `export_schedules`)."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from tenure.database.connect import ControlDatabase
from tenure.errors import NotFound
from tenure.offices.archives.schedule import ExportRecord, ScheduleRecord

LISTED_MAX = 1000
KEPT_ROWS = 100
"""Per agent, of exports that failed or went to clients."""
_COLUMNS = "id, agent, base, destination, state, key_id, scheduled, size_bytes, error, created_at, finished_at"
_SCHEDULE = "agent, destination, every_s, full_every, chains_kept, key_id, next_at, failures, last_error, created_at"


class ExportStore:
    """Rows in, rows out; no other module names the tables. Raises `ServerUnreachable` while PostgreSQL is away."""

    def __init__(self, database: ControlDatabase) -> None:
        self._database = database

    # --- exports ------------------------------------------------------------------------------------------------------
    async def add(self, record: ExportRecord) -> None:
        await self._database.execute(
            "INSERT INTO exports (id, agent, base, destination, key_id, scheduled, created_at) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s)",
            (
                record.id,
                record.agent,
                record.base,
                record.destination,
                record.key_id,
                record.scheduled,
                record.created_at,
            ),
        )

    async def done(self, export_id: str, size_bytes: int, at: datetime) -> None:
        await self._database.execute(
            "UPDATE exports SET state = 'done', size_bytes = %s, finished_at = %s WHERE id = %s",
            (size_bytes, at, export_id),
        )

    async def failed(self, export_id: str, error: str, at: datetime) -> None:
        await self._database.execute(
            "UPDATE exports SET state = 'failed', error = %s, finished_at = %s WHERE id = %s AND state = 'running'",
            (error.replace("\0", ""), at, export_id),
        )

    async def get(self, agent: str, export_id: str) -> ExportRecord:
        """Raises `NotFound`."""
        row = await self._database.fetch_one(
            f"SELECT {_COLUMNS} FROM exports WHERE agent = %s AND id = %s", (agent, export_id)
        )
        if row is None:
            raise NotFound(
                f"{agent} has no export {export_id[:40]!r}.", hint=f"`tenure agent exports {agent}` shows those it has."
            )
        return ExportRecord(**row)

    async def of_agent(self, agent: str) -> list[ExportRecord]:
        """The newest `LISTED_MAX`, the oldest of them first."""
        rows = await self._database.fetch(
            f"SELECT {_COLUMNS} FROM exports WHERE agent = %s ORDER BY created_at DESC, id LIMIT %s",
            (agent, LISTED_MAX),
        )
        return [ExportRecord(**row) for row in reversed(rows)]

    async def scheduled_of(self, agent: str) -> list[ExportRecord]:
        """All of the schedule that are done and have not been deleted, the oldest first."""
        rows = await self._database.fetch(
            f"SELECT {_COLUMNS} FROM exports WHERE agent = %s AND scheduled AND state = 'done' ORDER BY created_at, id",
            (agent,),
        )
        return [ExportRecord(**row) for row in rows]

    async def running(self) -> list[ExportRecord]:
        return [
            ExportRecord(**row)
            for row in await self._database.fetch(f"SELECT {_COLUMNS} FROM exports WHERE state = 'running'")
        ]

    async def ids(self) -> set[str]:
        return {str(row["id"]) for row in await self._database.fetch("SELECT id FROM exports")}

    async def remove(self, export_id: str) -> None:
        await self._database.execute("DELETE FROM exports WHERE id = %s", (export_id,))

    async def prune(self, agent: str) -> list[str]:
        """Forgets the oldest of those that failed or went to clients; returns their ids."""
        rows = await self._database.fetch(
            "DELETE FROM exports WHERE id IN (SELECT id FROM exports WHERE agent = %s AND state <> 'running' "
            "AND NOT (state = 'done' AND destination <> '') ORDER BY created_at DESC OFFSET %s) RETURNING id",
            (agent, KEPT_ROWS),
        )
        return [str(row["id"]) for row in rows]

    # --- schedules ----------------------------------------------------------------------------------------------------
    async def put_schedule(self, record: ScheduleRecord) -> None:
        """Replaces the agent's schedule."""
        values: dict[str, Any] = vars(record)
        await self._database.execute(
            f"""
            INSERT INTO export_schedules ({_SCHEDULE})
            VALUES (%(agent)s, %(destination)s, %(every_s)s, %(full_every)s, %(chains_kept)s, %(key_id)s, %(next_at)s,
                    %(failures)s, %(last_error)s, %(created_at)s)
            ON CONFLICT (agent) DO UPDATE SET destination = excluded.destination, every_s = excluded.every_s,
                full_every = excluded.full_every, chains_kept = excluded.chains_kept, key_id = excluded.key_id,
                next_at = excluded.next_at, failures = 0, last_error = NULL, created_at = excluded.created_at
            """,
            values,
        )

    async def schedule_of(self, agent: str) -> ScheduleRecord | None:
        row = await self._database.fetch_one(f"SELECT {_SCHEDULE} FROM export_schedules WHERE agent = %s", (agent,))
        return None if row is None else ScheduleRecord(**row)

    async def schedules(self) -> list[ScheduleRecord]:
        """The one due first at the front."""
        rows = await self._database.fetch(f"SELECT {_SCHEDULE} FROM export_schedules ORDER BY next_at, agent")
        return [ScheduleRecord(**row) for row in rows]

    async def reschedule(self, one: ScheduleRecord, next_at: datetime, failures: int, error: str | None) -> None:
        """Does nothing when another one has taken its place."""
        await self._database.execute(
            "UPDATE export_schedules SET next_at = %s, failures = %s, last_error = %s WHERE agent = %s AND created_at = %s",
            (next_at, failures, None if error is None else error.replace("\0", ""), one.agent, one.created_at),
        )

    async def remove_schedule(self, agent: str) -> bool:
        """Whether there was one."""
        return bool(await self._database.execute("DELETE FROM export_schedules WHERE agent = %s", (agent,)))
