"""Loads over a real PostgreSQL, in this process or in one that is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tenure.data.database import OfficeDatabase
from tenure.data.ingestion.loader import Sessions
from tenure.data.ingestion.loads import Loads
from tenure.data.ingestion.parser import Parsers
from tenure.data.ingestion.record import LoadRecord, Target, Wanted
from tenure.data.ingestion.sources import Found, Listed
from tenure.data.ingestion.spool import Spool
from tenure.data.ingestion.store import LoadStore
from tenure.database import ControlDatabase
from tenure.errors import NotFound
from tenure.faultpoints import arm_from_environment
from tenure.identity.authorize import Principal, PrincipalKind
from tenure.settings import Settings

OWNER = Principal(PrincipalKind.OWNER)
TARGET = Target(agent="analyst")


@dataclass
class Shelf:
    """A source of files in memory; what is not on it is not found."""

    files: dict[str, bytes] = field(default_factory=dict[str, bytes])

    def check(self, target: Target, source: str) -> None: ...

    @asynccontextmanager
    async def open(self, target: Target, source: str, by: Principal) -> AsyncIterator[Found]:
        if source not in self.files:
            raise NotFound(f"There is nothing at {source}.")
        yield Found(source.rpartition("/")[2], chunks_of(self.files[source]))

    async def list(self, target: Target, source: str, by: Principal) -> Sequence[Listed]:
        found = [name for name in sorted(self.files) if name.startswith(source)]
        return [Listed(name, str(hash(self.files[name]))) for name in found]


async def chunks_of(data: bytes, size: int = 64 * 1024) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


@asynccontextmanager
async def loads_over(
    control: ControlDatabase, database: OfficeDatabase, home: Path, shelf: Shelf | None = None
) -> AsyncGenerator[Loads]:
    async def sessions(target: Target) -> Sessions:
        if target != TARGET:
            raise NotFound(f"There is no {target}.")
        return database

    made = Loads(LoadStore(control), Spool(Settings(home=home)), Parsers(), shelf or Shelf(), sessions)
    try:
        yield made
    finally:
        await made.close()


async def loaded(loads: Loads, data: bytes, name: str = "data.csv", wanted: Wanted | None = None) -> LoadRecord:
    """As it is when nothing is under way."""
    made = await loads.receive(TARGET, wanted or Wanted(), name, chunks_of(data), by=OWNER)
    await loads.settled()
    return await loads.get(TARGET, made.id)


# --- a server of its own, to be killed ----------------------------------------------------------------------------------
async def serve(dsn: str, home: str, volume: str, uid: str, file: str, table: str, mode: str, keys: str) -> None:
    arm_from_environment()
    database = OfficeDatabase(Settings(home=Path(home)), "analyst", Path(volume), int(uid))
    async with ControlDatabase(dsn) as control, loads_over(control, database, Path(home)) as loads:
        wanted = Wanted(into=table, mode=mode, keys=tuple(filter(None, keys.split(","))), policy="allow")
        record = await loaded(loads, Path(file).read_bytes(), "data.csv", wanted)
        print(record.state, record.error, flush=True)


async def run_server(
    control: ControlDatabase, database: OfficeDatabase, home: Path, file: Path, fault: str, log: Path, wanted: Wanted
) -> int | None:
    """The exit status of a server that loads `file`, armed with a fault."""
    cluster = database._server.cluster  # pyright: ignore[reportPrivateUsage]
    arguments = [
        control.dsn,
        home,
        cluster.data_dir.parent,
        cluster.uid,
        file,
        wanted.into,
        wanted.mode,
        ",".join(wanted.keys),
    ]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        __file__,
        *map(str, arguments),
        env=os.environ | {"TENURE_FAULT": fault, "TENURE_FAULT_LOG": str(log)},
    )
    try:
        return await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
