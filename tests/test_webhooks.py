"""Webhooks in: nobody is told that a delivery came before it is durable, whatever is asleep, full, broken or killed meanwhile."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import pytest_asyncio

from databases import needs_root, office_database
from fixtures.api import TOKENS
from tenure.brains.tools import OfficeTools
from tenure.data.database import OfficeDatabase
from tenure.data.webhooks import receiver as receiving
from tenure.data.webhooks import spool as spooling
from tenure.data.webhooks.hooks import OLD_SECRET_S, Webhooks
from tenure.data.webhooks.receiver import Outcome, Receiver
from tenure.data.webhooks.spool import Spool
from tenure.data.webhooks.store import Hook, HookStore
from tenure.database import ControlDatabase
from tenure.errors import AlreadyExists, DatabaseError, DiskFull, InvalidArgument, NotFound
from tenure.postgres.cluster import ClusterState
from tenure.secrets.kept import KeptSecrets
from tenure.server.gateway import hooks as gate
from tenure.server.gateway.hooks import with_hooks
from tenure.server.gateway.preview import Previews
from tenure.server.listeners import listen
from tenure.testing.fake_triggers import FakeHookStore
from tenure.work.thoughts import CallResult
from tenure.work.toolbox import CallOrder

pytest_plugins = ("fixtures.server",)
pytestmark = [needs_root, pytest.mark.asyncio(loop_scope="module")]

START = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)
MONTH = timedelta(days=30)


@dataclass
class Clock:
    now: datetime = START

    def __call__(self) -> datetime:
        return self.now


@dataclass
class Post:
    """The service on a real database, whose ways can be barred."""

    hooks: Webhooks
    database: OfficeDatabase
    clock: Clock
    spool_dir: Path
    told: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    barred: Exception | None = None
    hangs: bool = False
    opened: int = 0

    async def find(self, agent: str) -> Any:
        self.opened += 1
        if agent != "analyst":
            raise NotFound(agent)
        if self.hangs:
            await asyncio.Event().wait()
        if self.barred is not None:
            raise self.barred
        return self.database

    async def tell(self, agent: str, key: str, subject: str, body: str) -> None:
        self.told.append((key, subject))

    async def made(self, name: str = "orders", **more: Any) -> tuple[Hook, str]:
        hook, secret = await self.hooks.create(name, "analyst", keep=MONTH, **more)
        return hook, secret or ""

    def sent(self, secret: str, body: bytes = b'{"n": 1}', message: str = "msg_1") -> dict[str, str]:
        """Standard Webhooks' headers, made here."""
        at = int(self.clock.now.timestamp())
        key = base64.b64decode(secret.removeprefix("whsec_"))
        mac = hmac.new(key, f"{message}.{at}.".encode() + body, hashlib.sha256).digest()
        return {
            "content-type": "application/json",
            "webhook-id": message,
            "webhook-timestamp": str(at),
            "webhook-signature": f"v1,{base64.b64encode(mac).decode()}",
        }

    async def rows(self, columns: str = "dedupe", where: str = "true") -> list[Any]:
        found = await self.database.execute(
            f"select {columns} from webhooks.deliveries where {where} order by received_at, id"
        )
        return [row[0] if len(row) == 1 else row for row in found.rows]

    async def count(self) -> int:
        return (await self.database.execute("select count(*) from webhooks.deliveries")).rows[0][0]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[OfficeDatabase]:
    async with office_database() as database:
        yield database


@pytest_asyncio.fixture(loop_scope="module")
async def post(shared: OfficeDatabase, tmp_path: Path) -> AsyncIterator[Post]:
    await shared.execute("drop schema if exists webhooks cascade")
    clock = Clock()
    made = Post(None, shared, clock, tmp_path / "spool")  # type: ignore[arg-type]
    receiver = Receiver(made.find, Spool(made.spool_dir), made.tell, clock)
    made.hooks = Webhooks(FakeHookStore(), receiver, KeptSecrets(tmp_path / "keys"), clock)
    yield made
    await shared.execute("alter role agent reset all")


