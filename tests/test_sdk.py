"""The SDK: the same nouns blocking and async, errors of the server as exceptions, and followers that outlive restarts."""

from __future__ import annotations

import asyncio
import inspect
import io
import json
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tenure
from fixtures.api import PLAYBOOK, TOKENS, Api, eventually
from tenure import AsyncTenure, Tenure, errors, wire
from tenure.client import archive, blocking, concurrent, hands
from tenure.client.attach import Attachment, AttachRequest, Channel
from tenure.client.endpoint import Endpoint
from tenure.client.events import EventDecoder, Patience
from tenure.client.hands import HttpHands
from tenure.client.views import playbook_text
from tenure.server.listeners import bind_unix, listen
from tenure.settings import Settings
from tenure.work.hands import Command, CommandState

pytest_plugins = ("fixtures.server",)

EVERY_BYTE = bytes(range(256))


@pytest.fixture
def endpoint(api: Api) -> Endpoint:
    return Endpoint("http://tenure", api.socket, TOKENS.owner)


@pytest.fixture
async def client(endpoint: Endpoint) -> AsyncIterator[AsyncTenure]:
    async with AsyncTenure(endpoint=endpoint) as made:
        yield made


def use(endpoint: Endpoint, work: Callable[[Tenure], Any]) -> Any:
    """`work` with the blocking SDK, in a thread, because the server lives in this one."""

    def run() -> Any:
        with Tenure(endpoint=endpoint) as client:
            return work(client)

    return asyncio.to_thread(run)


