"""What the engine makes of thoughts: a goal becomes a plan, checks judge the work and not the brain's word, and what fails is
fed back, mended, planned anew or given to a person."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta

from fixtures.stage import step_of
from fixtures.thinking import MODELS, ThinkingStage, check, done, propose, script, shell, work
from fixtures.workers import at_rest, until
from tenure.brains.base import Task
from tenure.errors import ContextTooLong, DoorClosed, ModelError, Unauthenticated
from tenure.testing.scripted_brain import Again
from tenure.work.hands import CommandState
from tenure.work.journal import load
from tenure.work.keys import effect_key
from tenure.work.state import fold
from tenure.work.subgoals import subgoal_id
from tenure.work.thoughts import Ask, BrainSettings, Finish, Propose, Purpose, Say, Wait


async def test_a_goal_becomes_a_plan_that_is_worked_on_and_checked(thinking: ThinkingStage) -> None:
    run, thinker = await thinking.carry(
        {
            "plan": [propose(work("one", "test -s one"), script("two", "echo two >> effects", "one"))],
            "one": [shell("echo made > one", "echo beside > beside"), done("one is made")],
        },
        accept=check("test -s one && grep -q two effects"),
    )
    assert run.state == "succeeded", run
    assert [(step.id, step.state) for step in run.steps] == [
        (name, "succeeded") for name in ("plan", "one", "two", "accept")
    ]
    thinker.assert_complete()
    (planned, worked, ended) = thinker.tasks
    assert (planned.purpose, worked.purpose) == (Purpose.PLAN, Purpose.WORK)
    assert not planned.tools
    assert [tool.name for tool in worked.tools] == ["shell"]
    assert [result.ok for result in ended.turns[0].results if result] == [True, True]


async def test_its_word_is_not_believed_and_it_is_told_what_is_wrong(thinking: ThinkingStage) -> None:
    run, thinker = await thinking.carry(
        {
            "plan": [propose(work("one", "test -s one"))],
            "one": [done("I am sure"), shell("echo made > one"), done("now it is")],
        }
    )
    assert run.state == "succeeded"
    assert await thinking.rungs(run) == [(1, "verification")]
    assert step_of(run, "one").attempts == 1, "the conversation goes on"
    (result,) = thinker.tasks[2].turns[0].results
    assert result is not None
    assert not result.ok
    assert "the check exited with 1" in result.output
    thinker.assert_complete()


async def test_a_plan_that_makes_no_sense_is_refused_in_words(thinking: ThinkingStage) -> None:
    unchecked = work("one", "true").model_copy(update={"verify": ()})
    run, thinker = await thinking.carry(
        {
            "plan": [
                propose(unchecked, work("two", "true", "nowhere"), work("a", "true", "b"), work("b", "true", "a")),
                propose(script("one", "echo one >> effects")),
            ]
        }
    )
    assert run.state == "succeeded"
    (result,) = thinker.tasks[1].turns[0].results
    assert result is not None
    for said in ("one has no check", "two needs nowhere", "in a circle"):
        assert said in result.output
    assert thinking.effects() == ["one"]


async def test_planning_only_looks_whatever_the_brain_makes_up(thinking: ThinkingStage) -> None:
    run, thinker = await thinking.carry(
        {"plan": [shell("echo sly >> effects"), propose(script("one", "echo one >> effects"))]}
    )
    assert run.state == "succeeded"
    assert thinking.effects() == ["one"]
    (result,) = thinker.tasks[1].turns[0].results
    assert result is not None
    assert "not for plan" in result.output


async def test_what_a_tool_printed_is_not_kept_in_the_office(thinking: ThinkingStage) -> None:
    run, _ = await thinking.carry(
        {"plan": [propose(work("one", "test -s one"))], "one": [shell("echo made > one; echo long"), done()]}
    )
    assert run.state == "succeeded"
    forgotten = [call.split()[1] for call in thinking.hands.calls if call.startswith("forget_command")]
    assert any(key.endswith(".1.t0.0") for key in forgotten), forgotten


async def test_a_failing_script_is_mended_by_the_brain(thinking: ThinkingStage) -> None:
    run, thinker = await thinking.carry(
        {
            "plan": [propose(script("one", "cat needed >> effects", retry={"attempts": 0}))],
            "mend-1": [shell("echo there > needed"), done("the file was missing")],
        }
    )
    assert run.state == "succeeded"
    assert await thinking.rungs(run) == [(1, "command")]
    assert "needed: No such file" in thinker.tasks[1].trouble
    assert thinking.effects() == ["there"]
    thinker.assert_complete()


async def test_what_cannot_be_mended_is_planned_anew_and_what_was_done_is_undone_last_first(
    thinking: ThinkingStage,
) -> None:
    first = [
        script("kept", "echo kept >> effects"),
        script("a", "echo a >> effects", "kept", undo="echo undo-a >> effects"),
        script("b", "echo b >> effects", "a", undo="echo undo-b >> effects"),
        script("bad", "exit 1", "b", retry={"attempts": 0}),
    ]
    run, thinker = await thinking.carry(
        {
            "plan": [propose(*first)],
            "mend-1": [shell("true"), done("I tried")],
            "mend-2": [done("I tried again")],
            "replan-3": [
                propose(script("kept", "echo kept >> effects"), script("good", "echo good >> effects", "kept"))
            ],
        }
    )
    assert run.state == "succeeded", run
    assert await thinking.rungs(run) == [(1, "command"), (1, "command"), (3, "command")]
    assert thinking.effects() == ["kept", "a", "b", "undo-b", "undo-a", "good"]
    assert {step.id for step in run.steps} >= {"kept", "undo-b", "undo-a", "good", "replan-3"}
    assert "bad" not in {step.id for step in run.steps}
    thinker.assert_complete()


async def test_a_ladder_that_ends_asks_a_person_with_the_evidence(thinking: ThinkingStage) -> None:
    bad = "echo the reason why >&2; exit 1"
    other = propose(script("bad", f"{bad} # in other words", retry={"attempts": 0}))
    run, thinker = await thinking.carry(
        {
            "plan": [propose(script("bad", bad, retry={"attempts": 0}))],
            **{f"mend-{n}": [done("nothing helps")] for n in (1, 2, 4, 5)},
            **{f"replan-{n}": [other] for n in (3, 6)},
        }
    )
    assert run.state == "parked"
    assert [rung for rung, _ in await thinking.rungs(run)] == [1, 1, 3, 1, 1, 3, 8], (
        "the same plan again is no new ground"
    )
    parked = (await thinking.events(run, "parked"))[0]
    assert "the reason why" in parked.data["evidence"]
    thinker.assert_complete()


# --- models --------------------------------------------------------------------------------------------------------------
async def test_a_model_that_fails_is_asked_again_and_then_another_one(thinking: ThinkingStage) -> None:
    fails = [ModelError("overloaded", retry_after_s=0.01) for _ in range(3)]
    run, thinker = await thinking.carry(
        {"plan": [Again(fails, propose(script("one", "echo one >> effects")))]}, models=MODELS
    )
    assert run.state == "succeeded"
    assert [model for _, _, model in thinker.asked] == [MODELS[0]] * 3 + [MODELS[1]]
    assert [rung for rung, _ in await thinking.rungs(run)] == [0, 0, 2]


async def test_a_model_that_failed_often_is_left_alone_by_all_steps(thinking: ThinkingStage) -> None:
    fails = [ModelError("overloaded", retry_after_s=0.01) for _ in range(3)]
    run, thinker = await thinking.carry(
        {
            "plan": [Again(fails, propose(work("one", "test -s one")))],
            "one": [shell("echo made > one"), done()],
        },
        models=MODELS,
    )
    assert run.state == "succeeded"
    assert [model for node, _, model in thinker.asked if node == "one"] == [MODELS[1]] * 2


async def test_a_key_that_is_refused_is_another_models_chance_and_else_a_persons(thinking: ThinkingStage) -> None:
    wrong = Again([Unauthenticated("the key is wrong")], propose(script("one", "echo one >> effects")))
    run, thinker = await thinking.carry({"plan": [wrong]}, models=MODELS)
    assert run.state == "succeeded"
    assert [model for _, _, model in thinker.asked] == list(MODELS)
    run, _ = await thinking.carry({"plan": [Unauthenticated("the key is wrong")]})
    assert run.state == "parked"
    assert "the key is wrong" in (run.question or "")


async def test_a_conversation_that_is_too_long_is_cut_and_asked_about_again(thinking: ThinkingStage) -> None:
    long = Again(
        [ContextTooLong("too long"), ContextTooLong("too long")], propose(script("one", "echo one >> effects"))
    )
    run, thinker = await thinking.carry({"plan": [long]}, context_tokens_max=40_000)
    assert run.state == "succeeded"
    assert [task.context_tokens_max for task in thinker.tasks] == [40_000, 20_000, 10_000]


# --- being stuck -----------------------------------------------------------------------------------------------------------
async def test_the_same_call_with_the_same_result_is_noticed_told_and_ends(thinking: ThinkingStage) -> None:
    again = shell("echo same")
    run, thinker = await thinking.carry(
        {
            "plan": [propose(work("one", "test -s one"))],
            "one": [again, again, again, again, shell("echo made > one"), done()],
        }
    )
    assert run.state == "succeeded"
    assert await thinking.rungs(run) == [(1, "stuck")]
    assert "the same call with the same result" in thinker.tasks[5].turns[3].note


async def test_going_back_and_forth_is_noticed(thinking: ThinkingStage) -> None:
    run, thinker = await thinking.carry(
        {
            "plan": [propose(work("one", "test -s one"))],
            "one": [shell("echo a"), shell("echo b")] * 3 + [shell("echo made > one"), done()],
        }
    )
    assert run.state == "succeeded"
    assert await thinking.rungs(run) == [(1, "stuck")]
    assert "back and forth" in thinker.tasks[7].turns[5].note


async def test_talking_without_acting_is_answered_and_then_noticed(thinking: ThinkingStage) -> None:
    run, thinker = await thinking.carry(
        {
            "plan": [propose(work("one", "test -s one"))],
            "one": [Say(), Say(), Say(), shell("echo made > one"), done()],
        }
    )
    assert run.state == "succeeded"
    assert await thinking.rungs(run) == [(1, "stuck")]
    assert "neither used a tool" in thinker.tasks[2].turns[0].note


async def test_no_verified_progress_leads_to_another_plan_and_verified_progress_begins_anew(
    thinking: ThinkingStage,
) -> None:
    walk = [shell(f"echo {n}") for n in range(40)]
    run, _ = await thinking.carry(
        {
            "plan": [propose(work("one", "test -s one"), work("two", "test -s two", "one"))],
            "one": [*walk[:8], shell("echo made > one"), done()],
            "two": [*walk[:8], shell("echo made > two"), done()],
        },
        budget={"turns_without_progress": 12},
    )
    assert run.state == "succeeded"
    assert await thinking.rungs(run) == [], "verified progress gives a new window"
    run, _ = await thinking.carry(
        {"plan": [propose(work("three", "test -s three"))], "three": walk}, budget={"turns_without_progress": 7}
    )
    assert run.state == "parked"
    assert {failed for _, failed in await thinking.rungs(run)} >= {"stuck"}


# --- budgets ---------------------------------------------------------------------------------------------------------------
async def test_a_spent_budget_parks_the_run_and_an_answer_gives_as_much_again(thinking: ThinkingStage) -> None:
    plan = {
        "plan": [propose(work("one", "test -s one"))],
        "one": [shell("echo 1"), shell("echo 2"), shell("echo made > one"), done()],
    }
    async with thinking.working(plan) as thinker:
        run = await at_rest(thinking.runs, await thinking.think(budget={"requests": 3}))
        assert run.state == "parked"
        assert "budget of 3 requests is spent" in (run.question or "")
        await thinking.runs.resume(run.id, "retry")
        run = await at_rest(thinking.runs, run.id)
        assert run.state == "succeeded"
        thinker.assert_complete()
        assert len(thinker.asked) == 5


async def test_what_an_agent_may_cost_a_day_is_waited_for_until_the_next(thinking: ThinkingStage) -> None:
    turns = {"plan": [propose(work("one", "test -s one"))], "one": [shell("echo 1"), shell("echo 2")]}
    async with thinking.working(turns) as thinker:
        run_id = await thinking.think(budget={"agent_day_cost_usd": 0.015})
        while not await thinking.database.fetch("select 1 from absurd.r_work where state = 'sleeping'"):
            await thinking.rest()
        assert len(thinker.asked) == 2
    entered = (await thinking.events(await thinking.runs.get(run_id), "rung_entered"))[-1]
    assert entered.data["reason"].startswith("budget: analyst spent 0.02 of 0.015 dollars today")
    midnight = datetime.combine(entered.at.astimezone(UTC).date() + timedelta(days=1), time(), UTC)
    assert abs(datetime.fromisoformat(entered.data["not_before"]) - midnight) < timedelta(minutes=1)


# --- waits and questions ---------------------------------------------------------------------------------------------------
async def test_a_question_parks_the_run_and_its_answer_reaches_the_brain(thinking: ThinkingStage) -> None:
    plan = {
        "plan": [propose(work("one", "test -s one"))],
        "one": [Ask(text="Which colour?", options=("red", "blue")), shell("echo made > one"), done()],
    }
    async with thinking.working(plan) as thinker:
        run = await at_rest(thinking.runs, await thinking.think())
        assert run.state == "parked"
        (question,) = await thinking.runs.questions()
        assert (question.run, question.agent, question.step) == (run.id, "analyst", "one")
        assert (question.text, question.options) == ("Which colour?", ["red", "blue"])
        (message,) = await thinking.inbox.list()
        assert question.id in message.body
        await thinking.runs.answer(question.id, "blue", by="ana")
        run = await at_rest(thinking.runs, run.id)
        assert run.state == "succeeded"
        (result,) = thinker.tasks[2].turns[0].results
        assert result is not None
        assert result.output == "blue"
        thinker.assert_complete()


async def test_a_wait_is_over_when_its_time_is(thinking: ThinkingStage) -> None:
    run, thinker = await thinking.carry(
        {
            "plan": [propose(work("one", "test -s one"))],
            "one": [Wait(for_s=0.05), shell("echo made > one"), Finish()],
        }
    )
    assert run.state == "succeeded"
    (result,) = thinker.tasks[2].turns[0].results
    assert result is not None
    assert result.output == "The time is over."


# --- sub-goals, and the office under it --------------------------------------------------------------------------------------
async def test_a_run_waits_for_its_sub_goal_without_a_worker(thinking: ThinkingStage) -> None:
    child_id = subgoal_id("helper", "k")

    def plan(task: Task) -> Propose:
        return propose(work("one", "test -s one") if task.agent == "analyst" else script("part", "echo the part"))

    thinking.office.add_agent("helper")
    given = BrainSettings(brain="scripted", models=MODELS[:1])
    turns = {"plan": [plan], "one": [Wait(run=child_id, for_s=3600), shell("echo made > one"), done()]}
    async with thinking.working(turns) as thinker:
        run_id = await thinking.think()
        while not await thinking.database.fetch("select 1 from absurd.r_work where state = 'sleeping'"):
            await thinking.rest()
        child = await thinking.runs.create_thinking(
            agent="helper", goal="the part", settings=given, parent=run_id, key="k"
        )
        assert child.id == child_id
        run = await at_rest(thinking.runs, run_id)
        assert run.state == "succeeded"
        (result,) = thinker.tasks[-1].turns[0].results
        assert result is not None
        assert result.output == f"{child_id} succeeded. part: the part"
    assert (await thinking.runs.get(child_id)).parent == run_id


async def test_an_office_that_fails_under_a_tool_is_recovered_and_the_call_is_not_made_twice(
    thinking: ThinkingStage,
) -> None:
    fault = thinking.hands.add("start_command", lambda: DoorClosed("the door broke"), before=False)
    run, thinker = await thinking.carry(
        {
            "plan": [propose(work("one", "test -s one"))],
            "one": [shell("echo once >> effects; echo made > one"), done()],
        }
    )
    assert fault.fired == 1
    assert run.state == "succeeded"
    assert await thinking.rungs(run) == [(4, "door")]
    assert thinking.effects() == ["once"]
    thinker.assert_complete()


async def test_a_change_of_plan_by_who_works_leaves_what_is_done(thinking: ThinkingStage) -> None:
    run, thinker = await thinking.carry(
        {
            "plan": [propose(script("first", "echo first >> effects"), work("wrong", "false", "first"))],
            "wrong": [propose(work("right", "test -s right", "first"), reason="wrong cannot be done")],
            "right": [shell("echo made > right"), done()],
        }
    )
    assert run.state == "succeeded"
    assert thinking.effects() == ["first"]
    assert [step.id for step in run.steps] == ["plan", "first", "right"]
    thinker.assert_complete()


async def test_the_goals_own_checks_judge_whatever_the_plan(thinking: ThinkingStage) -> None:
    run, thinker = await thinking.carry(
        {
            "plan": [propose(script("lazy", "true"))],
            "mend-1": [shell("echo asked > asked"), done()],
        },
        accept=check("test -s asked"),
    )
    assert run.state == "succeeded"
    assert await thinking.rungs(run) == [(1, "verification")]
    assert "Not verified" in thinker.tasks[1].trouble
    thinker.assert_complete()


async def test_folding_the_journal_again_gives_the_same_state(thinking: ThinkingStage) -> None:
    """What a worker knows after it did everything itself is what another one reads."""
    run, _ = await thinking.carry(
        {
            "plan": [
                propose(work("one", "test -s one"), script("bad", "test -e mended", "one", retry={"attempts": 0}))
            ],
            "one": [shell("echo made > one"), Wait(for_s=0.01), done("no"), done()],
            "mend-1": [Say(), shell("touch mended"), done()],
        }
    )
    assert run.state == "succeeded"
    records = await load(thinking.database, run.id)
    for cut in range(len(records)):
        again = fold(run.id, records[:cut])
        for record in records[cut:]:
            again.apply(record)
        assert repr(again) == repr(fold(run.id, records))


async def test_cancel_ends_the_tool_that_runs_though_its_worker_died(thinking: ThinkingStage) -> None:
    plan = {
        "plan": [propose(work("one", "test -s one"))],
        "one": [shell("echo begun > begun; sleep 600; echo late >> effects")],
    }
    begun = thinking.home / "begun"
    async with thinking.working(plan):
        run_id = await thinking.think()
        await until(begun.exists)
        await until(lambda: begun.read_text())
    key = f"{effect_key(run_id, 'one', 1)}.t0.0"
    assert (await thinking.office.command_status("analyst", key)).state is CommandState.RUNNING, "the tool died with it"
    await thinking.runs.cancel(run_id)
    async with thinking.working(plan):
        assert (await at_rest(thinking.runs, run_id)).state == "cancelled"
    assert (await thinking.office.command_status("analyst", key)).state is not CommandState.RUNNING
