"""Loads: what is received or fetched is kept, understood and loaded, each in a task of its own, and the row says how it goes.

A server may die at any point. What was received whole is loaded by the next one, which asks the target first whether it was;
what was not received whole has failed and may be sent again. A load that asks waits for its answer as a row and a file.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from tenure.data.ingestion import loader
from tenure.data.ingestion.evolve import question
from tenure.data.ingestion.loader import Asks, Loaded, Sessions
from tenure.data.ingestion.names import parse_table, table_of
from tenure.data.ingestion.parser import Parsers
from tenure.data.ingestion.record import LoadRecord, Target, Wanted, new_load_id
from tenure.data.ingestion.sources import Sources
from tenure.data.ingestion.spool import Spool
from tenure.data.ingestion.store import LoadStore
from tenure.errors import Conflict, ConnectionLost, InternalError, InvalidArgument, TenureError
from tenure.faultpoints import reach
from tenure.identity.authorize import Principal

UNDER_WAY_MAX = 64
"""Loads that are received, wait for a parser or run."""
ATTEMPTS_MAX = 3
"""Of a load whose server died: it may be the load that ended it."""
WAITING_MAX = timedelta(days=7)
"""For an answer: the file takes room meanwhile."""
CLOSE_TIMEOUT_S = 15.0
SOURCE_CHARS_MAX = 2000

logger = logging.getLogger(__name__)


def _now() -> datetime:
    return datetime.now(UTC)


class Loads:
    """Of all targets. `database` finds the one of a target, and raises `NotFound`."""

    def __init__(
        self,
        store: LoadStore,
        spool: Spool,
        parsers: Parsers,
        sources: Sources,
        database: Callable[[Target], Awaitable[Sessions]],
        *,
        now: Callable[[], datetime] = _now,
    ) -> None:
        self._store, self._spool, self._parsers, self._sources = store, spool, parsers, sources
        self._database, self._now = database, now
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._read: dict[str, int] = {}
        self._receiving: set[str] = set()

    # --- what there is ------------------------------------------------------------------------------------------------
    async def get(self, target: Target, load_id: str) -> LoadRecord:
        """Raises `NotFound`."""
        return self._with_progress(await self._store.get(target, load_id))

    async def need(self, target: Target) -> None:
        """Raises `NotFound` when there is no such agent or database."""
        await self._database(target)

    async def find(self, load_id: str) -> LoadRecord:
        """Of any target. Raises `NotFound`."""
        return self._with_progress(await self._store.find(load_id))

    async def list(self, target: Target | None = None, *, limit: int = 100) -> Sequence[LoadRecord]:
        """The newest first."""
        return [self._with_progress(one) for one in await self._store.of_target(target, limit)]

    def _with_progress(self, record: LoadRecord) -> LoadRecord:
        read = self._read.get(record.id)
        return record if read is None else replace(record, read_bytes=read)

    # --- beginning ----------------------------------------------------------------------------------------------------
    async def receive(
        self, target: Target, wanted: Wanted, name: str, chunks: AsyncIterator[bytes], *, by: Principal
    ) -> LoadRecord:
        """Takes a file of which `chunks` are the bytes; returns when all of it is here and its load goes on by itself. By the
        same key, the load of the first time, whatever the file is; one that was cut or may succeed now begins anew. When `chunks`
        raises, the load has failed and nothing else happened."""
        record, is_new = await self._add(target, wanted, f"upload:{name}", name, by, None)
        if not is_new:
            return record
        self._receiving.add(record.id)
        try:
            await self._fill(record, chunks)
        except BaseException as error:
            await asyncio.shield(self._fail(record.id, error))
            raise
        finally:
            self._receiving.discard(record.id)
        self._spawn(record.id, self._carry_out(record.id))
        return await self._store.get(target, record.id)

    async def fetch(
        self,
        target: Target,
        wanted: Wanted,
        source: str,
        *,
        by: Principal,
        pipeline: str | None = None,
        version: str | None = None,
    ) -> LoadRecord:
        """Begins to load what is at an address, and returns at once."""
        if len(source) > SOURCE_CHARS_MAX or not source.isprintable():
            raise InvalidArgument("That is no address of a file.")
        self._sources.check(target, source)
        record, is_new = await self._add(target, wanted, source, source, by, pipeline, version)
        if is_new:
            self._spawn(record.id, self._fetch(record, by))
        return record

    async def _add(
        self,
        target: Target,
        wanted: Wanted,
        source: str,
        name: str,
        by: Principal,
        pipeline: str | None,
        version: str | None = None,
    ) -> tuple[LoadRecord, bool]:
        wanted.check()
        await self._database(target)
        if len(self._tasks) + len(self._receiving) >= UNDER_WAY_MAX:
            raise Conflict(f"{UNDER_WAY_MAX} loads are under way.", hint="Wait until some of them are done.")
        record = LoadRecord(
            id=new_load_id(),
            target=target,
            into_table=str(parse_table(wanted.into)) if wanted.into else table_of(name),
            mode=wanted.mode,
            keys=wanted.keys,
            policy=wanted.policy,
            hints=wanted.hints,
            again=wanted.again,
            source=source,
            name=name,
            version=version,
            key=wanted.key,
            digest=None,
            state="receiving",
            allowed=wanted.policy == "allow",
            attempts=0,
            plan=None,
            size_bytes=0,
            rows_loaded=None,
            rows_rejected=None,
            columns=None,
            changes=(),
            repeats=None,
            error=None,
            pipeline=pipeline,
            created_by=str(by),
            created_at=self._now(),
            finished_at=None,
        )
        found = await self._store.add(record)
        if found.id != record.id and found.state == "failed" and (found.error or {}).get("retryable"):
            await self._store.drop_key(found.id)
            found = await self._store.add(record)
        return found, found.id == record.id

    async def _fetch(self, record: LoadRecord, by: Principal) -> None:
        async with self._sources.open(record.target, record.source, by) as found:
            await self._store.named(record.id, found.name, found.version)
            await self._fill(record, found.chunks)
        await self._carry_out(record.id)

    async def _fill(self, record: LoadRecord, chunks: AsyncIterator[bytes]) -> None:
        spooled = await self._spool.fill(record.id, self._counted(record.id, chunks))
        self._read.pop(record.id, None)
        reach(f"ingest.received/{record.into_table}")
        if not await self._store.received(record.id, spooled.digest, spooled.size_bytes):
            raise Conflict("The load was cancelled.")

    async def _counted(self, load_id: str, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            self._read[load_id] = self._read.get(load_id, 0) + len(chunk)
            yield chunk

    # --- loading ------------------------------------------------------------------------------------------------------
    async def _carry_out(self, load_id: str) -> None:
        record = await self._store.find(load_id)
        if not await self._store.begun(load_id):
            return
        sessions = await self._database(record.target)
        directory = self._spool.directory(load_id)
        plan = record.plan or await self._parsers.survey(directory, record.name, record.hints)
        reach(f"ingest.surveyed/{record.into_table}")

        def progress(read: int) -> None:
            self._read[load_id] = read

        allowed = record.allowed or record.policy == "allow"
        try:
            found = await loader.load(sessions, self._parsers, directory, plan, record.order, progress, allowed=allowed)
        except ConnectionLost:
            kept = await loader.find(sessions, record.order)
            if kept is None:
                raise
            found = kept
        await self._settle(record, found)

    async def _settle(self, record: LoadRecord, found: Loaded | Asks) -> None:
        if isinstance(found, Loaded):
            await self._store.done(record.id, found, self._now())
            await self._spool.drop(record.id)
            await self._store.prune(record.target)
        elif record.policy == "strict":
            asked = question(record.into_table, found.changes).removesuffix(" Allow it?")
            raise Conflict(
                f"{asked} Nothing was loaded.", hint="Allow it with --schema allow, or ask with --schema ask."
            )
        else:
            await self._store.asks(record.id, found.plan, [change.as_json() for change in found.changes])

    async def answer(self, target: Target, load_id: str, *, allow: bool) -> LoadRecord:
        """To what a load asks. Rejected, it is cancelled. Raises `NotFound`, `Conflict` when it asks nothing."""
        record = await self._store.get(target, load_id)
        if record.state != "waiting":
            raise Conflict(f"The load {load_id} asks nothing; it is {record.state}.")
        if not allow:
            return await self.cancel(target, load_id)
        if not self._spool.is_here(load_id):
            await self._fail(load_id, InternalError("The file of the load is gone.", hint="Send it again."))
        elif await self._store.allow(load_id):
            self._spawn(load_id, self._carry_out(load_id))
        return await self._store.get(target, load_id)

    async def cancel(self, target: Target, load_id: str) -> LoadRecord:
        """Ends a load that is not over: then nothing of it is in its table. Raises `NotFound`, `Conflict` when it is over."""
        record = await self._store.get(target, load_id)
        if record.is_over:
            raise Conflict(f"The load {load_id} is over: it is {record.state}.")
        task = self._tasks.get(load_id)
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
            record = await self._store.get(target, load_id)
            if record.state == "done":
                raise Conflict(f"The load {load_id} was done before it could be cancelled.")
        if record.digest is not None and record.state == "running":
            # Its transaction may have committed when it was told to stop.
            kept = await loader.find(await self._database(target), record.order)
            if kept is not None and kept.by == load_id:
                await self._settle(record, kept)
                raise Conflict(f"The load {load_id} was done before it could be cancelled.")
        await self._store.cancelled(load_id, self._now())
        await self._spool.drop(load_id)
        return await self._store.get(target, load_id)

    # --- beginning and end of a server ----------------------------------------------------------------------------------
    async def tidy(self) -> None:
        """For a server that starts: goes on with what a dead one had received whole, and ends the rest."""
        kept: set[str] = set()
        for one in await self._store.in_state(("receiving", "queued", "running", "waiting")):
            here = one.digest is not None and self._spool.is_here(one.id)
            if here and (one.state == "waiting" or one.attempts < ATTEMPTS_MAX):
                kept.add(one.id)
                if one.state != "waiting":
                    self._spawn(one.id, self._carry_out(one.id))
            elif one.digest is not None and one.state == "running":
                self._spawn(one.id, self._look_up(one))
            else:
                await self._store.failed(one.id, _told(_cut()), self._now())
        await self._spool.sweep(kept)

    async def _look_up(self, record: LoadRecord) -> None:
        found = await loader.find(await self._database(record.target), record.order)
        if found is None:
            raise _cut()
        await self._settle(record, found)

    async def end_forgotten(self) -> None:
        """Loads to whose question nobody gave an answer."""
        for one in await self._store.in_state(("waiting",)):
            if one.created_at + WAITING_MAX < self._now():
                error = Conflict(f"Nobody answered within {WAITING_MAX.days} days.", hint="Load it again.")
                await self._fail(one.id, error)

    async def settled(self) -> None:
        """Returns when nothing is under way."""
        while self._tasks:
            await asyncio.wait(set(self._tasks.values()))

    async def close(self) -> None:
        """Breaks off what is going on; the next server goes on with it."""
        for task in list(self._tasks.values()):
            task.cancel("closing")
        if self._tasks:
            _, left = await asyncio.wait(set(self._tasks.values()), timeout=CLOSE_TIMEOUT_S)
            if left:
                logger.warning("%d loads are left in the middle", len(left))

    def _spawn(self, load_id: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(self._kept(load_id, work))
        self._tasks[load_id] = task
        task.add_done_callback(lambda ended: self._forget(load_id, ended))

    def _forget(self, load_id: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(load_id) is task:
            del self._tasks[load_id]
        self._read.pop(load_id, None)

    async def _kept(self, load_id: str, work: Awaitable[None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise  # whoever cancelled it says what it is then
        except Exception as error:
            if not isinstance(error, TenureError):
                logger.exception("load %s", load_id)
            await self._fail(load_id, error)

    async def _fail(self, load_id: str, error: BaseException) -> None:
        with contextlib.suppress(TenureError):  # while the control database is away; `tidy` says it then
            await self._store.failed(load_id, _told(error), self._now())
        await self._spool.drop(load_id)


def _cut() -> TenureError:
    return ConnectionLost(
        "The server ended while the file was on its way; nothing of it was loaded.", hint="Send it again."
    )


def _told(error: BaseException) -> Mapping[str, Any]:
    if isinstance(error, TenureError):
        return error.to_payload()["error"]
    if isinstance(error, asyncio.CancelledError):
        return _told(_cut())
    return _told(InternalError(f"The load failed: {type(error).__name__}."))
