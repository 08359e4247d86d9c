"""MCP at the office's door: the same tools as brains have, for programs of that office alone, whatever they send."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from fixtures.api import TOKENS, Api, error_of, eventually
from fixtures.live import Live
from tenure.brains.tools import OfficeTools
from tenure.errors import SandboxError
from tenure.identity.authorize import Principal, PrincipalKind
from tenure.server.gates import BODY_BYTES_MAX
from tenure.server.listeners import serve_office_api
from tenure.server.mcp_server import CALLS_MAX, KEY_META
from tenure.testing.fake_offices import FakeObject
from tenure.work.thoughts import Purpose

pytest_plugins = ("fixtures.server",)

URL = "http://api:8700/mcp"
HEADERS = {"content-type": "application/json", "accept": "application/json, text/event-stream"}


@pytest.fixture
async def door(api: Api, short_dir: Path) -> AsyncIterator[Path]:
    """The office `analyst`'s own socket."""
    path = short_dir / "office.sock"
    listener = await serve_office_api(api.app, Principal(PrincipalKind.OFFICE, "analyst"), path)
    yield path
    await listener.close(grace_s=0.2)


@asynccontextmanager
async def connected(door: Path) -> AsyncIterator[Client]:
    """A real client of MCP, at an office's socket."""
    http = httpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport(uds=str(door)), timeout=60)
    async with http, Client(streamable_http_client(URL, http_client=http)) as client:
        yield client


async def say(client: Client, tool: str, key: str | None = None, **arguments: Any) -> tuple[bool, str]:
    """(whether it worked, what it said)."""
    meta: Any = None if key is None else {KEY_META: key}
    result = await client.call_tool(tool, arguments, meta=meta)
    return not result.is_error, "\n".join(getattr(one, "text", "") for one in result.content)


def request(method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params or {}}


def call(tool: str, arguments: Any) -> dict[str, Any]:
    return request("tools/call", {"name": tool, "arguments": arguments})


def answered(response: httpx.Response) -> dict[str, Any]:
    """The JSON-RPC message in an answer, be it plain or a stream of one event."""
    text = response.text
    if response.headers["content-type"].startswith("text/event-stream"):
        text = next(line[6:] for line in text.splitlines() if line.startswith("data: {"))
    return json.loads(text)


async def test_the_tools_are_those_of_the_catalogue(door: Path) -> None:
    async with connected(door) as client:
        listed = {tool.name: tool for tool in (await client.list_tools()).tools}
    specs = {spec.name: spec for spec in OfficeTools().specs(Purpose.WORK)}
    assert listed.keys() == specs.keys()
    for name, spec in specs.items():
        assert listed[name].input_schema == spec.parameters
        assert listed[name].description == spec.description
        assert listed[name].annotations is not None
        assert listed[name].annotations.read_only_hint is OfficeTools().reads(name)


async def test_a_call_says_what_came_of_it(door: Path) -> None:
    async with connected(door) as client:
        assert await say(client, "shell", command="echo hello") == (True, "hello")
        assert await say(client, "shell", command="complain loudly") == (False, "loudly\n[exit code 1]")
        worked, said = await say(client, "query", statement="select 7")
        assert (worked, said.splitlines()[-1]) == (True, "[7]")
        worked, said = await say(client, "shel", command="x")
        assert not worked
        assert "Did you mean shell" in said


async def test_by_a_key_a_call_is_done_once_and_without_one_each_time(api: Api, door: Path) -> None:
    async with connected(door) as client:
        for _ in range(2):
            assert (await say(client, "message_owner", key="k", subject="keyed"))[0]
            assert (await say(client, "message_owner", subject="each"))[0]
            assert (await say(client, "shell", key="k", command="echo kept")) == (True, "kept")
            assert (await say(client, "shell", command="echo gone")) == (True, "gone")
        assert (await say(client, "shell", key="k", command="echo other")) == (True, "kept")
        worked, said = await say(client, "shell", key="", command="echo")
        assert (worked, "Nothing was done" in said) == (False, True)
    assert sorted(message.subject for message in await api.inbox.list()) == ["each", "each", "keyed"]
    commands = api.offices._get("analyst").commands  # pyright: ignore[reportPrivateUsage]
    assert len(commands) == 1, "what nobody can ask for is not kept"