# --- stored --------------------------------------------------------------------------------------------------------------
async def test_a_delivery_is_in_the_agents_database_before_the_answer(post: Post) -> None:
    hook, secret = await post.made()
    body = json.dumps({"price": 9.5, "text": "it's \\ \u2028 'quoted'"}).encode()
    headers = post.sent(secret, body) | {"authorization": "Bearer theirs", "x-note": "'; drop table x; --\\"}
    assert await post.hooks.receive(hook, headers, body) is Outcome.STORED
    ((kept, at, name, raw, price, verdict),) = await post.rows(
        "headers, received_at, hook, encode(body, 'base64'), json->>'price', signature"
    )
    assert base64.b64decode(raw) == body
    assert (name, price, verdict) == ("orders", "9.5", "valid")
    kept = json.loads(kept) if isinstance(kept, str) else kept
    assert kept == headers | {"authorization": "[not kept]"}
    assert datetime.fromisoformat(at) == START


@pytest.mark.parametrize(
    ("body", "is_json"),
    [
        (b"", False),
        (bytes(range(256)), False),
        (b'{"a": "\\u0000"}', False),
        (b'{"a": 1e400000}', False),
        (b'{"a": "\\ud800"}', False),
        (b"[" * 5000 + b"]" * 5000, False),
        (b"null", False),
        (b'"text"', True),
        (b"payload=%7B%7D", False),
        (b'{"a": "' + b"x" * 1_000_000 + b'"}', True),
    ],
)
async def test_any_body_is_stored_byte_for_byte(post: Post, body: bytes, is_json: bool) -> None:
    hook, _ = await post.made(signature="none")
    assert await post.hooks.receive(hook, {}, body) is Outcome.STORED
    ((digest, parsed),) = await post.rows("encode(sha256(body), 'hex'), json is not null")
    assert (digest, parsed) == (hashlib.sha256(body).hexdigest(), is_json)


@pytest.mark.parametrize(
    "setting", ["standard_conforming_strings = off", "synchronous_commit = off", "search_path = pg_temp"]
)
async def test_what_a_stranger_sends_is_never_read_as_sql_however_the_agent_set_its_database(
    post: Post, setting: str
) -> None:
    hook, _ = await post.made(signature="none")
    await post.database.execute(f"alter role agent set {setting}")
    nasty = "\\'; drop schema webhooks cascade; --"
    assert await post.hooks.receive(hook, {"x-a": nasty, "webhook-id": nasty}, nasty.encode()) is Outcome.STORED
    await post.database.execute("alter role agent reset all")
    assert await post.rows("dedupe") == [nasty]


async def test_the_same_delivery_is_stored_once_however_often_and_however_many_at_once(post: Post) -> None:
    hook, secret = await post.made()
    headers = post.sent(secret)
    outcomes = await asyncio.gather(*(post.hooks.receive(hook, headers, b'{"n": 1}') for _ in range(8)))
    assert sorted(outcomes) == [Outcome.REPEATED] * 7 + [Outcome.STORED]
    other, _ = await post.made("others", signature="none")
    assert await post.hooks.receive(other, {"webhook-id": "msg_1"}, b"") is Outcome.STORED, "ids are a hook's own"
    for _ in range(2):
        assert await post.hooks.receive(other, {}, b"no id") is Outcome.STORED
    assert await post.count() == 4


async def test_what_is_not_signed_is_refused_counted_and_not_stored(post: Post) -> None:
    hook, secret = await post.made()
    good = post.sent(secret)
    assert await post.hooks.receive(hook, good, b'{"n": 2}') is Outcome.REFUSED
    assert await post.hooks.receive(hook, {}, b'{"n": 1}') is Outcome.REFUSED
    post.clock.now += timedelta(minutes=6)
    assert await post.hooks.receive(hook, good, b'{"n": 1}') is Outcome.REFUSED, "a recording"
    assert await post.hooks.receive(hook, post.sent(secret), b'{"n": 1}') is Outcome.STORED
    await post.hooks.count()
    found = await post.hooks.get("orders")
    assert (found.received, found.repeated, found.refused) == (1, 0, 3)
    assert "before or after" in found.last_refusal
    assert await post.count() == 1


async def test_old_deliveries_go_when_new_ones_come(post: Post) -> None:
    hook, _ = await post.made(signature="none")
    await post.hooks.receive(hook, {"webhook-id": "now"}, b"")
    await post.database.execute(
        "update webhooks.deliveries set received_at = now() - interval '31 days'; "
        "insert into webhooks.deliveries select 'x', 'other', received_at, headers, body, json, signature, 'kept' "
        "from webhooks.deliveries"
    )
    post.clock.now += receiving.FORGET_EVERY
    await post.hooks.receive(hook, {"webhook-id": "later"}, b"")
    assert sorted(await post.rows()) == ["kept", "later"]


