"""The `Schedules` service of the server, and the chore that fires what is due.

A due time becomes a row in the transaction that moves the schedule to its next one; a server claims that row for `LEASE`, begins
what it stands for by a key that follows from schedule and due time, and settles it. Whatever dies in between, another claims
it and begins, by the same key, the same thing: so each due time is fired once, by however many servers.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from tenure.errors import Conflict, Forbidden, InvalidArgument, NotFound, TenureError
from tenure.faultpoints import reach
from tenure.identity.authorize import Principal, PrincipalKind
from tenure.names import check_name
from tenure.triggers.actions import Actions
from tenure.triggers.schedule import Firing, FiringState, Missed, Overlap, ScheduleRecord, take
from tenure.triggers.store import HISTORY_MAX
from tenure.triggers.store import Schedules as Store
from tenure.triggers.times import At, Cron, Every, Times, check_times, least_gap_s, next_after, upcoming
from tenure.wire.triggers import Schedule as WireSchedule
from tenure.wire.triggers import ScheduleRequest

log = logging.getLogger("tenure.triggers")

SCHEDULES_MAX = 200
"""Of one agent, those that are over not counted."""
AGENTS_OWN_MAX = 20
"""Of one agent that it made by itself."""
AGENTS_OWN_GAP_S_MIN = 300
"""Least time between two due times of a schedule that an agent made by itself."""
LEASE = timedelta(seconds=120)
FIRE_S = 60.0
"""In which an action has begun what it begins; shorter than the lease."""
AT_ONCE_MAX = 16
ROUNDS_MAX = 50
"""Of claims in one call of `run_due`."""
ATTEMPTS_MAX = 4
RETRY_S = 15.0
"""After the first attempt that failed for a passing reason; twice as long after each further one."""
QUEUE_LOOK_S = 5.0
"""How often is looked whether what the last firing began is over."""
NEXT_SHOWN = 5
TOLD_CHARS_MAX = 1000
_ID_BYTES = 6


def utc_now() -> datetime:
    return datetime.now(UTC)


class Schedules:
    """Of all agents. `now` is the clock."""

    def __init__(self, store: Store, actions: Actions, now: Callable[[], datetime] = utc_now) -> None:
        self._store, self._now = store, now
        self.actions = actions

    # --- what there is -----------------------------------------------------------------------------------------------
    async def create(self, wanted: ScheduleRequest, by: Principal) -> ScheduleRecord:
        """Who is not the owner is held to the limits of an agent that makes schedules for itself. The agent exists. Raises
        `InvalidArgument`, `InvalidName`, `AlreadyExists`, `Conflict` when there are too many, and what the action's check
        raises."""
        check_name(wanted.name, "schedule")
        now = self._now()
        times = check_times(_times_of(wanted, now))
        next_at = next_after(times, now)
        if next_at is None:
            raise InvalidArgument("That time is over.", hint="Give a time to come, like 2026-11-23T03:00Z.")
        agents_own = by.kind is not PrincipalKind.OWNER
        if agents_own:
            _check_agents_own(wanted, times, now)
        what = await self.actions.of(wanted.kind).check(wanted.agent, wanted.what)
        created_by = Principal(PrincipalKind.OFFICE, wanted.agent) if agents_own else by
        await self._check_room(wanted, str(created_by) if agents_own else None)
        record = ScheduleRecord(
            id=f"sch_{secrets.token_hex(_ID_BYTES)}",
            name=wanted.name,
            agent=wanted.agent,
            kind=wanted.kind,
            what=what,
            times=times,
            missed=Missed(wanted.missed),
            overlap=Overlap(wanted.overlap),
            jitter_s=wanted.jitter_s,
            failures_max=wanted.failures_max,
            created_by=str(created_by),
            created_at=now,
            next_at=next_at,
        )
        return await self._store.add(record, wanted.key)

    async def _check_room(self, wanted: ScheduleRequest, own: str | None) -> None:
        alive = [one for one in await self._store.list(wanted.agent) if one.state != "over" and one.name != wanted.name]
        mine = [one for one in alive if one.created_by == own]
        if len(alive) >= SCHEDULES_MAX or (own is not None and len(mine) >= AGENTS_OWN_MAX):
            raise Conflict(
                f"{wanted.agent} has {len(mine) if own else len(alive)} schedules already, as many as are allowed.",
                hint="Delete some of them.",
            )

    async def get(self, wanted: str, agent: str | None = None) -> ScheduleRecord:
        """By id, or by name where only one agent has one of that name. Raises `NotFound`, `Conflict`."""
        found = await self._store.find(wanted, agent)
        if not found:
            raise NotFound(
                f"There is no schedule {wanted[:60]!r}.", hint="`tenure schedule list` shows those there are."
            )
        if len(found) > 1:
            ids = ", ".join(f"{one.id} of {one.agent}" for one in found[:5])
            raise Conflict(f"Several agents have a schedule {wanted[:60]!r}.", hint=f"Name it by its id: {ids}.")
        return found[0]

    async def list(self, agent: str | None = None) -> Sequence[ScheduleRecord]:
        """By agent and name."""
        return await self._store.list(agent)

    async def firings(self, schedule: ScheduleRecord, limit: int = HISTORY_MAX) -> Sequence[Firing]:
        """The latest first."""
        return await self._store.firings(schedule.id, min(limit, HISTORY_MAX))

    def next_times(self, schedule: ScheduleRecord) -> list[datetime]:
        """The next few due times. None of one that is paused."""
        if schedule.next_at is None:
            return []
        return [schedule.next_at, *upcoming(schedule.times, schedule.next_at, NEXT_SHOWN - 1)]

    async def pause(self, schedule: ScheduleRecord, reason: str = "") -> ScheduleRecord:
        """Nothing of it is fired until it is resumed; what was begun goes on. Raises `Conflict` when it is over."""
        if schedule.state == "over":
            raise Conflict(f"The schedule {schedule.name} is over.")
        await self._store.pause(schedule.id, self._now(), reason)
        return await self.get(schedule.id)

    async def resume(self, schedule: ScheduleRecord) -> ScheduleRecord:
        """From now on: due times of the pause are not made up for. Does nothing when it is not paused. Raises `Conflict` when
        its one time is over."""
        if schedule.state == "paused":
            next_at = next_after(schedule.times, self._now())
            if next_at is None:
                raise Conflict(f"The time of {schedule.name} is over.", hint="Make a new schedule.")
            await self._store.resume(schedule.id, next_at)
        return await self.get(schedule.id)

    async def delete(self, schedule: ScheduleRecord, by: Principal) -> None:
        """With its history; what it began goes on. Who is not the owner may delete only what the agent made itself. Raises
        `Forbidden`."""
        if by.kind is not PrincipalKind.OWNER and schedule.created_by != str(
            Principal(PrincipalKind.OFFICE, schedule.agent)
        ):
            raise Forbidden(
                f"{schedule.agent} did not make the schedule {schedule.name} and may not delete it.",
                hint="Its owner may.",
            )
        await self._store.delete(schedule.id)

    async def run_now(self, schedule: ScheduleRecord) -> Firing:
        """Begins it at once, whatever else goes on; its due times stay as they are. The firing says what it began, or why not."""
        now = self._now()
        now = now.replace(microsecond=now.microsecond or 1)  # never the key of a due time
        firing = Firing(schedule.id, now, now, FiringState.STARTING, manual=True, attempts=1, until=now + LEASE)
        await self._store.add_manual(firing)
        await self._begin(schedule, firing)
        found = await self._store.firings(schedule.id, 1, firing.due_at)
        return found[0] if found else firing

    # --- firing ------------------------------------------------------------------------------------------------------
    async def run_due(self) -> None:
        """Fires what is due. To be called every second or so, by every server."""
        now = self._now()
        await self._store.take_due(now, take)
        reach("schedule.taken")
        for _ in range(ROUNDS_MAX):
            claimed = await self._store.claim(now, LEASE, AT_ONCE_MAX)
            if not claimed:
                return
            done = await asyncio.gather(*(self._begin(*one) for one in claimed), return_exceptions=True)
            for broken in done:
                if broken is not None:
                    raise broken

    async def tidy(self) -> None:
        await self._store.tidy(self._now())

    async def _begin(self, schedule: ScheduleRecord, firing: Firing) -> None:
        reach("schedule.claimed")
        try:
            async with asyncio.timeout(FIRE_S):
                action = self.actions.of(schedule.kind)
                # One that may have begun already is not in its own way.
                if not (firing.again or firing.manual) and (last := await self._at_work(schedule, action.is_over)):
                    await self._stand_back(schedule, firing, last)
                    return
                began = await action.fire(schedule, firing.due_at, firing.key)
        except Exception as error:  # noqa: BLE001 - an action's failure is this firing's alone
            await self._failed(schedule, firing, error)
            return
        reach("schedule.fired")
        await self._store.settle(replace(firing, state=FiringState.BEGUN, began=began, told=""), self._now())
        reach("schedule.settled")

    async def _at_work(self, schedule: ScheduleRecord, is_over: Callable[[str], object]) -> str | None:
        """Id of what the last firing began, if that matters and is not over."""
        if schedule.overlap is Overlap.ALLOW:
            return None
        last = await self._store.last_begun(schedule.id)
        if last is None or await self.actions.of(schedule.kind).is_over(last):
            return None
        return last

    async def _stand_back(self, schedule: ScheduleRecord, firing: Firing, last: str) -> None:
        told = f"{last} was not over"
        if schedule.overlap is Overlap.QUEUE:
            later = self._now() + timedelta(seconds=QUEUE_LOOK_S)
            await self._store.postpone(replace(firing, told=told), later, counts=False)
        else:
            await self._store.settle(replace(firing, state=FiringState.SKIPPED, told=told), self._now())

    async def _failed(self, schedule: ScheduleRecord, firing: Firing, error: Exception) -> None:
        now = self._now()
        passing = error.retryable if isinstance(error, TenureError) else True
        told = _told(error)
        if not isinstance(error, TenureError):
            log.error("%s of %s could not be begun", schedule.name, schedule.agent, exc_info=error)
        if passing and firing.attempts < ATTEMPTS_MAX:
            wait_s = RETRY_S * 2 ** (firing.attempts - 1)
            await self._store.postpone(replace(firing, told=told), now + timedelta(seconds=wait_s), counts=True)
            return
        paused = await self._store.failed(replace(firing, state=FiringState.FAILED, told=told), now, paused_message)
        if paused is not None:
            log.warning("%s of %s is paused: %s", schedule.name, schedule.agent, told)


def paused_message(schedule: ScheduleRecord, error: str) -> tuple[str, str]:
    """What the owner is told of a schedule that was paused for its failures."""
    times = f"{schedule.failures} times in a row" if schedule.failures > 1 else "once"
    return (
        f"The schedule {schedule.name} of {schedule.agent} is paused: it did not begin {times}",
        f"The last time: {error}\n\n`tenure schedule show {schedule.id}` has the history; "
        f"`tenure schedule resume {schedule.id}` lets it go on.",
    )


def _told(error: Exception) -> str:
    if isinstance(error, TenureError):
        text = f"{error.message} {error.hint}".strip()
    elif isinstance(error, TimeoutError):
        text = f"It did not begin within {FIRE_S:g} s."
    else:
        text = f"It could not be begun: {error!r}"
    return text[:TOLD_CHARS_MAX]


def _times_of(wanted: ScheduleRequest, now: datetime) -> Times:
    if wanted.cron is not None:
        return Cron(" ".join(wanted.cron.split()), wanted.tz)
    if wanted.every_s is not None:
        return Every(wanted.every_s, now.replace(microsecond=0))
    assert wanted.at is not None
    return At(wanted.at)


def _check_agents_own(wanted: ScheduleRequest, times: Times, now: datetime) -> None:
    if wanted.kind != "goal":
        raise Forbidden("An agent schedules goals for itself, and nothing else.")
    if least_gap_s(times, now) < AGENTS_OWN_GAP_S_MIN:
        raise InvalidArgument(
            f"An agent's own schedules are due every {AGENTS_OWN_GAP_S_MIN // 60} minutes at most.",
            hint="Choose longer intervals, or ask the owner to make the schedule.",
        )


def shown(schedules: Schedules, one: ScheduleRecord) -> WireSchedule:
    """As it travels."""
    times = one.times
    return WireSchedule(
        id=one.id,
        name=one.name,
        agent=one.agent,
        kind=one.kind,
        what=dict(one.what),
        cron=times.expression if isinstance(times, Cron) else None,
        tz=times.tz if isinstance(times, Cron) else "UTC",
        every_s=times.seconds if isinstance(times, Every) else None,
        at=times.at if isinstance(times, At) else None,
        missed=one.missed.value,
        overlap=one.overlap.value,
        jitter_s=one.jitter_s,
        failures_max=one.failures_max,
        state=one.state,  # pyright: ignore[reportArgumentType]
        reason=one.reason,
        failures=one.failures,
        next_at=one.next_at,
        next_times=schedules.next_times(one),
        created_by=one.created_by,
        created_at=one.created_at,
    )
