"""How an agent thinks is kept with it, is checked before it is kept, goes with its forks, and begins its runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from fixtures.api import PLAYBOOK, Api, error_of
from fixtures.cli import Cli
from fixtures.live import Live
from tenure import wire
from tenure.brains.base import Brain
from tenure.brains.models import brain, providers
from tenure.brains.registry import BRAINS, brain_named, check_settings, program_of, thinker_of
from tenure.cli import reference
from tenure.database.connect import ControlDatabase
from tenure.errors import InvalidArgument, NotFound, UsageError
from tenure.offices.models import Limits
from tenure.offices.store import OfficeStore
from tenure.server.brains import Brains
from tenure.testing.model_server import Call, ModelServer, calls
from tenure.work.runs import Runs
from tenure.work.thoughts import BrainSettings, Budget

pytest_plugins = ("fixtures.server", "fixtures.cli_process")

SETTINGS = BrainSettings(
    models=("openai:qwen3", "anthropic:claude-opus-5"),
    base_url="http://127.0.0.1:11434/v1",
    key_env="LOCAL_KEY",
    model_settings={"max_tokens": 8000, "temperature": 0.5},
    context_tokens_max=32_000,
    budget=Budget(tokens=1_000_000, cost_usd=2.5, requests=100, agent_day_cost_usd=10.0),
    approve=("http_*", "message"),
)
BODY = SETTINGS.model_dump(mode="json")


# --- the API ---------------------------------------------------------------------------------------------------------------
async def test_what_was_chosen_is_kept_whole_and_replaced_whole(api: Api) -> None:
    async with api.client() as owner:
        answer = await owner.get("/v1/agents/analyst/brain")
        assert (answer.status_code, error_of(answer)["code"]) == (404, "not_found")
        assert "tenure brain set analyst" in str(error_of(answer)["hint"])
        assert (await owner.put("/v1/agents/analyst/brain", json=BODY)).json() == BODY
        assert (await owner.get("/v1/agents/analyst/brain")).json() == BODY
        program = {"brain": "acp", "command": ["claude-code-acp"], "env": {"LANG": "C"}}
        found = (await owner.put("/v1/agents/analyst/brain", json=program)).json()
        assert (found["brain"], found["models"], found["base_url"]) == ("acp", [], None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"brain": "magic"}, "no brain 'magic'"),
        ({"models": []}, "needs one"),
        ({"models": ["gpt-4o"]}, "PROVIDER:MODEL"),
        ({"models": ["nobody:x"]}, "PROVIDER:MODEL"),
        ({"models": ["openai:x"] * 11}, "models"),
        ({"base_url": "ftp://x"}, "no address"),
        ({"base_url": "http://user:secret@x/v1"}, "no user, password or query"),
        ({"base_url": "http://x/v1?key=secret"}, "no user, password or query"),
        ({"key_env": "TENURE_TOKEN"}, "variable for a provider's key"),
        ({"key_env": "sk-0123456789"}, "variable for a provider's key"),
        ({"model_settings": {"extra_headers": {"Authorization": "x"}}}, "extra_headers"),
        ({"model_settings": {"max_retries": 5}}, "max_retries"),
        ({"budget": {"tokens": 0}}, "tokens"),
        ({"budget": {"cost_usd": -1}}, "cost_usd"),
        ({"context_tokens_max": 10}, "context_tokens_max"),
        ({"brain": "process", "command": []}, "needs its command"),
        ({"colour": "red"}, "colour"),
        ({"env": {"A": "x\x00"}}, "brain"),
    ],
)
async def test_what_can_mean_nothing_is_refused_and_nothing_is_kept(
    api: Api, change: dict[str, Any], words: str
) -> None:
    async with api.client() as owner:
        await owner.put("/v1/agents/analyst/brain", json=BODY)
        answer = await owner.put("/v1/agents/analyst/brain", json=BODY | change)
        assert answer.status_code in (400, 422), answer.text
        assert words in str(error_of(answer))
        assert (await owner.get("/v1/agents/analyst/brain")).json() == BODY


async def test_an_unknown_agent_has_no_brain_to_choose(api: Api) -> None:
    async with api.client() as owner:
        assert (await owner.get("/v1/agents/nobody/brain")).status_code == 404
        assert (await owner.put("/v1/agents/nobody/brain", json=BODY)).status_code == 404


async def test_a_run_without_a_playbook_begins_with_what_was_chosen(api: Api) -> None:
    wanted = {
        "agent": "analyst",
        "goal": "the tests pass",
        "inputs": {"year": 2014},
        "accept": [
            {"run": "pytest -q"},
            {"sql": "select count(*) from t", "equals": 3},
            {"file": "/home/agent/out"},
            {"http": "http://localhost:8000/", "contains": "fine"},
        ],
    }
    async with api.client() as owner:
        refused = await owner.post("/v1/runs", json=wanted)
        assert (refused.status_code, error_of(refused)["code"]) == (422, "invalid_argument")
        assert "tenure brain set analyst" in str(error_of(refused)["hint"])
        await owner.put("/v1/agents/analyst/brain", json=BODY)
        made = await owner.post("/v1/runs", json=wanted)
        assert made.status_code == 201, made.text
        (created,) = (await owner.get(f"/v1/runs/{made.json()['id']}/events")).json()["events"]
    assert created["data"]["settings"] == SETTINGS.model_dump(mode="json")
    assert created["data"]["inputs"] == {"year": 2014}
    assert [check["kind"] for check in created["data"]["accept"]] == ["run", "sql", "file", "http"]


@pytest.mark.parametrize(
    "accept", [[{}], [{"run": "a", "file": "b"}], [{"file": "a", "equals": 1}], [{"http": "ftp://x"}], [{"run": ""}]]
)
async def test_a_check_that_can_mean_nothing_is_refused(api: Api, accept: list[Any]) -> None:
    async with api.client() as owner:
        await owner.put("/v1/agents/analyst/brain", json=BODY)
        answer = await owner.post("/v1/runs", json={"agent": "analyst", "goal": "x", "accept": accept})
        assert answer.status_code == 422, answer.text


async def test_a_playbook_has_its_own_checks(api: Api) -> None:
    async with api.client() as owner:
        body = {"agent": "analyst", "goal": "x", "playbook": PLAYBOOK, "accept": [{"run": "true"}]}
        answer = await owner.post("/v1/runs", json=body)
        assert "playbook's own checks" in str(error_of(answer)["message"])


async def test_an_office_neither_sees_nor_chooses_how_its_agent_thinks() -> None:
    from tenure.identity.authorize import Principal, PrincipalKind, Resource, is_allowed

    office, itself = Principal(PrincipalKind.OFFICE, "analyst"), Resource("agent", owner="analyst", name="analyst")
    assert is_allowed(office, "agent:read", itself)
    assert not is_allowed(office, "agent:brain", itself)
    assert not is_allowed(office, "agent:set-brain", itself)


# --- the control database --------------------------------------------------------------------------------------------------
async def test_it_is_a_row_of_the_agents_and_goes_with_a_fork(control_database: ControlDatabase) -> None:
    store = OfficeStore(control_database)
    brains = Brains(store)
    await store.add("analyst", "image", Limits(), [])
    assert await brains.get("analyst") is None
    assert await brains.get("nobody") is None
    await brains.set("analyst", SETTINGS)
    assert await brains.get("analyst") == SETTINGS
    await store.add("forked", "image", Limits(), [], "snap", thinks_as="analyst")
    await store.add("other", "image", Limits(), [])
    assert await brains.get("forked") == SETTINGS
    assert await brains.get("other") is None
    await brains.set("forked", BrainSettings(models=("google:gemini-3",)))
    assert await brains.get("analyst") == SETTINGS, "from then on each has its own"


async def test_a_run_goes_on_as_it_began_whatever_is_chosen_later(control_database: ControlDatabase) -> None:
    brains, runs = Brains(store := OfficeStore(control_database)), Runs(control_database)
    await store.add("analyst", "image", Limits(), [])
    await brains.set("analyst", SETTINGS)
    run = await runs.create_thinking(agent="analyst", goal="x", settings=SETTINGS)
    await brains.set("analyst", BrainSettings(models=("google:gemini-3",)))
    (created, *_) = await runs.events(run.id)
    assert created.data["settings"]["models"] == list(SETTINGS.models)


# --- which brain it is ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", BRAINS)
def test_each_brain_either_thinks_or_is_a_program_and_plans_its_first_step(name: str) -> None:
    chosen = BrainSettings(brain=name, models=("openai:x",), command=("true",))
    assert (thinker_of(chosen) is None) != (program_of(chosen) is None)
    assert (thinker_of(chosen) is not None) == chosen.thinks
    found: Brain = brain_named(chosen)
    assert found.name == name
    assert [step.effect.kind for step in found.plan("the goal", {"year": 2014}).steps] == ["work"]
    assert check_settings(chosen) == chosen


@pytest.mark.parametrize("ask", [brain_named, thinker_of, program_of, check_settings])
def test_a_name_that_no_brain_has_is_refused(ask: Any) -> None:
    with pytest.raises(UsageError, match="no brain 'magic'"):
        ask(BrainSettings(brain="magic"))


# --- the command line --------------------------------------------------------------------------------------------------------
async def test_the_command_line_changes_what_is_given_and_keeps_the_rest(cli: Cli) -> None:
    shown = await cli("brain", "show", "analyst")
    assert shown.code == 3
    assert "tenure brain set analyst" in shown.err
    words = ("--model", "openai:qwen3", "--fallback", "anthropic:claude-opus-5", "--base-url", "http://127.0.0.1:1/v1")
    more = ("--key-env", "LOCAL_KEY", "--budget-tokens", "1000", "--budget-usd", "2.5", "--approve", "http_*")
    made = await cli("brain", "set", "analyst", *words, *more, "--setting", "max_tokens=8000", "--json")
    assert made.code == 0, made.err
    first = made.json
    assert first["models"] == ["openai:qwen3", "anthropic:claude-opus-5"]
    assert (first["base_url"], first["key_env"]) == ("http://127.0.0.1:1/v1", "LOCAL_KEY")
    assert (first["budget"]["tokens"], first["budget"]["cost_usd"]) == (1000, 2.5)
    assert (first["approve"], first["model_settings"]) == (["http_*"], {"max_tokens": 8000})

    changed = (
        await cli("brain", "set", "analyst", "--model", "google:gemini-3", "--budget-tokens", "0", "--json")
    ).json
    assert changed == first | {
        "models": ["google:gemini-3", "anthropic:claude-opus-5"],
        "budget": first["budget"] | {"tokens": None},
    }
    bare = (
        await cli(
            *("brain", "set", "analyst", "--fallback", "", "--base-url", "", "--key-env", "", "--approve", ""),
            *("--setting", "", "--json"),
        )
    ).json
    assert (bare["models"], bare["base_url"], bare["key_env"]) == (["google:gemini-3"], None, None)
    assert (bare["approve"], bare["model_settings"]) == ([], {})
    human = await cli("brain", "show", "analyst")
    assert "google:gemini-3" in human.out
    assert "2.5 USD" in human.out

    program = ("brain", "set", "analyst", "--brain", "process", "--command", "python3 'my agent.py'", "--env", "A=b c")
    ran = (await cli(*program, "--json")).json
    assert (ran["command"], ran["env"]) == (["python3", "my agent.py"], {"A": "b c"})


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("--model", "gpt-4o"), "PROVIDER:MODEL"),
        (("--fallback", "openai:x"), "--model"),
        (("--model", "openai:x", "--env", "nothing"), "KEY=VALUE"),
        (("--model", "openai:x", "--budget-usd", "-1"), "cost_usd"),
    ],
)
async def test_the_command_line_says_what_is_wrong(cli: Cli, words: tuple[str, ...], hint: str) -> None:
    done = await cli("brain", "set", "analyst", *words)
    assert done.code == 2, done.err
    assert hint in done.err


async def test_a_goal_without_a_playbook_is_the_brains(api: Api, cli: Cli) -> None:
    refused = await cli("run", "analyst", "make it so")
    assert refused.code == 2
    assert "tenure brain set analyst" in refused.err
    await cli("brain", "set", "analyst", "--model", "openai:gpt-5")
    checks = (
        "--check",
        "run: pytest -q",
        "--check",
        "sql:select 1",
        "--check",
        "http: http://x:80/a",
        "--check",
        "file: a",
    )
    started = await cli("run", "analyst", "make it so", *checks, "--input", "year=2014", "--json")
    assert started.code == 0, started.err
    (created,) = await api.runs.events(started.json["id"])
    assert created.data["settings"]["models"] == ["openai:gpt-5"]
    assert created.data["inputs"] == {"year": "2014"}
    kinds = [(check["kind"], check.get("script") or check.get("url")) for check in created.data["accept"]]
    assert kinds == [("run", "pytest -q"), ("sql", None), ("http", "http://x:80/a"), ("file", None)]
    for wrong in ("pytest", "maybe: x", "run:", "http: nowhere"):
        done = await cli("run", "analyst", "make it so", "--check", wrong)
        assert done.code == 2, wrong


# --- all of it together -----------------------------------------------------------------------------------------------------
def test_an_agent_with_a_model_reaches_a_goal_and_its_fork_thinks_alike(live: Live) -> None:
    agent = live.agent("thinker")
    with pytest.raises(NotFound):
        agent.brain()
    with pytest.raises(InvalidArgument):
        agent.run("a file")
    proposal = {
        "steps": [{"id": "make", "what": "Make it", "work": "Make it", "checks": [{"run": "grep -q 42 answer"}]}]
    }
    script = {
        "": [calls(Call("propose_plan", proposal))],
        "Make it": [
            calls(Call("finish", {"summary": "I am sure that it is there"})),
            calls(Call("shell", {"command": "echo 42 > answer"})),
            calls(Call("finish", {"summary": "now it is"})),
        ],
    }
    with ModelServer(script) as server:
        settings = wire.BrainRequest(models=["openai:scripted"], base_url=server.base_url)
        chosen = agent.set_brain(settings)
        run = agent.run("a file with the answer", checks=[wire.RunCheck(file="/home/agent/answer")], follow=True)
    assert run.state == wire.RunState.SUCCEEDED, run.info
    assert agent.exec(["cat", "answer"]).stdout == "42\n"
    assert "grep -q 42" in server.requests[1].first
    forked = agent.fork("alike")
    assert forked.brain() == chosen
    forked.delete()


# --- the document -----------------------------------------------------------------------------------------------------------
def test_the_document_says_what_the_code_does() -> None:
    text = (Path(__file__).parent.parent / "docs" / "brains.md").read_text()
    for provider, names in providers.KEY_ENV.items():
        assert f"`{provider}:MODEL`" in text
        assert all(f"`{name}`" in text for name in names)
    assert f"is silent for {brain.STALL_S:g} s, or has not come to its end after {brain.REQUEST_S:g} s" in text
    assert f"({BrainSettings().context_tokens_max:,} unless set)" in text
    options = set(re.findall(r"(--[a-z][a-z-]*)", text)) - {"--follow", "--check", "--preserve-env"}
    (shown,) = [found for line, found in reference.commands() if line == "tenure brain set"]
    assert options <= {option for parameter in shown.params for option in parameter.opts}
    assert {f"{kind}: " for kind in ("run", "sql", "file", "http")} <= set(re.findall(r"\| `([a-z]+: )", text))
