"""Files into tables: loads, and pipelines that make them again and again."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query
from starlette.requests import Request
from starlette.responses import Response

from tenure.data.ingestion.pipeline import PipelineRecord
from tenure.data.ingestion.plan import Hints
from tenure.data.ingestion.record import LoadRecord, Target, Wanted
from tenure.errors import InvalidArgument, TenureError
from tenure.identity.authorize import Resource
from tenure.names import check_name
from tenure.server.access import AgentName, Caller, Has, of_agent, of_own, owned_by, requires
from tenure.server.checks import check_id, check_text
from tenure.server.failures import payload_bytes
from tenure.wire import ingestion as wire

router = APIRouter(prefix="/v1", tags=["ingestion"])

LIST_DEFAULT, LIST_MAX = 100, 1000
BODY: dict[str, Any] = {"requestBody": {"content": {"application/octet-stream": {}}}}
OF_DATABASE = of_agent("database")


async def database_name(name: Annotated[str, Path(description="Name of the shared database")]) -> str:
    return check_name(name, "database")


DatabaseName = Annotated[str, Depends(database_name)]


async def of_shared(name: DatabaseName) -> Resource:
    return Resource("database", name=name)


async def of_load(load_id: str, has: Has) -> Resource:
    """The database that it goes into. Raises `NotFound`."""
    load = await has.loads.find(check_id(load_id, "load"))
    return Resource("database", owner=load.agent or "", name=load.database or "")


async def of_pipeline(pipeline: str) -> Resource:
    return Resource("pipeline", name=check_name(pipeline, "pipeline"))


async def of_pipelines() -> Resource:
    return Resource("pipeline")


# --- making loads -------------------------------------------------------------------------------------------------------
class UploadOptions(wire.LoadOptions):
    file: str = "data"
    """What the file is called: it tells the format, and the table where none is named."""


Uploaded = Annotated[UploadOptions, Query()]


@router.post(
    "/agents/{name}/loads",
    status_code=202,
    response_model=wire.Load,
    dependencies=[requires("database:connect", OF_DATABASE)],
    openapi_extra=BODY,
)
async def load_into_agent(name: AgentName, options: Uploaded, request: Request, has: Has, caller: Caller) -> Any:
    """Loads the body, a file in any of the formats, into a table of the agent's database: all of it or nothing. Answers when the
    body is here; the load's id tells how it goes."""
    return await _received(Target(agent=name), options, request, has, caller)


@router.post(
    "/agents/{name}/loads/from",
    status_code=202,
    response_model=wire.Load,
    dependencies=[requires("database:connect", OF_DATABASE)],
)
async def load_into_agent_from(name: AgentName, body: wire.LoadRequest, has: Has, caller: Caller) -> Any:
    """Begins to load what is at an address."""
    source = check_text("source", body.source)
    return load_of(await has.loads.fetch(Target(agent=name), wanted_of(body), source, by=caller))


@router.post(
    "/databases/{name}/loads",
    status_code=202,
    response_model=wire.Load,
    dependencies=[requires("database:load", of_shared)],
    openapi_extra=BODY,
)
async def load_into_database(name: DatabaseName, options: Uploaded, request: Request, has: Has, caller: Caller) -> Any:
    """The same, into a shared database, as its owner."""
    return await _received(Target(database=name), options, request, has, caller)


@router.post(
    "/databases/{name}/loads/from",
    status_code=202,
    response_model=wire.Load,
    dependencies=[requires("database:load", of_shared)],
)
async def load_into_database_from(name: DatabaseName, body: wire.LoadRequest, has: Has, caller: Caller) -> Any:
    """Begins to load what is at an address, into a shared database."""
    source = check_text("source", body.source)
    return load_of(await has.loads.fetch(Target(database=name), wanted_of(body), source, by=caller))


