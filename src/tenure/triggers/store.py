"""Rows of schedules and firings; no other module names these tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Protocol

from psycopg.errors import ForeignKeyViolation, UniqueViolation
from psycopg.types.json import Jsonb

from tenure.channels.inbox import leave
from tenure.database.connect import ControlDatabase
from tenure.errors import AlreadyExists, NotFound
from tenure.faultpoints import reach
from tenure.triggers.schedule import Firing, FiringState, Missed, Overlap, ScheduleRecord, Taken
from tenure.triggers.times import At, Cron, Every, Times

TAKEN_AT_ONCE = 50
"""Schedules per call of `take_due`."""
WAITING_MAX = 100
"""Firings of one schedule that wait to be begun; until there are fewer, its further due times stay where they are: in the
calendar."""
HISTORY_MAX = 200
"""Settled firings that are kept of one schedule."""
OVER_KEPT = timedelta(days=30)
_COLUMNS = (
    "s.id, s.name, s.agent, s.kind, s.what, s.cron, s.tz, s.every_s, s.since, s.at, s.missed, s.overlap, s.jitter_s, "
    "s.failures_max, s.created_by, s.created_at, s.next_at, s.failures, s.paused_at, s.reason"
)
_FIRING = "f.schedule, f.due_at, f.fire_at, f.state, f.missed_since, f.manual, f.attempts, f.until, f.began, f.told, f.settled_at"


class Message(Protocol):
    """What is left in the inbox when a schedule is paused for its failures."""

    def __call__(self, schedule: ScheduleRecord, error: str) -> tuple[str, str]:
        """(subject, body)"""
        ...


class Schedules(Protocol):
    """What the service needs; `tenure.testing.fake_triggers` has it in memory. `now` is the caller's clock."""

    async def add(self, schedule: ScheduleRecord, key: str | None) -> ScheduleRecord:
        """The one of the first time, when `key` is known for the agent. Raises `AlreadyExists`, `NotFound` for the agent."""
        ...

    async def find(self, wanted: str, agent: str | None = None) -> Sequence[ScheduleRecord]:
        """Those of this id or name, of `agent` alone where it is given."""
        ...

    async def list(self, agent: str | None = None) -> Sequence[ScheduleRecord]:
        """By agent and name."""
        ...

    async def delete(self, schedule: str) -> bool: ...
    async def pause(self, schedule: str, now: datetime, reason: str) -> None:
        """Firings that wait are skipped."""
        ...

    async def resume(self, schedule: str, next_at: datetime | None) -> None: ...
    async def take_due(self, now: datetime, take: Callable[[ScheduleRecord, datetime], Taken]) -> int:
        """Turns due times into firings, by what `take` says of each schedule that is due; in one transaction, so that none is
        lost and none is there twice. How many schedules."""
        ...

    async def claim(self, now: datetime, lease: timedelta, limit: int) -> Sequence[tuple[ScheduleRecord, Firing]]:
        """Firings whose time has come, the earliest of each schedule alone, for this caller until `now + lease`; in one
        statement. Of a schedule nothing else is claimed meanwhile."""
        ...

    async def add_manual(self, firing: Firing) -> None:
        """Raises `NotFound` when its schedule is gone."""
        ...

    async def last_begun(self, schedule: str) -> str | None:
        """Id of what the latest firing began."""
        ...

    async def settle(self, firing: Firing, now: datetime) -> bool:
        """Writes how it ended, if it is still the caller's (same number of attempts). A success ends a row of failures."""
        ...

    async def failed(self, firing: Firing, now: datetime, message: Message) -> ScheduleRecord | None:
        """As `settle`, and counts the failure; the schedule, when it was paused by it: then a message lies in the inbox."""
        ...

    async def postpone(self, firing: Firing, to: datetime, *, counts: bool) -> None:
        """Nobody's again, and not begun before `to`, with `told` as given; `counts`: it was an attempt."""
        ...

    async def firings(self, schedule: str, limit: int, due_at: datetime | None = None) -> Sequence[Firing]:
        """The latest first; of `due_at` alone where it is given."""
        ...

    async def tidy(self, now: datetime) -> None:
        """Forgets what is long over."""
        ...


