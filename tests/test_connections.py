"""An office uses a database or an API elsewhere as its owner meant it, and never has the credential. Real PostgreSQL and TLS."""

from __future__ import annotations

import asyncio
import stat
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.elsewhere import Api, Authority, accept_tls, copy, listening, postgres_front
from tenure.data.connections import scram, served
from tenure.data.connections.check import check
from tenure.data.connections.dial import Reach, check_ca
from tenure.data.connections.room import Connections, check_secret
from tenure.data.connections.scrub import Scrubber
from tenure.data.connections.served import Guard, ServedConnection
from tenure.data.connections.store import ConnectionStore
from tenure.data.connections.streams import ServedPostgres, ServedStream
from tenure.data.connections.targets import Auth, Kind, Target, Tls, read_target
from tenure.data.connections.web import ServedHttp
from tenure.database import ControlDatabase
from tenure.errors import AlreadyExists, Forbidden, InvalidArgument, InvalidName, NotFound, TooLarge
from tenure.identity.tokens import OWNER
from tenure.postgres import wire
from tenure.secrets.kept import SECRET_BYTES_MAX, KeptSecrets
from tenure.testing.fake_connections import FakeConnectionStore, FakeGrantStore
from tenure.use import Use

PASSWORD = "s3cret-Pässword-of-nobody"
TOKEN = "tok_0123456789abcdef"
HOST = "elsewhere.test"
PATIENCE_S = 30.0


@dataclass
class Names:
    """Whom a name leads to; `asked` counts."""

    addresses: list[str] = field(default_factory=lambda: ["127.0.0.1"])
    asked: int = 0

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked += 1
        return self.addresses


@dataclass
class Log:
    lines: list[str] = field(default_factory=list[str])
    allowed: bool = True

    async def permit(self) -> None:
        if not self.allowed:
            raise Forbidden("It was taken away.")

    @property
    def guard(self) -> Guard:
        return Guard(self.permit, self.lines.append)

    async def says(self, text: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not any(text in line for line in self.lines):  # noqa: ASYNC110 - a log sends no event
                await asyncio.sleep(0.01)


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short: sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="tenure-") as name:
        yield Path(name)


@pytest.fixture
def authority(directory: Path) -> Authority:
    return Authority(directory)


def reach_of(target: Target, ca: str = "", *, private: bool = True, names: Names | None = None) -> Reach:
    return Reach(target, private, ca, names or Names(), dict)


# --- addresses ---------------------------------------------------------------------------------------------------------
def test_an_address_says_kind_place_and_identity() -> None:
    found = read_target("postgres://reader@DB.example.org/sales", has_secret=True)
    assert found == Target(
        Kind.POSTGRES, "db.example.org", 5432, "reader", "sales", tls=Tls.VERIFY_FULL, auth=Auth.PASSWORD
    )
    assert found.url == "postgres://reader@db.example.org:5432/sales?sslmode=verify-full"
    assert read_target("redshift://r@h.example/d", has_secret=True).port == 5439
    assert read_target("postgres://r@h.example", has_secret=True).database == "r"
    assert read_target("postgres://r@h.example/d?sslmode=require", has_secret=True).tls is Tls.REQUIRE
    api = read_target("https://api.example.org/v1/", has_secret=True)
    assert (api.port, api.path, api.auth, api.tls) == (443, "/v1", Auth.BEARER, Tls.VERIFY_FULL)
    assert read_target("https://me@api.example.org", has_secret=True).auth is Auth.BASIC
    assert read_target("https://api.example.org", auth="header:X-Api-Key", has_secret=True).header == "X-Api-Key"
    assert read_target("https://api.example.org").auth is Auth.NONE
    assert read_target("clickhouse://me@ch.example.org", has_secret=True).authority == "ch.example.org:8443"
    assert read_target("mysql://db.example.org").inside == (".db", 3306)
    assert read_target("tcp://[2001:DB8::1]:6379").authority == "[2001:db8::1]:6379"


@pytest.mark.parametrize(
    ("url", "more"),
    [
        ("", {}),
        ("ftp://h.example/", {}),
        ("postgres://h.example/d", {"has_secret": True}),
        ("postgres://u@h.example/d", {}),
        ("postgres://u@h.example/d?sslmode=prefer", {"has_secret": True}),
        ("postgres://u@h.example/d?sslmode=verify-full&options=-csearch_path%3Dx", {"has_secret": True}),
        ("postgres://u@h.example/d%00", {"has_secret": True}),
        ("postgres://u@h.example:99999/d", {"has_secret": True}),
        ("postgres://u@0x7f.1/d", {"has_secret": True}),
        ("http://api.example/", {}),
        ("https://api.example/", {"auth": "digest", "has_secret": True}),
        ("https://api.example/", {"auth": "basic", "has_secret": True}),
        ("https://api.example/", {"auth": "bearer"}),
        ("https://api.example/", {"auth": "header:Host", "has_secret": True}),
        ("https://api.example/", {"auth": "header:X\r\nY", "has_secret": True}),
        ("https://api.example/../up", {}),
        ("https://api.example/%2e%2e/up", {}),
        ("https://api.example/?key=1", {}),
        ("https://api.example/a b", {}),
        ("mysql://u@h.example", {}),
        ("mysql://h.example", {"has_secret": True}),
        ("tcp://h.example", {}),
        ("tcp://h.example:1/path", {}),
    ],
)
def test_an_address_that_could_be_meant_otherwise_is_refused(url: str, more: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        read_target(url, **more)


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="/?#@[]:\\"), min_size=8))
def test_a_password_in_an_address_is_refused_and_never_repeated(password: str) -> None:
    for scheme in ("postgres", "https", "tcp"):
        with pytest.raises(InvalidArgument) as refused:
            read_target(f"{scheme}://qzj:{password}@h.example:1/x")
        told = str(refused.value.to_payload())
        assert password not in told or password in str(InvalidArgument("This is no address").to_payload())


