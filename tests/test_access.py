"""Nobody passes the API without being known, and every route asks the one decision point."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.dependencies.models import Dependant
from websockets.exceptions import InvalidStatus

from fixtures.api import PLAYBOOK, TOKENS, Api, error_of
from tenure.errors import Forbidden, SetupError, Unauthenticated
from tenure.identity.authorize import OFFICE_ACTIONS, Principal, PrincipalKind, Resource, authorize, is_allowed
from tenure.identity.tokens import OWNER, WORKER, Tokens, ensure_token
from tenure.server.access import ACTION_ATTRIBUTE
from tenure.server.app import ROUTERS, create_app
from tenure.server.gates import OFFICE_REQUESTS_MAX
from tenure.server.listeners import Listener, listen, serve_office_api
from tenure.server.services import Services
from tenure.settings import Settings

pytest_plugins = ("fixtures.server",)

OPEN_TO_ALL = {"/v1/health"}
"""Answers anybody, with less; see test_api.py."""


def all_routes() -> list[Any]:
    return [route for module in ROUTERS for route in module.router.routes]


def actions_of(dependant: Dependant) -> Iterator[str]:
    action = getattr(dependant.call, ACTION_ATTRIBUTE, None)
    if action is not None:
        yield action
    for inner in dependant.dependencies:
        yield from actions_of(inner)


@pytest.mark.parametrize("route", all_routes(), ids=lambda route: f"{route.name} {route.path}")
def test_every_route_asks_for_one_named_action(route: Any) -> None:
    actions = list(actions_of(route.dependant))
    if route.path in OPEN_TO_ALL:
        assert actions == []
    else:
        assert len(actions) == 1, f"{route.path} must have exactly one `requires(...)`"
        noun, _, verb = actions[0].partition(":")
        assert noun
        assert verb


def test_the_app_has_no_routes_but_those_of_the_routers(api_document: dict[str, Any]) -> None:
    known = {route.path.replace(":path}", "}") for route in all_routes() if hasattr(route, "methods")}
    assert set(api_document["paths"]) == known


def test_the_document_describes_every_route(api_document: dict[str, Any]) -> None:
    assert "Run" in api_document["components"]["schemas"]
    for path, methods in api_document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (method, path)
            assert operation["responses"], (method, path)


@pytest.fixture(scope="module")
def api_document() -> dict[str, Any]:
    names = (
        "offices",
        "runs",
        "inbox",
        "started_at",
        "gateway",
        "exports",
        "imports",
        "archiving",
        "signals",
        "brains",
        "databases",
        "buckets",
        "triggers",
        "access_keys",
        "loads",
        "pipelines",
        "connections",
    )
    none: dict[str, Any] = dict.fromkeys(names)
    services = Services(Settings(), **none)
    return create_app(services, TOKENS).openapi()


# --- who asks ------------------------------------------------------------------------------------------------------------
async def test_without_a_token_nothing_but_the_public_addresses_answers(api: Api) -> None:
    async with api.client(token=None) as stranger:
        for path in ("/v1/agents", "/v1/agents/analyst", "/v1/runs", "/v1/inbox", "/nothing"):
            answer = await stranger.get(path)
            assert answer.status_code == 401
            assert error_of(answer)["code"] == "unauthenticated"
            assert answer.headers["www-authenticate"] == "Bearer"
        assert (await stranger.get("/openapi.json")).status_code == 200


@pytest.mark.parametrize(
    "header", ["Bearer wrong-token-of-somebody-else", "Bearer", "Basic b3duZXI6dG9rZW4=", TOKENS.owner, "Bearer é"]
)
async def test_a_wrong_token_is_refused_with_a_hint(api: Api, header: str) -> None:
    async with api.client(token=None) as stranger:
        for path in ("/v1/agents", "/v1/health"):
            answer = await stranger.get(path, headers={"Authorization": header.encode()})
            assert answer.status_code == 401
            assert "TENURE_HOME/token" in str(error_of(answer)["hint"])


async def test_a_wrong_token_is_refused_before_the_body_is_read(api: Api) -> None:
    async with api.client(token="wrong-token-of-somebody-else") as stranger:
        answer = await stranger.post("/v1/agents", content=b"{" * 1000, headers={"content-type": "application/json"})
    assert answer.status_code == 401


async def test_websockets_need_a_token_too(api: Api) -> None:
    for path in ("/v1/agents/analyst/attach", "/v1/agents/analyst/ssh"):
        with pytest.raises(InvalidStatus) as refused:
            async with api.connect(path, token=None):
                pass
        assert refused.value.response.status_code == 401
        assert b"unauthenticated" in refused.value.response.body


def test_tokens_stand_for_owner_and_worker() -> None:
    assert TOKENS.principal(f"Bearer {TOKENS.owner}") == OWNER
    assert TOKENS.principal(f"bearer {TOKENS.worker}") == WORKER
    with pytest.raises(Unauthenticated):
        TOKENS.principal(f"Bearer {TOKENS.owner[:-1]}")


def test_a_token_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    made = Tokens.ensure(settings)
    assert Tokens.ensure(settings) == made
    assert len(made.owner) >= 40
    assert made.owner != made.worker
    assert stat.S_IMODE(settings.token_file.stat().st_mode) == 0o600
    settings.token_file.chmod(0o644)
    ensure_token(settings.token_file)
    assert stat.S_IMODE(settings.token_file.stat().st_mode) == 0o600


def test_an_emptied_token_file_lets_nobody_in(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("\n")
    with pytest.raises(SetupError):
        ensure_token(tmp_path / "token")


async def test_the_api_socket_is_its_owners(api: Api) -> None:
    assert stat.S_IMODE(api.socket.stat().st_mode) == 0o600


# --- TCP -------------------------------------------------------------------------------------------------------------------
@pytest.fixture
async def tcp(api: Api) -> Any:
    """The app on a loopback port that its settings name."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    port = sock.getsockname()[1]
    settings = Settings(home=api.directory, port=port)
    services = replace(api.app.state.services, settings=settings)
    listener = await listen(create_app(services, TOKENS), sock)
    yield port
    await listener.close(grace_s=0.5)