class ScheduleStore:
    """On the control database. All raise `ServerUnreachable` while PostgreSQL is away."""

    def __init__(self, database: ControlDatabase) -> None:
        self._database = database

    async def add(self, schedule: ScheduleRecord, key: str | None) -> ScheduleRecord:
        if key is not None and (known := await self._by_key(schedule.agent, key)):
            return known
        times = _columns_of(schedule.times)
        try:
            await self._database.execute(
                """
                insert into schedules (id, name, agent, kind, what, cron, tz, every_s, since, at, missed, overlap, jitter_s,
                    failures_max, created_by, created_at, key, next_at)
                values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
                """,
                (
                    schedule.id,
                    schedule.name,
                    schedule.agent,
                    schedule.kind,
                    Jsonb(dict(schedule.what)),
                    *times,
                    schedule.missed.value,
                    schedule.overlap.value,
                    schedule.jitter_s,
                    schedule.failures_max,
                    schedule.created_by,
                    schedule.created_at,
                    key,
                    schedule.next_at,
                ),
            )
        except UniqueViolation:
            if key is not None and (known := await self._by_key(schedule.agent, key)):
                return known
            raise AlreadyExists(
                f"{schedule.agent} has a schedule {schedule.name!r} already.",
                hint="Choose another name, or delete that one.",
            ) from None
        except ForeignKeyViolation:
            raise NotFound(f"There is no agent {schedule.agent!r}.") from None
        return schedule

    async def _by_key(self, agent: str, key: str) -> ScheduleRecord | None:
        row = await self._database.fetch_one(
            f"select {_COLUMNS} from schedules s where s.agent = %s and s.key = %s", (agent, key)
        )
        return None if row is None else _schedule(row)

    async def find(self, wanted: str, agent: str | None = None) -> Sequence[ScheduleRecord]:
        rows = await self._database.fetch(
            f"select {_COLUMNS} from schedules s where (s.id = %(wanted)s or s.name = %(wanted)s) "
            "and (%(agent)s::text is null or s.agent = %(agent)s) order by s.agent",
            {"wanted": wanted, "agent": agent},
        )
        return [_schedule(row) for row in rows]

    async def list(self, agent: str | None = None) -> Sequence[ScheduleRecord]:
        rows = await self._database.fetch(
            f"select {_COLUMNS} from schedules s where (%(agent)s::text is null or s.agent = %(agent)s) "
            "order by s.agent, s.name",
            {"agent": agent},
        )
        return [_schedule(row) for row in rows]

    async def delete(self, schedule: str) -> bool:
        return await self._database.execute("delete from schedules where id = %s", (schedule,)) > 0

    async def pause(self, schedule: str, now: datetime, reason: str) -> None:
        async with self._database.transaction() as connection:
            await connection.execute(
                "update schedules set paused_at = coalesce(paused_at, %s), reason = %s, next_at = null where id = %s",
                (now, reason, schedule),
            )
            await connection.execute(
                "update firings set state = 'skipped', told = 'the schedule was paused', settled_at = %s "
                "where schedule = %s and state = 'due' and not manual",
                (now, schedule),
            )

    async def resume(self, schedule: str, next_at: datetime | None) -> None:
        await self._database.execute(
            "update schedules set paused_at = null, reason = '', failures = 0, next_at = %s "
            "where id = %s and paused_at is not null",
            (next_at, schedule),
        )

    async def take_due(self, now: datetime, take: Callable[[ScheduleRecord, datetime], Taken]) -> int:
        async with self._database.transaction() as connection:
            found = await connection.execute(
                f"""
                select {_COLUMNS} from schedules s where s.next_at <= %s and s.paused_at is null
                and (select count(*) from firings f where f.schedule = s.id and f.state in ('due', 'starting')) < %s
                order by s.next_at limit %s for update of s skip locked
                """,
                (now, WAITING_MAX, TAKEN_AT_ONCE),
            )
            schedules = [_schedule(row) for row in await found.fetchall()]
            for schedule in schedules:
                taken = take(schedule, now)
                for one in taken.firings:
                    await connection.execute(
                        "insert into firings (schedule, due_at, fire_at, missed_since) values (%s, %s, %s, %s) "
                        "on conflict do nothing",
                        (one.schedule, one.due_at, one.fire_at, one.missed_since),
                    )
                reach("schedule.taking")
                await connection.execute(
                    "update schedules set next_at = %s, over_at = %s where id = %s",
                    (taken.next_at, now if taken.next_at is None else None, schedule.id),
                )
        return len(schedules)

    async def claim(self, now: datetime, lease: timedelta, limit: int) -> Sequence[tuple[ScheduleRecord, Firing]]:
        rows = await self._database.fetch(
            f"""
            with claimed as (
                select f.schedule, f.due_at, f.state = 'starting' as again from firings f
                where (f.state = 'due' or (f.state = 'starting' and f.until <= %(now)s)) and f.fire_at <= %(now)s
                and not exists (
                    select from firings e where e.schedule = f.schedule and e.state in ('due', 'starting')
                    and (e.due_at < f.due_at or (e.state = 'starting' and e.until > %(now)s and e.due_at <> f.due_at))
                )
                order by f.fire_at limit %(limit)s for update skip locked
            ), mine as (
                update firings f set state = 'starting', attempts = f.attempts + 1, until = %(until)s
                from claimed c where c.schedule = f.schedule and c.due_at = f.due_at
                returning {_FIRING}, c.again
            )
            select {_COLUMNS}, m.* from mine m join schedules s on s.id = m.schedule order by m.fire_at
            """,
            {"now": now, "until": now + lease, "limit": limit},
        )
        return [(_schedule(row), replace(_firing(row), again=row["again"])) for row in rows]

    async def add_manual(self, firing: Firing) -> None:
        try:
            await self._database.execute(
                "insert into firings (schedule, due_at, fire_at, state, manual, attempts, until) "
                "values (%s, %s, %s, %s, true, %s, %s)",
                (firing.schedule, firing.due_at, firing.fire_at, firing.state.value, firing.attempts, firing.until),
            )
        except ForeignKeyViolation:
            raise NotFound("This schedule is gone.") from None

    async def last_begun(self, schedule: str) -> str | None:
        row = await self._database.fetch_one(
            "select began from firings where schedule = %s and state = 'begun' order by due_at desc limit 1",
            (schedule,),
        )
        return None if row is None else str(row["began"])

    async def settle(self, firing: Firing, now: datetime) -> bool:
        async with self._database.transaction() as connection:
            done = await connection.execute(_SETTLE, _settled(firing, now))
            if firing.state is FiringState.BEGUN and done.rowcount:
                await connection.execute("update schedules set failures = 0 where id = %s", (firing.schedule,))
            await connection.execute(_FORGET, {"schedule": firing.schedule, "kept": HISTORY_MAX})
            return done.rowcount > 0

    async def failed(self, firing: Firing, now: datetime, message: Message) -> ScheduleRecord | None:
        async with self._database.transaction() as connection:
            done = await connection.execute(_SETTLE, _settled(firing, now))
            if not done.rowcount:
                return None
            counted = await connection.execute(
                f"update schedules s set failures = s.failures + 1 where s.id = %s returning {_COLUMNS}",
                (firing.schedule,),
            )
            row = await counted.fetchone()
            schedule = None if row is None else _schedule(row)
            if schedule is None or schedule.failures < schedule.failures_max or schedule.paused_at is not None:
                return None
            subject, body = message(schedule, firing.told)
            await connection.execute(
                "update schedules set paused_at = %s, reason = %s, next_at = null where id = %s",
                (now, subject, schedule.id),
            )
            await connection.execute(
                "update firings set state = 'skipped', told = 'the schedule was paused', settled_at = %s "
                "where schedule = %s and state = 'due' and not manual",
                (now, schedule.id),
            )
            await leave(connection, agent=schedule.agent, key=f"{firing.key}.paused", subject=subject, body=body)
            return schedule

    async def postpone(self, firing: Firing, to: datetime, *, counts: bool) -> None:
        await self._database.execute(
            "update firings set state = 'due', until = null, fire_at = %s, told = %s, attempts = %s "
            "where schedule = %s and due_at = %s and state = 'starting' and attempts = %s",
            (to, firing.told, firing.attempts - (not counts), firing.schedule, firing.due_at, firing.attempts),
        )

    async def firings(self, schedule: str, limit: int, due_at: datetime | None = None) -> Sequence[Firing]:
        rows = await self._database.fetch(
            f"select {_FIRING} from firings f where f.schedule = %(schedule)s "
            "and (%(due_at)s::timestamptz is null or f.due_at = %(due_at)s) order by f.due_at desc limit %(limit)s",
            {"schedule": schedule, "due_at": due_at, "limit": limit},
        )
        return [_firing(row) for row in rows]

    async def tidy(self, now: datetime) -> None:
        await self._database.execute(
            "delete from schedules s where s.over_at < %s and not exists "
            "(select from firings f where f.schedule = s.id and f.state in ('due', 'starting'))",
            (now - OVER_KEPT,),
        )


