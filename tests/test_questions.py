"""People are asked once, and answer once: an answer is bound to one question, whoever gives it; who waits for people costs
nothing; nobody's silence is a yes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fixtures.stage import Stage, step_of, words_of
from fixtures.thinking import ThinkingStage, check, done, propose, script, shell, work
from fixtures.workers import PATIENCE_S, WorkerPool, at_rest, until
from tenure import wire
from tenure.errors import Conflict, InvalidArgument, NotFound
from tenure.testing.fake_hands import FakeHands
from tenure.work import events as e
from tenure.work import owner
from tenure.work.journal import Journal
from tenure.work.plan import Approval
from tenure.work.thoughts import Ask, OnExpiry, Question, Wait

ANSWERERS = 24
LEAVE = "run: echo done >> effects\napprove: {text: 'May it, in ${{ goal }}?'}"
FAR_S = 3600.0
PAST = datetime(2020, 1, 1, tzinfo=UTC)


def asks(text: str = "Which colour?", **more: object) -> Ask:
    return Ask.model_validate({"text": text, **more})


def one_question(*after: object) -> dict[str, list[object]]:
    return {"plan": [propose(work("one", "test -s one"))], "one": [asks(), *after]}


TO_THE_END = (shell("echo made > one"), done())


async def parked(stage: Stage, run_id: str) -> wire.Question:
    """The only question of the run, once it is parked."""
    run = await at_rest(stage.runs, run_id)
    assert run.state == "parked", run
    (question,) = run.questions
    return question


async def at_rest_with(stage: Stage, run_id: str, holds: Callable[[wire.Run], bool]) -> wire.Run:
    """The run at rest, once this holds of it."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds(run := await at_rest(stage.runs, run_id)):
            await stage.rest()
    return run


async def states(stage: Stage, run_id: str) -> dict[str, wire.StepState]:
    return {step.id: step.state for step in (await stage.runs.get(run_id)).steps}


async def tasks_of(stage: Stage, run_id: str) -> list[tuple[str, bool]]:
    """(state, whether it is for later) of what absurd has to do for the run."""
    rows = await stage.database.fetch(
        """
        select r.state, r.available_at > now() as later from absurd.r_work r join absurd.t_work t using (task_id)
        where t.params->>'run' = %s and r.state in ('pending', 'sleeping', 'running')
        """,
        (run_id,),
    )
    return [(row["state"], row["later"]) for row in rows]


# --- one question, one answer -------------------------------------------------------------------------------------------
async def test_one_answer_counts_however_many_people_answer_at_once(thinking: ThinkingStage) -> None:
    async with thinking.working(one_question(*TO_THE_END)) as thinker:
        run_id = await thinking.think()
        question = await parked(thinking, run_id)
        tries = [thinking.runs.answer(question.id, f"colour-{n}", by=f"person-{n}") for n in range(ANSWERERS)]
        came = await asyncio.gather(*tries, return_exceptions=True)
        refused = [one for one in came if isinstance(one, BaseException)]
        (winner,) = [n for n, one in enumerate(came) if isinstance(one, wire.Run)]
        assert len(refused) == ANSWERERS - 1
        for error in refused:
            assert isinstance(error, Conflict), error
            assert f"answered already, by person-{winner}: colour-{winner}" in str(error)
        run = await at_rest(thinking.runs, run_id)
        assert run.state == "succeeded"
        (told,) = thinker.tasks[2].turns[0].results
        assert told is not None
        assert told.output == f"colour-{winner}"
    assert len(await thinking.events(run, "question_answered")) == 1


async def test_an_answer_is_for_no_other_question(thinking: ThinkingStage) -> None:
    turns = one_question(asks("Which size?"), *TO_THE_END)
    async with thinking.working(turns) as thinker:
        run_id = await thinking.think()
        first = await parked(thinking, run_id)
        await thinking.runs.answer(first.id, "blue", by="ana")
        second = await parked(thinking, run_id)
        assert second.id != first.id
        with pytest.raises(Conflict, match="by ana: blue"):
            await thinking.runs.answer(first.id, "large", by="bob")
        for unknown in (f"{run_id}.one.0.9:q0", "run_000000000000.one:q0", "nothing"):
            with pytest.raises(NotFound):
                await thinking.runs.answer(unknown, "large", by="bob")
        with pytest.raises(InvalidArgument):
            await thinking.runs.answer(second.id, "  ", by="bob")
        await thinking.runs.answer(second.id, "small", by="bob")
        assert (await at_rest(thinking.runs, run_id)).state == "succeeded"
        answers = [turn.results[0].output for turn in thinker.tasks[-1].turns[:2] if turn.results[0]]
        assert answers == ["blue", "small"]


