"""Shared databases without PostgreSQL, for tests of what stands on them: real rules of names, grants and errors."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from tenure.data.shared.models import (
    BackupPlan,
    DatabaseView,
    GrantView,
    Limits,
    Restored,
    SnapshotKind,
    SnapshotRecord,
)
from tenure.data.shared.places import place_of
from tenure.errors import AlreadyExists, Forbidden, InternalError, InvalidArgument, NotFound
from tenure.identity.authorize import Principal, PrincipalKind
from tenure.identity.grants import Grant
from tenure.names import check_name
from tenure.postgres.client import Connection
from tenure.testing.fake_offices import FakeDatabase, FakeOffices
from tenure.work.hands import SqlResult


@dataclass
class FakeDatabases:
    """See `tenure.server.services.Databases`. Its SQL is that of `FakeDatabase`. `offices` says which agents there are."""

    offices: FakeOffices = field(default_factory=FakeOffices)
    views: dict[str, DatabaseView] = field(default_factory=dict[str, DatabaseView])
    granted: dict[tuple[str, str], GrantView] = field(default_factory=dict[tuple[str, str], GrantView])
    taken: dict[str, list[SnapshotRecord]] = field(default_factory=dict[str, list[SnapshotRecord]])
    sql: FakeDatabase = field(default_factory=FakeDatabase)

    async def create(self, name: str, limits: Mapping[str, float | None]) -> DatabaseView:
        check_name(name, "database")
        given: dict[str, Any] = {key: value for key, value in limits.items() if value is not None}
        return self._add(name, replace(Limits(), **given).checked(), None)

    def _add(self, name: str, limits: Limits, origin: str | None) -> DatabaseView:
        if name in self.views:
            raise AlreadyExists(f"There is a shared database named {name} already.")
        self.views[name] = DatabaseView(name, "awake", f"{name}.db", limits, datetime.now(UTC), origin, None, 0)
        return self.views[name]

    async def need(self, name: str) -> None:
        if name not in self.views:
            raise NotFound(f"There is no shared database named {name!r}.")

    async def get(self, name: str) -> DatabaseView:
        await self.need(name)
        return self.views[name]

    async def list(self, principal: Principal | None = None) -> Sequence[DatabaseView]:
        agent = principal.name if principal is not None and principal.kind is PrincipalKind.OFFICE else None
        return [one for name, one in self.views.items() if agent is None or (name, agent) in self.granted]

    async def delete(self, name: str) -> None:
        await self.need(name)
        del self.views[name]
        self.granted = {key: grant for key, grant in self.granted.items() if key[0] != name}

    async def wake(self, name: str) -> DatabaseView:
        self.views[name] = replace(await self.get(name), state="awake")
        return self.views[name]

    async def sleep(self, name: str) -> DatabaseView:
        self.views[name] = replace(await self.get(name), state="asleep")
        return self.views[name]

    async def limit(self, name: str, limits: Mapping[str, float | None]) -> DatabaseView:
        given: dict[str, Any] = {key: value for key, value in limits.items() if value is not None}
        view = await self.get(name)
        self.views[name] = replace(view, limits=replace(view.limits, **given).checked())
        return self.views[name]

    async def execute(
        self,
        name: str,
        statement: str,
        *,
        agent: str | None = None,
        key: str | None = None,
        rows_max: int = 1000,
        timeout_s: float = 600.0,
        read_only: bool = False,
    ) -> SqlResult:
        del timeout_s  # it is quick
        await self._need_grant(name, agent)
        return await self.sql.execute(statement, key=key, rows_max=rows_max, read_only=read_only)

    async def csv(self, name: str, statement: str, *, agent: str | None = None) -> AsyncGenerator[bytes]:
        await self._need_grant(name, agent)
        return await self.sql.csv(statement)

    async def _need_grant(self, name: str, agent: str | None) -> None:
        await self.need(name)
        if agent is not None and (name, agent) not in self.granted:
            raise Forbidden(f"{agent} has no grant to the database {name}.")

    @asynccontextmanager
    async def connection(self, name: str, timeout_s: float = 3600.0) -> AsyncGenerator[Connection]:
        del timeout_s
        await self.need(name)
        raise InternalError("A fake has no PostgreSQL.")
        yield

    async def grant(
        self,
        name: str,
        agent: str,
        level: str,
        *,
        by: Principal,
        tables: Mapping[str, str | None] | None = None,
        expires_at: datetime | None = None,
    ) -> GrantView:
        await self.need(name)
        await self.offices.need(agent)
        scope = None if tables is None else {table: {"rows": rows} for table, rows in tables.items()}
        made = GrantView(name, agent, level, str(by), datetime.now(UTC), expires_at, scope)
        self.granted[name, agent] = made
        return made

    async def revoke(self, name: str, agent: str) -> None:
        await self.need(name)
        if self.granted.pop((name, agent), None) is None:
            raise NotFound(f"office:{agent} has no grant to the database {name}.")

    async def grants(self, name: str) -> Sequence[GrantView]:
        await self.need(name)
        return [grant for (database, _), grant in sorted(self.granted.items()) if database == name]

    async def find_grant(self, principal: Principal, name: str) -> Grant | None:
        found = self.granted.get((name, principal.name))
        if found is None or principal.kind is not PrincipalKind.OFFICE:
            return None
        return Grant(principal, "database", name, found.level, Principal(PrincipalKind.OWNER), found.created_at)

    async def take_snapshot(self, name: str, snapshot: str | None = None) -> SnapshotRecord:
        await self.need(name)
        return self._take(name, snapshot, SnapshotKind.MANUAL)

    def _take(self, name: str, snapshot: str | None, kind: SnapshotKind) -> SnapshotRecord:
        made = SnapshotRecord(f"snap_{secrets.token_hex(6)}", name, snapshot, kind, "whole", datetime.now(UTC))
        self.taken.setdefault(name, []).append(made)
        return made

    async def snapshots(self, name: str) -> Sequence[SnapshotRecord]:
        await self.need(name)
        return self.taken.get(name, [])

    async def _snapshot(self, name: str, wanted: str) -> SnapshotRecord:
        for one in await self.snapshots(name):
            if wanted in (one.id, one.name):
                return one
        raise NotFound(f"{name} has no snapshot {wanted!r}.")

    async def delete_snapshot(self, name: str, snapshot: str) -> None:
        found = await self._snapshot(name, snapshot)
        self.taken[name].remove(found)

    async def restore_snapshot(self, name: str, snapshot: str) -> Restored:
        found = await self._snapshot(name, snapshot)
        return Restored(self.views[name], found, self._take(name, None, SnapshotKind.BEFORE_RESTORE))

    async def back_up(self, name: str, to: str, every_s: float) -> DatabaseView:
        place_of(to)
        plan = BackupPlan(to, every_s, datetime.now(UTC))
        self.views[name] = replace(await self.get(name), backup=plan)
        return self.views[name]

    async def back_up_now(self, name: str) -> DatabaseView:
        view = await self.get(name)
        if view.backup is None:
            raise NotFound(f"{name} is not backed up.")
        now = datetime.now(UTC)
        self.views[name] = replace(view, backup=replace(view.backup, base_at=now, archived_until=now))
        return self.views[name]

    async def back_up_no_more(self, name: str) -> None:
        if (await self.get(name)).backup is None:
            raise NotFound(f"{name} is not backed up.")
        self.views[name] = replace(self.views[name], backup=None)

    async def restore_to(self, name: str, to: datetime, new: str, source: str | None = None) -> DatabaseView:
        check_name(new, "database")
        view = await self.get(name)
        if source is None and view.backup is None:
            raise NotFound(f"{name} is not backed up.")
        if to > datetime.now(UTC):
            raise InvalidArgument("That moment has not come yet.")
        return self._add(new, view.limits, f"{name}@{to:%Y-%m-%dT%H:%M:%SZ}")

    async def fork(self, name: str, new: str, snapshot: str | None = None) -> DatabaseView:
        check_name(new, "database")
        view = await self.get(name)
        origin = await self._snapshot(name, snapshot) if snapshot else self._take(name, None, SnapshotKind.FORK)
        return self._add(new, view.limits, origin.id)