async def test_over_tcp_only_our_own_names_are_answered(tcp: int) -> None:
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {TOKENS.owner}"}) as client:
        url = f"http://127.0.0.1:{tcp}/v1/agents"
        for host in (f"127.0.0.1:{tcp}", f"localhost:{tcp}", f"LOCALHOST:{tcp}", f"[::1]:{tcp}"):
            assert (await client.get(url, headers={"Host": host})).status_code == 200
        for host in ("evil.example", f"evil.example:{tcp}", "127.0.0.1", f"127.0.0.1:{tcp + 1}", ""):
            answer = await client.get(url, headers={"Host": host})
            assert answer.status_code == 403
            assert error_of(answer)["code"] == "forbidden"


async def test_no_origin_is_ever_allowed(tcp: int) -> None:
    async with httpx.AsyncClient() as browser:
        answer = await browser.options(
            f"http://127.0.0.1:{tcp}/v1/agents",
            headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"},
        )
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert answer.status_code == 401


# --- the door says who it is -------------------------------------------------------------------------------------------------
@pytest.fixture
async def door(api: Api) -> Any:
    """The socket of `analyst`'s office; there is another agent, `other`."""
    async with api.client() as client:
        (await client.post("/v1/agents", json={"name": "other"})).raise_for_status()
        for agent in ("analyst", "other"):
            body = {"agent": agent, "goal": "g", "playbook": PLAYBOOK}
            (await client.post("/v1/runs", json=body)).raise_for_status()
        for database in ("sales", "secret"):
            (await client.post("/v1/databases", json={"name": database})).raise_for_status()
            agent = "analyst" if database == "sales" else "other"
            grant = await client.put(f"/v1/databases/{database}/grants/{agent}", json={"level": "read"})
            grant.raise_for_status()
    path = api.directory / "office.sock"
    listener: Listener = await serve_office_api(api.app, Principal(PrincipalKind.OFFICE, "analyst"), path)
    yield path
    await listener.close(grace_s=0.5)


async def test_an_office_sees_only_itself(api: Api, door: Path) -> None:
    async with api.client(token=None, socket=door) as office:
        agents = (await office.get("/v1/agents")).json()["agents"]
        runs = (await office.get("/v1/runs")).json()["runs"]
        assert [one["name"] for one in agents] == ["analyst"]
        assert [one["agent"] for one in runs] == ["analyst"]
        assert (await office.get("/v1/runs", params={"agent": "other"})).json() == {"runs": []}
        assert (await office.get("/v1/agents/analyst")).status_code == 200
        assert (await office.get(f"/v1/runs/{runs[0]['id']}/events")).status_code == 200
        assert (await office.get("/v1/health")).json()["pid"] is None


