"""The office's way to its PostgreSQL: a listener that passes bytes both ways and lets only the agent in.

Hot path of every query from inside an office: plain protocols, no tasks and no copies per message. The startup packet is
read and checked; everything after it is passed on unread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from tenure.errors import TenureError
from tenure.postgres import wire
from tenure.use import Use

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 24
"""Per office, below the server's own limit, so that Tenure itself can always connect."""
STARTUP_TIMEOUT_S = 10.0
ENCRYPTION_REQUESTS_MAX = 2
LISTEN_BACKLOG = 64
ALLOWED_USER = "agent"

INVALID_AUTHORIZATION = "28000"
PROTOCOL_VIOLATION = "08P01"
TOO_MANY_CONNECTIONS = "53300"
CANNOT_CONNECT = "57P03"
DISK_FULL = "53100"


@dataclass(frozen=True)
class LogIn:
    """Who comes in through a pump, whatever the startup packet says: the door says who it is."""

    user: str
    database: str


class Uses(Protocol):
    """What is in use while clients are connected; `tenure.use.Use` is it."""

    def flow(self) -> Flows: ...


class Flows(Protocol):
    """One client's connection; `tenure.use.Flow` is it."""

    def asked(self) -> None: ...
    def answered(self) -> None: ...
    def closed(self) -> None: ...


class Pump:
    """Listens on a Unix socket for one office. `ensure_started` is awaited when the server at `backend` does not answer, or is
    not `ready`; what it raises, the client is told as PostgreSQL would tell it. `on_open` is called for every client. With
    `log_in` every client is logged in as that; without, only as the office's own role."""

    def __init__(
        self,
        backend: Path,
        ensure_started: Callable[[], Awaitable[None]],
        *,
        on_open: Callable[[], None] | None = None,
        use: Uses | None = None,
        ready: Callable[[], bool] | None = None,
        log_in: LogIn | None = None,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        self.use = use or Use()
        self.ready, self.log_in, self.connections_max = ready, log_in, connections_max
        self.backend = backend
        self.on_open = on_open
        self.ensure_started = ensure_started
        self.clients: set[_Client] = set()
        self._server: asyncio.Server | None = None
        self._listening: Path | None = None

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        return len(self.clients)

    async def serve(self, path: Path) -> None:
        """Starts to listen at `path`, replacing what a killed server left there; returns at once."""
        path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Client(self), str(path), backlog=LISTEN_BACKLOG)
        self._listening = path

    async def close(self) -> None:
        """Stops listening and breaks every connection. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._listening is not None:
            self._listening.unlink(missing_ok=True)
            self._listening = None
        for client in list(self.clients):
            client.abort()

    async def connect(self, client: _Client, *, start: bool) -> _Backend:
        """A connection to the server, which is started first when it is down and `start`."""
        loop = asyncio.get_running_loop()
        if start and self.ready is not None and not self.ready():
            await self.ensure_started()
        try:
            _, backend = await loop.create_unix_connection(lambda: _Backend(client), str(self.backend))
        except OSError:
            if not start:
                raise
            await self.ensure_started()
            _, backend = await loop.create_unix_connection(lambda: _Backend(client), str(self.backend))
        return backend


class _Side(asyncio.Protocol):
    """One of two ends: what arrives goes to the other, which may ask this one to hold on."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.peer: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one by behaviour, not by class

    def data_received(self, data: bytes) -> None:
        if self.peer is not None:
            self.moved()
            self.peer.write(data)

    def moved(self) -> None:
        """Bytes arrived."""

    def pause_writing(self) -> None:
        if self.peer is not None and not self.peer.is_closing():
            self.peer.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None and not self.peer.is_closing():
            self.peer.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.peer is not None:
            self.peer.close()  # after what is still to be written


class _Backend(_Side):
    def __init__(self, client: _Client) -> None:
        super().__init__()
        self.client = client

    def moved(self) -> None:
        self.client.flow.answered()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.peer = self.client.transport


