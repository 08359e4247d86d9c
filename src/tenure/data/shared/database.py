"""One shared database that this server holds: its PostgreSQL, its doors into offices, and when it may sleep."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg

from tenure.data.database import Statements
from tenure.data.pump import LogIn, Pump
from tenure.data.shared.models import PORT, DatabaseRecord, DatabaseView, Limits
from tenure.data.shared.roles import RoleWanted, disconnect, role_of
from tenure.data.shared.server import SharedServer
from tenure.data.shared.template import DATABASE
from tenure.data.shared.watch import Watch
from tenure.errors import Forbidden, TenureError
from tenure.offices.neighbours import Neighbour, Served
from tenure.postgres.client import Connection
from tenure.settings import Settings
from tenure.use import Flow, Use

SLEEP_AFTER_S = 300.0
"""A database that nobody uses for so long stops. Its next use starts it, within some 50 ms."""
CONNECTED_SLEEP_AFTER_S = 3600.0
"""The same while idle connections are open, which break then."""
MATCH_EVERY_S = 5.0
MATCH_USED_S = 60.0


class SharedDatabase:
    """`grants` says what is granted of it now; `grant_room` lets its volume hold more than its limit, see `OfficeServer`."""

    def __init__(
        self,
        settings: Settings,
        record: DatabaseRecord,
        volume: Path,
        grants: Callable[[], Awaitable[Sequence[RoleWanted]]],
        grant_room: Callable[[int], Awaitable[None]],
    ) -> None:
        self.record, self.volume = record, volume
        self.use = Use()
        self.server = SharedServer(settings, record, volume, grants, grant_room)
        self.watch = Watch(self.server)
        self._grants = grants
        self._matched_at = -MATCH_EVERY_S
        self._doors: dict[str, set[Pump]] = {}

    # --- what it is now ------------------------------------------------------------------------------------------------
    async def state(self) -> str:
        return "awake" if await self.server.cluster.is_running() else "asleep"

    async def view(self, size_bytes: int | None = None) -> DatabaseView:
        record = self.record
        return DatabaseView(
            record.name,
            await self.state(),
            record.host,
            record.limits,
            record.created_at,
            record.origin,
            record.backup,
            size_bytes,
            self.connections,
        )

    @property
    def connections(self) -> int:
        """From offices, now."""
        return sum(pump.connections for pumps in self._doors.values() for pump in pumps)

    @property
    def may_sleep(self) -> bool:
        """Whether nobody would miss it, if it runs."""
        return self.use.idle_s >= (CONNECTED_SLEEP_AFTER_S if self.connections else SLEEP_AFTER_S)

    def limit(self, limits: Limits) -> None:
        """Its limits are others from now on. Its roles have yet to be matched."""
        self.record = replace(self.record, limits=limits)
        self.server.limits = limits
        for pump in [pump for pumps in self._doors.values() for pump in pumps]:
            pump.connections_max = limits.connections

    def is_to_be_matched(self) -> bool:
        """Whether tables may have been made anew since it was matched: somebody used it, and it is some time ago."""
        now = time.monotonic()
        if self.use.idle_s > MATCH_USED_S or now < self._matched_at + MATCH_EVERY_S:
            return False
        self._matched_at = now
        return True

    # --- statements ----------------------------------------------------------------------------------------------------
    async def statements(self, agent: str | None = None) -> Statements:
        """As the owner, or as an agent with what was granted to it. Raises `Forbidden` when nothing was."""
        if agent is not None:
            await self._need_grant(agent)
        role = None if agent is None else role_of(agent)
        return Statements(self.server, self.server.cluster.log_file, self.use, role)

    async def _need_grant(self, agent: str) -> None:
        if not any(one.agent == agent for one in await self._grants()):
            raise Forbidden(
                f"{agent} has no grant to the database {self.record.name}.",
                hint=f"The owner can give it one: `tenure db grant {self.record.name} {agent} read`.",
            )

    @contextlib.asynccontextmanager
    async def connection(self, timeout_s: float) -> AsyncGenerator[Connection]:
        """As the owner; the database is in use meanwhile. Closed at the end."""
        with self.use.during():
            connection = await self.server.connect(timeout_s)
            try:
                yield connection
            finally:
                connection.close()

    # --- doors ---------------------------------------------------------------------------------------------------------
    async def serve(self, agent: str, path: Path, use: Use) -> Door:
        """Listens at `path` for the programs of one office, which are logged in as its role, whatever they say. The office is in
        `use` while they work."""

        async def ensure_started() -> None:
            await self._need_grant(agent)
            await self.server.ensure_started()

        pump = Pump(
            self.server.cluster.socket,
            ensure_started,
            use=Both(self.use, use),
            ready=lambda: self.server.is_open,
            log_in=LogIn(role_of(agent), DATABASE),
            connections_max=self.record.limits.connections,
        )
        await pump.serve(path)
        self._doors.setdefault(agent, set()).add(pump)
        return Door(pump, self._doors.setdefault(agent, set()))

    def neighbour(self, agent: str) -> Neighbour:
        """As a host of the agent's office."""

        async def serve(path: Path, use: Use) -> Served:
            return await self.serve(agent, path, use)

        return Neighbour(self.record.host, PORT, serve)

    async def hang_up(self, agent: str) -> None:
        """Nobody of the agent's is connected any more, nor gets in by the doors that were open until now."""
        for pump in self._doors.pop(agent, set()):
            await pump.close()
        if self.server.is_open:
            with contextlib.suppress(psycopg.Error, TenureError):  # it stops just now
                async with self.server.roles() as roles:
                    await disconnect(roles.superuser, role_of(agent))

    async def close(self) -> None:
        """Closes all doors; PostgreSQL runs on (it may be adopted). Idempotent."""
        await self.watch.close()
        for pumps in self._doors.values():
            for pump in list(pumps):
                await pump.close()
        self._doors.clear()

    async def stop(self) -> None:
        """Until its next use."""
        await self.server.stop()


@dataclass(frozen=True)
class Door:
    """What serves one socket of an office's doorway."""

    pump: Pump
    among: set[Pump]

    async def close(self) -> None:
        self.among.discard(self.pump)
        await self.pump.close()


@dataclass(frozen=True)
class Both:
    """A connection from an office to a database keeps both in use."""

    database: Use
    office: Use

    def flow(self) -> BothFlow:
        return BothFlow((self.database.flow(), self.office.flow()))


@dataclass(frozen=True)
class BothFlow:
    flows: tuple[Flow, Flow]

    def asked(self) -> None:
        for flow in self.flows:
            flow.asked()

    def answered(self) -> None:
        for flow in self.flows:
            flow.answered()

    def closed(self) -> None:
        for flow in self.flows:
            flow.closed()
