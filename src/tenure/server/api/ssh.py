"""Bytes of an SSH connection to an office, for `tenure ssh-proxy` and everything that speaks SSH."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from starlette.websockets import WebSocket, WebSocketDisconnect

from tenure.server.access import AgentName, Has, of_agent, requires

router = APIRouter(prefix="/v1/agents/{name}", tags=["ssh"])

CHUNK_BYTES = 64 * 1024


@router.websocket("/ssh", dependencies=[requires("agent:ssh", of_agent())])
async def ssh(websocket: WebSocket, name: AgentName, has: Has) -> None:
    """Binary frames both ways, as they come; a text frame is an error."""
    await has.offices.need(name)
    await websocket.accept()
    reader, writer = await has.offices.ssh(name)
    sending = asyncio.create_task(_to_client(websocket, reader))
    try:
        await _to_office(websocket, writer, sending)
    except (ConnectionError, WebSocketDisconnect):
        pass  # one end hung up, as connections end
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()


async def _to_client(websocket: WebSocket, reader: asyncio.StreamReader) -> None:
    while data := await reader.read(CHUNK_BYTES):
        await websocket.send_bytes(data)
    await websocket.close()


async def _to_office(websocket: WebSocket, writer: asyncio.StreamWriter, sending: asyncio.Task[None]) -> None:
    while True:
        receiving = asyncio.ensure_future(websocket.receive())
        await asyncio.wait([receiving, sending], return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            receiving.cancel()
            return
        message = receiving.result()
        if message["type"] == "websocket.disconnect":
            return
        writer.write(message.get("bytes") or b"")
        await writer.drain()
