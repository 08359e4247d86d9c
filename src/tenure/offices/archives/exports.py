"""Exports and imports of offices: to a client, to S3, and by a schedule.

An export is a row from its beginning on; the row says how it ended. What lies on this machine for it (a copy of the office
while it is read, the index that the next one needs) is known by its id, so `tidy` finds what a dead server left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from tenure.archive_head import HEAD_BYTES_MAX, SUFFIX, Head, new_id, put_in_order, read_head
from tenure.errors import ArchiveError, Conflict, InvalidArgument, NotFound, TenureError
from tenure.export_keys import Key, read_key, write_key
from tenure.offices.archives import s3, schedule
from tenure.offices.archives.arrival import Arrival
from tenure.offices.archives.frames import RawRead
from tenure.offices.archives.inflow import Inflow
from tenure.offices.archives.making import Making, Places, making, sweep
from tenure.offices.archives.s3 import Place
from tenure.offices.archives.schedule import ExportRecord, ScheduleRecord
from tenure.offices.archives.store import ExportStore
from tenure.offices.models import Limits, OfficeView
from tenure.offices.office import Office, OfficeParts

AT_ONCE_MAX = 8
"""Exports and imports together: each keeps a processor busy."""
SCHEDULED_AT_ONCE_MAX = 2
CHAIN_MAX = schedule.FULL_EVERY_MAX
ERROR_CHARS_MAX = 500
CLOSE_TIMEOUT_S = 15.0
"""A server that ends does not wait longer for an S3 that is silent."""

logger = logging.getLogger(__name__)


class _Offices(Protocol):
    async def office(self, name: str) -> Office: ...
    async def refuse_taken(self, name: str) -> None: ...
    async def take_in(
        self, name: str, volume: Path, *, image: str, limits: Limits, egress: Sequence[str], origin: str
    ) -> OfficeView: ...


class _Inbox(Protocol):
    async def create(self, *, agent: str | None, subject: str, body: str, key: str | None = None) -> Any: ...


class _History(Protocol):
    """The agent's runs, as an archive carries them."""

    async def open_of(self, agent: str) -> Sequence[tuple[str, str, int]]: ...
    async def lines_of(self, agent: str) -> list[bytes]: ...
    async def take_in(self, agent: str, journal: bytes) -> int: ...


@dataclass(frozen=True)
class Imported:
    """What an import brought: `runs` counts those that were over and are known here now."""

    agent: OfficeView
    origin: str
    written_bytes: int
    runs: int


