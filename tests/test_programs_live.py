"""Programs as brains in a real office: gVisor, its door, its API, and a worker's hands that speak to the real server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pydantic import JsonValue

from fixtures.live import Live
from tenure import wire
from tenure.brains.acp import AcpProgram, conversation
from tenure.brains.base import Errand, Program, Report
from tenure.brains.process import ProcessProgram
from tenure.client import Agent
from tenure.client.endpoint import Endpoint
from tenure.client.hands import HttpHands
from tenure.testing import acp_agent
from tenure.work.effects import Asks, Done, Outcome
from tenure.work.hands import Command, CommandState
from tenure.work.thoughts import BrainSettings, Purpose

PATIENCE_S = 120.0


class Sender:
    """Sends programs on errands in one real office."""

    def __init__(self, hands: HttpHands, agent: Agent) -> None:
        self.hands, self.agent = hands, agent
        self.reports: list[Report] = []
        self.answers: dict[str, str] = {}

    async def report(self, what: str, data: JsonValue) -> None:
        self.reports.append(Report(what, data))

    async def over_budget(self) -> None:
        return None

    async def carry(self, program: Program, settings: BrainSettings, key: str) -> Outcome:
        errand = Errand(
            hands=self.hands,
            run_id="run_1",
            agent=self.agent.name,
            node="work",
            attempt=1,
            key=key,
            purpose=Purpose.WORK,
            goal="the goal",
            instructions="do this",
            settings=settings,
            env={},
            timeout_s=PATIENCE_S,
            fresh=not self.reports,
            reports=tuple(self.reports),
            trouble="",
            answers=dict(self.answers),
            report=self.report,
            over_budget=self.over_budget,
        )
        async with asyncio.timeout(PATIENCE_S):
            return await program.carry(errand)

    async def shell(self, script: str) -> str:
        return str((await asyncio.to_thread(self.agent.exec, script)).stdout)

    async def until(self, script: str) -> None:
        """Until the script, run in the office, says yes."""
        async with asyncio.timeout(PATIENCE_S):
            while not (await self.shell(f"{{ {script}; }} && echo yes")).strip():  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    def told(self, what: str) -> list[Any]:
        return [report.data for report in self.reports if report.what == what]


@pytest.fixture
async def sender(live: Live) -> AsyncIterator[Sender]:
    agent = await asyncio.to_thread(live.agent, "programs")
    async with HttpHands(Endpoint.find(live.settings)) as hands:
        yield Sender(hands, agent)
    await asyncio.to_thread(agent.delete)


PROCESS = """
echo start >> starts
curl -sf "$TENURE_CHECKPOINT_URL" > begin || echo none > begin
curl -sf -X PUT -H 'content-type: application/json' -d '{"at": 7}' "$TENURE_CHECKPOINT_URL"
curl -sf -X POST -H 'content-type: application/json' -d '{"every_s": 60}' "$TENURE_WORK_URL/heartbeat"
if [ -z "$TENURE_ANSWER" ]; then
    curl -sf -X POST -H 'content-type: application/json' -d '{"text": "Go on?"}' "$TENURE_WORK_URL/ask"
    until [ -e go ]; do sleep 0.05; done
    exit 75
