"""Rows of loads in the control database (table `loads`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from tenure.data.ingestion.loader import Loaded
from tenure.data.ingestion.plan import Plan
from tenure.data.ingestion.record import LoadRecord, State, Target, record_from
from tenure.database.connect import ControlDatabase
from tenure.errors import Conflict, NotFound

LISTED_MAX = 1000
KEPT_ROWS = 1000
"""Of each agent or database, of loads that are over and no pipeline's: a pipeline knows by its rows what it has loaded."""
_COLUMNS = (
    "id, agent, database, into_table, mode, keys, policy, hints, again, source, name, version, key, digest, state, allowed, "
    "attempts, plan, size_bytes, rows_loaded, rows_rejected, columns, changes, repeats, error, pipeline, created_by, "
    "created_at, finished_at"
)
_OF = "agent IS NOT DISTINCT FROM %s AND database IS NOT DISTINCT FROM %s"


class LoadStore:
    """Rows in, rows out; no other module names the table. Raises `ServerUnreachable` while PostgreSQL is away."""

    def __init__(self, database: ControlDatabase) -> None:
        self._database = database

    async def add(self, record: LoadRecord) -> LoadRecord:
        """By the same key of a target there is one: the first."""
        row = await self._database.fetch_one(
            "INSERT INTO loads (id, agent, database, into_table, mode, keys, policy, hints, again, source, name, version, key, "
            "state, pipeline, created_by, created_at) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) "
            f"ON CONFLICT (coalesce(agent, ''), coalesce(database, ''), key) DO NOTHING RETURNING {_COLUMNS}",
            (
                record.id,
                record.agent,
                record.database,
                record.into_table,
                record.mode,
                list(record.keys),
                record.policy,
                Jsonb(asdict(record.hints)),
                record.again,
                record.source,
                record.name,
                record.version,
                record.key,
                record.state,
                record.pipeline,
                record.created_by,
                record.created_at,
            ),
        )
        if row is not None:
            return record_from(row)
        found = await self.by_key(record.target, record.key or "")
        if found is None:
            raise Conflict("The load of this key was deleted this moment.", hint="Try again.")
        return found

    async def by_key(self, target: Target, key: str) -> LoadRecord | None:
        return await self._one(f"{_OF} AND key = %s", (*_of(target), key))

    async def drop_key(self, load_id: str) -> None:
        """Its key is free for another attempt."""
        await self._database.execute("UPDATE loads SET key = NULL WHERE id = %s", (load_id,))

    async def get(self, target: Target, load_id: str) -> LoadRecord:
        """Raises `NotFound`."""
        found = await self._one(f"{_OF} AND id = %s", (*_of(target), load_id))
        if found is None:
            raise NotFound(f"There is no load {load_id[:40]!r} of {target}.", hint="`tenure loads list` shows them.")
        return found

    async def find(self, load_id: str) -> LoadRecord:
        """Of any target. Raises `NotFound`."""
        found = await self._one("id = %s", (load_id,))
        if found is None:
            raise NotFound(f"There is no load {load_id[:40]!r}.", hint="`tenure loads list` shows them.")
        return found

    async def of_target(self, target: Target | None, limit: int) -> list[LoadRecord]:
        """The newest first; None: of all."""
        where, values = ("true", ()) if target is None else (_OF, _of(target))
        rows = await self._database.fetch(
            f"SELECT {_COLUMNS} FROM loads WHERE {where} ORDER BY created_at DESC, id LIMIT %s",
            (*values, min(limit, LISTED_MAX)),
        )
        return [record_from(row) for row in rows]

    async def of_pipeline(self, name: str, limit: int) -> list[LoadRecord]:
        """The newest first."""
        rows = await self._database.fetch(
            f"SELECT {_COLUMNS} FROM loads WHERE pipeline = %s ORDER BY created_at DESC, id LIMIT %s",
            (name, min(limit, LISTED_MAX)),
        )
        return [record_from(row) for row in rows]

    async def seen_by_pipeline(self, name: str, sources: Sequence[str]) -> set[tuple[str, str]]:
        """(source, version) of those that it has loaded, or is loading, or that failed for good."""
        rows = await self._database.fetch(
            "SELECT source, version FROM loads WHERE pipeline = %s AND source = ANY(%s) AND version IS NOT NULL "
            "AND state <> 'cancelled' AND NOT (state = 'failed' AND coalesce((error->>'retryable')::boolean, false))",
            (name, list(sources)),
        )
        return {(str(row["source"]), str(row["version"])) for row in rows}

    async def forget_pipeline(self, name: str) -> None:
        await self._database.execute("UPDATE loads SET pipeline = NULL WHERE pipeline = %s", (name,))

    async def in_state(self, states: Sequence[str]) -> list[LoadRecord]:
        rows = await self._database.fetch(
            f"SELECT {_COLUMNS} FROM loads WHERE state = ANY(%s) ORDER BY created_at", (list(states),)
        )
        return [record_from(row) for row in rows]

    # --- what becomes of one ------------------------------------------------------------------------------------------
    async def received(self, load_id: str, digest: str, size_bytes: int) -> bool:
        return await self._move(
            load_id, ("receiving",), "state = 'queued', digest = %s, size_bytes = %s", (digest, size_bytes)
        )

    async def begun(self, load_id: str) -> bool:
        return await self._move(load_id, ("queued", "running"), "state = 'running', attempts = attempts + 1", ())

    async def named(self, load_id: str, name: str, version: str | None) -> None:
        await self._database.execute(
            "UPDATE loads SET name = %s, version = coalesce(version, %s) WHERE id = %s", (name, version, load_id)
        )

    async def asks(self, load_id: str, plan: Plan, changes: Sequence[Mapping[str, Any]]) -> bool:
        values = (Jsonb(json.loads(plan.text)), Jsonb(list(changes)))
        return await self._move(load_id, ("running",), "state = 'waiting', plan = %s, changes = %s", values)

    async def allow(self, load_id: str) -> bool:
        return await self._move(load_id, ("waiting",), "state = 'queued', allowed = true", ())

    async def done(self, load_id: str, loaded: Loaded, at: datetime) -> bool:
        values = (
            loaded.rows,
            loaded.rejected,
            Jsonb([list(column) for column in loaded.columns]),
            Jsonb([{"told": change} for change in loaded.changes]),
            None if loaded.by == load_id else loaded.by,
            at,
        )
        return await self._move(
            load_id,
            ("queued", "running"),
            "state = 'done', rows_loaded = %s, rows_rejected = %s, columns = %s, changes = %s, repeats = %s, finished_at = %s, "
            "error = NULL",
            values,
        )

    async def failed(self, load_id: str, error: Mapping[str, Any], at: datetime) -> bool:
        return await self._move(
            load_id,
            ("receiving", "queued", "running", "waiting"),
            "state = 'failed', error = %s, finished_at = %s",
            (Jsonb(_storable(dict(error))), at),
        )

    async def cancelled(self, load_id: str, at: datetime) -> bool:
        return await self._move(
            load_id,
            ("receiving", "queued", "running", "waiting"),
            "state = 'cancelled', finished_at = %s",
            (at,),
        )

    async def prune(self, target: Target) -> None:
        await self._database.execute(
            f"DELETE FROM loads WHERE id IN (SELECT id FROM loads WHERE {_OF} AND pipeline IS NULL "
            "AND state IN ('done', 'failed', 'cancelled') ORDER BY created_at DESC OFFSET %s)",
            (*_of(target), KEPT_ROWS),
        )

    async def _move(self, load_id: str, states: Sequence[State], changes: str, values: tuple[Any, ...]) -> bool:
        """Whether it was in one of these states."""
        statement: Any = f"UPDATE loads SET {changes} WHERE id = %s AND state = ANY(%s)"
        return bool(await self._database.execute(statement, (*values, load_id, list(states))))

    async def _one(self, where: str, values: tuple[Any, ...]) -> LoadRecord | None:
        statement: Any = f"SELECT {_COLUMNS} FROM loads WHERE {where}"
        row = await self._database.fetch_one(statement, values)
        return None if row is None else record_from(row)


def _of(target: Target) -> tuple[str | None, str | None]:
    return target.agent or None, target.database or None


def _storable(value: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(value).replace("\\u0000", "\\ufffd")
    found: dict[str, Any] = json.loads(text.encode("utf-8", "replace"))
    return found