# --- secrets -----------------------------------------------------------------------------------------------------------
def test_a_kept_secret_is_its_users_only_and_whole(directory: Path) -> None:
    kept = KeptSecrets(directory / "kept")
    kept.put("one", b"first")
    kept.put("one", b"second")
    assert kept.get("one") == b"second"
    assert stat.S_IMODE((directory / "kept").stat().st_mode) == 0o700
    assert [(path.name, stat.S_IMODE(path.stat().st_mode)) for path in (directory / "kept").iterdir()] == [
        ("one", 0o600)
    ]
    kept.delete("one")
    kept.delete("one")
    with pytest.raises(NotFound):
        kept.get("one")
    for name in ("", "..", "a/b", ".hidden", "A", "x" * 81):
        with pytest.raises(InvalidArgument):
            kept.put(name, b"x")
    with pytest.raises(TooLarge):
        kept.put("large", b"x" * (SECRET_BYTES_MAX + 1))
    assert list((directory / "kept").iterdir()) == []


@pytest.mark.parametrize("secret", ["a\r\nX: y", "a\0b", " spaced", "x" * 20_000])
def test_what_no_header_could_carry_is_no_credential(secret: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_secret(secret)
    assert secret not in str(refused.value.to_payload())


@given(
    secret=st.binary(min_size=4, max_size=12),
    parts=st.lists(st.one_of(st.just(None), st.binary(max_size=8)), max_size=8),
    cuts=st.lists(st.integers(1, 7), min_size=1),
)
def test_no_cut_lets_a_secret_through_and_nothing_else_is_lost(
    secret: bytes, parts: list[bytes | None], cuts: list[int]
) -> None:
    whole = b"".join(secret if part is None else part for part in parts)
    scrub, passed, rest = Scrubber([secret]), b"", whole
    for number in range(len(whole) + 1):
        size = cuts[number % len(cuts)]
        passed, rest = passed + scrub.feed(rest[:size]), rest[size:]
    passed += scrub.rest()
    assert len(passed) == len(whole)
    assert secret not in passed or set(secret) == {ord("*")}
    if secret not in whole:
        assert passed == whole


def test_a_stream_is_not_held_up_by_what_cannot_be_a_secret() -> None:
    scrub = Scrubber([b"token"])
    assert scrub.feed(b"data: 1\n\n") == b"data: 1\n\n"
    assert scrub.feed(b"data: to") == b"data: "
    assert scrub.feed(b"day") == b"today"


# --- PostgreSQL --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="session")
def upstream(postgres_dsn: str) -> Path:
    """A real PostgreSQL's socket: the roles `by_scram`, `by_md5` and `by_password` log in with `PASSWORD` that way, to `crm`."""
    with psycopg.connect(postgres_dsn, autocommit=True) as owner:
        hba = Path(owner.execute("show hba_file").fetchone()[0])  # type: ignore[index]
        ways = {"by_scram": "scram-sha-256", "by_md5": "md5", "by_password": "password"}
        hba.write_text("".join(f"local all {role} {way}\n" for role, way in ways.items()) + hba.read_text())
        for role, way in ways.items():
            owner.execute(f"set password_encryption = '{'md5' if way == 'md5' else 'scram-sha-256'}'")
            owner.execute(f"create role {role} login password '{PASSWORD}'")  # type: ignore[arg-type]
        owner.execute("create database crm")
        owner.execute("select pg_reload_conf()")
        return Path(owner.info.host) / ".s.PGSQL.5432"


@dataclass
class Bench:
    """Offices' ends of served connections."""

    directory: Path
    stack: AsyncExitStack
    log: Log = field(default_factory=Log)

    async def serve(self, label: str, make: Callable[[Guard, Use], ServedConnection]) -> Path:
        (self.directory / label).mkdir()
        path = self.directory / label / ".s.PGSQL.5432"
        serving = await make(self.log.guard, Use()).serve(path)
        self.stack.push_async_callback(serving.close)
        self.last = serving
        return path

    async def postgres(self, reach: Reach, password: str = PASSWORD, label: str = "office") -> Path:
        return await self.serve(label, lambda guard, use: ServedPostgres("crm", reach, password, guard, use))

    async def http(self, reach: Reach, secret: str = TOKEN, label: str = "office") -> Path:
        return await self.serve(label, lambda guard, use: ServedHttp("crm", "crm.api", reach, secret, guard, use))


@pytest.fixture
async def bench(directory: Path) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        yield Bench(directory, stack)


@asynccontextmanager
async def client(path: Path, **wanted: Any) -> AsyncGenerator[psycopg.AsyncConnection[Any]]:
    """As an office's program comes: as nobody in particular, without a password."""
    given: dict[str, Any] = {"user": "agent", "dbname": "agent", **wanted}
    connection = await psycopg.AsyncConnection.connect(host=str(path.parent), autocommit=True, **given)
    async with connection:
        yield connection


async def answer(
    path: Path, statement: str = "select current_user, current_database()", **wanted: Any
) -> tuple[Any, ...]:
    async with asyncio.timeout(PATIENCE_S), client(path, **wanted) as connection:
        row = await (await connection.execute(statement)).fetchone()  # type: ignore[arg-type]
        assert row is not None
        return row


def at(port: int, role: str = "by_scram", tls: Tls = Tls.VERIFY_FULL) -> Target:
    return Target(Kind.POSTGRES, HOST, port, role, "crm", tls=tls, auth=Auth.PASSWORD)


@pytest.mark.parametrize("role", ["by_scram", "by_md5", "by_password"])
@pytest.mark.parametrize("tls", list(Tls))
async def test_a_client_without_a_password_is_let_in_as_whom_the_owner_said(
    bench: Bench, upstream: Path, authority: Authority, role: str, tls: Tls
) -> None:
    context = None if tls is Tls.DISABLE else authority.context("other.test" if tls is Tls.VERIFY_CA else HOST)
    async with postgres_front(upstream, context) as port:
        reach = reach_of(at(port, role, tls), authority.pem)
        path = await bench.postgres(reach)
        if role == "by_password" and not tls.is_verified:
            with pytest.raises(psycopg.OperationalError, match="clear text"):
                await answer(path)
            return
        assert await answer(path) == (role, "crm")
        assert await answer(path, user="postgres", dbname="postgres") == (role, "crm"), "whatever it asks for"
        assert await answer(path, user="tenure", dbname="template1", password="guess") == (role, "crm")
        assert await answer(path, "show application_name", application_name="psql") == ("psql",)
        assert await answer(path, "select repeat('x', 3000000) = $$y$$") == (False,)
        found = await check(reach, PASSWORD)
        assert (found.ok, found.credential_works) == (True, True)
        await bench.log.says(f"crm: connected to {HOST}:{port} as {role}, database crm")
        await bench.log.says("bytes out")
        assert PASSWORD not in str(bench.log.lines) + str(found)


async def test_large_data_passes_both_ways(bench: Bench, upstream: Path, authority: Authority) -> None:
    async with postgres_front(upstream, authority.context(HOST)) as port:
        path = await bench.postgres(reach_of(at(port), authority.pem))
        async with client(path) as connection:
            await connection.execute("create temporary table t (x text)")
            async with connection.cursor() as cursor, cursor.copy("copy t from stdin") as copy:
                for _ in range(2000):
                    await copy.write(b"x" * 5000 + b"\n")
            row = await (await connection.execute("select count(*), sum(length(x)) from t")).fetchone()
            assert row == (2000, 10_000_000)


async def test_a_wrong_password_is_told_and_is_not_shown(bench: Bench, upstream: Path, authority: Authority) -> None:
    async with postgres_front(upstream, authority.context(HOST)) as port:
        reach = reach_of(at(port), authority.pem)
        path = await bench.postgres(reach, "not-the-password")
        with pytest.raises(psycopg.OperationalError, match="password authentication failed") as refused:
            await answer(path)
        found = await check(reach, "not-the-password")
        assert (found.reached, found.credential_works, found.ok) == (True, False, False)
        assert "password" in found.hint
        assert "not-the-password" not in str(refused.value) + str(found) + str(bench.log.lines)


async def test_replication_is_refused(bench: Bench, upstream: Path, authority: Authority) -> None:
    async with postgres_front(upstream, authority.context(HOST)) as port:
        path = await bench.postgres(reach_of(at(port), authority.pem))
        assert await answer(path) == ("by_scram", "crm")
        for word in ("database", "true", "on", "yes", "1", "TRUE"):
            with pytest.raises(psycopg.OperationalError, match="Replication is not part"):
                await answer(path, replication=word)


@dataclass
class Raw:
    """A client that says what it likes."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, path: Path, data: bytes = b"") -> Raw:
        raw = cls(*await asyncio.open_unix_connection(str(path)))
        raw.writer.write(data)
        return raw

    async def rest(self) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            data = await self.reader.read(-1)
        self.writer.close()
        return data

    async def message(self) -> tuple[bytes, bytes]:
        async with asyncio.timeout(PATIENCE_S):
            head = await self.reader.readexactly(5)
            return head[:1], await self.reader.readexactly(int.from_bytes(head[1:], "big") - 4)

    async def until(self, wanted: bytes) -> bytes:
        while (found := await self.message())[0] != wanted:
            pass
        return found[1]


async def is_cut_off(path: Path) -> bool:
    """Whether one who connects is hung up on without a word."""
    try:
        return await (await Raw.open(path, b"hello")).rest() == b""
    except ConnectionError:
        return True


STARTUP = wire.startup({"user": "agent", "database": "agent"})


async def test_a_cancel_ends_what_came_through_this_office_and_nothing_else(
    bench: Bench, upstream: Path, authority: Authority
) -> None:
    async with postgres_front(upstream, authority.context(HOST)) as port:
        reach = reach_of(at(port), authority.pem)
        mine = await bench.postgres(reach, label="mine")
        others = await bench.postgres(reach, label="others")
        raw = await Raw.open(mine, STARTUP)
        key = await raw.until(b"K")
        await raw.until(b"Z")
        cancel = wire.cancel_request(int.from_bytes(key[:4], "big"), key[4:])
        raw.writer.write(wire.query("select pg_sleep(300)"))
        for path, wrong in ((others, cancel), (mine, cancel[:-1] + bytes([cancel[-1] ^ 1])), (mine, cancel[:12])):
            assert await (await Raw.open(path, wrong)).rest() == b""
        raw.writer.write(wire.query("select 1"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await raw.reader.readexactly(1)
        assert await (await Raw.open(mine, cancel)).rest() == b""
        assert wire.parse_error(await raw.until(b"E"))["sqlstate"] == "57014"
        raw.writer.close()


async def test_encryption_is_declined_and_newer_protocols_negotiated(
    bench: Bench, upstream: Path, authority: Authority
) -> None:
    async with postgres_front(upstream, authority.context(HOST)) as port:
        path = await bench.postgres(reach_of(at(port), authority.pem))
        ssl, gss = wire.ssl_request(), wire.ssl_request()[:4] + wire.GSSENC_REQUEST.to_bytes(4, "big")
        raw = await Raw.open(path, gss + ssl + STARTUP)
        assert await raw.reader.readexactly(2) == b"NN"
        assert (await raw.message()) == (b"R", bytes(4))
        newer = wire.startup({"user": "u", "_pq_.odd": "1"})
        newer = newer[:4] + ((3 << 16) + 2).to_bytes(4, "big") + newer[8:]
        other = await Raw.open(path, newer)
        kind, body = await other.message()
        assert (kind, body[:4], body[8:]) == (b"v", (3 << 16).to_bytes(4, "big"), b"_pq_.odd\0")
        await other.until(b"Z")
        for one in (raw, other):
            one.writer.close()
        for bad in (ssl * 3, b"\0\0\0\4\0\3\0\0", b"\xff\xff\xff\xff\0\3\0\0", b"GET / HTTP/1.1\r\n\r\n", _twice()):
            assert b"C08P01" in await (await Raw.open(path, bad)).rest()


def _twice() -> bytes:
    """A checker may read the first, the server the second."""
    body = b"user\0agent\0user\0postgres\0\0"
    return (len(body) + 8).to_bytes(4, "big") + wire.PROTOCOL_3_0.to_bytes(4, "big") + body


class FalseServer:
    """Stands where the database should be, and keeps what it hears."""

    def __init__(self, *answers: bytes, context: Any = None, before_tls: bytes = b"S") -> None:
        self.answers, self.context, self.before_tls = answers, context, before_tls
        self.heard = b""

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.context is not None:
            await reader.readexactly(8)
            writer.write(self.before_tls)
            await writer.drain()
            reader, writer = await accept_tls(writer, self.context)
        for one in self.answers:
            self.heard += await reader.read(10_000)
            writer.write(one)
        while data := await reader.read(10_000):
            self.heard += data


def _auth(code: int, body: bytes = b"") -> bytes:
    return wire.message(b"R", code.to_bytes(4, "big") + body)


READY = _auth(0) + wire.message(b"Z", b"I")
SASL = _auth(10, b"SCRAM-SHA-256\0\0")


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ([SASL, READY], "left out the proof"),
        ([SASL, _auth(11, b"r=x,s=c2FsdA==,i=4096"), READY], "malformed challenge"),
        ([SASL, _auth(12, b"v=x"), READY], "does not know"),
        ([_auth(3), READY], "clear text"),
        ([_auth(7), READY], "does not know"),
        ([_auth(10, b"SCRAM-SHA-256-PLUS\0\0"), READY], "does not know"),
        ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], "speak PostgreSQL"),
        ([wire.message(b"R", b"\0")], "something else"),
        ([wire.message(b"N", b"notice\0") * 1001], "too much"),
        ([b"E\x7f\xff\xff\xff"], "speak PostgreSQL"),
    ],
)
async def test_a_false_database_gets_neither_client_nor_password(bench: Bench, answers: list[bytes], told: str) -> None:
    false = FalseServer(*answers)
    async with listening(false.talk) as port:
        reach = reach_of(at(port, tls=Tls.DISABLE))
        path = await bench.postgres(reach)
        with pytest.raises(psycopg.OperationalError, match=told):
            await answer(path)
        assert b"by_scram" in false.heard
        assert PASSWORD.encode() not in false.heard
        assert not (await check(reach, PASSWORD)).ok


async def test_a_scram_server_that_cannot_prove_itself_or_wants_too_much_is_refused() -> None:
    for challenge in ("i=1", "i=4095", "i=1000001", "i=99999999999", "i=x", "i=4096,m=ext"):
        exchange = scram.Exchange(PASSWORD, "nonce")
        with pytest.raises(scram.ScramError):
            exchange.answer(f"r=noncemore,s=c2FsdA==,{challenge}".encode())
    exchange = scram.Exchange(
        "pencil", "rOprNGfwEbeRWgbNEkqO"
    )  # RFC 7677, but for the name, which PostgreSQL leaves empty
    _, expected = exchange.answer(
        b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    )
    for said in (b"", b"v=", b"v=AAAA", b"e=other-error"):
        with pytest.raises(scram.ScramError):
            exchange.verify(said, expected)


async def test_who_cannot_show_the_certificate_hears_nothing(
    bench: Bench, authority: Authority, directory: Path
) -> None:
    stranger = Authority(directory, "stranger")
    cases = [(stranger.context(HOST), Tls.VERIFY_FULL), (stranger.context(HOST), Tls.VERIFY_CA)]
    cases += [(authority.context("other.test"), Tls.VERIFY_FULL)]
    for number, (context, tls) in enumerate(cases):
        false = FalseServer(_auth(3), context=context)
        async with listening(false.talk) as port:
            path = await bench.postgres(reach_of(at(port, tls=tls), authority.pem), label=f"office{number}")
            with pytest.raises(psycopg.OperationalError, match="certificate that is not believed"):
                await answer(path)
            assert false.heard == b""


async def test_what_was_slipped_in_before_the_encryption_counts_for_nothing(bench: Bench, authority: Authority) -> None:
    """Somebody in between cannot answer in the database's place by being early."""
    false = FalseServer(b"", context=authority.context(HOST), before_tls=b"S" + READY)
    async with listening(false.talk) as port:
        path = await bench.postgres(reach_of(at(port), authority.pem))
        with pytest.raises(psycopg.OperationalError):
            await answer(path)


async def test_a_database_without_tls_is_not_spoken_to_in_clear(bench: Bench, upstream: Path) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        writer.write(b"N")
        assert await reader.read() == b""

    async with listening(refuse) as port:
        for number, tls in enumerate((Tls.VERIFY_FULL, Tls.REQUIRE)):
            path = await bench.postgres(reach_of(at(port, tls=tls)), label=f"office{number}")
            with pytest.raises(psycopg.OperationalError, match="has no TLS"):
                await answer(path)


async def test_a_password_that_is_repeated_is_not_passed_on(bench: Bench, authority: Authority) -> None:
    echo = wire.error_response("28P01", f"wrong: {PASSWORD}")
    for number, said in enumerate((echo, _auth(0) + wire.message(b"N", f"M{PASSWORD}\0\0".encode()))):
        false = FalseServer(_auth(3), said, context=authority.context(HOST))
        async with listening(false.talk) as port:
            path = await bench.postgres(reach_of(at(port), authority.pem), label=f"office{number}")
            told = await (await Raw.open(path, STARTUP)).rest()
            assert PASSWORD.encode() in false.heard, "it had it to repeat"
            assert told[:1] == b"E"
            assert PASSWORD.encode() not in told
            assert PASSWORD not in str(bench.log.lines)


# --- where a name leads ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "10.0.0.1", "192.168.1.1", "::ffff:127.0.0.1", "fd00::1"])
async def test_a_name_that_comes_to_lead_here_is_not_followed(
    bench: Bench, upstream: Path, authority: Authority, address: str
) -> None:
    async with postgres_front(upstream, authority.context(HOST)) as port:
        names = Names()
        path = await bench.postgres(reach_of(at(port), authority.pem, names=names), label="private")
        assert await answer(path) == ("by_scram", "crm")
        assert names.asked == 1, "what was judged is what was dialled"
        public = await bench.postgres(reach_of(at(port), authority.pem, private=False, names=names), label="public")
        names.addresses = ["192.0.2.1", address]
        with pytest.raises(psycopg.OperationalError, match="it leads to"):
            await answer(public)
        names.addresses = ["169.254.169.254"]
        with pytest.raises(psycopg.OperationalError, match="no address of the internet"):
            await answer(path)
        found = await check(reach_of(at(port), private=False), PASSWORD)
        assert "--private" in found.hint


async def test_an_api_outside_is_reached_through_the_hosts_proxy_and_a_private_one_is_not(
    bench: Bench, authority: Authority
) -> None:
    api, tunnels = Api(), list[str]()

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tunnels.append((await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[0])
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        upstream = await asyncio.open_connection("127.0.0.1", api_port)
        await asyncio.gather(copy(reader, upstream[1]), copy(upstream[0], writer))

    async with listening(api.talk, authority.context(HOST)) as api_port, listening(proxy) as proxy_port:
        address = f"http://127.0.0.1:{proxy_port}"
        proxies = lambda: {"https": address, "http": address, "tcp": address}  # noqa: E731
        for number, private in enumerate((False, True)):
            names = Names(["127.0.0.1"] if private else ["192.0.2.1"])
            reach = Reach(api_at(api_port), private, authority.pem, names, proxies)
            path = await bench.http(reach, label=str(number))
            assert (await ask(path, GET + b"\r\n")).endswith(b"ok")
        assert tunnels == [f"CONNECT {HOST}:{api_port} HTTP/1.1"]
        assert f"authorization: bearer {TOKEN}" in api.head


# --- bytes only --------------------------------------------------------------------------------------------------------
async def test_other_protocols_pass_as_they_are_and_within_limits(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            writer.write(data.upper())

    monkeypatch.setattr(served, "CONNECTIONS_MAX", 2)
    async with listening(echo) as port:
        reach = reach_of(Target(Kind.TCP, HOST, port))
        path = await bench.serve("office", lambda guard, use: ServedStream("crm", reach, guard, use))
        raws = [await Raw.open(path, b"hello") for _ in range(2)]
        for raw in raws:
            assert await raw.reader.readexactly(5) == b"HELLO"
        assert await is_cut_off(path)
        await bench.log.says("which is the limit")
        raws[0].writer.write_eof()
        assert await raws[0].rest() == b""
        await bench.log.says("5 bytes out, 5 bytes in")
        assert (await check(reach, "")).ok
        bench.log.allowed = False
        assert await is_cut_off(path)
        await bench.last.close()
        assert await raws[1].rest() == b"", "what is open ends with it"
    assert not (await check(reach, "")).ok


async def test_a_connection_on_which_nothing_moves_ends() -> None:
    inside, outside = ((asyncio.StreamReader(), _Sink()) for _ in range(2))
    async with asyncio.timeout(PATIENCE_S):
        await served.pass_on(inside, outside, Use().flow(), served.Moved(), idle_timeout_s=0.01)  # type: ignore[arg-type]
    assert outside[1].aborted


class _Sink:
    aborted = False

    @property
    def transport(self) -> _Sink:
        return self

    def abort(self) -> None:
        self.aborted = True


# --- HTTP --------------------------------------------------------------------------------------------------------------
def api_at(port: int, auth: str | None = None, path: str = "", secret: bool = True) -> Target:
    user = "me@" if auth == "basic" else ""
    return read_target(f"https://{user}{HOST}:{port}{path}", auth=auth, has_secret=secret)


@asynccontextmanager
async def served_api(
    bench: Bench, authority: Authority, api: Api, *, auth: str | None = None, path: str = "", secret: str = TOKEN
) -> AsyncGenerator[Path]:
    async with listening(api.talk, authority.context(HOST)) as port:
        yield await bench.http(reach_of(api_at(port, auth, path, bool(secret)), authority.pem), secret)


async def ask(path: Path, data: bytes) -> bytes:
    """One request, as bytes; the answer's."""
    raw = await Raw.open(path, data)
    raw.writer.write_eof()
    return await raw.rest()


GET = b"GET /things?q=1 HTTP/1.1\r\nHost: crm.api\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    ("auth", "carried"),
    [
        ("bearer", f"authorization: bearer {TOKEN}"),
        ("basic", "authorization: basic bwu6dg9rxzaxmjm0nty3odlhymnkzwy="),
        ("header:X-Api-Key", f"x-api-key: {TOKEN}"),
    ],
)
async def test_an_api_gets_the_owners_credential_whatever_the_office_sends(
    bench: Bench, authority: Authority, auth: str, carried: str
) -> None:
    api = Api()
    async with served_api(bench, authority, api, auth=auth) as path:
        own = b"Authorization: Bearer mine\r\nX-Api-Key: mine\r\nX_Api_Key: mine\r\nCookie: a=b\r\n"
        hops = (
            b"Connection: X-Hop\r\nX-Hop: 1\r\nTE: trailers\r\nUpgrade: websocket\r\nProxy-Authorization: Basic x\r\n"
        )
        got = await ask(path, GET + own + hops + b"X-Forwarded-Host: evil.example\r\n\r\n")
        assert got.startswith(b"HTTP/1.1 200")
        assert got.endswith(b"ok")
        assert api.head[0] == "get /things?q=1 http/1.1"
        assert api.head.count(carried) == 1
        mine = [line for line in api.head if "mine" in line]
        assert mine == ([] if auth.startswith("header") else ["x-api-key: mine", "x_api_key: mine"])
        assert "cookie: a=b" in api.head
        assert [line for line in api.head if line.startswith("host:")] == [
            f"host: {HOST}:{bench.last.reach.target.port}"
        ]  # type: ignore[attr-defined]
        for gone in ("x-hop", "te:", "upgrade", "proxy-", "x-forwarded", "authorization: bearer mine"):
            assert not [line for line in api.head if line.startswith(gone)], gone
        await bench.log.says("crm: GET /things: 200")
        assert TOKEN not in str(bench.log.lines)


async def test_bodies_pass_both_ways_in_either_framing(bench: Bench, authority: Authority) -> None:
    api = Api(
        lambda head, body: (
            b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        )
    )
    async with served_api(bench, authority, api) as path:
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport, base_url="http://crm.api", timeout=PATIENCE_S) as web:
            body = bytes(range(256)) * 4000
            for content in (body, _pieces(body), b""):
                got = await web.post(
                    "/upload", content=content, headers={"Expect": "100-continue"} if content is body else {}
                )
                assert (got.status_code, got.content) == (201, body if content else b"")
            api.answer = lambda head, body: b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
            assert (await web.head("/x")).headers["content-length"] == "1000"
            api.answer = lambda head, body: b"HTTP/1.1 200 OK\r\n\r\nuntil the end"
            assert (await web.get("/x")).text == "until the end"
            api.answer = lambda head, body: b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\ncut"
            with pytest.raises(httpx.RemoteProtocolError):
                await web.get("/x")
            api.answer = lambda head, body: b""
            assert (await web.get("/x")).status_code == 502


async def _pieces(body: bytes) -> AsyncGenerator[bytes]:
    for start in range(0, len(body), 100_000):
        yield body[start : start + 100_000]


@pytest.mark.parametrize("auth", ["bearer", "basic", "header:X-Api-Key"])
async def test_an_api_that_repeats_the_credential_tells_the_office_nothing(
    bench: Bench, authority: Authority, auth: str
) -> None:
    told: list[bytes] = []

    def repeat(head: bytes, body: bytes) -> list[bytes]:
        lines = [line for line in head.split(b"\r\n") if line.lower().startswith((b"authorization", b"x-api-key"))]
        sent = lines[0].partition(b": ")[2]
        told.append(sent)
        half = len(sent) // 2
        start = b"HTTP/1.1 200 OK\r\nX-Sent: %b\r\nContent-Length: %d\r\n\r\n" % (sent, 2 * len(sent) + 4)
        return [start, b"<" + sent[:half], sent[half:] + b">", b"{" + sent + b"}"]

    async with served_api(bench, authority, Api(repeat), auth=auth) as path:
        got = await ask(path, GET + b"\r\n")
        assert got.startswith(b"HTTP/1.1 200")
        secret = told[0].rpartition(b" ")[2]
        assert got.count(b"*" * len(secret)) == 3
        assert secret not in got
        assert TOKEN.encode() not in got


async def test_redirects_are_told_and_not_followed(bench: Bench, authority: Authority) -> None:
    away = Api()
    async with listening(away.talk) as elsewhere:
        api = Api()
        async with served_api(bench, authority, api, path="/v1") as path:
            own = f"https://{HOST}:{bench.last.reach.target.port}"  # type: ignore[attr-defined]
            for location, told in (
                (f"http://127.0.0.1:{elsewhere}/", f"http://127.0.0.1:{elsewhere}/"),
                (f"{own}/v1/next?a=1", "http://crm.api/next?a=1"),
                ("/v1/next", "/next"),
                (f"{own}/admin", f"{own}/admin"),
                (f"{own}/v1-else/", f"{own}/v1-else/"),
                (f"{own}.evil.example/v1/", f"{own}.evil.example/v1/"),
            ):
                api.answer = lambda head, body, to=location: (
                    f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode()
                )
                assert f"location: {told}\r\n".encode() in await ask(path, GET + b"\r\n")
        assert away.asked == []


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET http://evil.example/ HTTP/1.1",
        b"GET https://crm.api/ HTTP/1.1",
        b"GET http://crm.api@evil.example/ HTTP/1.1",
        b"GET http://crm.api.evil.example/ HTTP/1.1",
        b"GET http://crm.api:81/ HTTP/1.1",
        b"CONNECT evil.example:443 HTTP/1.1",
        b"GET //evil.example/ HTTP/1.1",
        b"GET /../admin HTTP/1.1",
        b"GET /a/%2e%2e/%2E./admin HTTP/1.1",
        b"GET /a/%252e%252e/admin HTTP/1.1",
        b"GET /..;x/admin HTTP/1.1",
        b"GET /..%5cadmin HTTP/1.1",
        b"GET /a\\..\\admin HTTP/1.1",
        b"GET /#/../x HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
        b"GET evil HTTP/1.1",
        b"GET /\xe9 HTTP/1.1",
        b"GET /a b HTTP/1.1",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1",
    ],
)
async def test_a_request_leads_to_the_api_below_its_path_or_nowhere(
    bench: Bench, authority: Authority, request_line: bytes
) -> None:
    api = Api()
    async with served_api(bench, authority, api, path="/v1") as path:
        await ask(path, GET + b"\r\n")
        assert (await ask(path, b"GET http://crm.api/own HTTP/1.1\r\nHost: crm.api\r\n\r\n")).startswith(
            b"HTTP/1.1 200"
        )
        assert [head.split(b" ")[1] for head, _ in api.asked] == [b"/v1/things?q=1", b"/v1/own"], "reachable before"
        got = await ask(path, request_line + b"\r\nHost: crm.api\r\n\r\n")
        assert got.startswith(b"HTTP/1.1 400"), got
        assert len(api.asked) == 2