_SETTLE = """
    update firings set state = %s, began = %s, told = %s, settled_at = %s, until = null
    where schedule = %s and due_at = %s and state = 'starting' and attempts = %s
"""
_FORGET = """
    delete from firings where schedule = %(schedule)s and state in ('begun', 'skipped', 'failed') and due_at < (
        select due_at from firings where schedule = %(schedule)s and state in ('begun', 'skipped', 'failed')
        order by due_at desc offset %(kept)s - 1 limit 1)
"""


def _settled(firing: Firing, now: datetime) -> tuple[Any, ...]:
    return (
        firing.state.value,
        firing.began,
        firing.told,
        now,
        firing.schedule,
        firing.due_at,
        firing.attempts,
    )


def _columns_of(times: Times) -> tuple[Any, ...]:
    """cron, tz, every_s, since, at"""
    match times:
        case Cron(expression, tz):
            return (expression, tz, None, None, None)
        case Every(seconds, since):
            return (None, "UTC", seconds, since, None)
        case At(at):
            return (None, "UTC", None, None, at)


def _times(row: Mapping[str, Any]) -> Times:
    if row["cron"] is not None:
        return Cron(row["cron"], row["tz"])
    if row["every_s"] is not None:
        return Every(row["every_s"], row["since"])
    return At(row["at"])


def _schedule(row: Mapping[str, Any]) -> ScheduleRecord:
    return ScheduleRecord(
        id=row["id"],
        name=row["name"],
        agent=row["agent"],
        kind=row["kind"],
        what=row["what"],
        times=_times(row),
        missed=Missed(row["missed"]),
        overlap=Overlap(row["overlap"]),
        jitter_s=row["jitter_s"],
        failures_max=row["failures_max"],
        created_by=row["created_by"],
        created_at=row["created_at"],
        next_at=row["next_at"],
        failures=row["failures"],
        paused_at=row["paused_at"],
        reason=row["reason"],
    )


def _firing(row: Mapping[str, Any]) -> Firing:
    return Firing(
        schedule=row["schedule"],
        due_at=row["due_at"],
        fire_at=row["fire_at"],
        state=FiringState(row["state"]),
        missed_since=row["missed_since"],
        manual=row["manual"],
        attempts=row["attempts"],
        until=row["until"],
        began=row["began"],
        told=row["told"],
        settled_at=row["settled_at"],
    )
