"""`/mcp`: the office's tools for programs in it that speak MCP. Who calls is known by the door, as everywhere.

What speaks the protocol is imported at the first use: a server whose offices never ask pays nothing for it.
"""

from __future__ import annotations

import asyncio
import importlib

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from tenure.errors import Forbidden, InvalidArgument, Unauthenticated
from tenure.identity.authorize import PrincipalKind, Resource, authorize
from tenure.server.scopes import principal_of
from tenure.server.services import Services

PATH = "/mcp"


class McpApi:
    """An ASGI app: streamable HTTP without sessions, so that any request may be answered by any server."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._busy: dict[str, int] = {}
        """Calls under way, by agent."""
        self._loaded = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        principal = principal_of(scope)
        if principal is None:
            raise Unauthenticated("This is for programs in an office.")
        if principal.kind is not PrincipalKind.OFFICE:
            raise Forbidden(
                f"{principal} has no office whose tools these could be.",
                hint="Connect to http://api:8700/mcp from a program in the office.",
            )
        authorize(principal, "tool:use", Resource("tool", owner=principal.name))
        if scope["method"] != "POST":  # no session, so nothing to listen to or to end
            error = InvalidArgument(f"{PATH} is spoken to by POST.")
            await JSONResponse(error.to_payload(), 405, {"Allow": "POST"})(scope, receive, send)
            return
        if not self._loaded:  # in a thread: it takes a second, which is everybody's here
            await asyncio.to_thread(importlib.import_module, "tenure.server.mcp_server")
            self._loaded = True
        from tenure.server.mcp_server import serve
        from tenure.server.office_hands import OfficeHands

        await serve(OfficeHands(self._services, principal), principal.name, self._busy, scope, receive, send)
