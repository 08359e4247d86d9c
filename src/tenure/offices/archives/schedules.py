"""Copies of offices that are kept in S3: asked for, made when they are due, deleted when newer ones took their place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from tenure.errors import InvalidArgument, NotFound
from tenure.export_keys import Key, read_key, write_key
from tenure.offices.archives import s3, schedule
from tenure.offices.archives.making import Places, reason_of
from tenure.offices.archives.s3 import Place
from tenure.offices.archives.schedule import ExportRecord, ScheduleRecord
from tenure.offices.archives.store import ExportStore

AT_ONCE_MAX = 2


class _Exports(Protocol):
    async def need(self, agent: str) -> None: ...
    async def is_archived(self, agent: str) -> bool: ...
    async def begin(
        self, agent: str, destination: Place | str, *, since: str | None, key: Key | None, scheduled: bool = False
    ) -> ExportRecord: ...
    async def upload(self, record: ExportRecord, key: Key | None) -> None: ...
    def spawn(self, work: Coroutine[Any, Any, None]) -> object: ...


class Inbox(Protocol):
    async def create(self, *, agent: str | None, subject: str, body: str, key: str | None = None) -> Any: ...


@dataclass(frozen=True)
class Wanted:
    """A schedule as somebody asks for it."""

    destination: str
    every_s: float
    key: Key | None = None
    full_every: int = schedule.FULL_EVERY_DEFAULT
    chains_kept: int = schedule.CHAINS_KEPT_DEFAULT


class Schedules:
    """Of all agents."""

    def __init__(
        self, exports: _Exports, store: ExportStore, places: Places, inbox: Inbox, now: Callable[[], datetime]
    ) -> None:
        self._exports, self._store, self._places, self._inbox, self._now = exports, store, places, inbox, now
        self._turns = asyncio.Semaphore(AT_ONCE_MAX)
        self._due_now: set[str] = set()

    async def of(self, agent: str) -> ScheduleRecord | None:
        """None when there is none."""
        await self._exports.need(agent)
        return await self._store.schedule_of(agent)

    async def keep(self, agent: str, wanted: Wanted) -> ScheduleRecord:
        """From now on an export is made every so often; the first at once. Replaces what was asked for before. Raises
        `InvalidArgument`, `StorageError` when nothing can be read at the destination."""
        await self._exports.need(agent)
        _check_wanted(wanted)
        place = s3.parse_place(wanted.destination)
        if not place.is_directory:
            place = Place(place.bucket, place.key + "/")
        await asyncio.to_thread(s3.listed, place)  # the address and the credentials, before anybody trusts in them
        if wanted.key is not None:
            await asyncio.to_thread(keep_key, self._places, wanted.key)
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
        await self._exports.need(agent)
        if not await self._store.remove_schedule(agent):
            raise NotFound(
                f"{agent} has no schedule of exports.", hint=f"`tenure agent exports {agent}` shows what it has."
            )

    async def run_due(self) -> None:
        """Begins the exports that are due. To be called every few seconds; does not wait for them."""
        for one in await self._store.schedules():
            if one.next_at <= self._now() and one.agent not in self._due_now:
                self._due_now.add(one.agent)
                self._exports.spawn(self._run_scheduled(one))

    async def _run_scheduled(self, one: ScheduleRecord) -> None:
        try:
            async with self._turns:
                await self._make_scheduled(one)
        except Exception as error:
            failures = one.failures + 1
            reason = reason_of(error)
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
        if await self._exports.is_archived(one.agent):
            return  # it lies elsewhere already, whole, and a copy would bring it back
        key = None if one.key_id is None else await asyncio.to_thread(read_key, self._places.keys / one.key_id)
        base = schedule.base_for_next(await self._store.scheduled_of(one.agent), one)
        if base is not None and not self._places.index(base).exists():
            base = None
        record = await self._exports.begin(
            one.agent, s3.parse_place(one.destination), since=base, key=key, scheduled=True
        )
        await self._exports.upload(record, key)
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


def keep_key(places: Places, key: Key) -> None:
    """Under TENURE_HOME, for what the server makes or opens by itself."""
    places.keys.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = places.keys / key.id
    if not path.exists():
        fresh = path.with_name(path.name + ".new")
        fresh.unlink(missing_ok=True)
        write_key(fresh, key)
        fresh.replace(path)


def _check_wanted(wanted: Wanted) -> None:
    for value, least, most, what in (
        (wanted.every_s, schedule.EVERY_S_MIN, schedule.EVERY_S_MAX, "The interval in seconds"),
        (wanted.full_every, 1, schedule.FULL_EVERY_MAX, "The length of a chain"),
        (wanted.chains_kept, 1, schedule.CHAINS_KEPT_MAX, "The number of chains that are kept"),
    ):
        if not least <= value <= most:
            raise InvalidArgument(f"{what} is between {least:g} and {most:g}.")
