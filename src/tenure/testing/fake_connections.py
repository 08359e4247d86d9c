"""Named connections and grants without a database, for tests of what stands on them. The rest is the real room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from tenure.data.connections.room import Connections
from tenure.data.connections.store import Connection, ConnectionStore
from tenure.data.connections.targets import Target
from tenure.errors import AlreadyExists, InvalidArgument, NotFound
from tenure.identity.authorize import Principal
from tenure.identity.grants import LEVELS, Grant, GrantStore
from tenure.secrets.kept import KeptSecrets


class FakeConnectionStore:
    """See `ConnectionStore`."""

    def __init__(self) -> None:
        self._rows: dict[str, Connection] = {}

    async def add(self, name: str, new_id: str, target: Target, *, private: bool, ca: str) -> Connection:
        if name in self._rows:
            raise AlreadyExists(f"There is a connection named {name} already.")
        self._rows[name] = Connection(name, new_id, target, private, ca, datetime.now(UTC))
        return self._rows[name]

    async def get(self, name: str) -> Connection:
        if name not in self._rows:
            raise NotFound(f"There is no connection named {name[:60]!r}.", hint="`tenure connection list` shows them.")
        return self._rows[name]

    async def all(self) -> Sequence[Connection]:
        return [self._rows[name] for name in sorted(self._rows)]

    async def remove(self, name: str) -> None:
        self._rows.pop(name, None)


class FakeGrantStore:
    """See `GrantStore`."""

    def __init__(self) -> None:
        self._rows: dict[tuple[Principal, str, str], Grant] = {}

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
        if level not in LEVELS[kind]:
            raise InvalidArgument(f"{level!r} is not a level of access to a {kind}.")
        made = Grant(principal, kind, name, level, by, datetime.now(UTC), dict(scope or {}), expires_at)
        self._rows[principal, kind, name] = made
        return made

    async def revoke(self, principal: Principal, kind: str, name: str) -> Grant:
        if (principal, kind, name) not in self._rows:
            raise NotFound(f"{principal} has no grant to the {kind} {name}.")
        return self._rows.pop((principal, kind, name))

    async def find(self, principal: Principal, kind: str, name: str) -> Grant | None:
        return next(
            (grant for grant in self._now() if (grant.principal, grant.kind, grant.name) == (principal, kind, name)),
            None,
        )

    async def of_principal(self, principal: Principal, kind: str | None = None) -> Sequence[Grant]:
        return [one for one in self._now() if one.principal == principal and kind in (None, one.kind)]

    async def of_resource(self, kind: str, name: str) -> Sequence[Grant]:
        return [one for one in self._now() if (one.kind, one.name) == (kind, name)]

    async def forget_resource(self, kind: str, name: str) -> None:
        for key in [key for key in self._rows if key[1:] == (kind, name)]:
            del self._rows[key]

    def end_all(self) -> None:
        """The time of every grant is over."""
        self._rows = {key: replace(one, expires_at=datetime.now(UTC)) for key, one in self._rows.items()}

    def _now(self) -> list[Grant]:
        now = datetime.now(UTC)
        return [one for one in self._rows.values() if one.expires_at is None or one.expires_at > now]


def fake_connections(directory: Path) -> Connections:
    """Its secrets lie below `directory`; nobody's log is written."""
    store, grants = cast("ConnectionStore", FakeConnectionStore()), cast("GrantStore", FakeGrantStore())
    return Connections(store, grants, KeptSecrets(directory / "kept"), lambda agent, text: None, _no_office)


async def _no_office(agent: str) -> None:
    del agent
