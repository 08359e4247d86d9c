"""The recovery ladder on real runs: each rung is entered for the failures that it can help with, within its budget, and leaves
its reason and evidence in the journal; the last one asks a person and waits at no cost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from fixtures.stage import Stage, step_of
from fixtures.workers import at_rest, until
from tenure.errors import (
    Conflict,
    ConnectionLost,
    DoorClosed,
    EgressDenied,
    InvalidArgument,
    NotFound,
    SandboxDead,
    ServerUnreachable,
)

FAILS_TWICE = "run: echo $TENURE_ATTEMPT >> effects; test $TENURE_ATTEMPT = 3"


# --- rung 0 ----------------------------------------------------------------------------------------------------------------
async def test_rung_0_tries_again_within_its_budget(stage: Stage) -> None:
    run = await stage.finish(f"{FAILS_TWICE}\nretry: {{attempts: 2, delay: 0.01}}")
    assert run.state == "succeeded"
    assert (step_of(run).attempts, step_of(run).rungs) == (3, [0, 0])
    assert stage.effects() == ["1", "2", "3", "after"]
    assert await stage.rungs(run) == [(0, "command"), (0, "command")]


async def test_a_spent_budget_asks_with_the_evidence(stage: Stage) -> None:
    run = await stage.finish("run: echo the reason why >&2; exit 3\nretry: {attempts: 1, delay: 0}")
    assert run.state == "parked"
    assert (step_of(run).state, step_of(run).attempts, step_of(run).rungs) == ("failed", 2, [0, 8])
    assert "exited with 3" in (run.question or "")
    parked = (await stage.runs.events(run.id))[-1]
    assert parked.kind == "parked"
    assert "the reason why" in parked.data["evidence"]
    (message,) = await stage.inbox.list()
    assert message.run_id == run.id
    assert "the reason why" in message.body


async def test_the_delay_before_a_retry_grows_and_is_kept_in_the_journal(stage: Stage) -> None:
    run_id = await stage.start("run: exit 1\nretry: {attempts: 3, delay: 0.02, backoff: 4}")
    run = await at_rest(stage.runs, run_id)
    entered = [e for e in await stage.runs.events(run.id) if e.kind == "rung_entered" and e.data["rung"] == 0]
    started = [e for e in await stage.runs.events(run.id) if e.kind == "step_started"]
    for event, next_start, whole_s in zip(entered, started[1:], (0.02, 0.08, 0.32), strict=True):
        not_before = type(event.at).fromisoformat(event.data["not_before"].replace("Z", "+00:00"))
        assert next_start.at >= not_before
        assert (not_before - event.at).total_seconds() <= whole_s


async def test_a_timeout_is_a_failure_of_the_step(stage: Stage) -> None:
    run = await stage.finish(
        "run: echo $TENURE_ATTEMPT >> effects; sleep 60\ntimeout: 0.3\nretry: {attempts: 1, delay: 0}"
    )
    assert run.state == "parked"
    assert await stage.rungs(run) == [(0, "timeout"), (8, "timeout")]
    assert stage.effects() == ["1", "2"]


async def test_what_is_not_verified_has_failed(stage: Stage) -> None:
    run = await stage.finish(
        "run: echo $TENURE_ATTEMPT >> effects\nverify: {run: test $(wc -l < effects) = 2}\nretry: {attempts: 2, delay: 0}"
    )
    assert run.state == "succeeded"
    assert await stage.rungs(run) == [(0, "verification")]
    assert stage.effects() == ["1", "2", "after"]


async def test_a_statement_that_the_database_refuses_is_tried_again(stage: Stage) -> None:
    run = await stage.finish("sql: insert into missing values (1)\nretry: {attempts: 1, delay: 0}")
    assert run.state == "parked"
    assert await stage.rungs(run) == [(0, "database"), (8, "database")]
    assert "missing" in (run.question or "")


async def test_a_statement_whose_answer_was_lost_is_asked_for_not_repeated(stage: Stage) -> None:
    lost = stage.hands.add("sql", lambda: ConnectionLost("the database went away"), before=False)
    sql = "create table if not exists done (n int); insert into done values (1)"
    run = await stage.finish(f"sql: {sql}\nretry: {{attempts: 1, delay: 0}}")
    assert (run.state, lost.fired) == ("succeeded", 1)
    assert (step_of(run).attempts, step_of(run).rungs) == (1, [0])
    assert (await stage.office.sql("analyst", "select count(*) from done")).rows == [[1]]


# --- rung 1 ----------------------------------------------------------------------------------------------------------------
async def test_rung_1_gives_the_failed_output_to_on_error_and_tries_again(stage: Stage) -> None:
    run = await stage.finish(
        "run: echo cause-$TENURE_ATTEMPT; test -e mended\n"
        "retry: {attempts: 1, delay: 0}\n"
        'on_error: {run: "printf %s \\"$TENURE_FAILED_STEP/$TENURE_FAILED_EXIT_CODE/$TENURE_FAILED_OUTPUT\\" > mended"}'
    )
    assert run.state == "succeeded"
    assert (step_of(run).attempts, step_of(run).rungs) == (3, [0, 1])
    assert (stage.home / "mended").read_text() == "work/1/cause-2"


async def test_rung_1_has_a_budget_and_does_not_go_back_to_rung_0(stage: Stage) -> None:
    run = await stage.finish("run: exit 1\nretry: {attempts: 2, delay: 0}\non_error: {run: echo mend >> effects}")
    assert run.state == "parked"
    assert step_of(run).rungs == [0, 0, 1, 1, 8]
    assert stage.effects() == ["mend", "mend"]


async def test_a_failing_on_error_leads_further_up(stage: Stage) -> None:
    run = await stage.finish("run: echo $TENURE_ATTEMPT >> effects; exit 1\nretry: 0\non_error: {run: exit 9}")
    assert run.state == "parked"
    assert step_of(run).rungs == [1, 1, 8]
    assert stage.effects() == ["1"], "the step was tried again although nothing was mended"


# --- rungs 4 and 5 -----------------------------------------------------------------------------------------------------------
async def test_rung_4_reconnects_and_the_effect_happens_once(stage: Stage) -> None:
    lost = stage.hands.add("start_command", lambda: DoorClosed("closed"), before=False)
    run = await stage.finish("run: echo once >> effects\nretry: 0")
    assert run.state == "succeeded"
    assert lost.fired == 1
    assert [call["rung"] for call in stage.office.calls("analyst")] == [4]
    assert (step_of(run).attempts, step_of(run).rungs) == (1, [4])
    assert stage.effects() == ["once", "after"]


async def test_rung_5_restarts_a_dead_sandbox(stage: Stage) -> None:
    stage.office.break_sandbox("analyst")
    run = await stage.finish("run: echo once >> effects\nretry: 0")
    assert run.state == "succeeded"
    assert [call["rung"] for call in stage.office.calls("analyst")] == [5]
    assert await stage.rungs(run) == [(5, "sandbox")]
    assert stage.effects() == ["once", "after"]


async def test_a_door_that_stays_shut_leads_to_a_restart_then_to_a_person(stage: Stage) -> None:
    stage.hands.add("start_command", lambda: DoorClosed("closed"), times=1000)
    run = await stage.finish("run: echo never >> effects\nretry: 5")
    assert run.state == "parked"
    assert step_of(run).rungs == [4, 4, 5, 5, 7, 8]
    assert [call["rung"] for call in stage.office.calls("analyst")] == [4, 4, 5, 5, 7]
    assert stage.effects() == []


async def test_verified_progress_renews_the_budget_of_the_office(stage: Stage) -> None:
    """Two recoveries are allowed without progress; five with a step finished after each."""
    text = """