@pytest.mark.parametrize(
    "smuggled",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"Content-Length: 5, 6\r\n\r\nhello",
        b"Content-Length: +5\r\n\r\nhello",
        b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"X: a\rAuthorization: b\r\n\r\n",
        b"X: a\0b\r\n\r\n",
        b"X y: a\r\n\r\n",
        b"Host: evil.example\r\n\r\n",
        b"X: " + b"x" * 70_000 + b"\r\n\r\n",
    ],
)
async def test_what_could_be_read_in_two_ways_is_not_passed_on(
    bench: Bench, authority: Authority, smuggled: bytes
) -> None:
    api = Api()
    async with served_api(bench, authority, api) as path:
        assert (await ask(path, b"POST /a HTTP/1.1\r\nHost: crm.api\r\nContent-Length: 2\r\n\r\nhi")).endswith(b"ok")
        assert api.asked[-1][1] == b"hi"
        got = await ask(path, b"POST /a HTTP/1.1\r\nHost: crm.api\r\n" + smuggled)
        assert got[9:12] in (b"400", b"413", b"431"), got
        assert len(api.asked) == 1


async def test_one_connection_carries_many_requests_until_it_is_taken_away(bench: Bench, authority: Authority) -> None:
    api = Api()
    async with served_api(bench, authority, api) as path:
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport, base_url="http://crm.api", timeout=PATIENCE_S) as web:
            for number in range(5):
                assert (await web.get(f"/{number}")).text == "ok"
            bench.log.allowed = False
            refused = await web.get("/6")
            assert (refused.status_code, len(api.asked)) == (403, 5)
            assert (await web.get("/7")).status_code == 403


