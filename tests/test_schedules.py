"""Schedules: each due time is fired once, whatever dies; what overlaps, what was missed, what fails."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenure.channels.inbox import Inbox
from tenure.database import ControlDatabase
from tenure.errors import AlreadyExists, Conflict, Forbidden, InvalidArgument, NotFound, ServerUnreachable
from tenure.faultpoints import Action as Fault
from tenure.faultpoints import Broken, arm, disarm
from tenure.identity.authorize import Principal, PrincipalKind
from tenure.testing.fake_triggers import FakeScheduleStore
from tenure.triggers import schedules as service
from tenure.triggers.actions import Actions
from tenure.triggers.goals import GoalAction
from tenure.triggers.schedule import Firing, FiringState, ScheduleRecord
from tenure.triggers.schedules import Schedules
from tenure.triggers.store import ScheduleStore
from tenure.wire.triggers import ScheduleRequest
from tenure.work.runs import Runs
from tenure.work.thoughts import BrainSettings

OWNER = Principal(PrincipalKind.OWNER)
OFFICE = Principal(PrincipalKind.OFFICE, "analyst")
WORKER = Principal(PrincipalKind.WORKER)
START = datetime(2026, 11, 23, 2, 0, 0, tzinfo=UTC)
POINTS = ("schedule.taking", "schedule.taken", "schedule.claimed", "test.begun", "schedule.fired", "schedule.settled")
MINUTE = timedelta(minutes=1)
PLAYBOOK = "name: look\nsteps:\n  - id: one\n    run: echo hello\n"


@dataclass
class Clock:
    now: datetime = START

    def __call__(self) -> datetime:
        return self.now

    def pass_(self, **time: float) -> None:
        self.now += timedelta(**time)


@dataclass
class Bells:
    """An action that rings: once by key, as the contract asks."""

    kind: str = "bell"
    rung: dict[str, datetime] = field(default_factory=dict[str, datetime])
    """Due time by key."""
    calls: list[str] = field(default_factory=list[str])
    at_work: set[str] = field(default_factory=set[str])
    error: Exception | None = None
    gate: asyncio.Event | None = None
    entered: asyncio.Event = field(default_factory=asyncio.Event)

    async def check(self, agent: str, what: Mapping[str, Any]) -> Mapping[str, Any]:
        return what

    async def fire(self, schedule: ScheduleRecord, due_at: datetime, key: str) -> str:
        self.calls.append(key)
        self.entered.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.rung.setdefault(key, due_at)
        return key

    async def is_over(self, began: str) -> bool:
        return began not in self.at_work

    @property
    def due(self) -> list[datetime]:
        return sorted(self.rung.values())


@dataclass
class Tower:
    """A service, and what it stands on."""

    store: Any
    clock: Clock = field(default_factory=Clock)
    bells: Bells = field(default_factory=Bells)
    numbers: Any = field(default_factory=count)

    def server(self) -> Schedules:
        """One more server on the same rows."""
        return Schedules(self.store, Actions(self.bells), self.clock)

    async def made(self, **more: Any) -> ScheduleRecord:
        wanted: dict[str, Any] = {"name": f"bell-{next(self.numbers)}", "agent": "analyst", "kind": "bell"}
        if not {"cron", "every_s", "at"} & set(more):
            wanted["every_s"] = 60
        return await self.server().create(ScheduleRequest.model_validate(wanted | more), OWNER)

    async def history(self, one: ScheduleRecord) -> list[tuple[FiringState, str]]:
        """The oldest first."""
        return [(found.state, found.told) for found in reversed(await self.server().firings(one))]


@pytest.fixture(params=["rows", "memory"])
def rows_dsn(request: pytest.FixtureRequest) -> str | None:
    return request.getfixturevalue("control_dsn") if request.param == "rows" else None


@pytest.fixture
async def tower(rows_dsn: str | None) -> AsyncIterator[Tower]:
    if rows_dsn is None:
        yield Tower(FakeScheduleStore())
    else:
        async with ControlDatabase(rows_dsn) as database:
            await add_agents(database)
            yield Tower(ScheduleStore(database))
    disarm()


async def add_agents(database: ControlDatabase) -> None:
    for name in ("analyst", "other"):
        await database.execute(
            "insert into agents (name, image, stage) values (%s, 'i', 'asleep') on conflict do nothing", (name,)
        )


# --- once -----------------------------------------------------------------------------------------------------------------
async def test_what_is_due_is_fired_and_not_before(tower: Tower) -> None:
    one = await tower.made(every_s=60)
    await tower.server().run_due()
    tower.clock.pass_(seconds=59)
    await tower.server().run_due()
    assert tower.bells.due == []
    tower.clock.pass_(seconds=1)
    await tower.server().run_due()
    await tower.server().run_due()
    assert tower.bells.due == [START + MINUTE]
    assert await tower.history(one) == [(FiringState.BEGUN, "")]
    assert len(tower.bells.calls) == 1


async def test_many_servers_fire_each_due_time_once(tower: Tower) -> None:
    for _ in range(5):
        await tower.made(every_s=60, overlap="allow")
    for _ in range(4):
        tower.clock.pass_(seconds=60)
        await asyncio.gather(*(tower.server().run_due() for _ in range(6)))
    assert len(tower.bells.calls) == len(tower.bells.rung) == 20
    assert tower.bells.due == sorted([START + (n + 1) * MINUTE for n in range(4)] * 5)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("missed", ["one", "all"])
async def test_a_crash_at_any_point_loses_and_repeats_no_due_time(
    tower: Tower, point: str, missed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tenure.faultpoints import reach

    fire = tower.bells.fire

    async def fire_and_reach(*arguments: Any) -> str:
        began = await fire(*arguments)
        dies_here.append(began)
        reach("test.begun")
        return began

    dies_here: list[str] = []
    monkeypatch.setattr(tower.bells, "fire", fire_and_reach)
    # A bug in an action is the firing's own failure; a process that dies there is not.
    monkeypatch.setattr(Schedules, "_failed", _dies)
    await tower.made(every_s=60, missed=missed)
    log = tmp_path / "fired"
    arm(point, 1, Fault.RAISE, log=log)
    tower.clock.pass_(seconds=150)
    with pytest.raises(Broken):
        await tower.server().run_due()
    assert log.read_text() == f"{point}:1:raise\n", "the fault never fired"
    disarm()
    successor = tower.server()
    for _ in range(4):
        tower.clock.pass_(seconds=1)
        await successor.run_due()
    tower.clock.now += service.LEASE
    await successor.run_due()
    await successor.run_due()
    expected = {"all": [1, 2, 3, 4], "one": [2, 4]}[missed]
    assert tower.bells.due == [START + n * MINUTE for n in expected]


async def _dies(self: Schedules, schedule: ScheduleRecord, firing: Firing, error: Exception) -> None:
    raise error


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["all", "one", "none"]),
    st.lists(
        st.tuples(
            st.integers(1, 400),
            st.one_of(st.none(), st.sampled_from([p for p in POINTS if p != "test.begun"])),
            st.integers(1, 3),
        ),
        min_size=1,
        max_size=12,
    ),
)
async def test_whatever_crashes_when_no_due_time_is_fired_twice_or_with_all_lost(
    missed: str, story: list[tuple[int, str | None, int]]
) -> None:
    tower = Tower(FakeScheduleStore())
    await tower.made(every_s=60, missed=missed, overlap="allow")
    for seconds, point, nth in story:
        tower.clock.pass_(seconds=seconds)
        if point is not None:
            arm(point, nth, Fault.RAISE)
        try:
            await tower.server().run_due()
        except Broken:
            pass
        finally:
            disarm()
    tower.clock.now += service.LEASE
    for _ in range(3):
        await tower.server().run_due()
    passed = int((tower.clock.now - START) / MINUTE)
    every = [START + n * MINUTE for n in range(1, passed + 1)]
    assert len(tower.bells.due) == len(set(tower.bells.due)), "twice"
    assert set(tower.bells.due) <= set(every)
    if missed == "all":
        assert tower.bells.due == every
    elif missed == "one" and every:
        assert tower.bells.due[-1] == every[-1]


async def test_a_server_that_is_slow_beyond_its_lease_settles_nothing_of_its_successor(tower: Tower) -> None:
    one = await tower.made()
    tower.bells.gate = asyncio.Event()
    tower.clock.pass_(seconds=60)
    slow = asyncio.create_task(tower.server().run_due())
    await tower.bells.entered.wait()
    tower.clock.now += service.LEASE
    tower.bells.entered.clear()
    other = asyncio.create_task(tower.server().run_due())
    await tower.bells.entered.wait()
    tower.bells.gate.set()
    await asyncio.gather(slow, other)
    assert len(tower.bells.calls) >= 2
    assert len([due for due in tower.bells.due if due == START + MINUTE]) == 1
    assert [state for state, _ in await tower.history(one)].count(FiringState.STARTING) == 0


# --- what was missed ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("missed", "fired"), [("one", [10]), ("all", list(range(1, 11))), ("none", [])])
async def test_due_times_while_no_server_ran(tower: Tower, missed: str, fired: list[int]) -> None:
    one = await tower.made(every_s=3600, missed=missed)
    tower.clock.pass_(hours=10, minutes=30)
    await tower.server().run_due()
    assert tower.bells.due == [START + timedelta(hours=n) for n in fired]
    if missed == "one":
        (firing,) = await tower.server().firings(one)
        assert firing.missed_since == START + timedelta(hours=1)
    tower.clock.pass_(minutes=30)
    await tower.server().run_due()
    assert tower.bells.due[-1] == START + timedelta(hours=11)


async def test_of_very_many_missed_ones_all_are_fired_in_order_by_and_by(tower: Tower) -> None:
    await tower.made(every_s=60, missed="all", overlap="allow")
    tower.clock.pass_(minutes=450)
    for _ in range(60):
        await tower.server().run_due()
    fired = [tower.bells.rung[key] for key in tower.bells.calls]
    assert fired == [START + n * MINUTE for n in range(1, 451)]


# --- overlap ---------------------------------------------------------------------------------------------------------------
async def test_a_due_time_is_skipped_while_the_last_run_is_not_over(tower: Tower) -> None:
    one = await tower.made(overlap="skip")
    tower.clock.pass_(seconds=60)
    await tower.server().run_due()
    (first,) = tower.bells.rung
    tower.bells.at_work.add(first)
    tower.clock.pass_(seconds=60)
    await tower.server().run_due()
    tower.bells.at_work.clear()
    tower.clock.pass_(seconds=60)
    await tower.server().run_due()
    assert await tower.history(one) == [
        (FiringState.BEGUN, ""),
        (FiringState.SKIPPED, f"{first} was not over"),
        (FiringState.BEGUN, ""),
    ]
    assert tower.bells.due == [START + MINUTE, START + 3 * MINUTE]


async def test_queued_due_times_wait_for_their_turn_in_order(tower: Tower) -> None:
    await tower.made(overlap="queue", missed="all")
    tower.clock.pass_(seconds=60)
    await tower.server().run_due()
    tower.bells.at_work.update(tower.bells.rung)
    for _ in range(30):
        tower.clock.pass_(seconds=10)
        await tower.server().run_due()
    assert len(tower.bells.rung) == 1
    for _ in range(12):
        tower.bells.at_work.clear()
        tower.clock.pass_(seconds=service.QUEUE_LOOK_S)
        before = set(tower.bells.rung)
        await tower.server().run_due()
        tower.bells.at_work.update(set(tower.bells.rung) - before)
    fired = [tower.bells.rung[key] for key in tower.bells.calls]
    assert fired == [START + n * MINUTE for n in range(1, len(fired) + 1)]
    assert len(fired) >= 6


async def test_a_queue_has_an_end_and_what_is_beyond_stays_in_the_calendar(
    tower: Tower, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("tenure.triggers.store", "tenure.testing.fake_triggers"):
        monkeypatch.setattr(f"{module}.WAITING_MAX", 3)
    one = await tower.made(overlap="queue", missed="all")
    tower.bells.at_work = _Everything()  # type: ignore[assignment]
    for _ in range(12):
        tower.clock.pass_(seconds=60)
        await tower.server().run_due()
    waiting = [found for found in await tower.server().firings(one) if found.state is FiringState.DUE]
    assert len(waiting) == 3
    tower.bells.at_work = set()
    for _ in range(12):
        tower.clock.pass_(seconds=service.QUEUE_LOOK_S)
        await tower.server().run_due()
    fired = [tower.bells.rung[key] for key in tower.bells.calls]
    assert fired == [START + n * MINUTE for n in range(1, len(fired) + 1)]
    assert len(fired) == 13


class _Everything(set[str]):
    def __contains__(self, _: object) -> bool:
        return True


async def test_allowed_overlap_begins_whatever_goes_on(tower: Tower) -> None:
    await tower.made(overlap="allow")
    tower.bells.at_work = _Everything()  # type: ignore[assignment]
    for _ in range(3):
        tower.clock.pass_(seconds=60)
        await tower.server().run_due()
    assert len(tower.bells.rung) == 3


# --- failures --------------------------------------------------------------------------------------------------------------
async def test_what_fails_for_a_passing_reason_is_tried_again_and_then_is_a_failure(tower: Tower) -> None:
    one = await tower.made(every_s=3600)
    tower.bells.error = ServerUnreachable("away", hint="Wait.")
    tower.clock.pass_(hours=1)
    for _ in range(10):
        await tower.server().run_due()
        tower.clock.pass_(seconds=120)
    assert len(tower.bells.calls) == service.ATTEMPTS_MAX
    assert len(set(tower.bells.calls)) == 1
    assert await tower.history(one) == [(FiringState.FAILED, "away Wait.")]
    tower.bells.error = None
    tower.clock.pass_(hours=1)
    await tower.server().run_due()
    assert (await tower.server().get(one.id)).failures == 0
    assert len(tower.bells.rung) == 1


async def test_failures_in_a_row_pause_the_schedule_and_leave_one_message(tower: Tower) -> None:
    one = await tower.made(failures_max=3)
    tower.bells.error = InvalidArgument("no such thing")
    for _ in range(6):
        tower.clock.pass_(seconds=60)
        await tower.server().run_due()
    found = await tower.server().get(one.id)
    assert (found.state, found.failures, found.next_at) == ("paused", 3, None)
    assert "did not begin 3 times in a row" in found.reason
    if isinstance(tower.store, FakeScheduleStore):
        messages = tower.store.messages
    else:
        inbox = Inbox(tower.store._database)  # pyright: ignore[reportPrivateUsage]
        messages = [(m.subject, m.body) for m in await inbox.list(agent="analyst")]
    assert [subject for subject, _ in messages] == [found.reason]
    assert "no such thing" in messages[0][1]
    tower.bells.error = None
    resumed = await tower.server().resume(found)
    assert (resumed.state, resumed.failures) == ("active", 0)
    tower.clock.pass_(seconds=60)
    await tower.server().run_due()
    assert len(tower.bells.rung) == 1


async def test_a_success_ends_a_row_of_failures(tower: Tower) -> None:
    one = await tower.made(failures_max=2)
    for error in (InvalidArgument("no"), None, InvalidArgument("no"), None):
        tower.bells.error = error
        tower.clock.pass_(seconds=60)
        await tower.server().run_due()
    assert (await tower.server().get(one.id)).state == "active"


async def test_one_that_fails_is_in_no_others_way(tower: Tower) -> None:
    bad = await tower.made(name="bad", kind="bell")
    await tower.made(name="good")
    ring = tower.bells.fire

    async def fire(schedule: ScheduleRecord, due_at: datetime, key: str) -> str:
        if schedule.id == bad.id:
            raise RuntimeError("a bug")
        return await ring(schedule, due_at, key)

    tower.bells.fire = fire  # type: ignore[method-assign]
    tower.clock.pass_(seconds=60)
    await tower.server().run_due()
    assert len(tower.bells.rung) == 1


# --- by hand -----------------------------------------------------------------------------------------------------------------
async def test_paused_ones_are_not_fired_and_make_up_for_nothing(tower: Tower) -> None:
    one = await tower.made(missed="all")
    assert (await tower.server().pause(one)).state == "paused"
    tower.clock.pass_(minutes=10, seconds=30)
    await tower.server().run_due()
    again = await tower.server().resume(await tower.server().get(one.id))
    assert again.next_at == START + 11 * MINUTE
    tower.clock.pass_(seconds=30)
    await tower.server().run_due()
    assert tower.bells.due == [START + 11 * MINUTE]


async def test_run_now_begins_it_whatever_goes_on_and_moves_no_due_time(tower: Tower) -> None:
    one = await tower.made()
    tower.bells.at_work = _Everything()  # type: ignore[assignment]
    first, second = [await tower.server().run_now(one) for _ in range(2) if not tower.clock.pass_(seconds=1)]
    assert first.state is second.state is FiringState.BEGUN
    assert first.manual
    assert first.began != second.began
    assert (await tower.server().get(one.id)).next_at == one.next_at


async def test_a_run_now_that_dies_is_begun_by_another(tower: Tower) -> None:
    one = await tower.made(every_s=86400)
    arm("schedule.fired", 1, Fault.RAISE)
    with pytest.raises(Broken):
        await tower.server().run_now(one)
    disarm()
    tower.clock.now += service.LEASE + MINUTE
    await tower.server().run_due()
    assert len(tower.bells.calls) == 2
    assert len(tower.bells.rung) == 1
    assert await tower.history(one) == [(FiringState.BEGUN, "")]


async def test_once_means_once_and_is_forgotten_at_last(tower: Tower) -> None:
    one = await tower.made(at=START + 5 * MINUTE)
    assert tower.server().next_times(one) == [START + 5 * MINUTE]
    for _ in range(10):
        tower.clock.pass_(seconds=60)
        await tower.server().run_due()
    assert tower.bells.due == [START + 5 * MINUTE]
    found = await tower.server().get(one.id)
    assert (found.state, tower.server().next_times(found)) == ("over", [])
    await tower.server().tidy()
    await tower.server().get(one.id)
    tower.clock.pass_(days=31)
    await tower.server().tidy()
    with pytest.raises(NotFound):
        await tower.server().get(one.id)


async def test_history_is_bounded(tower: Tower, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tenure.triggers.store", "tenure.testing.fake_triggers"):
        monkeypatch.setattr(f"{module}.HISTORY_MAX", 3)
    one = await tower.made()
    for _ in range(8):
        tower.clock.pass_(seconds=60)
        await tower.server().run_due()
    found = await tower.server().firings(one)
    assert [firing.due_at for firing in found] == [START + n * MINUTE for n in (8, 7, 6)]


async def test_jitter_delays_the_beginning_and_not_the_calendar(tower: Tower) -> None:
    one = await tower.made(every_s=3600, jitter_s=600)
    tower.clock.pass_(hours=1)
    await tower.server().run_due()
    (waiting,) = await tower.server().firings(one)
    assert START < waiting.due_at < waiting.fire_at < waiting.due_at + timedelta(seconds=600)
    assert not tower.bells.rung
    tower.clock.now = waiting.fire_at
    await tower.server().run_due()
    assert tower.bells.due == [START + timedelta(hours=1)]


# --- names and limits ----------------------------------------------------------------------------------------------------------
async def test_names_are_an_agents_own(tower: Tower) -> None:
    one = await tower.made(name="nightly")
    with pytest.raises(AlreadyExists):
        await tower.made(name="nightly")
    assert (await tower.server().get("nightly")).id == one.id
    other = await tower.made(name="nightly", agent="other")
    with pytest.raises(Conflict, match="Several"):
        await tower.server().get("nightly")
    assert (await tower.server().get("nightly", "other")).id == other.id
    assert [found.id for found in await tower.server().list("analyst")] == [one.id]
    await tower.server().delete(one, OWNER)
    with pytest.raises(NotFound):
        await tower.server().get(one.id)


async def test_a_schedule_is_made_once_per_key(tower: Tower) -> None:
    first = await tower.made(name="a", key="k")
    assert (await tower.made(name="a", key="k")).id == first.id
    assert (await tower.made(name="b", key="k2")).id != first.id


async def test_an_agents_own_schedules_are_bounded(tower: Tower, monkeypatch: pytest.MonkeyPatch) -> None:
    tower.bells.kind = "goal"
    monkeypatch.setattr(service, "AGENTS_OWN_MAX", 2)
    server = tower.server()

    def wanted(name: str, **more: Any) -> ScheduleRequest:
        return ScheduleRequest.model_validate({"name": name, "agent": "analyst", "every_s": 300} | more)

    for by in (OFFICE, WORKER):
        with pytest.raises(InvalidArgument, match="every 5 minutes"):
            await server.create(wanted("x", every_s=299), by)
        with pytest.raises(InvalidArgument, match="every 5 minutes"):
            await server.create(wanted("x", every_s=None, cron="0,1 3 * * *"), by)
        with pytest.raises(Forbidden):
            await server.create(wanted("x", kind="pipeline"), by)
    mine = [await server.create(wanted("a"), OFFICE), await server.create(wanted("b"), WORKER)]
    assert {one.created_by for one in mine} == {"office:analyst"}
    with pytest.raises(Conflict, match="2 schedules already"):
        await server.create(wanted("c"), OFFICE)
    owners = await server.create(wanted("c"), OWNER)
    with pytest.raises(Forbidden):
        await server.delete(owners, OFFICE)
    await server.delete(mine[0], WORKER)
    await server.create(wanted("d"), OFFICE)


async def test_a_time_that_is_over_is_refused(tower: Tower) -> None:
    with pytest.raises(InvalidArgument, match="is over"):
        await tower.made(at=START - MINUTE)
    with pytest.raises(InvalidArgument, match="nothing that a schedule begins"):
        await tower.made(kind="party")


# --- runs ----------------------------------------------------------------------------------------------------------------------
class OneBrain:
    async def get(self, agent: str) -> BrainSettings | None:
        return BrainSettings(model="test:one") if agent == "analyst" else None


@pytest.mark.parametrize("what", [{"goal": "look"}, {"goal": "look", "playbook": PLAYBOOK}])
async def test_a_goal_is_begun_as_one_run_per_due_time(control_database: ControlDatabase, what: dict[str, Any]) -> None:
    await add_agents(control_database)
    runs, clock = Runs(control_database), Clock()
    server = Schedules(ScheduleStore(control_database), Actions(GoalAction(runs, OneBrain())), clock)
    request = ScheduleRequest.model_validate({"name": "n", "agent": "analyst", "every_s": 60, "what": what})
    one = await server.create(request, OWNER)
    clock.pass_(seconds=60)
    arm("schedule.fired", 1, Fault.RAISE)
    with pytest.raises(Broken):
        await server.run_due()
    disarm()
    (begun,) = await runs.list(agent="analyst")
    clock.now += service.LEASE
    await server.run_due()
    history = await server.firings(one)
    assert (history[-1].state, history[-1].began) == (FiringState.BEGUN, begun.id)
    assert [found.state for found in history[:-1]] == [FiringState.SKIPPED], "the run is queued, not over"
    assert len(await runs.list(agent="analyst")) == 1
    await runs.cancel(begun.id)
    clock.pass_(seconds=60)
    await server.run_due()
    assert len(await runs.list(agent="analyst")) == 2


async def test_a_goal_that_nobody_can_begin_is_refused_at_once(control_database: ControlDatabase) -> None:
    await add_agents(control_database)
    action = GoalAction(Runs(control_database), OneBrain())
    for agent, what, said in (
        ("other", {"goal": "look"}, "no brain"),
        ("analyst", {}, "what.goal"),
        ("analyst", {"goal": "x", "colour": "red"}, "what.colour"),
        ("analyst", {"goal": "x", "playbook": "steps: []"}, "steps"),
        ("analyst", {"goal": "x", "playbook": PLAYBOOK, "accept": [{"run": "true"}]}, "own checks"),
    ):
        with pytest.raises(Exception, match=said):
            await action.check(agent, what)


SERVER = """
import asyncio, sys
from datetime import UTC, datetime
from tenure.database import ControlDatabase
from tenure.faultpoints import arm_from_environment
from tenure.triggers.actions import Actions
from tenure.triggers.goals import GoalAction
from tenure.triggers.schedules import Schedules
from tenure.triggers.store import ScheduleStore
from tenure.work.runs import Runs
class Nobody:
    async def get(self, agent): return None