name: many
concurrency: 1
steps:
"""
    for number in range(5):
        needs = f"needs: every-{number - 1}" if number else "needs: []"
        text += f"  - {{id: every-{number}, {needs}, retry: 0, run: echo {number} >> effects}}\n"
        stage.hands.add("start_command", lambda: DoorClosed("closed"), key=f".every-{number}.")
    run = await stage.play(text)
    assert run.state == "succeeded"
    assert [step.rungs for step in run.steps] == [[4]] * 5
    assert stage.effects() == ["0", "1", "2", "3", "4"]


async def test_branches_that_fail_together_recover_the_office_once(stage: Stage) -> None:
    stage.office.break_door("analyst")
    text = "name: p\nsteps: [{id: year, for_each: [a, b, c, d], retry: 0, run: echo $TENURE_ITEM >> effects}]"
    run = await stage.play(text)
    assert run.state == "succeeded"
    assert [call["rung"] for call in stage.office.calls("analyst")] == [4]
    assert sorted(stage.effects()) == ["a", "b", "c", "d"]


async def test_a_sandbox_that_dies_under_a_running_command(stage: Stage) -> None:
    """The command is lost; a check finds that it had no effect; it is tried again."""
    run_id = await stage.start(
        "run: echo $TENURE_ATTEMPT >> effects; [ $TENURE_ATTEMPT = 2 ] || sleep 60; echo yes > finished\n"
        "verify: {file: finished}\nretry: {attempts: 1, delay: 0}"
    )
    await until(lambda: stage.effects() == ["1"])
    stage.office.break_sandbox("analyst")
    run = await at_rest(stage.runs, run_id)
    assert run.state == "succeeded"
    assert await stage.rungs(run) == [(5, "sandbox"), (0, "lost")]
    assert stage.effects() == ["1", "2", "after"]


# --- rung 8 ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (lambda: EgressDenied("example.org is not allowed"), "authentication"),
        (lambda: InvalidArgument("there is no such user"), "usage"),
    ],
)
async def test_what_only_a_person_can_help_is_asked_at_once(
    stage: Stage, error: Callable[[], Exception], kind: str
) -> None:
    fault = stage.hands.add("start_command", error)
    run = await stage.finish("run: echo once >> effects\nretry: 5")
    assert run.state == "parked"
    assert fault.fired == 1
    assert await stage.rungs(run) == [(8, kind)]


async def test_a_full_disk_leads_to_one_restart_then_to_a_person(stage: Stage) -> None:
    """There is no snapshot to go back to; and what fills a disk is not retried as often as what fails."""
    run = await stage.finish("run: 'echo \"write: No space left on device\" >&2; exit 1'\nretry: 5")
    assert await stage.rungs(run) == [(5, "disk_full"), (8, "disk_full")]


async def test_branches_that_find_the_disk_full_are_served_by_one_restart(stage: Stage) -> None:
    text = """