async def test_a_file_is_replaced_by_the_whole_of_an_object_or_not_at_all(api: Api, door: Path) -> None:
    file = api.directory / "files" / "copy"
    file.write_text("old")
    broken = False

    async def chunks(found: FakeObject) -> AsyncIterator[bytes]:
        yield found.data[:3]
        if broken:
            raise SandboxError("The disk of the host went away.")
        yield found.data[3:]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FakeObject, "chunks", chunks)
        async with connected(door) as client:
            assert (await say(client, "object_put", bucket="b", name="o", text="new text"))[0]
            broken = True
            worked, said = await say(client, "object_to_file", bucket="b", name="o", path="copy")
            assert (worked, "The disk of the host went away." in said) == (False, True), said
            assert file.read_text() == "old"
            broken = False
            assert (await say(client, "object_to_file", bucket="b", name="o", path="copy"))[0]
            assert file.read_text() == "new text"
            for path in ("no/such/directory", "."):
                assert not (await say(client, "object_to_file", bucket="b", name="o", path=path))[0]
    assert [one.name for one in file.parent.iterdir()] == ["copy"]


async def test_only_an_office_is_served_and_only_its_own(api: Api, door: Path) -> None:
    async with api.client() as owner, api.client(TOKENS.worker) as worker, api.client(None) as nobody:
        (await owner.post("/v1/agents", json={"name": "other"})).raise_for_status()
        for who, status in ((owner, 403), (worker, 403), (nobody, 401)):
            answer = await who.post("/mcp", json=request("tools/list"), headers=HEADERS)
            assert (answer.status_code, bool(error_of(answer)["hint"])) == (status, True)
        strange = (await owner.post("/v1/runs", json={"agent": "other", "goal": "g", "playbook": "steps: []"})).json()[
            "id"
        ]
    async with connected(door) as client:
        worked, said = await say(client, "goal_start", goal="mine")
        assert (worked, "has no brain of its own" in said) == (False, True), said
        async with api.client() as owner:
            thinks = {"models": ["openai:gpt-5"]}
            answer = await owner.put("/v1/agents/analyst/brain", json=thinks)
            assert answer.is_success, answer.text
        worked, said = await say(client, "goal_start", goal="mine")
        assert worked, said
        own = said.split(" ")[0]
        assert (await say(client, "goal_state", run=own))[1].startswith(f"{own} of analyst: queued")
        assert (await say(client, "goal_cancel", run=own))[1].startswith(f"{own} of analyst: cancelled")
        worked, said = await say(client, "schedule_create", name="nightly", goal="g", cron="0 3 * * *")
        assert (worked, "nightly: 0 3 * * * (UTC), active, next at" in said) == (True, True), said
        for more in ({"every": "4m"}, {"cron": "0,1 3 * * *"}, {"every": "1h", "at": "2040-01-01"}, {"every": "soon"}):
            assert (await say(client, "schedule_create", name="more", goal="g", **more))[0] is False, more
        assert (await say(client, "schedule_list"))[1].startswith("nightly: ")
        theirs = {"agent": "analyst", "name": "theirs", "every_s": 3600, "what": {"goal": "of the owner"}}
        async with api.client() as owner:
            assert (await owner.post("/v1/schedules", json=theirs)).is_success
            assert (await owner.get("/v1/schedules/nightly")).json()["created_by"] == "office:analyst"
        worked, said = await say(client, "schedule_delete", name="theirs")
        assert (worked, "did not make" in said) == (False, True), said
        assert (await say(client, "schedule_delete", name="nightly"))[0]
        for tool, arguments in (
            ("goal_start", {"goal": "g", "agent": "other"}),
            ("goal_state", {"run": strange}),
            ("goal_cancel", {"run": strange}),
        ):
            worked, said = await say(client, tool, **arguments)
            assert (worked, "office:analyst may not" in said) == (False, True), said
    assert [run.id for run in await api.runs.list(agent="other")] == [strange]
    assert (await api.runs.get(strange)).state == "queued"


async def test_there_is_no_session_to_listen_to_or_to_end(api: Api, door: Path) -> None:
    async with api.client(None, door) as office:
        for method in ("GET", "DELETE", "PUT", "HEAD"):
            answer = await office.request(method, "/mcp", headers=HEADERS)
            assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        answer = await office.post("/mcp", json=request("tools/list"), headers=HEADERS)
        assert "mcp-session-id" not in answer.headers
        assert len(answered(answer)["result"]["tools"]) > 20, "a call needs no call before it"


