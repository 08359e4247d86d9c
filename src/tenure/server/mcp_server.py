"""The Model Context Protocol over the tools of one office. Import it only where a program asks for it: it is large."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
from collections.abc import Mapping
from typing import Any

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.types import Receive, Scope, Send

from tenure import __version__
from tenure.brains.tools import OfficeTools
from tenure.errors import TenureError
from tenure.server.gates import BODY_BYTES_MAX
from tenure.work.effects import Blocked
from tenure.work.hands import Hands
from tenure.work.thoughts import Purpose
from tenure.work.toolbox import CallOrder

CALLS_MAX = 16
"""Under way at once, per office."""
KEY_META = "tenure/key"
"""In `_meta` of a call: by the same key and tool it is asked for, and not done again."""
KEY_CHARS_MAX = 200
UNVERIFIED_META = "tenure/unverified"
"""In `_meta` of a result: it was begun, and nobody knows how it ended."""
NODE = "mcp"
INSTRUCTIONS = (
    "The tools of this office: its shell, files, database, objects, and messages to its owner. A call that is to be done once, "
    f"however often it is sent, carries a key of yours in its _meta as {KEY_META!r}."
)
TOOLS = OfficeTools()

logging.getLogger("mcp").setLevel(logging.ERROR)  # it tells of every request, and whatever an office sends


async def serve(hands: Hands, agent: str, busy: dict[str, int], scope: Scope, receive: Receive, send: Send) -> None:
    """Answers one request. `busy` counts calls under way by agent, for all requests."""

    async def list_tools(_: ServerRequestContext[Any], __: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=_listed())

    async def call_tool(_: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
        if busy.get(agent, 0) >= CALLS_MAX:
            return _result(f"{CALLS_MAX} calls of this office are under way already: wait for one to end.", ok=False)
        busy[agent] = busy.get(agent, 0) + 1
        try:
            return await _called(hands, agent, params.name, params.arguments or {}, params.meta)
        finally:
            busy[agent] -= 1
            if not busy[agent]:
                del busy[agent]

    server: Server[Any] = Server(
        "tenure",
        version=__version__,
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )
    server.middleware.clear()
    manager = StreamableHTTPSessionManager(server, stateless=True, max_request_body_size=BODY_BYTES_MAX)
    async with manager.run():
        await manager.handle_request(scope, receive, send)


def _listed() -> list[types.Tool]:
    return [
        types.Tool(
            name=spec.name,
            description=spec.description,
            input_schema=dict(spec.parameters),
            annotations=types.ToolAnnotations(read_only_hint=TOOLS.reads(spec.name)),
        )
        for spec in TOOLS.specs(Purpose.WORK)
    ]


async def _called(
    hands: Hands, agent: str, tool: str, arguments: dict[str, Any], meta: Mapping[str, Any] | None
) -> types.CallToolResult:
    given = (meta or {}).get(KEY_META)
    if given is not None and not (isinstance(given, str) and 0 < len(given) <= KEY_CHARS_MAX):
        return _result(f"{KEY_META} is text of 1 to {KEY_CHARS_MAX} characters. Nothing was done.", ok=False)
    key = f"mcp.{secrets.token_hex(16)}" if given is None else _key(tool, given)
    order = CallOrder(agent, "", NODE, key, tool, arguments, fresh=given is None)
    try:
        done = await TOOLS.call(hands, order)
    except asyncio.CancelledError:
        if given is None:  # nobody can ask for it any more
            await _quietly(hands.stop_command(agent, key))
        raise
    if isinstance(done, Blocked):
        again = "" if given is None else " The call may be sent again with the same key."
        return _result(f"The office failed: {done.failure.message}{again}", ok=False)
    if given is None:
        await _quietly(hands.forget_command(agent, key))
    return _result(done.output, ok=done.ok, unverified=done.unverified)


def _key(tool: str, given: str) -> str:
    return f"mcp.{hashlib.sha256(f'{tool}/{given}'.encode('utf-8', 'replace')).hexdigest()[:32]}"


async def _quietly(call: Any) -> None:
    with contextlib.suppress(TenureError):
        await asyncio.shield(call)


def _result(text: str, *, ok: bool, unverified: bool = False) -> types.CallToolResult:
    meta: Any = {UNVERIFIED_META: True} if unverified else None
    content: list[types.ContentBlock] = [types.TextContent(type="text", text=text)]
    return types.CallToolResult(content=content, is_error=not ok, _meta=meta)
