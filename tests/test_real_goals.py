"""Goals carried to their end on the real parts: an office on gVisor, its tools and its database, and the real provider code that
talks to a scripted model. What goes wrong on the way goes wrong for real: a model that limits, a call that makes no sense, a
sandbox and a server that are killed."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.live import Live
from fixtures.waiting import wait_until
from tenure import wire
from tenure.client import Agent
from tenure.testing.model_requests import ModelRequestSeen
from tenure.testing.model_server import KEY, Call, ModelServer, Reply, calls, rate_limited

RUN_TIMEOUT_S = 240.0
KEY_ENV = "SCRIPTED_MODEL_KEY"
SHOP = {
    "prices.py": "def total(prices):\n    result = 0\n    for price in prices[1:]:\n        result += price\n    return result\n",
    "test_prices.py": (
        "import unittest\nfrom prices import total\n\n"
        "class Prices(unittest.TestCase):\n"
        "    def test_total(self):\n        self.assertEqual(total([1, 2, 3]), 6)\n"
    ),
}
TESTS_PASS = "cd ~/shop && python3 -m unittest -q"
COMMITTED = "cd ~/shop && git diff --quiet HEAD && test $(git rev-list --count HEAD) = 2"


@pytest.fixture(scope="module", autouse=True)
def _key() -> Iterator[None]:
    """The worker finds the provider's key where the settings say."""
    os.environ[KEY_ENV] = KEY
    yield
    del os.environ[KEY_ENV]


def thinks_with(agent: Agent, server: ModelServer) -> None:
    agent.set_brain(wire.BrainRequest(models=["openai:scripted"], base_url=server.base_url, key_env=KEY_ENV))


def shell(command: str) -> Reply:
    return calls(Call("shell", {"command": command}))


def propose(*steps: dict[str, object], reason: str = "") -> Reply:
    return calls(Call("propose_plan", {"steps": list(steps), "reason": reason}))


def finish(summary: str) -> Reply:
    return calls(Call("finish", {"summary": summary}))


def kill_sandbox(live: Live, agent: Agent) -> None:
    pids = live.sandbox_pids(agent.name)
    assert pids, "there is no sandbox to kill"
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def test_a_repository_is_mended_and_committed_through_failures_and_kills(live: Live) -> None:
    agent = live.agent("mender")
    home = live.settings.volumes_dir / agent.name / "rootfs/home/agent"
    agent.exec("mkdir shop")
    for name, text in SHOP.items():
        agent.exec(["tee", f"shop/{name}"], stdin=text)
    identity = "-c user.name=A -c user.email=a@example.com"
    begun = agent.exec(f"cd shop && git init -q && git add . && git {identity} commit -qm first")
    assert begun.exit_code == 0, begun.stderr

    def sees_the_failure(seen: ModelRequestSeen) -> Reply:
        assert "FAILED" in seen.results[0]
        return calls(Call("edit_file", '{"path": "shop/prices.py", "old": "pri'))

    def is_told_of_the_broken_call(seen: ModelRequestSeen) -> Reply:
        assert "JSON" in seen.results[0]
        return calls(Call("read_file", {"path": "shop/prices.py"}))

    def mends(seen: ModelRequestSeen) -> Reply:
        assert "prices[1:]" in seen.results[0]
        change = {"path": "shop/prices.py", "old": "prices[1:]", "new": "prices"}
        return calls(Call("edit_file", change))

    def hears_of_the_loss(seen: ModelRequestSeen) -> Reply:
        assert "verified" in seen.results[0].lower(), seen.results[0]
        return shell("cd shop && git log --oneline | wc -l && git status --short")

    def is_told_that_it_is_not_done(seen: ModelRequestSeen) -> Reply:
        assert "Not verified" in seen.results[0], seen.results[0]
        return shell(f"touch ~/committing; sleep 5; cd shop && git {identity} commit -qam 'prices: count the first'")

    script = {
        "": [
            rate_limited("0.1"),
            propose(
                {
                    "id": "mend",
                    "what": "make the tests of ~/shop pass, and commit",
                    "work": "Find out why the tests of ~/shop fail, mend the code, and commit.",
                    "checks": [{"run": TESTS_PASS}, {"run": COMMITTED}],
                }
            ),
            shell("cd shop && python3 -m unittest -q 2>&1"),
            sees_the_failure,
            is_told_of_the_broken_call,
            mends,
            shell(f"echo ran >> ~/ran; touch ~/testing; sleep 4; {TESTS_PASS} 2>&1"),
            finish("The tests pass."),
            is_told_that_it_is_not_done,
            hears_of_the_loss,
            shell(f"cd shop && git {identity} commit -qam 'prices: count the first'"),
            finish("The tests pass, and it is committed."),
        ]
    }
    with ModelServer(script, key=KEY) as server:
        thinks_with(agent, server)
        run = agent.run("Make the tests of ~/shop pass.", checks=[wire.RunCheck(run=TESTS_PASS)])
        wait_until(lambda: (home / "testing").exists(), "the tests were not run")
        live.kill()  # in the middle of a tool call
        live.up()
        wait_until(lambda: (home / "committing").exists(), "nothing is committed")
        kill_sandbox(live, agent)  # the same, but now the command is lost with it
        run = live.tenure.runs.get(run.id).wait(timeout_s=RUN_TIMEOUT_S)
        assert run.info.state == "succeeded", (run.info.question, run.info.error, server.problems)
        assert server.fired[0] == "Refuse", "the injected limit did not fire"
    events = list(run.events())
    assert (home / "ran").read_text() == "ran\n", "the command was begun again after the server was killed"
    assert agent.exec(TESTS_PASS).exit_code == 0
    assert agent.exec(COMMITTED).exit_code == 0
    assert len([event for event in events if event.kind == "run_claimed"]) == 2, "the kill was no kill"
    thought = Counter(
        (event.step, event.data["attempt"], event.data["turn"]) for event in events if event.kind == "thinking"
    )
    assert set(thought.values()) == {1}, "a thought was asked for twice"
    lost = [event for event in events if event.kind == "call_done" and event.data["result"]["unverified"]]
    assert len(lost) == 1, "the loss of the sandbox was not told"
    assert KEY not in "".join(event.model_dump_json() for event in events)
    assert KEY not in Path(live.settings.logs_dir / "server.log").read_text()
    spent = run.info.spent
    assert spent is not None
    assert spent.requests == len(thought)