NESTED = b"[" * 100_000
STRANGE: tuple[bytes, ...] = (
    b"",
    b"{",
    b"\xff\xfe\x00",
    NESTED,
    b"[" + json.dumps(call("shell", {"command": "echo"})).encode() + b"]",
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":[]}',
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":7}}',
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"shell","arguments":"echo"}}',
    b'{"jsonrpc":"2.0","id":' + b"9" * 10_000 + b',"method":"tools/list"}',
    b'{"jsonrpc":"2.0","id":1,"method":"no/such"}',
    json.dumps(call("shell", {"command": "echo \ud800"})).encode(),
    json.dumps(call("\ud800", {"\udfff": "\x00"})).encode(),
    json.dumps(call("shell", {"command": "echo \x00"})).encode(),
    json.dumps(call("../../etc", {})).encode(),
    json.dumps(call("shell", {"command": "echo", "timeout_s": 1e308, "x" * 5000: {"deep": [[[[]]]]}})).encode(),
    json.dumps(call("read_file", {"path": "x" * 900_000})).encode(),
    json.dumps(call("shell", {f"a{number}": number for number in range(20_000)})).encode(),
)


@pytest.mark.parametrize("version", [None, "2025-06-18", "2026-07-28", "1999-01-01", "é"])
async def test_whatever_is_sent_is_answered_and_does_nothing(api: Api, door: Path, version: str | None) -> None:
    headers: dict[str, Any] = {**HEADERS, **({"mcp-protocol-version": version.encode()} if version else {})}
    async with api.client(None, door) as office:
        for body in STRANGE:
            answer = await office.post("/mcp", content=body, headers=headers)
            assert answer.status_code < 500, (body[:80], answer.text[:500])
            assert len(answer.content) < 20_000, body[:80]
            assert "Traceback" not in answer.text
        answer = await office.post("/mcp", content=b"x" * (BODY_BYTES_MAX + 1), headers=headers)
        assert answer.status_code == 413
        answer = await office.post("/mcp", content=b"{}", headers={"content-type": "text/plain"})
        assert 400 <= answer.status_code < 500
        assert not api.offices._get("analyst").commands  # pyright: ignore[reportPrivateUsage]
        assert len(answered(await office.post("/mcp", json=request("tools/list"), headers=HEADERS))["result"]["tools"])


async def test_many_calls_at_once_are_bounded_and_end_with_their_callers(api: Api, door: Path) -> None:
    hanging = api.offices.sessions
    async with AsyncExitStack() as stack:
        tasks: list[asyncio.Task[httpx.Response]] = []
        for _ in range(CALLS_MAX):
            office = await stack.enter_async_context(api.client(None, door))
            post = office.post("/mcp", json=call("shell", {"command": "hang"}), headers=HEADERS)
            tasks.append(asyncio.create_task(post))
        await eventually(lambda: len(hanging) == CALLS_MAX)
        async with connected(door) as client:
            worked, said = await say(client, "shell", command="echo")
            assert (worked, "under way already" in said) == (False, True)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await eventually(lambda: all(session.closed for session in hanging[:CALLS_MAX]))
            async with asyncio.timeout(20):
                while not (await say(client, "shell", command="echo again"))[0]:
                    pass


