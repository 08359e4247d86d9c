"""A command's streams over a WebSocket.

The client's first frame is text: a `wire.AttachRequest`. Then both sides send binary frames of one byte channel (see
`services`) and data. The server ends with a text frame, `{"exit_code": n}` or an error's payload, and closes.

Nothing is buffered here: a client that reads slowly slows the command, a command that reads slowly slows the client.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any

from pydantic import ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from tenure import wire
from tenure.errors import CommandTimeout, InvalidArgument
from tenure.server import services
from tenure.server.checks import check_command
from tenure.server.failures import from_validation
from tenure.server.services import RESIZE, SIGNAL, STDERR, STDOUT, Offices, Session

FIRST_FRAME_WAIT_S = 30.0
FIRST_FRAME_CHARS_MAX = 2 * 1024 * 1024
STALL_PROBE_S = 30.0
"""While input waits for a command that does not read, a client that left is noticed by an empty output frame."""
SIZE_MAX = 10_000
SIGNAL_MAX = 64


async def carry(websocket: WebSocket, agent: str, offices: Offices) -> None:
    """Runs the session to its end on an accepted socket. Raises `TenureError`, which the caller's caller sends."""
    wanted = await _first_frame(websocket)
    session = await offices.attach(
        agent,
        argv=wanted.argv,
        script=wanted.script,
        login=wanted.login,
        env=wanted.env,
        cwd=wanted.cwd,
        user=wanted.user,
        tty=(wanted.tty.rows, wanted.tty.cols) if wanted.tty else None,
    )
    try:
        await _until_either(_input(websocket, session), _output(websocket, session))
    finally:
        await asyncio.shield(session.close())


async def _first_frame(websocket: WebSocket) -> wire.AttachRequest:
    try:
        async with asyncio.timeout(FIRST_FRAME_WAIT_S):
            message = await websocket.receive()
    except TimeoutError:
        raise CommandTimeout(f"No request came within {FIRST_FRAME_WAIT_S:g} s of the connection.") from None
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code") or 1005)
    text = message.get("text")
    if text is None:
        raise InvalidArgument("The first frame must be text: the request as JSON.")
    try:
        wanted = wire.AttachRequest.model_validate_json(text)
    except ValidationError as error:
        raise from_validation(error.errors(include_input=False, include_url=False, include_context=False)) from None
    check_command(argv=wanted.argv, script=wanted.script, env=wanted.env, cwd=wanted.cwd, user=wanted.user)
    return wanted


async def _until_either(*work: Coroutine[Any, Any, None]) -> None:
    """Runs all until the first ends, ends the others, and raises what it raised."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _output(websocket: WebSocket, session: Session) -> None:
    prefixes = {STDOUT: bytes([STDOUT]), STDERR: bytes([STDERR])}
    async for channel, data in session:
        await websocket.send_bytes(prefixes[channel] + data)
    await websocket.send_text(json.dumps({"exit_code": await session.wait()}))
    await websocket.close()


async def _input(websocket: WebSocket, session: Session) -> None:
    """Ends only with the client: a closed stdin is no reason to end the command."""
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code") or 1005)
        frame = message.get("bytes")
        if not frame:
            raise InvalidArgument("After the first frame come binary ones: a channel byte and data.")
        await _pass_in(websocket, session, frame[0], frame[1:])


async def _pass_in(websocket: WebSocket, session: Session, channel: int, data: bytes) -> None:
    try:
        match channel:
            case services.STDIN:
                await _send_stdin(websocket, session, data)
            case services.STDIN_EOF:
                await session.send_eof()
            case services.RESIZE:
                rows, cols = (int(part) for part in data.split())
                if not (0 < rows <= SIZE_MAX and 0 < cols <= SIZE_MAX):
                    raise ValueError("size")
                await session.resize(rows, cols)
            case services.SIGNAL:
                number = int(data)
                if not 0 < number <= SIGNAL_MAX:
                    raise ValueError("signal")
                await session.signal(number)
            case _:
                raise InvalidArgument(f"There is no channel {channel}.")
    except ValueError:
        what = {RESIZE: 'a size ("rows cols")', SIGNAL: "a signal's number"}.get(channel, "data")
        raise InvalidArgument(f"Channel {channel} takes {what}.") from None


async def _send_stdin(websocket: WebSocket, session: Session, data: bytes) -> None:
    sending = asyncio.ensure_future(session.send_stdin(data))
    try:
        while not (await asyncio.wait([sending], timeout=STALL_PROBE_S))[0]:
            await websocket.send_bytes(bytes([STDOUT]))  # raises when nobody is there
        sending.result()
    finally:
        sending.cancel()
