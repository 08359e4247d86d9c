"""Offices as single files: exports to the client and to S3, schedules, imports.

The server writes no file of a client's choice on this machine, where it is root: a client gets the bytes and writes them
itself.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tenure import wire
from tenure.errors import TenureError
from tenure.export_keys import Key, parse_key
from tenure.identity.authorize import Resource
from tenure.names import check_name
from tenure.offices.archives.schedules import Wanted
from tenure.server.access import AgentName, Has, of_agent, requires
from tenure.server.checks import check_id
from tenure.server.failures import payload_bytes

router = APIRouter(prefix="/v1", tags=["exports"])

ARCHIVE_TYPE = "application/vnd.tenure.office"
EXPORT_ID_HEADER = "x-tenure-export"
OF_EXPORTS = of_agent("export")
ARCHIVE: dict[int | str, dict[str, Any]] = {200: {"content": {ARCHIVE_TYPE: {}}}}


async def export_id(export: Annotated[str, Path(description="Id of the export")]) -> str:
    return check_id(export, "export")


async def of_new_name(name: Annotated[str, Query(description="Name of the new agent")]) -> Resource:
    return Resource("agent", owner=check_name(name), name=name)


async def of_fetched(body: wire.FetchRequest) -> Resource:
    name = "" if body.name is None else check_name(body.name)
    return Resource("agent", owner=name, name=name)


def _key(given: SecretStr | None) -> Key | None:
    return None if given is None else parse_key(given.get_secret_value())


@router.post(
    "/agents/{name}/export",
    response_class=StreamingResponse,
    responses=ARCHIVE,
    dependencies=[requires("export:create", OF_EXPORTS)],
)
async def export_agent(name: AgentName, has: Has, body: wire.ExportRequest | None = None) -> StreamingResponse:
    """The whole office as of one instant, as an archive; one that breaks off is not whole, and no import takes it. The header
    `x-tenure-export` has its id."""
    body = body or wire.ExportRequest()
    since = None if body.since is None else check_id(body.since, "export")
    record, pieces = await has.exports.send(name, since=since, key=_key(body.key))
    return StreamingResponse(pieces, media_type=ARCHIVE_TYPE, headers={EXPORT_ID_HEADER: record.id})


@router.post(
    "/agents/{name}/exports",
    status_code=202,
    response_model=wire.Export,
    dependencies=[requires("export:create", OF_EXPORTS)],
)
async def start_export(name: AgentName, body: wire.ExportToRequest, has: Has) -> Any:
    """Begins an export to S3, which the server makes; the list and its id tell how it goes."""
    since = None if body.since is None else check_id(body.since, "export")
    return await has.exports.start(name, body.to, since=since, key=_key(body.key))


@router.post(
    "/agents/{name}/archive",
    status_code=202,
    response_model=wire.Export,
    dependencies=[requires("export:archive", OF_EXPORTS)],
)
async def archive_agent(name: AgentName, has: Has, body: wire.ArchiveRequest | None = None) -> Any:
    """Begins to put the office away in S3. When the export is done, the agent is archived: nothing of it is on this machine
    but its snapshots, and its next use brings it back. When it failed, the office is here as before, stopped."""
    body = body or wire.ArchiveRequest()
    return await has.archiving.start(name, body.to, key=_key(body.key))


@router.get(
    "/agents/{name}/exports", response_model=wire.ExportList, dependencies=[requires("export:list", OF_EXPORTS)]
)
async def list_exports(name: AgentName, has: Has) -> Any:
    """The oldest first, and the schedule, if there is one."""
    return {"exports": await has.exports.list(name), "schedule": await has.exports.schedules.of(name)}


@router.put(
    "/agents/{name}/exports/schedule",
    response_model=wire.ExportSchedule,
    dependencies=[requires("export:schedule", OF_EXPORTS)],
)
async def keep_exporting(name: AgentName, body: wire.ExportScheduleRequest, has: Has) -> Any:
    """From now on the server keeps a copy of the office in S3, made anew every so often; the first at once."""
    wanted = Wanted(body.to, body.every_s, _key(body.key), body.full_every, body.chains_kept)
    return await has.exports.schedules.keep(name, wanted)


@router.delete(
    "/agents/{name}/exports/schedule", status_code=204, dependencies=[requires("export:schedule", OF_EXPORTS)]
)
async def stop_exporting(name: AgentName, has: Has) -> None:
    """Ends the schedule; what was made stays where it is."""
    await has.exports.schedules.stop(name)


@router.get(
    "/agents/{name}/exports/{export}", response_model=wire.Export, dependencies=[requires("export:read", OF_EXPORTS)]
)
async def get_export(name: AgentName, export: Annotated[str, Depends(export_id)], has: Has) -> Any:
    return await has.exports.get(name, export)


@router.post(
    "/imports",
    status_code=201,
    response_model=wire.Imported,
    dependencies=[requires("agent:create", of_new_name)],
    openapi_extra={"requestBody": {"content": {ARCHIVE_TYPE: {}}}},
)
async def import_agent(name: str, request: Request, has: Has) -> Any:
    """Makes a new agent, asleep, of archives: `u32` length and JSON `{"key", "count"}`, then for each archive `u64` length and
    its bytes; the whole one first. All of it, or nothing."""
    try:
        return await has.imports.receive(check_name(name), request.stream())
    except TenureError as error:
        # The rest of the body, which may be large, is not worth reading.
        headers = {"connection": "close"}
        return Response(payload_bytes(error), error.http_status, headers, media_type="application/json")


@router.post(
    "/imports/s3",
    status_code=201,
    response_model=wire.Imported,
    dependencies=[requires("agent:create", of_fetched)],
)
async def import_from_s3(body: wire.FetchRequest, has: Has) -> Any:
    """Makes a new agent, asleep, of archives in S3, which the server reads."""
    return await has.imports.fetch(body.sources, body.name, _key(body.key))
