"""Pipelines: files of one source are loaded again and again, by time and as they arrive.

What a pipeline has loaded, its loads say: each remembers where its file was and which version of it that was. So a look at the
source, compared with them, tells what is new, whatever happened while no server ran; events only say when to look.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta

from tenure.data.ingestion.loads import Loads
from tenure.data.ingestion.pipeline import PipelineRecord, PipelineStore, next_at, wanted_by
from tenure.data.ingestion.record import LoadRecord, Target, Wanted
from tenure.data.ingestion.sources import Sources
from tenure.data.ingestion.store import LoadStore
from tenure.errors import Conflict, InvalidArgument, TenureError
from tenure.identity.authorize import Principal, principal_from
from tenure.names import check_name

PIPELINES_MAX = 200
FILES_AT_ONCE_MAX = 20
"""Of one run: the rest follows with the next, which is due at once."""
ARRIVALS_EVERY = timedelta(seconds=60)
"""How often a source is looked at without any event: those are lost with the server that would have heard them."""
RETRY_MIN, RETRY_MAX = timedelta(seconds=30), timedelta(hours=1)

logger = logging.getLogger(__name__)


def _now() -> datetime:
    return datetime.now(UTC)


class Pipelines:
    """Of all targets. Whatever names a pipeline raises `NotFound` when there is none."""

    def __init__(
        self,
        store: PipelineStore,
        loads_store: LoadStore,
        loads: Loads,
        sources: Sources,
        *,
        now: Callable[[], datetime] = _now,
    ) -> None:
        self._store, self._rows, self._loads, self._sources, self._now = store, loads_store, loads, sources, now
        self._woken: set[str] = set()
        self._running: set[str] = set()

    async def create(
        self,
        name: str,
        target: Target,
        source: str,
        wanted: Wanted,
        *,
        by: Principal,
        every_s: int | None = None,
        cron: str | None = None,
        tz: str = "UTC",
        on_arrival: bool = False,
    ) -> PipelineRecord:
        """It runs for the first time at once. Raises `InvalidName`, `InvalidArgument`, `AlreadyExists`,
        `Conflict`, `NotFound`."""
        check_name(name, "pipeline")
        wanted.check()
        if every_s is not None and cron is not None:
            raise InvalidArgument("A pipeline has one time: every_s or cron.")
        if on_arrival and not source.startswith("s3://"):
            raise InvalidArgument("Only objects arrive.", hint="Give an s3:// address, or a time.")
        if wanted.again or wanted.key is not None:
            raise InvalidArgument("A pipeline loads each content once: it takes neither again nor a key.")
        self._sources.check(target, source)
        await self._loads.need(target)
        if len(await self._store.all()) >= PIPELINES_MAX:
            raise Conflict(f"There are {PIPELINES_MAX} pipelines.", hint="Delete one.")
        record = PipelineRecord(
            name=name,
            target=target,
            source=source,
            into_table=wanted.into,
            mode=wanted.mode,
            keys=wanted.keys,
            policy=wanted.policy,
            hints=wanted.hints,
            every_s=every_s,
            cron=cron,
            tz=tz,
            on_arrival=on_arrival,
            paused=False,
            next_at=self._now(),
            failures=0,
            last_at=None,
            last_error=None,
            created_by=str(by),
            created_at=self._now(),
        )
        next_at(record, self._now(), ARRIVALS_EVERY)  # raises for times that are none
        await self._store.add(record)
        return record

    async def get(self, name: str) -> PipelineRecord:
        return await self._store.get(name)

    async def list(self, agent: str | None = None) -> Sequence[PipelineRecord]:
        """By name; with `agent` its own only."""
        return [one for one in await self._store.all() if agent is None or one.target.agent == agent]

    async def loads(self, name: str, *, limit: int = 100) -> Sequence[LoadRecord]:
        """Its history, the newest first."""
        await self._store.get(name)
        return await self._rows.of_pipeline(name, limit)

    async def set_paused(self, name: str, paused: bool) -> PipelineRecord:
        await self._store.get(name)
        await self._store.set_paused(name, paused, None if paused else self._now())
        return await self._store.get(name)

    async def run(self, name: str) -> PipelineRecord:
        """Has it run now, paused or not; its loads tell how that goes."""
        await self._run_one(await self._store.get(name))
        return await self._store.get(name)

    async def delete(self, name: str) -> None:
        """What it loaded stays."""
        await self._store.get(name)
        await self._rows.forget_pipeline(name)
        await self._store.delete(name)

    # --- running ------------------------------------------------------------------------------------------------------
    def wake(self, bucket: str) -> None:
        """Something changed in a bucket: pipelines that wait for objects of it look at the next `run_due`."""
        self._woken.add(bucket)

    async def run_due(self) -> None:
        """Runs those whose time has come, or whose bucket changed."""
        woken, self._woken = self._woken, set()
        for one in await self._store.all():
            arrived = one.on_arrival and _bucket(one.source) in woken
            due = one.next_at is not None and one.next_at <= self._now()
            if not one.paused and (due or arrived):
                with contextlib.suppress(TenureError):
                    await self._run_one(one)

    async def follow(self, events: AsyncIterator[str]) -> None:
        """Wakes by the names of buckets, until cancelled."""
        async for bucket in events:
            self.wake(bucket)

    async def _run_one(self, one: PipelineRecord) -> None:
        if one.name in self._running:
            return
        self._running.add(one.name)
        now = self._now()
        try:
            more = await self._begin_loads(one)
        except TenureError as error:
            wait = min(RETRY_MIN * 2 ** min(one.failures, 10), RETRY_MAX)
            await self._store.ran(one.name, now, now + wait, one.failures + 1, error.message)
            raise
        except asyncio.CancelledError:
            raise
        except Exception:
            logger.exception("pipeline %s", one.name)
            await self._store.ran(
                one.name, now, now + RETRY_MAX, one.failures + 1, "It failed; the server's log says how."
            )
        else:
            await self._store.ran(one.name, now, now if more else next_at(one, now, ARRIVALS_EVERY), 0, None)
        finally:
            self._running.discard(one.name)

    async def _begin_loads(self, one: PipelineRecord) -> bool:
        """Whether there are more than one run takes."""
        by = principal_from(one.created_by)
        listed = await self._sources.list(one.target, one.source, by)
        seen = await self._rows.seen_by_pipeline(one.name, [file.source for file in listed])
        new = [file for file in listed if not file.version or (file.source, file.version) not in seen]
        for file in new[:FILES_AT_ONCE_MAX]:
            await self._loads.fetch(
                one.target, wanted_by(one), file.source, by=by, pipeline=one.name, version=file.version or None
            )
        return len(new) > FILES_AT_ONCE_MAX


def _bucket(source: str) -> str:
    return source.removeprefix("s3://").partition("/")[0]
