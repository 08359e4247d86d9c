"""The brain that asks a model: the real provider libraries over real HTTP, and a scripted server with all the ways to fail."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import httpx
import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, ToolReturnPart, UserPromptPart
from pydantic_ai.usage import RequestUsage

from tenure.brains.base import Left, StepSummary, Task
from tenure.brains.models import ModelBrain, conversation, providers, troubles
from tenure.brains.models.conversation import conversation_of, first_kept
from tenure.brains.models.prices import usage_of
from tenure.errors import ContextTooLong, ModelError, TenureError, Unauthenticated, UsageError
from tenure.testing.model_server import (
    KEY,
    Call,
    Cut,
    Down,
    Drip,
    Entry,
    Hang,
    ModelServer,
    Raw,
    Refuse,
    Reply,
    calls,
    context_too_long,
    rate_limited,
    says,
)
from tenure.work import events as e
from tenure.work.plan import FileCheck, HttpCheck, PlanStep, RunCheck, RunScript, SqlCheck, Work
from tenure.work.talk import SAY_NOTE
from tenure.work.thoughts import (
    CALLS_MAX,
    Ask,
    BrainSettings,
    CallResult,
    CallTools,
    Finish,
    Propose,
    Purpose,
    Say,
    Thought,
    ToolCall,
    Turn,
    Wait,
)
from tenure.work.toolbox import ToolSpec

SHELL = ToolSpec(
    "shell",
    "Runs a command.",
    {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]},
)
READ = ToolSpec("read_file", "Reads.", {"type": "object", "properties": {"path": {"type": "string"}}})
STALL_S, REQUEST_S = 0.25, 0.5
PATIENT = ModelBrain(stall_s=60, request_s=120)
HASTY = ModelBrain(stall_s=STALL_S, request_s=60)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    for names in providers.KEY_ENV.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOOPBACK_KEY", KEY)


def task_for(server: ModelServer | None, purpose: Purpose = Purpose.WORK, **changes: Any) -> Task:
    chosen = BrainSettings(
        models=("openai:scripted",), base_url=server.base_url if server else None, key_env="LOOPBACK_KEY"
    )
    task = Task(
        run_id="run_1",
        agent="analyst",
        node="mend-tests",
        purpose=purpose,
        goal="the tests pass",
        instructions="make them pass",
        settings=chosen,
        tools=(SHELL, READ),
        left=Left(),
    )
    return replace(task, **changes)


def shell(command: str = "ls", **more: Any) -> Call:
    return Call("shell", {"command": command}, **more)


def ok(output: str = "fine") -> CallResult:
    return CallResult(ok=True, output=output)


def answered(thought: Thought) -> tuple[CallResult, ...]:
    """As the engine would, each call with a result."""
    decision = thought.decision
    if isinstance(decision, CallTools):
        return tuple(ok(f"{call.tool} {json.dumps(call.arguments)}") for call in decision.calls)
    return () if isinstance(decision, (Say, Finish)) else (ok("so be it"),)


def stored(thought: Thought) -> Thought:
    """As it comes out of the journal."""
    event = e.Thinking(node="n", attempt=1, turn=0, thought=thought)
    found = e.decode("thinking", json.loads(e.encode(event)))
    assert isinstance(found, e.Thinking)
    return found.thought


async def after(task: Task, brain: ModelBrain = PATIENT, note: str = "") -> tuple[Task, Thought]:
    """One more thought, and the task as it is then."""
    thought = stored(await brain.think(task))
    return replace(task, turns=(*task.turns, Turn(thought=thought, results=answered(thought), note=note))), thought


# --- one thought is one request --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("purpose", "reply", "decision"),
    [
        (Purpose.WORK, calls(shell("ls")), CallTools),
        (Purpose.WORK, calls(shell("ls"), shell("pwd"), Call("read_file", {"path": "a"})), CallTools),
        (Purpose.WORK, calls(Call("finish", {"summary": "all pass"})), Finish(summary="all pass")),
        (
            Purpose.WORK,
            calls(Call("ask_person", {"question": "Which?", "options": ["a", "b"]})),
            Ask(text="Which?", options=("a", "b")),
        ),
        (Purpose.PLAN, calls(Call("ask_person", {"question": "Which?", "options": None})), Ask(text="Which?")),
        (Purpose.MEND, calls(Call("wait", {"seconds": 5, "reason": "tide"})), Wait(for_s=5, reason="tide")),
        (Purpose.WORK, calls(Call("wait", {"run": "run_2", "seconds": 9})), Wait(for_s=9, run="run_2")),
        (Purpose.WORK, says("I think that it is done."), Say()),
        (Purpose.WORK, says("half a sen", finish_reason="length"), Say()),
    ],
)
async def test_one_thought_is_one_request_and_the_decision_in_its_answer(
    purpose: Purpose, reply: Reply, decision: Any
) -> None:
    with ModelServer([reply], key=KEY) as server:
        thought = await PATIENT.think(task_for(server, purpose))
    assert len(server.requests) == 1
    if isinstance(decision, type):
        assert isinstance(thought.decision, decision)
        assert isinstance(thought.decision, CallTools)
        assert [(c.tool, c.arguments) for c in thought.decision.calls] == [(c.tool, c.arguments) for c in reply.calls]
    else:
        assert thought.decision == decision
    assert thought.text == reply.text
    assert thought.model == "openai:scripted"
    assert (thought.usage.requests, thought.usage.input_tokens, thought.usage.output_tokens) == (1, 100, 10)


async def test_it_says_what_the_work_is_and_offers_what_fits_the_purpose() -> None:
    checks = (
        RunCheck(script="pytest -q"),
        SqlCheck(statement="select count(*) from t", equals=3),
        FileCheck(path="/home/agent/out.csv"),
        HttpCheck(url="http://localhost/x", contains="fine"),
    )
    steps = (
        StepSummary("load", "succeeded", "Load it", "1461 rows"),
        StepSummary("mend-tests", "running", "Mend"),
        StepSummary("report", "pending", "Report"),
    )
    offered = {}
    for purpose in Purpose:
        with ModelServer([says("hm")]) as server:
            task = task_for(server, purpose, checks=checks, steps=steps, trouble="2 failed", answer="go on")
            await PATIENT.think(replace(task, inputs={"year": 2014}))
        (request,) = server.requests
        offered[purpose] = set(request.tools) - {"shell", "read_file"}
        for words in ("analyst", "the tests pass", "year: 2014", "load (done): Load it", "1461 rows", "(this step)"):
            assert words in request.instructions
        assert "unverified" in request.instructions
        assert "never an instruction" in request.instructions
        for words in ("make them pass", "pytest -q", "is 3", "/home/agent/out.csv", '"fine"', "2 failed", "go on"):
            assert words in request.first
    assert offered == {
        Purpose.PLAN: {"propose_plan", "ask_person"},
        Purpose.REPLAN: {"propose_plan", "ask_person"},
        Purpose.WORK: {"finish", "ask_person", "wait", "propose_plan"},
        Purpose.MEND: {"finish", "ask_person", "wait"},
    }


# --- everything that providers do ------------------------------------------------------------------------------------------
PAST, FAR = "Sun, 06 Nov 1994 08:49:37 GMT", "Fri, 01 Jan 2100 00:00:00 GMT"


@pytest.mark.parametrize(
    ("entry", "error", "words", "retry_after_s"),
    [
        (rate_limited("7"), ModelError, "429", 7.0),
        (rate_limited(PAST), ModelError, "429", 0.0),
        (rate_limited(FAR), ModelError, "429", troubles.RETRY_AFTER_S_MAX),
        (rate_limited("soon"), ModelError, "429", None),
        (rate_limited(), ModelError, "429", None),
        (Refuse(503, headers={"Retry-After": "3"}), ModelError, "503", 3.0),
        (Refuse(529, "Overloaded."), ModelError, "Overloaded", None),
        (Refuse(500), ModelError, "500", None),
        (Refuse(408), ModelError, "408", None),
        (Refuse(429, "Spent.", "insufficient_quota"), ModelError, "used up what it may spend", None),
        (Down(), ModelError, "503", None),
        (Hang(), ModelError, "silent", None),
        (Hang(begun=True), ModelError, "silent", None),
        (Cut(), ModelError, "scripted", None),
        (Cut(calls(shell("rm -r everything that is here"))), ModelError, "scripted", None),
        (Cut(cleanly=True), ModelError, "finish_reason", None),
        (Raw(b'data: {"choices": [{"delta": {"conte\n\n'), ModelError, "JSON", None),
        (Raw(b"<html>Sign in</html>", "text/html"), ModelError, "no sense", None),
        (Raw(b'{"id": 1}', "application/json"), ModelError, "no sense", None),
        (Raw(b""), ModelError, "no sense", None),
        (Raw(b'data: "hello"\n\ndata: [DONE]\n\n'), ModelError, "no sense", None),
        (Raw(b'data: {"error": {"message": "busy", "code": "server_is_overloaded"}}\n\n'), ModelError, "busy", None),
        (says(""), ModelError, "nothing", None),
        (says("", finish_reason="length"), ModelError, "cut off", None),
        (says("", finish_reason="content_filter"), ModelError, "content filter", None),
        (context_too_long(), ContextTooLong, "too long", None),
        (Refuse(400, "the request exceeds the available context size"), ContextTooLong, "too long", None),
        (Refuse(413, "Too large."), ContextTooLong, "too long", None),
        (Refuse(401, "Who?"), Unauthenticated, "LOOPBACK_KEY", None),
        (Refuse(403, "Not you."), Unauthenticated, "LOOPBACK_KEY", None),
        (Refuse(404, "No model scripted.", "model_not_found"), UsageError, "openai:scripted was not found", None),
        (Refuse(400, "Unsupported value: temperature."), UsageError, "temperature", None),
    ],
)
async def test_what_a_provider_does_is_an_error_that_the_ladder_understands(
    entry: Entry, error: type[TenureError], words: str, retry_after_s: float | None
) -> None:
    hangs = isinstance(entry, Hang)
    with ModelServer([entry], key=KEY) as server, pytest.raises(TenureError) as raised:
        await (HASTY if hangs else PATIENT).think(task_for(server))
    assert server.fired == [type(entry).__name__]
    assert len(server.requests) == 1, "retries are the ladder's"
    assert type(raised.value) is error
    assert words in raised.value.message
    assert getattr(raised.value, "retry_after_s", None) == retry_after_s


async def test_an_answer_that_never_ends_is_given_up_though_something_comes() -> None:
    with ModelServer([Drip()], key=KEY) as server, pytest.raises(ModelError, match=r"within 0\.5 s"):
        await ModelBrain(stall_s=60, request_s=REQUEST_S).think(task_for(server))
    assert server.fired == ["Drip"]


async def test_a_server_that_is_not_there_is_an_error_to_try_again() -> None:
    with ModelServer([]) as server:
        task = task_for(server)
    with pytest.raises(ModelError, match="could not be asked"):
        await PATIENT.think(task)


async def test_a_provider_that_is_down_for_an_hour_is_asked_again_and_answers() -> None:
    now = [0.0]
    with ModelServer([Down(until=3600, clock=lambda: now[0]), calls(shell())], key=KEY) as server:
        for minutes in (0, 1, 30, 59):
            now[0] = minutes * 60
            with pytest.raises(ModelError, match="503"):
                await PATIENT.think(task_for(server))
        now[0] = 3600
        assert isinstance((await PATIENT.think(task_for(server))).decision, CallTools)
    assert server.fired == ["Down"] * 4 + ["Reply"]


# --- calls that make no sense are answered, not raised ------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("purpose", "reply", "told"),
    [
        (Purpose.WORK, calls(Call("shell", '{"command": "ls')), ["are not JSON"]),
        (Purpose.WORK, calls(Call("shell", '["ls"]')), ["not an object"]),
        (Purpose.WORK, calls(Call("shell", '{"command": NaN}')), ["are not JSON"]),
        (Purpose.WORK, calls(Call("shel", {"command": "ls"})), ["no tool `shel` (did you mean 'shell'?)"]),
        (Purpose.WORK, calls(Call("functions.shell ⚡", {})), ["There is no tool `functions_shell__`"]),
        (Purpose.WORK, calls(shell(), Call("finish", {"summary": "x"})), ["Not called", "call `finish` alone"]),
        (Purpose.WORK, calls(Call("finish", {"summary": "x"}), Call("wait", {"seconds": 1})), ["alone", "alone"]),
        (Purpose.WORK, calls(Call("finish", {})), ["summary: Field required"]),
        (Purpose.WORK, calls(Call("wait", {})), ["give `seconds`"]),
        (Purpose.WORK, calls(Call("ask_person", {"question": ""})), ["question"]),
        (Purpose.PLAN, calls(Call("finish", {"summary": "x"})), ["cannot be used now"]),
        (Purpose.MEND, calls(Call("propose_plan", {"steps": []})), ["cannot be used now"]),
        (
            Purpose.WORK,
            calls(Call("shell", '{"command": "cat > a <<EOF\nline'), finish_reason="length"),
            ["cut off at its greatest length"],
        ),
    ],
)
async def test_a_call_that_makes_no_sense_is_answered_in_words(purpose: Purpose, reply: Reply, told: list[str]) -> None:
    with ModelServer([reply, calls(shell())], key=KEY) as server:
        task, thought = await after(task_for(server, purpose), note=SAY_NOTE)  # as the engine tells who only talks
        assert thought.decision == Say()
        await after(task)
    assert server.requests[1].messages[-1]["role"] == "tool", "it did not only talk"
    results = server.requests[1].results
    assert len(results) == len(told)
    for words, result in zip(told, results, strict=True):
        assert words in result


async def test_of_several_calls_those_that_make_sense_are_made() -> None:
    reply = calls(shell("one"), Call("shell", "{"), Call("nothing", {}), shell("two"))
    with ModelServer([reply, says("thanks")], key=KEY) as server:
        task, thought = await after(task_for(server))
        assert isinstance(thought.decision, CallTools)
        assert [call.arguments["command"] for call in thought.decision.calls] == ["one", "two"]
        await after(task)
    first, second, third, fourth = server.requests[1].results
    assert '"one"' in first
    assert "not JSON" in second
    assert "no tool `nothing`" in third
    assert '"two"' in fourth


async def test_more_calls_than_are_made_at_once_are_answered() -> None:
    many = calls(*(shell(str(n)) for n in range(CALLS_MAX + 3)))
    with ModelServer([many, says("oh")], key=KEY) as server:
        task, thought = await after(task_for(server))
        assert isinstance(thought.decision, CallTools)
        assert len(thought.decision.calls) == CALLS_MAX
        await after(task)
    assert [f"at most {CALLS_MAX}" in result for result in server.requests[1].results].count(True) == 3


async def test_ids_that_a_server_uses_again_are_told_apart() -> None:
    same = calls(shell("a", id="call_0"), shell("b", id="call_0"))
    odd = calls(shell("c", id="call_0"), shell("d", id="functions.shell:0"), shell("e", id="x" * 200))
    with ModelServer([same, odd, says("hm")], key=KEY) as server:
        task, _ = await after(task_for(server))
        task, _ = await after(task)
        await after(task)  # the server refuses an id that it has seen


async def test_a_long_answer_that_was_cut_off_is_told_so() -> None:
    with ModelServer([says("and then", finish_reason="length"), says("x")], key=KEY) as server:
        task, _ = await after(task_for(server))
        await after(task)
    assert "cut off" in server.requests[1].last


# --- the conversation is rebuilt from its turns -------------------------------------------------------------------------------
async def test_after_each_turn_the_conversation_is_the_one_before_and_what_came_of_it() -> None:
    script: list[Entry] = [
        calls(shell("ls"), Call("read_file", {"path": "ä ☃ \u0000"}), text="Let me look."),
        says("Hm."),
        calls(Call("shell", "{broken")),
        calls(shell(), Call("finish", {"summary": "x"})),
        calls(Call("ask_person", {"question": "Which?"})),
        calls(Call("wait", {"seconds": 1})),
        calls(Call("finish", {"summary": "I am done"})),
        calls(Call("propose_plan", {"steps": [{"id": "a", "what": "A", "run": "true"}]})),
        says("cut", finish_reason="length"),
        calls(shell("pwd")),
        says("the end"),
    ]
    with ModelServer(script, key=KEY) as server:
        task = task_for(server)
        for turn in range(len(script)):
            note = "The check `pytest -q` exited with 1." if turn in (1, 6) else ""
            # A brain of its own for each: another worker may go on.
            task, _ = await after(task, ModelBrain(stall_s=60), note)
    for before, then in zip(server.requests, server.requests[1:], strict=False):
        assert then.messages[: len(before.messages)] == before.messages
        assert then.messages[len(before.messages)]["role"] == "assistant"
        assert then.tools == before.tools
    assert "exited with 1" in server.requests[2].last
    assert server.requests[7].messages[-2]["role"] == "tool"
    assert "exited with 1" in server.requests[7].last


async def test_what_was_cut_off_by_a_crash_is_not_told_as_done() -> None:
    with ModelServer([calls(shell("one"), shell("two"), shell("three")), says("hm")], key=KEY) as server:
        task = task_for(server)
        thought = stored(await PATIENT.think(task))
        lost = CallResult(ok=False, output="the sandbox died", unverified=True)
        await PATIENT.think(replace(task, turns=(Turn(thought=thought, results=(ok(), None, lost)),)))
    first, second, third = server.requests[1].results
    assert first == "fine"
    assert "nobody knows whether it happened" in second
    assert "unverified" in third
    assert "the sandbox died" in third


@pytest.mark.parametrize(
    "memory", [None, {"format": 99}, {"format": 1, "message": {"kind": "nonsense"}, "answers": []}]
)
async def test_a_thought_whose_memory_nobody_can_read_is_told_by_its_decision(memory: Any) -> None:
    made = ToolCall(id="?", tool="shell", arguments={"command": "ls"})
    decisions = [
        (CallTools(calls=(made, made)), (ok("a"), ok("b"))),
        (Say(), ()),
        (Ask(text="Which?"), (ok("this"),)),
        (Wait(for_s=3), (ok(),)),
        (Finish(summary="done"), ()),
        (Propose(plan=ModelBrain().plan("goal", {})), (ok(),)),
    ]
    turns = tuple(Turn(thought=Thought(decision=d, memory=memory), results=results) for d, results in decisions)
    with ModelServer([says("I see")], key=KEY) as server:
        await PATIENT.think(task_for(server, turns=turns))
    (request,) = server.requests
    assert [m["role"] for m in request.messages].count("assistant") == len(decisions)


# --- another provider goes on with it -----------------------------------------------------------------------------------------
def _sse(*events: tuple[str | None, dict[str, Any]]) -> bytes:
    return b"".join(
        (f"event: {name}\n" if name else "").encode() + f"data: {json.dumps(data)}\n\n".encode()
        for name, data in events
    )


def _anthropic(name: str, arguments: dict[str, Any], *, whole: bool = True) -> bytes:
    usage = {"input_tokens": 50, "output_tokens": 1}
    message = {"id": "m", "type": "message", "role": "assistant", "model": "claude-x", "content": [], "usage": usage}
    block = {"type": "tool_use", "id": "toolu_1", "name": name, "input": {}}
    delta = {"type": "input_json_delta", "partial_json": json.dumps(arguments)}
    ended: tuple[tuple[str, dict[str, Any]], ...] = (
        (
            "message_delta",
            {
                "type": "message_delta",
                "delta": {"stop_reason": "tool_use", "stop_sequence": None},
                "usage": {"output_tokens": 9},
            },
        ),
        ("message_stop", {"type": "message_stop"}),
    )
    return _sse(
        ("message_start", {"type": "message_start", "message": message}),
        ("content_block_start", {"type": "content_block_start", "index": 0, "content_block": block}),
        ("content_block_delta", {"type": "content_block_delta", "index": 0, "delta": delta}),
        ("content_block_stop", {"type": "content_block_stop", "index": 0}),
        *(ended if whole else ()),
    )


def _google(name: str, arguments: dict[str, Any], *, whole: bool = True) -> bytes:
    part = {"functionCall": {"name": name, "args": arguments}}
    candidate = {"content": {"role": "model", "parts": [part]}, "index": 0}
    usage = {"promptTokenCount": 50, "candidatesTokenCount": 10, "totalTokenCount": 60}
    end = {"finishReason": "STOP"} if whole else {}
    return _sse((None, {"candidates": [{**candidate, **end}], "usageMetadata": usage, "modelVersion": "gemini-x"}))


def _responses(name: str, arguments: dict[str, Any], *, whole: bool = True) -> bytes:
    head = {"id": "resp_1", "object": "response", "created_at": 1, "model": "gpt-x", "tools": [], "tool_choice": "auto"}
    head |= {"parallel_tool_calls": True, "error": None, "incomplete_details": None, "instructions": None}
    text = json.dumps(arguments)
    item = {"type": "function_call", "id": "fc_1", "call_id": "call_r", "name": name, "status": "in_progress"}
    done = {**item, "arguments": text, "status": "completed"}
    usage = {
        "input_tokens": 50,
        "output_tokens": 10,
        "total_tokens": 60,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    place = {"item_id": "fc_1", "output_index": 0}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": {**head, "status": "in_progress", "output": []}},
        {"type": "response.output_item.added", "output_index": 0, "item": {**item, "arguments": ""}},
        {"type": "response.function_call_arguments.delta", **place, "delta": text},
    ]
    if whole:
        events += [
            {"type": "response.function_call_arguments.done", **place, "arguments": text},
            {"type": "response.output_item.done", "output_index": 0, "item": done},
            {
                "type": "response.completed",
                "response": {**head, "status": "completed", "output": [done], "usage": usage},
            },
        ]
    return _sse(*((event["type"], {**event, "sequence_number": n}) for n, event in enumerate(events)))


def _calls_of_responses(body: dict[str, Any]) -> list[tuple[str, str]]:
    kinds = {"function_call": "call", "function_call_output": "return"}
    return [(kinds[item["type"]], item["call_id"]) for item in body["input"] if item.get("type") in kinds]


def _calls_of_anthropic(body: dict[str, Any]) -> list[tuple[str, str]]:
    blocks = [b for m in body["messages"] if isinstance(m["content"], list) for b in m["content"]]
    made = [
        ("call", b["id"]) if b["type"] == "tool_use" else ("return", b["tool_use_id"])
        for b in blocks
        if "tool" in b["type"]
    ]
    assert body["system"]
    return made


def _calls_of_google(body: dict[str, Any]) -> list[tuple[str, str]]:
    parts = [part for content in body["contents"] for part in content["parts"]]
    return [
        ("call" if "functionCall" in part else "return", (part.get("functionCall") or part["functionResponse"])["id"])
        for part in parts
        if "functionCall" in part or "functionResponse" in part
    ]


DIALECTS: dict[str, tuple[str, Callable[..., bytes], Callable[[dict[str, Any]], list[tuple[str, str]]]]] = {
    "anthropic:claude-opus-5": ("ANTHROPIC_API_KEY", _anthropic, _calls_of_anthropic),
    "google:gemini-2.5-pro": ("GOOGLE_API_KEY", _google, _calls_of_google),
    "openai-responses:gpt-5": ("OPENAI_API_KEY", _responses, _calls_of_responses),
}


def _provider(answers: Sequence[bytes | httpx2.Response], seen: list[httpx2.Request]) -> httpx2.MockTransport:
    left = list(answers)

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        found = left.pop(0)
        if isinstance(found, httpx2.Response):
            return found
        return httpx2.Response(200, content=found, headers={"content-type": "text/event-stream"})

    return httpx2.MockTransport(answer)


@pytest.mark.parametrize("model", DIALECTS)
async def test_a_model_of_another_provider_goes_on_with_the_conversation_and_hands_it_back(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable, speak, calls_of = DIALECTS[model]
    monkeypatch.setenv(variable, "key-of-the-fallback")
    odd = calls(shell("a", id="call:1"), shell("b", id="call:1"), text="Both.")
    with ModelServer([odd, says("Hm."), calls(Call("shell", "{")), calls(shell("last"))], key=KEY) as server:
        task = task_for(server)
        task = replace(task, settings=task.settings.model_copy(update={"models": ("openai:scripted", model)}))
        for _ in range(3):
            task, _thought = await after(task)
        seen: list[httpx2.Request] = []
        brain = ModelBrain(transport=_provider([speak("shell", {"command": "pwd"})], seen))
        task, thought = await after(replace(task, model=model), brain)
        assert isinstance(thought.decision, CallTools)
        assert [(c.tool, c.arguments) for c in thought.decision.calls] == [("shell", {"command": "pwd"})]
        assert (thought.model, thought.usage.input_tokens) == (model, 50)
        task, thought = await after(replace(task, model=""))  # the server refuses what is no conversation
        assert thought.model == "openai:scripted"
    (request,) = seen
    sent = " ".join(request.headers.values())
    assert "key-of-the-fallback" in sent
    assert KEY not in sent, "each provider gets its own key"
    if model.startswith("anthropic"):
        assert b"cache_control" in request.content, "what is sent again with each turn is cheap"
    made = calls_of(json.loads(request.content))
    assert [kind for kind, _ in made] == ["call", "call", "return", "return", "call", "return"]
    ids = [id for kind, id in made if kind == "call"]
    assert len(set(ids)) == 3
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", id) for id in ids), "Anthropic takes no others"
    assert [id for kind, id in made if kind == "return"] == ids
    assert len(server.requests[-1].messages) > len(server.requests[-2].messages) + 2


@pytest.mark.parametrize("model", DIALECTS)
async def test_a_stream_that_broke_off_is_no_answer_in_any_dialect(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variable, speak, _ = DIALECTS[model]
    monkeypatch.setenv(variable, "key")
    seen: list[httpx2.Request] = []
    brain = ModelBrain(transport=_provider([speak("shell", {"command": "rm"}, whole=False)], seen))
    with pytest.raises(ModelError):
        await brain.think(task_for(None, settings=BrainSettings(models=(model,))))
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("model", "status", "body", "error"),
    [
        ("anthropic:claude-x", 529, {"error": {"type": "overloaded_error", "message": "Overloaded"}}, ModelError),
        ("anthropic:claude-x", 401, {"error": {"type": "authentication_error", "message": "bad"}}, Unauthenticated),
        (
            "anthropic:claude-x",
            400,
            {"error": {"type": "invalid_request_error", "message": "prompt is too long: 9 tokens > 8 maximum"}},
            ContextTooLong,
        ),
        ("anthropic:claude-x", 404, {"error": {"type": "not_found_error", "message": "model: x"}}, UsageError),
        (
            "google:gemini-x",
            400,
            {
                "error": {
                    "code": 400,
                    "status": "INVALID_ARGUMENT",
                    "message": "The input token count (9) exceeds the maximum number of tokens allowed (8).",
                }
            },
            ContextTooLong,
        ),
        (
            "google:gemini-x",
            429,
            {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "slow down"}},
            ModelError,
        ),
        ("google:gemini-x", 503, {"error": {"code": 503, "status": "UNAVAILABLE", "message": "busy"}}, ModelError),
        (
            "google:gemini-x",
            400,
            {
                "error": {
                    "code": 400,
                    "status": "INVALID_ARGUMENT",
                    "message": "API key not valid.",
                    "details": [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}],
                }
            },
            Unauthenticated,
        ),
        ("openai:gpt-x", 500, {"error": {"message": "oops"}}, ModelError),
    ],
)
async def test_refusals_of_every_provider_are_understood(
    model: str, status: int, body: dict[str, Any], error: type[TenureError], monkeypatch: pytest.MonkeyPatch
) -> None:
    for names in providers.KEY_ENV.values():
        monkeypatch.setenv(names[0], "key-0123456789")
    seen: list[httpx2.Request] = []
    brain = ModelBrain(transport=_provider([httpx2.Response(status, json=body)], seen))
    with pytest.raises(TenureError) as raised:
        await brain.think(task_for(None, settings=BrainSettings(models=(model,))))
    assert type(raised.value) is error
    assert len(seen) == 1, "no library tries again by itself"


# --- keys -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500])
async def test_a_key_is_in_no_error_log_or_thought(status: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    echo = Refuse(status, f"I do not like the key {KEY}, that is sk-lo****cdef.")
    with ModelServer([echo, calls(shell())], key=KEY) as server:
        with pytest.raises(TenureError) as raised:
            await PATIENT.think(task_for(server))
        thought = await PATIENT.think(task_for(server))
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    told = "".join(traceback.format_exception(raised.value, chain=True))
    for text in (told, repr(raised.value), str(raised.value.to_payload()), thought.model_dump_json(), caplog.text):
        assert KEY not in text
        assert "cdef" not in text
    assert KEY not in repr(providers.endpoint_of("openai:x", task_for(server).settings))


async def test_a_missing_key_is_said_by_the_variable_it_should_be_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOOPBACK_KEY")
    with pytest.raises(Unauthenticated, match="LOOPBACK_KEY"):
        await PATIENT.think(task_for(None))
    with pytest.raises(Unauthenticated, match="ANTHROPIC_API_KEY"):
        await PATIENT.think(task_for(None, settings=BrainSettings(models=("anthropic:claude-x",))))


async def test_openais_key_is_never_sent_to_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-the-real-one")
    with ModelServer([says("hello")]) as server:
        task = task_for(server)
        await PATIENT.think(replace(task, settings=task.settings.model_copy(update={"key_env": None})))
    assert server.requests[0].headers["authorization"] == f"Bearer {providers.NO_KEY}"


@pytest.mark.parametrize("name", ["TENURE_TOKEN", "HOME", "PATH", "my_key", "KEY OF MINE", "A=KEY", ""])
def test_a_variable_that_is_for_no_provider_is_not_read(name: str) -> None:
    with pytest.raises(UsageError):
        providers.check_key_env(name)


@pytest.mark.parametrize("name", sorted(providers.SETTINGS_OURS))
async def test_a_brain_does_not_choose_what_is_the_engines(name: str) -> None:
    with ModelServer([]) as server:
        chosen = task_for(server).settings.model_copy(update={"model_settings": {name: 1}})
        with pytest.raises(UsageError, match=name):
            await PATIENT.think(task_for(server, settings=chosen))


@pytest.mark.parametrize("model", ["", "gpt-4o", "openai:", "nobody:x", "test:x"])
async def test_a_model_that_means_nothing_is_refused(model: str) -> None:
    with pytest.raises(UsageError):
        await PATIENT.think(task_for(None, settings=BrainSettings(models=(model,) if model else ())))


# --- plans ----------------------------------------------------------------------------------------------------------------
def _proposal(*steps: dict[str, Any], **more: Any) -> Reply:
    return calls(Call("propose_plan", {"reason": "because", "steps": list(steps), **more}))


GOOD = {"id": "one", "what": "One", "run": "true"}


async def test_a_proposal_becomes_a_plan() -> None:
    steps = [
        {
            "id": "mend",
            "what": "Mend the tests",
            "work": "Find out why they fail",
            "checks": [
                {"run": "pytest -q"},
                {"sql": "select 1", "equals": "1"},
                {"file": "a"},
                {"http": "http://x", "status": 204},
            ],
            "retry": 5,
            "timeout_s": 60,
            "undo": "git checkout .",
            "risky": True,
            "approval": "It may take long",
            "sql": None,
            "needs": None,
        },
        {"id": "count", "what": "Count", "sql": "select 1", "needs": ["mend"]},
        {"id": "keep", "what": "Keep", "put": {"path": "a", "bucket": "results", "name": "a"}, "needs": ["count"]},
        {"id": "tell", "what": "Tell", "notify": {"subject": "${{ steps.count.output }}"}, "needs": ["keep"]},
    ]
    with ModelServer([_proposal(*steps)], key=KEY) as server:
        thought = await PATIENT.think(task_for(server, Purpose.PLAN, inputs={"year": 2014}))
    assert isinstance(thought.decision, Propose)
    plan = thought.decision.plan
    assert [(s.id, s.effect.kind, s.needs) for s in plan.steps] == [
        ("mend", "work", ()),
        ("count", "sql", ("mend",)),
        ("keep", "put", ("count",)),
        ("tell", "notify", ("keep",)),
    ]
    mend = plan.steps[0]
    assert mend.effect == Work(instructions="Find out why they fail")
    assert [check.kind for check in mend.verify] == ["run", "sql", "file", "http"]
    assert (mend.retry.attempts, mend.timeout_s, mend.undo, mend.risky) == (5, 60, "git checkout .", True)
    assert mend.approval is not None
    assert mend.approval.text == "It may take long"
    assert plan.inputs == {"year": 2014}
    assert thought.decision.reason == "because"


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([], "steps"),
        ([{**GOOD, "id": "a b"}], "steps[0].id"),
        ([{"id": "one", "what": "One"}], "exactly one of work, run, sql, put, notify (found none)"),
        ([{**GOOD, "sql": "select 1"}], "found run, sql"),
        ([{"id": "one", "what": "One", "work": "Do it"}], "at least one check that a machine can make"),
        ([{"id": "one", "what": "One", "work": "Do it", "checks": [{}]}], "exactly one of run, sql, file, http"),
        ([{**GOOD, "checks": [{"run": "true", "file": "x"}]}], "exactly one of run, sql, file, http"),
        ([GOOD, GOOD], "one: the id is given twice"),
        ([{**GOOD, "needs": ["onne"]}], "needs 'onne', and there is no such step (did you mean 'one'?)"),
        ([{**GOOD, "needs": ["one"]}], "cannot need itself"),
        ([{**GOOD, "needs": ["two"]}, {**GOOD, "id": "two", "needs": ["one"]}], "circle"),
        ([{**GOOD, "run": "echo ${{ github.sha }}"}], "is not known"),
        ([{**GOOD, "run": "echo ${{ steps.two.output }}"}, {**GOOD, "id": "two"}], "does not need 'two'"),
        ([{"id": "one", "what": "One", "put": {"path": "a", "bucket": "No Such!", "name": "a"}}], "put.bucket"),
        ([{**GOOD, "colour": "red"}], "colour"),
        ([{**GOOD, "run": "x" * 40_000}], "40000 characters"),
    ],
)
async def test_what_is_wrong_with_a_proposal_is_said_back(steps: list[dict[str, Any]], words: str) -> None:
    with ModelServer([_proposal(*steps), _proposal(GOOD)], key=KEY) as server:
        task, thought = await after(task_for(server, Purpose.PLAN))
        assert thought.decision == Say()
        _, thought = await after(task)
        assert isinstance(thought.decision, Propose)
    (told,) = server.requests[1].results
    assert "was not accepted" in told
    assert words in told


def _in_plan(id: str, **more: Any) -> PlanStep:
    return PlanStep(id=id, effect=RunScript(script=f"do {id}"), **more)


async def test_steps_that_are_done_stay_unless_they_are_to_be_undone() -> None:
    summaries = (
        StepSummary("plan", "succeeded", step=_in_plan("plan")),
        StepSummary("load", "succeeded", step=_in_plan("load", undo="drop it")),
        StepSummary("clean", "succeeded", step=_in_plan("clean", undo="dirty it")),
        StepSummary("chart", "running", step=_in_plan("chart")),
        StepSummary("send", "pending", step=_in_plan("send")),
    )
    new = {"id": "new", "what": "New", "run": "true", "needs": ["load", "chart", "plan"]}
    asked = [
        _proposal(new, {**GOOD, "id": "load"}, undo=["clean"]),
        _proposal({**new, "needs": ["send"]}),
        _proposal(new, undo=["nothing"]),
        _proposal({**GOOD, "id": "load"}),
    ]
    with ModelServer(asked, key=KEY) as server:
        task = task_for(server, Purpose.REPLAN, steps=summaries)
        task, thought = await after(task)
        assert isinstance(thought.decision, Propose)
        kept, *rest = thought.decision.plan.steps
        assert kept == summaries[1].step, "as it was, and clean is left out"
        assert [step.id for step in rest] == ["new"]
        for _ in range(3):
            task, thought = await after(task)
            assert thought.decision == Say()
        told = [json.dumps(recalled) for turn in task.turns[1:] if isinstance(recalled := turn.thought.memory, dict)]
    for words, text in zip(("no such step", "'nothing' is done", "done already"), told, strict=True):
        assert words in text


# --- what it cost -------------------------------------------------------------------------------------------------------------
async def test_tokens_that_a_server_does_not_count_are_estimated_so_that_budgets_hold() -> None:
    with ModelServer([says("x" * 300, usage=None)], key=KEY) as server:
        thought = await PATIENT.think(task_for(server))
    assert thought.usage.input_tokens > 300
    assert 100 <= thought.usage.output_tokens <= 110
    assert thought.usage.cost_usd is None


async def test_a_price_is_known_for_the_provider_and_not_for_a_server_that_uses_the_same_name() -> None:
    with ModelServer([says("hello")], key=KEY) as server:
        task = task_for(server)
        task = replace(task, settings=task.settings.model_copy(update={"models": ("openai:gpt-4o",)}))
        assert (await PATIENT.think(task)).usage.cost_usd is None
    used = RequestUsage(input_tokens=1_000_000, output_tokens=0)
    response = ModelResponse(parts=[], usage=used, model_name="gpt-4o", provider_name="openai")
    cost = usage_of(response, conversation_of(task_for(None))).cost_usd
    assert cost is not None
    assert 0.1 < cost < 50
    unknown = ModelResponse(parts=[], usage=used, model_name="nobody-knows-it", provider_name="openai")
    assert usage_of(unknown, conversation_of(task_for(None))).cost_usd is None


# --- compaction -----------------------------------------------------------------------------------------------------------
@st.composite
def _turns(draw: st.DrawFn) -> tuple[Turn, ...]:
    turns: list[Turn] = []
    text = st.text("aé☃ \n", max_size=40)
    for _ in range(draw(st.integers(0, 12))):
        note = draw(st.sampled_from(["", "", "the check failed"]))
        said = draw(text)
        size = draw(st.sampled_from([0, 10, 400, 4000, 30_000]))
        if draw(st.booleans()):
            count = draw(st.integers(1, 4))
            made = tuple(ToolCall(id=f"c{n}", tool="shell", arguments={"command": said}) for n in range(count))
            results = tuple(
                draw(st.sampled_from([ok("o" * size), CallResult(ok=False, output="☃" * size), None])) for _ in made
            )
            turns.append(Turn(thought=Thought(decision=CallTools(calls=made), text=said), results=results, note=note))
        else:
            decision = draw(st.sampled_from([Say(), Finish(summary="f" * size), Ask(text="q" * min(size, 9000) + "?")]))
            turns.append(Turn(thought=Thought(decision=decision, text=said), note=note))
    return tuple(turns)


def _check_valid(messages: Sequence[ModelMessage]) -> None:
    """Requests and responses in turn, and each call answered at once, in order."""
    assert isinstance(messages[-1], ModelRequest)
    for index, message in enumerate(messages):
        assert message.parts
        assert isinstance(message, ModelRequest if index % 2 == 0 else ModelResponse)
        if isinstance(message, ModelResponse):
            returned = [part.tool_call_id for part in messages[index + 1].parts if isinstance(part, ToolReturnPart)]
            assert returned == [call.tool_call_id for call in message.tool_calls]
        elif index == 0:
            assert not any(isinstance(part, ToolReturnPart) for part in message.parts)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(turns=_turns(), limit=st.integers(4000, 40_000))
def test_a_compacted_conversation_is_valid_and_fits_and_keeps_what_began_it(
    turns: tuple[Turn, ...], limit: int
) -> None:
    task = task_for(None, turns=turns, context_tokens_max=limit)
    built = conversation_of(task)
    assert built == conversation_of(task), "the same for every worker"
    _check_valid(built.messages)
    first = built.messages[0].parts[0]
    assert isinstance(first, UserPromptPart)
    assert "make them pass" in str(first.content)
    shown = (len(built.messages) - 1) // 2
    assert shown + built.compacted_turns == len(turns)
    assert not turns or shown >= 1
    whole = conversation_of(replace(task, context_tokens_max=10_000_000))
    assert whole.compacted_turns == 0
    if whole.tokens <= limit:
        assert built == whole
    elif shown > 1:
        assert built.messages[1:] == whole.messages[1 + 2 * built.compacted_turns :], "the newest turns are whole"
    longest_said = max((len(str(turn.thought.decision)) for turn in turns), default=0)
    if longest_said < 1000:  # what the model itself said at once is never cut
        assert built.tokens <= limit + 4 * conversation.RESULT_CHARS_MIN


@settings(deadline=None, max_examples=200)
@given(costs=st.lists(st.integers(0, 300), max_size=60), limit=st.integers(300, 1000), base=st.integers(0, 200))
def test_between_two_compactions_each_request_begins_with_the_one_before(
    costs: list[int], limit: int, base: int
) -> None:
    starts = [first_kept(costs[:n], base=base, digest_tokens=limit // 5, limit=limit) for n in range(len(costs) + 1)]
    assert starts == sorted(starts), "what has given way stays so"
    for n in range(1, len(starts)):
        start = starts[n]
        whole = base + (limit // 5 if start else 0) + sum(costs[start:n])
        assert whole <= limit or start == n - 1
        if start == starts[n - 1]:
            continue
        # It gave way because it had to.
        assert base + (limit // 5 if starts[n - 1] else 0) + sum(costs[starts[n - 1] : n]) > limit


async def test_a_compacted_conversation_is_one_that_a_provider_takes() -> None:
    made = [calls(shell(f"step {n}"), shell("again"), text=f"Thought {n}.") for n in range(12)]
    with ModelServer(made, key=KEY) as server:
        task = task_for(server, context_tokens_max=5000)
        for _ in made:
            thought = stored(await PATIENT.think(task))
            results = (ok("r" * 2000), CallResult(ok=False, output="no such file"))
            task = replace(task, turns=(*task.turns, Turn(thought=thought, results=results)))
    sizes = [len(request.messages) for request in server.requests]
    assert max(sizes) < 2 + 3 * len(made), "it was compacted"
    last = server.requests[-1].messages
    digest = next(m["content"] for m in last if m["role"] == "user" and "What you did before" in str(m["content"]))
    assert '- shell {"command": "step 0"}: ok, rrrr' in digest
    assert "failed, no such file" in digest
    assert "You said then: Thought" in digest


# --- what surrounds it ------------------------------------------------------------------------------------------------------
def test_neither_the_command_line_nor_a_server_or_worker_that_starts_imports_a_models_library() -> None:
    code = (
        "import sys, tenure.cli.app, tenure.brains.registry, tenure.work.worker, tenure.server.build; "
        "print([m for m in ('pydantic_ai', 'openai', 'anthropic', 'google.genai') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_its_first_plan_is_to_make_one() -> None:
    (step,) = ModelBrain().plan("goal", {"year": 2014}).steps
    assert isinstance(step.effect, Work)
    assert Purpose(step.effect.purpose) is Purpose.PLAN


# --- the server of these tests is not kind ---------------------------------------------------------------------------------
def _post(server: ModelServer, body: Any) -> httpx.Response:
    return httpx.post(f"{server.base_url}/chat/completions", json=body, trust_env=False)


USER = {"role": "user", "content": "hello"}
CALLED = {
    "role": "assistant",
    "tool_calls": [
        {"id": "a", "type": "function", "function": {"name": "shell", "arguments": "{}"}},
        {"id": "b", "type": "function", "function": {"name": "shell", "arguments": "{}"}},
    ],
}
A, B = ({"role": "tool", "tool_call_id": id, "content": "x"} for id in "ab")


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([], "no messages"),
        ([USER, {"role": "assistant", "content": "x"}], "the assistant's own"),
        ([USER, CALLED, A], r"\['b'\] are not answered"),
        ([USER, CALLED, B, A], "expected was a"),
        ([USER, CALLED, A, A, B], "expected was b"),
        ([USER, CALLED, A, USER, B], "are not answered"),
        ([USER, CALLED, A, B, A, USER], "expected was no answer"),
        ([USER, CALLED, A, B, CALLED, A, B], "was used before"),
        ([USER, A], "expected was no answer"),
        ([USER, {"role": "system", "content": "x"}], "does not come first"),
        ([{"role": "user", "content": ""}], "says nothing"),
        ([USER, {"role": "assistant", "content": ""}, USER], "neither says nor calls"),
    ],
)
def test_the_server_refuses_what_is_no_conversation_and_the_test_fails(messages: list[Any], why: str) -> None:
    with pytest.raises(AssertionError, match=why), ModelServer([says("never")]) as server:
        assert _post(server, {"model": "m", "messages": messages}).status_code == 400


def test_the_server_takes_a_conversation_that_is_one() -> None:
    with ModelServer([says("yes")]) as server:
        answer = _post(server, {"model": "m", "messages": [USER, CALLED, A, B, USER]})
    assert answer.json()["choices"][0]["message"]["content"] == "yes"


def test_a_request_after_the_end_of_the_script_fails_the_test() -> None:
    with pytest.raises(AssertionError, match="no answer to 'hello'"), ModelServer([]) as server:
        assert _post(server, {"model": "m", "messages": [USER]}).status_code == 400


def test_an_answer_that_nobody_asked_for_fails_the_test() -> None:
    with pytest.raises(AssertionError, match="Nobody asked for"), ModelServer([says("x")]):
        pass


def test_an_assertion_in_the_script_fails_the_test() -> None:
    def look(_: Any) -> Reply:
        raise AssertionError("not what I wanted")

    with pytest.raises(AssertionError, match="not what I wanted"), ModelServer([look]) as server:
        assert _post(server, {"model": "m", "messages": [USER]}).status_code == 500


def test_a_script_is_chosen_by_what_was_said_first() -> None:
    with ModelServer({"": [says("any")], "hell": [says("hot")], "hello": [says("hi"), says("there")]}) as server:
        said = [
            _post(server, {"model": "m", "messages": [{"role": "user", "content": text}]}).json()
            for text in ("hello you", "hell no", "bye", "hello")
        ]
    assert [answer["choices"][0]["message"]["content"] for answer in said] == ["hi", "hot", "any", "there"]
