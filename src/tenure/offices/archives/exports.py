"""Exports of offices, to a client and to S3.

An export is a row from its beginning on; the row says how it ended. What lies on this machine for it (a copy of the office
while it is read, the index that the next one needs) is known by its id, so `tidy` finds what a dead server left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Protocol

from tenure.archive_head import SUFFIX, Head, new_id
from tenure.errors import Conflict, NotFound, StorageError, TenureError
from tenure.export_keys import Key
from tenure.offices.archives import s3
from tenure.offices.archives.making import Making, Places, ended, making, reason_of, sweep
from tenure.offices.archives.s3 import Place
from tenure.offices.archives.schedule import ExportRecord
from tenure.offices.archives.schedules import Inbox, Schedules
from tenure.offices.archives.store import ExportStore
from tenure.offices.office import Office, OfficeParts

AT_ONCE_MAX = 8
"""Each keeps a processor busy."""
CLOSE_TIMEOUT_S = 15.0
"""A server that ends does not wait longer for an S3 that is silent."""

logger = logging.getLogger(__name__)


class _Offices(Protocol):
    async def office(self, name: str) -> Office: ...


class _History(Protocol):
    """The agent's runs, as an archive carries them."""

    async def open_of(self, agent: str) -> Sequence[tuple[str, str, int]]: ...
    async def lines_of(self, agent: str) -> list[bytes]: ...


def _now() -> datetime:
    return datetime.now(UTC)


