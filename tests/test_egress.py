"""Deny by default; allow by name; never to where a name should not lead. The proxy on real sockets, real pip through it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenure.errors import InvalidArgument
from tenure.secrets.egress import clients, exchange, proxy, tls
from tenure.secrets.egress.addresses import is_own, refusal
from tenure.secrets.egress.clients import configure_office, npm_config, office_environment, pip_config
from tenure.secrets.egress.dial import Dialer
from tenure.secrets.egress.presets import (
    HostClients,
    apt_preset,
    npm_preset,
    parse_pip_config,
    pip_preset,
    read_host_clients,
)
from tenure.secrets.egress.proxy import Decision, EgressProxy
from tenure.secrets.egress.rules import (
    Preset,
    Rule,
    check_entries,
    decide,
    expand,
    normalise_host,
    parse_authority,
    parse_entry,
)
from tenure.setup import authorities

MIRROR = Preset("pip", (Rule("mirror.example", frozenset({443}), preset="pip"),))


# --- rules ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("entry", "host", "port", "allowed"),
    [
        ("example.org", "example.org", 443, True),
        ("example.org", "example.org", 80, True),
        ("example.org", "example.org", 22, False),
        ("example.org", "www.example.org", 443, False),
        ("example.org", "notexample.org", 443, False),
        ("example.org", "example.org.evil.net", 443, False),
        ("example.org:8443", "example.org", 8443, True),
        ("example.org:8443", "example.org", 443, False),
        ("*.example.org", "a.b.example.org", 443, True),
        ("*.example.org", "example.org", 443, False),
        ("*.example.org", "notexample.org", 443, False),
        ("*.example.org:99", "a.example.org", 99, True),
        ("ExAmple.ORG.", "example.org", 443, True),
        ("bücher.example", "xn--bcher-kva.example", 443, True),
        ("93.184.216.34", "93.184.216.34", 443, True),
        ("[2606:4700::1111]:443", "2606:4700::1111", 443, True),
    ],
)
def test_entries_allow_exactly_what_they_say(entry: str, host: str, port: int, allowed: bool) -> None:
    assert (decide(host, port, [parse_entry(entry)]) is not None) is allowed


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "*",
        "*.org",
        "*.93.184.216.34",
        "a.*.org",
        "*example.org",
        "https://example.org",
        "example.org/path",
        "example.org:",
        "example.org:0",
        "example.org:65536",
        "example.org:+1",
        "user@example.org",
        "exa mple.org",
        "-x.org",
        "a..b",
        "x" * 64 + ".org",
        "127.0.0.1",
        "10.0.0.1:80",
        "169.254.169.254",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "127.1",
        "0x7f.1",
        "2130706433",
        "0177.0.0.1",
        "::1",
    ],
)
def test_entries_that_mislead_are_refused(entry: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        parse_entry(entry)
    assert raised.value.hint


def test_entries_are_presets_or_domains() -> None:
    assert check_entries([" pip ", "example.org", "pip"], ["pip", "npm"]) == ("pip", "example.org")
    with pytest.raises(InvalidArgument) as raised:
        check_entries(["piip"], ["pip", "npm"])
    assert "npm, pip" in raised.value.hint
    with pytest.raises(InvalidArgument):
        check_entries([f"a{n}.example" for n in range(201)], [])
    assert [str(rule) for rule in expand(["pip", "*.example.org"], {"pip": MIRROR})] == [
        "mirror.example:443",
        "*.example.org",
    ]


@given(st.text(max_size=60))
def test_a_host_name_is_normal_or_refused(text: str) -> None:
    try:
        host = normalise_host(text)
    except InvalidArgument:
        return
    assert normalise_host(host) == host
    assert host == host.lower()
    assert host.isascii()
    assert not set(host) & set(" /@\\\r\n\0%#?[]")


@given(st.text(alphabet="a.:[]@1x-*", max_size=20))
def test_an_authority_has_one_reading(text: str) -> None:
    try:
        host, port = parse_authority(text)
    except InvalidArgument:
        return
    assert "@" not in host
    assert 1 <= port <= 65535
    assert parse_authority(f"[{host}]:{port}" if ":" in host else f"{host}:{port}") == (host, port)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "::",
        "::1",
        "10.1.2.3",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "fe80::1",
        "fe80::1%eth0",
        "fd00:ec2::254",
        "fc00::1",
        "224.0.0.1",
        "255.255.255.255",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
        "2002:a00:1::1",
        "2001:0:0:0:0:0:80ff:fffe",
    ],
)
def test_addresses_that_are_not_the_internet_are_refused(address: str) -> None:
    assert refusal(address) is not None


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
)
def test_addresses_of_the_internet_are_not(address: str) -> None:
    assert refusal(address) is None


def test_a_mirror_of_the_host_may_be_private_but_nothing_may_be_metadata() -> None:
    assert refusal("10.0.0.1", private_allowed=True) is None
    assert refusal("127.0.0.1", private_allowed=True) is not None
    assert refusal("127.0.0.1", loopback_allowed=True) is None
    for address in ("169.254.169.254", "fd00:ec2::254", "::ffff:169.254.169.254"):
        assert refusal(address, private_allowed=True, loopback_allowed=True) is not None
    assert is_own("127.0.0.1")
    assert not is_own("1.1.1.1")


# --- presets ----------------------------------------------------------------------------------------------------------
DEFAULTS = ["https://index.example/simple", "https://files.example"]


def test_pip_without_settings_uses_its_own_default() -> None:
    preset, index, extra = pip_preset({}, DEFAULTS)
    assert [str(rule) for rule in preset.rules] == ["index.example:443", "files.example:443"]
    assert (index, extra) == (None, ())


def test_pip_mirrors_are_taken_over_without_their_passwords() -> None:
    text = (
        "global.index-url='https://user:secret@mirror.example:8443/simple'\n"
        "global.extra-index-url='http://other.example/simple file:///opt/wheels'\n"
        "install.find-links='https://links.example'\nglobal.timeout='5'\nbroken\n"
    )
    preset, index, extra = pip_preset(parse_pip_config(text), DEFAULTS)
    assert [str(rule) for rule in preset.rules] == ["mirror.example:8443", "other.example:80", "links.example:443"]
    assert index == "https://mirror.example:8443/simple"
    assert extra == ("http://other.example/simple",)
    assert len(preset.notes) == 2
    shown = f"{preset.notes} {pip_config(HostClients({}, index, extra))}"
    assert "secret" not in shown
    assert "index-url = https://mirror.example:8443/simple\n" in shown.replace("\\n", "\n")


def test_the_environment_wins_for_pip_and_the_default_written_out_keeps_its_files() -> None:
    settings = {":env:.index-url": ("https://index.example/simple",), "global.index-url": ("https://x.example",)}
    preset, _, _ = pip_preset(settings, DEFAULTS)
    assert {rule.host for rule in preset.rules} == {"index.example", "files.example"}


def test_npm_registries_of_scopes_count() -> None:
    preset, registry = npm_preset('{"registry": "https://npm.example/", "@a:registry": "http://a.example:4873/x"}')
    assert [str(rule) for rule in preset.rules] == ["npm.example:443", "a.example:4873"]
    assert "registry=https://npm.example/\n" in str(npm_config(HostClients({}, npm_registry=registry)))
    for broken in ("", "[]", "{}", '{"registry": null}'):
        assert npm_preset(broken)[0].rules == ()
    assert npm_preset("")[0].notes


def test_apt_sources_of_both_kinds_and_mirror_lists_count(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "mirrors").write_text("# list\nhttps://two.example/debian/ priority:1\n")
    (tmp_path / "sources.list").write_text(
        "deb [signed-by=/x.gpg] http://one.example/debian bookworm main\n# deb http://off.example/ x y\n"
        f"deb mirror+file:{tmp_path}/mirrors bookworm main\ndeb cdrom:[Debian]/ bookworm main\n"
    )
    (tmp_path / "sources.list.d" / "a.sources").write_text(
        "Types: deb\nURIs: https://three.example/ http://four.example:8080/\nSuites: bookworm\nComponents: main\n\n"
        "Enabled: no\nTypes: deb\nURIs: https://off.example/\nSuites: bookworm\nComponents: main\n"
    )
    assert [str(rule) for rule in apt_preset(tmp_path).rules] == [
        "one.example:80",
        "two.example:443",
        "three.example:443",
        "four.example:8080",
    ]
    assert apt_preset(tmp_path / "none").notes


def test_presets_of_this_host_are_read_from_its_clients() -> None:
    found = read_host_clients(fresh=True).presets
    assert set(found) == {"pip", "npm", "apt"}
    for preset in found.values():
        assert preset.rules or preset.notes, f"{preset.name} has neither rules nor a reason why not"
        assert all(rule.preset == preset.name for rule in preset.rules)


# --- an office's clients ----------------------------------------------------------------------------------------------
PEM = "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="files in an office are root's")
def test_an_office_follows_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "rootfs"
    bundle = root / clients.CA_BUNDLE.lstrip("/")
    bundle.parent.mkdir(parents=True)
    bundle.write_text(PEM.format("common") + PEM.format("the agent's own"))
    monkeypatch.setattr(authorities, "host_bundle", lambda: PEM.format("common") + PEM.format("the host's"))
    mirrors = HostClients({}, "https://mirror.example/simple", (), "https://npm.example/")
    configure_office(root, mirrors)
    assert bundle.read_text() == PEM.format("common") + PEM.format("the agent's own") + PEM.format("the host's")
    (local,) = (root / authorities.LOCAL_DIR).iterdir()
    assert local.read_text() == PEM.format("the host's")
    assert "index-url = https://mirror.example/simple" in (root / "etc/xdg/pip/pip.conf").read_text()
    assert "registry=https://npm.example/" in (root / "etc/npmrc").read_text()

    before = {path: path.stat().st_ino for path in root.rglob("*")}
    configure_office(root, mirrors)
    assert {path: path.stat().st_ino for path in root.rglob("*")} == before, "nothing changed, so nothing is written"

    (root / "usr/etc/npmrc").write_text("registry=https://agents-own.example/\n")
    configure_office(root, HostClients({}))
    assert not (root / "etc/xdg/pip/pip.conf").exists()
    assert not (root / "etc/npmrc").exists()
    assert (root / "usr/etc/npmrc").read_text() == "registry=https://agents-own.example/\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="files in an office are root's")
def test_a_hostile_office_gets_nothing_of_the_host_written(tmp_path: Path) -> None:
    root, outside = tmp_path / "rootfs", tmp_path / "outside"
    outside.mkdir()
    (root / "etc").mkdir(parents=True)
    (root / "etc/xdg").symlink_to(outside)
    (root / "etc/npmrc").symlink_to(outside / "npmrc")
    (root / "etc/ssl").symlink_to("../../outside")
    with contextlib.suppress(Exception):
        configure_office(root, HostClients({}, "https://mirror.example/simple", (), "https://npm.example/"))
    assert list(outside.iterdir()) == []


def test_the_environment_leads_to_the_proxy_and_spares_the_office_itself() -> None:
    environment = office_environment()
    assert environment["https_proxy"] == environment["HTTP_PROXY"] == "http://egress:3128"
    assert {"db", "s3", "api", "localhost"} <= set(environment["no_proxy"].split(","))
    assert environment["SSL_CERT_FILE"] == environment["GIT_SSL_CAINFO"] == "/etc/ssl/certs/ca-certificates.crt"


def connect_head(target: str) -> bytes:
    return f"CONNECT {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


# --- the proxy --------------------------------------------------------------------------------------------------------
class World:
    """An echo server and an HTTP server on loopback, a name service of our own, and a proxy in front."""

    def __init__(self, proxy: EgressProxy, path: Path, decisions: list[Decision], echo: int, web: int) -> None:
        self.proxy, self.path, self.decisions, self.echo, self.web = proxy, path, decisions, echo, web
        self.requests: list[bytes] = []

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(str(self.path))

    async def connect(self, target: str) -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
        """The head of the answer to a CONNECT, and the streams."""
        reader, writer = await self.open()
        writer.write(connect_head(target))
        return await reader.readuntil(b"\r\n\r\n"), reader, writer

    async def ask(self, request: bytes) -> bytes:
        """Everything that comes back until the proxy hangs up."""
        reader, writer = await self.open()
        writer.write(request)
        answer = await reader.read()
        writer.close()
        return answer


NAMES = {
    "allowed.example": ["127.0.0.1"],
    "sub.allowed.example": ["127.0.0.1"],
    "denied.example": ["127.0.0.1"],
    "rebinds.example": ["127.0.0.1"],
    "metadata.example": ["169.254.169.254"],
    "private.example": ["10.0.0.1"],
    "mapped.example": ["::ffff:127.0.0.1"],
    "mixed.example": ["93.184.216.34", "127.0.0.1"],
    "localhost": ["127.0.0.1"],
}


async def names(host: str, port: int) -> list[str]:
    if host in NAMES:
        return NAMES[host]
    try:
        socket.inet_pton(socket.AF_INET, host)
    except OSError:
        raise OSError(f"unknown name {host}") from None
    return [host]


@contextlib.asynccontextmanager
async def a_world(
    tmp_path: Path,
    entries: Callable[[int, int], list[str]],
    *,
    allow_private: bool = True,
    presets: dict[str, Preset] | None = None,
    environment: dict[str, str] | None = None,
) -> AsyncIterator[World]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.close()

    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), 0
            )
            body = await reader.readexactly(length)
            if b"chunked" in head.lower():
                body = await reader.readuntil(b"0\r\n\r\n")
            world.requests.append(head + body)
            if head.startswith(b"GET /redirect"):
                writer.write(b"HTTP/1.1 302 Found\r\nLocation: http://metadata.example/\r\nContent-Length: 0\r\n\r\n")
            elif head.startswith(b"GET /stream"):  # the end of the connection ends it
                writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + b"s" * 300_000)
            elif head.startswith(b"GET /garbage"):
                writer.write(b"\x16\x03\x01 not http\r\n\r\n")
            else:
                writer.write(
                    b"HTTP/1.1 200 OK\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nContent-Length: 5\r\n\r\nhello"
                )
            await writer.drain()
        writer.close()

    servers = [await asyncio.start_server(handler, "127.0.0.1", 0) for handler in (echo, web)]
    ports = [server.sockets[0].getsockname()[1] for server in servers]
    decisions: list[Decision] = []
    dialer = Dialer(allow_private=allow_private, resolver=names, environment_proxies=lambda: environment or {})
    egress = EgressProxy(
        "analyst",
        entries(*ports),
        presets or {},
        on_decision=decisions.append,
        dialer=dialer,
        allow_private=allow_private,
    )
    path = tmp_path / "egress.sock"
    await egress.serve(path)
    world = World(egress, path, decisions, *ports)
    try:
        yield world
    finally:
        await egress.close()
        for server in servers:
            server.close()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """The office may reach allowed.example on both test ports."""
    async with a_world(tmp_path, lambda echo, web: [f"allowed.example:{echo}", f"allowed.example:{web}"]) as made:
        yield made


async def test_a_tunnel_to_an_allowed_host_carries_bytes_both_ways(world: World) -> None:
    head, reader, writer = await world.connect(f"Allowed.Example.:{world.echo}")
    assert head.startswith(b"HTTP/1.1 200 ")
    data = os.urandom(3_000_000)
    sending = asyncio.create_task(send(writer, data))
    assert await reader.readexactly(len(data)) == data
    await sending
    writer.write_eof()
    assert await reader.read() == b"", "the end of one direction reaches the other side, which ends too"
    writer.close()
    assert world.proxy.counters.bytes_sent == world.proxy.counters.bytes_received == len(data)
    assert [(decision.allowed, decision.host, decision.what) for decision in world.decisions] == [
        (True, "allowed.example", "CONNECT")
    ]


async def send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


@pytest.mark.parametrize(
    "target",
    [
        "denied.example:{echo}",
        "sub.allowed.example:{echo}",
        "allowed.example:1",
        "allowed.example:22",
        "127.0.0.1:{echo}",
        "[::1]:{echo}",
        "[::ffff:127.0.0.1]:{echo}",
        "localhost:{echo}",
        "0.0.0.0:{echo}",
    ],
)
async def test_everything_else_is_denied_with_a_reason(world: World, target: str) -> None:
    """All of these lead to the test's server, so it is the rules that keep them out."""
    _, probe = await asyncio.open_connection("127.0.0.1", world.echo)
    probe.close()
    target = target.format(echo=world.echo)
    answer = await world.ask(connect_head(target))
    assert answer.startswith(b"HTTP/1.1 403 Agent analyst may not reach "), answer
    assert b"--egress" in answer
    assert [decision.allowed for decision in world.decisions] == [False]
    assert world.proxy.counters.denied == 1


