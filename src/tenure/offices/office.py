"""One office that this server holds: its door, its doorway's listeners, its database, and how it wakes and sleeps."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Protocol

from tenure.data.database import OfficeDatabase
from tenure.data.objects import ObjectStore
from tenure.data.s3.events import ObjectEvents
from tenure.errors import Conflict, DoorClosed, NotFound, SandboxDead, SandboxError, TenureError
from tenure.offices import furnish
from tenure.offices.boot import Boot, Note, StartFromImage, door_of
from tenure.offices.clones import Clones, write_office_file
from tenure.offices.door.door import Door, Drained
from tenure.offices.log import office_log
from tenure.offices.memory import MemoryImage
from tenure.offices.models import OfficeRecord, OfficeView, Usage
from tenure.offices.neighbourhood import Neighbourhood
from tenure.offices.neighbours import NeighbourSource
from tenure.offices.rest import RestPolicy, Tier, due
from tenure.offices.sandboxes.base import SandboxDriver, SandboxSpec, SandboxState
from tenure.offices.spares import SpareVolumes
from tenure.offices.volumes.base import VolumeDriver
from tenure.postgres.cluster import ClusterState
from tenure.settings import Settings
from tenure.use import Use

ADOPT_TIMEOUT_S = 5.0
PROBE_TIMEOUT_S = 5.0
PROBE_PAUSE_S = 0.05
DEATH_WAIT_S = 2.0
HIBERNATE_AGAIN_S = 300.0
"""How long an office that could not be hibernated is left alone."""
USAGE_AGE_S = 0.5

FORWARDS = (
    ("127.0.0.2:5432", "db"),
    ("127.0.0.3:9000", "s3"),
    ("127.0.0.4:8700", "api"),
    ("127.0.0.5:3128", "egress"),
)
"""What every office can reach: its own loopback addresses, each forwarded to a socket of its doorway. Beside them there are only
its neighbours (`Neighbourhood`), which come and go."""

logger = logging.getLogger(__name__)


class Listener(Protocol):
    """Something that serves one socket of the doorway."""

    async def close(self) -> None: ...


class Health(Protocol):
    """What is done about an office that does not boot; `tenure.offices.healer.Healer`."""

    async def permit(self, office: Office) -> None:
        """Raises `OfficeBroken` while a person is needed."""

    async def permit_database(self, office: Office) -> None: ...
    async def heal(self, office: Office, error: TenureError) -> None:
        """Returns when the office is awake after all; else raises."""

    def database_failed(self, office: Office, error: TenureError) -> None: ...
    async def noted(self, name: str, notes: Sequence[Note]) -> None: ...
    def is_given_up(self, name: str) -> bool: ...


class Depot(Protocol):
    """Where offices lie that are not on this machine; `tenure.offices.archives.depot.Depot`."""

    async def fetch(self, record: OfficeRecord) -> None:
        """Puts the volume of an archived office back in its place, after which the office is archived no more. When it raises,
        it still is, and nothing has changed. Nothing may use the office meanwhile."""

    async def free(self, record: OfficeRecord) -> None:
        """Deletes what is here of an archived office."""


ListenerFactory = Callable[[OfficeRecord, Path, Use], Awaitable[Listener]]


@dataclass(frozen=True)
class OfficeParts:
    """What every office of an installation shares."""

    settings: Settings
    sandboxes: SandboxDriver
    volumes: VolumeDriver
    spares: SpareVolumes
    listeners: dict[str, ListenerFactory]
    """Per socket name of `FORWARDS` but `db`, which the office's own database serves."""
    environment: dict[str, str]
    """What every command in an office finds in its environment."""
    mount_pool: Callable[[], None]
    """Mounts the pool when it is not. Raises `SetupError`."""
    depot: Depot | None = None
    """None where no office is ever archived."""
    object_events: ObjectEvents = field(default_factory=ObjectEvents)
    """Told of objects that come and go."""
    neighbours: Sequence[NeighbourSource] = ()


