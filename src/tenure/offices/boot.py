"""Booting one office: stages with a name, a deadline and evidence each.

    locate    the volume; the pool is mounted first when it is not
    check     what the volume has to hold, and whose it is; what the image can lend is lent (`mending`)
    database  whether it has what PostgreSQL needs to start; it is started by its first use, which costs a wake nothing
    furnish   what Tenure writes into the root
    sandbox   PID 1 runs: of a memory image where there is one, else fresh
    door      `officed` dialled
    probe     a shell runs as the office's user

A boot that fails raises the error of its stage, with stage and evidence in the error's `details` (`Failure.of`). It leaves
nothing running, and decides nothing: what is tried next is `healing`'s.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from tenure.errors import DoorError, NotFound, SandboxDead, SandboxError, TenureError, VolumeError
from tenure.faultpoints import reach
from tenure.offices import furnish, mending
from tenure.offices.door.door import Door
from tenure.offices.history import What
from tenure.offices.log import OfficeLog
from tenure.offices.models import OfficeRecord
from tenure.offices.sandboxes.base import SandboxDriver, SandboxSpec, SandboxState
from tenure.offices.volumes.base import VolumeDriver
from tenure.settings import Settings

EVIDENCE_CHARS_MAX = 2000
"""Per entry."""
DEATH_POLL_S = 0.2
PROBE_ARGV = ("/bin/bash", "-c", ":")
PROBE_USER = "agent"

logger = logging.getLogger(__name__)


class Stage(StrEnum):
    LOCATE = "locate"
    CHECK = "check"
    DATABASE = "database"
    FURNISH = "furnish"
    SANDBOX = "sandbox"
    DOOR = "door"
    PROBE = "probe"


DEADLINES_S = {
    Stage.LOCATE: 90.0,  # mounting a pool after a crash replays its log
    Stage.CHECK: 600.0,  # it may lend a whole system
    Stage.DATABASE: 10.0,
    Stage.FURNISH: 30.0,
    Stage.SANDBOX: 90.0,
    Stage.DOOR: 30.0,
    Stage.PROBE: 30.0,
}

StartFromImage = Callable[[SandboxSpec], Awaitable[None]]
"""Starts the sandbox of a memory image. Raises `TenureError` when that does not work; then nothing of it runs."""


@dataclass(frozen=True)
class Failure:
    """Why a boot did not get further."""

    stage: Stage
    message: str
    evidence: dict[str, Any]
    code: str = "error"
    hint: str = ""

    @classmethod
    def of(cls, error: TenureError) -> Failure:
        """What `Boot.run` said by the error that it raised. An error of something else counts as the sandbox's."""
        stage, evidence = error.details.get("stage"), dict(error.details.get("evidence") or {})
        if log := error.details.get("log"):
            evidence.setdefault("log", str(log)[-EVIDENCE_CHARS_MAX:])
        return cls(
            Stage(stage) if stage in set(Stage) else Stage.SANDBOX, error.message, evidence, error.code, error.hint
        )


@dataclass(frozen=True)
class Note:
    """Something that a boot did beside booting, for the history."""

    what: What
    reason: str
    evidence: dict[str, Any] = field(default_factory=dict[str, Any])


class Bootable(Protocol):
    """What a boot needs of an office."""

    @property
    def record(self) -> OfficeRecord: ...
    @property
    def volume(self) -> Path: ...
    @property
    def door(self) -> Door: ...
    @property
    def log(self) -> OfficeLog: ...
    @property
    def environment(self) -> dict[str, str]: ...
    def spec(self) -> SandboxSpec: ...
    @property
    def hosts(self) -> str:
        """Its hosts file."""
        ...

    async def listen(self) -> None: ...
    async def introduce(self) -> None:
        """Tells the office, whose door is open, who its neighbours are now. Does not raise."""


