"""An agent, or a stranger, who tries to get at objects that are not theirs. What is tried works first, with the right to it.

The S3 API listens as in a server: at the doors of two offices and outside, on one control database, over volumes of theirs.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from s3_requests import Sent, signed
from tenure.data.objects import ObjectStore
from tenure.data.s3.access_keys import AccessKeys, Lent
from tenure.data.s3.app import s3_app
from tenure.data.s3.keys import KeyStore
from tenure.data.s3.sources import Buckets
from tenure.database.connect import ControlDatabase
from tenure.errors import NotFound
from tenure.identity.authorize import Principal, PrincipalKind
from tenure.identity.tokens import OWNER
from tenure.offices.models import Limits
from tenure.offices.store import OfficeStore
from tenure.server.listeners import Listener, bind_unix, listen, serve_office_api

pytest_plugins = ("fixtures.database", "fixtures.server")

MINE, THEIRS = (Principal(PrincipalKind.OFFICE, name) for name in ("mallory", "victim"))
SECRET_TEXT = b"the victim's secret"
INSIDE, OUTSIDE = "http://s3:9000", "http://localhost:9000"
ANSWER_S_MAX = 20.0


class NothingShared:
    async def list(self, principal: Principal) -> list[Any]:
        return []

    async def find(self, name: str) -> None:
        return None


@dataclass
class Arena:
    keys: AccessKeys
    store: KeyStore
    database: ControlDatabase
    objects: dict[str, ObjectStore]
    directory: Path
    asked: list[str] = field(default_factory=list[str])
    """Agents whose volume was brought here."""

    async def send(self, where: str, sent: Sent) -> tuple[int, bytes]:
        """Status and body of the answer, over a connection of its own; `where` is a door or "outside"."""
        head = [sent.method.encode() + b" " + sent.path + (b"?" + sent.query if sent.query else b"") + b" HTTP/1.1"]
        names = {name for name, _ in sent.headers}
        lines = [name + b": " + value for name, value in sent.headers]
        if b"content-length" not in names and b"transfer-encoding" not in names and sent.method in ("PUT", "POST"):
            lines.append(f"content-length: {len(sent.body)}".encode())
        return await self.raw(where, b"\r\n".join([*head, *lines, b"connection: close", b"", b""]) + sent.body)

    async def raw(self, where: str, data: bytes) -> tuple[int, bytes]:
        """The status of the first answer, and all that follows its head."""
        async with asyncio.timeout(ANSWER_S_MAX):
            reader, writer = await asyncio.open_unix_connection(self.directory / f"{where}.sock")
            writer.write(data)
            await writer.drain()
            answer = await reader.read()
            writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), body

    async def put(self, agent: str, bucket: str, name: str, content: bytes) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            yield content

        await self.objects[agent].put(bucket, name, chunks())

    async def has(self, agent: str, bucket: str, name: str) -> bool:
        try:
            found = await self.objects[agent].open(bucket, name)
        except NotFound:
            return False
        found.close()
        return True


@pytest.fixture
async def arena(control_database: ControlDatabase, short_dir: Path) -> AsyncIterator[Arena]:
    offices = OfficeStore(control_database)
    objects: dict[str, ObjectStore] = {}
    for principal in (MINE, THEIRS):
        await offices.add(principal.name, "image", Limits(), ())
        objects[principal.name] = ObjectStore(short_dir / principal.name)

    async def number_of(agent: str) -> int:
        return (await offices.get(agent)).number

    store = KeyStore(control_database, bytes(range(32)))
    keys = AccessKeys(store, bytes(range(32)), number_of, OUTSIDE)
    made = Arena(keys, store, control_database, objects, short_dir)

    async def objects_of(agent: str) -> ObjectStore:
        made.asked.append(agent)
        if agent not in objects:
            raise NotFound(f"There is no agent {agent}.")
        return objects[agent]

    buckets = Buckets(objects_of, NothingShared())  # type: ignore[arg-type]
    listeners: list[Listener] = []
    for principal in (MINE, THEIRS):
        app = s3_app(buckets, keys.authenticator(principal), hosts=("s3",))
        listeners.append(await serve_office_api(app, principal, short_dir / f"{principal.name}.sock"))
    outside, path = s3_app(buckets, keys.authenticator(), hosts=("localhost",)), short_dir / "outside.sock"
    listeners.append(await listen(outside, bind_unix(path, 0o600), socket_path=path))
    await made.put("victim", "vault", "secret", SECRET_TEXT)
    await made.put("mallory", "mine", "note", b"a note")
    yield made
    for listener in listeners:
        await listener.close()


async def key_of(arena: Arena, agent: str | None, **more: Any) -> Callable[..., Sent]:
    key, secret = await arena.keys.create(agent, by=OWNER, **more)

    def sign(method: str, url: str, **options: Any) -> Sent:
        return signed(method, url, **{"key_id": key.id, "secret": secret, **options})

    return sign


def with_lent(lent: Lent) -> Callable[..., Sent]:
    def sign(method: str, url: str, **options: Any) -> Sent:
        keys = {"key_id": lent.access_key_id, "secret": lent.secret_access_key, "token": lent.token}
        return signed(method, url, **keys, **options)

    return sign


def code_in(body: bytes) -> str:
    found = re.search(rb"<Code>(\w+)</Code>", body)
    return found[1].decode() if found else ""


def unsigned(method: str, path: str, host: str = "s3:9000", query: bytes = b"") -> Sent:
    return Sent(method, path.encode(), query, ((b"host", host.encode()),))


# --- what works with the right to it -----------------------------------------------------------------
async def test_the_victim_reads_its_secret_in_each_of_the_ways_that_are_tried_below(arena: Arena) -> None:
    sign = await key_of(arena, "victim")
    ways = [
        ("victim", unsigned("GET", "/vault/secret")),
        ("victim", with_lent(await arena.keys.lend("victim"))("GET", f"{INSIDE}/vault/secret")),
        ("victim", sign("GET", f"{INSIDE}/vault/secret")),
        ("outside", sign("GET", f"{OUTSIDE}/vault/secret")),
        ("outside", sign("GET", f"{OUTSIDE}/vault/secret", expires_s=60)),
        ("outside", sign("GET", "http://vault.localhost:9000/secret")),
        ("outside", (await key_of(arena, None))("GET", f"{OUTSIDE}/victim.vault/secret")),
    ]
    for where, sent in ways:
        assert await arena.send(where, sent) == (200, SECRET_TEXT), (where, sent)


# --- other buckets ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "path",
    [
        "/vault/secret",
        "/victim.vault/secret",
        "/victim%2Fvault/secret",
        "/mine/../vault/secret",
        "/mine/..%2f..%2fvictim/vault/secret",
        "/mine%2f..%2f..%2fvictim%2fvault/secret",
        "/../victim/vault/secret",
        "/%2e%2e/victim/vault/secret",
        "/mine/%2e%2e%2f%2e%2e%2fvictim%2fvault%2fsecret",
        "/mine\\..\\..\\victim\\vault\\secret",
        "/mine/%00/../secret",
        "http://s3:9000/vault/secret",
    ],
)
async def test_no_name_reaches_another_office(arena: Arena, path: str) -> None:
    mine = await key_of(arena, "mallory")
    for method in ("GET", "HEAD", "DELETE"):
        status, body = await arena.send("mallory", unsigned(method, path))
        assert status in (400, 403, 404) or (method == "DELETE" and status == 204), (method, status, body)
        assert SECRET_TEXT not in body
    if path.startswith("/"):
        for where, base in (("mallory", INSIDE), ("outside", OUTSIDE)):
            sent = replace(mine("GET", f"{base}/mine/note"), path=path.encode())
            status, body = await arena.send(where, sent)
            assert status in (400, 403, 404)
            assert SECRET_TEXT not in body
    assert await arena.has("victim", "vault", "secret")
    assert "victim" not in arena.asked


@pytest.mark.parametrize(
    "host", ["vault.s3:9000", "victim.vault.s3:9000", "..s3:9000", "%2e%2e.s3", "victim", "localhost:9000", ""]
)
async def test_no_host_reaches_another_office(arena: Arena, host: str) -> None:
    for path in ("/secret", "/vault/secret"):
        status, body = await arena.send("mallory", unsigned("GET", path, host))
        assert status in (400, 403, 404)
        assert SECRET_TEXT not in body
    assert "victim" not in arena.asked


async def test_no_copy_brings_what_is_in_another_office(arena: Arena) -> None:
    copied = unsigned("PUT", "/mine/copied")
    assert (await arena.send("mallory", copied.also("x-amz-copy-source", "/mine/note")))[0] == 200
    for source in ("/vault/secret", "victim.vault/secret", "/mine/../../victim/vault/secret", "%2fvault%2fsecret"):
        status, body = await arena.send("mallory", copied.also("x-amz-copy-source", source))
        assert status in (400, 403, 404), (source, body)
    mine = await key_of(arena, "mallory")
    sent = mine("PUT", f"{OUTSIDE}/mine/copied", headers={"x-amz-copy-source": "/victim.vault/secret"})
    assert (await arena.send("outside", sent))[0] in (400, 403, 404)


# --- whose key ---------------------------------------------------------------------------------------------
async def test_a_key_found_elsewhere_opens_nothing_at_my_door(arena: Arena) -> None:
    for sign in (
        await key_of(arena, "victim"),
        await key_of(arena, None),
        with_lent(await arena.keys.lend("victim")),
    ):
        for sent in (sign("GET", f"{INSIDE}/vault/secret"), sign("GET", f"{INSIDE}/vault/secret", expires_s=60)):
            status, body = await arena.send("mallory", sent)
            assert (status, code_in(body)) == (403, "AccessDenied")


async def test_a_lent_key_that_leaks_opens_nothing_outside(arena: Arena) -> None:
    sign = with_lent(await arena.keys.lend("victim"))
    status, body = await arena.send("outside", sign("GET", f"{OUTSIDE}/vault/secret"))
    assert (status, code_in(body)) == (403, "AccessDenied")


async def test_outside_nobody_is_anybody_without_a_key(arena: Arena) -> None:
    for sent in (
        unsigned("GET", "/", "localhost:9000"),
        unsigned("GET", "/vault/secret", "localhost:9000"),
        unsigned("GET", "/victim.vault/secret", "localhost:9000"),
        unsigned("GET", "/victim.vault", "localhost:9000"),
        unsigned("GET", "/secret", "victim.vault.localhost:9000"),
        unsigned("PUT", "/victim.vault/new", "localhost:9000"),
        unsigned("PUT", "/newbucket", "localhost:9000"),
        unsigned("DELETE", "/victim.vault/secret", "localhost:9000"),
        unsigned("POST", "/victim.vault", "localhost:9000", b"delete").also("content-type", "application/xml"),
    ):
        status, body = await arena.send("outside", sent)
        assert status in (403, 404), (sent, body)
        assert SECRET_TEXT not in body
    assert await arena.has("victim", "vault", "secret")


async def test_a_stranger_brings_no_volume_here(arena: Arena) -> None:
    """Whoever has no key must not make the server fetch an archived office."""
    arena.asked.clear()
    for sent in (
        unsigned("GET", "/victim.vault/secret", "localhost:9000"),
        unsigned("OPTIONS", "/victim.vault/secret", "localhost:9000").also("origin", "http://evil.example"),
        unsigned("GET", "/victim.vault/secret", "localhost:9000").also("origin", "http://evil.example"),
    ):
        await arena.send("outside", sent)
    assert arena.asked == []


async def test_mallorys_key_is_mallorys_outside_too(arena: Arena) -> None:
    sign = await key_of(arena, "mallory")
    assert (await arena.send("outside", sign("GET", f"{OUTSIDE}/mine/note")))[1] == b"a note"
    for path in ("/vault/secret", "/victim.vault/secret"):
        status, body = await arena.send("outside", sign("GET", OUTSIDE + path))
        assert status in (400, 403, 404)
        assert SECRET_TEXT not in body


async def test_a_narrow_key_sees_and_does_no_more(arena: Arena) -> None:
    await arena.put("victim", "open", "a", b"open")
    sign = await key_of(arena, "victim", buckets={"open": "read"})
    assert (await arena.send("outside", sign("GET", f"{OUTSIDE}/open/a"))) == (200, b"open")
    for method, path in (
        ("GET", "/vault/secret"),
        ("HEAD", "/vault/secret"),
        ("PUT", "/open/a"),
        ("DELETE", "/open/a"),
        ("PUT", "/newbucket"),
        ("DELETE", "/open"),
        ("PUT", "/open?versioning"),
        ("POST", "/open/b?uploads"),
    ):
        status, body = await arena.send("outside", sign(method, OUTSIDE + path))
        assert status == 403, (method, path, status, body)
    copy = sign("PUT", f"{OUTSIDE}/open/b", headers={"x-amz-copy-source": "/vault/secret"})
    assert (await arena.send("outside", copy))[0] == 403
    status, body = await arena.send("outside", sign("GET", f"{OUTSIDE}/"))
    assert status == 200
    assert re.findall(rb"<Name>([^<]*)</Name>", body) == [b"open"]


# --- replay ---------------------------------------------------------------------------------------------
async def test_what_was_recorded_is_worth_nothing_later_or_for_anything_else(arena: Arena) -> None:
    sign = await key_of(arena, "victim")
    recorded = sign("GET", f"{OUTSIDE}/vault/secret", expires_s=60)
    assert (await arena.send("outside", recorded))[0] == 200
    for changed in (
        replace(recorded, method="PUT", body=b"mine"),
        replace(recorded, method="DELETE"),
        replace(recorded, path=b"/vault/other"),
        replace(recorded, query=recorded.query.replace(b"Expires=60", b"Expires=6000")),
        recorded.also("x-amz-copy-source", "/vault/secret"),
    ):
        status, body = await arena.send("outside", changed)
        assert (status, SECRET_TEXT in body) == (403, False)
    put = sign("PUT", f"{OUTSIDE}/vault/new", body=b"as it was signed")
    status, body = await arena.send("outside", replace(put, body=b"as it is sent"))
    assert (status, code_in(body)) == (400, "XAmzContentSHA256Mismatch")
    assert not await arena.has("victim", "vault", "new")
    later = AccessKeys(
        arena.store, bytes(range(32)), None, OUTSIDE, lambda: datetime.now().astimezone() + timedelta(minutes=16)
    )  # type: ignore[arg-type]
    with pytest.raises(Exception, match="RequestTimeTooSkewed"):
        await later.authenticator()(put.seen())
    with pytest.raises(Exception, match="expired"):
        await later.authenticator()(recorded.seen())


async def test_an_upload_whose_key_is_revoked_meanwhile_is_not_there(arena: Arena) -> None:
    key, secret = await arena.keys.create("victim", by=OWNER)
    sent = signed("PUT", f"{OUTSIDE}/vault/late", key_id=key.id, secret=secret, body=b"x" * 1000)
    head = b"\r\n".join(
        [
            b"PUT /vault/late HTTP/1.1",
            *(name + b": " + value for name, value in sent.headers),
            b"content-length: 1000",
            b"",
            b"",
        ]
    )
    reader, writer = await asyncio.open_unix_connection(arena.directory / "outside.sock")
    writer.write(head + b"x" * 500)
    async with asyncio.timeout(ANSWER_S_MAX):
        while (await arena.store.list())[0].last_used_at is None:  # it was let in then
            pass
    await arena.keys.revoke(key.id)
    writer.write(b"x" * 500)
    async with asyncio.timeout(ANSWER_S_MAX):
        answer = await reader.readuntil(b"\r\n")
    writer.close()
    assert answer.startswith(b"HTTP/1.1 403")
    assert not await arena.has("victim", "vault", "late")


# --- smuggling ----------------------------------------------------------------------------------------------
async def test_headers_that_are_there_twice_are_refused(arena: Arena) -> None:
    sign = await key_of(arena, "victim")
    sent = sign("PUT", f"{OUTSIDE}/vault/new", body=b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    for name, value in (
        ("authorization", sent.get("authorization")),
        ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
        ("x-amz-content-sha256", digest),
        ("x-amz-date", sent.get("x-amz-date")),
        ("x-amz-security-token", "t1.office.1.victim.1.1.0.x"),
        ("host", "localhost:9000"),
        ("x-amz-acl", "public-read"),
    ):
        status, body = await arena.send("outside", sent.also(name, value))
        assert status in (400, 403), (name, status, body)
    assert not await arena.has("victim", "vault", "new")


async def test_a_signature_in_two_places_is_refused(arena: Arena) -> None:
    sign = await key_of(arena, "victim")
    both = replace(
        sign("GET", f"{OUTSIDE}/vault/secret"), query=sign("GET", f"{OUTSIDE}/vault/secret", expires_s=60).query
    )
    status, body = await arena.send("outside", both)
    assert (status, code_in(body)) == (400, "InvalidArgument")


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ((("authorization", "AWS TNKX:c2lnbmF0dXJl"),), b""),
        ((), b"AWSAccessKeyId=TNKX&Signature=c2ln&Expires=99999999999"),
        ((("authorization", "AWS4-ECDSA-P256-SHA256 Credential=TNKX"),), b""),
        ((("authorization", "Bearer owner-token"),), b""),
    ],
)
async def test_what_is_signed_otherwise_is_not_taken_for_unsigned_at_a_door(
    arena: Arena, headers: tuple[tuple[str, str], ...], query: bytes
) -> None:
    sent = unsigned("GET", "/mine/note", query=query)
    for name, value in headers:
        sent = sent.also(name, value)
    status, body = await arena.send("mallory", sent)
    assert (status, code_in(body)) == (400, "InvalidRequest")


@pytest.mark.parametrize(
    "framing",
    [
        b"content-length: 5\r\ncontent-length: 6\r\n",
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: chunked, identity\r\n",
        b"content-length: +5\r\n",
        b"content-length: 5, 5\r\n",
        b"transfer-encoding : chunked\r\n",
    ],
)
async def test_a_body_has_one_length(arena: Arena, framing: bytes) -> None:
    hidden = b"GET /mine/note HTTP/1.1\r\nhost: s3:9000\r\nconnection: close\r\n\r\n"
    data = b"PUT /mine/smuggled HTTP/1.1\r\nhost: s3:9000\r\nx-test: 1\r\n" + framing + b"\r\n0\r\n\r\n" + hidden
    status, body = await arena.raw("mallory", data)
    assert b"a note" not in body
    assert status in (400, 200, 411), body
    if status == 200:
        assert body.count(b"HTTP/1.1") <= 1


async def test_a_refusal_before_the_body_ends_the_connection(arena: Arena) -> None:
    """A client that waits for 100 and gets a refusal may keep its body: what it sends next must not be taken for it."""
    data = (
        b"PUT /mine/note HTTP/1.1\r\nhost: s3:9000\r\ncontent-length: 61\r\nexpect: 100-continue\r\nif-none-match: *\r\n\r\n"
        b"GET /mine/note HTTP/1.1\r\nhost: s3:9000\r\nconnection: close\r\n\r\n"
    )
    status, body = await arena.raw("mallory", data)
    assert status == 412
    assert b"a note" not in body
    assert b"HTTP/1.1" not in body


async def test_chunks_of_somebody_elses_signature_store_nothing(arena: Arena) -> None:
    sign = await key_of(arena, "mallory")
    sent = sign(
        "PUT",
        f"{OUTSIDE}/mine/chunks",
        headers={"x-amz-content-sha256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "x-amz-decoded-content-length": "4"},
    )
    # botocore signs the digest of the body, whatever the header says: this is refused by its signature, or by its kind.
    body = b"4;chunk-signature=" + b"0" * 64 + b"\r\nevil\r\n0;chunk-signature=" + b"0" * 64 + b"\r\n\r\n"
    status, answer = await arena.send("outside", replace(sent, body=body))
    assert status in (400, 403), answer
    bare = unsigned("PUT", "/mine/chunks").also("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD")
    status, answer = await arena.send("mallory", replace(bare, body=body))
    assert (status, code_in(answer)) == (400, "InvalidRequest")
    assert not await arena.has("mallory", "mine", "chunks")


async def test_no_answer_tells_a_secret_or_what_was_signed(arena: Arena) -> None:
    key, secret = await arena.keys.create("victim", by=OWNER)
    wrong = signed("GET", f"{OUTSIDE}/vault/secret", key_id=key.id, secret=secret[:-1])
    status, body = await arena.send("outside", wrong)
    assert (status, code_in(body)) == (403, "SignatureDoesNotMatch")
    for told in (secret, "StringToSign", "CanonicalRequest"):
        assert told.encode() not in body
