"""Trials: whether a volume would boot, found out on a clone of it beside the office.

Of the image: whether it is this office that does not boot, or the whole machine, in which case no office's content is to
blame and none may be replaced. Of a snapshot or a rebuilt volume: whether putting it in place would help, before anything
is put anywhere. A trial has no way out: none of its forwards leads to anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

from tenure.data.database import OfficeDatabase
from tenure.errors import TenureError
from tenure.faultpoints import reach
from tenure.offices import furnish
from tenure.offices.boot import Boot, Failure, Stage
from tenure.offices.door.door import Door
from tenure.offices.log import OfficeLog
from tenure.offices.models import OfficeRecord
from tenure.offices.office import OfficeParts
from tenure.offices.sandboxes.base import SandboxSpec, SandboxState

TRIALS_AT_ONCE_MAX = 1
"""Each is a whole office, and comes when something is wrong already."""
SANDBOX_PREFIX = "0-"
"""No agent can have a name that begins with a digit."""
DATABASE_TIMEOUT_S = 180.0


@dataclass
class _Candidate:
    """What `Boot` needs, of a clone."""

    record: OfficeRecord
    volume: Path
    doorway: Path
    door: Door
    log: OfficeLog
    environment: dict[str, str]
    officed_dir: Path

    def spec(self) -> SandboxSpec:
        return SandboxSpec(
            id=f"{SANDBOX_PREFIX}{self.record.name}",
            root=self.volume / "rootfs",
            doorway=self.doorway,
            officed_dir=self.officed_dir,
            hostname=self.record.name,
            limits=self.record.limits.for_sandbox(),
        )

    @property
    def hosts(self) -> str:
        return furnish.hosts_file(self.record.name, {})

    async def introduce(self) -> None:
        """A trial has no neighbours."""

    async def listen(self) -> None:
        self.doorway.mkdir(parents=True, exist_ok=True)
        await self.door.open()


class Trials:
    """Of one installation."""

    def __init__(self, parts: OfficeParts) -> None:
        self._parts, self._settings = parts, parts.settings
        self._slots = asyncio.Semaphore(TRIALS_AT_ONCE_MAX)

    async def of(self, record: OfficeRecord, source: Path) -> Failure | None:
        """What fails when a clone of `source` boots as the office `record`, its database started and asked; None when nothing
        does. Takes seconds. Raises `TenureError` when it could not be tried: no room for a clone, for example."""
        async with self._slots:
            await self.tidy(record)
            volume = self._volume(record)
            await self._parts.volumes.create(source, volume)
            try:
                volume.chmod(0o700)
                await self._parts.volumes.set_limit(volume, record.limits.disk_bytes)
                async with self._candidate(record, volume) as candidate:
                    return await self._try(candidate)
            finally:
                await asyncio.shield(self.tidy(record))

    def _volume(self, record: OfficeRecord) -> Path:
        return self._settings.snapshots_dir / ".trial" / record.name

    @contextlib.asynccontextmanager
    async def _candidate(self, record: OfficeRecord, volume: Path) -> AsyncGenerator[_Candidate]:
        doorway = self._settings.run_dir / "trials" / str(record.number)  # short: it is part of a socket's path
        candidate = _Candidate(
            record,
            volume,
            doorway,
            Door(record.name, doorway),
            OfficeLog(self._settings.logs_dir / "trials" / f"{record.name}.log"),
            self._parts.environment,
            self._settings.officed_dir,
        )
        try:
            yield candidate
        finally:
            await candidate.door.close()
            candidate.log.remove()
            with contextlib.suppress(OSError):
                doorway.rmdir()

    async def _try(self, candidate: _Candidate) -> Failure | None:
        parts = self._parts
        boot = Boot(candidate, parts.settings, parts.sandboxes, parts.volumes, parts.mount_pool)
        try:
            await boot.run(SandboxState.ABSENT)
        except TenureError as error:
            return Failure.of(error)
        reach("trial.booted")
        database = self._database(candidate.record)
        try:
            async with asyncio.timeout(DATABASE_TIMEOUT_S):
                await database.ensure_started()
                await database.execute("SELECT count(*) FROM pg_class")
        except TenureError as error:
            error.details.setdefault("stage", Stage.DATABASE.value)
            return Failure.of(error)
        except TimeoutError:
            return Failure(Stage.DATABASE, f"PostgreSQL did not answer within {DATABASE_TIMEOUT_S:g} s.", {})
        return None

    def _database(self, record: OfficeRecord) -> OfficeDatabase:
        return OfficeDatabase(self._settings, f"{SANDBOX_PREFIX}{record.number}", self._volume(record), record.uid)

    async def tidy(self, record: OfficeRecord) -> None:
        """Removes what is left of a trial, also of a dead server's. Does nothing when there is none."""
        volume = self._volume(record)
        if not await self._parts.volumes.exists(volume):
            return
        await self._parts.sandboxes.stop(f"{SANDBOX_PREFIX}{record.name}", grace_s=0)
        database = self._database(record)
        await database.stop()
        database.log_file.unlink(missing_ok=True)
        await self._parts.volumes.delete(volume)
