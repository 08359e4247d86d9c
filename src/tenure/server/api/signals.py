"""What programs of an office tell of themselves: the office's own side of it, and the worker's."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body
from starlette.responses import JSONResponse

from tenure import wire
from tenure.errors import NotFound
from tenure.identity.authorize import Principal
from tenure.server.access import AgentName, Caller, Has, of_agent, of_own, owned_by, requires
from tenure.server.api.commands import Key
from tenure.server.checks import check_json, check_text

router = APIRouter(tags=["work"])

READ = requires("work:read", of_own("work"))
TELL = requires("work:tell", of_own("work"))


def _agent(caller: Principal) -> str:
    """Whose program calls: known by the door. Raises `NotFound` for who is no office."""
    agent = owned_by(caller)
    if not agent:
        raise NotFound(
            "This address is for programs inside of an office, who are known by its door.",
            hint="From outside, `tenure runs show RUN` tells what they told.",
        )
    return agent


@router.put("/work/{key}/checkpoint", status_code=204, dependencies=[TELL])
async def keep_checkpoint(key: Key, body: Annotated[Any, Body()], has: Has, caller: Caller) -> None:
    """Keeps a checkpoint, any JSON up to 64 KiB, instead of the one before. It is safe once this is answered."""
    await has.signals.keep(_agent(caller), key, check_json("checkpoint", body))


@router.get("/work/{key}/checkpoint", response_class=JSONResponse, dependencies=[READ])
async def read_checkpoint(key: Key, has: Has, caller: Caller) -> JSONResponse:
    """The latest checkpoint: of this attempt, or of the one before it. 404 when there was none."""
    found = await has.signals.read(_agent(caller), key)
    if found.checkpoint is None:
        raise NotFound("There is no checkpoint yet.", hint="Begin at the beginning.")
    return JSONResponse(found.checkpoint)


@router.post("/work/{key}/heartbeat", status_code=204, dependencies=[TELL])
async def heartbeat(
    key: Key, has: Has, caller: Caller, body: Annotated[wire.HeartbeatRequest | None, Body()] = None
) -> None:
    """The program lives. Who sent one promises to go on with it."""
    await has.signals.beat(_agent(caller), key, body.every_s if body else None)


@router.post("/work/{key}/progress", status_code=204, dependencies=[TELL])
async def progress(key: Key, body: wire.ProgressRequest, has: Has, caller: Caller) -> None:
    """What the program is at, in words."""
    await has.signals.progress(_agent(caller), key, check_text("text", body.text))


@router.put("/work/{key}/usage", status_code=204, dependencies=[TELL])
async def spend(key: Key, body: wire.UsageRequest, has: Has, caller: Caller) -> None:
    """What the program took since it was started: it counts in the run's budget and in what it cost."""
    await has.signals.spend(_agent(caller), key, body)


@router.post("/work/{key}/ask", status_code=204, dependencies=[TELL])
async def ask(key: Key, body: wire.ProgramQuestion, has: Has, caller: Caller) -> None:
    """A question for a person. The program then ends with exit code 75, and is started again with the answer."""
    check_json("question", body.model_dump(mode="json"))
    await has.signals.ask(_agent(caller), key, body)


@router.put("/v1/agents/{name}/work/{key}", status_code=204, dependencies=[requires("work:open", of_agent("work"))])
async def open_work(name: AgentName, key: Key, body: wire.SignalsRequest, has: Has) -> None:
    """Lets programs of the office tell of themselves under the key; nothing changes when they can already."""
    await has.offices.need(name)
    await has.signals.open(name, key, check_json("checkpoint", body.checkpoint))


@router.get(
    "/v1/agents/{name}/work/{key}",
    response_model=wire.Signals,
    dependencies=[requires("work:read", of_agent("work"))],
)
async def read_work(name: AgentName, key: Key, has: Has) -> Any:
    """What was told under the key."""
    await has.offices.need(name)
    return await has.signals.read(name, key)
