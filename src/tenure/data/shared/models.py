"""What a shared database is, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from tenure.errors import InvalidArgument

SHARED_UID_FIRST = 3_000_000
"""Host user ids of shared databases' PostgreSQLs begin here, one per database: beyond those of offices, and of the throw-away
servers of offices, of which each office has one."""
PORT = 5432
DOMAIN = "db"
"""In a granted office a database is the host NAME.db."""

GIB = 1024**3
DISK_GB_DEFAULT = 10.0
DISK_GB_MIN = 0.25
"""What an empty database takes, and room for its log."""
DISK_GB_MAX = 100_000.0
CONNECTIONS_DEFAULT = 5
CONNECTIONS_MAX = 50
STATEMENT_TIMEOUT_S_DEFAULT = 60.0
STATEMENT_TIMEOUT_S_MAX = 24 * 3600.0
TEMP_GB_DEFAULT = 1.0
TEMP_GB_MAX = 1000.0
AGENTS_CONNECTIONS_MAX = 240
"""Of all agents together. Grants are refused beyond it, so that every agent has the connections it was promised, whatever the
others do."""


@dataclass(frozen=True)
class Limits:
    """`disk_gb` is of the database; the others are of each agent that it is granted to: open connections, seconds of a
    statement, temporary files of a connection."""

    disk_gb: float = DISK_GB_DEFAULT
    connections: int = CONNECTIONS_DEFAULT
    statement_timeout_s: float = STATEMENT_TIMEOUT_S_DEFAULT
    temp_gb: float = TEMP_GB_DEFAULT

    @property
    def disk_bytes(self) -> int:
        return int(self.disk_gb * GIB)

    @property
    def temp_kib(self) -> int:
        return int(self.temp_gb * GIB / 1024)

    @property
    def agents_max(self) -> int:
        """How many agents it can be granted to."""
        return AGENTS_CONNECTIONS_MAX // self.connections

    def checked(self) -> Limits:
        """These, when they make sense. Raises `InvalidArgument`."""
        for name, value, least, most in (
            ("disk_gb", self.disk_gb, DISK_GB_MIN, DISK_GB_MAX),
            ("connections", self.connections, 1, CONNECTIONS_MAX),
            ("statement_timeout_s", self.statement_timeout_s, 0.1, STATEMENT_TIMEOUT_S_MAX),
            ("temp_gb", self.temp_gb, 0.001, TEMP_GB_MAX),
        ):
            if not least <= value <= most:
                raise InvalidArgument(f"{name} is between {least:g} and {most:g}, not {value:g}.")
        return self


class Stage(StrEnum):
    CREATING = "creating"
    """Nobody was told that it is there: a server that starts undoes it."""
    THERE = "there"
    DELETING = "deleting"


@dataclass(frozen=True)
class BackupPlan:
    """Where a database's log is shipped to, and how it goes."""

    to: str
    """An s3:// address that ends with "/", or an absolute directory of the server's machine."""
    every_s: float
    """Between two bases: how much log a restore has to replay at most."""
    since: datetime
    line: str = ""
    """Of the archive there: a new one begins when the database's past became another (a restore), or log was lost."""
    base_at: datetime | None = None
    """Moment of the newest base."""
    archived_until: datetime | None = None
    """Everything that was committed up to here can be restored."""
    problem: str = ""
    """Why it does not go on; empty when it does."""


@dataclass(frozen=True)
class DatabaseRecord:
    """A row of `shared_databases`."""

    name: str
    number: int
    limits: Limits
    stage: Stage
    created_at: datetime
    origin: str | None = None
    """What it was made of: the id of a snapshot, or "NAME@MOMENT"."""
    backup: BackupPlan | None = None

    @property
    def uid(self) -> int:
        return SHARED_UID_FIRST + self.number

    @property
    def host(self) -> str:
        return f"{self.name}.{DOMAIN}"


class SnapshotKind(StrEnum):
    MANUAL = "manual"
    BEFORE_RESTORE = "before-restore"
    FORK = "fork"


@dataclass(frozen=True)
class SnapshotRecord:
    """A row of `shared_snapshots`."""

    id: str
    database: str
    name: str | None
    kind: SnapshotKind
    stage: str
    created_at: datetime
    exclusive_bytes: int | None = None


@dataclass(frozen=True)
class DatabaseView:
    """A database as it is now; with the attributes of `tenure.wire.databases.SharedDatabase`."""

    name: str
    state: str
    """ "awake" or "asleep"."""
    host: str
    limits: Limits
    created_at: datetime
    origin: str | None
    backup: BackupPlan | None
    size_bytes: int | None = None
    connections: int = 0
    """From offices, now."""
    port: int = PORT


@dataclass(frozen=True)
class GrantView:
    """What was granted of a database, and to whom."""

    database: str
    agent: str
    level: str
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    tables: Mapping[str, Mapping[str, Any]] | None = field(default=None)


@dataclass(frozen=True)
class Restored:
    """A restore in place: `before` undoes it."""

    database: DatabaseView
    snapshot: SnapshotRecord
    before: SnapshotRecord
