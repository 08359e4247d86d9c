"""What counts as use of an office, and when it sinks to which tier of sleep."""

from __future__ import annotations

import gc

from hypothesis import given
from hypothesis import strategies as st

from tenure.offices.rest import RestPolicy, Tier, due
from tenure.use import ANSWER_WAIT_S_MAX, BUSY_CPUS, Use


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Connection:
    closing = False

    def is_closing(self) -> bool:
        return self.closing


def used() -> tuple[Use, Clock]:
    clock = Clock()
    return Use(clock), clock


def test_it_idles_from_its_last_touch() -> None:
    use, clock = used()
    clock.now += 50
    assert use.idle_s == 50
    use.touch()
    clock.now += 7
    assert use.idle_s == 7


def test_work_keeps_it_in_use_however_long_it_takes() -> None:
    use, clock = used()
    with use.during():
        clock.now += 10**6
        assert use.is_in_use
        assert use.idle_s == 0
    clock.now += 3
    assert use.idle_s == 3


def test_an_open_connection_keeps_it_in_use_until_it_closes_or_is_forgotten() -> None:
    use, clock = used()
    connection, forgotten = Connection(), Connection()
    use.while_open(connection)
    use.while_open(forgotten)
    del forgotten
    gc.collect()
    clock.now += 10**6
    assert use.idle_s == 0
    connection.closing = True
    clock.now += 5
    assert use.idle_s == 5


def test_who_waits_for_an_answer_uses_it_and_an_idle_connection_does_not() -> None:
    use, clock = used()
    flow = use.flow()
    flow.asked()
    clock.now += 1000
    assert use.idle_s == 0, "a query is under way"
    flow.answered()
    clock.now += 1000
    assert use.idle_s == 1000, "a connection of a pool"
    flow.asked()
    flow.closed()
    clock.now += 10
    assert use.idle_s == 10


def test_a_forgotten_question_does_not_keep_it_awake_for_good() -> None:
    use, clock = used()
    use.flow().asked()
    clock.now += ANSWER_WAIT_S_MAX + 1
    assert use.idle_s > ANSWER_WAIT_S_MAX


def test_computing_is_use_and_a_probe_is_not() -> None:
    use, clock = used()
    use.computed(100.0)
    clock.now += 10
    use.computed(100.0 + 10 * BUSY_CPUS / 2)
    assert use.idle_s == 10
    clock.now += 10
    use.computed(100.0 + 10 * BUSY_CPUS * 2)
    assert use.idle_s == 0
    clock.now += 10
    use.computed(0.0)  # it was started anew
    assert use.idle_s == 10


PERIODS = st.none() | st.floats(0.001, 1e6)
POLICIES = st.builds(RestPolicy, PERIODS, PERIODS, PERIODS)


@given(st.sampled_from(Tier), st.floats(0, 1e7), POLICIES, st.frozensets(st.sampled_from(Tier)))
def test_it_only_sinks_and_only_to_what_is_due(
    tier: Tier, idle_s: float, policy: RestPolicy, barred: frozenset[Tier]
) -> None:
    wanted = due(tier, idle_s, policy, barred=barred)
    if wanted is None:
        return
    after_s = getattr(
        policy, {"paused": "pause_after_s", "hibernated": "hibernate_after_s"}.get(wanted, "stop_after_s")
    )
    assert wanted.depth > tier.depth
    assert wanted not in barred
    assert after_s is not None
    assert idle_s >= after_s


def test_it_sinks_step_by_step_and_at_once_when_late() -> None:
    policy = RestPolicy(10, 20, 30)
    assert due(Tier.AWAKE, 9, policy) is None
    assert due(Tier.AWAKE, 10, policy) is Tier.PAUSED
    assert due(Tier.PAUSED, 19, policy) is None
    assert due(Tier.PAUSED, 20, policy) is Tier.HIBERNATED
    assert due(Tier.AWAKE, 25, policy) is Tier.HIBERNATED
    assert due(Tier.HIBERNATED, 30, policy) is Tier.STOPPED
    assert due(Tier.STOPPED, 1e9, policy) is None
    assert due(Tier.AWAKE, 25, policy, barred=frozenset({Tier.HIBERNATED})) is Tier.PAUSED
    assert due(Tier.AWAKE, 1e9, RestPolicy(None, None, None)) is None


def test_an_own_policy_overrides_the_servers_and_zero_is_never() -> None:
    assert RestPolicy(10, 20, 30).but({"pause_after_s": 0, "stop_after_s": 5}) == RestPolicy(None, 20, 5)
