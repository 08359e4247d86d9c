"""Puts offices away: each whole into S3, and then off this machine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol

from tenure.errors import Conflict, InvalidArgument, TenureError
from tenure.export_keys import Key, read_key
from tenure.faultpoints import reach
from tenure.offices.archives import s3
from tenure.offices.archives.depot import Depot
from tenure.offices.archives.exports import Exports
from tenure.offices.archives.making import Places
from tenure.offices.archives.s3 import Place
from tenure.offices.archives.schedule import ExportRecord
from tenure.offices.archives.schedules import keep_key
from tenure.offices.models import Archived
from tenure.offices.office import Office
from tenure.offices.rest import Tier
from tenure.settings import Settings

logger = logging.getLogger(__name__)


class _Offices(Protocol):
    async def office(self, name: str) -> Office: ...


class Archiving:
    """Of all offices."""

    def __init__(
        self,
        settings: Settings,
        exports: Exports,
        depot: Depot,
        offices: _Offices,
        open_runs: Callable[[str], Awaitable[Sequence[tuple[str, str, int]]]],
    ) -> None:
        self._places, self._exports, self._depot = Places(settings), exports, depot
        self._offices, self._open_runs = offices, open_runs
        self._going_on: set[str] = set()

    async def start(self, agent: str, to: str | None = None, *, key: Key | None = None) -> ExportRecord:
        """Begins to put the office away in S3 below `to`, and returns the row of its export: when that is done, the office is
        archived; when it failed, it is here as before, at rest. Without `to`, place and key are those of its schedule. The
        server keeps the key. Snapshots stay here. Raises `Conflict` while a run of the agent is
        at work, and when it is archived already; `InvalidArgument`, `NotFound`, `StorageError` for what nothing can be
        written to."""
        office = await self._offices.office(agent)
        if office.record.archived is not None:
            raise Conflict(f"{agent} is archived already, in {office.record.archived.destination}.")
        if agent in self._going_on:
            raise Conflict(f"{agent} is being archived.", hint=f"`tenure agent exports {agent}` shows how far it is.")
        await self._refuse_at_work(agent)
        self._going_on.add(agent)
        try:
            place, key = await self._destination(agent, to, key)
            await asyncio.to_thread(s3.listed, place)  # the address and the credentials, before anything is stopped
            if key is not None:
                await asyncio.to_thread(keep_key, self._places, key)
            record = await self._exports.begin(agent, place, since=None, key=key)
        except BaseException:
            self._going_on.discard(agent)
            raise
        self._exports.spawn(self._put_away(office, record, key))
        return record

    async def _destination(self, agent: str, to: str | None, key: Key | None) -> tuple[Place, Key | None]:
        if to is not None:
            place = s3.parse_place(to)
            return (place if place.is_directory else Place(place.bucket, place.key + "/")), key
        kept = await self._exports.schedules.of(agent)
        if kept is None:
            raise InvalidArgument(
                f"{agent} has no schedule of exports that would say where to.", hint="Say it: --to s3://BUCKET/PREFIX/."
            )
        if key is None and kept.key_id is not None:
            key = await asyncio.to_thread(read_key, self._places.keys / kept.key_id)
        return s3.parse_place(kept.destination), key

    async def _refuse_at_work(self, agent: str) -> None:
        at_work = [run for run, state, _ in await self._open_runs(agent) if state != "parked"]
        if at_work:
            raise Conflict(
                f"{agent} is at work on {', '.join(at_work[:3])}: it would be brought back at once.",
                hint=f"Wait until it is at rest, or end it: `tenure runs cancel {at_work[0]}`.",
            )

    async def _put_away(self, office: Office, record: ExportRecord, key: Key | None) -> None:
        async def keep(size_bytes: int) -> None:
            archived = Archived(record.id, record.destination, record.key_id, size_bytes, datetime.now(UTC))
            reach("archive.sent")
            await self._depot.keep(office.record, archived)
            office.record = replace(office.record, archived=archived)
            reach("archive.marked")
            office.log.write("office", f"archived in {record.destination} ({size_bytes} bytes)")
            try:
                await self._depot.free(office.record)
            except TenureError as error:  # a server that starts does it
                office.log.write("office", f"what was here of it is not deleted yet: {error.message}")

        try:
            await office.rest(Tier.STOPPED)
            async with office.vacated():
                await self._refuse_at_work(record.agent)
                await self._exports.put_away(record, key, keep)
        except BaseException as error:
            await asyncio.shield(asyncio.ensure_future(self._exports.note_failure(record, error)))
            raise
        finally:
            self._going_on.discard(record.agent)
