"""How an agent's brain thinks: its model, what it may cost, what a person has to allow."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from tenure import wire
from tenure.brains.registry import check_settings
from tenure.errors import NotFound
from tenure.server.access import AgentName, Has, of_agent, requires
from tenure.server.checks import check_json
from tenure.work.thoughts import BrainSettings

router = APIRouter(prefix="/v1/agents", tags=["agents"])


@router.get("/{name}/brain", response_model=wire.Brain, dependencies=[requires("agent:brain", of_agent())])
async def get_brain(name: AgentName, has: Has) -> Any:
    """What its runs without a playbook begin with; 404 when nothing was chosen."""
    await has.offices.need(name)
    settings = await has.brains.get(name)
    if settings is None:
        raise NotFound(
            f"Nobody has chosen a brain for the agent {name!r}.",
            hint=f"`tenure brain set {name} --model PROVIDER:MODEL` does.",
        )
    return settings


@router.put("/{name}/brain", response_model=wire.Brain, dependencies=[requires("agent:set-brain", of_agent())])
async def set_brain(name: AgentName, body: wire.BrainRequest, has: Has) -> Any:
    """Takes the place of what was chosen before. Runs that began go on as they began."""
    given = check_json("brain", body.model_dump())
    settings = check_settings(BrainSettings.model_validate(given))
    await has.offices.need(name)
    await has.brains.set(name, settings)
    return settings
