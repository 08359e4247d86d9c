"""Snapshots of whole offices: files, database and objects as of one instant.

A snapshot is a read-only copy of the office's volume and a row; the row is written first and removed last, so a volume
without one never exists, and `tidy` ends what a dead server left in the middle.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from tenure.errors import AlreadyExists, Conflict, InvalidArgument, VolumeError
from tenure.faultpoints import reach
from tenure.names import check_name
from tenure.offices.clones import Clones, origin_of
from tenure.offices.comparisons import Comparisons
from tenure.offices.diff import Diff
from tenure.offices.models import OfficeRecord, Restored, SnapshotKind, SnapshotRecord, StepMark
from tenure.offices.office import Office, OfficeParts
from tenure.offices.retention import Retention, outdated
from tenure.offices.snapshot_store import SnapshotStore

T = TypeVar("T")
SNAPSHOTS_MAX = 200
"""Per agent, all kinds together: each makes later ones and deleting a little slower."""
_ID_BYTES = 6

OpenRuns = Callable[[str], Awaitable[Sequence[tuple[str, str, int]]]]
"""(id, state, seq of its journal) of each run of an agent that is not over."""


class Snapshots:
    """Of all offices. Whatever names an agent or a snapshot raises `NotFound` when there is none; a snapshot is named by
    its id or its name. What changes something goes on when its caller is cancelled."""

    def __init__(
        self,
        store: SnapshotStore,
        parts: OfficeParts,
        open_runs: OpenRuns,
        find_office: Callable[[str], Awaitable[Office]],
    ) -> None:
        self._store, self._open_runs, self._find_office = store, open_runs, find_office
        self._volumes, self._directory = parts.volumes, parts.settings.snapshots_dir
        self._retention = Retention(
            parts.settings.snapshots_last, parts.settings.snapshots_hourly, parts.settings.snapshots_daily
        )
        self._clones = Clones(parts.settings, parts.volumes)
        self._turns: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """One thing at a time per agent."""
        self._comparisons = Comparisons(parts.settings, parts.volumes)
        self._comparing: dict[str, asyncio.Task[Diff]] = {}

    def _path(self, agent: str, snapshot_id: str) -> Path:
        return self._directory / agent / snapshot_id

    # --- what there is -----------------------------------------------------------------------------------------------
    async def list(self, agent: str) -> list[SnapshotRecord]:
        """The oldest first, with what each takes alone."""
        await self._find_office(agent)
        taken = await self._store.of_agent(agent)
        alone: dict[Path, int] = {}
        with contextlib.suppress(VolumeError):  # a list without sizes is better than none
            alone = await self._volumes.exclusive([self._path(agent, one.id) for one in taken])
        return [replace(one, exclusive_bytes=alone.get(self._path(agent, one.id))) for one in taken]

    async def get(self, agent: str, wanted: str) -> SnapshotRecord:
        await self._find_office(agent)
        return await self._store.get(agent, wanted)

    async def find(self, snapshot_id: str) -> Path | None:
        """The volume of the snapshot of this id; None when there is none."""
        agent = await self._store.owner_of(snapshot_id)
        if agent is None or not await self._volumes.exists(self._path(agent, snapshot_id)):
            return None
        return self._path(agent, snapshot_id)

    @contextlib.asynccontextmanager
    async def kept(self, agent: str, wanted: str) -> AsyncGenerator[tuple[SnapshotRecord, Path]]:
        """A snapshot and its volume, which nobody deletes meanwhile."""
        async with self._turns[agent]:
            found = await self.get(agent, wanted)
            yield found, self._path(agent, found.id)

    # --- taking and deleting -----------------------------------------------------------------------------------------
    async def take(
        self,
        agent: str,
        name: str | None = None,
        kind: SnapshotKind = SnapshotKind.MANUAL,
        step: StepMark | None = None,
        key: str | None = None,
    ) -> SnapshotRecord:
        """Of an office awake or asleep, as of one instant in between. `step` goes with the kinds before-step and after-step,
        and only with those. Whoever asks again by the same `key` gets the snapshot of the first time. Raises `InvalidName`,
        `AlreadyExists` for a name that is taken, `Conflict` when the agent has `SNAPSHOTS_MAX`, `DiskFull`."""
        if kind.is_of_step is (step is None):
            raise InvalidArgument("A snapshot names a step when it is taken before or after one, and only then.")
        if name is not None:
            check_name(name, "snapshot")
        await self._find_office(agent)

        async def take() -> SnapshotRecord:
            async with self._turns[agent]:
                office = await self._find_office(agent)
                if (there := await self._of_key(agent, key)) is not None:
                    return there
                async with self._row(office, name, kind, step, key) as snapshot_id, office.still():
                    taken = await self._copy(office, snapshot_id)
                await self._prune(agent, keep={taken.id})
                return taken

        return await to_its_end(take())

    @contextlib.asynccontextmanager
    async def _row(
        self,
        office: Office,
        name: str | None,
        kind: SnapshotKind,
        step: StepMark | None = None,
        key: str | None = None,
    ) -> AsyncGenerator[str]:
        """The row of a snapshot that is taken meanwhile; it goes, with what there is of it, when that fails."""
        agent = office.record.name
        if len(await self._store.of_agent(agent, unfinished=True)) >= SNAPSHOTS_MAX and not kind.is_automatic:
            raise Conflict(
                f"{agent} has {SNAPSHOTS_MAX} snapshots, which is the most there can be.",
                hint=f"Delete some: `tenure snapshot list {agent}`, `tenure snapshot delete {agent} SNAPSHOT`.",
            )
        snapshot_id = f"snap_{secrets.token_hex(_ID_BYTES)}"
        await self._store.add(snapshot_id, agent, office.record.image, name, kind, step, key)
        try:
            yield snapshot_id
        except BaseException:
            await self._delete(agent, snapshot_id)
            raise

    async def _copy(self, office: Office, snapshot_id: str) -> SnapshotRecord:
        """The caller sees to it that the office holds still."""
        # Before the copy: what these entries say to be done is in it.
        runs = {run: seq for run, _, seq in await self._open_runs(office.record.name)}
        # Below lie set-uid files of an agent's making, and the office's own database user could pass.
        self._directory.mkdir(exist_ok=True)
        self._directory.chmod(0o700)
        await self._volumes.snapshot(office.volume, self._path(office.record.name, snapshot_id))
        reach("snapshot.copied")
        taken = await self._store.complete(snapshot_id, origin_of(office.volume), runs)
        office.log.write("office", f"snapshot {taken.name or taken.id} ({taken.kind})")
        return taken

    async def _of_key(self, agent: str, key: str | None) -> SnapshotRecord | None:
        return None if key is None else await self._store.of_key(agent, key)

    async def delete(self, agent: str, wanted: str) -> None:
        await self._find_office(agent)

        async def delete() -> None:
            async with self._turns[agent]:
                await self._delete(agent, (await self.get(agent, wanted)).id)

        await to_its_end(delete())

    async def _delete(self, agent: str, snapshot_id: str) -> None:
        await self._store.set_deleting(snapshot_id)
        await self._volumes.delete(self._path(agent, snapshot_id))
        await self._store.remove(snapshot_id)

    async def _prune(self, agent: str, *, keep: Collection[str]) -> None:
        open_runs = [run for run, _, _ in await self._open_runs(agent)]
        for one in outdated(await self._store.of_agent(agent), self._retention, datetime.now(UTC), open_runs):
            if one.id not in keep:
                await self._delete(agent, one.id)

    async def remove_all(self, record: OfficeRecord) -> None:
        """For an agent that is being deleted."""
        agent = record.name
        await self._end_comparison(agent)
        await self._comparisons.tidy(record)
        async with self._turns[agent]:
            for one in await self._store.of_agent(agent, unfinished=True):
                await self._delete(agent, one.id)
            with contextlib.suppress(OSError):
                (self._directory / agent).rmdir()
        self._turns.pop(agent, None)

    async def tidy(self, record: OfficeRecord) -> None:
        """For a server that starts: removes what a dead one had not finished taking, comparing or deleting."""
        agent = record.name
        await self._comparisons.tidy(record)
        for one in await self._store.of_agent(agent, unfinished=True):
            if one.stage != "whole":
                await self._delete(agent, one.id)

    # --- restoring -----------------------------------------------------------------------------------------------------
    async def restore(self, agent: str, wanted: str, *, by_run: str | None = None, key: str | None = None) -> Restored:
        """Puts the whole office back to a snapshot. What was there is a snapshot itself then, so this can be undone. It wakes
        if it was awake. Raises `Conflict` while a run of the agent is at work, other than `by_run`, which asks for it. When it is
        asked for again by the same `key`, what there was the first time is still what undoes it."""
        await self._find_office(agent)

        async def restore() -> Restored:
            async with self._turns[agent]:
                office = await self._find_office(agent)
                snapshot = await self._store.get(agent, wanted)
                await self._refuse_at_work(agent, by_run)
                async with self._replacing(office, key) as before:
                    await self._clones.replace(office.record, self._path(agent, snapshot.id))
                    office.log.write("office", f"restored from {snapshot.name or snapshot.id}; before: {before.id}")
                if by_run is not None:
                    await self._store.withdraw(by_run, snapshot.created_at)
                await self._prune(agent, keep={snapshot.id, before.id})
                return Restored(await office.view(with_usage=False), snapshot, before)

        return await to_its_end(restore())

    @contextlib.asynccontextmanager
    async def _replacing(self, office: Office, key: str | None = None) -> AsyncGenerator[SnapshotRecord]:
        """Nothing of the office runs meanwhile; the snapshot of what is there. The caller has its agent's turn."""
        reach("restore.begun")
        async with office.vacated():
            before = await self._of_key(office.record.name, key)
            if before is None:
                async with self._row(office, None, SnapshotKind.BEFORE_RESTORE, key=key) as snapshot_id:
                    before = await self._copy(office, snapshot_id)
            yield before

    @contextlib.asynccontextmanager
    async def replacing(self, agent: str) -> AsyncGenerator[tuple[Office, SnapshotRecord]]:
        """For who puts another volume in an office's place: nothing of it runs meanwhile, nobody else touches its snapshots,
        and what is there is a snapshot. Afterwards it wakes if it was awake."""
        async with self._turns[agent]:
            office = await self._find_office(agent)
            async with self._replacing(office) as before:
                yield office, before
            await self._prune(agent, keep={before.id})

    async def bring_back(self, agent: str, wanted: str) -> SnapshotRecord:
        """A clone of a snapshot becomes the volume of an office that has lost its own: there is nothing to keep before. Raises
        `AlreadyExists` when it has one."""

        async def bring_back() -> SnapshotRecord:
            async with self._turns[agent]:
                office = await self._find_office(agent)
                snapshot = await self._store.get(agent, wanted)
                async with office.vacated():
                    if await self._volumes.exists(office.volume):
                        raise AlreadyExists(f"The volume of {agent} is there.")
                    await self._clones.replace(office.record, self._path(agent, snapshot.id))
                return snapshot

        return await to_its_end(bring_back())

    async def _refuse_at_work(self, agent: str, by_run: str | None) -> None:
        at_work = [run for run, state, _ in await self._open_runs(agent) if state != "parked" and run != by_run]
        if at_work:
            raise Conflict(
                f"{agent} is at work on {', '.join(at_work[:3])}: a restore would take the ground from under it.",
                hint=f"Wait until it is at rest, or end it: `tenure runs cancel {at_work[0]}`.",
            )

    # --- comparing -----------------------------------------------------------------------------------------------------
    async def diff(self, agent: str, wanted: str, to: str | None = None, *, tables: bool = True) -> Diff:
        """What became of files, objects and (with `tables`) rows from one snapshot to another, or to now. Raises `Conflict` while
        another comparison of this agent goes on, or when the agent is deleted meanwhile."""
        await self._find_office(agent)
        if agent in self._comparing:
            raise Conflict(f"Another comparison of {agent} goes on.", hint="Try again when it is done.")
        task = self._comparing[agent] = asyncio.create_task(self._diff(agent, wanted, to, tables))
        task.add_done_callback(lambda _: self._comparing.pop(agent, None))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            raise Conflict(f"The comparison was ended, because {agent} is being deleted or the server stops.") from None

    async def _diff(self, agent: str, wanted: str, to: str | None, tables: bool) -> Diff:
        record = (await self._find_office(agent)).record
        async with self._comparisons.cleared(record) as places:
            cloning = asyncio.create_task(self._clone(agent, wanted, to, places))
            try:
                await asyncio.shield(cloning)
            finally:
                await asyncio.wait([cloning])  # else a clone would appear after the places were cleared
            return await self._comparisons.compare(record, tables=tables)

    async def _clone(self, agent: str, wanted: str, to: str | None, places: tuple[Path, Path]) -> None:
        """Both states to be compared: only for this long does anybody wait."""
        async with self._turns[agent]:
            office = await self._find_office(agent)
            before = await self._store.get(agent, wanted)
            after = None if to is None else await self._store.get(agent, to)
            await self._comparisons.clone(office.record, self._path(agent, before.id), places[0])
            if after is not None:
                await self._comparisons.clone(office.record, self._path(agent, after.id), places[1])
            else:
                async with office.still():
                    await self._comparisons.clone(office.record, office.volume, places[1])

    async def _end_comparison(self, agent: str) -> None:
        if (task := self._comparing.get(agent)) is not None:
            task.cancel()
            await asyncio.wait([task])

    async def close(self) -> None:
        """For a server that stops: ends the comparisons that go on."""
        for agent in list(self._comparing):
            await self._end_comparison(agent)


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Does `work`; a caller that is cancelled leaves it alone, for half of it would be worse than none or all."""
    task = asyncio.ensure_future(work)
    _going_on.add(task)
    task.add_done_callback(_going_on.discard)
    return await asyncio.shield(task)


_going_on: set[asyncio.Future[Any]] = set()
"""So that none is collected before its end."""