class Office:
    """`ready` is the way in: it returns the open door of an office that is awake, waking it when it is not."""

    def __init__(self, record: OfficeRecord, parts: OfficeParts, health: Health) -> None:
        settings = parts.settings
        self.record = record
        self.volume = settings.volumes_dir / record.name
        self.doorway = settings.doorway(record.name)
        self.use = Use()
        self.door = Door(record.name, self.doorway, self.use)
        self.database = OfficeDatabase(
            settings,
            record.name,
            self.volume,
            record.uid,
            grant_room=self._grant_room,
            use=self.use,
            before_start=self._permit_database,
            on_failure=lambda error: health.database_failed(self, error),
        )
        self.objects = ObjectStore(self.volume / "objects", record.name, parts.object_events)
        self.log = office_log(settings, record.name)
        self._neighbourhood = Neighbourhood(record.name, self.doorway, self.use, self.log, parts.neighbours)
        self._parts, self._health = parts, health
        self._changing = asyncio.Lock()
        self._listening: list[Listener] | None = None
        self._waking = False
        self._broken = False
        self._vacant = False
        self._still = False
        self._memory = MemoryImage(settings, parts.sandboxes, record.name, self.volume)
        self._cannot_hibernate: tuple[float, str] | None = None
        self._database_may_run = False
        self._measuring = asyncio.Lock()
        self._measured = ("", Usage(), 0.0)

    async def database_for_use(self) -> OfficeDatabase:
        """For what does not come through the door; the office need not be awake for it. Raises as `present`."""
        await self.present()
        self.use.touch()
        return self.database

    @property
    def environment(self) -> dict[str, str]:
        return {**self._parts.environment, "TENURE_AGENT": self.record.name, "HOSTNAME": self.record.name}

    # --- what it is now ----------------------------------------------------------------------------------------------
    async def state(self) -> str:
        """A `Tier`, "waking" or "broken" (the last attempt to wake it failed)."""
        if self._waking:
            return "waking"
        tier = await self.tier()
        if tier is Tier.ARCHIVED:
            return tier
        if self._health.is_given_up(self.record.name):
            return "broken"
        return "broken" if self._broken and tier is Tier.STOPPED else tier

    async def tier(self) -> Tier:
        if self.record.archived is not None:
            return Tier.ARCHIVED
        sandbox = await self._sandbox_state()
        if sandbox is SandboxState.PAUSED and not self._still:
            return Tier.PAUSED
        if sandbox in (SandboxState.RUNNING, SandboxState.PAUSED):
            return Tier.AWAKE
        return Tier.HIBERNATED if self._memory.exists else Tier.STOPPED

    @property
    def rest_policy(self) -> RestPolicy:
        settings = self._parts.settings
        of_server = RestPolicy(settings.pause_after_s, settings.hibernate_after_s, settings.stop_after_s)
        return of_server.but(self.record.rest)

    async def view(self, *, with_usage: bool) -> OfficeView:
        state = await self.state()
        idle_s = None if state in (Tier.STOPPED, Tier.ARCHIVED) else self.use.idle_s
        view = OfficeView(self.record, state, self.rest_policy, idle_s)
        return view.with_usage(await self._usage(view.state)) if with_usage else view

    async def _usage(self, state: str) -> Usage:
        """At most one measurement per `USAGE_AGE_S`, which starts a program: an office may ask for its own as often as it
        likes."""
        async with self._measuring:
            of_state, usage, at = self._measured
            if of_state != state or time.monotonic() > at + USAGE_AGE_S:
                usage = await self._measure(state)
                self._measured = (state, usage, time.monotonic())
            return usage

    async def _measure(self, state: str) -> Usage:
        disk = memory = processes = None
        if state == Tier.ARCHIVED:
            return Usage(disk_bytes=0)
        try:
            disk = (await self._parts.volumes.usage(self.volume)).used_bytes
            if state in (Tier.AWAKE, Tier.PAUSED):
                sandbox = await self._parts.sandboxes.usage(self.record.name)
                memory, processes = sandbox.memory_bytes, sandbox.processes
        except TenureError as error:
            logger.warning("usage of %s: %s", self.record.name, error)
        return Usage(disk, memory, processes)

    async def _sandbox_state(self) -> SandboxState:
        return await self._parts.sandboxes.state(self.record.name)

    # --- waking ------------------------------------------------------------------------------------------------------
    async def ready(self) -> Door:
        """The open door; wakes the office when it sleeps or died, mending what it can. Raises `SandboxError` (`OfficeBroken`
        when a person is needed), `DoorClosed`, `DiskFull`, and what `Boot.run` raises."""
        self.use.touch()
        if not await self._is_ready():
            await self._health.permit(self)
            async with self._healing():
                await self.try_ready()
        return self.door

    async def try_ready(self) -> None:
        """The same, but what does not boot is left so."""
        async with self._changing:
            if not await self._is_ready():
                await self._bring_up()

    @contextlib.asynccontextmanager
    async def _healing(self) -> AsyncGenerator[None]:
        """Mends what does not boot. Not to be entered with `_changing` held."""
        try:
            yield
        except TenureError as error:
            if "stage" not in error.details:
                raise
            await self._health.heal(self, error)

    async def _is_ready(self) -> bool:
        """A sandbox that died a moment ago may have left connections that do not know it yet."""
        return self.door.is_open and await self._sandbox_state() is SandboxState.RUNNING

    async def has_died(self) -> bool:
        """Whether its sandbox, whose door has just closed, runs no more or ceases to within `DEATH_WAIT_S`."""
        deadline = time.monotonic() + DEATH_WAIT_S
        while await self._sandbox_state() is SandboxState.RUNNING:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(PROBE_PAUSE_S)
        return True

    async def _bring_up(self) -> None:
        await self._bring_here()
        state = await self._sandbox_state()
        if state is SandboxState.PAUSED and self._listening is not None:
            await self._parts.sandboxes.resume(self.record.name)
            state = SandboxState.RUNNING
        if state is SandboxState.RUNNING and self._listening is not None:
            try:  # all connections may be in use for a moment; only a silent door is a reason to act
                await self.door.wait_open()
                await self.introduce()  # neighbours may have come and gone while it was paused
                return
            except DoorClosed:
                self.log.write("office", "the sandbox runs but its door is silent")
                raise
        if state is SandboxState.RUNNING:
            await self._adopt()
        else:
            await self._boot(state, self._memory.for_boot())

    async def _boot(self, state: SandboxState, image: StartFromImage | None = None) -> None:
        """See `Boot.run`."""
        parts = self._parts
        boot = Boot(self, parts.settings, parts.sandboxes, parts.volumes, parts.mount_pool)
        self._waking = True
        try:
            await boot.run(state, image)
        except TenureError:
            self._broken = True
            raise
        finally:
            self._waking = False
            await self._health.noted(self.record.name, boot.notes)
        self._broken = False

    def spec(self) -> SandboxSpec:
        """How this office's sandbox is started."""
        return SandboxSpec(
            id=self.record.name,
            root=self.volume / "rootfs",
            doorway=self.doorway,
            officed_dir=self._parts.settings.officed_dir,
            hostname=self.record.name,
            limits=self.record.limits.for_sandbox(),
            forwards=tuple((address, f"{name}.sock") for address, name in FORWARDS),
        )

    async def listen(self) -> None:
        """Opens the doorway: the door and what the forwards reach. Does nothing when it is open."""
        if self._listening is not None:
            return
        self.doorway.mkdir(parents=True, exist_ok=True)
        await self.door.open()
        await self.database.serve(self.doorway / "db.sock")
        self._listening = []
        for name, factory in self._parts.listeners.items():
            self._listening.append(await factory(self.record, self.doorway / f"{name}.sock", self.use))
        await self._neighbourhood.open()

    @property
    def hosts(self) -> str:
        return furnish.hosts_file(self.record.name, self._neighbourhood.hosts)

    async def introduce(self) -> None:
        """Tells the office, whose door is open, who its neighbours are now. Does not raise: one that is not told knows those
        that it had, of whom none is served any more that went."""
        try:
            complaints = await self.door.declare_forwards(self._neighbourhood.forwards, self.hosts)
        except TenureError as error:
            complaints = (error.message,)
        for complaint in complaints:
            self.log.write("office", f"neighbours: {complaint}")

    async def neighbours_changed(self) -> None:
        """Those that went are gone when this returns, their connections broken; those that came can be reached, if the office is
        awake. One that is not learns of both when it wakes."""
        await self._neighbourhood.settle()
        async with self._changing:
            if self._listening is not None and await self._sandbox_state() is SandboxState.RUNNING:
                await self.introduce()

    async def _adopt(self) -> None:
        """A sandbox that outlived its server: open the doorway under it, and it dials in."""
        await self.listen()
        await door_of(self, self._parts.sandboxes, ADOPT_TIMEOUT_S)
        await self.introduce()
        self.log.write("office", "adopted: it went on while no server ran")

    async def adopt(self) -> None:
        """For a server that starts: takes over a running sandbox; cleans up a dead one. Never wakes."""
        async with self._changing:
            if self.record.archived is not None and self._parts.depot is not None:
                await self._memory.discard()
                await self._parts.depot.free(self.record)
                return
            await self._clones.settle(self.record.name)
            self._database_may_run = await self.database.state() is ClusterState.RUNNING
            state = await self._sandbox_state()
            if state is SandboxState.PAUSED:  # its server died while it took a snapshot
                await self._parts.sandboxes.resume(self.record.name)
                state = SandboxState.RUNNING
            if state is SandboxState.RUNNING:
                await self._memory.discard()  # of which it was started: spent
                try:
                    await self._adopt()
                except SandboxDead:  # killed while it was frozen, it ended when it was thawed
                    await self._parts.sandboxes.stop(self.record.name, grace_s=0)
                    await self._close_doorway()
            elif state is not SandboxState.ABSENT:
                await self._parts.sandboxes.stop(self.record.name, grace_s=0)

    # --- sleeping ----------------------------------------------------------------------------------------------------
    async def rest(self, tier: Tier) -> None:
        """Puts it to rest, whoever uses it. An office that rests as deeply already stays so. Raises `Conflict` when it is to
        be hibernated and cannot be now; then it is as it was."""
        async with self._changing:
            await self._rest(tier)

    @property
    def may_rest(self) -> bool:
        """Whether there is anything left of it that could rest deeper; costs nothing to ask."""
        if self._listening is not None or self._database_may_run:
            return True
        stop_after_s = self.record.rest.get("stop_after_s", self._parts.settings.stop_after_s)
        return (
            bool(stop_after_s) and self._memory.exists
        )  # not `rest_policy`: this is asked of every sleeper, every second

    async def rest_if_idle(self, now: datetime) -> None:
        """Lets it sink to the tier that is due, if any. Raises `TenureError` when it cannot."""
        tier = await self.tier()
        if tier in (Tier.HIBERNATED, Tier.STOPPED):
            await self._rest_database()
        if tier is Tier.AWAKE and not self._waking:
            with contextlib.suppress(NotFound):
                self.use.computed((await self._parts.sandboxes.usage(self.record.name)).cpu_s)
        if self._due(tier, now) is not None:
            async with self._changing:
                if (wanted := self._due(await self.tier(), now)) is not None:
                    try:
                        await self._rest(wanted)
                    except Conflict as error:
                        self._cannot_hibernate = (time.monotonic(), error.message)
                        self.log.write("office", f"stays {await self.tier()}: {error.message}")

    def _due(self, tier: Tier, now: datetime) -> Tier | None:
        if self.record.lease is not None and now < self.record.lease.until:
            return None
        barred: set[Tier] = set()
        tried = self._cannot_hibernate
        if not self._parts.sandboxes.can_checkpoint or (tried and time.monotonic() < tried[0] + HIBERNATE_AGAIN_S):
            barred.add(Tier.HIBERNATED)
        return due(tier, self.use.idle_s, self.rest_policy, barred=frozenset(barred))

    async def _rest(self, wanted: Tier) -> None:
        tier = await self.tier()
        if wanted.depth <= tier.depth and not (wanted is Tier.STOPPED and self._broken):
            if tier in (Tier.HIBERNATED, Tier.STOPPED):  # somebody may have used its data meanwhile
                await self.database.stop()
            return
        if wanted is Tier.PAUSED:
            await self._parts.sandboxes.pause(self.record.name)
        elif wanted is Tier.HIBERNATED:
            await self._hibernate(tier)
        else:
            await self._stop()
            self._broken = False
        self.log.write("office", str(wanted))

    async def _hibernate(self, tier: Tier) -> None:
        """The order: nobody can begin anything with it any more; it has let go of the host's sockets; its memory is on disk;
        then its database stops. Whatever fails before the last of its memory is written leaves it as it was."""
        sandboxes, name = self._parts.sandboxes, self.record.name
        if not sandboxes.can_checkpoint:
            raise Conflict(f"{name} cannot be hibernated: {sandboxes.cannot_checkpoint}.")
        if tier is Tier.PAUSED:
            await sandboxes.resume(name)
        memory_bytes = (await sandboxes.usage(name)).memory_bytes
        self._still = True
        try:
            drained = await self._drain()
            if not drained.done:
                raise Conflict(
                    f"{name} cannot be hibernated now: {_in_the_way(drained)}.",
                    hint=f"`tenure sleep {name} --tier paused` freezes it in memory; `--tier stopped` ends its processes.",
                )
            await self._memory.make(memory_bytes)
        except BaseException as error:
            await asyncio.shield(self._undo_hibernate(tier))
            if isinstance(error, TenureError) and not isinstance(error, Conflict):
                raise Conflict(f"{name} cannot be hibernated now: {error.message}", hint=error.hint) from error
            raise
        finally:
            self._still = False
        await self.database.stop()
        await self._close_doorway()

    async def _drain(self) -> Drained:
        """A command that nobody's use accounts for is a probe of Tenure's own, and over in a moment."""
        deadline = time.monotonic() + PROBE_TIMEOUT_S
        while True:
            drained = await self.door.drain()
            probed = drained.commands > 0 and not drained.jobs and not drained.obstacles and not self.use.is_in_use
            if not probed or time.monotonic() > deadline:
                return drained
            await asyncio.sleep(PROBE_PAUSE_S)

    async def _undo_hibernate(self, tier: Tier) -> None:
        name, sandboxes = self.record.name, self._parts.sandboxes
        if await self._sandbox_state() is SandboxState.PAUSED:
            await sandboxes.resume(name)
        if await self._sandbox_state() is not SandboxState.RUNNING:
            self.log.write("office", "died of the attempt to hibernate it; its next use starts it afresh")
            await self._close_doorway()
            return
        if not self.door.is_listening:  # one that refused to drain opened it again
            await self.door.open()
        with contextlib.suppress(DoorClosed):
            await self.door.wait_open()
        if tier is Tier.PAUSED:
            await sandboxes.pause(name)

    async def _rest_database(self) -> None:
        """A database that somebody used while its office slept."""
        after_s = self.rest_policy.pause_after_s
        if not self._database_may_run or after_s is None or self.use.idle_s < after_s:
            return
        async with self._changing:
            if await self.tier() in (Tier.HIBERNATED, Tier.STOPPED) and self.use.idle_s >= after_s:
                self._database_may_run = False  # before it stops: whoever starts it again meanwhile sets it
                try:
                    await self.database.stop()
                except BaseException:
                    self._database_may_run = True
                    raise

    async def _stop(self) -> None:
        """Nothing of it runs then, and no memory of it is left."""
        await self._parts.sandboxes.stop(self.record.name)
        await self.database.stop()
        await self._close_doorway()
        await self._memory.discard()

    async def _close_doorway(self) -> None:
        listening, self._listening = self._listening or [], None
        await self._neighbourhood.close()
        for listener in listening:
            await listener.close()
        await self.database.close()
        await self.door.close()

    async def let_go(self) -> None:
        """For a server that ends while offices go on: closes the doorway only."""
        async with self._changing:
            await self._close_doorway()

    # --- recovery ----------------------------------------------------------------------------------------------------
    async def reconnect(self) -> None:
        """Rung 4: hang up; the office dials anew. Raises `DoorClosed` when it does not."""
        async with self._changing:
            self.log.write("office", "door: reconnecting")
            self.door.hang_up()
            if await self._sandbox_state() is SandboxState.RUNNING:
                await self.listen()
                await self.door.wait_open()
                await self.introduce()
                return
        await self.ready()

    async def restart(self) -> None:
        """Rung 5: fresh processes on the same volume. What ran is lost, what was written is not."""
        async with self._healing(), self._changing:
            self.log.write("office", "restarting the sandbox")
            await self._bring_here()
            await self._stop()
            await self._boot(SandboxState.ABSENT)

    @property
    def is_watchable(self) -> bool:
        """Whether it is awake by all that we know, and nobody is changing that: a supervisor looks at no other."""
        return self._listening is not None and not (
            self._waking or self._still or self._vacant or self._changing.locked()
        )

    async def clean_up_dead(self) -> bool:
        """Ends what is left of a sandbox that died. Whether there was one."""
        async with self._changing:
            if await self._sandbox_state() is not SandboxState.DEAD:
                return False
            await self._stop()
            return True

    async def probe(self) -> bool:
        """Whether a trivial command runs within `PROBE_TIMEOUT_S`. Does not wake a sleeping office, and does not raise."""
        if not self.door.is_open:
            return False
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                return (await self.door.run(("/bin/true",), env={}, user="root", counts=False)).exit_code == 0
        except (TimeoutError, SandboxError, TenureError):
            return False

    # --- being copied and replaced -----------------------------------------------------------------------------------
    @property
    def _clones(self) -> Clones:
        return Clones(self._parts.settings, self._parts.volumes)

    @contextlib.asynccontextmanager
    async def still(self) -> AsyncGenerator[None]:
        """Its processes are frozen meanwhile, so that a copy has all that they wrote before one instant and nothing that they
        wrote after: the file system alone does not promise that of files that were not synced. Its database and objects
        sync what they confirm; the database rests where copying takes longer than an instant."""
        async with self._changing, contextlib.AsyncExitStack() as stack:
            await self._bring_here()
            if await self._sandbox_state() is SandboxState.RUNNING:
                self._still = True
                stack.callback(setattr, self, "_still", False)
                await self._parts.sandboxes.pause(self.record.name)
                stack.push_async_callback(self._parts.sandboxes.resume, self.record.name)
            if not self._parts.volumes.instant_snapshots:
                await stack.enter_async_context(self.database.at_rest())
                await stack.enter_async_context(self.objects.at_rest())
            yield

    @contextlib.asynccontextmanager
    async def vacated(self) -> AsyncGenerator[None]:
        """Nothing of it runs meanwhile, and whoever needs it waits. Then it wakes if it was awake and has not been archived; one
        that does not wake is broken, as after any boot."""
        async with self._changing:
            await self._bring_here()
            was_awake = await self._sandbox_state() in (SandboxState.RUNNING, SandboxState.PAUSED)
            self._vacant = True
            try:
                await self._stop()
                async with self.database.at_rest(), self.objects.at_rest():
                    yield
            finally:
                self._vacant = False
                self._measured = ("", Usage(), 0.0)
                if was_awake and self.record.archived is None:
                    with contextlib.suppress(TenureError):
                        await self._boot(SandboxState.ABSENT)

    async def present(self) -> None:
        """Returns when its volume is here and is not being replaced. Raises as `Depot.fetch`."""
        self.use.touch()
        if self._vacant or self.record.archived is not None:
            async with self._changing:
                await self._bring_here()

    async def _bring_here(self) -> None:
        """Fetches an archived office. To its end even when the caller is cancelled, since nobody else may use it meanwhile."""
        if self.record.archived is None or self._parts.depot is None:
            return
        fetching = asyncio.ensure_future(self._fetch(self._parts.depot))
        try:
            await asyncio.shield(fetching)
        except asyncio.CancelledError:
            while not fetching.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([fetching])
            raise

    async def _fetch(self, depot: Depot) -> None:
        began, place = time.monotonic(), self.record.archived.destination if self.record.archived else ""
        self._waking = True
        try:
            await depot.fetch(self.record)
        except TenureError as error:
            self.log.write("office", f"stays archived: {error.message}")
            raise
        finally:
            self._waking = False
        self.record = replace(self.record, archived=None)
        self._measured = ("", Usage(), 0.0)
        self.log.write("office", f"back from {place} after {time.monotonic() - began:.1f} s")

    async def _permit_database(self) -> None:
        if self.record.archived is not None:  # since whoever uses it was let through
            raise Conflict(f"{self.record.name} was archived meanwhile.", hint="Try again: that brings it back.")
        await self._health.permit_database(self)
        self._database_may_run = True

    # --- volume ------------------------------------------------------------------------------------------------------
    async def make_volume(self, image: Path) -> None:
        """Clones the image. What a killed attempt left is replaced, since nothing was ever stored in it."""
        if await self._sandbox_state() is not SandboxState.ABSENT:
            await self._parts.sandboxes.stop(self.record.name, grace_s=0)
        await self._parts.volumes.delete(self.volume)
        await self._parts.spares.clone(image, self.volume)
        # Its files belong to user ids that people on the host may have: they must not get there.
        self.volume.chmod(0o700)
        write_office_file(self.volume, self.record, None)

    async def make_fork(self, snapshot: Path) -> None:
        """Clones a snapshot of another office, limit included. What a killed attempt left is replaced."""
        if await self._sandbox_state() is not SandboxState.ABSENT:
            await self._parts.sandboxes.stop(self.record.name, grace_s=0)
        await self._clones.stage(self.record, snapshot, fork=True)
        await self._clones.place(self.record)

    async def _grant_room(self, extra_bytes: int) -> None:
        """Lets a database that filled its disk recover: it needs room to start, and gives it back."""
        await self._parts.volumes.set_limit(self.volume, self.record.limits.disk_bytes + extra_bytes)

    async def limit_disk(self) -> None:
        """Has the volume's driver hold the office's disk limit, from now on."""
        await self._parts.volumes.set_limit(self.volume, self.record.limits.disk_bytes)

    async def demolish(self) -> None:
        """Stops everything and deletes the volume, the doorway and the log."""
        async with self._changing:
            await self._stop()
            await self._clones.settle(self.record.name)
            await self._parts.volumes.delete(self.volume)
            if self.doorway.exists():
                for path in self.doorway.iterdir():
                    path.unlink()
                self.doorway.rmdir()
            self.log.remove()


def _in_the_way(drained: Drained) -> str:
    reasons = list(drained.obstacles)
    if drained.commands:
        reasons.append(f"{drained.commands} commands run in it")
    if drained.jobs:
        reasons.append(f"the command of a step runs in it ({', '.join(drained.jobs[:3])})")
    return "; ".join(reasons) or "it would not let go of its connections"
