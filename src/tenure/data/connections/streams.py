"""Served connections that pass bytes on: to PostgreSQL after a login of the server's, else from the first byte."""

from __future__ import annotations

import asyncio

from tenure.data.connections.dial import Reach
from tenure.data.connections.postgres import PostgresLogin, Refused
from tenure.data.connections.served import Guard, Moved, ServedConnection, pass_on
from tenure.errors import EgressDenied, EgressUnreachable, Forbidden, TenureError, UsageError
from tenure.postgres import wire
from tenure.secrets.egress.dial import Dialer
from tenure.use import Flow, Use

STARTUP_TIMEOUT_S = 10.0
ENCRYPTION_REQUESTS_MAX = 2
CANCEL_KEY_BYTES_MAX = 260


class ServedStream(ServedConnection):
    """Bytes both ways, unread. Who talks through it logs in by itself."""

    def __init__(self, name: str, reach: Reach, guard: Guard, use: Use) -> None:
        super().__init__(name, guard, use)
        self._reach, self._dialer = reach, reach.dialer()

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flow: Flow, moved: Moved) -> None:
        flow.asked()
        line = await self._reach.line(self._dialer)
        self.tell(f"connected to {self._reach.target.authority}")
        await pass_on((reader, writer), (line.reader, line.writer), flow, moved)


class ServedPostgres(ServedConnection):
    """A PostgreSQL whose password stays here: the client is let in without one, as the connection's user."""

    def __init__(self, name: str, reach: Reach, password: str, guard: Guard, use: Use) -> None:
        super().__init__(name, guard, use)
        self._dialer: Dialer = reach.dialer()
        self._login = PostgresLogin(reach, password, self._dialer)
        self._keys: set[bytes] = set()

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flow: Flow, moved: Moved) -> None:
        flow.asked()
        async with asyncio.timeout(STARTUP_TIMEOUT_S):
            asked, raw = await _startup(reader, writer)
        if asked.code == wire.CANCEL_REQUEST:
            if (key := raw[8:]) in self._keys:  # of a connection that came through here, and no other
                await self._login.cancel(key)
            return
        login = await self._login.open(asked)
        target = self._login.reach.target
        self.tell(f"connected to {target.authority} as {target.user}, database {target.database}")
        if login.key:
            self._keys.add(login.key)
        try:
            writer.write(login.greeting)
            await pass_on((reader, writer), (login.line.reader, login.line.writer), flow, moved)
        finally:
            self._keys.discard(login.key)
            login.line.writer.transport.abort()

    def refuse(self, writer: asyncio.StreamWriter, error: TenureError) -> None:
        if isinstance(error, Refused):
            writer.write(error.answer)
            return
        states: dict[type[TenureError], str] = {UsageError: "08P01", EgressUnreachable: "08001"}
        denied = isinstance(error, (Forbidden, EgressDenied))
        sqlstate = "28000" if denied else next((s for cls, s in states.items() if isinstance(error, cls)), "57P03")
        writer.write(wire.error_response(sqlstate, error.message, hint=error.hint))


class _Malformed(UsageError):
    """The client does not speak PostgreSQL's protocol."""


async def _startup(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[wire.Startup, bytes]:
    """The client's startup or cancel packet, parsed and raw. Encryption is declined: the socket never leaves this machine."""
    for _ in range(ENCRYPTION_REQUESTS_MAX + 1):
        head = await reader.readexactly(8)
        length = int.from_bytes(head[:4], "big")
        if not 8 <= length <= wire.STARTUP_BYTES_MAX:
            raise _Malformed("invalid length of startup packet")
        raw = head + await reader.readexactly(length - 8)
        try:
            found = wire.parse_startup(raw)
        except wire.ProtocolError as error:
            raise _Malformed(str(error)) from None
        assert found is not None
        if found.code == wire.CANCEL_REQUEST and length > 8 + CANCEL_KEY_BYTES_MAX:
            raise _Malformed("invalid length of startup packet")
        if found.code not in (wire.SSL_REQUEST, wire.GSSENC_REQUEST):
            return found, raw
        writer.write(b"N")
    raise _Malformed("too many requests for encryption")