@pytest.mark.parametrize(
    "target",
    [
        "127.1:{echo}",
        "2130706433:{echo}",
        "0x7f000001:{echo}",
        "0177.0.0.1:{echo}",
        "allowed.example@127.0.0.1:{echo}",
        "allowed.example:{echo}@127.0.0.1",
        "allowed.example",
        "allowed.example:",
        "allowed.example:999999",
        "allowed.example:{echo}/",
        "::1:{echo}",
        "allowed.example%00:{echo}",
        "allowed.example%2e:{echo}",
        "*.example:{echo}",
    ],
)
async def test_targets_that_are_no_host_and_port_are_bad_requests(world: World, target: str) -> None:
    answer = await world.ask(connect_head(target.format(echo=world.echo)))
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert world.requests == []


@pytest.mark.parametrize(
    "name", ["localhost", "rebinds.example", "metadata.example", "private.example", "mapped.example", "mixed.example"]
)
async def test_an_allowed_name_that_leads_inside_is_refused(tmp_path: Path, name: str) -> None:
    """Without the test's permission for private addresses: the owner allowed the name, its DNS leads elsewhere."""
    async with a_world(
        tmp_path, lambda echo, web: [f"{name}:{web}"] if "." in name else [], allow_private=False
    ) as world:
        for request in (
            connect_head(f"{name}:{world.web}"),
            http_get(f"http://{name}:{world.web}/"),
        ):
            answer = await world.ask(request)
            assert answer.startswith(b"HTTP/1.1 403 "), answer
        assert world.requests == []
        assert not world.decisions[-1].allowed


