"""Exports without offices, for tests of what stands on them: real rules of ids, schedules and errors, no archive in the bytes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from tenure import wire
from tenure.archive_head import Head, encode_head, new_id
from tenure.errors import ArchiveError, InvalidArgument, NotFound
from tenure.export_keys import Key
from tenure.server.services import LimitsWanted
from tenure.testing.fake_offices import FakeOffices

PIECES = (b"not an archive: ", b"of a fake")


@dataclass
class FakeExports:
    """See `tenure.server.services.Exports`, `Schedules` and `Imports`: it is all of them.
    `need` raises `NotFound` for an agent that is not there; `create` makes one."""

    need: Callable[[str], Awaitable[None]]
    create: Callable[[str], Awaitable[Any]]
    made: dict[str, list[wire.Export]] = field(default_factory=dict[str, list[wire.Export]])
    kept: dict[str, wire.ExportSchedule] = field(default_factory=dict[str, wire.ExportSchedule])
    breaks: bool = False
    """Whether what is sent ends in the middle."""

    async def list(self, agent: str) -> Sequence[wire.Export]:
        await self.need(agent)
        return self.made.get(agent, [])

    async def get(self, agent: str, export_id: str) -> wire.Export:
        for one in await self.list(agent):
            if one.id == export_id:
                return one
        raise NotFound(f"{agent} has no export {export_id!r}.")

    @property
    def schedules(self) -> FakeExports:
        return self

    async def of(self, agent: str) -> wire.ExportSchedule | None:
        await self.need(agent)
        return self.kept.get(agent)

    async def _make(self, agent: str, to: str, since: str | None, key: Key | None, state: str) -> wire.Export:
        await self.need(agent)
        if since is not None:
            await self.get(agent, since)
        record = wire.Export(
            id=new_id(),
            agent=agent,
            base=since,
            destination=to,
            state=state,
            key_id=key.id if key else None,
            created_at=datetime.now(UTC),
        )
        self.made.setdefault(agent, []).append(record)
        return record

    async def send(
        self, agent: str, *, since: str | None = None, key: Key | None = None
    ) -> tuple[wire.Export, AsyncGenerator[bytes]]:
        record = await self._make(agent, "", since, key, "done")

        async def pieces() -> AsyncGenerator[bytes]:
            yield encode_head(Head(record.id, agent, record.created_at, since))
            if self.breaks:
                raise ArchiveError("It broke off.")
            for piece in PIECES:
                yield piece

        return record, pieces()

    async def start(self, agent: str, to: str, *, since: str | None = None, key: Key | None = None) -> wire.Export:
        return await self._make(agent, to, since, key, "done")

    async def keep(self, agent: str, wanted: Any) -> wire.ExportSchedule:
        await self.need(agent)
        self.kept[agent] = wire.ExportSchedule(
            agent=agent,
            destination=wanted.destination,
            every_s=wanted.every_s,
            full_every=wanted.full_every,
            chains_kept=wanted.chains_kept,
            key_id=wanted.key.id if wanted.key else None,
            next_at=datetime.now(UTC),
        )
        return self.kept[agent]

    async def stop(self, agent: str) -> None:
        await self.need(agent)
        if self.kept.pop(agent, None) is None:
            raise NotFound(f"{agent} has no schedule of exports.")

    async def receive(self, name: str, chunks: AsyncIterator[bytes]) -> Any:
        size = 0
        async for chunk in chunks:
            size += len(chunk)
        if not size:
            raise ArchiveError("There is no archive.")
        return replace(_Imported(await self.create(name)), written_bytes=size)

    async def fetch(self, sources: Sequence[str], name: str | None = None, key: Key | None = None) -> Any:
        return _Imported(await self.create(name or "fetched"))


@dataclass(frozen=True)
class _Imported:
    agent: Any
    origin: str = "exp_0000000000000000"
    written_bytes: int = 0
    runs: int = 0


def exports_of(offices: FakeOffices) -> FakeExports:
    """Over these offices; what is imported is made among them."""
    return FakeExports(offices.need, lambda name: offices.create(name, LimitsWanted(), ()))


@dataclass
class FakeArchiving:
    """See `tenure.server.services.Archiving`: nothing is made, and the office says that it is archived."""

    offices: FakeOffices

    async def start(self, agent: str, to: str | None = None, *, key: Key | None = None) -> wire.Export:
        office = await self.offices.get(agent)
        if to is None:
            raise InvalidArgument(f"{agent} has no schedule of exports that would say where to.")
        office.state = wire.AgentState.ARCHIVED
        now, key_id = datetime.now(UTC), key.id if key else None
        return wire.Export(
            id=new_id(),
            agent=agent,
            destination=f"{to}{agent}.tenure",
            state="done",
            key_id=key_id,
            size_bytes=len(b"".join(PIECES)),
            created_at=now,
            finished_at=now,
        )