class _Client(_Side):
    """A client's end; until its startup packet is through, it reads and decides."""

    def __init__(self, pump: Pump) -> None:
        super().__init__()
        self._pump = pump
        self._buffer = bytearray()
        self._refusals = 0
        self._deadline: asyncio.TimerHandle | None = None
        self._connecting: asyncio.Task[None] | None = None
        self.flow = pump.use.flow()

    def moved(self) -> None:
        self.flow.asked()

    def abort(self) -> None:
        self.transport.abort()
        if self.peer is not None:
            self.peer.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        pump = self._pump
        if len(pump.clients) >= pump.connections_max:
            self._refuse(
                TOO_MANY_CONNECTIONS,
                f"this office has {pump.connections_max} connections to its database, which is the limit",
                "Close some, or use a connection pool.",
            )
            return
        pump.clients.add(self)
        if pump.on_open is not None:
            pump.on_open()
        self._deadline = asyncio.get_running_loop().call_later(STARTUP_TIMEOUT_S, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        if self.peer is not None:
            super().data_received(data)
            return
        self.moved()  # it waits for its database to start, for one
        self._buffer += data
        if self._connecting is None:
            self._read_startup()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.flow.closed()
        self._pump.clients.discard(self)
        if self._deadline is not None:
            self._deadline.cancel()
        if self._connecting is not None:
            self._connecting.cancel()

    def _read_startup(self) -> None:
        try:
            while (found := wire.parse_startup(self._buffer)) is not None:
                if found.code not in (wire.SSL_REQUEST, wire.GSSENC_REQUEST):
                    self._decide(found)
                    return
                self._refusals += 1
                if self._refusals > ENCRYPTION_REQUESTS_MAX:
                    raise wire.ProtocolError("too many requests for encryption")
                del self._buffer[: found.length]
                self.transport.write(b"N")  # the socket never leaves this machine
        except wire.ProtocolError as error:
            self._refuse(PROTOCOL_VIOLATION, str(error))

    def _decide(self, found: wire.Startup) -> None:
        user, log_in = found.parameters.get("user"), self._pump.log_in
        if found.code != wire.CANCEL_REQUEST and log_in is None and user != ALLOWED_USER:
            self._refuse(
                INVALID_AUTHORIZATION,
                f'role "{user}" may not connect to this database',
                f'Inside the office the only role is "{ALLOWED_USER}": unset PGUSER, or use `psql -U {ALLOWED_USER}`.',
            )
            return
        if found.parameters.get("replication", "off").lower() not in ("off", "false", "no", "0", "f", "n", "of"):
            self._refuse(INVALID_AUTHORIZATION, "replication connections are not available")
            return
        if found.code != wire.CANCEL_REQUEST and log_in is not None:
            said = {name: value for name, value in found.parameters.items() if name != "replication"}
            said |= {"user": log_in.user, "database": log_in.database}
            self._buffer[: found.length] = wire.startup(said, version=found.code)
        if self._deadline is not None:
            self._deadline.cancel()
        self.transport.pause_reading()
        cancel = found.code == wire.CANCEL_REQUEST
        self._connecting = asyncio.get_running_loop().create_task(self._connect(cancel))

    async def _connect(self, cancel: bool) -> None:
        try:
            backend = await self._pump.connect(self, start=not cancel)
        except TenureError as error:
            self._refuse(DISK_FULL if error.code == "disk_full" else CANNOT_CONNECT, error.message, error.hint)
            return
        except OSError as error:
            if cancel:
                self.transport.close()
            else:
                self._refuse(CANNOT_CONNECT, f"the database is not available: {error.strerror}", "Try again.")
            return
        except Exception:  # whatever it is, the client must not hang
            log.exception("connecting an office to its database failed")
            self._refuse(CANNOT_CONNECT, "the database is not available", "The server's log says why.")
            return
        if self.transport.is_closing():
            backend.transport.abort()
            return
        backend.transport.write(bytes(self._buffer))
        self._buffer.clear()
        self.peer = backend.transport
        self.transport.resume_reading()

    def _refuse(self, sqlstate: str, text: str, hint: str = "") -> None:
        with contextlib.suppress(RuntimeError):
            self.transport.write(wire.error_response(sqlstate, text, hint=hint))
        self.transport.close()