async def test_an_api_that_cannot_show_its_certificate_hears_nothing(
    bench: Bench, authority: Authority, directory: Path
) -> None:
    api = Api()
    async with listening(api.talk, Authority(directory, "stranger").context(HOST)) as port:
        path = await bench.http(reach_of(api_at(port), authority.pem))
        got = await ask(path, GET + b"\r\n")
        assert got.startswith(b"HTTP/1.1 502")
        assert b"not believed" in got
        assert api.asked == []


@pytest.mark.parametrize(
    ("status", "works"), [(200, True), (302, True), (401, False), (403, False), (404, None), (500, None)]
)
async def test_a_check_says_whether_the_credential_works(authority: Authority, status: int, works: bool | None) -> None:
    api = Api(lambda head, body: f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode())
    async with listening(api.talk, authority.context(HOST)) as port:
        reach = reach_of(api_at(port, path="/v1"), authority.pem)
        found = await check(reach, TOKEN)
    assert (found.reached, found.credential_works) == (True, works)
    assert f"authorization: bearer {TOKEN}" in api.head
    assert TOKEN not in str(found)
    assert bool(found.hint) == (works is not True)
    gone = await check(reach, TOKEN)
    assert (gone.reached, gone.ok) == (False, False)
    assert gone.hint


def test_a_certificate_is_one_or_is_refused(authority: Authority) -> None:
    assert check_ca(authority.pem * 2) == authority.pem * 2
    for bad in ("x", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", "-----BEGIN PRIVATE KEY-----"):
        with pytest.raises(InvalidArgument):
            check_ca(bad)


# --- the room ----------------------------------------------------------------------------------------------------------
@dataclass
class Room:
    connections: Connections
    grants: FakeGrantStore
    changed: list[str]
    lines: list[tuple[str, str]]
    kept: Path


@pytest.fixture
def room(directory: Path) -> Room:
    grants, changed, lines = FakeGrantStore(), list[str](), list[tuple[str, str]]()
    kept = directory / "kept"

    async def note(agent: str) -> None:
        changed.append(agent)

    made = Connections(
        FakeConnectionStore(),  # type: ignore[arg-type]
        grants,  # type: ignore[arg-type]
        KeptSecrets(kept),
        lambda agent, text: lines.append((agent, text)),
        note,
        resolver=Names(),
    )
    return Room(made, grants, changed, lines, kept)


async def test_an_office_has_what_was_granted_to_it_and_nothing_else(room: Room) -> None:
    await room.connections.create("crm", "postgres://u@h.example/d", secret=PASSWORD)
    await room.connections.create("web", "https://h.example/", secret=TOKEN)
    await room.connections.create("bus", "tcp://h.example:6379")
    assert await room.connections.neighbours("analyst") == ()
    for name in ("crm", "web", "bus"):
        await room.connections.grant(name, "analyst", by=OWNER)
    found = await room.connections.neighbours("analyst")
    assert sorted((one.host, one.port) for one in found) == [("bus.tcp", 6379), ("crm.db", 5432), ("web.api", 80)]
    assert await room.connections.neighbours("other") == ()
    await room.connections.revoke("web", "analyst")
    assert len(await room.connections.neighbours("analyst")) == 2
    assert room.changed == ["analyst"] * 4
    with pytest.raises(NotFound):
        await room.connections.grant("none", "analyst", by=OWNER)
    with pytest.raises(NotFound):
        await room.connections.revoke("web", "analyst")


async def test_a_grant_that_is_over_lets_nobody_through(room: Room, directory: Path) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(100))

    async with listening(echo) as port:
        await room.connections.create("bus", f"tcp://{HOST}:{port}", private=True)
        await room.connections.grant("bus", "analyst", by=OWNER)
        (neighbour,) = await room.connections.neighbours("analyst")
        serving = await neighbour.serve(directory / "bus.sock", Use())
        raw = await Raw.open(directory / "bus.sock", b"hello")
        assert await raw.reader.readexactly(5) == b"hello"
        room.grants.end_all()
        assert await is_cut_off(directory / "bus.sock")
        assert await room.connections.neighbours("analyst") == ()
        assert any("may not connection:connect" in text for agent, text in room.lines if agent == "analyst")
        await serving.close()