fi
echo "$TENURE_ANSWER after $(cat begin)"
"""


async def test_a_process_survives_server_and_worker_asks_and_ends(live: Live, sender: Sender) -> None:
    settings = BrainSettings(brain="process", command=("bash", "-c", PROCESS))
    carrying = asyncio.create_task(sender.carry(ProcessProgram(), settings, "k1"))
    await sender.until("test -e starts")
    async with asyncio.timeout(PATIENCE_S):
        while not sender.told("checkpoint"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    live.kill()
    await asyncio.gather(carrying, return_exceptions=True)  # these hands are not patient
    await asyncio.to_thread(live.up)
    await sender.shell("touch go")
    asked = await sender.carry(ProcessProgram(), settings, "k1")
    assert isinstance(asked, Asks), asked
    assert (await sender.shell("cat starts")).split() == ["start"]
    sender.answers[asked.question.id] = "yes"
    done = await sender.carry(ProcessProgram(), settings, "k1")
    assert isinstance(done, Done), done
    assert done.result.output == 'yes after {"at":7}'
    assert sender.told("checkpoint") == [{"at": 7}]


def stub(actions: list[list[Any]], **more: Any) -> BrainSettings:
    env = {"TENURE_STUB": json.dumps({"actions": actions, **more})}
    return BrainSettings(brain="acp", command=("python3", "acp_agent.py"), env=env, approve=("delete",))


async def test_an_acp_program_works_in_the_office_is_ended_and_goes_on(
    live: Live, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "CANCEL_S", 0.5)
    program = AcpProgram()
    await asyncio.to_thread(sender.agent.upload, acp_agent.__file__, "acp_agent.py")
    settings = stub(
        [
            ["write", "new/file.txt", "one\n"],
            ["edit", "new/file.txt", "one", "two"],
            ["run", "sh", "-c", "cat new/file.txt; whoami; echo ran >> effects"],
            ["start", "sh", "-c", "echo $$ > sleeper; exec sleep 600"],
            ["run", "sh", "-c", "touch here; [ -e go ] || sleep 600"],
            ["permit", "Remove it", "delete", "rm", "new/file.txt"],
            ["say", "All is done."],
        ],
        mcp=True,
    )
    carrying = asyncio.create_task(sender.carry(program, settings, "k2"))
    await sender.until("test -e here && test -e sleeper")
    carrying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await carrying
    left = "pgrep -f [a]cp_agent.py || pgrep -x sleep || true"
    assert await sender.shell(left) == "", "something runs after it was cancelled"
    await sender.shell("touch go")
    asked = await sender.carry(program, settings, "k2")
    assert isinstance(asked, Asks), asked
    assert "Remove it" in asked.question.text
    assert await sender.shell(left) == ""
    sender.answers[asked.question.id] = "yes"
    done = await sender.carry(program, settings, "k2")
    assert isinstance(done, Done), done
    assert done.result.output == "All is done."
    log = (await sender.shell("cat .stub/log")).splitlines()
    assert log[0] == 'ran [{"exitCode": 0, "signal": null}, "two\\nagent\\n"]'
    assert "loaded session-1" in log
    assert "permission a" in log
    assert (await sender.shell("cat effects; ls new; cat .stub/sessions")).split() == ["ran", "/home/agent"]
    assert (await sender.hands.command_status(sender.agent.name, "k2.s0.t1")).state is CommandState.EXITED


async def test_a_killed_server_ends_the_program_and_the_session_goes_on(live: Live, sender: Sender) -> None:
    await asyncio.to_thread(sender.agent.upload, acp_agent.__file__, "acp_agent.py")
    settings = stub([["say", "one"], ["run", "sh", "-c", "touch here; [ -e go ] || sleep 600"], ["say", "two"]])
    carrying = asyncio.create_task(sender.carry(AcpProgram(), settings, "k3"))
    await sender.until("test -e here")
    live.kill()
    await asyncio.gather(carrying, return_exceptions=True)
    await asyncio.to_thread(live.up)
    await sender.shell("touch go")
    await sender.until("! pgrep -f [a]cp_agent.py")
    done = await sender.carry(AcpProgram(), settings, "k3")
    assert isinstance(done, Done), done
    assert "loaded session-1" in await sender.shell("cat .stub/log")
    sleeping = await sender.hands.command_status(sender.agent.name, "k3.s0.t1")
    assert sleeping.exit_code != 0, "the command of the dead worker was ended"


async def test_a_key_means_the_same_to_worker_and_program(sender: Sender) -> None:
    """Dots, colons and what else keys have in them come through the office's door as they are."""
    key = "run_1.a-b.0a1b.2:x@y=z+w"
    await sender.hands.open_signals(sender.agent.name, key)
    script = f'curl -s -o /dev/null -w "%{{http_code}}" -X POST "$TENURE_URL/work/{key}/heartbeat"'
    await sender.hands.start_command(sender.agent.name, "tell", Command(script))
    status = await sender.hands.command_status(sender.agent.name, "tell", wait_s=20)
    assert status.output == "204"
    assert (await sender.hands.signals(sender.agent.name, key)).heartbeats == 1


def test_a_run_is_carried_by_a_program_through_a_question_and_a_kill(live: Live) -> None:
    """All of it: the agent's settings, the worker, the journal, a person's answer, and nothing left after a cancellation."""
    agent = live.agent("carried")
    agent.upload(acp_agent.__file__, "acp_agent.py")
    settings = stub(
        [
            ["run", "sh", "-c", "touch here; [ -e go ] || sleep 600"],
            ["permit", "Remove it", "delete", "sh", "-c", "echo gone >> effects"],
            ["say", "over"],
        ]
    )
    brain = wire.BrainRequest(brain="acp", command=list(settings.command), env=settings.env, approve=["delete"])
    agent.set_brain(brain)
    run = agent.run("the goal")
    wait_until(lambda: agent.exec("test -e here").exit_code == 0)
    live.kill()
    live.up()
    agent.exec("touch go")
    wait_until(lambda: bool(live.tenure.questions.list(agent.name)))
    (question,) = live.tenure.questions.list(agent.name)
    live.tenure.questions.answer(question.id, "yes")
    wait_until(lambda: run.show().state in ("succeeded", "failed"))
    assert run.show().state == "succeeded"
    assert agent.exec("cat effects").stdout == "gone\n"

    hanging = stub([["start", "sleep", "600"], ["hang"]])
    agent.set_brain(brain.model_copy(update={"env": hanging.env}))
    run = agent.run("another goal")
    wait_until(lambda: "hangs" in agent.exec("cat .stub/log").stdout)
    run.cancel()
    wait_until(lambda: run.show().state == "cancelled")
    assert agent.exec("pgrep -f [a]cp_agent.py || pgrep -x sleep || true").stdout == ""
    agent.delete()


def wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)
