"""Offices: create, find, use, sleep, delete. The server's API calls this; see `tenure.server.services.Offices`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from tenure.data.database import OfficeDatabase
from tenure.data.objects import ObjectStore
from tenure.errors import AlreadyExists, DoorClosed, InvalidArgument, NotFound, SetupError, TenureError, TooLarge
from tenure.names import check_name
from tenure.offices.care import Care
from tenure.offices.clones import Clones
from tenure.offices.door.door import RunResult
from tenure.offices.door.session import Session, Stream
from tenure.offices.history import OfficeEvent
from tenure.offices.models import Limits, OfficeRecord, OfficeView, SnapshotKind
from tenure.offices.office import Office, OfficeParts
from tenure.offices.rebuilding import Rebuilt
from tenure.offices.rest import Lease, Tier
from tenure.offices.snapshots import Snapshots
from tenure.offices.store import OfficeStore
from tenure.work.hands import Command, CommandStatus

SCRIPT_BYTES_MAX = 120 * 1024
"""Linux takes at most 128 KiB in one argument."""
RESTS_AT_ONCE = 4
EXEC_TIMEOUT_S_DEFAULT = 600.0
DISK_SPARE_BYTES_MIN = 200 * 1024**2
"""What an office's disk must hold beside the image: room for its database to start and for a little work."""
USER_DEFAULT = "agent"

logger = logging.getLogger(__name__)


class _Wanted(Protocol):
    @property
    def cpus(self) -> float | None: ...
    @property
    def memory_mb(self) -> int | None: ...
    @property
    def disk_gb(self) -> float | None: ...
    @property
    def processes(self) -> int | None: ...