async def test_a_credential_lies_in_its_file_and_goes_with_its_connection(room: Room) -> None:
    await room.connections.create("crm", "postgres://u@h.example/d", secret=PASSWORD)
    (file,) = room.kept.iterdir()
    assert file.read_text() == PASSWORD
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert PASSWORD not in str(await room.connections.get("crm")) + str(await room.connections.list())
    with pytest.raises(AlreadyExists):
        await room.connections.create("crm", "postgres://u@h.example/d", secret="another")
    assert [path.read_text() for path in room.kept.iterdir()] == [PASSWORD]
    await room.connections.grant("crm", "analyst", by=OWNER)
    await room.connections.delete("crm")
    assert list(room.kept.iterdir()) == []
    assert room.changed == ["analyst", "analyst"]
    await room.connections.create("crm", "https://h.example/")
    assert await room.connections.neighbours("analyst") == (), "a later one of the same name is another one"
    for name in ("", "A", "a/b", "..", "x" * 50):
        with pytest.raises(InvalidName):
            await room.connections.create(name, "https://h.example/")


async def test_rows_come_back_as_they_were_and_hold_no_secret(control_database: ControlDatabase) -> None:
    store = ConnectionStore(control_database)
    target = read_target("https://me@h.example/v1", has_secret=True)
    made = await store.add("web", "con_1", target, private=True, ca="PEM")
    other = await store.add("bus", "con_2", replace(target, kind=Kind.TCP), private=False, ca="")
    assert await store.get("web") == made
    assert made.target == target
    assert list(await store.all()) == [other, made]
    with pytest.raises(AlreadyExists):
        await store.add("web", "con_3", target, private=True, ca="")
    await store.remove("web")
    with pytest.raises(NotFound):
        await store.get("web")