async def test_a_program_tells_of_itself_under_keys_of_its_own_office_only(api: Api, door: Path) -> None:
    async with api.client() as worker, api.client(token=None, socket=door) as office:
        for agent in ("analyst", "other"):
            path = f"/v1/agents/{agent}/work/of-{agent}"
            assert (await worker.put(path, json={"checkpoint": agent})).status_code == 204
        assert (await office.put("/work/of-analyst/checkpoint", json=[1])).status_code == 204
        assert (await office.get("/work/of-analyst/checkpoint")).json() == [1]
        assert (await office.post("/work/of-analyst/heartbeat")).status_code == 204
        for key in ("of-other", "of-nobody"):
            assert (await office.put(f"/work/{key}/checkpoint", json=[1])).status_code == 404
            assert (await office.get(f"/work/{key}/checkpoint")).status_code == 404
            assert (await office.post(f"/work/{key}/ask", json={"text": "?"})).status_code == 404
        assert (await office.put("/v1/agents/analyst/work/new", json={})).status_code == 403
        assert (await office.get("/v1/agents/other/work/of-other")).status_code == 403
        found = (await worker.get("/v1/agents/analyst/work/of-analyst")).json()
        assert (found["checkpoint"], found["heartbeats"], found["beats"]) == ([1], 1, 2)
        assert (await worker.get("/v1/agents/other/work/of-other")).json()["checkpoint"] == "other"
        assert (await worker.post("/work/of-analyst/heartbeat")).status_code == 404, "who is no office has no programs"


async def test_an_office_uses_the_shared_databases_that_were_granted_to_it(api: Api, door: Path) -> None:
    async with api.client(token=None, socket=door) as office:
        assert [one["name"] for one in (await office.get("/v1/databases")).json()["databases"]] == ["sales"]
        assert (await office.get("/v1/databases/sales")).status_code == 200
        answer = await office.post("/v1/databases/sales/sql", json={"statement": "select 7"})
        assert answer.json()["rows"] == [[7]]


async def test_an_office_may_use_its_own_data_and_speak(api: Api, door: Path) -> None:
    async with api.client(token=None, socket=door) as office:
        put = await office.put("/v1/agents/analyst/objects/reports/a", content=b"x")
        assert put.status_code == 200
        said = await office.post("/v1/inbox", json={"subject": "hello"})
        assert said.json()["agent"] == "analyst"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/agents/other", None),
        ("DELETE", "/v1/agents/analyst", None),
        ("DELETE", "/v1/agents/other", None),
        ("POST", "/v1/agents", {"name": "more"}),
        ("POST", "/v1/agents/other/exec", {"argv": ["echo"]}),
        ("POST", "/v1/agents/analyst/exec", {"argv": ["echo"], "user": "root"}),
        ("POST", "/v1/agents/analyst/sleep", None),
        ("POST", "/v1/agents/analyst/snapshots", None),
        ("GET", "/v1/agents/analyst/snapshots", None),
        ("POST", "/v1/agents/analyst/snapshots/any/restore", None),
        ("GET", "/v1/agents/other/snapshots/any/diff", None),
        ("DELETE", "/v1/agents/analyst/snapshots/any", None),
        ("POST", "/v1/agents/analyst/fork", {"new": "more"}),
        ("POST", "/v1/agents/other/sql", {"statement": "select 1"}),
        ("GET", "/v1/agents/other/objects", None),
        ("GET", "/v1/agents/other/objects/reports/a", None),
        ("PUT", "/v1/agents/other/objects/reports/a", None),
        ("POST", "/v1/runs", {"agent": "analyst", "goal": "g", "playbook": PLAYBOOK}),
        ("GET", "/v1/inbox", None),
        ("POST", "/v1/schedules", {"agent": "analyst", "name": "s", "every_s": 600, "what": {"goal": "g"}}),
        ("GET", "/v1/schedules", None),
        ("POST", "/v1/webhooks", {"agent": "analyst", "name": "w"}),
        ("GET", "/v1/webhooks", None),
        ("GET", "/v1/questions", None),
        ("GET", "/v1/costs?agent=analyst", None),
        ("POST", "/v1/inbox", {"subject": "s", "agent": "other"}),
        ("GET", "/v1/agents/other/file?path=/etc/passwd", None),
        ("GET", "/v1/agents/other/logs", None),
        ("GET", "/v1/agents/analyst/history", None),
        ("POST", "/v1/agents/analyst/rebuild", None),
        ("POST", "/v1/databases", {"name": "more"}),
        ("GET", "/v1/databases/secret", None),
        ("DELETE", "/v1/databases/secret", None),
        ("POST", "/v1/databases/secret/sql", {"statement": "select 1"}),
        ("POST", "/v1/databases/sales/sql?agent=other", {"statement": "select 1"}),
        ("GET", "/v1/databases/sales/grants", None),
        ("PUT", "/v1/databases/sales/grants/analyst", {"level": "write"}),
        ("DELETE", "/v1/databases/sales/grants/other", None),
        ("PUT", "/v1/databases/sales/limits", {"connections": 50}),
        ("POST", "/v1/databases/sales/sleep", None),
        ("POST", "/v1/databases/sales/snapshots", None),
        ("POST", "/v1/databases/sales/snapshots/any/restore", None),
        ("POST", "/v1/databases/sales/fork", {"new": "mine"}),
        ("PUT", "/v1/databases/sales/backup", {"to": "/tmp/x"}),
        ("POST", "/v1/databases/sales/restore", {"to": "2026-01-01T00:00:00Z", "new": "mine"}),
    ],
)
async def test_an_office_may_not_touch_others_nor_its_own_limits(
    api: Api, door: Path, method: str, path: str, body: Any
) -> None:
    async with api.client(token=None, socket=door) as office:
        answer = await office.request(method, path, json=body)
    assert answer.status_code == 403
    assert error_of(answer)["code"] == "forbidden"