class Exports:
    """Of all offices. Whatever names an agent raises `NotFound` when there is none."""

    def __init__(
        self,
        store: ExportStore,
        parts: OfficeParts,
        offices: _Offices,
        history: _History,
        inbox: Inbox,
        *,
        now: Callable[[], datetime] = _now,
    ) -> None:
        self._store, self._offices, self._history, self._now = store, offices, history, now
        self._volumes, self._places = parts.volumes, Places(parts.settings)
        self._going_on: dict[str, Making] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self.schedules = Schedules(self, store, self._places, inbox, now)

    # --- what there is ------------------------------------------------------------------------------------------------
    async def list(self, agent: str) -> list[ExportRecord]:
        """The oldest first."""
        await self._offices.office(agent)
        return [self._with_progress(one) for one in await self._store.of_agent(agent)]

    async def get(self, agent: str, export_id: str) -> ExportRecord:
        """Of one that is being made, `size_bytes` says how far it has come."""
        await self._offices.office(agent)
        return self._with_progress(await self._store.get(agent, export_id))

    def _with_progress(self, record: ExportRecord) -> ExportRecord:
        made = self._going_on.get(record.id)
        return record if made is None else replace(record, size_bytes=made.sent_bytes)

    async def need(self, agent: str) -> None:
        await self._offices.office(agent)

    # --- making one ---------------------------------------------------------------------------------------------------
    async def send(
        self, agent: str, *, since: str | None = None, key: Key | None = None
    ) -> tuple[ExportRecord, AsyncGenerator[bytes]]:
        """An export for a client: its row, and its bytes as they are made; close them when they are not read to the end. With
        `since` only what changed since that export (by id). Raises `NotFound`, `Conflict` when too many are being made."""
        record = await self.begin(agent, "", since=since, key=key)
        pieces = self._pieces(record, key)
        await anext(pieces)  # so that what fails at once is told as an error, and its end is seen to
        return record, pieces

    async def _pieces(self, record: ExportRecord, key: Key | None) -> AsyncGenerator[bytes]:
        async with self._carried_out(record, key) as made:
            yield b""
            pieces = iter(made)
            while True:
                piece = await self._in_thread(made, lambda: next(pieces, None))
                if piece is None:
                    break
                yield piece

    async def start(self, agent: str, to: str, *, since: str | None = None, key: Key | None = None) -> ExportRecord:
        """Begins an export to S3 (an object, or a prefix that ends with "/") and returns its row; `get` tells how it goes.
        Errors as of `send`, and `InvalidArgument` for an address that is none."""
        place = s3.parse_place(to)
        record = await self.begin(agent, place, since=since, key=key)
        self.spawn(self.upload(record, key))
        return record

    async def begin(
        self,
        agent: str,
        destination: Place | str,
        *,
        since: str | None,
        key: Key | None,
        scheduled: bool = False,
    ) -> ExportRecord:
        await self._offices.office(agent)
        if len(self._going_on) >= AT_ONCE_MAX and not scheduled:
            raise Conflict(f"{AT_ONCE_MAX} exports are being made.", hint="Wait until one of them is done.")
        if since is not None:
            await self._refuse_as_base(agent, since)
        created = self._now()
        export_id = new_id()
        if isinstance(destination, Place) and destination.is_directory:
            kind = "full" if since is None else "changes"
            destination = destination.within(f"{agent}-{created:%Y%m%dT%H%M%SZ}-{export_id}-{kind}{SUFFIX}")
        record = ExportRecord(
            id=export_id,
            agent=agent,
            base=since,
            destination=str(destination),
            state="running",
            key_id=key.id if key else None,
            scheduled=scheduled,
            size_bytes=None,
            error=None,
            created_at=created,
            finished_at=None,
        )
        await self._store.add(record)
        return record

    async def _refuse_as_base(self, agent: str, since: str) -> None:
        found = None
        with contextlib.suppress(NotFound):
            found = await self._store.get(agent, since)
        if found is None or found.state != "done":
            raise NotFound(
                f"{agent} has no finished export {since[:40]!r}.", hint="Make a whole export: leave --since out."
            )

    @contextlib.asynccontextmanager
    async def _carried_out(
        self, record: ExportRecord, key: Key | None, *, vacated: bool = False
    ) -> AsyncGenerator[Making]:
        """The row says afterwards how it ended: done when all of it was read, failed otherwise."""
        made: Making | None = None
        try:
            office = await self._offices.office(record.agent)
            runs = {run: seq for run, _, seq in await self._history.open_of(record.agent)}
            journal = await self._history.lines_of(record.agent)
            head = Head(record.id, record.agent, record.created_at, record.base)
            async with making(self._places, self._volumes, office, head, runs, journal, key, vacated=vacated) as made:
                self._going_on[record.id] = made
                yield made
                if not made.whole:
                    raise Conflict("The export was broken off.")
            office.log.write("office", f"exported as {record.id} ({made.sent_bytes} bytes)")
        except BaseException as error:
            await asyncio.shield(self._spawn(self.note_failure(record, error)))
            raise
        else:
            await asyncio.shield(self._spawn(self._store.done(record.id, made.sent_bytes, self._now())))
            await self._forget_old(record.agent)
        finally:
            self._going_on.pop(record.id, None)

    async def note_failure(self, record: ExportRecord, error: BaseException) -> None:
        """An export that was begun has failed."""
        self._places.index(record.id).unlink(missing_ok=True)
        with contextlib.suppress(TenureError):  # while the control database is away; `tidy` says it then
            await self._store.failed(record.id, reason_of(error), self._now())

    async def upload(self, record: ExportRecord, key: Key | None) -> None:
        async with self._carried_out(record, key) as made:
            await self._in_thread(made, lambda: s3.upload(s3.parse_place(record.destination), made))

    async def put_away(self, record: ExportRecord, key: Key | None, keep: Callable[[int], Awaitable[None]]) -> None:
        """As `upload`, of an office that the caller has vacated. `keep` gets the size, in bytes, of what is there whole then; the
        row says that the export is done when that has returned."""
        place = s3.parse_place(record.destination)
        async with self._carried_out(record, key, vacated=True) as made:
            await self._in_thread(made, lambda: s3.upload(place, made))
            there_bytes = await asyncio.to_thread(s3.size_bytes, place)
            if there_bytes != made.sent_bytes:
                raise StorageError(f"{place} has {there_bytes} bytes, and {made.sent_bytes} were sent.")
            await keep(made.sent_bytes)

    async def is_archived(self, agent: str) -> bool:
        return (await self._offices.office(agent)).record.archived is not None

    async def _in_thread(self, made: Making, work: Callable[[], Any]) -> Any:
        """`work` reads of `made`. A cancelled caller waits until it has stopped: what it reads is removed then."""
        task = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            made.stop()
            await ended(task)
            raise

    async def _forget_old(self, agent: str) -> None:
        with contextlib.suppress(TenureError):
            for export_id in await self._store.prune(agent):
                self._places.index(export_id).unlink(missing_ok=True)

    # --- beginning and end --------------------------------------------------------------------------------------------
    async def tidy(self) -> None:
        """For a server that starts: what a dead one was making has failed, and what it left is removed."""
        for one in await self._store.running():
            archived = None
            with contextlib.suppress(NotFound):
                archived = (await self._offices.office(one.agent)).record.archived
            if archived is not None and archived.export == one.id:
                await self._store.done(one.id, archived.size_bytes, archived.at)
                continue
            await self._store.failed(one.id, "The server ended while it was made.", self._now())
            if one.scheduled:  # it may have come whole; its name is its own, so nothing else goes
                place = s3.parse_place(one.destination)
                self.spawn(asyncio.to_thread(s3.delete, place))
        for directory in (self._places.copies, self._places.arrivals):
            await sweep(self._volumes, directory)
        known = await self._store.ids()
        for path in self._places.indexes.glob("*") if self._places.indexes.is_dir() else ():
            if path.suffix != ".index" or path.stem not in known:
                path.unlink()

    async def settled(self) -> None:
        """Returns when nothing is being made that nobody waits for."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def close(self) -> None:
        """Breaks off what is going on; schedules make it again later."""
        for made in list(self._going_on.values()):
            made.stop()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            _, left = await asyncio.wait(set(self._tasks), timeout=CLOSE_TIMEOUT_S)
            if left:
                logger.warning("%d exports are left in the middle: S3 does not answer", len(left))

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Does what nobody waits for: of its failure only the log and the rows tell."""
        return self._spawn(_told(work))

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _told(work: Awaitable[None]) -> None:
    try:
        await work
    except TenureError as error:
        logger.warning("export: %s", error)
    except Exception:
        logger.exception("export")