# --- nouns ---------------------------------------------------------------------------------------------------------------
async def test_the_blocking_sdk_does_an_agents_whole_life(endpoint: Endpoint, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(EVERY_BYTE)

    def life(client: Tenure) -> None:
        agent = client.agents.create("b2", cpus=1, memory_mb=1024, disk_gb=10, egress=["pip"])
        assert agent.info
        assert agent.info.egress == ["pip"]
        done = agent.exec(["cat"], stdin=EVERY_BYTE)
        assert (done.exit_code, done.stdout_data, done.ok) == (0, EVERY_BYTE, True)
        assert agent.exec("echo hello").stdout == "hello\n"
        assert agent.exec(["complain", "no"]).stderr == "no\n"
        assert agent.sql("select 5").rows == [[5]]
        stored = agent.objects.put("reports", "a/b.bin", EVERY_BYTE)
        assert (stored.size_bytes, agent.objects.get("reports", "a/b.bin")) == (256, EVERY_BYTE)
        agent.objects.put("reports", "c.bin", tmp_path / "in")
        assert [item.name for item in agent.objects.list("reports")] == ["a/b.bin", "c.bin"]
        agent.objects.delete("reports", "c.bin")
        agent.upload(tmp_path / "in", "inside")
        assert agent.download("inside", tmp_path / "out").read_bytes() == EVERY_BYTE
        assert agent.sleep().state == "stopped"
        assert agent.wake().show().state == "awake"
        assert agent.logs() == "created\n"
        assert {found.name for found in client.agents.list()} == {"analyst", "b2"}
        agent.delete()
        with pytest.raises(errors.NotFound):
            client.agents.get("b2")

    await use(endpoint, life)


async def test_the_async_sdk_does_an_agents_whole_life(client: AsyncTenure, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(EVERY_BYTE)
    agent = await client.agents.create("b2", egress=["pip"])
    assert (await agent.exec(["cat"], stdin=EVERY_BYTE)).stdout_data == EVERY_BYTE
    assert (await agent.sql("select 5", key="k")).rows == [[5]]
    assert (await agent.sql("select 5", key="k")).repeated
    await agent.objects.put("reports", "c.bin", tmp_path / "in")
    assert b"".join([piece async for piece in agent.objects.stream("reports", "c.bin")]) == EVERY_BYTE
    await agent.upload(tmp_path / "in", "inside")
    assert (await agent.download("inside", tmp_path / "out")).read_bytes() == EVERY_BYTE
    assert (await agent.sleep()).state == "stopped"
    await agent.delete()
    assert [found.name for found in await client.agents.list()] == ["analyst"]


async def test_an_office_is_rebuilt_and_its_history_is_read(client: AsyncTenure, endpoint: Endpoint) -> None:
    agent = client.agents("analyst")
    rebuilt = await agent.rebuild()
    assert rebuilt.set_up.packages == ["cowsay"]
    assert [(event.what, event.evidence) for event in await agent.history()] == [
        ("rebuilt", {"before": rebuilt.before.id})
    ]

    def blocking_too(sync: Tenure) -> None:
        again = sync.agents("analyst").rebuild()
        assert [event.evidence["before"] for event in sync.agents("analyst").history(1)] == [again.before.id]

    await use(endpoint, blocking_too)


PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIM8Jr9LRcXKcT6fTCOGFuBNLSk7V7mPNPBoNkFOHVVXw me@here"


async def test_ssh_keys_are_added_listed_and_removed_and_previews_linked(
    client: AsyncTenure, endpoint: Endpoint
) -> None:
    added = await client.ssh_keys.add(PUBLIC_KEY, comment="laptop")
    assert (added.comment, added.algorithm, added.principal, added.last_used_at) == (
        "laptop",
        "ssh-ed25519",
        "owner",
        None,
    )
    assert (await client.ssh_gateway()).enabled is False

    def blocking_too(sync: Tenure) -> None:
        assert sync.ssh_keys.list() == [added]
        with pytest.raises(errors.AlreadyExists):
            sync.ssh_keys.add(PUBLIC_KEY)
        sync.ssh_keys.remove(added.fingerprint)  # has '/' and '+' in it, at times
        assert sync.ssh_gateway().host == "127.0.0.1"
        assert (
            sync.agents("analyst")
            .preview(8000, "/a?b")
            .url.startswith("http://8000--analyst.localhost:7800/.tenure/open?")
        )

    await use(endpoint, blocking_too)
    assert await client.ssh_keys.list() == []
    with pytest.raises(errors.NotFound):
        await client.ssh_keys.remove(added.id)
    for port, path in ((0, "/"), (70000, "/"), (80, "//evil"), (80, "x")):
        if (port, path) == (80, "//evil"):
            assert (await client.agents("analyst").preview(port, path)).origin == "http://80--analyst.localhost:7800"
            continue
        with pytest.raises(errors.InvalidArgument):
            await client.agents("analyst").preview(port, path)
    with pytest.raises(errors.NotFound):
        await client.agents("nobody").preview(80)


async def test_snapshots_are_taken_compared_restored_forked_and_deleted(
    client: AsyncTenure, endpoint: Endpoint
) -> None:
    agent = client.agents("analyst")
    taken = await agent.snapshots.create("before")
    assert (await agent.snapshots.diff("before")).added == 1
    assert (await agent.snapshots.restore(taken.id)).before.kind == "before-restore"
    assert (await agent.fork("b2", snapshot="before")).state == "awake"

    def look(blocking: Tenure) -> None:
        origin = blocking.agents("analyst")
        assert [one.name for one in origin.snapshots.list()] == ["before", None]
        assert origin.fork("b3").info
        origin.snapshots.delete("before")
        with pytest.raises(errors.NotFound):
            origin.snapshots.restore("before")
        for wrong in ("../x", "", "a" * 65):
            with pytest.raises(errors.InvalidArgument):
                origin.snapshots.delete(wrong)

    await use(endpoint, look)


async def test_a_run_is_started_followed_answered_and_cancelled(api: Api, client: AsyncTenure) -> None:
    run = await client.agents("analyst").run("find them", playbook=PLAYBOOK, inputs={"days": 3})
    assert run.state == "queued"
    api.runs.finish(run.id, wire.RunState.PARKED)
    assert (await run.wait()).state == "parked"
    assert [event.kind async for event in run.events()] == ["run_created", "run_parked"]
    assert (await run.resume("yes")).state == "queued"
    with pytest.raises(errors.CommandTimeout):
        await run.wait(timeout_s=0.1)
    assert (await run.cancel()).state == "cancelled"
    assert [found.id for found in await client.runs.list("analyst", "cancelled")] == [run.id]


async def test_a_run_is_forked(api: Api, client: AsyncTenure, endpoint: Endpoint) -> None:
    analyst = client.agents("analyst")
    run = await analyst.run("find them", playbook=PLAYBOOK)
    api.runs.keep(run.id, "load", (await analyst.snapshots.create()).id)
    forked = await run.fork("load", "second", playbook=PLAYBOOK, inputs={"days": 4})
    assert (forked.agent_name, forked.state) == ("second", "queued")
    with pytest.raises(errors.InvalidName):
        await run.fork("load", "Not A Name")

    def look(blocking: Tenure) -> None:
        again = blocking.runs.get(run.id).fork("load", "third", before=False)
        assert again.info.origin is not None
        assert again.info.origin.run == run.id
        with pytest.raises(errors.NotFound):
            blocking.runs.get(run.id).fork("load", "fourth", before=True)

    await use(endpoint, look)


async def test_messages_are_listed_and_read(api: Api, endpoint: Endpoint) -> None:
    await api.inbox.create(agent="analyst", subject="Done", body="all of it")

    def look(client: Tenure) -> None:
        message = client.inbox.list(unread=True)[0]
        assert client.inbox.read(message.id).body == "all of it"
        assert client.inbox.list(unread=True) == []

    await use(endpoint, look)


async def test_questions_are_listed_and_answered_once(api: Api, endpoint: Endpoint) -> None:
    run = await api.runs.create(agent="analyst", goal="g", playbook=PLAYBOOK, playbook_name=None, inputs={})
    asked = api.runs.ask(run.id, "Which colour?", options=["red", "blue"])

    def look(client: Tenure) -> None:
        assert [one.id for one in client.questions.list("analyst")] == [asked.id]
        assert client.questions.list("other") == []
        assert client.questions.answer(asked.id, "blue").state == "queued"
        with pytest.raises(errors.Conflict, match="answered already, by owner"):
            client.questions.answer(asked.id, "red")
        with pytest.raises(errors.InvalidArgument):
            client.questions.answer("no/id", "red")
        assert [one.model for one in client.costs(by="model")] == ["test:one"]
        with pytest.raises(errors.InvalidArgument):
            client.costs(by="colour")

    await use(endpoint, look)


@pytest.mark.parametrize(
    "noun",
    ["Tenure", "Agents", "Agent", "Objects", "Snapshots", "Runs", "Run", "Questions", "Inbox", "Schedules", "Webhooks"],
)
def test_both_sdks_have_the_same_methods_with_the_same_parameters(noun: str) -> None:
    def shape(cls: type) -> dict[str, list[str]]:
        methods = inspect.getmembers(cls, inspect.isfunction)
        return {name: list(inspect.signature(f).parameters) for name, f in methods if not name.startswith("_")}

    assert shape(getattr(blocking, noun)) == shape(getattr(concurrent, f"Async{noun}"))


def test_importing_tenure_gives_both() -> None:
    assert tenure.Tenure is blocking.Tenure
    assert tenure.AsyncTenure is concurrent.AsyncTenure


# --- errors --------------------------------------------------------------------------------------------------------------
async def test_the_servers_errors_are_raised_as_the_same_class(client: AsyncTenure) -> None:
    with pytest.raises(errors.NotFound, match="nobody") as missing:
        await client.agents("nobody").exec("true")
    assert missing.value.hint
    with pytest.raises(errors.AlreadyExists):
        await client.agents.create("analyst")
    with pytest.raises(errors.DatabaseError, match="syntax error"):
        await client.agents("analyst").sql("nonsense")
    with pytest.raises(errors.PlaybookError, match="playbook:1"):
        await client.agents("analyst").run("g", playbook="not:\n  steps")


def test_what_is_wrong_already_here_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    nowhere = Tenure(endpoint=Endpoint("http://tenure", tmp_path / "none.sock"))
    for name in ("", "Upper", "a/b", "a" * 41):
        with pytest.raises(errors.InvalidName):
            nowhere.agents(name)
    agent = nowhere.agents("analyst")
    with pytest.raises(errors.InvalidArgument):
        agent.exec([])
    with pytest.raises(errors.TooLarge):
        agent.exec("cat", stdin=b"x" * (wire.STDIN_BYTES_MAX + 1))
    with pytest.raises(errors.InvalidArgument):
        agent.objects.get("bucket", "../x")
    with pytest.raises(errors.InvalidArgument, match="goal"):
        agent.run("")
    with pytest.raises(errors.InvalidArgument, match="memory_mb"):
        nowhere.agents.create("b", memory_mb=-1)
    with pytest.raises(errors.ServerUnreachable) as error:
        agent.show()
    assert "tenure up" in error.value.hint


def test_a_playbook_is_a_path_or_text(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(PLAYBOOK)
    assert playbook_text(str(tmp_path / "plan.yaml")) == (PLAYBOOK, "plan.yaml")
    assert playbook_text(PLAYBOOK) == (PLAYBOOK, None)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\n")
    for bad, kind in (("binary", errors.InvalidArgument), (".", errors.InvalidArgument), ("no", errors.NotFound)):
        with pytest.raises(kind):
            playbook_text(tmp_path / bad)


def test_an_unreadable_answer_is_an_error_with_a_hint() -> None:
    from tenure.client.transport import error_from

    for body in (b"", b"\xff", b"[1]", b'{"error": "text"}', b'{"detail": "Not Found"}'):
        error = error_from(500, body, Endpoint("http://x"))
        assert isinstance(error, errors.InternalError)
        assert error.hint


async def test_a_wrong_token_is_refused(api: Api) -> None:
    async with AsyncTenure(endpoint=Endpoint("http://tenure", api.socket, "guessed")) as client:
        with pytest.raises(errors.Unauthenticated):
            await client.agents.list()


def test_the_token_is_the_homes_unless_another_is_given(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc\n")
    assert Endpoint.find(Settings(home=tmp_path)).token == "abc"
    assert Endpoint.find(Settings(home=tmp_path, token="def")).token == "def"
    assert "abc" not in repr(Endpoint.find(Settings(home=tmp_path)))


# --- following through a restart -------------------------------------------------------------------------------------------
async def restart_server(api: Api, meanwhile: Callable[[], None]) -> None:
    await api.listener.close(grace_s=0)
    meanwhile()
    api.listener = await listen(api.app, bind_unix(api.socket, 0o600), socket_path=api.socket)


async def test_events_go_on_after_a_restart_without_gap_or_repetition(api: Api, client: AsyncTenure) -> None:
    run = await client.agents("analyst").run("find them", playbook=PLAYBOOK)
    seen: list[int] = []

    async def follow() -> None:
        async for event in run.events():
            seen.append(event.seq)

    following = asyncio.create_task(follow())
    api.runs.write(run.id, "step_started")
    await eventually(lambda: seen == [1, 2])
    await restart_server(api, lambda: api.runs.write(run.id, "step_done"))
    api.runs.finish(run.id, wire.RunState.SUCCEEDED)
    await asyncio.wait_for(following, 20)
    assert seen == [1, 2, 3, 4]
    await api.listener.close(grace_s=0)


async def test_wait_waits_through_a_restart(api: Api, client: AsyncTenure) -> None:
    run = await client.agents("analyst").run("find them", playbook=PLAYBOOK)
    waiting = asyncio.create_task(run.wait())
    await asyncio.sleep(0.1)
    await api.listener.close(grace_s=0)
    await asyncio.sleep(0.3)
    assert not waiting.done()
    api.listener = await listen(api.app, bind_unix(api.socket, 0o600), socket_path=api.socket)
    api.runs.finish(run.id, wire.RunState.FAILED)
    assert (await asyncio.wait_for(waiting, 20)).state == "failed"
    await api.listener.close(grace_s=0)


def test_patience_ends() -> None:
    patience = Patience(away_s_max=10)
    assert not patience.is_over(100)
    assert not patience.is_over(110)
    patience.answered()
    assert not patience.is_over(111)
    assert patience.is_over(122)


@given(st.lists(st.text(max_size=40), max_size=5), st.integers(1, 2**40))
def test_server_sent_events_are_decoded_among_comments_and_unknown_fields(texts: list[str], seq: int) -> None:
    event = {"seq": seq, "kind": "step", "at": "2026-01-01T00:00:00Z", "data": {"texts": texts}}
    stream = f": hello\n\nid: {seq}\nretry: 5\ndata: {json.dumps(event)}\n\n: ping\n\n"
    decoder = EventDecoder()
    found = [one for line in stream.splitlines() if (one := decoder.feed(line)) is not None]
    assert [(one.seq, one.data["texts"]) for one in found] == [(seq, texts)]
    failure = json.dumps(errors.NotFound("gone").to_payload())
    assert decoder.feed("event: error") is None
    assert decoder.feed(f"data: {failure}") is None
    with pytest.raises(errors.NotFound):
        decoder.feed("")


# --- hands ---------------------------------------------------------------------------------------------------------------
@pytest.fixture
async def worker(api: Api) -> AsyncIterator[HttpHands]:
    async with HttpHands(Endpoint("http://tenure", api.socket, TOKENS.worker)) as made:
        yield made


async def test_hands_do_what_their_contract_says(api: Api, worker: HttpHands) -> None:
    assert (await worker.command_status("analyst", "k")).state is CommandState.ABSENT
    first = await worker.start_command("analyst", "k", Command("echo one"))
    again = await worker.start_command("analyst", "k", Command("echo two"))
    assert (first.output, again.output, again.exit_code) == ("one\n", "one\n", 0)
    await worker.stop_command("analyst", "k")
    await worker.forget_command("analyst", "k")
    assert (await worker.command_status("analyst", "k", wait_s=99)).state is CommandState.ABSENT
    assert (await worker.sql("analyst", "select 7", key="q")).rows == [[7]]
    assert (await worker.sql("analyst", "select 8", key="q")).repeated
    await worker.notify("analyst", "Done", "all", key="n", run_id="run_1")
    await worker.notify("analyst", "Done", "all", key="n", run_id="run_1")
    assert [(m.subject, m.agent, m.run_id) for m in await api.inbox.list()] == [("Done", "analyst", "run_1")]
    (api.directory / "files" / "report.md").write_bytes(EVERY_BYTE)
    stored = await worker.put_object("analyst", "report.md", "reports", "r.md", key="p")
    assert (stored["bucket"], stored["name"], stored["size_bytes"]) == ("reports", "r.md", 256)
    assert await worker.read_file("analyst", "report.md", bytes_max=10) == EVERY_BYTE[:10]
    assert await worker.read_file("analyst", "none") is None
    await worker.reconnect("analyst")
    await worker.restart("analyst")
    assert await worker.probe("analyst")
    assert not await worker.probe("nobody")
    for call in (worker.read_file("nobody", "x"), worker.sql("nobody", "select 1"), worker.restart("nobody")):
        with pytest.raises(errors.NotFound):
            await call


async def test_a_keyed_effect_is_sent_again_after_a_restart_and_one_without_key_is_not(
    api: Api, worker: HttpHands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server dies after it did the work and before it answered."""
    monkeypatch.setattr(hands, "RETRY_WAITS_S", (0.05, 0.5))
    done: list[str | None] = []
    office = api.offices._offices["analyst"]
    execute = office.database.execute

    async def execute_and_die(statement: str, *, key: str | None = None, **options: Any) -> Any:
        result = await execute(statement, key=key, **options)
        done.append(key)
        if len(done) in (1, 3):
            asyncio.get_running_loop().call_soon(_drop_connections, api)
            await asyncio.sleep(5)
        return result

    monkeypatch.setattr(office.database, "execute", execute_and_die)
    answer = await worker.sql("analyst", "select 7", key="q")
    assert (answer.rows, answer.repeated, done) == ([[7]], True, ["q", "q"])
    with pytest.raises(errors.ServerUnreachable):
        await worker.sql("analyst", "select 7")
    assert done == ["q", "q", None]


def _drop_connections(api: Api) -> None:
    for connection in list(api.listener._state.connections):
        connection.transport.abort()  # type: ignore[union-attr]


async def test_hands_raise_when_the_server_stays_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hands, "RETRY_WAITS_S", (0.01,))
    async with HttpHands.from_settings(Settings(home=tmp_path)) as worker:
        with pytest.raises(errors.ServerUnreachable):
            await worker.start_command("analyst", "k", Command("true"))
        assert not await worker.probe("analyst")


# --- attach --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "request_",
    [
        AttachRequest(argv=["ls", "ü"], env={"A": "b"}, cwd="/tmp", tty=(24, 80)),
        AttachRequest(script="echo 1", user="root"),
        AttachRequest(login=True),
    ],
)
def test_the_light_attach_request_is_what_the_server_reads(request_: AttachRequest) -> None:
    read = wire.AttachRequest.model_validate_json(request_.to_json())
    assert (read.argv, read.script, read.login) == (request_.argv, request_.script, request_.login)
    assert (read.env, read.cwd, read.user) == (request_.env, request_.cwd, request_.user)
    assert (read.tty and (read.tty.rows, read.tty.cols)) == request_.tty


async def test_an_attached_command_streams_and_a_server_that_dies_is_told(api: Api, endpoint: Endpoint) -> None:
    def talk() -> None:
        with Attachment(endpoint, "analyst", AttachRequest(argv=["cat"])) as attachment:
            attachment.send_stdin(b"one")
            assert attachment.receive() == (Channel.STDOUT, b"one")
            attachment.end_stdin()
            assert attachment.receive() is None
            assert attachment.exit_code == 0
        with pytest.raises(errors.InvalidArgument):
            Attachment(endpoint, "analyst", AttachRequest(argv=["cat"], user="mallory")).receive()
        with pytest.raises(errors.NotFound):
            Attachment(endpoint, "nobody", AttachRequest(argv=["cat"]))
        with pytest.raises(errors.TooLarge):
            Attachment(endpoint, "analyst", AttachRequest(argv=["cat", "x" * 2**21]))
        with Attachment(endpoint, "analyst", AttachRequest(argv=["hang"])) as attachment:
            loop.call_soon_threadsafe(_drop_connections, api)
            with pytest.raises(errors.ServerUnreachable):
                attachment.receive()

    loop = asyncio.get_running_loop()
    await asyncio.to_thread(talk)


# --- archives ------------------------------------------------------------------------------------------------------------
def silent(_: str) -> None:
    return None


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> Iterator[bytes]:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return iter([file.getvalue()])


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    return info


def test_a_tree_comes_back_as_it_was(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep" / ("n" * 120)).mkdir(parents=True)
    (source / "deep" / ("n" * 120) / "ü.bin").write_bytes(EVERY_BYTE * 5000)
    (source / "empty").touch()
    (source / "tool").write_text("#!/bin/sh")
    (source / "tool").chmod(0o750)
    (source / "here").symlink_to("deep")
    archive.unpack(archive.pack(source, "anything", silent), tmp_path / "copy", silent)
    copy = tmp_path / "copy"
    assert (copy / "deep" / ("n" * 120) / "ü.bin").read_bytes() == EVERY_BYTE * 5000
    assert (copy / "tool").stat().st_mode & 0o777 == 0o750
    assert (copy / "tool").stat().st_mtime == pytest.approx((source / "tool").stat().st_mtime, abs=1e-3)
    assert (copy / "here").readlink() == Path("deep")
    assert sorted(p.name for p in copy.iterdir()) == ["deep", "empty", "here", "tool"]


@pytest.mark.parametrize(
    "members",
    [
        [(member("/etc/x"), b"bad")],
        [(member("top/../../x"), b"bad")],
        [(member("top", tarfile.DIRTYPE), b""), (member("top/sub/x"), b"bad")],
        [(member("top", tarfile.DIRTYPE), b""), (member("top/hard", tarfile.LNKTYPE, "../../secret"), b"")],
    ],
    ids=["absolute", "parent", "no directory", "hard link"],
)
def test_an_archive_that_would_write_elsewhere_is_refused(
    tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "in").mkdir()
    with pytest.raises(errors.InvalidArgument):
        archive.unpack(tar_of(*members), tmp_path / "in" / "target", silent)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "secret"]


def test_an_archive_cannot_write_through_its_own_links_or_make_links_that_lead_out(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    told: list[str] = []
    stream = tar_of(
        (member("top", tarfile.DIRTYPE), b""),
        (member("top/out", tarfile.SYMTYPE, "../secret"), b""),
        (member("top/abs", tarfile.SYMTYPE, "/etc/passwd"), b""),
        (member("top/out"), b"overwritten"),
        (member("top/suid", mode=0o4755), b"x"),
        (member("top/dev", tarfile.CHRTYPE), b""),
    )
    archive.unpack(stream, tmp_path / "target", told.append)
    assert (tmp_path / "secret").read_text() == "secret"
    assert (tmp_path / "target" / "out").read_text() == "overwritten"
    assert not (tmp_path / "target" / "out").is_symlink()
    assert (tmp_path / "target" / "suid").stat().st_mode & 0o7777 == 0o755
    assert sorted(p.name for p in (tmp_path / "target").iterdir()) == ["out", "suid"]
    assert len(told) == 3


def test_a_link_that_was_there_before_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "target"
    target.mkdir()
    (target / "file").symlink_to(tmp_path / "secret")
    (target / "sub").symlink_to(tmp_path / "elsewhere")
    archive.unpack(tar_of((member("top", tarfile.DIRTYPE), b""), (member("top/file"), b"new")), target, silent)
    assert ((tmp_path / "secret").read_text(), (target / "file").read_text()) == ("secret", "new")
    with pytest.raises(errors.InvalidArgument):
        archive.unpack(tar_of((member("top/sub/x"), b"bad")), target, silent)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("cut", [1, 300, 700])
def test_an_archive_that_breaks_off_is_an_error(tmp_path: Path, cut: int) -> None:
    (tmp_path / "source").write_bytes(EVERY_BYTE * 2)
    whole = b"".join(archive.pack(tmp_path / "source", "x", silent))
    with pytest.raises(errors.TenureError):
        archive.unpack(iter([whole[:cut]]), tmp_path / "target", silent)


# --- shared databases ------------------------------------------------------------------------------------------------------
async def test_shared_databases_are_made_granted_forked_and_restored(client: AsyncTenure, endpoint: Endpoint) -> None:
    sales = await client.databases.create("sales", connections=2)
    assert sales.info is not None
    assert (sales.info.host, sales.info.limits.connections) == ("sales.db", 2)
    assert (await sales.sql("select 5")).rows == [[5]]
    with pytest.raises(errors.Forbidden):
        await sales.sql("select 5", agent="analyst")
    granted = await sales.grant("analyst", "read", tables={"orders": "region = 'north'", "items": None})
    assert granted.tables is not None
    assert {name: scope.rows for name, scope in granted.tables.items()} == {"orders": "region = 'north'", "items": None}
    assert (await sales.sql("select 5", agent="analyst", key="k")).rows == [[5]]

    def blocking_too(sync: Tenure) -> None:
        one = sync.databases("sales")
        assert [grant.agent for grant in one.grants()] == ["analyst"]
        assert b"".join(one.sql_csv("select 5")).endswith(b"5\n")
        taken = one.snapshot("first")
        assert [found.id for found in one.snapshots()] == [taken.id]
        assert one.restore("first").snapshot.id == taken.id
        one.delete_snapshot("first")
        assert one.fork("copy").info is not None
        assert (one.sleep().state, one.wake().state, one.limit(disk_gb=3).limits.disk_gb) == ("asleep", "awake", 3)
        assert one.back_up("s3://bucket/x/", every_s=3600).backup is not None
        assert one.back_up_now().backup is not None
        made = sync.databases.restore("sales", one.show().created_at, "then")
        assert made.show().origin is not None
        one.back_up_no_more()
        one.revoke("analyst")
        assert [found.name for found in sync.databases.list()] == ["sales", "copy", "then"]
        one.delete()
        with pytest.raises(errors.NotFound):
            sync.databases.get("sales")

    await use(endpoint, blocking_too)


def test_both_halves_of_shared_databases_have_the_same_methods() -> None:
    from tenure.client import databases

    for noun in ("Databases", "Database"):
        one, other = getattr(databases, noun), getattr(databases, f"Async{noun}")
        shapes = [
            {
                name: list(inspect.signature(method).parameters)
                for name, method in inspect.getmembers(cls, inspect.isfunction)
                if not name.startswith("_")
            }
            for cls in (one, other)
        ]
        assert shapes[0] == shapes[1]