async def test_a_sleeping_database_is_started_for_it(post: Post) -> None:
    hook, _ = await post.made(signature="none")
    await post.database.stop()
    assert await post.database.state() is ClusterState.STOPPED
    assert await post.hooks.receive(hook, {"webhook-id": "woke"}, b"") is Outcome.STORED
    assert await post.rows() == ["woke"]


# --- spooled ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("trouble", ["full", "broken", "hangs", "altered"])
async def test_what_the_database_cannot_take_waits_on_disk_and_comes_in_later_in_order(
    post: Post, trouble: str
) -> None:
    hook, _ = await post.made(signature="none")
    if trouble == "hangs":
        post.hangs, post.hooks.receiver.database_wait_s = True, 0.05
    elif trouble == "altered":
        await post.database.execute("alter table webhooks.deliveries rename column hook to hooked")
    else:
        post.barred = DiskFull("full") if trouble == "full" else DatabaseError("broken")
    for number in range(5):
        assert await post.hooks.receive(hook, {"webhook-id": f"{number}"}, b"x") is Outcome.SPOOLED
        post.clock.now += timedelta(seconds=1)
    if trouble != "hangs":
        await post.hooks.receiver.drain()
        assert post.hooks.receiver.spool.waiting("analyst") == 5
    post.barred, post.hangs = None, False
    if trouble == "altered":
        await post.database.execute("alter table webhooks.deliveries rename column hooked to hook")
    assert await post.hooks.receive(hook, {"webhook-id": "5"}, b"x") is Outcome.SPOOLED, "it would overtake the others"
    post.clock.now += timedelta(minutes=1)
    await post.hooks.receiver.drain()
    assert post.hooks.receiver.spool.waiting("analyst") == 0
    assert await post.rows("dedupe") == [str(number) for number in range(6)]
    assert await post.rows("dedupe", "true") == [str(number) for number in range(6)]
    assert await post.hooks.receive(hook, {"webhook-id": "6"}, b"x") is Outcome.STORED


async def test_a_server_that_starts_anew_finds_what_waits(post: Post) -> None:
    hook, _ = await post.made(signature="none")
    post.barred = DatabaseError("broken")
    for number in range(3):
        await post.hooks.receive(hook, {"webhook-id": f"{number}"}, bytes([number, 10, 255]))
        post.clock.now += timedelta(seconds=1)
    (post.spool_dir / "analyst" / "x.delivery.new").write_bytes(b"half")
    (post.spool_dir / "analyst" / "00-spoilt.delivery").write_bytes(b"no line")
    post.barred = None
    after = Receiver(post.find, Spool(post.spool_dir), post.tell, post.clock)
    assert after.spool.waiting("analyst") == 4
    await after.drain()
    assert await post.rows("dedupe || encode(body, 'hex')") == ["0000aff", "1010aff", "2020aff"]
    assert [file.suffix for file in (post.spool_dir / "analyst").iterdir()] == [".spoilt"]


async def test_what_came_in_before_a_crash_comes_in_once(post: Post) -> None:
    hook, _ = await post.made(signature="none")
    post.barred = DatabaseError("broken")
    await post.hooks.receive(hook, {}, b"no id of its own")
    post.barred = None
    (file,) = (post.spool_dir / "analyst").iterdir()
    data = file.read_bytes()
    post.clock.now += timedelta(minutes=1)
    await post.hooks.receiver.drain()
    file.write_bytes(data)  # the server died before it was removed
    await Receiver(post.find, Spool(post.spool_dir), post.tell, post.clock).drain()
    assert await post.count() == 1
    assert not file.exists()