async def _received(target: Target, options: UploadOptions, request: Request, has: Any, caller: Any) -> Any:
    try:
        name = check_text("file", options.file)[: wire.NAME_CHARS_MAX]
        wanted = wanted_of(options)
        return load_of(await has.loads.receive(target, wanted, name, request.stream(), by=caller))
    except TenureError as error:
        # The rest of the body, which may be large, is not worth reading.
        headers = {"connection": "close"}
        return Response(payload_bytes(error), error.http_status, headers, media_type="application/json")


# --- loads --------------------------------------------------------------------------------------------------------------
@router.get("/loads", response_model=wire.LoadList, dependencies=[requires("database:connect", of_own("database"))])
async def list_loads(
    has: Has,
    caller: Caller,
    agent: str | None = None,
    database: str | None = None,
    limit: Annotated[int, Query(ge=1, le=LIST_MAX)] = LIST_DEFAULT,
) -> Any:
    """The newest first; of one agent, of one shared database, or all."""
    own = owned_by(caller)
    target = _target(own or agent, None if own else database) if own or agent or database else None
    return {"loads": [load_of(one) for one in await has.loads.list(target, limit=limit)]}


@router.get("/loads/{load_id}", response_model=wire.Load, dependencies=[requires("database:connect", of_load)])
async def get_load(load_id: str, has: Has) -> Any:
    return load_of(await has.loads.find(load_id))


@router.post("/loads/{load_id}/answer", response_model=wire.Load, dependencies=[requires("load:answer", of_load)])
async def answer_load(load_id: str, body: wire.LoadAnswer, has: Has) -> Any:
    """To the question of a load that would change its table: it goes on, or is cancelled."""
    load = await has.loads.find(load_id)
    return load_of(await has.loads.answer(load.target, load_id, allow=body.allow))


@router.post("/loads/{load_id}/cancel", response_model=wire.Load, dependencies=[requires("database:connect", of_load)])
async def cancel_load(load_id: str, has: Has) -> Any:
    """Ends a load that is not over; nothing of it is in its table then."""
    load = await has.loads.find(load_id)
    return load_of(await has.loads.cancel(load.target, load_id))


# --- pipelines ----------------------------------------------------------------------------------------------------------
@router.post(
    "/pipelines",
    status_code=201,
    response_model=wire.Pipeline,
    dependencies=[requires("pipeline:create", of_pipelines)],
)
async def create_pipeline(body: wire.PipelineRequest, has: Has, caller: Caller) -> Any:
    """Loads what is at an address now, and again by its times. Each content once."""
    made = await has.pipelines.create(
        check_name(body.name, "pipeline"),
        _target(body.agent, body.database),
        check_text("source", body.source),
        wanted_of(body),
        by=caller,
        every_s=body.every_s,
        cron=body.cron,
        tz=body.tz,
        on_arrival=body.on_arrival,
    )
    return pipeline_of(made)


@router.get("/pipelines", response_model=wire.PipelineList, dependencies=[requires("pipeline:list", of_pipelines)])
async def list_pipelines(has: Has, agent: str | None = None) -> Any:
    """By name."""
    found = await has.pipelines.list(None if agent is None else check_name(agent))
    return {"pipelines": [pipeline_of(one) for one in found]}


@router.get(
    "/pipelines/{pipeline}", response_model=wire.Pipeline, dependencies=[requires("pipeline:read", of_pipeline)]
)
async def get_pipeline(pipeline: str, has: Has) -> Any:
    return pipeline_of(await has.pipelines.get(pipeline))


@router.get(
    "/pipelines/{pipeline}/loads", response_model=wire.LoadList, dependencies=[requires("pipeline:read", of_pipeline)]
)
async def pipeline_loads(
    pipeline: str, has: Has, limit: Annotated[int, Query(ge=1, le=LIST_MAX)] = LIST_DEFAULT
) -> Any:
    """Its history, the newest first."""
    return {"loads": [load_of(one) for one in await has.pipelines.loads(pipeline, limit=limit)]}