class _Image(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def path(self) -> Path: ...


class Offices:
    """All offices of this installation. Every method that names an agent raises `NotFound` when there is none."""

    def __init__(
        self,
        store: OfficeStore,
        parts: OfficeParts,
        image: _Image,
        make_snapshots: Callable[[Callable[[str], Awaitable[Office]]], Snapshots],
        make_care: Callable[[Snapshots, Callable[[str], Awaitable[Office]], Callable[[], Iterable[Office]]], Care],
        *,
        check_egress: Callable[[Sequence[str]], Sequence[str]] = tuple,
    ) -> None:
        """`make_snapshots` and `make_care` get what finds an office by its agent's name. `check_egress` returns what to keep of
        the egress entries that a caller gave; it raises `InvalidArgument`."""
        self._store, self._parts, self._image = store, parts, image
        self._check_egress = check_egress
        self._image_bytes: int | None = None  # measured once: an image does not change
        self._held: dict[str, Office] = {}
        self._resting: dict[int, asyncio.Task[None]] = {}
        self._rest_slots = asyncio.Semaphore(RESTS_AT_ONCE)
        self._on_deleted: list[Callable[[str], Awaitable[None]]] = []
        self.snapshots = make_snapshots(self._office)
        self._care = make_care(self.snapshots, self._office, lambda: list(self._held.values()))

    # --- the installation ----------------------------------------------------------------------------------------------
    async def adopt_all(self) -> None:
        """For a server that starts: finishes what a dead one left half done and takes over the sandboxes that run."""
        await self._care.healer.load()
        for record in await self._store.all(with_deleting=True):
            office = self._hold(record)
            steps: list[Callable[[], Awaitable[None]]] = [partial(self._care.trials.tidy, record)]
            if record.stage == "creating":
                steps.append(partial(self._create_again, office))
            elif record.stage == "deleting":
                steps.append(partial(self._demolish, office))
            else:
                steps += [office.adopt, partial(self.snapshots.tidy, record)]
            for step in steps:  # one that cannot be adopted has leftovers all the same
                try:
                    await step()
                except TenureError as error:
                    logger.warning("adopting %s: %s", record.name, error)
                    office.log.write("office", f"not adopted: {error.message}")
        await self._care.rebuilder.resume()
        self._parts.spares.replenish(self._image.path)

    async def _create_again(self, office: Office) -> None:
        """What a dead server began. A fork whose snapshot is gone goes, too: nobody was told that it is there."""
        record = office.record
        if record.origin is None:
            await office.make_volume(self._image_path(record))
            await office.limit_disk()
        elif (snapshot := await self.snapshots.find(record.origin)) is not None:
            await office.make_fork(snapshot)
        else:
            await self._demolish(office)
            return
        await self._store.set_stage(record.name, "asleep")

    def on_deleted(self, end: Callable[[str], Awaitable[None]]) -> None:
        """`end` is awaited with the name of each agent that is deleted, before another can have it; perhaps twice."""
        self._on_deleted.append(end)

    async def close(self) -> None:
        """For `tenure down`: every office is put to sleep."""
        await self._care.close()
        await self._parts.spares.close()
        resting = list(self._resting.values())
        for task in resting:
            task.cancel()
        await asyncio.gather(*resting, return_exceptions=True)
        await asyncio.gather(*(office.rest(Tier.STOPPED) for office in self._held.values()), return_exceptions=True)

    async def let_go(self) -> None:
        """For a server that is replaced: the offices go on."""
        await self._care.close()
        await self.snapshots.close()
        await asyncio.gather(*(office.let_go() for office in self._held.values()), return_exceptions=True)

    def _hold(self, record: OfficeRecord) -> Office:
        if record.name not in self._held or self._held[record.name].record.number != record.number:
            self._held[record.name] = Office(record, self._parts, self._care.healer)
        return self._held[record.name]

    async def _office(self, name: str) -> Office:
        held = self._held.get(name)
        return held if held is not None else self._hold(await self._store.get(name))

    def _image_path(self, record: OfficeRecord) -> Path:
        path = self._parts.settings.images_dir / record.image
        if not path.exists():
            raise SetupError(f"The image {record.image} is not there.", hint="`tenure setup` builds it.")
        return path

    # --- life ------------------------------------------------------------------------------------------------------------
    async def create(self, name: str, limits: _Wanted, egress: Sequence[str], *, asleep: bool = False) -> OfficeView:
        """A new office, awake unless it is to be asleep. Raises `InvalidName`, `AlreadyExists`, `DiskFull`, `SandboxError`."""
        check_name(name)
        given = {
            key: value
            for key in ("cpus", "memory_mb", "disk_gb", "processes")
            if (value := getattr(limits, key)) is not None
        }
        entries = self._check_egress(egress)
        wanted = replace(Limits(), **given)
        await self._check_disk(wanted)
        record = await self._store.add(name, self._image.id, wanted, entries)
        office = self._hold(record)
        try:
            await office.make_volume(self._image_path(record))
            office.log.write("office", f"created from {record.image}")
            # Both at once: the limit waits for the disk, the boot for a processor.
            await asyncio.gather(office.limit_disk(), *(() if asleep else (office.try_ready(),)))
        except BaseException:
            await asyncio.shield(self._demolish(office))
            raise
        await self._store.set_stage(name, "asleep")
        return await office.view(with_usage=False)

    async def _check_disk(self, wanted: Limits) -> None:
        """An office that the image alone fills could not even start: it is refused before anything is made."""
        if not self._parts.volumes.holds_limits:
            return
        if self._image_bytes is None:
            self._image_bytes = (await self._parts.volumes.usage(self._image.path)).used_bytes
        image_bytes = self._image_bytes
        least_gb = (image_bytes + DISK_SPARE_BYTES_MIN) / 1024**3
        if wanted.disk_gb < least_gb:
            raise InvalidArgument(
                f"A disk of {wanted.disk_gb:g} GB is too small: the image alone takes {image_bytes / 1024**3:.2f} GB of it.",
                hint=f"Give the office at least {least_gb:.2f} GB.",
            )

    async def fork(self, name: str, new: str, snapshot: str | None = None) -> OfficeView:
        """A new agent, awake, whose office is a clone of `name`'s: of a snapshot by id or name, or as it is now. Limits and
        egress are the same; host key and database user are its own. Raises `InvalidName`, `NotFound`, `AlreadyExists`."""
        check_name(new)
        source = (await self._office(name)).record
        if snapshot is not None:
            await self.snapshots.get(name, snapshot)
        with contextlib.suppress(NotFound):  # before a snapshot is taken in vain
            await self._store.get(new)
            raise AlreadyExists(f"There is an agent named {new} already.", hint="Choose another name for the fork.")
        taken = snapshot or (await self.snapshots.take(name, kind=SnapshotKind.FORK)).id
        async with self.snapshots.kept(name, taken) as (found, path):
            record = await self._store.add(new, source.image, source.limits, source.egress, found.id, thinks_as=name)
            office = self._hold(record)
            try:
                await office.make_fork(path)
            except BaseException:
                await asyncio.shield(self._demolish(office))
                raise
        try:
            office.log.write("office", f"forked of {name}, snapshot {found.id}")
            await office.try_ready()
        except BaseException:
            await asyncio.shield(self._demolish(office))
            raise
        await self._store.set_stage(new, "asleep")
        return await office.view(with_usage=False)

    async def take_in(
        self, name: str, volume: Path, *, image: str, limits: Limits, egress: Sequence[str], origin: str
    ) -> OfficeView:
        """A new agent, asleep, whose office is `volume`, which came from another machine as the export `origin`. Host key and
        database user are its own. Raises `InvalidName`, `AlreadyExists`, `InvalidArgument` for egress not known here."""
        check_name(name)
        record = await self._store.add(name, image, limits, self._check_egress(egress), origin)
        office = self._hold(record)
        try:
            await Clones(self._parts.settings, self._parts.volumes).take_in(record, volume)
            office.log.write("office", f"imported of {origin}")
        except BaseException:
            await asyncio.shield(self._demolish(office))
            raise
        await self._store.set_stage(name, "asleep")
        return await office.view(with_usage=False)

    async def refuse_taken(self, name: str) -> None:
        """Raises `InvalidName`, `AlreadyExists` unless an agent could have this name."""
        check_name(name)
        with contextlib.suppress(NotFound):
            await self._store.get(name)
            raise AlreadyExists(f"There is an agent named {name} already.", hint="Choose another name for the new one.")

    async def office(self, name: str) -> Office:
        """For what works on whole offices."""
        return await self._office(name)

    async def need(self, name: str) -> None:
        """Raises `NotFound` when there is no such agent."""
        await self._office(name)

    async def get(self, name: str) -> OfficeView:
        return await (await self._office(name)).view(with_usage=True)

    async def list(self) -> list[OfficeView]:
        records = await self._store.all()
        return list(await asyncio.gather(*(self._hold(record).view(with_usage=False) for record in records)))

    async def delete(self, name: str) -> None:
        office = await self._office(name)
        await self._store.set_stage(name, "deleting")
        self._held.pop(name, None)
        await self._demolish(office)

    async def _demolish(self, office: Office) -> None:
        await self.snapshots.remove_all(office.record)
        await office.demolish()
        for ended in self._on_deleted:
            await ended(office.record.name)
        await self._store.remove(office.record.name)
        self._care.healer.forget(office.record.name)
        self._held.pop(office.record.name, None)

    async def wake(self, name: str) -> OfficeView:
        """For whoever asks for it by name: what was given up is tried again."""
        office = await self._office(name)
        await self._care.healer.forgive(name, "somebody asked for it to wake")
        await office.ready()
        return await office.view(with_usage=False)

    async def sleep(self, name: str, tier: str = Tier.STOPPED) -> OfficeView:
        """Raises `Conflict` when it is to be hibernated and cannot be now, with the reason."""
        office = await self._office(name)
        await office.rest(Tier(tier))
        return await office.view(with_usage=False)

    async def set_rest(self, name: str, rest: Mapping[str, float]) -> OfficeView:
        """`rest` has seconds by field of `RestPolicy`, 0 for never; what is missing is as the server is set up."""
        office = await self._office(name)
        await self._store.set_rest(name, rest)
        office.record = replace(office.record, rest=dict(rest))
        return await office.view(with_usage=False)

    async def set_lease(self, name: str, seconds: float | None, reason: str = "") -> OfficeView:
        """Keeps it awake for so long, used or not; None ends that."""
        office = await self._office(name)
        lease = None if seconds is None else Lease(datetime.now(UTC) + timedelta(seconds=seconds), reason)
        await self._store.set_lease(name, lease)
        office.record = replace(office.record, lease=lease)
        return await office.view(with_usage=False)

    async def rest_idle(self) -> None:
        """Lets every office sink to the tier that is due for it; to be called every few seconds. Costs next to nothing for
        those that sleep. Does not wait: one that takes its time holds up no other."""
        for office in list(self._held.values()):
            if office.may_rest and office.record.number not in self._resting:
                task = asyncio.create_task(self._rest_idle(office))
                self._resting[office.record.number] = task
                task.add_done_callback(lambda _, number=office.record.number: self._resting.pop(number, None))

    async def _rest_idle(self, office: Office) -> None:
        try:
            async with self._rest_slots:
                await office.rest_if_idle(datetime.now(UTC))
        except TenureError as error:
            office.log.write("office", f"not put to rest: {error.message}")
        except Exception:
            logger.exception("putting %s to rest", office.record.name)

    async def reconnect(self, name: str) -> OfficeView:
        office = await self._office(name)
        await office.reconnect()
        return await office.view(with_usage=False)

    async def restart(self, name: str) -> OfficeView:
        office = await self._office(name)
        await self._care.healer.forgive(name, "somebody asked for a restart")
        await office.restart()
        return await office.view(with_usage=False)

    async def probe(self, name: str) -> bool:
        return await (await self._office(name)).probe()

    async def supervise(self) -> None:
        """Looks at every office that is awake, and acts where two signals say so; to be called every few seconds."""
        await self._care.supervisor.look()

    async def guard_memory(self) -> None:
        """Until cancelled, ends the largest process of each office that has used up its memory."""
        await self._care.memory_guard.run()

    async def history(self, name: str, limit: int = 100) -> list[OfficeEvent]:
        """What was decided about the office, the newest first."""
        await self._office(name)
        return await self._care.history.of(name, limit)

    async def rebuild(self, name: str) -> Rebuilt:
        """A new root from the image with the agent's work. See `Rebuilder.rebuild`."""
        await self._care.healer.forgive(name, "a rebuild was asked for")
        return await self._care.rebuilder.rebuild(name, "it was asked for")

    async def neighbours_changed(self, name: str) -> None:
        """To be called when something was granted to it, or taken away. See `Office.neighbours_changed`."""
        await (await self._office(name)).neighbours_changed()

    # --- commands -----------------------------------------------------------------------------------------------------------
    async def run(
        self,
        name: str,
        *,
        argv: Sequence[str] | None = None,
        script: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str = USER_DEFAULT,
        stdin: bytes = b"",
        timeout_s: float = EXEC_TIMEOUT_S_DEFAULT,
    ) -> RunResult:
        """Runs a command to its end; wakes the office. See `tenure.server.services.Offices.run`."""
        office = await self._office(name)
        command = _argv(argv, script)
        environment = _environment(office, env)
        door = await office.ready()
        try:
            return await door.run(command, env=environment, user=user, cwd=cwd, stdin=stdin, timeout_s=timeout_s)
        except DoorClosed as error:  # its sandbox died as the command came
            if error.details.get("begun") is not False or not await office.has_died():
                raise
        door = await office.ready()
        return await door.run(command, env=environment, user=user, cwd=cwd, stdin=stdin, timeout_s=timeout_s)

    async def attach(
        self,
        name: str,
        *,
        argv: Sequence[str] | None = None,
        script: str | None = None,
        login: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str = USER_DEFAULT,
        tty: tuple[int, int] | None = None,
    ) -> Session:
        """Starts a command and returns its streams; wakes the office."""
        office = await self._office(name)
        command = () if login else _argv(argv, script)
        environment = _environment(office, env)
        door = await office.ready()
        return await door.attach(command, env=environment, user=user, cwd=cwd, tty=tty)

    async def ssh(self, name: str) -> Stream:
        """A fresh connection to the office's sshd; wakes the office."""
        return await (await (await self._office(name)).ready()).ssh()

    async def dial(self, name: str, address: str) -> Stream:
        """A fresh connection to `address` ("127.0.0.1:8000") on the office's loopback; wakes the office."""
        return await (await (await self._office(name)).ready()).dial(address)

    async def command_start(self, name: str, key: str, command: Command) -> CommandStatus:
        office = await self._office(name)
        argv = _argv(None, command.script)
        environment = _environment(office, command.env)
        door = await office.ready()
        return await door.start_job(
            key, argv, env=environment, user=command.user, cwd=command.cwd, timeout_s=command.timeout_s
        )

    async def command_status(self, name: str, key: str, *, wait_s: float = 0.0) -> CommandStatus:
        return await (await (await self._office(name)).ready()).job_status(key, wait_s)

    async def command_stop(self, name: str, key: str) -> None:
        await (await (await self._office(name)).ready()).stop_job(key)

    async def command_forget(self, name: str, key: str) -> None:
        await (await (await self._office(name)).ready()).forget_job(key)

    # --- data ------------------------------------------------------------------------------------------------------------------
    async def database(self, name: str) -> OfficeDatabase:
        return await (await self._office(name)).database_for_use()

    async def objects(self, name: str) -> ObjectStore:
        office = await self._office(name)
        await office.present()
        return office.objects

    async def has_bucket(self, name: str, bucket: str) -> bool:
        """Whether it has a bucket of its own of that name."""
        return await (await self.objects(name)).volume.exists(bucket)

    async def logs(self, name: str, *, lines: int, follow: bool) -> AsyncIterator[bytes]:
        return (await self._office(name)).log.read(lines, follow)


def _argv(argv: Sequence[str] | None, script: str | None) -> tuple[str, ...]:
    if script is not None:
        if len(script.encode("utf-8", "surrogateescape")) > SCRIPT_BYTES_MAX:
            raise TooLarge(
                f"A script may have {SCRIPT_BYTES_MAX} bytes.",
                hint="Copy it into the office (`tenure cp`) and run it from there.",
            )
        argv = ("/bin/bash", "-c", script)
    if not argv or not argv[0]:
        raise InvalidArgument("No command was given.", hint="Say what to run: `tenure exec AGENT -- COMMAND`.")
    if any("\0" in argument for argument in argv):
        raise InvalidArgument("An argument contains a NUL byte, which no program can be given.")
    return tuple(argv)


def _environment(office: Office, extra: Mapping[str, str] | None) -> dict[str, Any]:
    for name, value in (extra or {}).items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise InvalidArgument(f"{name[:60]!r} is not a valid environment variable.")
    return {**office.environment, **(extra or {})}
