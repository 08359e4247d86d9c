"""Files of an office: one file's bytes, and whole trees as tar archives (both ways, streamed)."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import StreamingResponse

from tenure import wire
from tenure.server import office_files
from tenure.server.access import AgentName, Has, of_agent, requires
from tenure.server.checks import check_path, check_user

router = APIRouter(prefix="/v1/agents/{name}", tags=["files"])

FILE_BYTES_DEFAULT = wire.OUTPUT_BYTES_MAX
FILE_BYTES_MAX = 64 * 1024 * 1024
BINARY: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": {}}}}
TAR: dict[int | str, dict[str, Any]] = {200: {"content": {"application/x-tar": {}}}}

OfficePath = Annotated[str, Query(description="Absolute, or relative to the home of the user")]
OfficeUser = Annotated[str, Query(description="The office's user whose permissions count")]


@router.get(
    "/file",
    response_class=StreamingResponse,
    responses=BINARY,
    dependencies=[requires("file:read", of_agent("file"))],
)
async def read_file(
    name: AgentName,
    path: OfficePath,
    has: Has,
    bytes_max: Annotated[int, Query(ge=0, le=FILE_BYTES_MAX)] = FILE_BYTES_DEFAULT,
    user: OfficeUser = "agent",
) -> StreamingResponse:
    """The first `bytes_max` bytes of a file."""
    chunks = await office_files.read_file(has.offices, name, check_user(user), check_path(path), bytes_max)
    return StreamingResponse(chunks, media_type="application/octet-stream")


@router.get(
    "/archive",
    response_class=StreamingResponse,
    responses=TAR,
    dependencies=[requires("file:read", of_agent("file"))],
)
async def get_archive(name: AgentName, path: OfficePath, has: Has, user: OfficeUser = "agent") -> StreamingResponse:
    """A tar archive of a file or directory; its top entry has the last name of `path`."""
    chunks = await office_files.pack(has.offices, name, check_user(user), check_path(path))
    return StreamingResponse(chunks, media_type="application/x-tar")


@router.put(
    "/archive",
    status_code=204,
    dependencies=[requires("file:write", of_agent("file"))],
    openapi_extra={"requestBody": {"content": {"application/x-tar": {}}}},
)
async def put_archive(
    name: AgentName, path: OfficePath, request: Request, has: Has, user: OfficeUser = "agent"
) -> None:
    """Unpacks the body, a tar archive, under the directory `path`."""
    await office_files.unpack(has.offices, name, check_user(user), check_path(path), request.stream())
