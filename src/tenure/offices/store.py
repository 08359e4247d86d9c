"""Offices' rows in the control database (table `agents`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from psycopg.errors import UniqueViolation
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool

from tenure.errors import AlreadyExists, NotFound
from tenure.offices.models import Limits, OfficeRecord

_COLUMNS = "name, number, image, limits, egress, stage, created_at"


class OfficeStore:
    """Rows in, rows out; no other module names the table."""

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self._pool = pool

    async def add(self, name: str, image: str, limits: Limits, egress: Sequence[str]) -> OfficeRecord:
        """A new row in stage "creating". Raises `AlreadyExists`."""
        try:
            async with self._pool.connection() as connection:
                cursor = await connection.execute(
                    f"INSERT INTO agents (name, image, limits, egress, stage) VALUES (%s, %s, %s, %s, 'creating') "
                    f"RETURNING {_COLUMNS}",
                    (name, image, Jsonb(asdict(limits)), Jsonb(list(egress))),
                )
                row = await cursor.fetchone()
        except UniqueViolation:
            raise AlreadyExists(
                f"There is an agent named {name} already.",
                hint=f"Choose another name, or delete it first: `tenure agent delete {name}`.",
            ) from None
        assert row is not None
        return _record(row)

    async def get(self, name: str) -> OfficeRecord:
        """Raises `NotFound`, also for an office that is being deleted."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(f"SELECT {_COLUMNS} FROM agents WHERE name = %s", (name,))
            row = await cursor.fetchone()
        if row is None or row[5] == "deleting":
            raise NotFound(
                f"There is no agent named {name[:60]!r}.",
                hint="`tenure agent list` shows the agents there are; `tenure agent create` makes one.",
            )
        return _record(row)

    async def all(self, *, with_deleting: bool = False) -> list[OfficeRecord]:
        """All offices by name."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                f"SELECT {_COLUMNS} FROM agents WHERE %s OR stage <> 'deleting' ORDER BY name", (with_deleting,)
            )
            return [_record(row) for row in await cursor.fetchall()]

    async def set_stage(self, name: str, stage: str) -> None:
        async with self._pool.connection() as connection:
            await connection.execute("UPDATE agents SET stage = %s WHERE name = %s", (stage, name))

    async def remove(self, name: str) -> None:
        async with self._pool.connection() as connection:
            await connection.execute("DELETE FROM agents WHERE name = %s", (name,))


def _record(row: Sequence[Any]) -> OfficeRecord:
    name, number, image, limits, egress, stage, created_at = row
    return OfficeRecord(name, number, image, Limits(**limits), tuple(egress), stage, created_at)
