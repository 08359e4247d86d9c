"""Shared buckets' rows in the control database (table `buckets`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.errors import UniqueViolation

from tenure.database.connect import ControlDatabase
from tenure.errors import AlreadyExists, NotFound

CREATING, THERE, DELETING = "creating", "there", "deleting"
_COLUMNS = "name, quota_bytes, backend, stage, created_at"


@dataclass(frozen=True)
class BucketRecord:
    """`backend` is an address of somebody else's object storage; empty: a volume of ours, of at most `quota_bytes`."""

    name: str
    quota_bytes: int
    backend: str
    stage: str
    created_at: datetime


class SharedBucketStore:
    """Rows in, rows out; no other module names the table. Raises `ServerUnreachable` while the control database is away."""

    def __init__(self, database: ControlDatabase) -> None:
        self._database = database

    async def add(self, name: str, quota_bytes: int, backend: str) -> BucketRecord:
        """A new row in stage "creating". Raises `AlreadyExists`."""
        try:
            row = await self._database.fetch_one(
                f"INSERT INTO buckets (name, quota_bytes, backend, stage) VALUES (%s, %s, %s, %s) RETURNING {_COLUMNS}",
                (name, quota_bytes, backend, CREATING),
            )
        except UniqueViolation:
            raise AlreadyExists(
                f"There is a shared bucket named {name} already.",
                hint=f"Choose another name, or delete it first: `tenure bucket delete {name}`.",
            ) from None
        assert row is not None
        return _record(row)

    async def find(self, name: str) -> BucketRecord | None:
        """None also for one that is being made or deleted."""
        row = await self._database.fetch_one(
            f"SELECT {_COLUMNS} FROM buckets WHERE name = %s AND stage = %s", (name, THERE)
        )
        return None if row is None else _record(row)

    async def get(self, name: str) -> BucketRecord:
        """Raises `NotFound`."""
        found = await self.find(name)
        if found is None:
            raise NotFound(
                f"There is no shared bucket named {name[:60]!r}.",
                hint="`tenure bucket list` shows those there are; `tenure bucket create` makes one.",
            )
        return found

    async def all(self, *, unfinished: bool = False) -> Sequence[BucketRecord]:
        """By name; with `unfinished` also those that are being made or deleted."""
        rows = await self._database.fetch(
            f"SELECT {_COLUMNS} FROM buckets WHERE %s OR stage = %s ORDER BY name", (unfinished, THERE)
        )
        return [_record(row) for row in rows]

    async def set_stage(self, name: str, stage: str) -> None:
        await self._database.execute("UPDATE buckets SET stage = %s WHERE name = %s", (stage, name))

    async def set_quota(self, name: str, quota_bytes: int) -> None:
        await self._database.execute("UPDATE buckets SET quota_bytes = %s WHERE name = %s", (quota_bytes, name))

    async def remove(self, name: str) -> None:
        await self._database.execute("DELETE FROM buckets WHERE name = %s", (name,))


def _record(row: Mapping[str, Any]) -> BucketRecord:
    return BucketRecord(row["name"], row["quota_bytes"], row["backend"], row["stage"], row["created_at"])
