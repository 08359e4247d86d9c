"""Shared databases for tests: real PostgreSQL on directories or btrfs, agents that need no office, doors that psql can use."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from databases import new_home, template_home
from tenure import faultpoints
from tenure.data.shared.databases import Databases
from tenure.data.shared.store import DatabaseStore
from tenure.database import ControlDatabase
from tenure.errors import NotFound
from tenure.identity.grants import GrantStore
from tenure.identity.tokens import OWNER
from tenure.offices.neighbours import Served
from tenure.offices.volumes import DirectoryDriver
from tenure.offices.volumes.base import VolumeDriver
from tenure.settings import Settings
from tenure.use import Use

AGENTS = ("analyst", "clerk", "intruder")


@dataclass
class Shop:
    """An installation's shared databases. `door` opens an agent's way in, as its office has it."""

    settings: Settings
    control: ControlDatabase
    driver: VolumeDriver
    grants: GrantStore
    databases: Databases
    doors: dict[tuple[str, str], Served] = field(default_factory=dict[tuple[str, str], Served])
    changed: list[str] = field(default_factory=list[str])

    def again(self) -> Databases:
        """What a server that is started anew would make."""
        self.databases = _databases(self.settings, self.control, self.driver, self.changed)
        return self.databases

    async def door(self, agent: str, name: str = "sales") -> Path:
        """The directory of the agent's socket: libpq's `host`. Raises `NotFound` when it has no such neighbour."""
        found = {one.host: one for one in await self.databases.neighbours(agent)}
        if f"{name}.db" not in found:
            raise NotFound(f"{agent} has no neighbour {name}.db")
        place = self.settings.home / "doors" / f"{agent}-{name}"
        place.mkdir(parents=True, exist_ok=True)
        if (agent, name) in self.doors:
            await self.doors.pop((agent, name)).close()
        self.doors[agent, name] = await found[f"{name}.db"].serve(place / ".s.PGSQL.5432", Use())
        return place

    async def connect(self, agent: str, name: str = "sales", **how: str) -> psycopg.AsyncConnection[tuple[object, ...]]:
        """As psql in the agent's office."""
        place = await self.door(agent, name)
        how = {"user": "agent", "dbname": "agent", **how}
        return await psycopg.AsyncConnection.connect(host=str(place), autocommit=True, **how)  # type: ignore[arg-type]

    async def owner(self, statement: str, name: str = "sales") -> list[list[object]]:
        return (await self.databases.execute(name, statement)).rows

    async def grant(self, agent: str, level: str = "read", name: str = "sales", **how: object) -> None:
        await self.databases.grant(name, agent, level, by=OWNER, **how)  # type: ignore[arg-type]


def _databases(settings: Settings, control: ControlDatabase, driver: VolumeDriver, changed: list[str]) -> Databases:
    async def need(agent: str) -> None:
        if agent not in AGENTS:
            raise NotFound(f"There is no agent named {agent}.")

    async def tell(agent: str) -> None:
        changed.append(agent)

    return Databases(DatabaseStore(control), GrantStore(control), settings, driver, need, tell)


@asynccontextmanager
async def shop(
    control: ControlDatabase, settings: Settings | None = None, driver: VolumeDriver | None = None
) -> AsyncIterator[Shop]:
    """On a home of its own; everything is stopped at the end."""
    own = settings is None
    settings = settings or new_home()
    driver = driver or DirectoryDriver()
    changed: list[str] = []
    made = Shop(
        settings, control, driver, GrantStore(control), _databases(settings, control, driver, changed), changed=changed
    )
    if own:
        _share_template(settings)
    try:
        yield made
    finally:
        for door in made.doors.values():
            await door.close()
        await made.databases.close()
        for volume in settings.shared_dir.glob("[!.]*"):
            await driver.delete(volume)
        if own:
            shutil.rmtree(settings.home)


async def killed_at(made: Shop, point: str, nth: int, act: Callable[[Shop], Awaitable[object]]) -> None:
    """Does `act` in a process of its own, which is killed when it reaches the point; that it was is checked."""
    log = made.settings.home / "fired"
    await made.databases.let_go()

    async def in_another_process() -> None:
        async with ControlDatabase(made.control.dsn) as control:
            other = Shop(made.settings, control, made.driver, GrantStore(control), made.databases)
            await other.again().adopt_all()
            await act(other)

    def in_a_child() -> int:
        child = os.fork()
        if not child:
            try:
                faultpoints.arm(point, nth, faultpoints.Action.KILL, log=log)
                asyncio.run(in_another_process())
            finally:
                os._exit(1)
        return os.waitpid(child, 0)[1]

    status = await asyncio.to_thread(in_a_child)  # in a thread, where no loop runs
    assert os.WIFSIGNALED(status), "it ended by itself"
    assert log.read_text().startswith(point)


def _share_template(settings: Settings) -> None:
    """The template of the session's first database serves all."""
    common = template_home() / "shared-templates"
    common.mkdir(exist_ok=True)
    settings.shared_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (settings.shared_dir / ".templates").symlink_to(common)
