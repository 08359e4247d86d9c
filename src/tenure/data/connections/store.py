"""Connections' rows in the control database (table `connections`). No secret is in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from psycopg.errors import UniqueViolation
from psycopg.types.json import Jsonb

from tenure.data.connections.targets import Auth, Kind, Target, Tls
from tenure.database.connect import ControlDatabase
from tenure.errors import AlreadyExists, NotFound

_COLUMNS = "name, id, target, private, ca, created_at"


@dataclass(frozen=True)
class Connection:
    """A row."""

    name: str
    id: str
    """Of this one and no later one of the same name; its secret is kept under it."""
    target: Target
    private: bool
    """Whether it may lead to this machine and its networks."""
    ca: str
    """Certificates (PEM) that the other end's is checked with; empty: what this machine trusts."""
    created_at: datetime

    @property
    def host(self) -> str:
        """How an office calls it."""
        return self.name + self.target.inside[0]

    @property
    def port(self) -> int:
        return self.target.inside[1]


class ConnectionStore:
    """Rows in, rows out; no other module names the table. Raises `ServerUnreachable` while PostgreSQL is away."""

    def __init__(self, database: ControlDatabase) -> None:
        self._database = database

    async def add(self, name: str, new_id: str, target: Target, *, private: bool, ca: str) -> Connection:
        """Raises `AlreadyExists`."""
        try:
            row = await self._database.fetch_one(
                f"INSERT INTO connections (name, id, target, private, ca) VALUES (%s, %s, %s, %s, %s) RETURNING {_COLUMNS}",
                (name, new_id, Jsonb(asdict(target)), private, ca),
            )
        except UniqueViolation:
            raise AlreadyExists(
                f"There is a connection named {name} already.",
                hint=f"Choose another name, or delete it first: `tenure connection delete {name}`.",
            ) from None
        assert row is not None
        return _connection(row)

    async def get(self, name: str) -> Connection:
        """Raises `NotFound`."""
        row = await self._database.fetch_one(f"SELECT {_COLUMNS} FROM connections WHERE name = %s", (name,))
        if row is None:
            raise NotFound(
                f"There is no connection named {name[:60]!r}.", hint="`tenure connection list` shows those there are."
            )
        return _connection(row)

    async def all(self) -> Sequence[Connection]:
        """By name."""
        return [
            _connection(row) for row in await self._database.fetch(f"SELECT {_COLUMNS} FROM connections ORDER BY name")
        ]

    async def remove(self, name: str) -> None:
        await self._database.execute("DELETE FROM connections WHERE name = %s", (name,))


def _connection(row: Mapping[str, Any]) -> Connection:
    said: dict[str, Any] = dict(row["target"])
    said |= {"kind": Kind(said["kind"]), "tls": Tls(said["tls"]), "auth": Auth(said["auth"])}
    return Connection(row["name"], row["id"], Target(**said), row["private"], row["ca"], row["created_at"])