@pytest.mark.parametrize("limit", ["FILES_MAX", "AGENT_BYTES_MAX", "TOTAL_BYTES_MAX", "disk"])
async def test_when_nobody_can_keep_it_nobody_says_so(post: Post, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hook, _ = await post.made(signature="none")
    post.barred = DatabaseError("broken")
    if limit == "disk":
        failed: list[int] = []

        def no_room(descriptor: int) -> None:
            failed.append(descriptor)
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(spooling.os, "fsync", no_room)
    else:
        monkeypatch.setattr(spooling, limit, 0)
    assert await post.hooks.receive(hook, {}, b"x") is Outcome.FULL
    if limit == "disk":
        assert failed
    assert post.hooks.receiver.spool.waiting("analyst") == 0
    assert not list(post.spool_dir.glob("*/*"))


async def test_the_owner_is_told_once_of_deliveries_that_wait_too_long(post: Post) -> None:
    hook, _ = await post.made(signature="none")
    post.barred = DatabaseError("the table is not as it was")
    await post.hooks.receive(hook, {}, b"x")
    for _ in range(100):
        await post.hooks.receiver.drain()
        post.clock.now += timedelta(minutes=1)
    assert len(set(post.told)) == 1
    assert post.opened < 120, "it is tried less and less often"
    assert "wait for the database of analyst" in post.told[0][1]


async def test_one_agents_trouble_is_in_no_others_way(post: Post) -> None:
    hook, _ = await post.made(signature="none")
    stranger = Hook("whk_x", "x", "x", "gone", "none", MONTH, START)
    assert await post.hooks.receive(stranger, {}, b"x") is Outcome.SPOOLED
    assert await post.hooks.receive(hook, {"webhook-id": "a"}, b"x") is Outcome.STORED
    await post.hooks.receiver.drain()
    assert post.hooks.receiver.spool.waiting("gone") == 1


# --- hooks -------------------------------------------------------------------------------------------------------------------
async def test_two_secrets_are_good_for_a_day_and_then_one(post: Post) -> None:
    hook, old = await post.made()
    rotated, new = await post.hooks.rotate(hook)
    assert rotated.address == hook.address
    assert new
    for secret, message in ((old, "a"), (new, "b")):
        assert await post.hooks.receive(rotated, post.sent(secret, message=message), b'{"n": 1}') is Outcome.STORED
    post.clock.now += timedelta(seconds=OLD_SECRET_S)
    assert await post.hooks.receive(rotated, post.sent(old, message="c"), b'{"n": 1}') is Outcome.REFUSED
    assert await post.hooks.receive(rotated, post.sent(new, message="d"), b'{"n": 1}') is Outcome.STORED


async def test_secrets_are_files_of_the_owner_alone_and_go_with_the_hook(post: Post, tmp_path: Path) -> None:
    hook, secret = await post.made()
    (file,) = (tmp_path / "keys").iterdir()
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert secret in file.read_text()
    await post.hooks.delete(hook)
    assert not list((tmp_path / "keys").iterdir())
    assert await post.hooks.at(hook.address) is None
    again, _ = await post.made()
    post.barred = DatabaseError("broken")
    nothing, _ = await post.made("nothing", signature="none")
    await post.hooks.receive(nothing, {}, b"x")
    await post.hooks.forget("analyst")
    assert not list((tmp_path / "keys").iterdir())
    assert not list(post.spool_dir.glob("*/*"))
    assert await post.hooks.at(again.address) is None


@pytest.mark.parametrize(
    "scheme", ["standard", "github", "stripe", "slack", "shopify", "none", "hmac:X-Sign:sha1:base64"]
)
async def test_a_test_delivery_is_signed_as_its_sender_would(post: Post, scheme: str) -> None:
    hook, _ = await post.made(signature=scheme)
    assert await post.hooks.test(hook) is Outcome.STORED
    assert await post.hooks.test(hook) is Outcome.STORED
    listed = await post.hooks.deliveries(hook)
    assert [one["signature"] for one in listed] == ["none" if scheme == "none" else "valid"] * 2
    shown = await post.hooks.delivery(hook, listed[0]["id"])
    assert json.loads(base64.b64decode(shown["body"]))["type"] == "tenure.test"
    with pytest.raises(NotFound):
        await post.hooks.delivery(hook, "dlv_' or true")


async def test_what_makes_no_sense_is_refused(post: Post) -> None:
    with pytest.raises(InvalidArgument, match="no kind of signature"):
        await post.made(signature="svix")
    with pytest.raises(InvalidArgument, match="there is no secret"):
        await post.made(signature="none", secret="a" * 20)
    hook, _ = await post.made(signature="none")
    with pytest.raises(InvalidArgument, match="no secret"):
        await post.hooks.rotate(hook)
    moved, _ = await post.hooks.rotate(hook, address=True)
    assert moved.address != hook.address
    assert await post.hooks.at(hook.address) is None
    assert (await post.hooks.at(moved.address)) == moved
    with pytest.raises(AlreadyExists):
        await post.made(signature="none")


async def test_a_brain_reads_what_came_with_its_tool(post: Post) -> None:
    hook, _ = await post.made(signature="none")
    await post.hooks.receive(hook, {"webhook-id": "a"}, b'{"n": 17}')
    post.clock.now += timedelta(seconds=1)
    await post.hooks.receive(hook, {"webhook-id": "b", "x-a": "b"}, b"\x00 no JSON")
    (latest, _) = await post.hooks.deliveries(hook)

    async def sql(agent: str, statement: str, *, rows_max: int, read_only: bool) -> Any:
        assert agent == "analyst"
        return await post.database.execute(statement, rows_max=rows_max, read_only=read_only)

    async def told(**arguments: Any) -> str:
        order = CallOrder("analyst", "", "n", "k", "webhook_deliveries", arguments, fresh=True)
        result = await OfficeTools().call(SimpleNamespace(sql=sql), order)  # type: ignore[arg-type]
        assert isinstance(result, CallResult)
        assert result.ok, result
        return result.output

    both = await told()
    assert both.index("no JSON") < both.index('{"n": 17}')
    assert "17" not in await told(limit=1)
    assert "17" not in (one := await told(hook="orders", delivery=latest["id"]))
    assert '"x-a": "b"' in one.replace("\\", "")
    assert "no such deliveries" in await told(hook="'; drop schema webhooks; --")
    await post.database.execute("drop schema webhooks cascade")
    assert "Nothing was ever sent" in await told()


async def test_rows_of_hooks_are_kept_in_the_control_database(control_dsn: str) -> None:
    async with ControlDatabase(control_dsn) as database:
        for name in ("analyst", "copy"):
            await database.execute("insert into agents (name, image, stage) values (%s, 'i', 'asleep')", (name,))
        for store in (HookStore(database), FakeHookStore()):
            hook = Hook("whk_1", "ab", "orders", "analyst", "none", MONTH, START)
            await store.add(hook)
            with pytest.raises(AlreadyExists):
                await store.add(Hook("whk_2", "cd", "orders", "analyst", "none", MONTH, START))
            assert list(await store.find("orders")) == list(await store.find("whk_1", "analyst")) == [hook]
            assert await store.list("copy") == [], "a fork has none of its origin's"
            counts = receiving.Counts(received=2, repeated=1, refused=3, last_received_at=START, last_refusal="why")
            await store.count("whk_1", counts)
            await store.count("whk_1", receiving.Counts(refused=1, last_refused_at=START))
            await store.rotated("whk_1", "ef", START)
            (found,) = await store.list()
            assert (found.received, found.repeated, found.refused, found.last_refusal) == (2, 1, 4, "why")
            assert (found.address, found.rotated_at, found.keep) == ("ef", START, MONTH)
            assert await store.delete("whk_1")
            assert not await store.delete("whk_1")
        store = HookStore(database)
        with pytest.raises(NotFound):
            await store.add(Hook("whk_2", "cd", "orders", "nobody", "none", MONTH, START))


# --- over HTTP -----------------------------------------------------------------------------------------------------------------
@dataclass
class Web:
    post: Post
    port: int
    gate: gate.HookGate

    def client(self, host: str = "hooks.example.com") -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", headers={"Host": host}, timeout=30)

    async def raw(self, data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        async with asyncio.timeout(30):
            answer = await reader.read()
        writer.close()
        return answer


@pytest_asyncio.fixture(loop_scope="module")
async def web(post: Post, short_dir: Path) -> AsyncIterator[Web]:
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    port = int(sock.getsockname()[1])
    app, services = _api(short_dir, port)
    hooked = with_hooks(app, post.hooks)
    assert isinstance(hooked, gate.HookGate)
    listener = await listen(Previews(hooked, services, TOKENS), sock)
    yield Web(post, port, hooked)
    await listener.close(grace_s=0.5)


def _api(home: Path, port: int) -> tuple[Any, Any]:
    from tenure.server.app import create_app
    from tenure.server.gateway.passes import Passes
    from tenure.server.services import Gateway, Services
    from tenure.settings import Settings
    from tenure.testing.fake_brains import FakeBrains
    from tenure.testing.fake_offices import FakeOffices
    from tenure.testing.fake_runs import FakeRuns
    from tenure.testing.fake_ssh_keys import FakeSshKeys
    from tenure.testing.fake_triggers import triggers_of

    settings = Settings(home=home, port=port)
    given: dict[str, Any] = dict.fromkeys(Services.__dataclass_fields__)
    given |= {
        "settings": settings,
        "offices": FakeOffices(),
        "gateway": Gateway(FakeSshKeys(), Passes(TOKENS.owner)),
        "triggers": triggers_of(FakeRuns(), FakeBrains()),
        "worker_pids": list,
    }
    services = Services(**given)
    return create_app(services, TOKENS), services


async def test_strangers_reach_a_hooks_address_by_any_name_and_nothing_else(web: Web) -> None:
    hook, secret = await web.post.made()
    async with web.client() as stranger:
        sent = await stranger.post(f"/hooks/{hook.address}", content=b'{"n": 1}', headers=web.post.sent(secret))
        assert (sent.status_code, sent.json()) == (200, {"stored": True})
        wrong = await stranger.post(f"/hooks/{hook.address}", content=b'{"n": 2}', headers=web.post.sent(secret))
        assert (wrong.status_code, wrong.json()) == (401, {"error": "the signature does not hold"})
        for path in ("/v1/agents", "/v1/webhooks", "/v1/health", "/openapi.json", "/hooks", "/"):
            refused = await stranger.post(path, headers={"Authorization": f"Bearer {TOKENS.owner}"})
            assert (refused.status_code, "Host header" in refused.text) == (403, True), path
        for path in (
            "/hooks/",
            "/hooks/x",
            f"/hooks/{hook.address}/",
            f"/hooks/{hook.address[:-1]}",
            f"/hooks/{hook.id}",
            f"/hooks/{hook.address}/../../v1/agents",
            "/hooks/..%2fv1%2fagents",
            "/hooks/" + "0" * 40,
        ):
            assert (await stranger.post(path)).status_code in (403, 404), path
        got = await stranger.get(f"/hooks/{hook.address}")
        assert (got.status_code, got.headers["allow"]) == (405, "POST")
    assert await web.post.rows() == ["msg_1"]
    async with web.client("8000--analyst.localhost") as preview:
        answer = await preview.post(f"/hooks/{hook.address}", content=b"x")
        assert answer.status_code != 200, "a preview's paths are its office's own"


async def test_what_waits_on_disk_is_told_as_accepted_and_what_nobody_keeps_as_later(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook, _ = await web.post.made(signature="none")
    web.post.barred = DatabaseError("broken")
    async with web.client() as sender:
        assert (await sender.post(f"/hooks/{hook.address}")).status_code == 202
        assert web.post.hooks.receiver.spool.waiting("analyst") == 1
        monkeypatch.setattr(spooling, "FILES_MAX", 1)
        later = await sender.post(f"/hooks/{hook.address}")
        assert (later.status_code, later.headers["retry-after"]) == (503, str(gate.RETRY_AFTER_S))


async def test_bodies_and_headers_are_bounded(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    hook, _ = await web.post.made(signature="none")
    path = f"/hooks/{hook.address}"

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield b"x" * 65536

    async with web.client() as sender:
        assert (await sender.post(path, content=b"x" * gate.BODY_BYTES_MAX)).status_code == 200
        too_long = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {gate.BODY_BYTES_MAX + 1}\r\n\r\n"
        assert (await web.raw(too_long.encode())).startswith(b"HTTP/1.1 413"), "before any of it was sent"
        many = {f"x-{n}": "y" for n in range(gate.HEADERS_MAX + 1)}
        assert (await sender.post(path, headers=many)).status_code == 431
        assert (await sender.post(path, headers={"x": "y" * gate.HEADER_BYTES_MAX})).status_code == 431
    async with web.client() as sender:
        with contextlib.suppress(httpx.TransportError):  # it may hang up in the middle
            assert (await sender.post(path, content=endless())).status_code == 413
    monkeypatch.setattr(gate, "BODY_WAIT_S", 0.2)
    slow = await web.raw(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc".encode())
    assert slow.startswith(b"HTTP/1.1 408")
    assert await web.post.count() == 1


async def test_a_sender_that_hangs_up_in_the_middle_leaves_nothing(web: Web) -> None:
    hook, _ = await web.post.made(signature="none")
    _, writer = await asyncio.open_connection("127.0.0.1", web.port)
    writer.write(f"POST /hooks/{hook.address} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc".encode())
    await writer.drain()
    while not web.gate._in_flight[hook.id]:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    writer.close()
    while web.gate._in_flight[hook.id]:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    assert await web.post.count() == 0


async def test_one_hook_takes_only_its_share(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "BURST", 3)
    monkeypatch.setattr(gate, "RATE_PER_S", 0.001)
    monkeypatch.setattr(gate, "HOOK_IN_FLIGHT_MAX", 2)
    first, _ = await web.post.made("first", signature="none")
    second, _ = await web.post.made("second", signature="none")
    async with web.client() as sender:
        got = [(await sender.post(f"/hooks/{first.address}")).status_code for _ in range(5)]
        assert got == [200, 200, 200, 429, 429]
        web.post.hangs = True
        open_ones = [asyncio.create_task(sender.post(f"/hooks/{second.address}")) for _ in range(2)]
        while web.gate._in_flight[second.id] < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        crowded = await sender.post(f"/hooks/{second.address}")
        assert (crowded.status_code, crowded.headers["retry-after"]) == (503, "1")
        web.post.hangs = False
        for task in open_ones:
            task.cancel()
        await asyncio.gather(*open_ones, return_exceptions=True)


async def test_guessing_addresses_is_slowed_down_and_never_asks_the_database_for_each(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    real = web.post.hooks._store.list  # pyright: ignore[reportPrivateUsage]

    async def noted(agent: str | None = None) -> Any:
        looked.append(1)
        return await real(agent)

    monkeypatch.setattr(web.post.hooks._store, "list", noted)  # pyright: ignore[reportPrivateUsage]
    web.gate._strangers = gate.Bucket(0.001, 30)  # pyright: ignore[reportPrivateUsage]
    async with web.client() as stranger:
        got = [(await stranger.post(f"/hooks/{number:040x}")).status_code for number in range(60)]
    assert got == [404] * 30 + [429] * 30
    assert len(looked) < 20


async def test_slack_hears_its_challenge_when_it_is_signed(web: Web) -> None:
    hook, secret = await web.post.made(signature="slack")
    body = json.dumps({"type": "url_verification", "challenge": "c1"}).encode()
    at = int(web.post.clock.now.timestamp())
    mac = hmac.new(secret.encode(), f"v0:{at}:".encode() + body, hashlib.sha256).hexdigest()
    headers = {"x-slack-request-timestamp": str(at), "x-slack-signature": f"v0={mac}"}
    async with web.client() as slack:
        assert (await slack.post(f"/hooks/{hook.address}", content=body, headers=headers)).json() == {"challenge": "c1"}
        assert (await slack.post(f"/hooks/{hook.address}", content=body)).status_code == 401


# --- killed ------------------------------------------------------------------------------------------------------------------
RECEIVER = """
import asyncio, sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tenure.data.webhooks.receiver import Receiver
from tenure.data.webhooks.spool import Spool
from tenure.data.webhooks.store import Hook
from tenure.errors import ServerUnreachable
from tenure.faultpoints import arm_from_environment
async def none(agent): raise ServerUnreachable("asleep")
async def tell(*_): pass
async def main():
    now = datetime.now(UTC)
    hook = Hook("whk_1", "x", "orders", "analyst", "none", timedelta(days=1), now)
    receiver = Receiver(none, Spool(Path(sys.argv[1])), tell, lambda: datetime.now(UTC))
    for number in range(3):
        outcome = await receiver.receive(hook, [], {"webhook-id": str(number)}, b"x")
        print(number, outcome, flush=True)
        if number == 0: arm_from_environment()
asyncio.run(main())
"""


@pytest.mark.parametrize("point", ["webhook.received", "webhook.spool.written", "webhook.kept"])
async def test_a_server_that_is_killed_has_kept_what_it_answered(post: Post, point: str, tmp_path: Path) -> None:
    log = tmp_path / "fired"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        RECEIVER,
        str(post.spool_dir),
        env={**os.environ, "TENURE_FAULT": f"{point}:1:kill", "TENURE_FAULT_LOG": str(log)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    said, errors = await process.communicate()
    assert process.returncode == -9, errors.decode()
    assert log.read_text() == f"{point}:1:kill\n"
    assert said == b"0 spooled\n"
    await Receiver(post.find, Spool(post.spool_dir), post.tell, post.clock).drain()
    rows = await post.rows()
    assert rows[0] == "0", "it was answered"
    assert rows[1:] in ([], ["1"]), "the other was not answered, and is there once or not at all"
