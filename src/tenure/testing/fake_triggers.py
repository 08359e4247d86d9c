"""Schedules and webhooks in memory, for tests of what stands on them. One process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from tenure.data.webhooks.delivery import Delivery
from tenure.data.webhooks.hooks import Webhooks, utc_now
from tenure.data.webhooks.receiver import Receiver
from tenure.data.webhooks.spool import Spool
from tenure.data.webhooks.store import Counts, Hook
from tenure.errors import AlreadyExists, DiskFull, NotFound
from tenure.faultpoints import reach
from tenure.secrets.kept import KeptSecrets
from tenure.server.services import Triggers
from tenure.triggers.actions import Actions
from tenure.triggers.goals import Brains, GoalAction, Runs
from tenure.triggers.schedule import Firing, FiringState, ScheduleRecord, Taken
from tenure.triggers.schedules import Schedules
from tenure.triggers.store import HISTORY_MAX, OVER_KEPT, WAITING_MAX, Message
from tenure.work.hands import SqlResult

_OPEN = (FiringState.DUE, FiringState.STARTING)


class FakeScheduleStore:
    """See `tenure.triggers.store.Schedules`."""

    def __init__(self) -> None:
        self.schedules: dict[str, ScheduleRecord] = {}
        self.rows: dict[tuple[str, datetime], Firing] = {}
        self.messages: list[tuple[str, str]] = []
        self._keys: dict[tuple[str, str], str] = {}
        self._over: dict[str, datetime] = {}

    async def add(self, schedule: ScheduleRecord, key: str | None) -> ScheduleRecord:
        if key is not None and (known := self._keys.get((schedule.agent, key))) in self.schedules:
            return self.schedules[known]  # pyright: ignore[reportArgumentType]
        if any((one.agent, one.name) == (schedule.agent, schedule.name) for one in self.schedules.values()):
            raise AlreadyExists(f"{schedule.agent} has a schedule {schedule.name!r} already.")
        self.schedules[schedule.id] = schedule
        if key is not None:
            self._keys[schedule.agent, key] = schedule.id
        return schedule

    async def find(self, wanted: str, agent: str | None = None) -> Sequence[ScheduleRecord]:
        return [one for one in await self.list(agent) if wanted in (one.id, one.name)]

    async def list(self, agent: str | None = None) -> Sequence[ScheduleRecord]:
        found = [one for one in self.schedules.values() if agent in (None, one.agent)]
        return sorted(found, key=lambda one: (one.agent, one.name))

    async def delete(self, schedule: str) -> bool:
        self.rows = {key: row for key, row in self.rows.items() if row.schedule != schedule}
        return self.schedules.pop(schedule, None) is not None

    async def pause(self, schedule: str, now: datetime, reason: str) -> None:
        one = self.schedules[schedule]
        self.schedules[schedule] = replace(one, paused_at=one.paused_at or now, reason=reason, next_at=None)
        for key, row in self.rows.items():
            if row.schedule == schedule and row.state is FiringState.DUE and not row.manual:
                self.rows[key] = replace(row, state=FiringState.SKIPPED, told="the schedule was paused", settled_at=now)

    async def resume(self, schedule: str, next_at: datetime | None) -> None:
        one = self.schedules[schedule]
        if one.paused_at is not None:
            self.schedules[schedule] = replace(one, paused_at=None, reason="", failures=0, next_at=next_at)

    async def take_due(self, now: datetime, take: Callable[[ScheduleRecord, datetime], Taken]) -> int:
        due = [
            one
            for one in self.schedules.values()
            if one.next_at is not None
            and one.next_at <= now
            and sum(row.schedule == one.id and row.state in _OPEN for row in self.rows.values()) < WAITING_MAX
        ]
        for one in due:
            taken = take(one, now)
            reach("schedule.taking")
            for firing in taken.firings:
                self.rows.setdefault((firing.schedule, firing.due_at), firing)
            self.schedules[one.id] = replace(one, next_at=taken.next_at)
            if taken.next_at is None:
                self._over[one.id] = now
        return len(due)

    async def claim(self, now: datetime, lease: timedelta, limit: int) -> Sequence[tuple[ScheduleRecord, Firing]]:
        found: list[tuple[ScheduleRecord, Firing]] = []
        for key, row in sorted(self.rows.items(), key=lambda item: item[1].fire_at):
            others = [
                e
                for e in self.rows.values()
                if e.schedule == row.schedule and e.state in _OPEN and e.due_at != row.due_at
            ]
            is_free = row.state is FiringState.DUE or (
                row.state is FiringState.STARTING and row.until is not None and row.until <= now
            )
            if not is_free or row.fire_at > now or len(found) >= limit:
                continue
            if any(
                e.due_at < row.due_at or (e.state is FiringState.STARTING and e.until is not None and e.until > now)
                for e in others
            ):
                continue
            again = row.state is FiringState.STARTING
            claimed = replace(row, state=FiringState.STARTING, attempts=row.attempts + 1, until=now + lease)
            self.rows[key] = claimed
            found.append((self.schedules[row.schedule], replace(claimed, again=again)))
        return found

    async def add_manual(self, firing: Firing) -> None:
        if firing.schedule not in self.schedules:
            raise NotFound("This schedule is gone.")
        self.rows[firing.schedule, firing.due_at] = firing

    async def last_begun(self, schedule: str) -> str | None:
        begun = [row for row in self.rows.values() if row.schedule == schedule and row.state is FiringState.BEGUN]
        return max(begun, key=lambda row: row.due_at).began if begun else None

    async def settle(self, firing: Firing, now: datetime) -> bool:
        if not self._is_mine(firing):
            return False
        self.rows[firing.schedule, firing.due_at] = replace(firing, settled_at=now, until=None, again=False)
        if firing.state is FiringState.BEGUN:
            self.schedules[firing.schedule] = replace(self.schedules[firing.schedule], failures=0)
        settled = sorted(
            (key for key, row in self.rows.items() if row.schedule == firing.schedule and row.state not in _OPEN),
            reverse=True,
        )
        for key in settled[HISTORY_MAX:]:
            del self.rows[key]
        return True

    def _is_mine(self, firing: Firing) -> bool:
        row = self.rows.get((firing.schedule, firing.due_at))
        return row is not None and (row.state, row.attempts) == (FiringState.STARTING, firing.attempts)

    async def failed(self, firing: Firing, now: datetime, message: Message) -> ScheduleRecord | None:
        if not await self.settle(firing, now):
            return None
        one = self.schedules[firing.schedule]
        one = self.schedules[one.id] = replace(one, failures=one.failures + 1)
        if one.failures < one.failures_max or one.paused_at is not None:
            return None
        subject, body = message(one, firing.told)
        self.messages.append((subject, body))
        await self.pause(one.id, now, subject)
        return one

    async def postpone(self, firing: Firing, to: datetime, *, counts: bool) -> None:
        if self._is_mine(firing):
            self.rows[firing.schedule, firing.due_at] = replace(
                firing,
                state=FiringState.DUE,
                until=None,
                fire_at=to,
                again=False,
                attempts=firing.attempts - (not counts),
            )

    async def firings(self, schedule: str, limit: int, due_at: datetime | None = None) -> Sequence[Firing]:
        found = [row for row in self.rows.values() if row.schedule == schedule and due_at in (None, row.due_at)]
        return sorted(found, key=lambda row: row.due_at, reverse=True)[:limit]

    async def tidy(self, now: datetime) -> None:
        for schedule, over_at in list(self._over.items()):
            open_rows = [row for row in self.rows.values() if row.schedule == schedule and row.state in _OPEN]
            if over_at < now - OVER_KEPT and not open_rows:
                await self.delete(schedule)
                del self._over[schedule]


def triggers_of(runs: Runs, brains: Brains) -> Triggers:
    """The services themselves, on rows in memory; goals begin runs in `runs`."""
    schedules = Schedules(FakeScheduleStore(), Actions(GoalAction(runs, brains)))
    receiver = Receiver(_FakeDeliveries.of, FakeSpool(), _tell_nobody, utc_now)
    return Triggers(schedules, Webhooks(FakeHookStore(), receiver, FakeSecrets()))


class FakeHookStore:
    """See `tenure.data.webhooks.store.Hooks`."""

    def __init__(self) -> None:
        self.hooks: dict[str, Hook] = {}

    async def add(self, hook: Hook) -> None:
        if any((one.agent, one.name) == (hook.agent, hook.name) for one in self.hooks.values()):
            raise AlreadyExists(f"{hook.agent} has a webhook {hook.name!r} already.")
        self.hooks[hook.id] = hook

    async def find(self, wanted: str, agent: str | None = None) -> Sequence[Hook]:
        return [one for one in await self.list(agent) if wanted in (one.id, one.name)]

    async def list(self, agent: str | None = None) -> Sequence[Hook]:
        found = [one for one in self.hooks.values() if agent in (None, one.agent)]
        return sorted(found, key=lambda one: (one.agent, one.name))

    async def delete(self, hook: str) -> bool:
        return self.hooks.pop(hook, None) is not None

    async def rotated(self, hook: str, address: str, at: datetime) -> None:
        self.hooks[hook] = replace(self.hooks[hook], address=address, rotated_at=at)

    async def count(self, hook: str, counts: Counts) -> None:
        if hook in self.hooks:
            one = self.hooks[hook]
            self.hooks[hook] = replace(
                one,
                received=one.received + counts.received,
                repeated=one.repeated + counts.repeated,
                refused=one.refused + counts.refused,
                last_received_at=counts.last_received_at or one.last_received_at,
                last_refused_at=counts.last_refused_at or one.last_refused_at,
                last_refusal=counts.last_refusal or one.last_refusal,
            )


class FakeSecrets(KeptSecrets):
    """In memory."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}

    def put(self, name: str, secret: bytes) -> None:
        self._kept[name] = secret

    def get(self, name: str) -> bytes:
        if name not in self._kept:
            raise NotFound("This secret is not kept here.")
        return self._kept[name]

    def delete(self, name: str) -> None:
        self._kept.pop(name, None)


class FakeSpool(Spool):
    """Of which nothing waits."""

    def __init__(self) -> None:
        super().__init__(Path("/nonexistent"))

    def put(self, delivery: Delivery) -> None:
        raise DiskFull("There is no disk here.")


class _FakeDeliveries:
    """A database that takes every delivery and shows none."""

    @classmethod
    async def of(cls, agent: str) -> _FakeDeliveries:
        del agent
        return cls()

    async def execute(
        self, statement: str, *, key: str | None = None, rows_max: int = 1000, read_only: bool = False
    ) -> SqlResult:
        del key, rows_max, read_only
        return SqlResult(["id"], [["dlv_1"]] if "insert into" in statement else [], "")


async def _tell_nobody(agent: str, key: str, subject: str, body: str) -> None:
    del agent, key, subject, body
