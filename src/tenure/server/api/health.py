"""Whether the server lives, and for the owner how it is."""

from __future__ import annotations

import os

from fastapi import APIRouter
from starlette.requests import Request

from tenure import __version__, wire
from tenure.identity.authorize import Resource, is_allowed
from tenure.server.access import Has
from tenure.server.scopes import principal_of
from tenure.server.services import Services

router = APIRouter(tags=["server"])


@router.get("/v1/health")
async def health(request: Request, has: Has) -> wire.Health:
    """Without a token, and for offices, only `status`."""
    principal = principal_of(request.scope)
    if principal is None or not is_allowed(principal, "server:read", Resource("server")):
        return wire.Health()
    states = [office.state for office in await has.offices.list()]
    asleep = sum(state in {*wire.Tier, wire.AgentState.ARCHIVED} for state in states)
    return wire.Health(
        version=__version__,
        pid=os.getpid(),
        started_at=has.started_at,
        database=has.database,
        ssh=_ssh(has),
        s3=_s3(has),
        workers=[wire.WorkerInfo(pid=pid) for pid in has.worker_pids()],
        offices=wire.OfficeCounts(awake=len(states) - asleep, asleep=asleep),
    )


def _ssh(has: Services) -> str:
    settings = has.settings
    return has.gateway.ssh_problem or (f"{settings.ssh_host}:{settings.ssh_port}" if settings.ssh_port else "off")


def _s3(has: Services) -> str:
    port = has.settings.s3_port
    return has.s3_problem or (f"127.0.0.1:{port}" if port else "off")