def test_servers_and_clients_that_do_not_speak_it_do_not_load_it() -> None:
    script = (
        "import sys, tenure.server.app, tenure.server.build, tenure.cli.app, tenure.client\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('mcp', 'mcp_types', 'httpx2')])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout == "[]\n"


# --- a real office ---------------------------------------------------------------------------------------------------------
SERVER = "cd ~/site && exec python3 -m http.server 8000 --bind 127.0.0.1"
INSIDE = """\
curl -sS -X POST http://api:8700/mcp -H 'content-type: application/json' \\
  -H 'accept: application/json, text/event-stream' -d "$REQUEST"
"""


async def test_a_program_in_a_real_office_works_with_all_of_it(live: Live) -> None:
    agent = await asyncio.to_thread(live.agent, "mcp")
    door = live.settings.doorway(agent.name) / "api.sock"
    async with connected(door) as client:
        assert await say(client, "shell", command="echo $((6 * 7)) > n; cat n; id -un") == (True, "42\nagent")
        assert await say(client, "write_file", path="site/index.html", content="<p>öne</p>\n") == (
            True,
            "/home/agent/site/index.html was made; it has 12 bytes in 1 lines.",
        )
        assert (await say(client, "edit_file", path="site/index.html", old="öne", new="two"))[0]
        assert await say(client, "read_file", path="site/index.html") == (True, "     1\t<p>two</p>")
        assert "Did you mean" in (await say(client, "read_file", path="site/indx.html"))[1]
        assert (await say(client, "find_files", pattern="*.html"))[1] == "/home/agent/site/index.html"
        assert (await say(client, "search_files", pattern="tw.", path="site"))[1].endswith("index.html:1: <p>two</p>")
        assert "site/" in (await say(client, "list_files"))[1]
        assert (await say(client, "sql", statement="create table t as select 7 as n"))[0]
        assert await say(client, "query", statement="select n from t") == (True, 'SELECT 1\n["n"]\n[7]')
        for sly in ("delete from t", "set transaction read write; delete from t", "rollback; delete from t"):
            assert not (await say(client, "query", statement=sly))[0], sly
        assert await say(client, "query", statement="select n from t") == (True, 'SELECT 1\n["n"]\n[7]')
        assert (await say(client, "object_put", bucket="b", name="a/index", path="site/index.html"))[0]
        assert (await say(client, "object_to_file", bucket="b", name="a/index", path="copy.html"))[0]
        assert await say(client, "object_read", bucket="b", name="a/index") == (True, "<p>two</p>\n")
        assert (await say(client, "object_list"))[1].split() == ["11", "b/a/index"]
        assert (await say(client, "object_delete", bucket="b", name="a/index"))[0]
        assert await say(client, "shell", command="cmp copy.html site/index.html && stat -c %a copy.html") == (
            True,
            "644",
        )
        assert (await say(client, "service_start", name="site", command=SERVER))[0]
        answers = "curl -s --retry 20 --retry-connrefused --retry-delay 1 http://127.0.0.1:8000/ -o /dev/null"
        assert (await say(client, "shell", command=answers))[0]
        worked, said = await say(client, "http_request", url="http://127.0.0.1:8000/")
        assert (worked, said.startswith("HTTP 200 OK"), said.endswith("<p>two</p>\n")) == (True, True, True), said
        worked, said = await say(client, "http_request", url="http://example.org/")
        assert (worked, said.startswith("HTTP 403")) == (False, True), said
        worked, said = await say(client, "http_request", url="https://example.org/")
        assert (worked, "egress does not allow example.org" in said) == (False, True), said
        assert "runs since" in (await say(client, "service_list"))[1]
        assert "GET / HTTP" in (await say(client, "service_logs", name="site"))[1]
        assert (await say(client, "service_stop", name="site"))[0]
        assert (await say(client, "note_write", name="how.md", content="# How\nlike this"))[0]
        assert (await say(client, "note_list"))[1] == "how.md: # How"
        assert (await say(client, "message_owner", subject="done", body="all of it"))[0]
        worked, said = await say(client, "snapshot", name="by-itself")
        assert worked, said
        kept = {snapshot.name for snapshot in await asyncio.to_thread(lambda: agent.snapshots.list())}
        assert "by-itself" in kept
    inbox = await asyncio.to_thread(lambda: live.tenure.inbox.list())
    assert ("done", agent.name) in [(message.subject, message.agent) for message in inbox]
    body = json.dumps(call("shell", {"command": "echo from $(hostname)"}))
    found = await asyncio.to_thread(lambda: agent.exec(INSIDE, env={"REQUEST": body}))
    assert f"from {agent.name}" in found.stdout, (found.stdout, found.stderr)
    await asyncio.to_thread(agent.delete)


async def test_what_nobody_can_ask_for_any_more_is_ended_and_what_has_a_key_goes_on(live: Live) -> None:
    agent = await asyncio.to_thread(live.agent, "left")
    door = live.settings.doorway(agent.name) / "api.sock"
    async with (
        connected(door) as client,
        httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(door))) as office,
    ):
        for name, meta in (("none", {}), ("keyed", {KEY_META: "k"})):
            script = f"echo $$ > {name}.new; mv {name}.new {name}; exec sleep 600"
            body = request("tools/call", {"name": "shell", "arguments": {"command": script}, "_meta": meta})
            left = asyncio.create_task(office.post(URL, json=body, headers=HEADERS, timeout=None))
            wait = f"until [ -e {name} ]; do sleep 0.05; done"
            assert await say(client, "shell", command=wait, timeout_s=60) == (True, "")
            left.cancel()
            await asyncio.gather(left, return_exceptions=True)
        ended = "while kill -0 $(cat none) 2>/dev/null; do sleep 0.05; done; kill -0 $(cat keyed) && kill $(cat keyed)"
        assert await say(client, "shell", command=ended, timeout_s=60) == (True, "")
        script = "echo $$ > keyed.new; mv keyed.new keyed; exec sleep 600"
        worked, said = await say(client, "shell", key="k", command=script)
        assert (worked, said) == (False, "[exit code 143]"), "by its key it is asked for, and not done again"
    await asyncio.to_thread(agent.delete)
