"""The HTTP API does what it says, over a real UNIX socket; behind it are fake offices."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import resource
import tarfile
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import ClientConnection

from fixtures.api import PLAYBOOK, Api, error_of, eventually
from tenure import wire
from tenure.errors import ServerUnreachable
from tenure.identity.authorize import Principal, PrincipalKind
from tenure.server.listeners import serve_office_api

pytest_plugins = ("fixtures.server",)

AGENT = "/v1/agents/analyst"
GB = 1024**3


async def read_to_end(socket: ClientConnection) -> tuple[dict[int, bytes], dict[str, object]]:
    """What came per channel, and the last frame."""
    streams: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}
    async for frame in socket:
        if isinstance(frame, str):
            return {channel: bytes(data) for channel, data in streams.items()}, json.loads(frame)
        streams[frame[0]] += frame[1:]
    pytest.fail("the session ended without a last frame")


# --- agents ------------------------------------------------------------------------------------------------------------
async def test_an_agent_is_made_shown_slept_woken_and_deleted(owner: httpx.AsyncClient) -> None:
    made = await owner.post("/v1/agents", json={"name": "b2", "cpus": 2, "memory_mb": 512, "egress": ["pip"]})
    assert made.status_code == 201
    agent = wire.Agent.model_validate(made.json())
    assert (agent.name, agent.limits.cpus, agent.limits.memory_mb, agent.egress) == ("b2", 2, 512, ["pip"])

    listed = wire.AgentList.model_validate((await owner.get("/v1/agents")).json())
    assert [one.name for one in listed.agents] == ["analyst", "b2"]
    assert (await owner.post("/v1/agents/b2/sleep")).json()["state"] == "stopped"
    assert (await owner.get("/v1/agents/b2/probe")).json() == {"ok": False}
    assert (await owner.post("/v1/agents/b2/wake")).json()["state"] == "awake"
    assert (await owner.delete("/v1/agents/b2")).status_code == 204
    assert (await owner.get("/v1/agents/b2")).status_code == 404


async def test_health_tells_strangers_only_that_it_lives(api: Api, owner: httpx.AsyncClient) -> None:
    async with api.client(token=None) as stranger:
        health = (await stranger.get("/v1/health")).json()
    assert health["status"] == "ok"
    assert health["pid"] is None
    assert (await owner.get("/v1/health")).json()["offices"] == {"awake": 1, "asleep": 0}


async def test_the_log_is_text(owner: httpx.AsyncClient) -> None:
    answer = await owner.get(f"{AGENT}/logs", params={"lines": 5})
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.text == "created\n"


# --- commands ------------------------------------------------------------------------------------------------------------
async def test_exec_carries_binary_both_ways(owner: httpx.AsyncClient) -> None:
    data = bytes(range(256)) * 5
    body = {"argv": ["cat"], "stdin_b64": base64.b64encode(data).decode()}
    result = wire.ExecResult.model_validate((await owner.post(f"{AGENT}/exec", json=body)).json())
    assert (result.exit_code, result.stdout_data) == (0, data)


async def test_exec_returns_the_first_mebibyte_and_says_that_there_was_more(owner: httpx.AsyncClient) -> None:
    answer = await owner.post(f"{AGENT}/exec", json={"argv": ["spew", str(3 * 1024**2)]})
    result = wire.ExecResult.model_validate(answer.json())
    assert result.truncated
    assert result.stdout_bytes == 3 * 1024**2
    assert len(result.stdout_data) == wire.OUTPUT_BYTES_MAX


async def test_a_keyed_command_starts_once_and_its_result_stays(owner: httpx.AsyncClient) -> None:
    first = await owner.put(f"{AGENT}/commands/k1", json={"script": "echo one"})
    second = await owner.put(f"{AGENT}/commands/k1", json={"script": "echo two"})
    asked = await owner.get(f"{AGENT}/commands/k1", params={"wait_s": 1})
    assert first.json()["output"] == second.json()["output"] == asked.json()["output"] == "one\n"
    assert (await owner.delete(f"{AGENT}/commands/k1")).status_code == 204
    assert (await owner.get(f"{AGENT}/commands/k1")).json()["state"] == "absent"


async def test_attach_carries_streams_and_the_exit_code(api: Api) -> None:
    async with api.connect(f"{AGENT}/attach") as socket:
        await socket.send(json.dumps({"argv": ["cat"], "tty": {"rows": 24, "cols": 80}}))
        data = bytes(range(256))
        await socket.send(b"\x00" + data)
        await socket.send(b"\x0330 100")
        await socket.send(b"\x04")
        streams, last = await read_to_end(socket)
    assert streams[1] == data
    assert last == {"exit_code": 0}
    assert api.offices.sessions[-1].sizes == [(30, 100)]


async def test_attach_passes_signals(api: Api) -> None:
    async with api.connect(f"{AGENT}/attach") as socket:
        await socket.send(json.dumps({"argv": ["hang"]}))
        await socket.send(b"\x0515")
        _, last = await read_to_end(socket)
    assert last == {"exit_code": 143}


async def test_a_command_ends_with_its_client(api: Api) -> None:
    async with api.connect(f"{AGENT}/attach") as socket:
        await socket.send(json.dumps({"argv": ["hang"]}))
        await socket.send(b"\x0324 80")  # something that shows in the session: it has begun
        await eventually(lambda: bool(api.offices.sessions and api.offices.sessions[-1].sizes))
    await eventually(lambda: api.offices.sessions[-1].closed)


async def test_a_slow_client_holds_back_a_command_that_prints_a_gigabyte(api: Api) -> None:
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with api.connect(f"{AGENT}/attach", max_queue=2) as socket:
        await socket.send(json.dumps({"argv": ["spew", str(GB)]}))
        assert (await socket.recv())[:1] == b"\x01"  # read one frame, then none
        made, before = api.offices.sessions[-1].frames_made, -1
        while made != before:  # until it stands still
            await asyncio.sleep(0.3)
            made, before = api.offices.sessions[-1].frames_made, made
        assert made * 64 * 1024 < 16 * 1024**2
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb
    assert grown_kb < 64 * 1024


async def test_all_of_a_large_output_arrives(api: Api) -> None:
    size = 200 * 1024**2
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen = 0
    async with api.connect(f"{AGENT}/attach") as socket:
        await socket.send(json.dumps({"argv": ["spew", str(size)]}))
        async for frame in socket:
            if isinstance(frame, str):
                assert json.loads(frame) == {"exit_code": 0}
                break
            seen += len(frame) - 1
    assert seen == size
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 64 * 1024


# --- files -----------------------------------------------------------------------------------------------------------------
async def test_a_directory_goes_out_and_in_as_tar(api: Api, owner: httpx.AsyncClient) -> None:
    source = api.directory / "files" / "-data dir"
    source.mkdir()
    (source / "a.bin").write_bytes(bytes(range(256)) * 1000)
    archive = await owner.get(f"{AGENT}/archive", params={"path": "-data dir"})
    with tarfile.open(fileobj=io.BytesIO(archive.content)) as tar:
        assert tar.getnames() == ["-data dir", "-data dir/a.bin"]

    (api.directory / "files" / "copy").mkdir()
    put = await owner.put(f"{AGENT}/archive", params={"path": "copy"}, content=archive.content)
    assert put.status_code == 204
    assert (api.directory / "files/copy/-data dir/a.bin").read_bytes() == (source / "a.bin").read_bytes()


async def test_a_file_is_read_up_to_a_limit(api: Api, owner: httpx.AsyncClient) -> None:
    (api.directory / "files" / "f").write_bytes(b"0123456789" * 1000)
    assert (await owner.get(f"{AGENT}/file", params={"path": "f", "bytes_max": 7})).content == b"0123456"
    (api.directory / "files" / "empty").write_bytes(b"")
    empty = await owner.get(f"{AGENT}/file", params={"path": "empty"})
    assert (empty.status_code, empty.content) == (200, b"")


@pytest.mark.parametrize("endpoint", ["file", "archive"])
async def test_a_missing_file_is_not_found(owner: httpx.AsyncClient, endpoint: str) -> None:
    answer = await owner.get(f"{AGENT}/{endpoint}", params={"path": "nothing/here"})
    assert answer.status_code == 404
    assert "nothing/here" in str(error_of(answer)["message"])


async def test_a_body_that_is_no_archive_is_refused(owner: httpx.AsyncClient) -> None:
    answer = await owner.put(f"{AGENT}/archive", params={"path": "."}, content=b"x" * 5000)
    assert answer.status_code == 422
    assert "tar" in str(error_of(answer)["message"])


# --- data ------------------------------------------------------------------------------------------------------------------
async def test_sql_with_a_key_happens_once(owner: httpx.AsyncClient) -> None:
    first = (await owner.post(f"{AGENT}/sql", json={"statement": "select 7", "key": "k"})).json()
    second = (await owner.post(f"{AGENT}/sql", json={"statement": "select 8", "key": "k"})).json()
    assert (first["rows"], first["repeated"]) == ([[7]], False)
    assert (second["rows"], second["repeated"]) == ([[7]], True)


async def test_objects_are_stored_listed_read_and_deleted(owner: httpx.AsyncClient) -> None:
    data = bytes(range(256)) * 8000
    url = f"{AGENT}/objects/reports/charts/2014.png"
    put = await owner.put(url, content=data, headers={"content-type": "image/png"})
    assert put.json()["size_bytes"] == len(data)
    listed = (await owner.get(f"{AGENT}/objects", params={"bucket": "reports", "prefix": "charts/"})).json()
    assert [one["name"] for one in listed["objects"]] == ["charts/2014.png"]
    got = await owner.get(url)
    assert (got.content, got.headers["content-type"]) == (data, "image/png")
    assert got.headers["content-disposition"] == "attachment"
    assert (await owner.delete(url)).status_code == 204
    assert (await owner.get(url)).status_code == 404


async def test_an_object_is_made_from_a_file_of_the_office(api: Api, owner: httpx.AsyncClient) -> None:
    (api.directory / "files" / "report.md").write_text("# Report")
    body = {"path": "report.md", "bucket": "reports", "name": "report.md", "key": "k"}
    assert (await owner.post(f"{AGENT}/objects-from-file", json=body)).json()["size_bytes"] == 8
    assert (await owner.get(f"{AGENT}/objects/reports/report.md")).text == "# Report"


# --- runs and inbox --------------------------------------------------------------------------------------------------------
async def make_run(owner: httpx.AsyncClient) -> str:
    body = {"agent": "analyst", "goal": "count", "playbook": PLAYBOOK}
    made = await owner.post("/v1/runs", json=body)
    assert made.status_code == 201
    return str(made.json()["id"])


async def test_a_run_is_made_listed_and_cancelled(owner: httpx.AsyncClient) -> None:
    run_id = await make_run(owner)
    assert [run["id"] for run in (await owner.get("/v1/runs", params={"state": "queued"})).json()["runs"]] == [run_id]
    assert (await owner.post(f"/v1/runs/{run_id}/cancel")).json()["state"] == "cancelled"
    again = await owner.post(f"/v1/runs/{run_id}/cancel")
    assert again.status_code == 409
    assert error_of(again)["code"] == "conflict"


async def test_a_run_is_forked_at_a_step_with_a_snapshot_that_is_there(api: Api, owner: httpx.AsyncClient) -> None:
    run_id = await make_run(owner)
    taken = (await owner.post("/v1/agents/analyst/snapshots")).json()["id"]
    api.runs.keep(run_id, "load", taken)
    made = await owner.post(f"/v1/runs/{run_id}/fork", json={"new": "second", "at": "load"})
    assert made.status_code == 201
    assert (made.json()["agent"], made.json()["origin"]["snapshot"]) == ("second", taken)
    again = await owner.post(f"/v1/runs/{run_id}/fork", json={"new": "second", "at": "load"})
    assert error_of(again)["code"] == "already_exists"
    assert (await owner.delete(f"/v1/agents/analyst/snapshots/{taken}")).status_code == 204
    gone = await owner.post(f"/v1/runs/{run_id}/fork", json={"new": "third", "at": "load"})
    assert gone.status_code == 404
    assert (await owner.get("/v1/agents/third")).status_code == 404


async def test_an_agent_made_for_a_fork_that_fails_goes_again(
    api: Api, owner: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = await make_run(owner)
    api.runs.keep(run_id, "load", (await owner.post("/v1/agents/analyst/snapshots")).json()["id"])

    async def fail(*_: object) -> None:
        raise ServerUnreachable("the control database is away")

    monkeypatch.setattr(api.runs, "fork", fail)
    assert (await owner.post(f"/v1/runs/{run_id}/fork", json={"new": "second", "at": "load"})).status_code == 503
    assert (await owner.get("/v1/agents/second")).status_code == 404


async def test_the_event_stream_follows_a_run_until_it_is_at_rest(api: Api, owner: httpx.AsyncClient) -> None:
    run_id = await make_run(owner)
    seen: list[wire.RunEvent] = []
    async with owner.stream("GET", f"/v1/runs/{run_id}/events/stream") as stream:
        async for line in stream.aiter_lines():
            if line.startswith("data: "):
                seen.append(wire.RunEvent.model_validate_json(line.removeprefix("data: ")))
                if len(seen) == 1:
                    api.runs.write(run_id, "step_started", step="one")
                    api.runs.finish(run_id, wire.RunState.SUCCEEDED)
    assert [event.kind for event in seen] == ["run_created", "step_started", "run_succeeded"]
    rest = (await owner.get(f"/v1/runs/{run_id}/events", params={"after": 1})).json()["events"]
    assert [event["seq"] for event in rest] == [2, 3]


async def test_a_parked_run_goes_on_with_an_answer(api: Api, owner: httpx.AsyncClient) -> None:
    run_id = await make_run(owner)
    api.runs.finish(run_id, wire.RunState.PARKED)
    assert (await owner.post(f"/v1/runs/{run_id}/resume", json={"answer": "yes"})).json()["state"] == "queued"
    api.runs.finish(run_id, wire.RunState.PARKED)
    assert (await owner.post(f"/v1/runs/{run_id}/resume")).json()["state"] == "queued"


async def test_messages_are_left_once_per_key_and_read(owner: httpx.AsyncClient) -> None:
    body = {"agent": "analyst", "subject": "done", "body": "see reports/", "key": "k"}
    first, second = (await owner.post("/v1/inbox", json=body)).json(), (await owner.post("/v1/inbox", json=body)).json()
    assert first["id"] == second["id"]
    assert len((await owner.get("/v1/inbox", params={"unread": "true"})).json()["messages"]) == 1
    assert (await owner.post(f"/v1/inbox/{first['id']}/read")).json()["read_at"] is not None
    assert (await owner.get("/v1/inbox", params={"unread": "true"})).json()["messages"] == []


async def test_an_office_is_rebuilt_and_its_history_says_so(owner: httpx.AsyncClient) -> None:
    assert (await owner.get(f"{AGENT}/history")).json() == {"events": []}
    rebuilt = (await owner.post(f"{AGENT}/rebuild")).json()
    assert (rebuilt["agent"]["name"], rebuilt["before"]["kind"]) == ("analyst", "before-restore")
    assert rebuilt["set_up"] == {"packages": ["cowsay"], "pip": [], "script": False}
    await owner.post(f"{AGENT}/rebuild")
    events = (await owner.get(f"{AGENT}/history", params={"limit": 1})).json()["events"]
    assert [(event["id"], event["what"]) for event in events] == [(2, "rebuilt")]
    assert (await owner.get("/v1/agents/nobody/history")).status_code == 404
    assert (await owner.post("/v1/agents/nobody/rebuild")).status_code == 404
    assert (await owner.get(f"{AGENT}/history", params={"limit": 0})).status_code == 422


async def test_snapshots_are_taken_listed_compared_restored_and_deleted(owner: httpx.AsyncClient) -> None:
    taken = (await owner.post(f"{AGENT}/snapshots", json={"name": "before"})).json()
    unnamed = (await owner.post(f"{AGENT}/snapshots")).json()
    assert (taken["name"], taken["kind"], unnamed["name"]) == ("before", "manual", None)
    assert (await owner.post(f"{AGENT}/snapshots", json={"name": "before"})).status_code == 409
    diff = (await owner.get(f"{AGENT}/snapshots/before/diff", params={"to": unnamed["id"]})).json()
    assert (diff["added"], diff["entries"][0]["change"]) == (1, "added")
    restored = (await owner.post(f"{AGENT}/snapshots/before/restore")).json()
    assert (restored["snapshot"], restored["agent"]["name"]) == (taken, "analyst")
    listed = (await owner.get(f"{AGENT}/snapshots")).json()["snapshots"]
    assert [one["id"] for one in listed] == [taken["id"], unnamed["id"], restored["before"]["id"]]
    fork = await owner.post(f"{AGENT}/fork", json={"new": "b2", "snapshot": "before"})
    assert (fork.status_code, fork.json()["name"]) == (201, "b2")
    assert (await owner.delete(f"{AGENT}/snapshots/before")).status_code == 204
    assert (await owner.post(f"{AGENT}/snapshots/before/restore")).status_code == 404


# --- listeners -------------------------------------------------------------------------------------------------------------
async def test_a_closed_listener_is_gone_and_leaves_a_successors_socket_alone(api: Api, short_dir: Path) -> None:
    path = short_dir / "office.sock"
    principal = Principal(PrincipalKind.OFFICE, "analyst")
    first = await serve_office_api(api.app, principal, path)
    second = await serve_office_api(api.app, principal, path)
    await first.close()
    async with api.client(token=None, socket=path) as office:
        assert (await office.get(AGENT)).status_code == 200
    await second.close()
    assert not path.exists()


async def test_a_head_without_end_is_cut_off(api: Api) -> None:
    reader, writer = await asyncio.open_unix_connection(str(api.socket))
    writer.write(b"GET /v1/health HTTP/1.1\r\n")
    sent = 0
    try:
        while sent < 4 * 1024**2 and not reader.at_eof():
            writer.write(b"X-Long: " + b"x" * 8000 + b"\r\n")
            sent += 8000
            await writer.drain()
            await asyncio.sleep(0)
    except ConnectionError:
        pass
    assert sent < 4 * 1024**2
    writer.close()
