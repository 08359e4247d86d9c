"""A pipeline as its row says it is, and the rows (table `pipelines`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from tenure.data.ingestion.plan import Hints
from tenure.data.ingestion.record import Target, Wanted
from tenure.database.connect import ControlDatabase
from tenure.errors import AlreadyExists, NotFound
from tenure.triggers import times

_COLUMNS = (
    "name, agent, database, source, into_table, mode, keys, policy, hints, every_s, cron, tz, on_arrival, paused, next_at, "
    "failures, last_at, last_error, created_by, created_at"
)


@dataclass(frozen=True)
class PipelineRecord:
    name: str
    target: Target
    source: str
    into_table: str | None
    mode: str
    keys: tuple[str, ...]
    policy: str
    hints: Hints
    every_s: int | None
    cron: str | None
    tz: str
    on_arrival: bool
    paused: bool
    next_at: datetime | None
    failures: int
    last_at: datetime | None
    last_error: str | None
    created_by: str
    created_at: datetime

    @property
    def agent(self) -> str | None:
        return self.target.agent or None

    @property
    def database(self) -> str | None:
        return self.target.database or None


def wanted_by(record: PipelineRecord) -> Wanted:
    return Wanted(record.into_table, record.mode, record.keys, record.policy, record.hints)


def next_at(record: PipelineRecord, now: datetime, arrivals_every: timedelta) -> datetime | None:
    """When it is due after `now`; None: only when it is told to run. Pure. Raises `InvalidArgument` for times that are none."""
    found: list[datetime] = []
    if record.every_s is not None:
        due = times.next_after(times.check_times(times.Every(record.every_s, record.created_at)), now)
        found += [due] if due else []
    if record.cron is not None:
        due = times.next_after(times.check_times(times.Cron(record.cron, record.tz)), now)
        found += [due] if due else []
    if record.on_arrival:
        found.append(now + arrivals_every)
    return min(found, default=None)


class PipelineStore:
    """Rows in, rows out; no other module names the table. Raises `ServerUnreachable` while PostgreSQL is away."""

    def __init__(self, database: ControlDatabase) -> None:
        self._database = database

    async def add(self, one: PipelineRecord) -> None:
        """Raises `AlreadyExists`."""
        try:
            await self._database.execute(
                f"INSERT INTO pipelines ({_COLUMNS}) "
                "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
                (
                    one.name,
                    one.agent,
                    one.database,
                    one.source,
                    one.into_table,
                    one.mode,
                    list(one.keys),
                    one.policy,
                    Jsonb(asdict(one.hints)),
                    one.every_s,
                    one.cron,
                    one.tz,
                    one.on_arrival,
                    one.paused,
                    one.next_at,
                    one.failures,
                    one.last_at,
                    one.last_error,
                    one.created_by,
                    one.created_at,
                ),
            )
        except psycopg.errors.UniqueViolation:
            raise AlreadyExists(
                f"There is a pipeline {one.name} already.", hint="Delete it, or take another name."
            ) from None

    async def get(self, name: str) -> PipelineRecord:
        """Raises `NotFound`."""
        row = await self._database.fetch_one(f"SELECT {_COLUMNS} FROM pipelines WHERE name = %s", (name,))
        if row is None:
            raise NotFound(f"There is no pipeline {name[:40]!r}.", hint="`tenure pipeline list` shows them.")
        return _record(row)

    async def all(self) -> Sequence[PipelineRecord]:
        """By name."""
        return [_record(row) for row in await self._database.fetch(f"SELECT {_COLUMNS} FROM pipelines ORDER BY name")]

    async def set_paused(self, name: str, paused: bool, next_at: datetime | None) -> None:
        await self._database.execute(
            "UPDATE pipelines SET paused = %s, next_at = %s WHERE name = %s", (paused, next_at, name)
        )

    async def ran(self, name: str, at: datetime, next_at: datetime | None, failures: int, error: str | None) -> None:
        await self._database.execute(
            "UPDATE pipelines SET last_at = %s, next_at = %s, failures = %s, last_error = %s WHERE name = %s",
            (at, next_at, failures, None if error is None else error.replace("\0", ""), name),
        )

    async def delete(self, name: str) -> None:
        await self._database.execute("DELETE FROM pipelines WHERE name = %s", (name,))


def _record(row: Mapping[str, Any]) -> PipelineRecord:
    values: dict[str, Any] = dict(row)
    values["target"] = Target(values.pop("agent") or "", values.pop("database") or "")
    values |= {"keys": tuple(values["keys"]), "hints": Hints(**values["hints"])}
    return PipelineRecord(**values)