async def test_what_was_denied_and_comes_again_is_another_question(stage: Stage) -> None:
    run_id = await stage.start(LEAVE)
    first = await parked(stage, run_id)
    await stage.runs.answer(first.id, "no", by="ana")
    run = await at_rest(stage.runs, run_id)
    assert run.questions == []
    assert "was not allowed. ana: no" in (run.question or "")
    await stage.runs.resume(run_id, "retry")
    second = await parked(stage, run_id)
    assert second.id != first.id
    with pytest.raises(Conflict, match="answered already"):
        await stage.runs.answer(first.id, "yes", by="bob")
    assert stage.effects() == []
    await stage.runs.answer(second.id, "yes", by="bob")
    assert (await at_rest(stage.runs, run_id)).state == "succeeded"
    assert stage.effects() == ["done", "after"]


async def test_a_stale_answer_does_not_answer_what_a_later_attempt_asks(thinking: ThinkingStage) -> None:
    """`one` has asked when `two` finds the disk full for the second time: the office goes back, and `one` begins anew."""
    out, go = thinking.outside, thinking.outside.with_name("go")
    full = f"echo x >> {out}; until [ -e {go} ]; do sleep 0.02; done; "
    full += f"[ $(wc -l < {out}) -ge 3 ] || {{ echo No space left on device; exit 1; }}"
    base = script("base", "echo base >> effects", verify=check("test -s effects"), snapshot=True)
    turns = {
        "plan": [propose(base, work("one", "test -s one", "base"), script("two", full, "base"))],
        "one": [asks(), *TO_THE_END],
    }
    async with thinking.working(turns) as thinker:
        run_id = await thinking.think()
        async with asyncio.timeout(PATIENCE_S):
            while not (asked := await thinking.runs.questions()):
                await thinking.rest()
        go.touch()
        second = await parked(thinking, run_id)
        assert step_of(await thinking.runs.get(run_id), "one").attempts == 2
        assert second.id != asked[0].id
        with pytest.raises(Conflict, match="the run went on"):
            await thinking.runs.answer(asked[0].id, "stale", by="ana")
        await thinking.runs.answer(second.id, "fresh", by="ana")
        run = await at_rest(thinking.runs, run_id)
        assert run.state == "succeeded"
        assert [failed for _, failed in await thinking.rungs(run)] == ["disk_full", "disk_full"]
        (told,) = thinker.tasks[-1].turns[0].results
        assert told is not None
        assert told.output == "fresh"


async def test_each_of_two_questions_lets_its_own_step_go_on(thinking: ThinkingStage) -> None:
    turns = {
        "plan": [propose(work("one", "test -s one"), work("two", "test -s two"))],
        "one": [asks("One?"), *TO_THE_END],
        "two": [asks("Two?"), shell("echo made > two"), done()],
    }
    async with thinking.working(turns) as thinker:
        run = await at_rest(thinking.runs, await thinking.think())
        assert run.state == "parked"
        by_step = {question.step: question.id for question in run.questions}
        assert set(by_step) == {"one", "two"}
        await thinking.runs.answer(by_step["two"], "yes", by="ana")
        question = await parked(thinking, run.id)
        assert question.step == "one"
        assert step_of(await thinking.runs.get(run.id), "two").state == "succeeded", "it did not wait for the other"
        await thinking.runs.answer(by_step["one"], "yes", by="ana")
        assert (await at_rest(thinking.runs, run.id)).state == "succeeded"
        thinker.assert_complete()


async def test_resume_does_not_answer_for_the_questions_of_a_run(thinking: ThinkingStage) -> None:
    async with thinking.working(one_question(*TO_THE_END)):
        run_id = await thinking.think()
        question = await parked(thinking, run_id)
        with pytest.raises(Conflict, match=question.id) as refused:
            await thinking.runs.resume(run_id, "retry")
        assert "tenure answer" in str(refused.value.hint)
        assert (await thinking.runs.get(run_id)).state == "parked"


# --- who waits for people costs nothing -----------------------------------------------------------------------------------
async def test_parked_runs_hold_no_claim_task_or_connection(thinking: ThinkingStage) -> None:
    turns = one_question(*TO_THE_END)
    async with thinking.working(turns):
        runs = [await thinking.think() for _ in range(12)]
        for run_id in runs:
            await parked(thinking, run_id)
            assert await tasks_of(thinking, run_id) == []
        await until(lambda: not any(t.get_name().startswith("run_") for t in asyncio.all_tasks()))
        busy = await thinking.database.fetch(
            """
            select query from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()
              and backend_type = 'client backend' and state <> 'idle'
            """
        )
        assert busy == []
        assert not [call for call in thinking.hands.calls if call.startswith("start_command")], "no office was used"