async def test_a_redirect_to_the_metadata_service_ends_at_the_proxy(tmp_path: Path) -> None:
    entries = ["metadata.example"]
    async with a_world(tmp_path, lambda echo, web: [f"allowed.example:{web}", *entries]) as world:
        answer = await world.ask(http_get(f"http://allowed.example:{world.web}/redirect"))
        assert b"Location: http://metadata.example/" in answer or b"location: http://metadata.example/" in answer
    async with a_world(tmp_path, lambda echo, web: entries, allow_private=False) as world:
        answer = await world.ask(http_get("http://metadata.example/"))
        assert answer.startswith(b"HTTP/1.1 403 metadata.example:80 is not reached")
        assert b"169.254.169.254" in answer


async def test_a_mirror_on_a_private_network_or_the_host_itself_works_when_the_host_uses_it(tmp_path: Path) -> None:
    async with a_world(tmp_path, lambda echo, web: [], allow_private=False) as unused:
        assert unused.proxy.rules == ()
    presets: dict[str, Preset] = {}

    def entries(echo: int, web: int) -> list[str]:
        rules = (
            Rule("localhost", frozenset({web}), preset="pip"),
            Rule("rebinds.example", frozenset({web}), preset="pip"),
        )
        presets["pip"] = Preset("pip", rules)
        return ["pip"]

    async with a_world(tmp_path, entries, allow_private=False, presets=presets) as world:
        assert (await world.ask(http_get(f"http://localhost:{world.web}/simple/"))).endswith(b"hello")
        answer = await world.ask(http_get(f"http://rebinds.example:{world.web}/"))
        assert answer.startswith(b"HTTP/1.1 403 "), (
            "a mirror's name may lead to private networks, but not to this machine"
        )


