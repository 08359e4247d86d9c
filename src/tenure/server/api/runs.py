"""Runs: an agent's work on a goal."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query
from starlette.responses import StreamingResponse

from tenure import wire
from tenure.errors import InvalidArgument, TooLarge
from tenure.names import check_name
from tenure.server.access import Caller, Has, of_new_run, of_new_subgoal, of_own, of_run, owned_by, requires
from tenure.server.checks import check_id, check_json, check_text
from tenure.server.events import event_stream
from tenure.work.accept import check_of
from tenure.work.plan import Check
from tenure.work.thoughts import BrainSettings

router = APIRouter(prefix="/v1/runs", tags=["runs"])

PLAYBOOK_BYTES_MAX = 256 * 1024
LIST_DEFAULT, LIST_MAX = 200, 1000
EVENTS_DEFAULT, EVENTS_MAX = 500, 5000
SEQ_MAX = 2**62

After = Annotated[int, Query(ge=0, le=SEQ_MAX, description="Only events with a greater `seq`")]


@router.post("", status_code=201, response_model=wire.Run, dependencies=[requires("run:create", of_new_run)])
async def create_run(body: wire.RunRequest, has: Has) -> Any:
    """Gives the agent a goal, and the playbook that carries it; without one, its brain finds the way."""
    check_text("goal", body.goal)
    inputs, accept = check_json("inputs", body.inputs), tuple(_check(check) for check in body.accept)
    if body.playbook is not None:
        _check_playbook_size(body.playbook)
    await has.offices.need(body.agent)
    settings = await has.brains.get(body.agent)
    if body.playbook is None:
        return await has.runs.create_thinking(
            agent=body.agent, goal=body.goal, settings=chosen_brain(settings, body.agent), inputs=inputs, accept=accept
        )
    if accept:
        raise InvalidArgument(
            "A run by a playbook is judged by the playbook's own checks.", hint="Write them as `verify` of its steps."
        )
    return await has.runs.create(
        agent=body.agent,
        goal=body.goal,
        playbook=body.playbook,
        playbook_name=check_text("playbook_name", body.playbook_name) if body.playbook_name else None,
        inputs=inputs,
        settings=settings,
    )


def chosen_brain(settings: BrainSettings | None, agent: str) -> BrainSettings:
    """Raises `InvalidArgument` when nobody has chosen how the agent thinks."""
    if settings is None:
        raise InvalidArgument(
            f"{agent} has no brain of its own yet, so a run needs a playbook.",
            hint=f"`tenure brain set {agent} --model PROVIDER:MODEL` gives it one; docs/playbooks.md is about playbooks.",
        )
    return settings


def _check(check: wire.RunCheck) -> Check:
    check_json("accept", check.model_dump())
    return check_of(check)


@router.post(
    "/subgoals", status_code=201, response_model=wire.Run, dependencies=[requires("run:create", of_new_subgoal)]
)
async def create_subgoal(body: wire.SubgoalRequest, has: Has) -> Any:
    """Gives the agent a goal for its own brain, as a part of another run's; by a known key, returns the run that is there."""
    check_text("goal", body.goal)
    check_text("key", body.key)
    await has.offices.need(body.agent)
    parent = None if body.parent is None else check_id(body.parent, "run")
    settings = chosen_brain(await has.brains.get(body.agent), body.agent)
    return await has.runs.create_subgoal(
        agent=body.agent, goal=body.goal, key=body.key, settings=settings, parent=parent
    )


def _check_playbook_size(playbook: str) -> None:
    size_bytes = len(check_text("playbook", playbook).encode())
    if size_bytes > PLAYBOOK_BYTES_MAX:
        raise TooLarge(
            f"The playbook is {size_bytes} bytes; {PLAYBOOK_BYTES_MAX} are allowed.",
            hint="Put long scripts and data into files of the office (`tenure cp`) and call them from the steps.",
        )


@router.get("", response_model=wire.RunList, dependencies=[requires("run:read", of_own("run"))])
async def list_runs(
    has: Has,
    caller: Caller,
    agent: str | None = None,
    state: wire.RunState | None = None,
    limit: Annotated[int, Query(ge=1, le=LIST_MAX)] = LIST_DEFAULT,
) -> Any:
    """Newest first; an office sees its own."""
    if agent is not None:
        check_name(agent)
    own = owned_by(caller)
    if own and agent not in (None, own):
        return {"runs": []}
    return {"runs": await has.runs.list(agent=own or agent, state=state.value if state else None, limit=limit)}


@router.get("/{run_id}", response_model=wire.Run, dependencies=[requires("run:read", of_run)])
async def get_run(run_id: str, has: Has) -> Any:
    return await has.runs.get(run_id)


@router.post("/{run_id}/cancel", response_model=wire.Run, dependencies=[requires("run:cancel", of_run)])
async def cancel_run(run_id: str, has: Has) -> Any:
    """Ends the run; its running step's command is stopped."""
    return await has.runs.cancel(run_id)


@router.post("/{run_id}/resume", response_model=wire.Run, dependencies=[requires("run:resume", of_run)])
async def resume_run(
    run_id: str, has: Has, body: Annotated[wire.ResumeRequest, Body(default_factory=wire.ResumeRequest)]
) -> Any:
    """Lets a run that waits for a person go on, with the person's answer if there is one."""
    return await has.runs.resume(run_id, check_text("answer", body.answer) if body.answer is not None else None)


@router.post("/{run_id}/fork", status_code=201, response_model=wire.Run, dependencies=[requires("run:fork", of_run)])
async def fork_run(run_id: str, body: wire.RunForkRequest, has: Has) -> Any:
    """Makes a new agent of the snapshot of a step's moment, and a run of it that goes on from there."""
    check_name(body.new)
    if body.playbook is not None:
        _check_playbook_size(body.playbook)
    agent = (await has.runs.get(run_id)).agent
    point = await has.runs.fork_point(
        run_id,
        check_text("at", body.at),
        there={one.id for one in await has.offices.snapshots.list(agent)},
        before=body.before,
        playbook=body.playbook,
        playbook_name=check_text("playbook_name", body.playbook_name) if body.playbook_name else None,
        inputs=check_json("inputs", body.inputs),
    )
    await has.offices.fork(agent, body.new, point.snapshot.id)
    try:
        return await has.runs.fork(point, body.new)
    except BaseException:
        await asyncio.shield(has.offices.delete(body.new))  # nobody was told of it
        raise


@router.get("/{run_id}/events", response_model=wire.EventList, dependencies=[requires("run:read", of_run)])
async def list_events(
    run_id: str, has: Has, after: After = 0, limit: Annotated[int, Query(ge=1, le=EVENTS_MAX)] = EVENTS_DEFAULT
) -> Any:
    """The run's journal, in order."""
    return {"events": await has.runs.events(run_id, after=after, limit=limit)}


@router.get(
    "/{run_id}/events/stream",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}}},
    dependencies=[requires("run:read", of_run)],
)
async def stream_events(run_id: str, has: Has, after: After = 0) -> StreamingResponse:
    """The run's journal as server-sent events, each one's data a `RunEvent`; ends when the run is at rest."""
    return StreamingResponse(
        event_stream(has.runs, run_id, after), media_type="text/event-stream", headers={"cache-control": "no-store"}
    )
