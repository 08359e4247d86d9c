"""Whatever is sent to the API, the answer is an error that says what was wrong and what to try; nothing breaks."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import tempfile
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from websockets.exceptions import InvalidStatus

from fixtures.api import PLAYBOOK, TOKENS, Api, error_of
from tenure import wire
from tenure.server import gates
from tenure.server.api.runs import PLAYBOOK_BYTES_MAX
from tenure.server.app import create_app
from tenure.server.checks import ARG_BYTES_MAX
from tenure.server.gateway.passes import Passes
from tenure.server.services import Gateway, Services
from tenure.settings import Settings
from tenure.testing.fake_access_keys import access_keys_of
from tenure.testing.fake_brains import FakeBrains
from tenure.testing.fake_buckets import FakeBuckets
from tenure.testing.fake_connections import fake_connections
from tenure.testing.fake_databases import FakeDatabases
from tenure.testing.fake_exports import FakeArchiving, exports_of
from tenure.testing.fake_ingestion import FakeLoads, FakePipelines
from tenure.testing.fake_offices import FakeOffices
from tenure.testing.fake_runs import FakeInbox, FakeRuns
from tenure.testing.fake_signals import FileSignals
from tenure.testing.fake_ssh_keys import FakeSshKeys
from tenure.testing.fake_triggers import triggers_of

pytest_plugins = ("fixtures.server",)

AGENT = "/v1/agents/analyst"
EXEC = f"{AGENT}/exec"
KIB = 1024


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/v1/agents/nobody", None, 404, "not_found"),
        ("POST", "/v1/agents/nobody/exec", {"argv": ["echo"]}, 404, "not_found"),
        ("POST", "/v1/runs", {"agent": "nobody", "goal": "g", "playbook": PLAYBOOK}, 404, "not_found"),
        ("GET", "/v1/runs/run_000000000000", None, 404, "not_found"),
        ("GET", "/v1/runs/%00", None, 404, "not_found"),
        ("POST", "/v1/inbox/none/read", None, 404, "not_found"),
        ("GET", f"{AGENT}/objects/reports/none", None, 404, "not_found"),
        ("GET", "/v1/nothing", None, 404, "not_found"),
        ("GET", "/v1/agents/", None, 404, "not_found"),
        ("PATCH", "/v1/agents", None, 405, "usage"),
        ("POST", "/v1/agents", {"name": "analyst"}, 409, "already_exists"),
        ("POST", "/v1/agents", {"name": "Ünïcode"}, 422, "invalid_name"),
        ("POST", "/v1/agents", {"name": "a" * 41}, 422, "invalid_name"),
        ("POST", "/v1/agents", {"name": "../../etc"}, 422, "invalid_name"),
        ("GET", "/v1/agents/Bad_Name", None, 422, "invalid_name"),
        ("GET", "/v1/agents/..%2f..%2fetc", None, 404, "not_found"),
        ("POST", "/v1/agents", {"name": "new", "cpus": 0}, 422, "invalid_argument"),
        ("POST", "/v1/agents", {"name": "new", "cpus": "NaN"}, 422, "invalid_argument"),
        ("POST", "/v1/agents", {"name": "new", "memory_mb": 10**9}, 422, "invalid_argument"),
        ("POST", "/v1/agents", {"name": "new", "egress": ["no domain"]}, 422, "invalid_argument"),
        ("POST", "/v1/agents", {"name": "new", "colour": "red"}, 422, "invalid_argument"),
        ("POST", "/v1/agents", {}, 422, "invalid_argument"),
        ("POST", "/v1/agents", [], 422, "invalid_argument"),
        ("POST", f"{AGENT}/snapshots", {"name": "Bad_Name"}, 422, "invalid_name"),
        ("POST", f"{AGENT}/snapshots", {"nam": "x"}, 422, "invalid_argument"),
        ("POST", "/v1/agents/nobody/snapshots", None, 404, "not_found"),
        ("POST", f"{AGENT}/snapshots/none/restore", None, 404, "not_found"),
        ("DELETE", f"{AGENT}/snapshots/%00", None, 404, "not_found"),
        ("GET", f"{AGENT}/snapshots/..%2f..%2fetc/diff", None, 404, "not_found"),
        ("POST", f"{AGENT}/fork", {"new": "Bad_Name"}, 422, "invalid_name"),
        ("POST", f"{AGENT}/fork", {"new": "analyst"}, 409, "already_exists"),
        ("POST", f"{AGENT}/fork", {"new": "b2", "snapshot": "none"}, 404, "not_found"),
        ("POST", f"{AGENT}/fork", {}, 422, "invalid_argument"),
        ("POST", EXEC, {}, 422, "invalid_argument"),
        ("POST", EXEC, {"argv": ["echo"], "script": "echo"}, 422, "invalid_argument"),
        ("POST", EXEC, {"argv": []}, 422, "invalid_argument"),
        ("POST", EXEC, {"argv": ["echo", "a\0b"]}, 422, "invalid_argument"),
        ("POST", EXEC, {"argv": ["echo", "\ud800"]}, 422, "invalid_argument"),
        ("POST", EXEC, {"argv": ["echo", "x" * ARG_BYTES_MAX]}, 413, "too_large"),
        ("POST", EXEC, {"argv": ["echo"], "stdin_b64": "not base64!"}, 422, "invalid_argument"),
        ("POST", EXEC, {"argv": ["echo"], "timeout_s": -1}, 422, "invalid_argument"),
        ("POST", EXEC, {"argv": ["echo"], "user": "root; rm -rf /"}, 422, "invalid_argument"),
        ("POST", EXEC, {"argv": ["echo"], "user": "somebody"}, 422, "invalid_argument"),
        ("POST", EXEC, {"argv": ["echo"], "env": {"A=B": "c"}}, 422, "invalid_argument"),
        ("POST", EXEC, {"argv": ["echo"], "cwd": "x" * 5000}, 422, "invalid_argument"),
        ("PUT", f"{AGENT}/commands/%2e%2e", {"script": "true"}, 422, "invalid_argument"),
        ("GET", f"{AGENT}/commands/k?wait_s=31", None, 422, "invalid_argument"),
        ("GET", f"{AGENT}/commands/k?wait_s=nan", None, 422, "invalid_argument"),
        ("GET", f"{AGENT}/file", None, 422, "invalid_argument"),
        ("GET", f"{AGENT}/file?path=", None, 422, "invalid_argument"),
        ("GET", f"{AGENT}/file?path=a%00b", None, 422, "invalid_argument"),
        ("GET", f"{AGENT}/file?path={'x' * 4097}", None, 422, "invalid_argument"),
        ("GET", f"{AGENT}/file?path=.", None, 422, "invalid_argument"),
        ("PUT", f"{AGENT}/archive?path=not-there", None, 404, "not_found"),
        ("POST", f"{AGENT}/sql", {"statement": "selekt 1"}, 422, "database"),
        ("POST", f"{AGENT}/sql", {"statement": "select 1\0"}, 422, "invalid_argument"),
        ("POST", f"{AGENT}/sql", {"statement": ""}, 422, "invalid_argument"),
        ("PUT", f"{AGENT}/objects/Bad_Bucket/name", None, 422, "invalid_name"),
        ("PUT", f"{AGENT}/objects/bucket/%2e%2e/x", None, 422, "invalid_argument"),
        ("POST", "/v1/runs", {"agent": "analyst", "goal": "", "playbook": PLAYBOOK}, 422, "invalid_argument"),
        ("POST", "/v1/runs", {"agent": "analyst", "goal": "g", "playbook": "steps: ["}, 422, "invalid_playbook"),
        ("POST", "/v1/runs", {"agent": "analyst", "goal": "g", "playbook": "a\0b"}, 422, "invalid_argument"),
        (
            "POST",
            "/v1/runs",
            {"agent": "analyst", "goal": "g", "playbook": PLAYBOOK, "inputs": {"a": ["\0"]}},
            422,
            "invalid_argument",
        ),
        ("GET", "/v1/runs?state=sleeping", None, 422, "invalid_argument"),
        ("GET", "/v1/runs?agent=Bad_Name", None, 422, "invalid_name"),
        ("POST", "/v1/questions/none/answer", {"answer": "yes"}, 404, "not_found"),
        ("POST", "/v1/questions/..%2f..%2fetc/answer", {"answer": "yes"}, 404, "not_found"),
        ("POST", "/v1/questions/run_000000000000.one:q0/answer", {"answer": "yes"}, 404, "not_found"),
        ("GET", "/v1/questions?agent=Bad_Name", None, 422, "invalid_name"),
        ("GET", "/v1/costs?by=colour", None, 422, "invalid_argument"),
        ("POST", "/v1/inbox", {"subject": ""}, 422, "invalid_argument"),
        ("POST", "/v1/inbox", {"subject": "s", "key": "\0"}, 422, "invalid_argument"),
    ],
)
async def test_each_mistake_has_its_error(
    owner: httpx.AsyncClient, method: str, path: str, body: Any, status: int, code: str
) -> None:
    content = json.dumps(body).encode() if body is not None else None
    answer = await owner.request(method, path, content=content, headers={"content-type": "application/json"})
    error = error_of(answer)
    assert (answer.status_code, error["code"]) == (status, code)
    assert answer.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"NaN", b"[" * 100_000, b'{"name": "a"} trailing', b""])
async def test_a_body_that_is_no_json_is_refused(owner: httpx.AsyncClient, content: bytes) -> None:
    answer = await owner.post("/v1/agents", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert error_of(answer)["code"] == "invalid_argument"


async def test_the_error_names_each_wrong_field_and_repeats_no_value(owner: httpx.AsyncClient) -> None:
    body = {"name": "new", "cpus": -1, "memory_mb": "secret-value"}
    error = error_of(await owner.post("/v1/agents", json=body))
    assert {field["field"] for field in error["details"]["fields"]} == {"cpus", "memory_mb"}  # type: ignore[index]
    assert "secret-value" not in json.dumps(error)


async def test_a_playbooks_error_names_file_and_line(owner: httpx.AsyncClient) -> None:
    body = {"agent": "analyst", "goal": "g", "playbook": "steps:\n  - id: [", "playbook_name": "weather.yaml"}
    assert "weather.yaml:" in str(error_of(await owner.post("/v1/runs", json=body))["message"])


# --- too large ---------------------------------------------------------------------------------------------------------------
async def test_bodies_have_a_limit_whether_or_not_they_say_their_length(owner: httpx.AsyncClient) -> None:
    async def pieces() -> Any:
        for _ in range(gates.BODY_BYTES_MAX // KIB + 2):
            yield b" " * KIB

    headers = {"content-type": "application/json"}
    for content in (b" " * (gates.BODY_BYTES_MAX + 1), pieces()):
        answer = await owner.post("/v1/agents", content=content, headers=headers)
        assert answer.status_code == 413
        error = error_of(answer)
        assert error["code"] == "too_large"
        assert error["hint"]


async def test_a_playbook_has_a_limit(owner: httpx.AsyncClient) -> None:
    playbook = PLAYBOOK + "#" * PLAYBOOK_BYTES_MAX
    answer = await owner.post("/v1/runs", json={"agent": "analyst", "goal": "g", "playbook": playbook})
    assert answer.status_code == 413
    assert error_of(answer)["code"] == "too_large"


async def test_exec_takes_stdin_up_to_its_limit(owner: httpx.AsyncClient) -> None:
    for size, status in ((wire.STDIN_BYTES_MAX, 200), (wire.STDIN_BYTES_MAX + 1, 413)):
        body = {"argv": ["exit", "0"], "stdin_b64": base64.b64encode(b"x" * size).decode()}
        assert (await owner.post(EXEC, json=body)).status_code == status


async def test_an_upload_may_be_larger_than_any_json_body(owner: httpx.AsyncClient) -> None:
    size = 4 * gates.BODY_BYTES_MAX
    put = await owner.put(f"{AGENT}/objects/reports/large", content=b"x" * size)
    assert put.json()["size_bytes"] == size


# --- broken off --------------------------------------------------------------------------------------------------------------
async def test_an_upload_that_breaks_off_stores_nothing(api: Api, owner: httpx.AsyncClient) -> None:
    reader, writer = await asyncio.open_unix_connection(str(api.socket))
    head = f"PUT {AGENT}/objects/reports/half HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {TOKENS.owner}\r\n"
    writer.write(head.encode() + b"Content-Length: 1000\r\n\r\nonly this")
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.close()
    await reader.read()
    await asyncio.sleep(0.1)
    assert (await owner.get(f"{AGENT}/objects/reports/half")).status_code == 404


async def test_a_download_that_fails_midway_does_not_look_complete(api: Api, owner: httpx.AsyncClient) -> None:
    directory = api.directory / "files" / "tree"
    directory.mkdir()
    (directory / "a").write_bytes(b"x" * 10_000_000)
    async with owner.stream("GET", f"{AGENT}/archive", params={"path": "tree"}) as stream:
        chunks = stream.aiter_bytes()
        await anext(chunks)
        await api.offices.sessions[-1].close()
        with pytest.raises(httpx.RemoteProtocolError):
            await asyncio.wait_for(_exhaust(chunks), timeout=20)


async def _exhaust(chunks: AsyncIterator[bytes]) -> None:
    async for _ in chunks:
        pass


async def test_what_breaks_inside_is_told_by_number_and_not_by_stack(
    api: Api, owner: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(_: str) -> None:
        raise RuntimeError("password=hunter2")

    monkeypatch.setattr(api.offices, "get", broken)
    answer = await owner.get(AGENT)
    error = error_of(answer)
    assert (answer.status_code, error["code"]) == (500, "internal")
    assert "hunter2" not in answer.text
    request_id = error["details"]["request_id"]  # type: ignore[index]
    assert request_id == answer.headers["x-request-id"]
    assert any(request_id in r.getMessage() and r.exc_info for r in caplog.records)


# --- WebSockets --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/agents/nobody/attach", 404, b"not_found"),
        ("/v1/agents/Bad_Name/attach", 422, b"invalid_name"),
        ("/v1/agents/nobody/ssh", 404, b"not_found"),
        ("/v1/nothing", 404, b"not_found"),
    ],
)
async def test_a_websocket_to_nowhere_is_refused_with_an_error(api: Api, path: str, status: int, code: bytes) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with api.connect(path):
            pass
    assert refused.value.response.status_code == status
    assert code in refused.value.response.body


@pytest.mark.parametrize(
    "frames",
    [
        ["not json"],
        ["{}"],
        ["[]"],
        [b"binary"],
        [json.dumps({"argv": ["echo"], "login": True})],
        [json.dumps({"argv": ["echo", "a\0b"]})],
        [json.dumps({"argv": ["cat"], "tty": {"rows": 0, "cols": 80}})],
        [json.dumps({"argv": ["cat"]}), b"\x09what"],
        [json.dumps({"argv": ["cat"]}), b""],
        [json.dumps({"argv": ["cat"]}), "text"],
        [json.dumps({"argv": ["cat"]}), b"\x03not a size"],
        [json.dumps({"argv": ["cat"]}), b"\x0599"],
        [json.dumps({"argv": ["echo"], "user": "somebody"})],
    ],
)
async def test_bad_frames_end_a_session_with_an_error(api: Api, frames: list[str | bytes]) -> None:
    async with api.connect(f"{AGENT}/attach") as socket:
        for frame in frames:
            await socket.send(frame)
        received = [frame async for frame in socket]
    assert json.loads(received[-1])["error"]["code"] == "invalid_argument"
    assert all(session.closed for session in api.offices.sessions)


async def test_a_command_that_does_not_exist_exits_127_with_words(api: Api) -> None:
    async with api.connect(f"{AGENT}/attach") as socket:
        await socket.send(json.dumps({"argv": ["no-such-program"]}))
        frames = [frame async for frame in socket]
    assert frames == [b"\x02no-such-program: command not found\n", '{"exit_code": 127}']


# --- anything at all ---------------------------------------------------------------------------------------------------------
class Target:
    """The app with one agent, called in process: thousands of requests in seconds. Nothing that it gets is executed."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        gateway = Gateway(FakeSshKeys(), Passes(TOKENS.owner))
        offices = FakeOffices()
        exports = exports_of(offices)
        self.told = tempfile.TemporaryDirectory()
        services = Services(
            Settings(home=Path("/nonexistent")),
            offices,
            FakeRuns(),
            FakeInbox(),
            datetime.now(UTC),
            gateway,
            exports,
            exports,
            FakeArchiving(offices),
            FileSignals(Path(self.told.name)),
            FakeBrains(),
            FakeDatabases(),
            FakeBuckets(offices),
            triggers_of(FakeRuns(), FakeBrains()),
            access_keys_of(offices),
            FakeLoads(offices),
            FakePipelines(offices),
            connections=fake_connections(Path(self.told.name)),
        )
        self.app = create_app(services, TOKENS)
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, client=None),  # type: ignore[arg-type]
            base_url="http://tenure",
            headers={"Authorization": f"Bearer {TOKENS.owner}", "Host": "127.0.0.1:7800"},
        )
        self.operations = [
            (method.upper(), path, operation)
            for path, methods in self.app.openapi()["paths"].items()
            for method, operation in methods.items()
        ]

    def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def bounded() -> httpx.Response:
            async with asyncio.timeout(20):
                return await self.client.request(method, path, **options)

        return self.runner.run(bounded())

    def ensure_agent(self) -> None:
        """The agent is there, whatever an earlier request did."""
        assert self.send("POST", "/v1/agents", json={"name": "analyst"}).status_code in (201, 409)


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    made = Target()
    yield made
    made.runner.run(made.client.aclose())
    made.runner.close()


