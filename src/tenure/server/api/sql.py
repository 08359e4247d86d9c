"""An office's own database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from tenure import wire
from tenure.errors import CommandTimeout
from tenure.server.access import AgentName, Has, of_agent, requires
from tenure.server.checks import check_text

router = APIRouter(prefix="/v1/agents/{name}", tags=["sql"])

PIECE_BYTES = 64 * 1024
"""Rows are sent in pieces of about this size. The first is complete before the answer begins, so that a query which fails
early is answered with its error."""

T = TypeVar("T")


@router.post("/sql", response_model=wire.SqlResult, dependencies=[requires("database:connect", of_agent("database"))])
async def sql(name: AgentName, body: wire.SqlRequest, request: Request, has: Has) -> Any:
    """Runs statements in one transaction; with a `key` exactly once, and later calls return the stored result. Without a key
    they are cancelled when the caller goes away."""
    check_text("statement", body.statement)
    key = check_text("key", body.key) if body.key is not None else None
    database = await has.offices.database(name)
    work = database.execute(
        body.statement, key=key, rows_max=body.rows_max, timeout_s=body.timeout_s, read_only=body.read_only
    )
    return await work if key is not None else await while_wanted(request, work)


@router.post(
    "/sql/csv",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/csv": {}}}},
    dependencies=[requires("database:connect", of_agent("database"))],
)
async def csv(name: AgentName, body: wire.CsvRequest, request: Request, has: Has) -> StreamingResponse:
    """All rows of one query as CSV with a line of headers, streamed. A query that fails after the first rows breaks the
    answer off."""
    check_text("statement", body.statement)
    database = await has.offices.database(name)
    return await csv_answer(request, database.csv(body.statement))


async def csv_answer(request: Request, rows: Awaitable[AsyncGenerator[bytes]]) -> StreamingResponse:
    """Streams the rows of a query; one that fails early is answered with its error."""
    pieces = _pieces(await while_wanted(request, rows))
    first = await while_wanted(request, anext(pieces, b""))
    return StreamingResponse(_all(first, pieces), media_type="text/csv; charset=utf-8")


async def _pieces(rows: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """One row at a time would cost more in HTTP than in PostgreSQL."""
    piece = bytearray()
    async with aclosing(rows):
        async for row in rows:
            piece += row
            if len(piece) >= PIECE_BYTES:
                yield bytes(piece)
                piece.clear()
    if piece:
        yield bytes(piece)


async def _all(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(rest):
        yield first
        async for piece in rest:
            yield piece


async def while_wanted(request: Request, work: Awaitable[T]) -> T:
    """What `work` returns; it is cancelled when the caller goes away: nobody waits for the rows of an interrupted query."""
    task, left = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise CommandTimeout("The caller went away before the statement ended, which is cancelled.")
        return task.result()
    finally:
        task.cancel()
        left.cancel()
        await asyncio.gather(task, left, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