name: full
steps:
  - id: year
    for_each: [a, b, c]
    run: grep -q 5 ../recoveries || { echo No space left on device; exit 1; }
    on_lost: retry # the restart ends those that have just begun
    retry: {attempts: 2, delay: 0}
"""
    run = await stage.play(text)
    assert run.state == "succeeded"
    assert [call["rung"] for call in stage.office.calls("analyst")] == [5]


async def test_a_parked_run_holds_nothing_and_goes_on_when_answered(stage: Stage) -> None:
    run = await stage.finish("run: echo $TENURE_ATTEMPT${TENURE_ANSWER// /-} >> effects; test -e ready\nretry: 0")
    assert run.state == "parked"
    assert not await stage.database.fetch(
        "select 1 from absurd.r_work where state in ('running', 'sleeping', 'pending')"
    )
    (stage.home / "ready").touch()
    resumed = await stage.runs.resume(run.id, "the file is there now")
    assert resumed.state in ("queued", "running", "succeeded")
    run = await at_rest(stage.runs, run.id)
    assert (run.state, run.question) == ("succeeded", None)
    assert stage.effects() == ["1", "2the-file-is-there-now", "after"]
    with pytest.raises(Conflict):
        await stage.runs.resume(run.id, "retry")


@pytest.mark.parametrize(
    ("answer", "state", "step", "effects"),
    [("skip", "succeeded", "skipped", ["1", "after"]), ("fail", "failed", "failed", ["1"])],
)
async def test_the_owner_may_skip_or_give_up(
    stage: Stage, answer: str, state: str, step: str, effects: list[str]
) -> None:
    run = await stage.finish("run: echo 1 >> effects; exit 1\nretry: 0")
    await stage.runs.resume(run.id, answer)
    run = await at_rest(stage.runs, run.id)
    assert (run.state, step_of(run).state, stage.effects()) == (state, step, effects)


async def test_an_answer_renews_the_steps_budget(stage: Stage) -> None:
    run = await stage.finish("run: echo x >> effects; exit 1\nretry: {attempts: 1, delay: 0}")
    assert len(stage.effects()) == 2
    await stage.runs.resume(run.id)
    run = await at_rest(stage.runs, run.id)
    assert (run.state, len(stage.effects())) == ("parked", 4)


async def test_other_branches_go_on_before_the_run_parks(stage: Stage) -> None:
    text = """