async def test_a_run_that_waits_until_a_question_expires_is_a_row_and_a_time(thinking: ThinkingStage) -> None:
    turns = {"plan": [propose(work("one", "test -s one"))], "one": [asks(expires_after_s=FAR_S), *TO_THE_END]}
    async with thinking.working(turns):
        run_id = await thinking.think()
        question = await parked(thinking, run_id)
        assert await tasks_of(thinking, run_id) == [("sleeping", True)]
        await thinking.runs.answer(question.id, "blue", by="ana")
        assert (await at_rest(thinking.runs, run_id)).state == "succeeded"
        assert await tasks_of(thinking, run_id) == [], "the answer used the task that slept"


async def test_a_cancelled_run_asks_nothing_any_more(thinking: ThinkingStage) -> None:
    turns = {"plan": [propose(work("one", "test -s one"))], "one": [asks(expires_after_s=FAR_S)]}
    async with thinking.working(turns):
        run_id = await thinking.think()
        question = await parked(thinking, run_id)
        assert (await thinking.runs.cancel(run_id)).state == "cancelled"
        assert await thinking.runs.questions() == []
        with pytest.raises(Conflict, match="is over: it cancelled"):
            await thinking.runs.answer(question.id, "blue", by="ana")
        async with asyncio.timeout(PATIENCE_S):
            while await tasks_of(thinking, run_id):
                await thinking.rest()
        assert (await thinking.runs.get(run_id)).state == "cancelled"


# --- silence ----------------------------------------------------------------------------------------------------------------
async def test_nobody_in_time_is_a_no(stage: Stage) -> None:
    run_id = await stage.start("run: echo done >> effects\napprove: {expires: 0.05s}")
    run = await at_rest_with(stage, run_id, lambda run: not run.questions)
    assert "Nobody in time" in (run.question or "")
    assert await stage.rungs(run) == [(8, "denied")]
    assert stage.effects() == []
    (asked,) = await stage.events(run, "asked")
    with pytest.raises(Conflict, match="nobody in time"):
        await stage.runs.answer(asked.data["question"]["id"], "yes", by="late")


async def test_a_brain_is_told_that_nobody_answered(thinking: ThinkingStage) -> None:
    turns = {"plan": [propose(work("one", "test -s one"))], "one": [asks(expires_after_s=0.05), *TO_THE_END]}
    async with thinking.working(turns) as thinker:
        run_id = await thinking.think()
        await at_rest_with(thinking, run_id, lambda run: run.state == "succeeded")
        (told,) = thinker.tasks[2].turns[0].results
        assert told is not None
        assert "nobody answered in time" in told.output


async def test_an_unanswered_approval_is_asked_anew_of_who_is_next(stage: Stage) -> None:
    run_id = await stage.start("run: echo done >> effects\napprove: {expires: 0.05s, escalate_to: boss}")
    run = await at_rest_with(stage, run_id, lambda run: [one.to for one in run.questions] == ["boss"])
    (second,) = run.questions
    first, again = await stage.events(run, "asked")
    assert again.data["question"]["id"] == second.id != first.data["question"]["id"]
    with pytest.raises(Conflict, match="somebody else was asked"):
        await stage.runs.answer(first.data["question"]["id"], "yes", by="late")
    assert stage.effects() == []
    messages = [message.subject for message in await stage.inbox.list()]
    assert len([subject for subject in messages if subject.startswith("For boss")]) == 1
    await stage.runs.answer(second.id, "yes", by="boss")
    assert (await at_rest(stage.runs, run_id)).state == "succeeded"