@router.post(
    "/pipelines/{pipeline}/pause",
    response_model=wire.Pipeline,
    dependencies=[requires("pipeline:update", of_pipeline)],
)
async def pause_pipeline(pipeline: str, has: Has) -> Any:
    return pipeline_of(await has.pipelines.set_paused(pipeline, True))


@router.post(
    "/pipelines/{pipeline}/resume",
    response_model=wire.Pipeline,
    dependencies=[requires("pipeline:update", of_pipeline)],
)
async def resume_pipeline(pipeline: str, has: Has) -> Any:
    """It runs at once: what came meanwhile is loaded."""
    return pipeline_of(await has.pipelines.set_paused(pipeline, False))


@router.post(
    "/pipelines/{pipeline}/run",
    response_model=wire.Pipeline,
    dependencies=[requires("pipeline:run", of_pipeline)],
)
async def run_pipeline(pipeline: str, has: Has) -> Any:
    """Looks for what is new now; returns when the loads of it have begun."""
    return pipeline_of(await has.pipelines.run(pipeline))


@router.delete("/pipelines/{pipeline}", status_code=204, dependencies=[requires("pipeline:delete", of_pipeline)])
async def delete_pipeline(pipeline: str, has: Has) -> None:
    """What it loaded stays."""
    await has.pipelines.delete(pipeline)


# --- shapes -------------------------------------------------------------------------------------------------------------
def _target(agent: str | None, database: str | None) -> Target:
    if (agent is None) == (database is None):
        raise InvalidArgument("Name an agent or a shared database.")
    return (
        Target(agent=check_name(agent))
        if agent is not None
        else Target(database=check_name(database or "", "database"))
    )


def wanted_of(options: wire.LoadOptions) -> Wanted:
    """Raises `InvalidArgument`."""
    for name in ("into", "delimiter", "quote", "encoding", "sheet", "key"):
        if (value := getattr(options, name)) is not None:
            check_text(name, value)
    for key in options.keys:
        check_text("keys", key)
    hints = Hints(
        format=options.format or "",
        delimiter="\t" if options.delimiter == "\\t" else options.delimiter or "",
        quote=options.quote or "",
        encoding=options.encoding or "",
        header=options.header,
        sheet=options.sheet or "",
    )
    return Wanted(
        into=options.into or None,
        mode=options.mode,
        keys=tuple(options.keys),
        policy=options.schema_policy,
        hints=hints,
        again=options.again,
        key=options.key,
    ).check()


def load_of(one: LoadRecord) -> wire.Load:
    columns = one.columns or (
        None if one.plan is None else tuple((column.name, column.type) for column in one.plan.columns)
    )
    return wire.Load(
        id=one.id,
        agent=one.agent,
        database=one.database,
        into=one.into_table,
        mode=one.mode,  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        source=one.source,
        state=one.state,
        size_bytes=one.size_bytes,
        read_bytes=one.read_bytes,
        rows_loaded=one.rows_loaded,
        rows_rejected=one.rows_rejected,
        rejects=one.rejects_table,
        columns=None if columns is None else [wire.LoadColumn(name=name, type=kind) for name, kind in columns],
        changes=[str(change["told"]) for change in one.changes if "told" in change],
        question=one.question,
        repeats=one.repeats,
        digest=one.digest,
        error=None if one.error is None else dict(one.error),
        pipeline=one.pipeline,
        created_at=one.created_at,
        finished_at=one.finished_at,
    )


def pipeline_of(one: PipelineRecord) -> wire.Pipeline:
    return wire.Pipeline(
        name=one.name,
        agent=one.agent,
        database=one.database,
        source=one.source,
        into=one.into_table,
        mode=one.mode,  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        every_s=one.every_s,
        cron=one.cron,
        tz=one.tz,
        on_arrival=one.on_arrival,
        paused=one.paused,
        next_at=one.next_at,
        last_at=one.last_at,
        last_error=one.last_error,
        failures=one.failures,
        created_by=one.created_by,
        created_at=one.created_at,
    )
