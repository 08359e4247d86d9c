"""Shared databases: create, find, use, grant, restore, delete. See `tenure.server.services.Databases` for who calls this."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from tenure.data.shared import moments
from tenure.data.shared.backups import Backups
from tenure.data.shared.database import SharedDatabase
from tenure.data.shared.models import (
    DatabaseRecord,
    DatabaseView,
    GrantView,
    Limits,
    Restored,
    SnapshotKind,
    SnapshotRecord,
    Stage,
)
from tenure.data.shared.places import Place, place_of
from tenure.data.shared.recovery import Recovery
from tenure.data.shared.roles import RoleWanted, check_tables, wanted_of
from tenure.data.shared.snapshots import Snapshots
from tenure.data.shared.store import DatabaseStore
from tenure.data.shared.template import OWNER
from tenure.data.shared.volumes import SharedVolumes
from tenure.errors import Conflict, InvalidArgument, NotFound, TenureError
from tenure.faultpoints import reach
from tenure.identity.authorize import Principal, PrincipalKind
from tenure.identity.grants import Grant, GrantStore
from tenure.names import check_name
from tenure.offices.neighbours import Neighbour
from tenure.offices.snapshots import to_its_end
from tenure.offices.volumes.base import VolumeDriver
from tenure.postgres.client import Connection
from tenure.settings import Settings
from tenure.work.hands import SqlResult

KIND = "database"
COPY_TIMEOUT_S = 3600.0

logger = logging.getLogger(__name__)


async def _nobody(agent: str) -> None:
    del agent


class Databases:
    """All shared databases of this installation. Every method that names one raises `NotFound` when there is none. What changes
    one goes on when its caller is cancelled."""

    def __init__(
        self,
        store: DatabaseStore,
        grants: GrantStore,
        settings: Settings,
        volumes: VolumeDriver,
        need_agent: Callable[[str], Awaitable[None]],
        changed: Callable[[str], Awaitable[None]] = _nobody,
    ) -> None:
        """`need_agent` raises `NotFound` unless there is the agent; `changed` is told whose neighbours became others."""
        self._store, self._grants, self._settings = store, grants, settings
        self._volumes = SharedVolumes(settings, volumes)
        self._snapshots = Snapshots(store, self._volumes)
        self._backups = Backups(store, self._volumes, self._snapshots)
        self._need_agent, self._changed = need_agent, changed
        self._held: dict[str, SharedDatabase] = {}
        self._turns: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """One thing at a time per database."""
        self._making = asyncio.Lock()

    # --- the installation ----------------------------------------------------------------------------------------------
    async def adopt_all(self) -> None:
        """For a server that starts: finishes or undoes what a dead one left half done, and takes over what runs."""
        for record in await self._store.all(unfinished=True):
            try:
                database = self._hold(record)
                if record.stage is not Stage.THERE:
                    await self._demolish(database)
                    continue
                await self._volumes.settle(record.name)
                await self._snapshots.tidy(record.name)
                if await database.server.cluster.is_running():
                    await database.server.ensure_started()
            except TenureError as error:
                logger.warning("adopting the database %s: %s", record.name, error)

    async def let_go(self) -> None:
        """For a server that is replaced: the databases go on."""
        await self._backups.close()
        for database in list(self._held.values()):
            await database.close()

    async def close(self) -> None:
        """For `tenure down`: all are stopped."""
        await self.let_go()
        await asyncio.gather(*(one.stop() for one in self._held.values()), return_exceptions=True)

    def _hold(self, record: DatabaseRecord) -> SharedDatabase:
        held = self._held.get(record.name)
        if held is None or held.record.number != record.number:

            async def wanted() -> Sequence[RoleWanted]:
                return await self._wanted(record.name)

            async def grant_room(extra_bytes: int) -> None:
                limit_bytes = self._held[record.name].record.limits.disk_bytes + extra_bytes
                await self._volumes.driver.set_limit(self._volumes.of(record.name), limit_bytes)

            held = SharedDatabase(self._settings, record, self._volumes.of(record.name), wanted, grant_room)
            self._held[record.name] = held
        return held

    async def _tell(self, agent: str) -> None:
        """That its neighbours became others. One that is just being deleted has none."""
        with contextlib.suppress(TenureError):
            await self._changed(agent)

    async def _database(self, name: str) -> SharedDatabase:
        held = self._held.get(name)
        if held is not None and held.record.stage is Stage.THERE:
            return held
        return self._hold(await self._store.get(name))

    async def _wanted(self, name: str) -> list[RoleWanted]:
        found = await self._grants.of_resource(KIND, name)
        return [wanted_of(one) for one in found if one.principal.kind is PrincipalKind.OFFICE]

    # --- life ------------------------------------------------------------------------------------------------------------
    async def create(self, name: str, limits: Mapping[str, float | None]) -> DatabaseView:
        """A new, empty database, awake. `limits` are those of `Limits`; None means the default. Raises `InvalidName`,
        `InvalidArgument`, `AlreadyExists`, `DiskFull`."""
        check_name(name, KIND)
        wanted = _limits(Limits(), limits)

        async def create() -> DatabaseView:
            async with self._turns[name]:
                async with self._new(name, wanted, None) as database, self._making:
                    await self._volumes.make(database.record)
                return await database.view()

        return await to_its_end(create())

    @contextlib.asynccontextmanager
    async def _new(self, name: str, limits: Limits, origin: str | None) -> AsyncGenerator[SharedDatabase]:
        """A database whose volume is made in the block; it starts, and is there, or nothing of it is left. The caller has its
        turn."""
        database = self._hold(await self._store.add(name, limits, origin))
        try:
            reach("db.added")
            yield database
            reach("db.made")
            await database.server.ensure_started()
        except BaseException:
            await asyncio.shield(self._demolish(database))
            raise
        await self._store.set_stage(name, Stage.THERE)
        database.record = replace(database.record, stage=Stage.THERE)

    async def need(self, name: str) -> None:
        """Raises `NotFound` when there is no such database."""
        await self._database(name)

    async def get(self, name: str) -> DatabaseView:
        database = await self._database(name)
        usage = await self._volumes.driver.usage(database.volume)
        return await database.view(usage.used_bytes)

    async def list(self, principal: Principal | None = None) -> Sequence[DatabaseView]:
        """By name: all, or those that were granted to an office."""
        records = await self._store.all()
        if principal is not None and principal.kind is PrincipalKind.OFFICE:
            granted = {one.name for one in await self._grants.of_principal(principal, KIND)}
            records = [record for record in records if record.name in granted]
        return [await self._hold(record).view() for record in records]

    async def delete(self, name: str) -> None:
        """With its snapshots. What was sent to where its backups are stays there."""

        async def delete() -> None:
            async with self._turns[name]:
                database = await self._database(name)
                await self._store.set_stage(name, Stage.DELETING)
                reach("db.deleting")
                await self._demolish(database)
            self._turns.pop(name, None)

        await self._database(name)
        await to_its_end(delete())

    async def _demolish(self, database: SharedDatabase) -> None:
        name = database.record.name
        granted = await self._grants.of_resource(KIND, name)
        await self._grants.forget_resource(KIND, name)
        for grant in granted:
            await self._tell(grant.principal.name)
        await database.close()
        await database.stop()
        await self._snapshots.remove_all(name)
        await self._volumes.forget(name)
        await asyncio.to_thread(database.server.cluster.log_file.unlink, missing_ok=True)
        await self._store.remove(name)
        self._held.pop(name, None)

    async def wake(self, name: str) -> DatabaseView:
        database = await self._database(name)
        database.use.touch()
        await database.server.ensure_started()
        return await database.view()

    async def sleep(self, name: str) -> DatabaseView:
        """Whoever is connected is disconnected; its next use wakes it."""
        database = await self._database(name)
        async with self._turns[name]:
            await database.watch.close()
            await database.stop()
        return await database.view()

    async def limit(self, name: str, limits: Mapping[str, float | None]) -> DatabaseView:
        """Other limits, for all that is granted; None: stays. Who is connected by a grant is disconnected when what it may do
        becomes another. Raises `InvalidArgument`, also for more connections than there are for the agents it is granted to."""

        async def limit() -> DatabaseView:
            async with self._turns[name]:
                database = await self._database(name)
                wanted = _limits(database.record.limits, limits)
                granted = await self._grants.of_resource(KIND, name)
                if len(granted) > wanted.agents_max:
                    raise InvalidArgument(
                        f"{name} is granted to {len(granted)} agents; with {wanted.connections} connections each it can be "
                        f"granted to {wanted.agents_max}."
                    )
                await self._volumes.driver.set_limit(database.volume, wanted.disk_bytes)
                await self._store.set_limits(name, wanted)
                database.limit(wanted)
                await database.server.match()
                return await database.view()

        return await to_its_end(limit())

    # --- chores ----------------------------------------------------------------------------------------------------------
    async def rest_idle(self) -> None:
        """Lets databases sleep that nobody uses; to be called every few seconds."""
        for database in list(self._held.values()):
            name = database.record.name
            if database.server.is_open and database.may_sleep and not self._turns[name].locked():
                async with self._turns[name]:
                    if database.may_sleep:
                        await database.watch.close()
                        await database.stop()

    async def ship(self) -> None:
        """Goes on with backups, in the background; to be called every second or so."""
        for database in [self._hold(record) for record in await self._store.all() if record.backup is not None]:
            self._backups.go_on(database)

    async def look(self) -> None:
        """Keeps limits that a session could lift, and grants to tables that were made anew; to be called every second or so."""
        for database in list(self._held.values()):
            if not database.server.is_open:
                continue
            if database.connections:
                await database.watch.look()
            else:  # there is nobody to look at, and its own connection would cost a process
                await database.watch.close()
            if database.server.is_scoped and database.is_to_be_matched():
                await database.server.match()

    # --- statements ------------------------------------------------------------------------------------------------------
    async def execute(self, name: str, statement: str, *, agent: str | None = None, **how: Any) -> SqlResult:
        """See `tenure.data.database.Statements.execute`, also for `how` (key, rows_max, timeout_s, read_only). As the owner, or
        as an agent with what was granted to it; raises `Forbidden` when nothing was."""
        return await (await (await self._database(name)).statements(agent)).execute(statement, **how)

    async def csv(self, name: str, statement: str, *, agent: str | None = None) -> AsyncGenerator[bytes]:
        """See `tenure.data.database.Statements.csv`."""
        return await (await (await self._database(name)).statements(agent)).csv(statement)

    @contextlib.asynccontextmanager
    async def connection(self, name: str, timeout_s: float = COPY_TIMEOUT_S) -> AsyncGenerator[Connection]:
        """As the owner, for COPY and transactions; closed at the end. Its statements end after `timeout_s`."""
        async with (await self._database(name)).connection(timeout_s) as connection:
            yield connection

    # --- grants ----------------------------------------------------------------------------------------------------------
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
        """Takes the place of an earlier one. `tables` are conditions on rows by table, None for all rows; without it all of the
        database is granted. Raises `InvalidArgument` for a table or condition that there is not, `Conflict`."""
        if expires_at is not None and expires_at <= datetime.now(UTC):
            raise InvalidArgument("The grant would be over before it begins.", hint="Say a time to come.")

        async def grant() -> GrantView:
            async with self._turns[name]:
                database = await self._database(name)
                await self._need_agent(agent)
                await self._check_room(database, agent)
                await database.server.ensure_started()
                if tables is not None:
                    async with await database.server.session(OWNER, search_path="public") as owner:
                        await check_tables(owner, tables)
                scope = {} if tables is None else {"tables": {key: {"rows": rows} for key, rows in tables.items()}}
                principal = Principal(PrincipalKind.OFFICE, agent)
                made = await self._grants.grant(principal, KIND, name, level, by=by, scope=scope, expires_at=expires_at)
                reach("db.granted")
                problems = await database.server.match()
                await self._tell(agent)
                if problems:
                    raise Conflict(
                        f"The grant is there, but not all of it could be carried out: {problems[0]}.",
                        hint="Tenure goes on trying; `tenure db grants` shows it.",
                    )
                return _grant_view(made)

        await self._database(name)
        return await to_its_end(grant())

    async def _check_room(self, database: SharedDatabase, agent: str) -> None:
        granted = {one.principal.name for one in await self._grants.of_resource(KIND, database.record.name)}
        limits = database.record.limits
        if agent not in granted and len(granted) >= limits.agents_max:
            raise Conflict(
                f"{database.record.name} is granted to {len(granted)} agents, which is the most with {limits.connections} "
                "connections for each.",
                hint=f"Give each fewer: `tenure db limits {database.record.name} --connections N`.",
            )

    async def revoke(self, name: str, agent: str) -> None:
        """Its connections end at once. Raises `NotFound` when there is no such grant."""

        async def revoke() -> None:
            async with self._turns[name]:
                ended = await self._grants.revoke(Principal(PrincipalKind.OFFICE, agent), KIND, name)
                await self.end(ended)

        await self._database(name)
        await to_its_end(revoke())

    async def end(self, grant: Grant) -> None:
        """For a grant that is no more: nobody is connected by it, and its role goes."""
        reach("db.revoked")
        agent = grant.principal.name
        await self._tell(agent)
        held = self._held.get(grant.name)
        if held is not None:
            await held.hang_up(agent)
            await held.server.match()

    async def grants(self, name: str) -> Sequence[GrantView]:
        """By agent."""
        await self._database(name)
        return [_grant_view(one) for one in await self._grants.of_resource(KIND, name)]

    async def find_grant(self, principal: Principal, name: str) -> Grant | None:
        return await self._grants.find(principal, KIND, name)

    async def neighbours(self, agent: str) -> Sequence[Neighbour]:
        """The databases that were granted to an agent, as hosts of its office; see `NeighbourSource`."""
        found: list[Neighbour] = []
        for grant in await self._grants.of_principal(Principal(PrincipalKind.OFFICE, agent), KIND):
            with contextlib.suppress(TenureError):  # it is being deleted
                database = await self._database(grant.name)
                found.append(database.neighbour(agent))
        return found

    # --- snapshots -------------------------------------------------------------------------------------------------------
    async def take_snapshot(self, name: str, snapshot: str | None = None) -> SnapshotRecord:
        """Of a database awake or asleep, as of one instant. Raises as `Snapshots.take`."""

        async def take() -> SnapshotRecord:
            async with self._turns[name]:
                return await self._snapshots.take(await self._database(name), snapshot)

        await self._database(name)
        return await to_its_end(take())

    async def snapshots(self, name: str) -> Sequence[SnapshotRecord]:
        await self._database(name)
        return await self._snapshots.list(name)

    async def delete_snapshot(self, name: str, snapshot: str) -> None:
        async def delete() -> None:
            async with self._turns[name]:
                await self._snapshots.delete(name, snapshot)

        await self._database(name)
        await to_its_end(delete())

    async def restore_snapshot(self, name: str, snapshot: str) -> Restored:
        """Puts it back to a snapshot; what was there is a snapshot itself then. Who is connected is disconnected. Grants are
        those of now, whatever they were then."""

        async def restore() -> Restored:
            async with self._turns[name]:
                database = await self._database(name)
                found = await self._store.snapshot(name, snapshot)
                await database.watch.close()
                async with self._backups.turn(name), database.server.at_rest():
                    await self._backups.begin_line(database)
                    before = await self._snapshots.take_at_rest(database, SnapshotKind.BEFORE_RESTORE)
                    await self._volumes.replace(database.record, self._volumes.snapshot_of(name, found.id))
                await database.server.ensure_started()
                return Restored(await database.view(), found, before)

        await self._database(name)
        return await to_its_end(restore())

    async def fork(self, name: str, new: str, snapshot: str | None = None) -> DatabaseView:
        """A new database that is a clone of another, with its limits: of a snapshot, or of what is there now. Nobody has a grant
        to it. Raises `InvalidName`, `AlreadyExists`, `DiskFull`."""
        check_name(new, KIND)

        async def fork() -> DatabaseView:
            first, second = sorted((name, new))  # in one order, for two forks that meet
            async with self._turns[first], self._turns[second]:
                source = await self._database(name)
                taken = await (
                    self._snapshots.take(source, kind=SnapshotKind.FORK)
                    if snapshot is None
                    else self._store.snapshot(name, snapshot)
                )
                async with self._new(new, source.record.limits, taken.id) as database:
                    await self._volumes.clone(database.record, self._volumes.snapshot_of(name, taken.id))
                return await database.view()

        if new == name:
            raise InvalidArgument("A fork has another name than what it is forked of.")
        await self._database(name)
        return await to_its_end(fork())

    # --- backups ---------------------------------------------------------------------------------------------------------
    async def back_up(self, name: str, to: str, every_s: float) -> DatabaseView:
        """From now on it is backed up continuously, and can be restored to any moment; a base is taken every `every_s`. Who is
        connected is disconnected. Raises `InvalidArgument`."""

        async def plan() -> DatabaseView:
            async with self._turns[name]:
                database = await self._database(name)
                await self._backups.plan(database, to, every_s)
                return await database.view()

        await self._database(name)
        return await to_its_end(plan())

    async def back_up_now(self, name: str) -> DatabaseView:
        """Returns when whatever was committed until now can be restored. Raises `NotFound` when it is not backed up,
        `StorageError`, `DiskFull`."""
        database = await self._database(name)
        if database.record.backup is None:
            raise NotFound(f"{name} is not backed up.", hint=f"Begin: `tenure db backup {name} --to PLACE`.")
        if database.record.backup.base_at is None:
            await self._backups.base(database)
        await self._backups.flush(database)
        return await database.view()

    async def back_up_no_more(self, name: str) -> None:
        """What was sent stays where it is. Raises `NotFound` when it is not backed up."""

        async def stop() -> None:
            async with self._turns[name]:
                await self._backups.stop(await self._database(name))

        await self._database(name)
        await to_its_end(stop())

    async def restore_to(self, name: str, to: datetime, new: str, source: str | None = None) -> DatabaseView:
        """A new database as `name` was at a moment; `name` itself is not touched, and need not be there any more when `source`
        says where its backups are. Nobody has a grant to the new one. Raises `InvalidArgument` for a moment that the backups do
        not cover, `NotFound` when there are none, `ArchiveError`, `StorageError`."""
        check_name(name, KIND)
        check_name(new, KIND)
        if to > datetime.now(UTC):
            raise InvalidArgument("That moment has not come yet.")
        place, line, limits = await self._backups_of(name, to, source)
        keys = await asyncio.to_thread(place.list, f"{name}/")
        what = moments.needed(name, moments.lines_of(name, keys, line), to, is_all=line is not None)

        async def restore() -> DatabaseView:
            async with self._turns[new]:
                async with self._new(new, limits, f"{name}@{to.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}") as database:
                    await self._volumes.make_empty(database.record)
                    await Recovery(database.server, database.volume, database.record.uid).run(place, what, to)
                    await self._volumes.driver.set_limit(database.volume, limits.disk_bytes)
                return await database.view()

        return await to_its_end(restore())

    async def _backups_of(self, name: str, to: datetime, source: str | None) -> tuple[Place, str | None, Limits]:
        """Where they are; the line that goes on, of which nothing up to `to` is missing there then, None when that is not known;
        the limits that the database has."""
        try:
            database = await self._database(name)
        except NotFound:
            if source is None:
                raise
            return await asyncio.to_thread(place_of, source), None, Limits()
        plan, limits = database.record.backup, database.record.limits
        if source is not None and (plan is None or source != plan.to):
            return await asyncio.to_thread(place_of, source), None, limits
        if plan is None:
            raise NotFound(
                f"{name} is not backed up.", hint="If its backups are somewhere all the same, say where: --from PLACE."
            )
        if plan.base_at is not None and (plan.archived_until is None or plan.archived_until <= to + moments.MARGIN):
            await self._backups.flush(database)
        return await asyncio.to_thread(place_of, plan.to), plan.line, limits


def _limits(now: Limits, wanted: Mapping[str, float | None]) -> Limits:
    given: dict[str, Any] = {key: value for key, value in wanted.items() if value is not None}
    return replace(now, **given).checked()


def _grant_view(grant: Grant) -> GrantView:
    return GrantView(
        grant.name,
        grant.principal.name,
        grant.level,
        str(grant.created_by),
        grant.created_at,
        grant.expires_at,
        grant.scope.get("tables"),
    )