@dataclass(frozen=True)
class Wanted:
    """A schedule as somebody asks for it."""

    destination: str
    every_s: float
    key: Key | None = None
    full_every: int = schedule.FULL_EVERY_DEFAULT
    chains_kept: int = schedule.CHAINS_KEPT_DEFAULT


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
        inbox: _Inbox,
        image: Path,
        *,
        check_egress: Callable[[Sequence[str]], Sequence[str]] = tuple,
        now: Callable[[], datetime] = _now,
    ) -> None:
        """`image` is this machine's own: an import takes the configuration of databases from it."""
        self._store, self._offices, self._history, self._inbox = store, offices, history, inbox
        self._volumes, self._places = parts.volumes, Places(parts.settings)
        self._image, self._check_egress, self._now = image, check_egress, now
        self._going_on: dict[str, Making] = {}
        self._importing = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._scheduled = asyncio.Semaphore(SCHEDULED_AT_ONCE_MAX)
        self._due_now: set[str] = set()

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

    async def schedule_of(self, agent: str) -> ScheduleRecord | None:
        await self._offices.office(agent)
        return await self._store.schedule_of(agent)

    # --- making one ---------------------------------------------------------------------------------------------------
    async def send(
        self, agent: str, *, since: str | None = None, key: Key | None = None
    ) -> tuple[ExportRecord, AsyncGenerator[bytes]]:
        """An export for a client: its row, and its bytes as they are made; close them when they are not read to the end. With
        `since` only what changed since that export (by id). Raises `NotFound`, `Conflict` when too many are being made."""
        record = await self._begin(agent, "", since=since, key=key)
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
        record = await self._begin(agent, place, since=since, key=key)
        self._spawn(self._told(self._upload(record, key)))
        return record

    async def _begin(
        self,
        agent: str,
        destination: Place | str,
        *,
        since: str | None,
        key: Key | None,
        scheduled: bool = False,
    ) -> ExportRecord:
        await self._offices.office(agent)
        if len(self._going_on) + self._importing >= AT_ONCE_MAX and not scheduled:
            raise Conflict(f"{AT_ONCE_MAX} exports and imports are going on.", hint="Wait until one of them is done.")
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
    async def _carried_out(self, record: ExportRecord, key: Key | None) -> AsyncGenerator[Making]:
        """The row says afterwards how it ended: done when all of it was read, failed otherwise."""
        made: Making | None = None
        try:
            office = await self._offices.office(record.agent)
            runs = {run: seq for run, _, seq in await self._history.open_of(record.agent)}
            journal = await self._history.lines_of(record.agent)
            head = Head(record.id, record.agent, record.created_at, record.base)
            async with making(self._places, self._volumes, office, head, runs, journal, key) as made:
                self._going_on[record.id] = made
                yield made
                if not made.whole:
                    raise Conflict("The export was broken off.")
            office.log.write("office", f"exported as {record.id} ({made.sent_bytes} bytes)")
        except BaseException as error:
            await asyncio.shield(self._spawn(self._note_failure(record, error)))
            raise
        else:
            await asyncio.shield(self._spawn(self._store.done(record.id, made.sent_bytes, self._now())))
            await self._forget_old(record.agent)
        finally:
            self._going_on.pop(record.id, None)

    async def _note_failure(self, record: ExportRecord, error: BaseException) -> None:
        self._places.index(record.id).unlink(missing_ok=True)
        with contextlib.suppress(TenureError):  # while the control database is away; `tidy` says it then
            await self._store.failed(record.id, _reason(error), self._now())

    async def _upload(self, record: ExportRecord, key: Key | None) -> None:
        async with self._carried_out(record, key) as made:
            await self._in_thread(made, lambda: s3.upload(s3.parse_place(record.destination), made))

    async def _in_thread(self, made: Making, work: Callable[[], Any]) -> Any:
        """`work` reads of `made`. A cancelled caller waits until it has stopped: what it reads is removed then."""
        task = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            made.stop()
            await _ended(task)
            raise

    async def _forget_old(self, agent: str) -> None:
        with contextlib.suppress(TenureError):
            for export_id in await self._store.prune(agent):
                self._places.index(export_id).unlink(missing_ok=True)

    # --- bringing back ------------------------------------------------------------------------------------------------
    async def receive(self, name: str, chunks: AsyncIterator[bytes]) -> Imported:
        """A new agent `name`, asleep, of archives that a client sends: see `tenure.offices.archives.inflow`. Raises
        `InvalidName`, `AlreadyExists`, `ArchiveError`, `DiskFull`."""
        await self._offices.refuse_taken(name)
        inflow = Inflow(chunks, asyncio.get_running_loop())
        try:
            key = await asyncio.to_thread(inflow.begin)
            return await self._arrive(name, inflow.archives(), key, inflow.abort)
        finally:
            inflow.abort()

    async def fetch(self, sources: Sequence[str], name: str | None = None, key: Key | None = None) -> Imported:
        """As `receive`, of archives in S3; those that the last of `sources` continues are looked for beside it. Without `name`
        the agent is called as it was."""
        places = [s3.parse_place(source) for source in sources]
        if not places or any(place.is_directory for place in places):
            raise InvalidArgument("An import needs the address of an archive: s3://BUCKET/KEY.")
        heads = [await asyncio.to_thread(_head_of, place) for place in places]
        places, heads = await asyncio.to_thread(_whole_chain, places, heads)
        order = put_in_order([(head.id, head.base) for head in heads])
        name = heads[order[0]].agent if name is None else name
        await self._offices.refuse_taken(name)
        return await self._arrive(name, (s3.Reader(places[place]).read for place in order), key, lambda: None)

    async def _arrive(
        self, name: str, archives: Iterable[RawRead], key: Key | None, abort: Callable[[], None]
    ) -> Imported:
        if len(self._going_on) + self._importing >= AT_ONCE_MAX:
            raise Conflict(f"{AT_ONCE_MAX} exports and imports are going on.", hint="Wait until one of them is done.")
        self._importing += 1
        volume = self._places.arrivals / new_id()
        arrival = Arrival(volume, self._image, self._check_egress)
        try:
            self._places.settings.snapshots_dir.mkdir(exist_ok=True)
            self._places.settings.snapshots_dir.chmod(0o700)
            await self._volumes.create_empty(volume)
            volume.chmod(0o700)
            task = asyncio.ensure_future(asyncio.to_thread(arrival.unpack, _counted(archives), key))
            try:
                manifest = await asyncio.shield(task)
            except asyncio.CancelledError:
                abort()
                await _ended(task)
                raise
            agent = await self._offices.take_in(
                name,
                volume,
                image=manifest.image,
                limits=manifest.limits,
                egress=manifest.egress,
                origin=manifest.id,
            )
        finally:
            self._importing -= 1
            await asyncio.shield(self._spawn(self._volumes.delete(volume)))
        runs = await self._history.take_in(name, arrival.journal)
        return Imported(agent, manifest.id, arrival.written_bytes, runs)

    # --- schedules ----------------------------------------------------------------------------------------------------
    async def keep(self, agent: str, wanted: Wanted) -> ScheduleRecord:
        """From now on an export is made every so often; the first at once. Replaces what was asked for before. Raises
        `InvalidArgument`, `StorageError` when nothing can be read at the destination."""
        await self._offices.office(agent)
        _check_wanted(wanted)
        place = s3.parse_place(wanted.destination)
        if not place.is_directory:
            place = Place(place.bucket, place.key + "/")
        await asyncio.to_thread(s3.listed, place)  # the address and the credentials, before anybody trusts in them
        if wanted.key is not None:
            await asyncio.to_thread(self._keep_key, wanted.key)
        now = self._now()
        record = ScheduleRecord(
            agent=agent,
            destination=str(place),
            every_s=wanted.every_s,
            full_every=wanted.full_every,
            chains_kept=wanted.chains_kept,
            key_id=wanted.key.id if wanted.key else None,
            next_at=now,
            failures=0,
            last_error=None,
            created_at=now,
        )
        await self._store.put_schedule(record)
        return record

    async def stop(self, agent: str) -> None:
        """No more exports by schedule; what was made stays where it is. Raises `NotFound` when there is no schedule."""
        await self._offices.office(agent)
        if not await self._store.remove_schedule(agent):
            raise NotFound(
                f"{agent} has no schedule of exports.", hint=f"`tenure agent exports {agent}` shows what it has."
            )

    def _keep_key(self, key: Key) -> None:
        self._places.keys.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._places.keys / key.id
        if not path.exists():
            fresh = path.with_name(path.name + ".new")
            fresh.unlink(missing_ok=True)
            write_key(fresh, key)
            fresh.replace(path)

    async def run_due(self) -> None:
        """Begins the exports that are due. To be called every few seconds; does not wait for them."""
        for one in await self._store.schedules():
            if one.next_at <= self._now() and one.agent not in self._due_now:
                self._due_now.add(one.agent)
                self._spawn(self._told(self._run_scheduled(one)))

    async def settled(self) -> None:
        """Returns when nothing is being made by schedule or to S3."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _run_scheduled(self, one: ScheduleRecord) -> None:
        try:
            async with self._scheduled:
                await self._make_scheduled(one)
        except Exception as error:
            failures = one.failures + 1
            reason = _reason(error)
            next_at = schedule.after_failure(self._now(), failures, one.every_s)
            await self._store.reschedule(one, next_at, failures, reason)
            if failures == schedule.FAILURES_TOLD:
                await self._tell(one, reason)
            raise
        else:
            next_at = schedule.after_success(one.next_at, self._now(), one.every_s)
            await self._store.reschedule(one, next_at, 0, None)
            await self._delete_outdated(one)
        finally:
            self._due_now.discard(one.agent)

    async def _make_scheduled(self, one: ScheduleRecord) -> None:
        key = None if one.key_id is None else await asyncio.to_thread(read_key, self._places.keys / one.key_id)
        base = schedule.base_for_next(await self._store.scheduled_of(one.agent), one)
        if base is not None and not self._places.index(base).exists():
            base = None
        record = await self._begin(one.agent, s3.parse_place(one.destination), since=base, key=key, scheduled=True)
        await self._upload(record, key)
        for earlier in (await self._store.scheduled_of(one.agent))[:-1]:  # the next one continues this one
            self._places.index(earlier.id).unlink(missing_ok=True)

    async def _delete_outdated(self, one: ScheduleRecord) -> None:
        """What cannot be deleted now is tried again after the next export."""
        for old in schedule.outdated(await self._store.scheduled_of(one.agent), one):
            await asyncio.to_thread(s3.delete, s3.parse_place(old.destination))
            await self._store.remove(old.id)
            self._places.index(old.id).unlink(missing_ok=True)

    async def _tell(self, one: ScheduleRecord, reason: str) -> None:
        made = await self._store.scheduled_of(one.agent)
        last = f"The last copy is of {made[-1].created_at:%Y-%m-%d %H:%M} UTC." if made else "There is no copy yet."
        await self._inbox.create(
            agent=None,
            subject=f"The copy of {one.agent} elsewhere fails",
            body=f"{one.failures + 1} exports of {one.agent} to {one.destination} in a row have failed: {reason}\n{last}\n"
            f"They go on being tried. `tenure agent exports {one.agent}` shows them.",
            key=f"exports-fail-{one.agent}-{made[-1].id if made else one.created_at.isoformat()}",
        )

    # --- beginning and end --------------------------------------------------------------------------------------------
    async def tidy(self) -> None:
        """For a server that starts: what a dead one was making has failed, and what it left is removed."""
        for one in await self._store.running():
            await self._store.failed(one.id, "The server ended while it was made.", self._now())
            if one.scheduled:  # it may have come whole; its name is its own, so nothing else goes
                place = s3.parse_place(one.destination)
                self._spawn(self._told(asyncio.to_thread(s3.delete, place)))
        for directory in (self._places.copies, self._places.arrivals):
            await sweep(self._volumes, directory)
        known = await self._store.ids()
        for path in self._places.indexes.glob("*") if self._places.indexes.is_dir() else ():
            if path.suffix != ".index" or path.stem not in known:
                path.unlink()

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

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _told(self, work: Awaitable[None]) -> None:
        """Of what nobody waits for, only the log and the rows tell."""
        try:
            await work
        except TenureError as error:
            logger.warning("export: %s", error)
        except Exception:
            logger.exception("export")


async def _ended(task: asyncio.Future[Any]) -> None:
    """Returns when it is over, however often the caller is cancelled meanwhile (a server does so again and again)."""
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    with contextlib.suppress(Exception, asyncio.CancelledError):
        task.result()


def _reason(error: BaseException) -> str:
    if isinstance(error, TenureError):
        return error.message[:ERROR_CHARS_MAX]
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "It was broken off."
    return f"{type(error).__name__}: {error}"[:ERROR_CHARS_MAX]


def _check_wanted(wanted: Wanted) -> None:
    for value, least, most, what in (
        (wanted.every_s, schedule.EVERY_S_MIN, schedule.EVERY_S_MAX, "The interval in seconds"),
        (wanted.full_every, 1, schedule.FULL_EVERY_MAX, "The length of a chain"),
        (wanted.chains_kept, 1, schedule.CHAINS_KEPT_MAX, "The number of chains that are kept"),
    ):
        if not least <= value <= most:
            raise InvalidArgument(f"{what} is between {least:g} and {most:g}.")


def _counted(archives: Iterable[RawRead]) -> Iterator[RawRead]:
    for count, read in enumerate(archives):
        if count >= CHAIN_MAX:
            raise ArchiveError(f"A chain has at most {CHAIN_MAX} archives.")
        yield read


def _head_of(place: Place) -> Head:
    data = s3.beginning(place, HEAD_BYTES_MAX + 8)
    at = 0

    def read(size: int) -> bytes:
        nonlocal at
        at += size
        return data[at - size : at]

    return read_head(read)


def _whole_chain(places: list[Place], heads: list[Head]) -> tuple[list[Place], list[Head]]:
    """With those that are missing, as far as they lie beside the first."""
    ids = {head.id for head in heads}
    missing = [head.base for head in heads if head.base is not None and head.base not in ids]
    if not missing:
        return places, heads
    beside = [place for place in s3.listed(places[0].directory) if place.key.endswith(SUFFIX) and place not in places]
    places, heads = [*places], [*heads]
    while missing and len(places) < CHAIN_MAX:
        wanted = missing.pop()
        # Ours have their id in their name; others are looked into.
        for place in sorted(beside, key=lambda one: wanted not in one.key):
            try:
                head = _head_of(place)
            except ArchiveError:
                continue
            if head.id == wanted:
                places.append(place)
                heads.append(head)
                beside.remove(place)
                if head.base is not None and head.base not in {one.id for one in heads}:
                    missing.append(head.base)
                break
    return places, heads
