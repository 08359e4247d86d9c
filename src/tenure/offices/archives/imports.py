"""Imports of offices: from a client's body, or from S3."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tenure.archive_head import HEAD_BYTES_MAX, SUFFIX, Head, new_id, put_in_order, read_head
from tenure.errors import ArchiveError, Conflict, InvalidArgument
from tenure.export_keys import Key
from tenure.offices.archives import s3, schedule
from tenure.offices.archives.arrival import Arrival
from tenure.offices.archives.frames import RawRead
from tenure.offices.archives.inflow import Inflow
from tenure.offices.archives.making import Places, ended
from tenure.offices.archives.s3 import Place
from tenure.offices.models import Limits, OfficeView
from tenure.offices.office import OfficeParts
from tenure.offices.snapshots import to_its_end

AT_ONCE_MAX = 4
CHAIN_MAX = schedule.FULL_EVERY_MAX


class _Offices(Protocol):
    async def refuse_taken(self, name: str) -> None: ...
    async def take_in(
        self, name: str, volume: Path, *, image: str, limits: Limits, egress: Sequence[str], origin: str
    ) -> OfficeView: ...


class _History(Protocol):
    async def take_in(self, agent: str, journal: bytes) -> int: ...


@dataclass(frozen=True)
class Imported:
    """What an import brought: `runs` counts those that were over and are known here now."""

    agent: OfficeView
    origin: str
    written_bytes: int
    runs: int


class Imports:
    """Makes agents of archives. What a dead server left of one is removed by `Exports.tidy`."""

    def __init__(
        self,
        parts: OfficeParts,
        offices: _Offices,
        history: _History,
        image: Path,
        check_egress: Callable[[Sequence[str]], Sequence[str]] = tuple,
    ) -> None:
        """`image` is this machine's own: the configuration of databases is taken from it."""
        self._volumes, self._places = parts.volumes, Places(parts.settings)
        self._offices, self._history, self._image, self._check_egress = offices, history, image, check_egress
        self._going_on = 0

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
        if self._going_on >= AT_ONCE_MAX:
            raise Conflict(f"{AT_ONCE_MAX} imports are going on.", hint="Wait until one of them is done.")
        self._going_on += 1
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
                await ended(task)
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
            self._going_on -= 1
            await to_its_end(self._volumes.delete(volume))
        runs = await self._history.take_in(name, arrival.journal)
        return Imported(agent, manifest.id, arrival.written_bytes, runs)


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