async def test_an_office_may_not_see_the_run_of_another(api: Api, door: Path, owner: httpx.AsyncClient) -> None:
    run_id = (await owner.get("/v1/runs", params={"agent": "other"})).json()["runs"][0]["id"]
    async with api.client(token=None, socket=door) as office:
        for path in (f"/v1/runs/{run_id}", f"/v1/runs/{run_id}/events", f"/v1/runs/{run_id}/events/stream"):
            assert (await office.get(path)).status_code == 403


async def test_an_office_may_not_answer_what_it_asks(api: Api, door: Path, owner: httpx.AsyncClient) -> None:
    run_id = (await owner.get("/v1/runs", params={"agent": "analyst"})).json()["runs"][0]["id"]
    question = api.runs.ask(run_id, "May it?", approval=True)
    path = f"/v1/questions/{question.id}/answer"
    async with api.client(token=None, socket=door) as office:
        assert (await office.post(path, json={"answer": "yes"})).status_code == 403
    assert (await owner.post(path, json={"answer": "yes"})).status_code == 200
    (answered,) = [event for event in await api.runs.events(run_id) if event.kind == "question_answered"]
    assert answered.data["by"] == "owner"


async def test_a_stolen_token_does_not_help_behind_a_door(api: Api, door: Path) -> None:
    async with api.client(token=TOKENS.owner, socket=door) as office:
        assert (await office.get("/v1/agents/other")).status_code == 403
        answer = await office.get("/v1/agents", headers={"X-Tenure-Principal": "owner", "Host": "localhost"})
        assert [one["name"] for one in answer.json()["agents"]] == ["analyst"]


async def test_a_crowd_behind_one_door_leaves_the_owner_room(api: Api, door: Path, owner: httpx.AsyncClient) -> None:
    run_id = (await owner.get("/v1/runs", params={"agent": "analyst"})).json()["runs"][0]["id"]
    path = f"/v1/runs/{run_id}/events/stream"
    limits = httpx.Limits(max_connections=None)
    transport = httpx.AsyncHTTPTransport(uds=str(door), limits=limits)
    async with httpx.AsyncClient(transport=transport, base_url="http://t", timeout=20) as office:
        streams = [
            await office.send(office.build_request("GET", path), stream=True) for _ in range(OFFICE_REQUESTS_MAX)
        ]
        refused = await office.get("/v1/agents")
        assert refused.status_code == 503
        assert error_of(refused)["retryable"] is True
        assert (await owner.get("/v1/agents")).status_code == 200
        for stream in streams:
            await stream.aclose()


# --- the decision itself ---------------------------------------------------------------------------------------------------
def test_the_owner_may_do_all_and_an_office_only_listed_things_of_its_own() -> None:
    office = Principal(PrincipalKind.OFFICE, "analyst")
    for action in OFFICE_ACTIONS:
        assert is_allowed(office, action, Resource("x", owner="analyst"))
        assert not is_allowed(office, action, Resource("x", owner="other"))
        assert not is_allowed(office, action, Resource("x"))
    assert not is_allowed(office, "agent:delete", Resource("agent", owner="analyst"))
    assert not is_allowed(Principal(PrincipalKind.OFFICE), "agent:read", Resource("agent"))
    authorize(OWNER, "anything:else", Resource("x", owner="other"))
    with pytest.raises(Forbidden, match="office:analyst may not agent:delete on agent/other"):
        authorize(office, "agent:delete", Resource("agent", owner="other"))


def test_the_office_socket_is_open_to_the_office_users(short_dir: Path) -> None:
    from tenure.server.listeners import bind_unix

    old_mask = os.umask(0o077)
    try:
        with bind_unix(short_dir / "o.sock", 0o666):
            assert stat.S_IMODE((short_dir / "o.sock").stat().st_mode) == 0o666
    finally:
        os.umask(old_mask)
