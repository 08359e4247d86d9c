"""Agents and the life of their offices."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import StreamingResponse

from tenure import wire
from tenure.server.access import AgentName, Caller, Has, of_agent, of_new_agent, of_own, owned_by, requires
from tenure.server.services import LimitsWanted

router = APIRouter(prefix="/v1/agents", tags=["agents"])

LOG_LINES_DEFAULT = 200
LOG_LINES_MAX = 100_000
EVENTS_DEFAULT, EVENTS_MAX = 100, 500


@router.post("", status_code=201, response_model=wire.Agent, dependencies=[requires("agent:create", of_new_agent)])
async def create_agent(body: wire.AgentRequest, has: Has) -> Any:
    """Makes an agent with an office of its own, awake unless it is to be asleep."""
    limits = LimitsWanted(body.cpus, body.memory_mb, body.disk_gb, body.processes)
    return await has.offices.create(body.name, limits, body.egress, asleep=body.asleep)


@router.get("", response_model=wire.AgentList, dependencies=[requires("agent:read", of_own("agent"))])
async def list_agents(has: Has, caller: Caller) -> Any:
    """All agents by name; an office sees itself."""
    own = owned_by(caller)
    offices = await has.offices.list()
    return {"agents": sorted((o for o in offices if own in ("", o.name)), key=lambda office: office.name)}


@router.get("/{name}", response_model=wire.Agent, dependencies=[requires("agent:read", of_agent())])
async def get_agent(name: AgentName, has: Has) -> Any:
    return await has.offices.get(name)


@router.delete("/{name}", status_code=204, dependencies=[requires("agent:delete", of_agent())])
async def delete_agent(name: AgentName, has: Has) -> None:
    """Deletes the agent with everything that it owns."""
    await has.offices.delete(name)


@router.post("/{name}/wake", response_model=wire.Agent, dependencies=[requires("agent:wake", of_agent())])
async def wake(name: AgentName, has: Has) -> Any:
    """Starts the office when it sleeps."""
    return await has.offices.wake(name)


@router.post("/{name}/sleep", response_model=wire.Agent, dependencies=[requires("agent:sleep", of_agent())])
async def sleep(name: AgentName, has: Has, body: wire.SleepRequest | None = None) -> Any:
    """Puts the office to rest: stopped, unless another tier is asked for. One that sleeps deeper already stays so."""
    return await has.offices.sleep(name, body.tier if body else wire.Tier.STOPPED)


@router.put("/{name}/rest", response_model=wire.Agent, dependencies=[requires("agent:rest", of_agent())])
async def set_rest(name: AgentName, body: wire.RestRequest, has: Has) -> Any:
    """After how long without use the office sinks to each tier of sleep."""
    return await has.offices.set_rest(name, body.model_dump(exclude_none=True))


@router.put("/{name}/lease", response_model=wire.Agent, dependencies=[requires("agent:lease", of_agent())])
async def set_lease(name: AgentName, body: wire.LeaseRequest, has: Has) -> Any:
    """Keeps the office awake for so long though nobody uses it: for work that Tenure cannot see, a timer inside for one. A
    later lease replaces an earlier one."""
    return await has.offices.set_lease(name, body.seconds, body.reason)


@router.delete("/{name}/lease", response_model=wire.Agent, dependencies=[requires("agent:lease", of_agent())])
async def end_lease(name: AgentName, has: Has) -> Any:
    """Ends the lease, if there is one."""
    return await has.offices.set_lease(name, None)


@router.post("/{name}/reconnect", response_model=wire.Agent, dependencies=[requires("agent:reconnect", of_agent())])
async def reconnect(name: AgentName, has: Has) -> Any:
    """Closes the office's door and opens it anew; what runs inside goes on."""
    return await has.offices.reconnect(name)


@router.post("/{name}/restart", response_model=wire.Agent, dependencies=[requires("agent:restart", of_agent())])
async def restart(name: AgentName, has: Has) -> Any:
    """Stops the office's machine and starts it again on the same disk; what runs inside ends."""
    return await has.offices.restart(name)


@router.post("/{name}/rebuild", response_model=wire.Rebuilt, dependencies=[requires("agent:rebuild", of_agent())])
async def rebuild(name: AgentName, has: Has) -> Any:
    """Gives the office a new root from the image, with its home directories, database and objects, after taking a snapshot of
    what is there. What was installed is installed again in the background; what runs inside ends."""
    return await has.offices.rebuild(name)


@router.get("/{name}/probe", response_model=wire.Probe, dependencies=[requires("agent:read", of_agent())])
async def probe(name: AgentName, has: Has) -> Any:
    """Whether the office answers a trivial command within a few seconds."""
    await has.offices.need(name)
    return {"ok": await has.offices.probe(name)}


@router.get("/{name}/history", response_model=wire.OfficeHistory, dependencies=[requires("agent:history", of_agent())])
async def history(name: AgentName, has: Has, limit: Annotated[int, Query(ge=1, le=EVENTS_MAX)] = EVENTS_DEFAULT) -> Any:
    """What was decided about the office and why: failed boots, repairs, restarts. The newest first."""
    return {"events": await has.offices.history(name, limit)}


@router.get(
    "/{name}/logs",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/plain": {}}}},
    dependencies=[requires("agent:logs", of_agent())],
)
async def logs(
    name: AgentName,
    has: Has,
    lines: Annotated[int, Query(ge=0, le=LOG_LINES_MAX)] = LOG_LINES_DEFAULT,
    follow: bool = False,
) -> StreamingResponse:
    """The end of the office's log; with `follow`, what comes after it too."""
    chunks = await has.offices.logs(name, lines=lines, follow=follow)
    return StreamingResponse(chunks, media_type="text/plain; charset=utf-8")
