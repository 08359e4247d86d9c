"""Grants: what the owner lets one principal do with something that is nobody's own, a shared database or bucket.

A grant is a row. It names a level ("read", "write", "use"), and may be narrower than that (`scope`: some tables, some rows, a
prefix) or end by itself. Levels become actions here, for the one decision point; what a scope means is its resource's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from tenure.database.connect import ControlDatabase
from tenure.errors import InvalidArgument, NotFound
from tenure.identity.authorize import Principal, Resource, principal_from

LEVELS: Mapping[str, Mapping[str, frozenset[str]]] = {
    "database": {
        "read": frozenset({"database:read", "database:connect"}),
        "write": frozenset({"database:read", "database:connect"}),
    },
    "bucket": {
        "read": frozenset({"object:read", "object:list"}),
        "write": frozenset({"object:read", "object:list", "object:write", "object:delete"}),
    },
    "connection": {"use": frozenset({"connection:connect"})},
}
"""Actions by kind of resource and level. What may be read and written in a database, PostgreSQL's own privileges say."""

_COLUMNS = "principal, kind, name, level, scope, created_by, created_at, expires_at"


@dataclass(frozen=True)
class Grant:
    """One principal's right to one thing."""

    principal: Principal
    kind: str
    name: str
    level: str
    created_by: Principal
    created_at: datetime
    scope: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Narrower than the level says; empty: all of it."""
    expires_at: datetime | None = None

    @property
    def actions(self) -> frozenset[str]:
        return LEVELS[self.kind][self.level]


def granted(resource: Resource, grant: Grant | None) -> Resource:
    """The resource as the principal of `grant` may be judged on it: `authorize` lets it do what the grant says."""
    actions = grant.actions if grant is not None else frozenset[str]()
    return Resource(resource.kind, resource.owner, resource.name, granted=actions)


class GrantStore:
    """Rows in, rows out; no other module names the table. A grant that has expired is none. All raise `ServerUnreachable` while
    PostgreSQL is away."""

    def __init__(self, database: ControlDatabase) -> None:
        self._database = database

    async def grant(
        self,
        principal: Principal,
        kind: str,
        name: str,
        level: str,
        *,
        by: Principal,
        scope: Mapping[str, Any] | None = None,
        expires_at: datetime | None = None,
    ) -> Grant:
        """Takes the place of an earlier one of the same principal to the same thing. Raises `InvalidArgument` for a level that
        there is not. The caller has checked that both exist, and carries it out."""
        if level not in LEVELS[kind]:
            raise InvalidArgument(
                f"{level!r} is not a level of access to a {kind}.", hint=f"One of: {', '.join(LEVELS[kind])}."
            )
        row = await self._database.fetch_one(
            "INSERT INTO grants (principal, kind, name, level, scope, created_by, expires_at) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (principal, kind, name) DO UPDATE SET level = excluded.level, "
            "scope = excluded.scope, created_by = excluded.created_by, created_at = now(), expires_at = excluded.expires_at "
            f"RETURNING {_COLUMNS}",
            (str(principal), kind, name, level, Jsonb(dict(scope or {})), str(by), expires_at),
        )
        assert row is not None
        return _grant(row)

    async def revoke(self, principal: Principal, kind: str, name: str) -> Grant:
        """The one that was. Raises `NotFound`."""
        row = await self._database.fetch_one(
            f"DELETE FROM grants WHERE principal = %s AND kind = %s AND name = %s RETURNING {_COLUMNS}",
            (str(principal), kind, name),
        )
        if row is None:
            raise NotFound(f"{principal} has no grant to the {kind} {name}.")
        return _grant(row)

    async def find(self, principal: Principal, kind: str, name: str) -> Grant | None:
        row = await self._database.fetch_one(
            f"SELECT {_COLUMNS} FROM grants WHERE principal = %s AND kind = %s AND name = %s "
            "AND (expires_at IS NULL OR expires_at > now())",
            (str(principal), kind, name),
        )
        return None if row is None else _grant(row)

    async def of_principal(self, principal: Principal, kind: str | None = None) -> Sequence[Grant]:
        """By kind and name."""
        rows = await self._database.fetch(
            f"SELECT {_COLUMNS} FROM grants WHERE principal = %s AND (%s::text IS NULL OR kind = %s) "
            "AND (expires_at IS NULL OR expires_at > now()) ORDER BY kind, name",
            (str(principal), kind, kind),
        )
        return [_grant(row) for row in rows]

    async def of_resource(self, kind: str, name: str) -> Sequence[Grant]:
        """By principal."""
        rows = await self._database.fetch(
            f"SELECT {_COLUMNS} FROM grants WHERE kind = %s AND name = %s "
            "AND (expires_at IS NULL OR expires_at > now()) ORDER BY principal",
            (kind, name),
        )
        return [_grant(row) for row in rows]

    async def take_expired(self) -> Sequence[Grant]:
        """Those whose time is over, which are gone with this call: what stands on them is to be ended."""
        rows = await self._database.fetch(f"DELETE FROM grants WHERE expires_at <= now() RETURNING {_COLUMNS}")
        return [_grant(row) for row in rows]

    async def forget_principal(self, principal: Principal) -> Sequence[Grant]:
        """Those it had, when it is deleted."""
        rows = await self._database.fetch(
            f"DELETE FROM grants WHERE principal = %s RETURNING {_COLUMNS}", (str(principal),)
        )
        return [_grant(row) for row in rows]

    async def forget_resource(self, kind: str, name: str) -> None:
        await self._database.execute("DELETE FROM grants WHERE kind = %s AND name = %s", (kind, name))


def _grant(row: Mapping[str, Any]) -> Grant:
    return Grant(
        principal_from(row["principal"]),
        row["kind"],
        row["name"],
        row["level"],
        principal_from(row["created_by"]),
        row["created_at"],
        row["scope"],
        row["expires_at"],
    )