def test_a_data_job_with_a_step_that_cannot_succeed_is_planned_anew(live: Live) -> None:
    agent = live.agent("accountant")
    rows = "".join(f"2026-01-{day:02d};{day},50\n" for day in range(1, 32))
    agent.exec(["tee", "sales.txt"], stdin=rows)
    copy = "psql -v ON_ERROR_STOP=1 -qc \"\\copy sales from '{}' (format csv, delimiter ';')\""
    table = {
        "id": "table",
        "what": "make the table",
        "sql": "create table if not exists sales (day date, amount numeric)",
    }
    right = {"sql": "select sum(amount) = 511.5 and count(*) = 31 from sales"}

    def cannot_be_mended(seen: ModelRequestSeen) -> Reply:
        assert "invalid input syntax for type numeric" in seen.messages[-1]["content"] + seen.first + seen.instructions
        return finish("The file has decimal commas: loading it as it is cannot work.")

    def plans_anew(seen: ModelRequestSeen) -> Reply:
        assert seen.tools.count("propose_plan") == 1
        assert "shell" not in seen.tools, "planning only looks"
        return propose(
            table,
            {
                "id": "convert",
                "what": "write the amounts with decimal points",
                "run": "tr , . < sales.txt > sales.csv",
                "checks": [{"file": "/home/agent/sales.csv"}],
            },
            {
                "id": "load_converted",
                "what": "load",
                "needs": ["table", "convert"],
                "run": copy.format("sales.csv"),
                "checks": [right],
            },
            {
                "id": "report",
                "what": "keep the table",
                "needs": ["load_converted"],
                "put": {"path": "sales.csv", "bucket": "reports", "name": "sales.csv"},
            },
            reason="The amounts have decimal commas.",
        )

    script = [
        propose(
            table,
            {
                "id": "load",
                "what": "load the sales",
                "needs": ["table"],
                "run": copy.format("sales.txt"),
                "checks": [right],
                "retry": 0,
            },
        ),
        cannot_be_mended,
        cannot_be_mended,
        plans_anew,
    ]
    with ModelServer(script, key=KEY) as server:
        thinks_with(agent, server)
        run = agent.run("Load ~/sales.txt into the table sales, and keep it.", checks=[wire.RunCheck(sql=right["sql"])])
        run = run.wait(timeout_s=RUN_TIMEOUT_S)
        assert run.info.state == "succeeded", (run.info.question, run.info.error, server.problems)
    assert agent.sql("select sum(amount) from sales").rows == [[511.5]]
    assert agent.objects.get("reports", "sales.csv").startswith(b"2026-01-01;1.50\n")
    steps = {step.id: step for step in run.info.steps}
    assert "load" not in steps, "the step that could not succeed is still in the plan"
    assert steps["table"].attempts == 1, "what was done was done again"
    rungs = [event.data["rung"] for event in run.events() if event.kind == "rung_entered"]
    assert rungs == [1, 1, 3]
