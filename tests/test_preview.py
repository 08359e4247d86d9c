"""Previews: what an office serves reaches the owner's browser, and nobody and nothing else; taken as an attacker would."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import httpx
import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.http11 import Request, Response

from fixtures.api import TOKENS, Api, error_of, eventually
from fixtures.previews import Web
from tenure.identity.authorize import Principal, PrincipalKind
from tenure.server.api import previews as previews_api
from tenure.server.gateway import preview
from tenure.server.gateway.passes import COOKIE_NAME, Place
from tenure.server.listeners import WS_MESSAGE_BYTES_MAX, serve_office_api

pytest_plugins = ("fixtures.server", "fixtures.preview_server")

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi"


# --- getting in ----------------------------------------------------------------------------------------------------------
async def ticket(web: Web, path: str = "/") -> str:
    """The link that the API gives, as path and query."""
    headers = {"Authorization": f"Bearer {TOKENS.owner}"}
    async with web.client(host=f"127.0.0.1:{web.port}", Cookie="", **headers) as owner:
        answer = await owner.post("/v1/agents/analyst/preview", json={"port": 8000, "path": path})
    made = answer.json()
    assert answer.status_code == 201, made
    assert made["origin"] == web.origin
    parts = urlsplit(made["url"])
    assert f"{parts.scheme}://{parts.netloc}" == web.origin
    return f"{parts.path}?{parts.query}"


async def test_a_link_lets_in_once_and_then_a_cookie_of_this_host_does(web: Web) -> None:
    web.site.answers(OK)
    link = await ticket(web, "/page?a=b")
    async with web.client(Cookie="") as browser:
        opened = await browser.get(link)
        assert (opened.status_code, opened.headers["location"]) == (303, f"{web.origin}/page?a=b")
        set_cookie = opened.headers["set-cookie"]
        assert re.fullmatch(rf"{COOKIE_NAME}=[\w.:-]+; Path=/; Max-Age=28800; HttpOnly; SameSite=Strict", set_cookie)
        assert opened.headers["cache-control"] == "no-store"
        assert opened.headers["referrer-policy"] == "no-referrer"
        assert web.site.connections == 0  # the office never sees a ticket
        cookie = set_cookie.partition(";")[0]
        shown = await browser.get("/page?a=b", headers={"Cookie": cookie})
        assert (shown.status_code, shown.text) == (200, "hi")
    async with web.client(Cookie="") as browser:
        again = await browser.get(link)
        assert again.status_code == 401
        assert "used already" in again.text
        assert (await browser.get(link, headers={"Cookie": cookie})).status_code == 303  # already in: no harm
    assert TOKENS.owner.encode() not in b"".join(web.site.heads)
    assert cookie.encode() not in b"".join(web.site.heads)


async def test_a_link_is_not_used_up_by_those_who_only_look_and_not_good_elsewhere(web: Web) -> None:
    link = await ticket(web)
    async with web.client(Cookie="") as browser:
        assert (await browser.head(link)).status_code == 405
        assert (await browser.get(link, headers={"Sec-Purpose": "prefetch;prerender"})).status_code == 401
        assert (await browser.get(link)).status_code == 303
        link = await ticket(web)
        for host in (f"8001--analyst.localhost:{web.port}", f"8000--other.localhost:{web.port}"):
            assert (await browser.get(link, headers={"Host": host})).status_code == 401


async def test_a_link_followed_from_another_page_leads_on_by_a_page_of_ours(web: Web) -> None:
    link = await ticket(web, '/"><script>')
    async with web.client(Cookie="", **{"Sec-Fetch-Site": "cross-site"}) as browser:
        opened = await browser.get(link)
    assert opened.status_code == 200
    assert "SameSite=Strict" in opened.headers["set-cookie"]
    assert "<script>" not in opened.text
    assert f'content="0; url={web.origin}/' in opened.text
    assert "default-src 'none'" in opened.headers["content-security-policy"]


@pytest.mark.parametrize(
    "to", ["//evil.example", "https://evil.example", "/\\evil.example", "@evil.example", "/a\r\nX: b"]
)
async def test_a_link_leads_nowhere_but_to_its_preview(web: Web, to: str) -> None:
    link = re.sub(r"to=.*", "", await ticket(web))
    async with web.client(Cookie="") as browser:
        opened = await browser.get(
            link, params={**dict(p.split("=") for p in link.split("?")[1].split("&") if p), "to": to}
        )
    assert opened.status_code == 303
    assert urlsplit(opened.headers["location"]).netloc == web.host
    assert "x" not in opened.headers


async def test_without_the_cookie_nothing_reaches_the_office(web: Web) -> None:
    web.site.answers(OK)
    other = web.cookie(Place("analyst", 8001)), web.cookie(Place("other", 8000))
    for cookie in ("", f"{COOKIE_NAME}=forged", *other):
        for path in ("/", "/v1/agents", "/.tenure/open", "/.tenure/open/x", "/%2e%2e/x"):
            async with web.client(Cookie=cookie) as stranger:
                answer = await stranger.get(path, headers={"Accept": "text/html"})
                assert answer.status_code == 401
                assert "tenure preview analyst 8000" in answer.text
        with pytest.raises(InvalidStatus) as refused:
            async with web.websocket(cookie=cookie):
                pass
        assert refused.value.response.status_code == 401
    assert web.site.connections == 0


# --- what attackers try --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://8000--other.localhost:{port}"},
        {"Origin": "http://8001--analyst.localhost:{port}"},
        {"Origin": "http://8000--analyst.localhost:1"},
        {"Origin": "http://localhost:{port}"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
    ],
)
async def test_another_page_gets_nothing_even_where_a_browser_sends_the_cookie(
    web: Web, headers: dict[str, str]
) -> None:
    web.site.answers(OK)
    sent = {name: value.format(port=web.port) for name, value in headers.items()}
    async with web.client(**sent) as browser:
        for method in ("GET", "POST", "OPTIONS"):
            answer = await browser.request(method, "/")
            assert answer.status_code == 403
            assert not any(name.startswith("access-control") for name in answer.headers)
    assert web.site.connections == 0


async def test_a_person_may_navigate_from_elsewhere_but_a_form_may_not_post(web: Web) -> None:
    web.site.answers(OK)
    navigation = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    async with web.client(**navigation) as browser:
        assert (await browser.get("/")).status_code == 200
        assert (await browser.post("/")).status_code == 403
    async with web.client(Origin=web.origin, **{"Sec-Fetch-Site": "same-origin"}) as browser:
        assert (await browser.post("/")).status_code == 200


async def test_websockets_take_their_own_origin_only(web: Web) -> None:
    web.site.answers(OK)
    for origin in ("https://evil.example", "null", f"http://8000--other.localhost:{web.port}", f"https://{web.host}"):
        with pytest.raises(InvalidStatus) as refused:
            async with web.websocket(origin=origin):
                pass
        assert refused.value.response.status_code == 403
    assert web.site.connections == 0


async def test_the_apis_token_never_reaches_an_office(web: Web) -> None:
    web.site.answers(OK)
    for token in (TOKENS.owner, TOKENS.worker):
        async with web.client(Authorization=f"Bearer {token}") as confused:
            answer = await confused.get("/")
            assert answer.status_code == 403
            assert "does not belong here" in answer.text
    assert web.site.connections == 0
    async with web.client(Authorization="Bearer of-the-offices-own-app") as browser:
        assert (await browser.get("/")).status_code == 200
    assert b"authorization: Bearer of-the-offices-own-app" in web.site.heads[0]


async def test_the_api_is_not_on_a_previews_host_nor_a_preview_on_the_apis(web: Web) -> None:
    web.site.answers(OK)
    async with web.client() as browser:
        assert (await browser.get("/v1/agents")).text == "hi"  # the office's own
        assert (await browser.get("/openapi.json")).text == "hi"
    async with web.client(host=f"localhost:{web.port}") as browser:
        assert (await browser.get("/v1/agents")).status_code == 401  # the cookie means nothing to the API
        assert (await browser.get("/.tenure/open")).status_code == 401
    token = {"Authorization": f"Bearer {TOKENS.owner}"}
    async with web.client(host=f"localhost:{web.port}", **token) as owner:
        assert (await owner.get("/v1/agents")).json()["agents"][0]["name"] == "analyst"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example:{port}", 403),
        ("8000--analyst.localhost.evil.example:{port}", 403),
        ("8000--analyst.localhost.:{port}", 403),
        ("8000--analyst.localhost:1", 403),
        ("8000--analyst.localhost", 403),
        ("analyst.localhost:{port}", 404),
        ("0--analyst.localhost:{port}", 404),
        ("65536--analyst.localhost:{port}", 404),
        ("08000--analyst.localhost:{port}", 404),
        ("8000--AN_ALYST.localhost:{port}", 404),
        ("8000---.localhost:{port}", 422),
        ("x.8000--analyst.localhost:{port}", 404),
        ("8000--analyst.localhost@evil.example:{port}", 403),
    ],
)
async def test_a_host_that_is_not_exactly_a_previews_is_refused(web: Web, host: str, status: int) -> None:
    web.site.answers(OK)
    headers = {"Authorization": ""}
    async with web.client(host=host.format(port=web.port), **headers) as browser:
        assert (await browser.get("/")).status_code == status
    assert web.site.connections == 0


async def test_host_names_are_compared_without_case(web: Web) -> None:
    web.site.answers(OK)
    async with web.client(host=web.host.upper()) as browser:
        assert (await browser.get("/")).status_code == 200


async def test_two_hosts_in_one_request_are_refused(web: Web) -> None:
    web.site.answers(OK)
    own, api = web.host.encode(), f"127.0.0.1:{web.port}".encode()
    for first, second in ((own, api), (api, own), (own, own)):
        cookie = web.cookie().encode()
        answer = await web.raw(
            b"GET / HTTP/1.1\r\nHost: %s\r\nHost: %s\r\nCookie: %s\r\nConnection: close\r\n\r\n"
            % (first, second, cookie)
        )
        assert re.match(rb"HTTP/1.1 4\d\d ", answer), answer
    assert web.site.connections == 0


@pytest.mark.parametrize(
    "smuggled",
    [
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Content-Length: 4\r\nContent-Length: 40\r\n\r\nabcd",
        b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"Content-Length: +4\r\n\r\nabcd",
        b"X: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"X: a\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
async def test_a_request_cannot_be_two_to_the_office(web: Web, smuggled: bytes) -> None:
    seen = bytearray()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            seen.extend(data)
            if b"\r\n\r\n" in seen:
                writer.write(OK)

    web.site.talk = talk
    head = f"POST / HTTP/1.1\r\nHost: {web.host}\r\nCookie: {web.cookie()}\r\nConnection: close\r\n".encode()
    await web.raw(head + smuggled + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
    assert seen.count(b" HTTP/1.1\r\n") <= 1
    assert b"/smuggled" not in seen.partition(b"\r\n\r\n")[0]
    lengths = re.findall(rb"(?i)\r\n(content-length|transfer-encoding):", bytes(seen))
    assert len(lengths) <= 1


async def test_an_office_cannot_use_previews_through_its_own_door(web: Web, api: Api) -> None:
    web.site.answers(OK)
    door = await serve_office_api(api.app, Principal(PrincipalKind.OFFICE, "analyst"), api.directory / "door.sock")
    try:
        async with api.client(token=None, socket=api.directory / "door.sock") as office:
            answer = await office.get("/", headers={"Host": web.host, "Cookie": web.cookie()})
            assert answer.status_code == 404
            made = await office.post("/v1/agents/analyst/preview", json={"port": 8000})
            assert (made.status_code, error_of(made)["code"]) == (403, "forbidden")
            for path, method in (("/v1/ssh-keys", "POST"), ("/v1/ssh-keys", "GET"), ("/v1/ssh-keys/x", "DELETE")):
                assert (await office.request(method, path, json={"public_key": "x"})).status_code == 403
    finally:
        await door.close(grace_s=0.5)
    assert web.site.connections == 0


# --- what is carried -----------------------------------------------------------------------------------------------------
async def test_bodies_of_any_size_stream_both_ways(web: Web) -> None:
    sizes: list[int] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await web.site.head(reader)
        if b"content-length: 30000000" in head.lower():
            sizes.append(len(await reader.readexactly(30_000_000)))
        else:
            assert b"transfer-encoding: chunked" in head.lower()
            size = 0
            while (line := await reader.readline()) != b"0\r\n":
                size += len((await reader.readexactly(int(line, 16) + 2))[:-2])
            sizes.append(size)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(300):
            writer.write(b"186a0\r\n" + b"y" * 100_000 + b"\r\n")
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    web.site.talk = talk

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(300):
            yield b"x" * 100_000

    async with web.client() as browser:
        for content in (b"x" * 30_000_000, pieces()):
            answer = await browser.put("/", content=content)
            assert answer.content == b"y" * 30_000_000
    assert sizes == [30_000_000, 30_000_000]


async def test_events_arrive_when_they_happen_and_the_office_learns_that_the_reader_left(web: Web) -> None:
    following, left = asyncio.Event(), asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await web.site.head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        for number in range(2):
            writer.write(b"data: %d\n\n" % number)
            await following.wait()
        assert await reader.read() == b""
        left.set()

    web.site.talk = talk
    async with web.client() as browser, browser.stream("GET", "/events") as answer:
        lines = answer.aiter_lines()
        assert await anext(lines) == "data: 0"
        following.set()
        assert [await anext(lines) for _ in range(2)] == ["", "data: 1"]
    await asyncio.wait_for(left.wait(), 20)


async def test_a_slow_reader_holds_the_office_back(web: Web) -> None:
    written = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await web.site.head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 300000000\r\n\r\n")
        for _ in range(3000):
            writer.write(b"z" * 100_000)
            await writer.drain()
            written += 100_000

    web.site.talk = talk
    async with web.client() as browser, browser.stream("GET", "/") as answer:
        looks: list[int] = []
        async with asyncio.timeout(60):
            while len(looks) < 10 or len(set(looks[-10:])) > 1:  # until nothing moves any more
                await asyncio.sleep(0.05)
                looks.append(written)
        assert written < 50_000_000
        assert sum([len(piece) async for piece in answer.aiter_raw()]) == 300_000_000


async def test_head_no_content_and_not_modified_have_no_body(web: Web) -> None:
    async with web.client() as browser:
        web.site.answers(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        answer = await browser.head("/")
        assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "5")
        for status in (b"204 No Content", b"304 Not Modified"):
            web.site.answers(b"HTTP/1.1 " + status + b"\r\nETag: x\r\n\r\n")
            answer = await browser.get("/")
            assert (answer.status_code, answer.content, answer.headers["etag"]) == (int(status[:3]), b"", "x")


async def test_paths_and_queries_arrive_as_they_were_sent(web: Web) -> None:
    web.site.answers(OK)
    for target in ("/a%2Fb/%C3%BC?x=%20&y=a+b&z", "/../x//y;p", "/?http://evil/"):
        await web.raw(
            f"GET {target} HTTP/1.1\r\nHost: {web.host}\r\nCookie: {web.cookie()}\r\nConnection: close\r\n\r\n".encode()
        )
        assert web.site.heads[-1].startswith(f"GET {target} HTTP/1.1\r\n".encode())


async def test_an_answer_before_the_whole_request_was_sent_arrives(web: Web) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await web.site.head(reader)
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
        await writer.drain()

    web.site.talk = talk
    async with web.client() as browser:
        answer = await browser.post("/", content=b"x" * 10_000_000)
        assert (answer.status_code, answer.text) == (413, "big")


# --- what goes wrong -----------------------------------------------------------------------------------------------------
async def test_a_port_where_nothing_listens_is_told_on_a_page(web: Web) -> None:
    async with web.client(host=f"9--analyst.localhost:{web.port}", Cookie=web.cookie(Place("analyst", 9))) as browser:
        page = await browser.get("/", headers={"Accept": "text/html,*/*"})
        assert page.status_code == 502
        assert "Nothing answers on port 9 in the office of analyst." in page.text
        assert page.headers["content-type"].startswith("text/html")
        assert page.headers["x-content-type-options"] == "nosniff"
        plain = await browser.get("/")
        assert plain.headers["content-type"].startswith("text/plain")
    unknown = Place("nobody", 80)
    async with web.client(host=f"80--nobody.localhost:{web.port}", Cookie=web.cookie(unknown)) as browser:
        assert (await browser.get("/")).status_code == 404


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x15\x03\x01\x00\x02\x02\x16",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 3,
    ],
)
async def test_what_is_no_http_is_told_as_an_error(web: Web, answer: bytes) -> None:
    web.site.answers(answer)
    async with web.client() as browser:
        told = await browser.get("/", headers={"Accept": "text/html"})
    assert told.status_code == 502
    assert "does not answer as HTTP does" in told.text


async def test_an_answer_that_breaks_off_does_not_look_whole(web: Web) -> None:
    for framing in (b"Content-Length: 1000", b"Transfer-Encoding: chunked"):
        body = b"5\r\nhello\r\n" if b"chunked" in framing else b"hello"
        web.site.answers(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n" + body)
        async with web.client() as browser:
            with pytest.raises(httpx.RemoteProtocolError):
                await browser.get("/")


async def test_requests_in_flight_are_bounded_per_agent(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview, "IN_FLIGHT_MAX", 2)
    may_end = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await web.site.head(reader)
        await may_end.wait()
        writer.write(OK)

    web.site.talk = talk
    async with web.client() as browser:
        waiting = [asyncio.create_task(browser.get("/")) for _ in range(2)]
        await eventually(lambda: len(web.site.heads) == 2)
        assert (await browser.get("/")).status_code == 503
        may_end.set()
        assert [(await one).status_code for one in waiting] == [200, 200]
        assert (await browser.get("/")).status_code == 200


async def test_methods_that_open_tunnels_are_refused(web: Web) -> None:
    web.site.answers(OK)
    for method in ("CONNECT", "TRACE", "PROPFIND"):
        target = "evil:80" if method == "CONNECT" else "/"
        answer = await web.raw(
            f"{method} {target} HTTP/1.1\r\nHost: {web.host}\r\nCookie: {web.cookie()}\r\nConnection: close\r\n\r\n".encode()
        )
        assert re.match(rb"HTTP/1.1 4\d\d ", answer), answer
    assert web.site.connections == 0


def test_the_api_gives_links_to_real_ports_only() -> None:
    assert previews_api.ticket_url(Place("a", 1), 7800, "s", "/x?y").startswith(
        "http://1--a.localhost:7800/.tenure/open?"
    )


# --- WebSockets ----------------------------------------------------------------------------------------------------------
async def echo(socket: ServerConnection) -> None:
    async for message in socket:
        if message == "close":
            await socket.close(4001, "as told")
        elif message == "die":
            socket.transport.abort()
        elif message == "flood":
            await socket.send(b"f" * (WS_MESSAGE_BYTES_MAX + 1))
        else:
            await socket.send(message)


def refuse(socket: ServerConnection, request: Request) -> Response | None:
    return socket.respond(418, "no tea") if request.path.startswith("/refused") else None


@pytest.fixture
async def echoes(web: Web) -> AsyncIterator[list[Request]]:
    """The site speaks WebSocket: sends back what it gets. The requests that it got."""
    seen: list[Request] = []

    def look(socket: ServerConnection, request: Request) -> Response | None:
        seen.append(request)
        return refuse(socket, request)

    server = await serve(echo, "127.0.0.1", 0, process_request=look, subprotocols=["b", "a"], max_size=None)  # type: ignore[list-item,arg-type]
    web.api.offices.dials["127.0.0.1:8000"] = server.sockets[0].getsockname()[1]
    yield seen
    server.close()


async def test_websockets_carry_text_and_bytes_both_ways(web: Web, echoes: list[Request]) -> None:
    async with web.websocket("/chat?x=1", origin=web.origin, subprotocols=["a"]) as socket:
        assert socket.subprotocol == "a"
        for message in ("hello ü", b"\x00\xff" * 500_000, "", b""):
            await socket.send(message)
            assert await socket.recv() == message
        await socket.send([b"in ", b"pieces"])
        assert await socket.recv() == b"in pieces"
        await asyncio.wait_for(await socket.ping(), 20)
        await socket.send("close")
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "as told")
    (request,) = echoes
    assert request.path == "/chat?x=1"
    assert request.headers["Host"] == web.host
    assert request.headers["Origin"] == web.origin
    assert COOKIE_NAME not in str(request.headers)
    assert len(request.headers.get_all("Sec-WebSocket-Key")) == 1


async def test_what_the_offices_server_refuses_is_refused_as_it_said(web: Web, echoes: list[Request]) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with web.websocket("/refused"):
            pass
    assert refused.value.response.status_code == 418
    assert refused.value.response.body == b"no tea"


async def test_a_websocket_whose_office_goes_away_or_sends_too_much_is_closed_with_a_reason(
    web: Web, echoes: list[Request]
) -> None:
    for message, code in (("die", 1011), ("flood", 1009)):
        async with web.websocket(subprotocols=["b"]) as socket:
            await socket.send(message)
            with pytest.raises(ConnectionClosed) as closed:
                await socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == code


async def test_a_websocket_to_what_speaks_none_is_refused(web: Web) -> None:
    for answer in (b"", b"SSH-2.0-x\r\n", OK):
        web.site.answers(answer)
        with pytest.raises(InvalidStatus) as refused:
            async with web.websocket():
                pass
        assert refused.value.response.status_code in (200, 502)
