"""Whether a server accepts connections: asked by connecting, as a client would."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tenure.postgres import wire

PROBE_TIMEOUT_S = 5.0
CANNOT_CONNECT_NOW = "57P03"
"""What a server answers while it starts, recovers or stops."""


async def accepts_connections(socket: Path, user: str) -> bool:
    """True when the server at `socket` would talk to us, be it to ask `user` for a password. Returns
    within 5 s. Does not raise."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(str(socket))
            try:
                writer.write(wire.startup({"user": user, "database": "postgres"}))
                head = await reader.readexactly(5)
                body = await reader.readexactly(int.from_bytes(head[1:], "big") - 4)
            finally:
                writer.close()
    except (OSError, asyncio.IncompleteReadError, TimeoutError):
        return False
    return head[:1] == b"R" or wire.parse_error(body).get("sqlstate") != CANNOT_CONNECT_NOW
