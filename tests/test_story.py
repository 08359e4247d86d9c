"""What happened to a run can be told from its journal alone, and everything that can happen has its line."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest

from fixtures.thinking import ThinkingStage, check, done, propose, script, shell, work
from fixtures.workers import at_rest
from tenure import wire
from tenure.cli.output import printable
from tenure.cli.story import KINDS, story_of
from tenure.cli.storyteller import news, tell
from tenure.work import events as e
from tenure.work.failures import Failure, FailureClass
from tenure.work.plan import Approval, Plan
from tenure.work.thoughts import Ask, BrainSettings, Budget, CallResult, Question, Thought, Usage
from tenure.work.views import event_view

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
WIDTH = 80
PLAN = Plan(steps=(script("one", "echo one"), work("two", "test -s two", "one")))
OTHER = Plan(steps=(script("one", "echo one"), script("three", "echo three")))
FAILURE = Failure(kind=FailureClass.COMMAND, message="It exited with 1.", evidence="line 1\nthe reason why")
PRICED = Usage(input_tokens=1200, output_tokens=80, cost_usd=0.0125)
NODE = {"node": "two", "attempt": 1}
QUESTION = Question(id="q-1", text="May it?", options=("yes", "no"), evidence="rm -rf /", to="boss", expires_at=NOW)

EVERYTHING: list[tuple[e.AnyEvent, Sequence[str]]] = [
    (
        e.RunCreated(
            agent="analyst",
            goal="the goal",
            brain="pydantic_ai",
            settings=BrainSettings(models=("test:one", "test:two"), budget=Budget(tokens=5000)),
            accept=check("test -s all"),
            parent="run_0",
        ),
        ["for analyst", "the goal", "test:one, test:two", "tokens 5000", "test -s all", "run_0"],
    ),
    (e.Planned(plan=PLAN), ["2 steps", "+ one: echo one", "+ two (after one): do two"]),
    (e.RunClaimed(worker="w1", attempt=2), ["w1", "claim 2"]),
    (e.StepExpanded(node="one", values=("a", "b")), ["2 values", "a", "b"]),
    (e.StepStarted(**NODE, key="k"), ["attempt 1"]),
    (
        e.Thinking(
            **NODE,
            turn=0,
            duration_s=2.5,
            thought=Thought(decision=shell("echo hello"), text="I look first.", model="test:one", usage=PRICED),
        ),
        [
            "thought 1",
            "test:one",
            "1,200+80 tokens",
            "$0.0125",
            "2.5 s",
            "uses shell",
            "I look first.",
            "→ shell echo hello",
        ],
    ),
    (
        e.CallDone(**NODE, turn=0, index=0, result=CallResult(ok=False, output="not found", duration_s=0.3)),
        ["shell: failed after 0.3 s", "not found"],
    ),
    (
        e.Thinking(**NODE, turn=1, thought=Thought(decision=propose(script("one", "x"), reason="better"), model="m")),
        ["proposes 1 step, better", "→ one: x"],
    ),
    (e.CallDone(**NODE, turn=1, index=0, result=CallResult(ok=True, output="taken")), ["its plan: ok", "taken"]),
    (e.CallDone(**NODE, turn=9, index=3, result=CallResult(ok=True, unverified=True)), ["nobody knows how it ended"]),
    (
        e.Planned(plan=OTHER, node="two", reason="two cannot be done"),
        ["another plan by two", "two cannot be done", "+ three", "- two"],
    ),
    (e.Reported(**NODE, what="progress", data={"percent": 30}), ["progress", '"percent": 30']),
    (
        e.Waiting(node="two", until=NOW, run="run_2", reason="its part"),
        ["waits for run_2", "2026-01-01T12:00:00", "its part"],
    ),
    (e.SubGoalEnded(run="run_2", outcome="failed", summary="no way"), ["run_2 failed", "no way"]),
    (
        e.Asked(node="two", question=QUESTION),
        ["asks boss", "until 2026-01-01T12:00:00", "May it?", "q-1", "yes, no", "rm -rf /"],
    ),
    (e.QuestionAnswered(question="q-1", answer="no, never", by="ana"), ["answered by ana: no, never"]),
    (e.QuestionAnswered(question="q-2", answer="no: late"), ["answered by nobody"]),
    (
        e.EffectDone(**NODE, result=e.Result(output="out", exit_code=0, duration_s=1.5)),
        ["done after 1.5 s, exit code 0", "out"],
    ),
    (e.StepFailed(**NODE, failure=FAILURE), ["failed (command): It exited with 1.", "the reason why"]),
    (
        e.StepBlocked(**NODE, failure=FAILURE, since_seq=3, model="test:one"),
        ["could not go on (command, test:one)", "the reason why"],
    ),
    (e.StepUnverified(**NODE, failure=FAILURE), ["unverified (command)"]),
    (
        e.RungEntered(node="two", rung=1, reason="command: It exited with 1.", evidence="the reason", not_before=NOW),
        ["rung 1, self-correct, not before 12:00:00, because of command: It exited with 1.", "the reason"],
    ),
    (e.RungDone(node="two", rung=1, ok=False, evidence="still so"), ["rung 1 did not help", "still so"]),
    (
        e.SnapshotTaken(**NODE, snapshot="s1", before=True, verified=True, at_seq=3),
        ["snapshot s1, before it"],
    ),
    (
        e.OfficeRestored(node="two", snapshot="s1", before="s2", to_seq=3, undone=("two",)),
        ["went back to s1", "s2", "again: two"],
    ),
    (e.StepSkipped(node="two", reason="if: no"), ["skipped: if: no"]),
    (e.StepSucceeded(**NODE, evidence="run: holds"), ["succeeded, verified", "run: holds"]),
    (e.Parked(question="What now?", evidence="all of it"), ["parked: What now?", "all of it"]),
    (e.Answered(answer="retry"), ["the owner answered: retry"]),
    (e.CancelRequested(), ["wants it cancelled"]),
    (e.Forked(agent="b", run="run_1", step="one", snapshot="s1", seq=4), ["forked of run_1, after one (s1)"]),
    (e.RunSucceeded(), ["succeeded"]),
    (e.RunFailed(reason="fail"), ["failed: fail"]),
    (e.RunCancelled(), ["cancelled"]),
]


def journal(*events: e.AnyEvent) -> list[wire.RunEvent]:
    return [event_view(e.Record(n + 1, NOW + timedelta(seconds=n), event)) for n, event in enumerate(events)]


def kinds() -> set[str]:
    union = get_args(e.AnyEvent)[0]
    return {member.model_fields["kind"].default for member in get_args(union)}


def test_every_kind_of_event_has_a_line_and_an_example_here() -> None:
    assert kinds() == KINDS
    assert kinds() == {event.kind for event, _ in EVERYTHING}


@pytest.mark.parametrize("number", range(len(EVERYTHING)), ids=lambda n: f"{n}-{EVERYTHING[n][0].kind}")
def test_what_an_event_says_is_told(number: int) -> None:
    story = story_of(journal(*(event for event, _ in EVERYTHING[: number + 1])))
    entry = story.entries[number]
    assert entry.text != entry.kind
    for part in EVERYTHING[number][1]:
        assert part in f"{entry.text}\n{entry.details}"


def test_a_story_tells_all_that_its_events_say_within_the_width() -> None:
    story = story_of(journal(*(event for event, _ in EVERYTHING)))
    lines = tell(story, width=WIDTH, full=True)
    assert max(len(line) for line in lines) <= WIDTH
    text = " ".join(" ".join(lines).replace("│", "").split())
    for _, parts in EVERYTHING:
        for part in parts:
            assert " ".join(part.split()) in text
    assert "2 thoughts, 1,280 tokens, $0.0125+, 2.5 s" in text
    assert all(line.isascii() for line in tell(story, width=WIDTH, full=True, ascii_only=True))


def test_an_answer_stands_with_the_step_that_asked() -> None:
    story = story_of(journal(e.Asked(node="two", question=QUESTION), EVERYTHING[15][0]))
    assert [entry.step for entry in story.entries] == ["two", "two"]


def test_long_texts_are_cut_and_whole_where_that_is_wanted() -> None:
    output = "\n".join(f"line {n} " + "x" * 200 for n in range(50))
    failure = Failure(kind=FailureClass.COMMAND, message="word " * 200, evidence=output)
    story = story_of(journal(e.StepFailed(**NODE, failure=failure)))
    short, whole = tell(story, width=WIDTH), tell(story, width=WIDTH, full=True)
    assert max(len(line) for line in short) <= WIDTH
    assert len(short) < 12
    assert "… 46 lines more" in short[-1]
    assert sum("x" * 200 in line for line in whole) == 50
    many = story_of(journal(*[e.RungDone(node="two", rung=1, ok=True)] * 500))
    assert "… 440 entries more: --full" in "\n".join(tell(many, width=WIDTH))
    assert len(tell(many, width=WIDTH)) < 70
    assert len(tell(many, width=WIDTH, full=True)) == 501


def test_what_went_smoothly_is_left_to_the_picture() -> None:
    smooth: list[e.AnyEvent] = [
        e.RunCreated(agent="a", goal="g", brain="playbook"),
        e.Planned(plan=PLAN),
        e.StepStarted(node="one", attempt=1, key="k"),
        e.StepSucceeded(node="one", attempt=1),
        e.RunSucceeded(),
    ]
    assert tell(story_of(journal(*smooth)), width=WIDTH) == []
    assert tell(story_of(journal(*smooth)), width=WIDTH, steps=["one"])[0] == "one"
    retried = [*smooth[:3], e.StepFailed(node="one", attempt=1, failure=FAILURE), *smooth[3:]]
    assert tell(story_of(journal(*retried)), width=WIDTH)[0] == "one"


def test_an_event_of_another_version_is_named() -> None:
    odd = wire.RunEvent(seq=1, kind="dreamt", at=NOW, step="one", data={})
    bare = wire.RunEvent(seq=2, kind="thinking", at=NOW, step="one", data={})
    assert [entry.text for entry in story_of([odd, bare]).entries] == ["dreamt", "thinking"]


def test_nothing_that_an_office_sent_steers_the_terminal() -> None:
    evil = Failure(kind=FailureClass.COMMAND, message="\x1b[2Jm\nm", evidence="\x1b]0;title\x07\r")
    story = story_of(journal(e.StepFailed(node="\x1b[1m", attempt=1, failure=evil)))
    for line in [*tell(story, width=WIDTH, full=True), *news(story.entries[0], WIDTH)]:
        assert printable(line) == line


async def test_a_real_run_is_told_with_plan_changes_costs_and_answers(thinking: ThinkingStage) -> None:
    turns: dict[str, list[Any]] = {
        "plan": [propose(script("bad", "echo why; exit 1", retry={"attempts": 0}, approval=Approval()), reason="try")],
        "mend-1": [shell("true"), done("I tried")],
        "mend-2": [done("again")],
        "replan-3": [Ask(text="Which way?"), propose(work("good", "test -s good"), reason="bad is bad")],
        "good": [shell("echo made > good"), done("made it")],
    }
    async with thinking.working(turns):
        run = await at_rest(thinking.runs, await thinking.think())
        await thinking.runs.answer(run.questions[0].id, "yes", by="ana")
        run = await at_rest(thinking.runs, run.id)
        await thinking.runs.answer(run.questions[0].id, "the other", by="bob")
        run = await at_rest(thinking.runs, run.id)
    assert run.state == "succeeded"
    lines = tell(story_of(await thinking.events(run)), width=WIDTH)
    text = "\n".join(lines)
    assert max(len(line) for line in lines) <= WIDTH
    for part in (
        "The run  8 thoughts, 880 tokens, $0.0800",
        "asks: May bad begin?",
        "answered by ana: yes",
        "│ why",
        "rung 1, self-correct",
        "asks: Which way?",
        "answered by bob: the other",
        "another plan by replan-3",
        "bad is bad",
        "│ - bad",
        "│ → shell echo made > good",
        "succeeded, verified",
    ):
        assert part in text, text
    assert text.count("thought ") == 8
