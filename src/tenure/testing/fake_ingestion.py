"""Loads and pipelines without a database, for tests of the API: what is sent is counted, and every load is done at once."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Protocol

from tenure.data.ingestion.names import parse_table, table_of
from tenure.data.ingestion.pipeline import PipelineRecord, next_at
from tenure.data.ingestion.record import LoadRecord, Target, Wanted, new_load_id
from tenure.errors import AlreadyExists, Conflict, InvalidArgument, NotFound
from tenure.identity.authorize import Principal


class _Offices(Protocol):
    async def need(self, name: str) -> None: ...


class FakeLoads:
    """A file called `ask…` asks whether a column may be added; one called `broken…` fails."""

    def __init__(self, offices: _Offices) -> None:
        self._offices = offices
        self.loads: dict[str, LoadRecord] = {}

    async def receive(
        self, target: Target, wanted: Wanted, name: str, chunks: AsyncIterator[bytes], *, by: Principal
    ) -> LoadRecord:
        await self._need(target)
        digest, size, lines = hashlib.sha256(), 0, 0
        async for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            lines += chunk.count(b"\n")
        made = self._new(target, wanted, f"upload:{name}", name, by)
        earlier = next((one for one in self.loads.values() if _same(one, made, digest.hexdigest())), None)
        made = replace(made, digest=digest.hexdigest(), size_bytes=size)
        if name.startswith("ask") and wanted.policy == "ask":
            change = {"column": "extra", "before": "", "after": "text"}
            return self._keep(replace(made, state="waiting", changes=(change,)))
        if name.startswith("broken"):
            error = InvalidArgument("The file is broken.").to_payload()["error"]
            return self._keep(replace(made, state="failed", error=error, finished_at=_now()))
        return self._keep(_done(made, max(0, lines - 1), None if earlier is None or wanted.again else earlier.id))

    async def fetch(self, target: Target, wanted: Wanted, source: str, *, by: Principal) -> LoadRecord:
        await self._need(target)
        check_source(source)
        return self._keep(_done(self._new(target, wanted, source, source, by), 1, None))

    async def find(self, load_id: str) -> LoadRecord:
        if load_id not in self.loads:
            raise NotFound(f"There is no load {load_id[:40]!r}.")
        return self.loads[load_id]

    async def list(self, target: Target | None = None, *, limit: int = 100) -> Sequence[LoadRecord]:
        found = [one for one in self.loads.values() if target is None or one.target == target]
        return found[::-1][:limit]

    async def answer(self, target: Target, load_id: str, *, allow: bool) -> LoadRecord:
        found = await self.find(load_id)
        if found.state != "waiting" or found.target != target:
            raise Conflict(f"The load {load_id} asks nothing.")
        return self._keep(_done(found, 1, None) if allow else replace(found, state="cancelled", finished_at=_now()))

    async def cancel(self, target: Target, load_id: str) -> LoadRecord:
        found = await self.find(load_id)
        if found.is_over or found.target != target:
            raise Conflict(f"The load {load_id} is over.")
        return self._keep(replace(found, state="cancelled", finished_at=_now()))

    async def _need(self, target: Target) -> None:
        if target.agent:
            await self._offices.need(target.agent)
        else:
            raise NotFound(f"There is no shared database {target.database}.")

    def _keep(self, record: LoadRecord) -> LoadRecord:
        self.loads[record.id] = record
        return record

    def _new(self, target: Target, wanted: Wanted, source: str, name: str, by: Principal) -> LoadRecord:
        wanted.check()
        return LoadRecord(
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
            version=None,
            key=wanted.key,
            digest=None,
            state="running",
            allowed=False,
            attempts=1,
            plan=None,
            size_bytes=0,
            rows_loaded=None,
            rows_rejected=None,
            columns=None,
            changes=(),
            repeats=None,
            error=None,
            pipeline=None,
            created_by=str(by),
            created_at=_now(),
            finished_at=None,
        )


class FakePipelines:
    def __init__(self, offices: _Offices) -> None:
        self._offices = offices
        self.pipelines: dict[str, PipelineRecord] = {}

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
        if target.agent:
            await self._offices.need(target.agent)
        else:
            raise NotFound(f"There is no shared database {target.database}.")
        check_source(source)
        if name in self.pipelines:
            raise AlreadyExists(f"There is a pipeline {name} already.")
        made = PipelineRecord(
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
            next_at=_now(),
            failures=0,
            last_at=None,
            last_error=None,
            created_by=str(by),
            created_at=_now(),
        )
        next_at(made, _now(), timedelta(minutes=1))
        self.pipelines[name] = made
        return made

    async def get(self, name: str) -> PipelineRecord:
        if name not in self.pipelines:
            raise NotFound(f"There is no pipeline {name[:40]!r}.")
        return self.pipelines[name]

    async def list(self, agent: str | None = None) -> Sequence[PipelineRecord]:
        return [one for one in self.pipelines.values() if agent is None or one.agent == agent]

    async def loads(self, name: str, *, limit: int = 100) -> Sequence[LoadRecord]:
        await self.get(name)
        return []

    async def set_paused(self, name: str, paused: bool) -> PipelineRecord:
        self.pipelines[name] = replace(await self.get(name), paused=paused)
        return self.pipelines[name]

    async def run(self, name: str) -> PipelineRecord:
        self.pipelines[name] = replace(await self.get(name), last_at=_now())
        return self.pipelines[name]

    async def delete(self, name: str) -> None:
        await self.get(name)
        del self.pipelines[name]


def check_source(source: str) -> None:
    if not source.startswith(("http://", "https://", "s3://", "office:")):
        raise InvalidArgument("That is no address of a file.")


def _same(one: LoadRecord, made: LoadRecord, digest: str) -> bool:
    return (one.target, one.into_table, one.mode, one.digest) == (made.target, made.into_table, made.mode, digest)


def _done(record: LoadRecord, rows: int, repeats: str | None) -> LoadRecord:
    columns = (("id", "bigint"), ("name", "text"))
    return replace(
        record,
        state="done",
        rows_loaded=rows,
        rows_rejected=0,
        columns=columns,
        changes=(),
        repeats=repeats,
        finished_at=_now(),
    )


def _now() -> datetime:
    return datetime.now(UTC)
