"""The HTTP API: gates, routes and failures put together. Office doors serve the same app."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tenure import __version__
from tenure.identity.tokens import Tokens
from tenure.server.api import (
    access_keys,
    agents,
    brains,
    buckets,
    commands,
    connections,
    costs,
    data,
    databases,
    exports,
    files,
    health,
    inbox,
    ingestion,
    objects,
    previews,
    questions,
    runs,
    schedules,
    signals,
    snapshots,
    sql,
    ssh,
    ssh_keys,
    webhooks,
)
from tenure.server.failures import Failures
from tenure.server.gates import CrowdGate, HostGate, IdentityGate, SizeGate
from tenure.server.mcp_api import PATH as MCP_PATH
from tenure.server.mcp_api import McpApi
from tenure.server.services import Services

ROUTERS = (
    health,
    agents,
    brains,
    snapshots,
    exports,
    commands,
    files,
    sql,
    connections,
    data,
    objects,
    databases,
    buckets,
    access_keys,
    ingestion,
    runs,
    questions,
    costs,
    schedules,
    webhooks,
    signals,
    inbox,
    ssh,
    ssh_keys,
    previews,
)
PASSED_ON: tuple[type[Exception], ...] = (
    HTTPException,
    RequestValidationError,
    WebSocketRequestValidationError,
)
DESCRIPTION = """Agents with an office each, and their work.

Every request carries `Authorization: Bearer TOKEN` (the file `token` in TENURE_HOME). An error answers with
`{"error": {"code", "message", "hint", "retryable", "details"}}`: `code` is what programs compare.
"""


def create_app(services: Services, tokens: Tokens) -> FastAPI:
    """The app. It holds no state of its own: two made from the same services are the same."""
    app = FastAPI(
        title="Tenure",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,  # the pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        separate_input_output_schemas=False,
        middleware=[
            Middleware(Failures),
            Middleware(HostGate, port=services.settings.port),
            Middleware(IdentityGate, tokens=tokens),
            Middleware(CrowdGate),
            Middleware(SizeGate),
        ],
        # All of them reach `Failures`, so that there is one place where errors become answers.
        exception_handlers=dict.fromkeys(PASSED_ON, _pass_on),
    )
    app.state.services = services
    for module in ROUTERS:
        app.include_router(module.router)
    app.router.routes.append(Route(MCP_PATH, McpApi(services), include_in_schema=False))
    return app


async def _pass_on(_: Request, error: Any) -> Response:
    raise error