@pytest.mark.parametrize("escalate_to", ["", "boss"])
async def test_what_expired_while_no_worker_was_there_is_no_yes(thinking: ThinkingStage, escalate_to: str) -> None:
    """As a worker leaves it that asked and was not there again before the question expired."""
    approval = Approval(expires_after_s=FAR_S, escalate_to=escalate_to)
    turns = {
        "plan": [propose(script("one", "echo done >> effects", approval=approval))],
        "replan-1": [asks("And now?")],
    }
    async with thinking.working(turns):
        run_id = await thinking.think()
        question = await parked(thinking, run_id)
    given = (await thinking.events(await thinking.runs.get(run_id), "asked"))[0].data["question"]
    expired = Question.model_validate({**given, "expires_at": PAST})
    async with thinking.database.transaction() as connection:
        await owner.lock(connection, run_id)
        await owner.write(connection, run_id, e.Asked(node="one", question=expired))
        await owner.write(
            connection, run_id, e.Parked(question="", questions=(question.id,), until=PAST), state="parked"
        )
        await owner.queue_again(connection, run_id)
    with pytest.raises(Conflict, match="expired at 2020-01-01"):
        await thinking.runs.answer(question.id, "yes", by="late")
    async with thinking.working(turns):
        run = await at_rest_with(thinking, run_id, lambda run: question.id not in [one.id for one in run.questions])
    assert [one.to for one in run.questions] == [escalate_to]
    assert thinking.effects() == []
    assert expired.on_expiry is (OnExpiry.ESCALATE if escalate_to else OnExpiry.DENY)


# --- approvals --------------------------------------------------------------------------------------------------------------
async def test_a_step_begins_when_a_person_says_yes_and_not_before(stage: Stage) -> None:
    run_id = await stage.start(LEAVE)
    question = await parked(stage, run_id)
    assert question.approval
    assert (question.text, question.evidence) == ("May it, in g?", "echo done >> effects")
    assert stage.effects() == []
    with pytest.raises(InvalidArgument, match="neither yes nor no"):
        await stage.runs.answer(question.id, "perhaps", by="ana")
    await stage.runs.answer(question.id, "yes", by="ana")
    assert (await at_rest(stage.runs, run_id)).state == "succeeded"
    assert stage.effects() == ["done", "after"]


async def test_each_value_of_a_for_each_is_asked_for_by_itself(stage: Stage) -> None:
    run = await at_rest(
        stage.runs,
        await stage.start("for_each: {sql: 'values (1), (2)'}\nrun: echo $TENURE_ITEM >> effects\napprove: true"),
    )
    assert [question.step for question in run.questions] == ["work[1]", "work[2]"]
    await stage.runs.answer(run.questions[1].id, "yes", by="ana")
    question = await parked(stage, run.id)
    assert question.step == "work[1]"
    assert stage.effects() == ["2"]
    await stage.runs.answer(question.id, "no: not the first", by="ana")
    await at_rest(stage.runs, run.id)
    await stage.runs.resume(run.id, "skip")
    assert (await at_rest(stage.runs, run.id)).state == "succeeded"
    assert stage.effects() == ["2", "after"]


async def test_a_no_to_a_step_leads_to_another_plan(thinking: ThinkingStage) -> None:
    approval = Approval(text="May I delete all?")
    turns = {
        "plan": [propose(script("delete", "echo deleted >> effects", approval=approval))],
        "replan-1": [propose(script("keep", "echo kept >> effects"))],
    }
    async with thinking.working(turns) as thinker:
        run_id = await thinking.think()
        question = await parked(thinking, run_id)
        await thinking.runs.answer(question.id, "no, we need it", by="ana")
        run = await at_rest(thinking.runs, run_id)
        assert run.state == "succeeded"
        assert await thinking.rungs(run) == [(3, "denied")]
        assert "ana: no, we need it" in thinker.tasks[1].trouble
        assert thinking.effects() == ["kept"]


async def test_each_tool_call_of_a_kind_needs_a_yes_and_a_no_is_a_result(thinking: ThinkingStage) -> None:
    turns = {
        "plan": [propose(work("one", "test -s one"))],
        "one": [shell("echo first >> effects", "echo second >> effects"), *TO_THE_END],
    }
    async with thinking.working(turns) as thinker:
        run = await at_rest(thinking.runs, await thinking.think(approve=("sh*",)))
        assert run.state == "parked"
        first, second = sorted(run.questions, key=lambda one: one.id)
        assert "echo first" in first.evidence
        assert "echo second" in second.evidence
        await thinking.runs.answer(first.id, "no, too early", by="ana")
        assert (await parked(thinking, run.id)).id == second.id
        assert thinking.effects() == []
        await thinking.runs.answer(second.id, "yes", by="ana")
        third = await parked(thinking, run.id)  # a yes is for one call
        assert thinking.effects() == ["second"]
        denied, allowed = thinker.tasks[2].turns[0].results
        assert denied is not None
        assert allowed is not None
        assert not denied.ok
        assert "too early" in denied.output
        assert allowed.ok
        await thinking.runs.answer(third.id, "yes", by="ana")
        assert (await at_rest(thinking.runs, run.id)).state == "succeeded"
        thinker.assert_complete()


