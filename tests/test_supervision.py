"""Nothing is ended in an office that runs unless two signals say so, for long enough; and not again and again."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tenure.offices.sandboxes.base import SandboxState
from tenure.offices.supervision import (
    RESTART_PERIOD_S,
    RESTARTS_MAX,
    STANDSTILL,
    Act,
    Action,
    Look,
    Patience,
    decide,
)

PATIENCE = Patience()
ENDING = (Action.RESTART, Action.KILL_GROUP, Action.KILL_LARGEST, Action.GIVE_UP)
EVERY_S = 5.0
HUNG = Look(0, SandboxState.RUNNING, answered=False)
WELL = Look(0, SandboxState.RUNNING, answered=True)


def seen(look: Look, times: int, *, cpus: float = 0.0, began: float = 0.0) -> list[Look]:
    """`look` again and again, while the office uses so many processors."""
    return [replace(look, at=began + n * EVERY_S, cpu_s=n * EVERY_S * cpus) for n in range(times)]


def live_through(looks: list[Look]) -> list[Act]:
    """What is done while these are seen one by one. After a restart another sandbox is looked at."""
    acts: list[Act] = []
    began = 0
    for count in range(1, len(looks) + 1):
        now = looks[count - 1].at
        verdict = decide(looks[began:count], acts, now, PATIENCE)
        assert verdict.reason
        if verdict.action is not Action.NOTHING:
            acts.append(Act(now, verdict.action))
        if verdict.action is Action.RESTART:
            began = count
    return acts


def actions(looks: list[Look]) -> list[Action]:
    return [act.action for act in live_through(looks)]


def test_an_office_that_is_silent_and_stands_still_is_reconnected_and_then_restarted() -> None:
    assert actions(seen(HUNG, 14)) == [Action.RECONNECT, Action.RESTART]


def test_an_office_that_answers_is_left_alone_whatever_it_takes() -> None:
    full = replace(WELL, memory=1.0)
    assert actions(seen(full, 400, cpus=1.0)) == []
    assert actions(seen(full, 400)) == []


def test_an_office_that_is_silent_but_gets_on_is_never_restarted_a_person_is_told() -> None:
    assert actions(seen(HUNG, 400, cpus=0.9)) == [Action.RECONNECT, Action.ASK]


def test_on_a_busy_host_everything_takes_longer() -> None:
    busy = replace(HUNG, host_busy=True)
    usual = live_through(seen(HUNG, 100))
    later = live_through(seen(busy, 100))
    for action in (Action.RECONNECT, Action.RESTART):
        first, patient = (next(act.at for act in acts if act.action is action) for acts in (usual, later))
        assert patient >= first * (PATIENCE.busy_factor - 1)


def test_a_silent_office_at_its_memory_limit_loses_the_largest_process_first() -> None:
    assert actions(seen(replace(HUNG, memory=0.99), 10, cpus=1.0)) == [Action.RECONNECT, Action.KILL_LARGEST]


def test_a_runaway_that_leaves_no_room_is_ended_and_a_pool_that_waits_is_not() -> None:
    full = replace(WELL, no_room=True)
    assert actions(seen(full, 10, cpus=1.0)) == [Action.KILL_GROUP]
    assert actions(seen(full, 400, cpus=0.01)) == []
    now_and_then = [replace(look, no_room=n % 3 > 0) for n, look in enumerate(seen(full, 12, cpus=1.0))]
    assert actions(now_and_then) == [Action.KILL_GROUP]
    assert actions([replace(look, no_room=n % 3 == 0) for n, look in enumerate(seen(full, 60, cpus=1.0))]) == []


def test_a_sandbox_that_died_is_cleaned_up_and_the_reason_says_what_was_seen() -> None:
    looks = [*seen(replace(WELL, memory=0.98), 3), Look(15, SandboxState.DEAD)]
    verdict = decide(looks, [], 15, PATIENCE)
    assert verdict.action is Action.CLEAN_UP
    assert "98%" in verdict.reason


def test_restarts_have_a_budget_as_in_otp() -> None:
    looks = seen(HUNG, 40)
    now = looks[-1].at
    reconnected = Act(looks[5].at, Action.RECONNECT)
    spent = [Act(now - n - 1, Action.RESTART) for n in range(RESTARTS_MAX)]
    assert decide(looks, [reconnected, *spent], now, PATIENCE).action is Action.GIVE_UP
    old = [replace(act, at=now - RESTART_PERIOD_S - 1) for act in spent[1:]]
    assert decide(looks, [reconnected, *old, spent[0]], now, PATIENCE).action is Action.RESTART


ANY_LOOK = st.builds(
    Look,
    at=st.just(0.0),
    sandbox=st.sampled_from(SandboxState),
    answered=st.sampled_from([True, False, False, False, None]),
    cpu_s=st.sampled_from([0.0, 0.0, 0.0, 2.0, 5.0]),
    memory=st.sampled_from([0.1, 0.99]),
    no_room=st.booleans(),
    host_busy=st.booleans(),
)


@st.composite
def stories(draw: st.DrawFn) -> list[Look]:
    """Looks in the order of time, with states that last, and now and then a gap."""
    looks: list[Look] = []
    at = cpu_s = 0.0
    for _ in range(draw(st.integers(1, 4))):
        look = draw(ANY_LOOK)
        for _ in range(draw(st.integers(1, 25))):
            at += draw(st.sampled_from([5.0, 5.0, 5.0, 20.0, 100.0]))
            cpu_s += look.cpu_s
            looks.append(replace(look, at=at, cpu_s=cpu_s))
    return looks


@given(stories())
def test_nothing_is_ended_on_one_signal_or_on_a_stale_one(looks: list[Look]) -> None:
    for act in live_through(looks):
        if act.action not in ENDING:
            continue
        before = [look for look in looks if look.at <= act.at][-PATIENCE.looks :]
        assert len(before) == PATIENCE.looks
        for earlier, later in itertools.pairwise(before):
            assert later.at - earlier.at <= PATIENCE.gap_s, "stale"
        if act.action is Action.KILL_GROUP:
            continue
        assert all(look.sandbox is SandboxState.RUNNING and look.answered is False for look in before)
        if act.action is Action.KILL_LARGEST:
            assert all(look.memory >= 0.97 for look in before)
        else:
            passed_s, used_s = before[-1].at - before[0].at, before[-1].cpu_s - before[0].cpu_s
            assert used_s <= STANDSTILL * passed_s


@given(stories())
def test_offices_that_rest_are_left_alone(looks: list[Look]) -> None:
    for state in (SandboxState.PAUSED, SandboxState.ABSENT):
        rest = [replace(look, sandbox=state) for look in looks]
        assert decide(rest, [], rest[-1].at, PATIENCE).action is Action.NOTHING


@given(stories())
def test_restarts_never_exceed_their_budget(looks: list[Look]) -> None:
    restarts = [act.at for act in live_through(looks) if act.action is Action.RESTART]
    for at in restarts:
        assert sum(at - RESTART_PERIOD_S < other <= at for other in restarts) <= RESTARTS_MAX
