"""Links that let a browser see what an office serves."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from tenure import wire
from tenure.server.access import AgentName, Caller, Has, of_agent, requires
from tenure.server.checks import check_text
from tenure.server.gateway.passes import Place
from tenure.server.gateway.preview import host_of, ticket_url

router = APIRouter(prefix="/v1/agents/{name}", tags=["previews"])


@router.post(
    "/preview", status_code=201, response_model=wire.Preview, dependencies=[requires("agent:preview", of_agent())]
)
async def open_preview(name: AgentName, body: wire.PreviewRequest, has: Has, caller: Caller) -> Any:
    """A link to what the office serves on a port: good once, for two minutes."""
    await has.offices.need(name)
    place, port = Place(name, body.port), has.settings.port
    ticket = has.gateway.passes.issue(place, str(caller))
    url = ticket_url(place, port, ticket.secret, check_text("path", body.path))
    return wire.Preview(url=url, origin=f"http://{host_of(place, port)}", expires_at=ticket.expires_at)
