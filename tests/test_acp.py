"""A program that speaks the Agent Client Protocol as a brain: what dies, hangs, floods or lies is survived, or told."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fixtures.errands import AGENT, Desk, with_lease_lost
from tenure.brains.acp import AcpProgram, conversation, permissions, terminals, transport
from tenure.brains.acp.digest import INPUT_CHARS_MAX, MESSAGE_BYTES_MAX, SAID_BYTES_MAX, Digest
from tenure.errors import DoorClosed, LeaseLost, ServerUnreachable
from tenure.testing import acp_agent
from tenure.work.effects import Asks, Blocked, Done, Failed, Outcome
from tenure.work.failures import EVIDENCE_BYTES_MAX, FailureClass
from tenure.work.thoughts import BrainSettings, Purpose

pytest_plugins = ("fixtures.desks",)

AGENT_PROGRAM = Path(acp_agent.__file__)


def stub(*actions: list[Any], approve: tuple[str, ...] = (), **more: Any) -> BrainSettings:
    """Settings of the stub agent, which does these things."""
    scripted = json.dumps({"actions": list(actions), **more})
    command = (sys.executable, "-S", "-E", str(AGENT_PROGRAM))
    return BrainSettings(brain="acp", command=command, env={"TENURE_STUB": scripted}, approve=approve)


def log(desk: Desk) -> list[str]:
    return desk.lines(".stub/log")


def prompts(desk: Desk) -> list[str]:
    return [json.loads(line) for line in desk.lines(".stub/prompts")]


def is_done(outcome: Outcome) -> bool:
    return isinstance(outcome, Done)


@pytest.fixture
def program() -> AcpProgram:
    return AcpProgram()


# --- what it does ------------------------------------------------------------------------------------------------------------
async def test_it_works_with_the_files_and_terminals_of_the_office(desk: Desk, program: AcpProgram) -> None:
    (desk.home / "code.py").write_text("a = 1\nb = 2\nc = 3\n")
    (desk.home / "code.py").chmod(0o750)
    settings = stub(
        ["plan", "look", "mend"],
        ["say", "I look. "],
        ["edit", "code.py", "b = 2", "b = 4"],
        ["write", "deep/er/new.txt", "näw\n"],
        ["read", "code.py", 2, 1],
        ["run", "sh", "-c", "printf out; exit 3"],
        ["run", "echo line for a shell | tr a-z A-Z"],
        ["usage", 17, 0.25],
        ["say", "It is done."],
    )
    outcome = await desk.carry(program, settings)
    assert isinstance(outcome, Done), outcome
    assert outcome.result.output.splitlines()[-1] == "It is done."
    assert (desk.home / "code.py").read_text() == "a = 1\nb = 4\nc = 3\n"
    assert (desk.home / "code.py").stat().st_mode & 0o777 == 0o750
    assert (desk.home / "deep/er/new.txt").read_text() == "näw\n"
    assert log(desk) == [
        'read "b = 4\\n"',
        'ran [{"exitCode": 3, "signal": null}, "out"]',
        'ran [{"exitCode": 0, "signal": null}, "LINE FOR A SHELL\\n"]',
    ]
    assert [one for one, _ in desk.reports()] == ["started", "session", "activity", "usage"]
    (activity,) = desk.told("activity")
    assert activity["plan"] == [{"content": "look", "status": "pending"}, {"content": "mend", "status": "pending"}]
    assert [tool["status"] for tool in activity["tools"]] == ["completed", "completed"]
    spent = {"cost_usd": 0.25, "input_tokens": 20, "output_tokens": 10}
    (usage,) = desk.told("usage")
    assert usage.pop("new") == {"requests": 0, **spent}
    assert (usage.pop("session"), usage.pop("program")) == ("session-1", settings.command[0])
    assert usage == {"context_used": 17, "context_size": 1000, **spent}
    (told,) = prompts(desk)
    assert "the goal" in told
    assert "do this" in told
    assert "interrupted" not in told
    assert desk.lines(".stub/sessions") == [str(desk.home)]
    assert desk.processes() == []


async def test_what_cannot_be_done_is_an_answer_to_the_program(desk: Desk, program: AcpProgram) -> None:
    (desk.home / "directory").mkdir()
    settings = stub(
        ["try", "read", "missing"],
        ["try", "write", "directory", "x"],
        ["try", "write", "/proc/no/such", "x"],
        ["try", "run", "true"],
    )
    assert is_done(await desk.carry(program, settings))
    refused = log(desk)
    assert refused[0] == f"refused Resource not found: There is no file {desk.home}/missing. (ENOENT)"
    assert [line.split()[0] for line in refused] == ["refused", "refused", "refused", "ran"]


@pytest.mark.parametrize("takes", [True, False])
async def test_the_offices_mcp_server_is_offered_to_who_can_use_it(
    desk: Desk, program: AcpProgram, takes: bool
) -> None:
    assert is_done(await desk.carry(program, stub(mcp=takes)))
    (offered,) = [json.loads(line) for line in desk.lines(".stub/mcp")]
    server = {"type": "http", "name": "tenure", "url": "http://api:8700/mcp", "headers": []}
    assert offered == ([server] if takes else [])


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("max_tokens", FailureClass.CONTEXT),
        ("max_turn_requests", FailureClass.STUCK),
        ("refusal", FailureClass.MODEL),
        ("cancelled", FailureClass.COMMAND),
    ],
)
async def test_why_it_stopped_is_the_outcome(desk: Desk, program: AcpProgram, reason: str, kind: FailureClass) -> None:
    outcome = await desk.carry(program, stub(["say", "so far"], ["stop", reason]))
    assert isinstance(outcome, Failed), outcome
    assert outcome.failure.kind is kind
    assert "so far" in outcome.failure.evidence


async def test_a_login_that_is_wanted_is_said_with_what_to_do(desk: Desk, program: AcpProgram) -> None:
    outcome = await desk.carry(program, stub(login=True))
    assert isinstance(outcome, Failed), outcome
    assert outcome.failure.kind is FailureClass.AUTHENTICATION
    assert "An API key" in outcome.failure.message
    assert f"tenure shell {AGENT}" in outcome.failure.message


async def test_what_it_cannot_do_is_refused(desk: Desk, program: AcpProgram) -> None:
    for settings, changes in ((BrainSettings(brain="acp"), {}), (stub(), {"purpose": Purpose.REPLAN})):
        outcome = await desk.carry(program, settings, **changes)
        assert isinstance(outcome, Failed)
        assert outcome.failure.kind is FailureClass.USAGE
    outcome = await desk.carry(program, stub(version=7))
    assert isinstance(outcome, Failed), outcome
    assert "version 7" in outcome.failure.message
    outcome = await desk.carry(program, BrainSettings(brain="acp", command=("no-such-agent",)))
    assert isinstance(outcome, Failed), outcome
    assert outcome.failure.exit_code == 127
    assert "Install it" in outcome.failure.message
    assert "no-such-agent" in outcome.failure.evidence
    assert desk.processes() == []


# --- it dies -----------------------------------------------------------------------------------------------------------------
WORK = (
    ["say", "first"],
    ["write", "one.txt", "one"],
    ["run", "sh", "-c", "grep -qs ran effects || echo ran >> effects"],
    ["edit", "one.txt", "one", "two"],
    ["say", "last"],
)
"""It looks before it repeats, as it is told to."""


def deaths() -> list[tuple[str, str, int]]:
    """Every message of `WORK`, before and after it; the first and a later one of those that come often."""
    sent = [
        ("answer:initialize", 1),
        ("answer:session/new", 1),
        ("session/update", 1),
        ("session/update", 2),
        ("session/update", 4),
        ("fs/write_text_file", 1),
        ("fs/write_text_file", 2),
        ("fs/read_text_file", 1),
        ("terminal/create", 1),
        ("terminal/wait_for_exit", 1),
        ("terminal/output", 1),
        ("terminal/release", 1),
    ]
    received = [("initialize", 1), ("session/new", 1), ("session/prompt", 1), ("answer", 1), ("answer", 3)]
    return [
        *((at, name, nth) for name, nth in sent for at in ("before", "after")),
        ("before", "answer:session/prompt", 1),  # after it we end it
        *(("before", f"got:{name}", nth) for name, nth in received),
    ]


async def test_a_program_killed_at_any_message_fails_and_the_next_attempt_ends_the_work(
    tmp_path: Path, program: AcpProgram
) -> None:
    for number, (at, message, nth) in enumerate(deaths()):
        desk = Desk(tmp_path / str(number))
        death = {"at": at, "message": message, "nth": nth}
        settings = stub(*WORK, load=number % 2 == 0, die=death)  # by turns; all of both would take twice as long
        outcome = await desk.carry(program, settings)
        assert desk.lines(".stub/died") == [f"{at} {message} {nth}"], "the fault did not fire"
        assert isinstance(outcome, Failed), death
        assert outcome.failure.exit_code == 128 + signal.SIGKILL, death
        assert outcome.failure.kind is FailureClass.COMMAND
        outcome = await desk.carry(program, settings, attempt=2, trouble=outcome.failure.message)
        assert isinstance(outcome, Done), death
        assert desk.lines("effects") == ["ran"], death
        assert (desk.home / "one.txt").read_text() == "two", death
        assert desk.processes() == [], death
        desk.office.close()


def test_a_worker_killed_between_any_two_messages_is_followed_by_one_that_ends_the_work(tmp_path: Path) -> None:
    program = AcpProgram()
    rehearsal = Desk(tmp_path / "rehearsal")
    points = rehearsal.points(program, stub(*WORK))
    rehearsal.office.close()
    names = {point.rpartition(":")[0] for point in points}
    assert {"acp.send.before/initialize", "acp.received/answer:session/new", "acp.terminal.after"} <= names
    assert {"acp.send.after/answer:terminal/create", "report.after/session", "report.before/usage"} <= names
    for number, point in enumerate(points):
        desk = Desk(tmp_path / str(number))
        settings = stub(*WORK, load=number % 2 == 0)
        desk.carry_and_die(program, settings, point)
        outcome = asyncio.run(desk.carry(program, settings))
        assert isinstance(outcome, Done), (point, outcome)
        assert desk.lines("effects") == ["ran"], point
        assert (desk.home / "one.txt").read_text() == "two", point
        keys = sorted(path.name for path in (desk.directory / "offices" / AGENT / "jobs").iterdir())
        assert len(keys) == len({key.partition(".s")[2].partition(".")[0] for key in keys}), "one command per start"
        assert desk.processes() == [], point
        desk.office.close()


def test_a_command_that_a_killed_worker_left_running_is_ended(quiet_desk: Desk) -> None:
    desk, program, settings = quiet_desk, AcpProgram(), stub(["start", "sleep", "600"], ["say", "over"])
    desk.carry_and_die(program, settings, "acp.send.before/answer:terminal/create:1")
    asyncio.run(desk.until(lambda: any("sleep" in command for command in desk.processes())))
    outcome = asyncio.run(desk.carry(program, settings))
    assert isinstance(outcome, Done), outcome
    assert desk.processes() == []


async def test_a_session_that_is_loaded_goes_on_and_is_told_that_it_was_interrupted(
    desk: Desk, program: AcpProgram
) -> None:
    settings = stub(["write", "done.txt", "x"], ["say", "went on"], die={"at": "before", "message": "session/update"})
    assert isinstance(await desk.carry(program, settings), Failed)
    outcome = await desk.carry(program, settings)
    assert isinstance(outcome, Done), outcome
    assert outcome.result.output == "went on", "what it told before is not told again"
    assert log(desk) == ["loaded session-1"]
    assert [data["id"] for data in desk.told("session")] == ["session-1"]
    assert "You were interrupted" in prompts(desk)[1]
    assert desk.lines(".stub/done-session-1") == ["write", "say"]


@pytest.mark.parametrize("more", [{"load": False}, {"forgets": True}])
async def test_a_session_that_cannot_be_loaded_is_replaced_by_one_that_is_told_what_was_done(
    desk: Desk, program: AcpProgram, more: dict[str, Any]
) -> None:
    death = {"at": "before", "message": "fs/write_text_file"}
    settings = stub(["say", "I begin."], ["run", "true"], ["write", "a", "b"], die=death, **more)
    assert isinstance(await desk.carry(program, settings), Failed)
    assert is_done(await desk.carry(program, settings, trouble="it died"))
    first, second = prompts(desk)
    assert "What was done before" not in first
    assert "the goal" in second
    assert "You were interrupted" in second
    assert "- true: completed" in second
    assert "- said: I begin." in second
    assert "it died" in second
    assert [data["id"] for data in desk.told("session")] == ["session-1", "session-2"]
    assert [data.get("because") for data in desk.told("session")][1] == (
        "Resource not found" if "forgets" in more else None
    )


async def test_a_connection_that_breaks_is_made_again_and_the_session_goes_on(desk: Desk, program: AcpProgram) -> None:
    """As when the server is restarted: no failure of the program, and none of the step."""
    settings = stub(["say", "one"], ["run", "sh", "-c", "touch at; [ -e go ] || sleep 600"], ["say", "two"])
    carrying = asyncio.create_task(desk.carry(program, settings))
    await desk.until(lambda: (desk.home / "at").exists())
    (desk.home / "go").touch()
    broken = desk.office.programs[-1]
    broken.breaks_with = ServerUnreachable("away")
    broken.break_off()
    outcome = await carrying
    assert isinstance(outcome, Done), outcome
    assert log(desk)[0] == "loaded session-1"
    assert [data["number"] for data in desk.told("started")] == [0, 1]
    assert desk.processes() == [], "the command of the broken part was ended"


async def test_an_office_whose_door_closes_is_told_and_asked_again(desk: Desk, program: AcpProgram) -> None:
    settings = stub(["say", "one"], ["run", "sh", "-c", "touch at; [ -e go ] || sleep 600"])
    carrying = asyncio.create_task(desk.carry(program, settings))
    await desk.until(lambda: (desk.home / "at").exists())
    (desk.home / "go").touch()
    desk.office.programs[-1].break_off()
    outcome = await carrying
    assert isinstance(outcome, Blocked), outcome
    assert outcome.failure.kind is FailureClass.DOOR
    assert is_done(await desk.carry(program, settings))
    assert log(desk)[0] == "loaded session-1"


@pytest.mark.parametrize("method", ["start_command", "command_status", "read_file"])
async def test_an_error_of_the_office_under_its_request_is_no_failure_of_the_program(
    desk: Desk, program: AcpProgram, method: str
) -> None:
    (desk.home / "a").write_text("b")
    fault = desk.hands.add(method, lambda: DoorClosed("closed"))
    settings = stub(["run", "true"], ["read", "a"])
    outcome = await desk.carry(program, settings)
    assert isinstance(outcome, Blocked), outcome
    assert fault.fired == 1
    assert desk.processes() == []
    assert is_done(await desk.carry(program, settings))


# --- permissions -------------------------------------------------------------------------------------------------------------
PERMIT = ["permit", "Deploy it", "execute", "sh", "-c", "echo deployed >> effects"]


async def test_what_needs_nobodys_leave_is_allowed_once(desk: Desk, program: AcpProgram) -> None:
    assert is_done(await desk.carry(program, stub(PERMIT, approve=("delete", "rm *"))))
    assert log(desk)[0] == "permission a"
    assert desk.lines("effects") == ["deployed"]
    assert desk.told("asked") == []


@pytest.mark.parametrize("loads", [True, False])
@pytest.mark.parametrize(("answer", "effects"), [("yes", ["deployed"]), ("no", []), ("rather not", [])])
async def test_a_person_decides_and_meanwhile_nothing_runs(
    desk: Desk, program: AcpProgram, loads: bool, answer: str, effects: list[str]
) -> None:
    settings = stub(["say", "ready"], PERMIT, ["say", "over"], approve=("Deploy*",), load=loads)
    outcome = await desk.carry(program, settings)
    assert isinstance(outcome, Asks), outcome
    question = outcome.question
    assert question.approval
    assert "Deploy it" in question.text
    assert "echo deployed" in question.evidence
    assert desk.processes() == []
    starts = len(desk.office.programs)
    assert await desk.carry(program, settings) == outcome
    assert len(desk.office.programs) == starts, "nothing is started before the answer"
    desk.answers[question.id] = answer
    outcome = await desk.carry(program, settings)
    assert isinstance(outcome, Done), outcome
    assert desk.lines("effects") == effects
    assert [line for line in log(desk) if line.startswith("permission")][-1] == (
        "permission a" if answer == "yes" else "permission r"
    )
    assert f"Answer: {answer}" in prompts(desk)[-1]
    assert "do it now if it still has to be" in prompts(desk)[-1]


async def test_a_yes_counts_once_and_for_that_alone(desk: Desk, program: AcpProgram) -> None:
    other = ["permit", "Deploy it", "execute", "sh", "-c", "echo other >> effects"]
    settings = stub(PERMIT, PERMIT, other, approve=("execute",))
    asked: list[str] = []
    for _ in range(3):
        outcome = await desk.carry(program, settings)
        assert isinstance(outcome, Asks)
        asked.append(outcome.question.id)
        desk.answers[outcome.question.id] = "yes"
    assert is_done(await desk.carry(program, settings))
    assert len(set(asked)) == 3
    assert desk.lines("effects") == ["deployed", "deployed", "other"]
    assert [data["question"] for data in desk.told("allowed")] == asked


async def test_a_no_is_for_good_and_for_that_alone(desk: Desk, program: AcpProgram) -> None:
    other = ["permit", "Deploy it", "execute", "sh", "-c", "echo other >> effects"]
    settings = stub(PERMIT, PERMIT, other, approve=("execute",))
    for answer in ("no", "yes"):
        outcome = await desk.carry(program, settings)
        assert isinstance(outcome, Asks), outcome
        desk.answers[outcome.question.id] = answer
    assert is_done(await desk.carry(program, settings))
    assert desk.lines("effects") == ["other"]
    assert len(desk.told("asked")) == 2


@pytest.mark.parametrize("point", ["acp.asked.before:1", "report.before/asked:1", "report.after/asked:1"])
def test_a_worker_killed_while_it_asks_asks_once(quiet_desk: Desk, point: str) -> None:
    desk, program, settings = quiet_desk, AcpProgram(), stub(PERMIT, approve=("execute",))
    desk.carry_and_die(program, settings, point)
    outcome = asyncio.run(desk.carry(program, settings))
    assert isinstance(outcome, Asks), outcome
    assert [data["question"]["id"] for data in desk.told("asked")] == [outcome.question.id]
    assert desk.lines("effects") == []


@pytest.mark.parametrize("point", ["acp.allowed.before:1", "report.after/allowed:1", "acp.terminal.after:1"])
def test_a_yes_is_not_used_twice_by_a_crash(quiet_desk: Desk, point: str) -> None:
    desk, program, settings = quiet_desk, AcpProgram(), stub(PERMIT, approve=("execute",))
    asked = asyncio.run(desk.carry(program, settings))
    assert isinstance(asked, Asks)
    desk.answers[asked.question.id] = "yes"
    desk.carry_and_die(program, settings, point)
    outcome = asyncio.run(desk.carry(program, settings))
    if point == "acp.allowed.before:1":
        assert isinstance(outcome, Done), "it was not passed on yet"
        assert desk.lines("effects") == ["deployed"]
    else:
        assert isinstance(outcome, Asks), "whether it acted is unknown, so a person decides"
        assert outcome.question.id != asked.question.id
        assert len(desk.lines("effects")) <= 1


def test_patterns_are_of_kinds_and_titles() -> None:
    tool = {"kind": "execute", "title": "Run rm -rf build"}
    for pattern in ("execute", "EXEC*", "run rm *", "*"):
        assert permissions.needs_person((pattern,), tool)
    for pattern in ("edit", "rm *", ""):
        assert not permissions.needs_person((pattern,), tool)
    always = [{"optionId": "x", "kind": "reject_always"}]
    assert permissions.choice(always, allow=True) == {"outcome": "cancelled"}
    assert permissions.choice(always, allow=False) == {"outcome": "selected", "optionId": "x"}


# --- cancelled ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("action", [["hang"], ["stubborn"], ["start", "sh", "-c", "touch at; sleep 600"]])
async def test_nothing_runs_after_it_was_cancelled(
    desk: Desk, program: AcpProgram, action: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "CANCEL_S", 0.2)
    monkeypatch.setattr(conversation, "EXIT_S", 0.2)
    carrying = asyncio.create_task(desk.carry(program, stub(action, ["hang"])))
    await desk.until(lambda: "hangs" in log(desk))
    assert len(desk.processes()) == (2 if action[0] == "start" else 1) or desk.lines("at") == []
    carrying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await carrying
    assert desk.processes() == []


async def test_it_is_told_to_cancel_before_it_is_ended(desk: Desk, program: AcpProgram) -> None:
    settings = stub(["run", "sh", "-c", "touch at; sleep 600"])
    carrying = asyncio.create_task(desk.carry(program, settings))
    await desk.until(lambda: (desk.home / "at").exists())
    carrying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await carrying
    assert log(desk) == ["cancelled"]
    assert desk.lines(".stub/ended") == ["SIGTERM"], "it is given a moment to write down its session"
    assert desk.processes() == []


async def test_a_worker_that_lost_its_lease_ends_its_program_and_says_so(desk: Desk, program: AcpProgram) -> None:
    def lose(what: str, data: object) -> None:
        if what == "session":
            raise LeaseLost("gone")

    desk.on_report = lose
    with pytest.raises(LeaseLost):
        await desk.carry(program, stub(["hang"]))
    assert desk.processes() == []
    with pytest.raises(LeaseLost):
        await program.carry(with_lease_lost(desk.errand(stub(["hang"])), LeaseLost("gone")))


async def test_what_a_dead_worker_left_can_be_ended(
    desk: Desk, program: AcpProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "CANCEL_S", 0.2)
    monkeypatch.setattr(conversation, "EXIT_S", 0.2)
    settings = stub(["start", "sh", "-c", "touch at; sleep 600"], ["hang"])
    # (a worker that is killed, played by one that cannot end its terminals)
    fault = desk.hands.add("stop_command", lambda: DoorClosed("closed"), times=99)
    carrying = asyncio.create_task(desk.carry(program, settings))
    await desk.until(lambda: (desk.home / "at").exists() and "hangs" in log(desk))
    carrying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await carrying
    assert fault.fired > 0
    assert desk.processes() != []
    desk.hands.faults.clear()
    await program.halt(desk.errand(settings))
    assert desk.processes() == []


# --- silence, garbage, floods ------------------------------------------------------------------------------------------------
async def test_a_program_that_hangs_is_ended(desk: Desk, program: AcpProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "CANCEL_S", 0.2)
    monkeypatch.setattr(conversation, "EXIT_S", 0.2)
    outcome = await desk.carry(program, stub(["complain", 3], ["hang"]), timeout_s=0.5)
    assert isinstance(outcome, Failed), outcome
    assert outcome.failure.kind is FailureClass.TIMEOUT
    assert "complaint 2" in outcome.failure.evidence
    assert log(desk) == ["hangs"]
    assert desk.processes() == []


async def test_a_program_that_waits_for_its_command_is_not_silent(
    desk: Desk, program: AcpProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "REPORT_S", 0.01)
    settings = stub(["run", "sh", "-c", "touch at; until [ -e go ]; do sleep 0.01; done"])
    carrying = asyncio.create_task(desk.carry(program, settings, timeout_s=1000.0))
    await desk.until(lambda: (desk.home / "at").exists())
    looks, now_s = 0, time.monotonic()

    def monotonic() -> float:
        """Between any two looks while its command runs it is silent for longer than it may."""
        nonlocal looks
        looks += 0 if (desk.home / "go").exists() else 1
        return now_s + 2000.0 * looks

    await desk.until(lambda: any(call.startswith("command_status") for call in desk.hands.calls))
    monkeypatch.setattr(conversation, "time", SimpleNamespace(monotonic=monotonic))
    await desk.until(lambda: looks > 20 or carrying.done())
    (desk.home / "go").touch()
    assert is_done(await carrying)


async def test_a_handshake_that_never_ends_is_ended(
    desk: Desk, program: AcpProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "HANDSHAKE_S", 0.3)
    outcome = await desk.carry(program, BrainSettings(brain="acp", command=("sleep", "600")))
    assert isinstance(outcome, Failed), outcome
    assert outcome.failure.kind is FailureClass.TIMEOUT
    assert "initialize" in outcome.failure.message
    assert desk.processes() == []


async def test_a_little_garbage_between_messages_does_no_harm(desk: Desk, program: AcpProgram) -> None:
    outcome = await desk.carry(program, stub(["garbage", 50], ["say", "still here"], ["complain", 3]))
    assert isinstance(outcome, Done), outcome
    assert outcome.result.output == "still here"


@pytest.mark.parametrize("command", [("yes",), ("sh", "-c", "yes | tr y '{'"), ("cat", "/dev/urandom")])
async def test_a_program_that_speaks_something_else_is_ended_with_evidence(
    desk: Desk, program: AcpProgram, command: tuple[str, ...]
) -> None:
    outcome = await desk.carry(program, BrainSettings(brain="acp", command=command))
    assert isinstance(outcome, Failed), outcome
    assert outcome.failure.kind is FailureClass.COMMAND
    assert "no messages of the Agent Client Protocol" in outcome.failure.message
    assert 0 < len(outcome.failure.evidence.encode()) <= EVIDENCE_BYTES_MAX + 100
    assert desk.processes() == []


async def test_a_line_without_an_end_is_not_read_to_its_end(
    desk: Desk, program: AcpProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "LINE_BYTES_MAX", 1024 * 1024)
    outcome = await desk.carry(program, stub(["endless"]))
    assert isinstance(outcome, Failed), outcome
    assert "a line of more than 1048576 bytes" in outcome.failure.message
    assert desk.processes() == []


async def test_a_flood_of_updates_is_told_in_little(desk: Desk, program: AcpProgram) -> None:
    outcome = await desk.carry(program, stub(["flood", 3000, 1000], ["complain", 5000], ["say", " and that is it"]))
    assert isinstance(outcome, Done), outcome
    assert outcome.result.output.endswith(" and that is it")
    assert len(outcome.result.output) <= MESSAGE_BYTES_MAX + len("[…] ")
    assert desk.journal.stat().st_size < 20_000


async def test_terminals_are_bounded(desk: Desk, program: AcpProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminals, "TERMINALS_MAX", 3)
    actions = [["try", "start", "sleep", "600"] for _ in range(5)]
    assert is_done(await desk.carry(program, stub(*actions)))
    assert log(desk) == ["refused There are 3 terminals already; release one first."] * 2
    assert desk.processes() == []


def test_a_digest_is_small_whatever_it_hears() -> None:
    digest = Digest()
    for number in range(2000):
        call = {"toolCallId": str(number), "title": "t" * 5000, "kind": "edit", "rawInput": {"text": "i" * 50_000}}
        digest.hear({"sessionUpdate": "tool_call", **call})
        digest.hear({"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": "é" * 5000}})
        digest.hear({"sessionUpdate": "plan", "entries": [{"content": "c" * 5000}] * 5000})
        digest.hear({"sessionUpdate": "agent_message_chunk", "content": number})
        digest.hear({"sessionUpdate": "plan", "entries": {"no": 1}})
        digest.hear({"sessionUpdate": "usage_update", "used": "much", "cost": [1]})
        digest.hear({})
    news = digest.take()
    assert news is not None
    assert len(str(news["said"]).encode()) <= SAID_BYTES_MAX + 10
    assert len(json.dumps(news)) < 30_000
    assert news["left_out"] == 1980
    assert len(digest.tools) <= 500
    assert all(len(tool["input"]) <= INPUT_CHARS_MAX + 10 for tool in digest.tools.values())
    assert len({tool["mark"] for tool in digest.tools.values()}) == 1
    assert digest.take() is None


async def test_environment_is_not_that_of_the_worker(desk: Desk, program: AcpProgram) -> None:
    os.environ["TENURE_TEST_SECRET"] = "of the worker"
    try:
        script = 'env | grep -c TENURE_TEST_SECRET > found; env | grep ^TENURE_GOAL >> found; exec "$@"'
        settings = stub(["say", "x"])
        wrapped = settings.model_copy(update={"command": ("sh", "-c", script, "sh", *settings.command)})
        assert is_done(await desk.carry(program, wrapped))
    finally:
        del os.environ["TENURE_TEST_SECRET"]
    assert desk.lines("found") == ["0", "TENURE_GOAL=the goal"]
