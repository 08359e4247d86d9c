"""What a program of the office says that it took counts in its run's budget and in what it cost, each part of it once."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fixtures.errands import TELL, Desk
from fixtures.stage import Stage
from fixtures.workers import at_rest
from tenure import wire
from tenure.brains.acp import AcpProgram
from tenure.brains.process import ProcessProgram
from tenure.database import ControlDatabase
from tenure.testing import acp_agent
from tenure.testing.fake_hands import FakeHands
from tenure.work.effects import Blocked
from tenure.work.failures import Failure, FailureClass
from tenure.work.thoughts import BrainSettings
from tenure.work.worker import Worker

pytest_plugins = ("fixtures.database", "fixtures.desks")

SPEND = 'spend() { curl -sf -X PUT -H "content-type: application/json" -d "$1" "$TENURE_WORK_URL/usage"; }\n'
TAKES = TELL + SPEND
"""What a program takes is the sum since it was started."""
TWICE = """
echo start >> starts
if ! kept; then spend '{"input_tokens": 300, "cost_usd": 0.3}'; keep 1; sleep 600; fi
spend '{"input_tokens": 100}'
"""


def process(script: str, **more: Any) -> BrainSettings:
    return BrainSettings(brain="process", command=("bash", "-c", TAKES + script), **more)


def acp(*actions: list[object], **more: Any) -> BrainSettings:
    command = (sys.executable, "-S", "-E", str(Path(acp_agent.__file__)))
    return BrainSettings(brain="acp", command=command, env={"TENURE_STUB": json.dumps({"actions": actions})}, **more)


class Office(Stage):
    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        worker = asyncio.create_task(Worker(self.database, self.hands).run())
        try:
            yield
        finally:
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)

    async def begin_with(self, settings: BrainSettings) -> str:
        return (await self.runs.create_thinking(agent="analyst", goal="the goal", settings=settings)).id


@pytest.fixture
async def office(control_database: ControlDatabase, fake_hands: FakeHands, tmp_path: Path) -> Office:
    return Office(control_database, fake_hands, tmp_path / "offices" / "analyst" / "home")


async def test_a_program_that_spent_its_budget_is_ended_and_an_answer_lets_it_go_on(office: Office) -> None:
    settings = process(TWICE, budget={"tokens": 300})
    async with office.working():
        run = await at_rest(office.runs, await office.begin_with(settings))
        assert run.state == "parked"
        assert "budget of 300 tokens is spent" in (run.question or "")
        assert run.spent is not None
        assert (run.spent.input_tokens, run.spent.cost_usd) == (300, 0.3)
        await office.runs.resume(run.id, "retry")
        run = await at_rest(office.runs, run.id)
    assert run.state == "succeeded"
    assert (office.home / "starts").read_text().split() == ["start"] * 2
    assert run.spent is not None
    assert run.spent.input_tokens == 400, "the second start counts from nothing"
    (cost,) = await office.runs.costs(wire.CostsBy.RUN)
    assert (cost.run, cost.input_tokens, cost.cost_usd) == (run.id, 400, 0.3)
    (by_model,) = await office.runs.costs(wire.CostsBy.MODEL)
    assert by_model.model == "bash"


async def test_a_program_is_not_begun_when_nothing_is_left(office: Office) -> None:
    first = process("spend '{\"cost_usd\": 2}'; touch first", budget={"agent_day_cost_usd": 1.0})
    second = process("touch second", budget={"agent_day_cost_usd": 1.0})
    async with office.working():
        assert (await at_rest(office.runs, await office.begin_with(first))).state == "succeeded"
        await office.begin_with(second)
        while not await office.database.fetch("select 1 from absurd.r_work where state = 'sleeping'"):
            await office.rest()
    assert (office.home / "first").exists(), "what it took is no reason to throw away what it did"
    assert not (office.home / "second").exists()


async def test_a_session_is_counted_once_however_often_it_is_loaded(office: Office) -> None:
    settings = acp(
        ["usage", 10, 0.5], ["run", "sh", "-c", "echo x >> turns; test $(wc -l < turns) -ge 2 || kill $PPID"]
    )
    async with office.working():
        run = await at_rest(office.runs, await office.begin_with(settings))
    assert run.state == "succeeded", run.question
    assert run.spent is not None
    assert (run.spent.cost_usd, run.spent.input_tokens) == (0.5, 20)


@pytest.mark.parametrize("brain", ["acp", "process"])
async def test_it_is_ended_in_the_middle_of_its_work(desk: Desk, brain: str) -> None:
    desk.over_budget = Failure(kind=FailureClass.BUDGET, message="nothing is left")
    if brain == "acp":
        program, settings = AcpProgram(), acp(["usage", 10, 0.5], ["run", "sleep", "600"])
    else:
        program, settings = ProcessProgram(look_s=0.02), process("spend '{\"output_tokens\": 7}'; sleep 600")
    outcome = await desk.carry(program, settings)
    assert isinstance(outcome, Blocked), outcome
    assert outcome.failure is desk.over_budget
    assert desk.processes() == []
    (told,) = desk.told("usage")
    assert told["new"]["cost_usd" if brain == "acp" else "output_tokens"] in (0.5, 7)