# --- crashes, and other runs --------------------------------------------------------------------------------------------------
POINTS = ("journal.append.before/run_claimed", "journal.append.after/run_claimed", "effect.run.after/work")


@pytest.mark.parametrize("point", POINTS)
async def test_an_answer_survives_the_death_of_who_goes_on_with_it(
    control_dsn: str, worker_pool: WorkerPool, fake_hands: FakeHands, tmp_path: Path, stage_alone: Stage, point: str
) -> None:
    stage, root, log = stage_alone, tmp_path / "offices", tmp_path / "fired"
    run_id = await stage.start("run: echo $TENURE_STEP >> effects\napprove: true")
    asking = worker_pool.start(control_dsn, root)
    question = await parked(stage, run_id)
    asking.kill()
    await asking.wait_for("", "Z")
    await stage.runs.answer(question.id, "yes", by="ana")
    fault = {"TENURE_FAULT": f"{point}:1:kill", "TENURE_FAULT_LOG": str(log)}
    dying = worker_pool.start(control_dsn, root, lease_s=2, **fault)
    await dying.wait_for("", "Z")
    assert point in log.read_text()
    worker = worker_pool.start(control_dsn, root, lease_s=2)
    run = await at_rest(stage.runs, run_id)
    await worker.end()
    assert run.state == "succeeded"
    assert stage.effects() == ["work", "after"]
    assert len(await stage.events(run, "asked")) == len(await stage.events(run, "question_answered")) == 1


async def test_an_answer_that_comes_while_the_run_is_being_parked_is_not_lost(
    thinking: ThinkingStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[str] = []
    end = Journal.end

    async def answered_first(self: Journal, event: e.Parked, *given: object, **more: object) -> bool:
        if isinstance(event, e.Parked) and not answered:
            answered.extend(event.questions)
            await thinking.runs.answer(event.questions[0], "blue", by="a machine")
        return await end(self, event, *given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Journal, "end", answered_first)
    async with thinking.working(one_question(*TO_THE_END)):
        run = await at_rest(thinking.runs, await thinking.think())
    assert len(answered) == 1
    assert run.state == "succeeded"
    assert await thinking.events(run, "parked") == []


async def test_an_answer_that_comes_while_the_run_is_laid_to_rest_is_not_lost(
    thinking: ThinkingStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`two` waits for an hour, so the run is not parked; its claim is given back until then."""
    answered: list[str] = []
    suspend = Journal.suspend

    async def answered_first(self: Journal, until: datetime, **more: int) -> bool:
        if not answered:
            (question,) = await thinking.runs.questions()
            answered.append(question.id)
            await thinking.runs.answer(question.id, "blue", by="a machine")
        return await suspend(self, until, **more)

    monkeypatch.setattr(Journal, "suspend", answered_first)
    turns = {
        "plan": [propose(work("one", "test -s one"), work("two", "true"))],
        "one": [asks(), *TO_THE_END],
        "two": [Wait(for_s=FAR_S)],
    }
    async with thinking.working(turns):
        run_id = await thinking.think()
        async with asyncio.timeout(PATIENCE_S):
            while (await states(thinking, run_id)).get("one") != "succeeded":
                await thinking.rest()
        assert len(answered) == 1
        assert (await states(thinking, run_id))["two"] == "waiting"


async def test_a_fork_asks_its_own_question(stage: Stage) -> None:
    run_id = await stage.begin(
        """
name: fork
steps:
  - {id: base, run: echo base >> effects, snapshot: true}
  - {id: leave, run: echo leave >> effects, approve: true}
  - {id: last, needs: [base, leave], run: echo last >> effects}
"""
    )
    first = await parked(stage, run_id)
    point = await stage.runs.fork_point(run_id, "base", there=stage.office.snapshots("analyst"))
    stage.office.fork("analyst", "twin", point.snapshot.id)
    twin = await stage.runs.fork(point, "twin")
    second = await parked(stage, twin.id)
    assert second.id.startswith(f"{twin.id}.")
    await stage.runs.answer(second.id, "yes", by="ana")
    assert (await at_rest(stage.runs, twin.id)).state == "succeeded"
    assert words_of(stage.home.parent.parent / "twin" / "home" / "effects")[-1:] == ["last"]
    assert (await stage.runs.get(run_id)).questions[0].id == first.id, "the other run still asks"


@pytest.fixture
def stage_alone(control_database: object, fake_hands: FakeHands, tmp_path: Path) -> Stage:
    """Without a worker of its own."""
    return Stage(control_database, fake_hands, tmp_path / "offices" / "analyst" / "home")  # type: ignore[arg-type]