texts = st.text(max_size=50)
odd = st.sampled_from(
    ["analyst", "", "\0", "..", "%00", "a" * 300, "-1", "1e999", "true", "null", "\ud800", "🦀", "run_1"]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts | odd
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)
fields = st.sampled_from(
    sorted({name for model in vars(wire).values() for name in getattr(model, "model_fields", {})} | {"name"})
)
bodies = st.dictionaries(fields, values, max_size=6) | values
steps = st.text(max_size=20).filter(lambda text: text not in ("", ".", "..")) | odd.filter(bool)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@example(data=None).via("no data: the fixed request below only")
def test_no_request_breaks_the_server(target: Target, data: Any) -> None:
    if data is None:
        assert target.send("GET", "/v1/agents").status_code == 200
        return
    target.ensure_agent()
    method, path, operation = data.draw(st.sampled_from(target.operations))
    path = re.sub(r"\{name\}", lambda _: data.draw(st.just("analyst") | steps), path)
    path = re.sub(r"\{\w+\}", lambda _: data.draw(steps), path)
    path = "/".join(quote(part.encode("utf-8", "surrogatepass"), safe="") for part in path.split("/"))
    known = [one["name"] for one in operation.get("parameters", []) if one["in"] == "query"]
    query = {name: data.draw(texts | odd) for name in known if data.draw(st.booleans())}
    encoded = "&".join(f"{name}={quote(value.encode('utf-8', 'surrogatepass'))}" for name, value in query.items())
    body = json.dumps(data.draw(bodies)).encode() if "requestBody" in operation else None
    answer = target.send(
        method, f"{path}?{encoded}", content=body, headers={"content-type": "application/json"} if body else {}
    )
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        error_of(answer)


@settings(max_examples=200, deadline=None)
@given(
    argv=st.lists(texts | odd, max_size=4),
    env=st.dictionaries(texts, texts, max_size=3),
    cwd=st.none() | texts | odd,
    user=st.just("agent") | texts,
)
def test_no_command_breaks_the_server(target: Target, argv: list[str], env: Any, cwd: Any, user: str) -> None:
    target.ensure_agent()
    body = json.dumps({"argv": argv, "env": env, "cwd": cwd, "user": user}).encode()
    answer = target.send("POST", EXEC, content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 413, 422)