async def main():
    arm_from_environment()
    now = datetime.fromisoformat(sys.argv[2])
    async with ControlDatabase(sys.argv[1]) as database:
        await Schedules(ScheduleStore(database), Actions(GoalAction(Runs(database), Nobody())), lambda: now).run_due()
asyncio.run(main())
"""


@pytest.mark.parametrize("point", [point for point in POINTS if point != "test.begun"])
async def test_a_killed_server_loses_and_repeats_nothing(
    control_database: ControlDatabase, control_dsn: str, point: str, tmp_path: Path
) -> None:
    await add_agents(control_database)
    clock = Clock()
    runs = Runs(control_database)
    server = Schedules(ScheduleStore(control_database), Actions(GoalAction(runs, OneBrain())), clock)
    what = {"goal": "look", "playbook": PLAYBOOK}
    wanted = {"name": "n", "agent": "analyst", "every_s": 600, "what": what, "missed": "all", "overlap": "allow"}
    await server.create(ScheduleRequest.model_validate(wanted), OWNER)
    clock.pass_(seconds=1300)
    log = tmp_path / "fired"
    killed = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", SERVER, control_dsn, clock.now.isoformat()],
        env={**os.environ, "TENURE_FAULT": f"{point}:1:kill", "TENURE_FAULT_LOG": str(log)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr.decode()[-2000:]
    assert log.read_text() == f"{point}:1:kill\n"
    clock.now += service.LEASE
    await server.run_due()
    assert len(await runs.list(agent="analyst")) == 2
