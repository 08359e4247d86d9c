"""Shared databases' rows in the control database (tables `shared_databases` and `shared_snapshots`)."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any

from psycopg.errors import UniqueViolation
from psycopg.types.json import Jsonb

from tenure.data.shared.models import BackupPlan, DatabaseRecord, Limits, SnapshotKind, SnapshotRecord, Stage
from tenure.database.connect import ControlDatabase
from tenure.errors import AlreadyExists, NotFound

_COLUMNS = "name, number, limits, stage, created_at, origin, backup"
_SNAPSHOT_COLUMNS = "id, database, name, kind, stage, created_at"


class DatabaseStore:
    """Rows in, rows out; no other module names the tables. Raises `ServerUnreachable` while the control database is away."""

    def __init__(self, database: ControlDatabase) -> None:
        self._database = database

    async def add(self, name: str, limits: Limits, origin: str | None = None) -> DatabaseRecord:
        """A new row in stage "creating". Raises `AlreadyExists`."""
        try:
            row = await self._database.fetch_one(
                "INSERT INTO shared_databases (name, limits, origin, stage) VALUES (%s, %s, %s, 'creating') "
                f"RETURNING {_COLUMNS}",
                (name, Jsonb(asdict(limits)), origin),
            )
        except UniqueViolation:
            raise AlreadyExists(
                f"There is a shared database named {name} already.",
                hint=f"Choose another name, or delete it first: `tenure db delete {name}`.",
            ) from None
        assert row is not None
        return _record(row)

    async def get(self, name: str) -> DatabaseRecord:
        """Raises `NotFound`, also for one that is being made or deleted."""
        row = await self._database.fetch_one(
            f"SELECT {_COLUMNS} FROM shared_databases WHERE name = %s AND stage = 'there'", (name,)
        )
        if row is None:
            raise NotFound(
                f"There is no shared database named {name[:60]!r}.",
                hint="`tenure db list` shows those there are; `tenure db create` makes one.",
            )
        return _record(row)

    async def all(self, *, unfinished: bool = False) -> list[DatabaseRecord]:
        """By name; with `unfinished` also those that are being made or deleted."""
        rows = await self._database.fetch(
            f"SELECT {_COLUMNS} FROM shared_databases WHERE %s OR stage = 'there' ORDER BY name", (unfinished,)
        )
        return [_record(row) for row in rows]

    async def set_stage(self, name: str, stage: Stage) -> None:
        await self._database.execute("UPDATE shared_databases SET stage = %s WHERE name = %s", (stage.value, name))

    async def set_limits(self, name: str, limits: Limits) -> None:
        await self._database.execute(
            "UPDATE shared_databases SET limits = %s WHERE name = %s", (Jsonb(asdict(limits)), name)
        )

    async def set_backup(self, name: str, plan: BackupPlan | None) -> None:
        value = None if plan is None else Jsonb({key: _plain(part) for key, part in asdict(plan).items()})
        await self._database.execute("UPDATE shared_databases SET backup = %s WHERE name = %s", (value, name))

    async def remove(self, name: str) -> None:
        await self._database.execute("DELETE FROM shared_databases WHERE name = %s", (name,))

    # --- snapshots -----------------------------------------------------------------------------------------------------
    async def add_snapshot(self, snapshot_id: str, database: str, name: str | None, kind: SnapshotKind) -> None:
        """A new row in stage "taking". Raises `AlreadyExists` for a name that the database has used."""
        try:
            await self._database.execute(
                "INSERT INTO shared_snapshots (id, database, name, kind) VALUES (%s, %s, %s, %s)",
                (snapshot_id, database, name, kind.value),
            )
        except UniqueViolation:
            raise AlreadyExists(
                f"{database} has a snapshot named {name} already.",
                hint=f"Choose another name, or delete it first: `tenure db delete-snapshot {database} {name}`.",
            ) from None

    async def complete_snapshot(self, snapshot_id: str) -> SnapshotRecord:
        row = await self._database.fetch_one(
            "UPDATE shared_snapshots SET stage = 'whole', created_at = clock_timestamp() WHERE id = %s "
            f"RETURNING {_SNAPSHOT_COLUMNS}",
            (snapshot_id,),
        )
        assert row is not None
        return _snapshot(row)

    async def snapshot(self, database: str, wanted: str) -> SnapshotRecord:
        """The database's whole snapshot of this id or name. Raises `NotFound`."""
        row = await self._database.fetch_one(
            f"SELECT {_SNAPSHOT_COLUMNS} FROM shared_snapshots "
            "WHERE database = %s AND (id = %s OR name = %s) AND stage = 'whole'",
            (database, wanted, wanted),
        )
        if row is None:
            raise NotFound(
                f"{database} has no snapshot {wanted[:60]!r}.",
                hint=f"`tenure db snapshots {database}` shows those it has.",
            )
        return _snapshot(row)

    async def snapshots(self, database: str, *, unfinished: bool = False) -> list[SnapshotRecord]:
        """The oldest first."""
        rows = await self._database.fetch(
            f"SELECT {_SNAPSHOT_COLUMNS} FROM shared_snapshots WHERE database = %s AND (%s OR stage = 'whole') "
            "ORDER BY created_at, id",
            (database, unfinished),
        )
        return [_snapshot(row) for row in rows]

    async def set_snapshot_deleting(self, snapshot_id: str) -> None:
        await self._database.execute("UPDATE shared_snapshots SET stage = 'deleting' WHERE id = %s", (snapshot_id,))

    async def remove_snapshot(self, snapshot_id: str) -> None:
        await self._database.execute("DELETE FROM shared_snapshots WHERE id = %s", (snapshot_id,))


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _record(row: dict[str, Any]) -> DatabaseRecord:
    return DatabaseRecord(
        name=row["name"],
        number=row["number"],
        limits=Limits(**row["limits"]),
        stage=Stage(row["stage"]),
        created_at=row["created_at"],
        origin=row["origin"],
        backup=None if row["backup"] is None else _plan(row["backup"]),
    )


def _plan(value: dict[str, Any]) -> BackupPlan:
    times = {
        key: datetime.fromisoformat(value[key]) for key in ("since", "base_at", "archived_until") if value.get(key)
    }
    told: dict[str, Any] = {**value, **times}
    return BackupPlan(**told)


def _snapshot(row: dict[str, Any]) -> SnapshotRecord:
    row["kind"] = SnapshotKind(row["kind"])
    return SnapshotRecord(**row)