def http_get(url: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {url} HTTP/1.1", "Host: ignored.example", *headers, "Connection: close", "", ""]).encode()


async def test_plain_http_is_forwarded_anew(world: World) -> None:
    answer = await world.ask(
        http_get(
            f"http://allowed.example:{world.web}/a?b=c#fragment",
            "Proxy-Authorization: Basic secret",
            "X-Kept: yes",
            "Connection: X-Dropped",
            "X-Dropped: 1",
        )
    )
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\nhello")
    assert b"x-hop: 1" not in answer.lower()
    (request,) = world.requests
    assert request.startswith(b"GET /a?b=c HTTP/1.1\r\n")
    assert f"host: allowed.example:{world.web}\r\n".encode() in request.lower()
    assert b"x-kept: yes" in request.lower()
    assert not any(word in request.lower() for word in (b"ignored", b"secret", b"x-dropped"))


async def test_bodies_go_out_and_long_answers_come_back(world: World) -> None:
    url = f"http://allowed.example:{world.web}"
    body = b"x" * 200_000
    head = f"POST {url}/ HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    assert (await world.ask(head.encode() + body)).endswith(b"hello")
    assert world.requests[-1].endswith(b"\r\n\r\n" + body)
    head = f"PUT {url}/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    assert (await world.ask(head.encode() + b"5\r\nchunk\r\n0\r\n\r\n")).endswith(b"hello")
    answer = await world.ask(http_get(f"{url}/stream"))
    assert answer.count(b"s" * 100) >= 2900
    assert (await world.ask(http_get(f"{url}/garbage"))).startswith(b"HTTP/1.1 502 ")


async def test_one_connection_serves_several_requests_each_decided_by_itself(world: World) -> None:
    reader, writer = await world.open()
    for _ in range(3):
        writer.write(f"GET http://allowed.example:{world.web}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(5) == b"hello"
    writer.write(f"GET http://denied.example:{world.web}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert (await reader.read()).startswith(b"HTTP/1.1 403 ")
    assert [decision.allowed for decision in world.decisions] == [True, True, True, False]
    writer.close()


async def test_a_pipelined_request_cannot_ride_on_an_allowed_one(world: World) -> None:
    """Two requests in one write: the second is read as one of its own, and denied."""
    allowed = f"GET http://allowed.example:{world.web}/ HTTP/1.1\r\nHost: x\r\n\r\n"
    denied = f"GET http://denied.example:{world.web}/secret HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = await world.ask((allowed + denied).encode())
    assert b"200 OK" in answer
    assert b"403 Agent analyst may not reach denied.example" in answer
    assert len(world.requests) == 1
    assert b"secret" not in world.requests[0]


@pytest.mark.parametrize(
    "request_head",
    [
        "GET / HTTP/1.1\r\nHost: allowed.example\r\n\r\n",
        "GET https://allowed.example/ HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET ftp://allowed.example/ HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET http:///x HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET http://a@allowed.example:{web}/ HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET http://allowed.example:{web}\\@x/ HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET http://allowed.example:{web}/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "GET http://allowed.example:{web}/ HTTP/1.1\r\nHost: x\r\nBad Header: 1\r\n\r\n",
        "CONNECT allowed.example:{echo} HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n\r\n",
    ],
)
async def test_what_is_no_proxy_request_is_refused(world: World, request_head: str) -> None:
    answer = await world.ask(request_head.format(web=world.web, echo=world.echo).encode("latin-1"))
    assert answer.startswith(b"HTTP/1.1 4"), answer
    assert world.requests == []


async def test_heads_are_limited(world: World) -> None:
    url = f"http://allowed.example:{world.web}/"
    answer = await world.ask(http_get(url, "X: " + "x" * (exchange.HEAD_BYTES_MAX + 1)))
    assert answer.startswith(b"HTTP/1.1 431 "), answer[:100]
    answer = await world.ask(http_get(url + "x" * 20_000))
    assert answer.startswith(b"HTTP/1.1 400 "), answer[:100]
    assert world.requests == []


async def test_silence_has_an_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD_TIMEOUT_S", "HELLO_TIMEOUT_S", "IDLE_TIMEOUT_S"):
        monkeypatch.setattr(exchange, name, 0.05)
    reader, _ = await world.open()
    assert await reader.read() == b""
    for first in (b"", b"\x16\x03\x01", b"said once"):
        head, reader, writer = await world.connect(f"allowed.example:{world.echo}")
        assert b" 200 " in head
        writer.write(first)
        assert await reader.read() == (first if first[:1] == b"s" else b"")
        writer.close()


async def test_connections_are_limited(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "CONNECTIONS_MAX", 2)
    held = [await world.connect(f"allowed.example:{world.echo}") for _ in range(2)]
    assert (await world.ask(b"")).startswith(b"HTTP/1.1 503 ")
    for _, _, writer in held:
        writer.close()


async def test_rules_change_while_it_runs_and_break_what_they_forbid(world: World) -> None:
    head, reader, writer = await world.connect(f"allowed.example:{world.echo}")
    assert b" 200 " in head
    world.proxy.set_entries([f"denied.example:{world.echo}"])
    assert await reader.read() == b"", "the open tunnel is broken"
    writer.close()
    head, _, writer = await world.connect(f"denied.example:{world.echo}")
    assert b" 200 " in head
    writer.close()
    head, _, writer = await world.connect(f"allowed.example:{world.echo}")
    assert b" 403 " in head
    writer.close()
    with pytest.raises(InvalidArgument):
        world.proxy.set_entries(["*"])


async def test_an_unknown_name_and_a_closed_port_are_told_apart_from_denial(tmp_path: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        closed = sock.getsockname()[1]
    async with a_world(tmp_path, lambda echo, web: [f"allowed.example:{closed}", "unknown.example"]) as world:
        assert (await world.ask(connect_head(f"allowed.example:{closed}"))).startswith(b"HTTP/1.1 502 ")
        assert (await world.ask(connect_head("unknown.example:443"))).startswith(b"HTTP/1.1 502 ")
        assert world.proxy.counters.failed == 2


async def test_a_denial_names_the_preset_that_would_allow_it(tmp_path: Path) -> None:
    async with a_world(tmp_path, lambda echo, web: ["example.org"], presets={"pip": MIRROR}) as world:
        answer = await world.ask(connect_head("mirror.example:443"))
        assert b"--egress pip`" in answer
        assert b"It may reach: example.org." in answer


async def test_only_an_office_with_a_name_gets_out(tmp_path: Path) -> None:
    async with a_world(tmp_path, lambda echo, web: [f"allowed.example:{echo}"]) as world:
        world.proxy.agent = ""
        answer = await world.ask(connect_head(f"allowed.example:{world.echo}"))
        assert answer.startswith(b"HTTP/1.1 403 ")


async def test_a_callback_that_fails_does_not_stop_the_proxy(world: World) -> None:
    def broken(decision: Decision) -> None:
        raise RuntimeError("log")

    world.proxy._on_decision = broken  # pyright: ignore[reportPrivateUsage]
    head, _, writer = await world.connect(f"allowed.example:{world.echo}")
    assert b" 200 " in head
    writer.close()


async def test_this_hosts_own_proxy_is_used(tmp_path: Path) -> None:
    """The office's proxy behind another proxy, which asks for a password and resolves names that we cannot."""
    asked: list[bytes] = []

    async def corporate(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.append(head)
        if head.startswith(b"CONNECT refused"):
            writer.write(b"HTTP/1.1 407 No\r\n\r\n")
        elif head.startswith(b"CONNECT"):
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            writer.write(await reader.read(100))
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nvia")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(corporate, "127.0.0.1", 0)
    url = f"http://me:p%40ss@127.0.0.1:{server.sockets[0].getsockname()[1]}"
    environment = {"https": url, "http": url, "no": "direct.example"}
    entries = ["far.example", "refused.example", "metadata.example"]
    async with a_world(tmp_path, lambda echo, web: entries, allow_private=False, environment=environment) as world:
        head, reader, writer = await world.connect("far.example:443")
        assert b" 200 " in head
        writer.write(b"hi")
        assert await reader.read() == b"hi"
        assert (await world.ask(http_get("http://far.example/x"))).endswith(b"via")
        assert asked[0].startswith(b"CONNECT far.example:443 HTTP/1.1\r\n")
        assert b"Proxy-Authorization: Basic bWU6cEBzcw==\r\n" in asked[0]
        assert asked[1].startswith(b"GET http://far.example/x HTTP/1.1\r\n")
        assert (await world.ask(connect_head("refused.example:443"))).startswith(b"HTTP/1.1 502 ")
        asked.clear()
        assert (await world.ask(connect_head("metadata.example:443"))).startswith(b"HTTP/1.1 403 ")
        assert asked == []
    server.close()


# --- TLS names --------------------------------------------------------------------------------------------------------
def client_hello(name: str | None) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname = False
    tunnel = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        tunnel.do_handshake()
    return outgoing.read()


def test_the_name_in_a_greeting_is_found_however_it_is_cut() -> None:
    hello = client_hello("sub.allowed.example")
    assert tls.server_name(hello) == "sub.allowed.example"
    assert tls.server_name(client_hello(None)) is None
    assert tls.server_name(b"SSH-2.0") is None
    for end in range(len(hello)):
        with pytest.raises(tls.Incomplete):
            tls.server_name(hello[:end])
    body = hello[5:]
    for size in (1, 7, 100):
        records = b"".join(
            hello[:3] + len(body[at : at + size]).to_bytes(2, "big") + body[at : at + size]
            for at in range(0, len(body), size)
        )
        assert tls.server_name(records) == "sub.allowed.example"


@given(st.binary(max_size=300))
def test_greetings_from_nowhere_do_no_harm(data: bytes) -> None:
    for head in (b"", b"\x16\x03\x01\x00\x40\x01\x00\x00\x3c\x03\x03"):
        with contextlib.suppress(tls.Incomplete):
            tls.server_name(head + data)


async def test_a_tunnel_cannot_ask_for_another_site(world: World) -> None:
    """One content network serves allowed and other names: the name in the greeting counts too."""
    target = f"allowed.example:{world.echo}"
    _, reader, writer = await world.connect(target)
    hello = client_hello("allowed.example")
    writer.write(hello[:50])
    await asyncio.sleep(0.01)
    writer.write(hello[50:])
    assert await reader.readexactly(len(hello)) == hello
    writer.close()
    _, reader, writer = await world.connect(target)
    writer.write(client_hello("denied.example"))
    assert await reader.read() == b""
    writer.close()
    assert (world.decisions[-1].what, world.decisions[-1].host, world.decisions[-1].allowed) == (
        "TLS",
        "denied.example",
        False,
    )


async def test_a_server_that_speaks_first_is_heard(tmp_path: Path) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\r\n")
        writer.write(await reader.readline())
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with a_world(tmp_path, lambda echo, web: [f"allowed.example:{port}"]) as world:
        _, reader, writer = await world.connect(f"allowed.example:{port}")
        assert await reader.readline() == b"220 hello\r\n"
        writer.write(b"EHLO\r\n")
        assert await reader.read() == b"EHLO\r\n"
        writer.close()
    server.close()


# --- for real ---------------------------------------------------------------------------------------------------------
async def pip(destination: Path, port: int) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    environment |= {"HTTPS_PROXY": f"http://127.0.0.1:{port}", "HTTP_PROXY": f"http://127.0.0.1:{port}"}
    environment.pop("PIP_FIND_LINKS", None)
    options = f"-m pip download --no-deps --no-cache-dir --retries 1 --dest {destination} iniconfig==2.1.0".split()
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


async def reachable(rules: tuple[Rule, ...]) -> bool:
    """Whether this machine reaches what its pip is set up to use, without our proxy."""
    for rule in rules:
        try:
            async with asyncio.timeout(10):
                _, writer = await asyncio.open_connection(rule.host, min(rule.ports))
        except (OSError, TimeoutError):
            return False
        writer.close()
    return bool(rules)


async def on_tcp(egress: EgressProxy, use: Callable[[int], Awaitable[None]]) -> None:
    server = await asyncio.start_server(egress.handle, "127.0.0.1", 0, limit=1 << 18)
    try:
        await use(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        await egress.close()


async def test_pip_downloads_through_the_proxy_with_its_preset_and_not_without(tmp_path: Path) -> None:
    presets = await asyncio.to_thread(lambda: read_host_clients().presets)
    if not await reachable(presets["pip"].rules):
        pytest.skip("this machine does not reach its own package index")
    decisions: list[Decision] = []
    egress = EgressProxy("analyst", ["pip"], presets, on_decision=decisions.append)

    async def use(port: int) -> None:
        done = await pip(tmp_path, port)
        assert done.returncode == 0, done.stdout + done.stderr
        (wheel,) = tmp_path.glob("*.whl")
        assert zipfile.is_zipfile(wheel)
        assert egress.counters.bytes_received > wheel.stat().st_size
        assert all(decision.allowed for decision in decisions)
        (wheel).unlink()
        egress.set_entries([])
        done = await pip(tmp_path, port)
        assert done.returncode != 0
        assert "may not reach" in done.stdout + done.stderr
        assert not list(tmp_path.glob("*.whl"))

    await on_tcp(egress, use)