name: two
steps:
  - {id: bad, run: exit 1, retry: 0}
  - {id: good, run: sleep 0.3}
  - {id: better, needs: good, run: echo better >> effects}
"""
    run = await stage.play(text)
    assert run.state == "parked"
    assert stage.effects() == ["better"]


async def test_a_playbook_may_fail_instead_of_asking(stage: Stage) -> None:
    run = await stage.finish("run: exit 1\nretry: 0", head="on_failure: fail")
    assert run.state == "failed"
    assert "exited with 1" in (run.error or "")


# --- the server, the owner ---------------------------------------------------------------------------------------------------
async def test_a_server_that_is_away_is_waited_for(stage: Stage) -> None:
    away = stage.hands.add("start_command", lambda: ServerUnreachable("restarting"), times=4)
    run = await stage.finish("run: echo once >> effects\nretry: 0")
    assert away.fired == 4
    assert (run.state, step_of(run).rungs, stage.effects()) == ("succeeded", [], ["once", "after"])


async def test_cancel_ends_what_runs(stage: Stage) -> None:
    run_id = await stage.start("run: echo begun >> effects; sleep 60; echo ended >> effects")
    await until(lambda: stage.effects() == ["begun"])
    await stage.runs.cancel(run_id)
    run = await at_rest(stage.runs, run_id)
    assert run.state == "cancelled"
    jobs = list((stage.home.parent / "jobs").iterdir())
    assert all((job / "exit.json").exists() for job in jobs), "a command of a cancelled run still runs"
    with pytest.raises(Conflict):
        await stage.runs.cancel(run_id)


async def test_cancel_of_a_parked_run_takes_effect_at_once(stage: Stage) -> None:
    run = await stage.finish("run: exit 1\nretry: 0")
    assert (await stage.runs.cancel(run.id)).state == "cancelled"


async def test_a_long_wait_holds_no_claim_and_cancel_wakes_it(stage: Stage) -> None:
    run_id = await stage.start("run: exit 1\nretry: {attempts: 1, delay: 1h}")
    while not await stage.database.fetch("select 1 from absurd.r_work where state = 'sleeping'"):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert not await stage.database.fetch("select 1 from absurd.r_work where state = 'running'")
    assert (await stage.runs.get(run_id)).state == "running"
    await stage.runs.cancel(run_id)
    assert (await at_rest(stage.runs, run_id)).state == "cancelled"


async def test_an_agent_that_is_gone_is_asked_about(stage: Stage) -> None:
    run = await stage.runs.create(
        agent="nobody",
        goal="g",
        playbook="name: x\nsteps: [{id: a, run: 'true', retry: 0}]",
        playbook_name=None,
        inputs={},
    )
    run = await at_rest(stage.runs, run.id)
    assert run.state == "parked"
    assert "nobody" in (run.question or "")


async def test_binary_output_is_kept_without_harm(stage: Stage) -> None:
    run = await stage.finish(r"run: printf 'a\000b\377c\n'; echo fine")
    assert run.state == "succeeded"
    assert stage.effects() == ["after"]


async def test_unknown_runs_are_not_found(stage: Stage) -> None:
    for call in (stage.runs.get, stage.runs.cancel, stage.runs.resume, stage.runs.events):
        with pytest.raises(NotFound):
            await call("run_000000000000")


async def test_dead_sandboxes_have_a_budget(stage: Stage) -> None:
    stage.hands.add("start_command", lambda: SandboxDead("dead"), times=1000)
    run = await stage.finish("run: echo never >> effects\nretry: 5")
    assert step_of(run).rungs == [5, 5, 7, 8]
    assert "dead" in (run.question or "")
