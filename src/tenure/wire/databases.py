"""Shared databases: `/v1/databases…`. SQL on them goes by `tenure.wire.SqlRequest` and `SqlResult`."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import AwareDatetime, Field

from tenure.wire import Answer, Request

TABLES_MAX = 500
TABLE_CHARS_MAX = 200
ROWS_CHARS_MAX = 4000
EVERY_S_MIN, EVERY_S_MAX = 60.0, 30 * 86_400.0


class SharedDatabaseRequest(Request):
    """`POST /v1/databases`. What is left out is as `tenure db create` shows."""

    name: str = Field(max_length=100)
    disk_gb: float | None = Field(default=None, gt=0, le=100_000, allow_inf_nan=False)
    connections: int | None = Field(default=None, ge=1, le=50)
    """That one agent may hold."""
    statement_timeout_s: float | None = Field(default=None, gt=0, le=86_400, allow_inf_nan=False)
    temp_gb: float | None = Field(default=None, gt=0, le=1000, allow_inf_nan=False)
    """Temporary files of one connection."""


class SharedLimitsRequest(Request):
    """`PUT …/limits`: what is left out stays."""

    disk_gb: float | None = Field(default=None, gt=0, le=100_000, allow_inf_nan=False)
    connections: int | None = Field(default=None, ge=1, le=50)
    statement_timeout_s: float | None = Field(default=None, gt=0, le=86_400, allow_inf_nan=False)
    temp_gb: float | None = Field(default=None, gt=0, le=1000, allow_inf_nan=False)


class SharedLimits(Answer):
    disk_gb: float
    connections: int
    statement_timeout_s: float
    temp_gb: float


class SharedBackup(Answer):
    """How a database's continuous backup goes."""

    to: str
    every_s: float
    since: datetime
    base_at: datetime | None = None
    archived_until: datetime | None = None
    """Whatever was committed up to here can be restored; null before the first base."""
    problem: str = ""


class SharedDatabase(Answer):
    name: str
    state: Literal["awake", "asleep"]
    host: str
    """How a granted office reaches it."""
    port: int
    limits: SharedLimits
    created_at: datetime
    origin: str | None = None
    backup: SharedBackup | None = None
    size_bytes: int | None = None
    """Null in lists."""
    connections: int = 0
    """From offices, now."""


class SharedDatabaseList(Answer):
    databases: list[SharedDatabase]


class TableScope(Request):
    """`rows` is an SQL condition on the table's columns: only rows for which it is true can be read or written."""

    rows: str | None = Field(default=None, min_length=1, max_length=ROWS_CHARS_MAX)


class DatabaseGrantRequest(Request):
    """`PUT …/grants/AGENT`: takes the place of an earlier one."""

    level: Literal["read", "write"]
    tables: dict[str, TableScope] | None = Field(default=None, max_length=TABLES_MAX)
    """By "table" or "schema.table"; null: all of the database, and what will be made in it."""
    expires_at: AwareDatetime | None = None


class DatabaseGrant(Answer):
    database: str
    agent: str
    level: Literal["read", "write"]
    tables: dict[str, TableScope] | None = None
    created_by: str
    created_at: datetime
    expires_at: datetime | None = None


class DatabaseGrantList(Answer):
    grants: list[DatabaseGrant]


class SharedSnapshotRequest(Request):
    name: str | None = Field(default=None, max_length=100)


class SharedSnapshot(Answer):
    id: str
    database: str
    name: str | None = None
    kind: Literal["manual", "before-restore", "fork"]
    created_at: datetime
    exclusive_bytes: int | None = None
    """In lists: what deleting it would free; null where the volume driver cannot tell."""


class SharedSnapshotList(Answer):
    snapshots: list[SharedSnapshot]


class SharedRestored(Answer):
    """`POST …/snapshots/…/restore`: restoring `before` undoes it."""

    database: SharedDatabase
    snapshot: SharedSnapshot
    before: SharedSnapshot


class SharedForkRequest(Request):
    new: str = Field(max_length=100)
    snapshot: str | None = Field(default=None, max_length=100)
    """Id or name; null: as it is now."""


class SharedBackupRequest(Request):
    """`PUT …/backup`."""

    to: str = Field(min_length=1, max_length=1000)
    """An s3:// address, or a directory of the server's machine."""
    every_s: float = Field(default=86_400.0, ge=EVERY_S_MIN, le=EVERY_S_MAX, allow_inf_nan=False)
    """Between two bases."""


class MomentRequest(Request):
    """`POST …/restore`: a new database as another was at a moment."""

    to: AwareDatetime
    new: str = Field(max_length=100)
    source: str | None = Field(default=None, max_length=1000)
    """Where its backups are; null: where the database sends them. Needed for one that was deleted."""
