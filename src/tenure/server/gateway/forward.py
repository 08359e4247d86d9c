"""One connection that an SSH client forwards to the office's loopback."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import Callable

import asyncssh

from tenure.errors import Forbidden
from tenure.offices.door.session import Stream
from tenure.offices.office import FORWARDS
from tenure.server.gateway.flow import Inflow, Room

log = logging.getLogger("tenure.ssh")

CHUNK_BYTES = 64 * 1024
NAMES = {
    "localhost": "127.0.0.1",
    "::1": "127.0.0.1",
    **{name: address.partition(":")[0] for address, name in FORWARDS},
}
"""What the office's own hosts file says, too. The door dials IPv4."""


def office_address(host: str, port: int) -> str:
    """Where in the office a forward to `host`:`port` leads. Raises `Forbidden` for what is not on its loopback: the gateway
    is a way into an office, not through it."""
    address = NAMES.get(host.lower(), host)
    with contextlib.suppress(ValueError):
        if ipaddress.IPv4Address(address).is_loopback and 0 < port < 65536:
            return f"{ipaddress.IPv4Address(address)}:{port}"
    raise Forbidden(
        f"{host[:100]!r} port {port} is not in the office.",
        hint="Forwards lead to the office's own loopback: localhost, db, s3, api.",
    )


class OfficeForward(asyncssh.SSHTCPSession[bytes]):
    """Both directions end on their own, as of a TCP connection. `ended` is called when the channel is gone, or `abandon`ed
    before there was one."""

    def __init__(self, stream: Stream, *, link: Room, ended: Callable[[OfficeForward], None]) -> None:
        self._reader, self._writer = stream
        self._link, self._ended = link, ended
        self._room = Room()
        self._work: asyncio.Task[None] | None = None

    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        self._channel = chan
        self._inflow: Inflow[bytes | None] = Inflow(chan)

    def session_started(self) -> None:
        self._work = asyncio.create_task(self._run())

    def data_received(self, data: bytes, datatype: int | None) -> None:
        self._inflow.put(data, len(data))

    def eof_received(self) -> bool:
        self._inflow.put(None)
        return True

    def pause_writing(self) -> None:
        self._room.pause_writing()

    def resume_writing(self) -> None:
        self._room.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.abandon()

    def abandon(self) -> None:
        """Hangs up in the office. May be called again."""
        if self._work is not None:
            self._work.cancel()
        self._writer.close()
        self._ended(self)

    async def _run(self) -> None:
        both = [asyncio.create_task(self._to_office()), asyncio.create_task(self._to_client())]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in both:
                task.cancel()
            ended = await asyncio.gather(*both, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception) and not isinstance(error, OSError):  # an OSError: one end hung up
                log.error("a forwarded connection broke", exc_info=error)
        self._channel.close()
        self._writer.close()

    async def _to_office(self) -> None:
        while (data := await self._inflow.get()) is not None:
            self._writer.write(data)
            await self._writer.drain()
        self._writer.write_eof()

    async def _to_client(self) -> None:
        while data := await self._reader.read(CHUNK_BYTES):
            await self._room.wait()
            await self._link.wait()
            self._channel.write(data)  # pyright: ignore[reportUnknownMemberType]
        self._channel.write_eof()
