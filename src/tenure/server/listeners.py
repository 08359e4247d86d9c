"""Listening: the API's UNIX socket and TCP port, and per office one UNIX socket whose callers *are* that office.

All are asyncio listeners in one loop that speak HTTP by uvicorn's protocol classes: an office costs a socket and a few
objects, no thread and no process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from tenure.errors import SetupError
from tenure.identity.authorize import Principal
from tenure.server.scopes import DOOR_KEY
from tenure.use import Use

BACKLOG = 256
CONNECTIONS_MAX = 2048
OFFICE_CONNECTIONS_MAX = 128
HEADER_BYTES_MAX = 64 * 1024
PIPELINED_MAX = 8
"""Requests sent ahead on one connection. No client of ours sends any; a million fit into one second of sending."""
OFFICE_REQUESTS_PER_S = 200.0
OFFICE_REQUESTS_BURST = 400
"""Per socket of an office: what exceeds it waits, so that one office cannot have all of the server's time."""
REQUEST_WAIT_S = 30.0
"""A connection must have sent a whole head of a request this long after it was made."""
KEEP_ALIVE_S = 75
WS_MESSAGE_BYTES_MAX = 2 * 1024 * 1024
CLOSE_GRACE_S = 3.0
UNIX_PATH_BYTES_MAX = 107


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's protocol with the bounds that it lacks: connections per listener, size and time of a request's head."""

    connections_max = CONNECTIONS_MAX

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._in_head = True
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.connections_max:
            transport.abort()
            return
        self._head_timer = self.loop.call_later(REQUEST_WAIT_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEADER_BYTES_MAX + len(data):
                self.send_400_response("The head of the request is too large.")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(REQUEST_WAIT_S, self.transport.abort)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_head_timer()
        if len(self.pipeline) >= PIPELINED_MAX:
            self.transport.abort()
            raise ConnectionAbortedError("too many requests were sent ahead")  # ends the parsing of what came with it
        super().on_headers_complete()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class OfficeHttp(BoundedHttp):
    connections_max = OFFICE_CONNECTIONS_MAX


class Listener:
    """A running listener. `close` may be called again."""

    def __init__(self, server: asyncio.Server, state: ServerState, socket_path: Path | None) -> None:
        self._server, self._state, self._socket_path = server, state, socket_path
        self._inode = socket_path.stat().st_ino if socket_path else 0

    @property
    def connections(self) -> int:
        return len(self._state.connections)

    async def close(self, grace_s: float = CLOSE_GRACE_S) -> None:
        """Listens no more, lets requests in flight end for `grace_s`, then ends them."""
        self._server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        deadline = time.monotonic() + grace_s
        while (tasks := set(self._state.tasks)) and (left_s := deadline - time.monotonic()) > 0:
            await asyncio.wait(tasks, timeout=left_s)
        for task in list(self._state.tasks):
            task.cancel()
        for connection in list(self._state.connections):
            connection.transport.abort()  # pyright: ignore[reportAttributeAccessIssue]
        self._remove_socket()

    def _remove_socket(self) -> None:
        # Only our own: a successor may listen at the same path already.
        if self._socket_path is not None:
            with contextlib.suppress(FileNotFoundError):
                if self._socket_path.stat().st_ino == self._inode:
                    self._socket_path.unlink()


class Pace:
    """So many of something per second, and `burst` at once after a rest. Pure but for what it remembers."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._each_s = 1 / per_s
        self._ahead_s = burst / per_s
        self._due_s = 0.0

    def wait_s(self, now_s: float) -> float:
        """How long the next one has to wait from `now_s`; it counts as begun."""
        self._due_s = max(self._due_s, now_s - self._ahead_s) + self._each_s
        return max(self._due_s - now_s, 0.0)


class Door:
    """Wraps an app so that every request counts as `principal`'s, whatever it claims, and that they keep a pace. The office is
    in `use` meanwhile."""

    def __init__(self, app: ASGIApp, principal: Principal, use: Use | None = None) -> None:
        self.app, self.principal, self._use = app, principal, use or Use()
        self._pace = Pace(OFFICE_REQUESTS_PER_S, OFFICE_REQUESTS_BURST)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[DOOR_KEY] = self.principal
        if (wait_s := self._pace.wait_s(time.monotonic())) > 0:
            await asyncio.sleep(wait_s)
        with self._use.during():
            await self.app(scope, receive, send)


async def listen(
    app: ASGIApp,
    sock: socket.socket,
    *,
    socket_path: Path | None = None,
    protocol: type[BoundedHttp] = BoundedHttp,
) -> Listener:
    """Serves `app` on a bound socket. The app's lifespan is not run."""
    config = Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        ws=WebSocketsSansIOProtocol,
        ws_max_size=WS_MESSAGE_BYTES_MAX,
        # No pings: peers are local, so the kernel says when one is gone; and a pong behind input that a command does
        # not read yet would come too late.
        ws_ping_interval=None,
        ws_per_message_deflate=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        proxy_headers=False,
    )
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: protocol(config, state, {}), sock=sock, backlog=BACKLOG)
    return Listener(server, state, socket_path)


def bind_unix(path: Path, mode: int) -> socket.socket:
    """A bound UNIX socket with exactly `mode`; one left behind by a dead server is replaced. Raises `SetupError`."""
    if len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX:
        raise SetupError(
            f"The path of the socket {path} is longer than {UNIX_PATH_BYTES_MAX} bytes, which Linux does not allow.",
            hint="Choose a shorter TENURE_HOME.",
        )
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(sock.fileno(), mode)  # before bind: there is no instant at which others could connect
        sock.bind(os.fspath(path))
        path.chmod(mode)
    except OSError as error:
        sock.close()
        raise SetupError(f"Cannot listen on {path}: {error.strerror}.") from error
    sock.setblocking(False)
    return sock


def bind_loopback(port: int) -> socket.socket:
    """A socket that listens on 127.0.0.1:`port`. Raises `SetupError` when the port is taken."""
    return bind_tcp("127.0.0.1", port, "TENURE_PORT")


def bind_tcp(host: str, port: int, variable: str) -> socket.socket:
    """A socket that listens on `host`:`port`. Raises `SetupError`, which names the environment's `variable` for the port, when
    the port is taken or the address is not this machine's."""
    sock = None
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)  # with SO_REUSEADDR only this says that somebody else listens
    except (OSError, OverflowError) as error:
        if sock is not None:
            sock.close()
        raise SetupError(
            f"Cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}.",
            hint=f"Another program, or a Tenure of another home, uses it (`ss -ltnp 'sport = :{port}'` says which). "
            f"End it, or choose another port with {variable}.",
        ) from error
    sock.setblocking(False)
    return sock


async def serve_office_api(app: ASGIApp, principal: Principal, socket_path: Path, use: Use | None = None) -> Listener:
    """Serves `app` to one office on a socket of its doorway. Everyone may connect to the socket; only the office (and
    root) can reach the directory that it lies in."""
    sock = bind_unix(socket_path, 0o666)
    try:
        return await listen(Door(app, principal, use), sock, socket_path=socket_path, protocol=OfficeHttp)
    except BaseException:
        sock.close()
        raise