@dataclass(frozen=True)
class Boot:
    """One boot of `office`. `mount_pool` mounts the pool when it is not, and raises `SetupError`."""

    office: Bootable
    settings: Settings
    sandboxes: SandboxDriver
    volumes: VolumeDriver
    mount_pool: Callable[[], None]
    notes: list[Note] = field(default_factory=list[Note])

    async def run(self, found: SandboxState, image: StartFromImage | None = None) -> None:
        """Returns with the door open. `found` is what there is of the sandbox now, which is cleaned up. With an `image` that is
        tried first; when it fails, the boot goes on without. Raises the first failed stage's error: `NotFound` without a
        volume, `VolumeError`, `SandboxError`, `DoorError`, `SetupError`, `DiskFull`; then nothing runs."""
        began = time.monotonic()
        office = self.office
        try:
            if found is not SandboxState.ABSENT:
                office.log.write("sandbox", f"found {found}; cleaning up")
                await self._end()
            office.door.hang_up()  # what it dialled before is dead, whether it knows it or not
            await self._stage(Stage.LOCATE, self._locate)
            await self._stage(Stage.CHECK, self._check)
            await self._stage(Stage.DATABASE, self._check_database)
            await self._stage(Stage.FURNISH, self._furnish)
            if image is None or not await self._from_image(image):
                await self._stage(Stage.SANDBOX, lambda: self.sandboxes.start(office.spec()))
                await self._stage(Stage.DOOR, self._open_door)
                await self._stage(Stage.PROBE, self._probe)
        except TenureError as error:
            stage = error.details.get("stage", "boot")
            office.log.write("office", f"did not wake ({stage}): {error.message}")
            await self._end()
            raise
        office.log.write("office", f"awake after {(time.monotonic() - began) * 1000:.0f} ms")

    async def _stage(self, stage: Stage, act: Callable[[], Awaitable[None]]) -> None:
        began = time.monotonic()
        reach(f"boot.{stage}")
        try:
            async with asyncio.timeout(DEADLINES_S[stage]):
                await act()
        except TenureError as error:
            raise self._told(stage, error, began) from None
        except TimeoutError:
            late = SandboxError(f"The stage {stage!r} was not done after {DEADLINES_S[stage]:g} s.")
            raise self._told(stage, late, began) from None
        except OSError as error:
            raise self._told(stage, VolumeError(f"{error.strerror}: {error.filename}."), began) from error

    def _told(self, stage: Stage, error: TenureError, began: float) -> TenureError:
        """`error` with its stage and what was seen."""
        seen: dict[str, Any] = dict(error.details.get("evidence") or {})
        seen["after_s"] = round(time.monotonic() - began, 3)
        error.details |= {"stage": stage.value, "evidence": seen}
        return error

    async def _end(self) -> None:
        try:
            await self.sandboxes.stop(self.office.spec().id, grace_s=0)
        except TenureError as error:
            logger.warning("ending what is left of %s: %s", self.office.record.name, error)

    # --- the stages --------------------------------------------------------------------------------------------------
    async def _locate(self) -> None:
        volume = self.office.volume
        if await self.volumes.exists(volume):
            return
        await asyncio.to_thread(self.mount_pool)
        if not await self.volumes.exists(volume):
            raise NotFound(
                f"The volume of {self.office.record.name} is missing from {volume.parent}.",
                hint="Is the pool mounted? `tenure doctor` says. Tenure will not replace a volume by an empty one.",
                details={"evidence": {"volume": str(volume), "pool_has": _names(volume.parent)}},
            )

    async def _check(self) -> None:
        office = self.office
        mended, damage = await asyncio.to_thread(mending.lend, self.settings, office.record, office.volume)
        self.notes.extend(Note(What.MENDED, what) for what in mended)
        if damage:
            raise VolumeError(
                f"The volume of {office.record.name} is damaged: {damage[0]}.", details={"evidence": {"damage": damage}}
            )

    async def _check_database(self) -> None:
        damage = await asyncio.to_thread(mending.database_damage, self.office.volume)
        if damage:
            raise VolumeError(
                f"The database of {self.office.record.name} is damaged: {damage[0]}.",
                hint="A snapshot has it as it was: `tenure snapshot list AGENT`.",
                details={"evidence": {"damage": damage}},
            )

    async def _furnish(self) -> None:
        office = self.office
        await office.listen()
        complaints = await asyncio.to_thread(
            furnish.before_boot, self.settings, office.record, office.volume, office.environment, office.hosts
        )
        for complaint in complaints:
            office.log.write("office", f"boots all the same: {complaint}")

    async def _from_image(self, image: StartFromImage) -> bool:
        """Whether the sandbox runs again with the memory that it had."""
        office = self.office
        try:
            await self._stage(Stage.SANDBOX, lambda: image(office.spec()))
            await self._stage(Stage.DOOR, self._open_door)
            await self._stage(Stage.PROBE, office.door.ping)  # it may be full of processes: no place for one more
        except TenureError as error:
            told = f"its memory does not come back, so it boots afresh: {error.message}"
            self.notes.append(Note(What.COLD, told, Failure.of(error).evidence))
            await self._end()
            return False
        return True

    async def _open_door(self) -> None:
        await door_of(self.office, self.sandboxes, DEADLINES_S[Stage.DOOR])
        await self.office.introduce()

    async def _probe(self) -> None:
        office = self.office
        try:
            done = await office.door.run(
                PROBE_ARGV, env={}, user=PROBE_USER, cwd="/", timeout_s=DEADLINES_S[Stage.PROBE]
            )
        except DoorError:
            raise
        except TenureError as error:
            raise SandboxError(f"No shell starts in the office of {office.record.name}: {error.message}") from error
        if done.exit_code:
            raise SandboxError(
                f"A shell in the office of {office.record.name} ends with exit code {done.exit_code}.",
                details={"evidence": {"stderr": done.stderr[-EVIDENCE_CHARS_MAX:].decode("utf-8", "replace")}},
            )


async def door_of(office: Bootable, sandboxes: SandboxDriver, timeout_s: float) -> None:
    """Waits for `officed` to dial. Raises `DoorClosed` when it does not, and at once `SandboxDead` when its sandbox ends."""
    waiting = asyncio.create_task(office.door.wait_open(timeout_s))
    try:
        while not (await asyncio.wait([waiting], timeout=DEATH_POLL_S))[0]:
            if await sandboxes.state(office.spec().id) is SandboxState.DEAD:
                raise SandboxDead(f"The sandbox of {office.record.name} ended before its door opened.")
        await waiting
    finally:
        waiting.cancel()


def _names(directory: Path) -> list[str]:
    """What else is there, for whoever looks into it."""
    try:
        return sorted(path.name for path in directory.iterdir())[:50]
    except OSError as error:
        return [f"({error.strerror})"]
