"""Shared databases: what there is, who may do what with it, SQL on it, and its past."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from tenure import wire
from tenure.errors import Forbidden
from tenure.identity.authorize import Principal, PrincipalKind
from tenure.names import check_name
from tenure.server.access import Caller, DatabaseName, Has, of_database, of_databases, requires
from tenure.server.api.snapshots import SnapshotId
from tenure.server.api.sql import csv_answer, while_wanted
from tenure.server.checks import check_id, check_text
from tenure.wire import databases as shapes

router = APIRouter(prefix="/v1/databases", tags=["databases"])
ONE = "/{name}"

Agent = Annotated[
    str | None,
    Query(description="Agent with whose grant the statement runs; without, as the owner. An office is itself"),
]


@router.post(
    "", status_code=201, response_model=shapes.SharedDatabase, dependencies=[requires("databases:create", of_databases)]
)
async def create_database(body: shapes.SharedDatabaseRequest, has: Has) -> Any:
    """Makes an empty shared database, which no office can reach yet."""
    return await has.databases.create(body.name, body.model_dump(exclude={"name"}))


@router.get("", response_model=shapes.SharedDatabaseList, dependencies=[requires("databases:list", of_databases)])
async def list_databases(caller: Caller, has: Has) -> Any:
    """By name; for an office those that were granted to it."""
    return {"databases": await has.databases.list(caller)}


@router.get(ONE, response_model=shapes.SharedDatabase, dependencies=[requires("database:read", of_database)])
async def get_database(name: DatabaseName, has: Has) -> Any:
    """With its size. Does not wake it."""
    return await has.databases.get(name)


@router.delete(ONE, status_code=204, dependencies=[requires("database:delete", of_database)])
async def delete_database(name: DatabaseName, has: Has) -> None:
    """With its snapshots and grants. Cannot be undone; backups that lie elsewhere stay."""
    await has.databases.delete(name)


@router.post(f"{ONE}/wake", response_model=shapes.SharedDatabase, dependencies=[requires("database:wake", of_database)])
async def wake_database(name: DatabaseName, has: Has) -> Any:
    """Its next use does that as well."""
    return await has.databases.wake(name)


@router.post(
    f"{ONE}/sleep", response_model=shapes.SharedDatabase, dependencies=[requires("database:sleep", of_database)]
)
async def sleep_database(name: DatabaseName, has: Has) -> Any:
    """Stops it; whoever is connected is disconnected."""
    return await has.databases.sleep(name)


@router.put(
    f"{ONE}/limits", response_model=shapes.SharedDatabase, dependencies=[requires("database:limit", of_database)]
)
async def limit_database(name: DatabaseName, body: shapes.SharedLimitsRequest, has: Has) -> Any:
    """Sets some limits; agents that are connected are disconnected."""
    return await has.databases.limit(name, body.model_dump())


# --- statements ---------------------------------------------------------------------------------------------------------
@router.post(f"{ONE}/sql", response_model=wire.SqlResult, dependencies=[requires("database:connect", of_database)])
async def database_sql(
    name: DatabaseName, body: wire.SqlRequest, request: Request, caller: Caller, has: Has, agent: Agent = None
) -> Any:
    """Runs statements in one transaction, as on an agent's own database."""
    check_text("statement", body.statement)
    key = check_text("key", body.key) if body.key is not None else None
    work = has.databases.execute(
        name,
        body.statement,
        agent=acting(caller, agent),
        key=key,
        rows_max=body.rows_max,
        timeout_s=body.timeout_s,
        read_only=body.read_only,
    )
    return await work if key is not None else await while_wanted(request, work)


@router.post(
    f"{ONE}/sql/csv",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/csv": {}}}},
    dependencies=[requires("database:connect", of_database)],
)
async def database_csv(
    name: DatabaseName, body: wire.CsvRequest, request: Request, caller: Caller, has: Has, agent: Agent = None
) -> StreamingResponse:
    """All rows of one query as CSV with a line of headers, streamed."""
    check_text("statement", body.statement)
    return await csv_answer(request, has.databases.csv(name, body.statement, agent=acting(caller, agent)))


def acting(caller: Principal, agent: str | None) -> str | None:
    """As which agent a statement runs; None: as the owner."""
    if caller.kind is PrincipalKind.OFFICE:
        if agent not in (None, caller.name):
            raise Forbidden(f"{caller} may not run statements as another agent.")
        return caller.name
    return None if agent is None else check_name(agent)


# --- grants -------------------------------------------------------------------------------------------------------------
@router.get(
    f"{ONE}/grants", response_model=shapes.DatabaseGrantList, dependencies=[requires("database:grants", of_database)]
)
async def list_database_grants(name: DatabaseName, has: Has) -> Any:
    """By agent."""
    return {"grants": await has.databases.grants(name)}


@router.put(
    f"{ONE}/grants/{{agent}}",
    response_model=shapes.DatabaseGrant,
    dependencies=[requires("database:grant", of_database)],
)
async def grant_database(
    name: DatabaseName, agent: str, body: shapes.DatabaseGrantRequest, caller: Caller, has: Has
) -> Any:
    """Lets an agent's office in, as NAME.db, to do what is said here and nothing more. Takes the place of an earlier grant."""
    tables = None
    if body.tables is not None:
        tables = {check_text("tables", table): scope.rows for table, scope in body.tables.items()}
        for rows in tables.values():
            check_text("rows", rows or "")
    return await has.databases.grant(
        name, check_name(agent), body.level, by=caller, tables=tables, expires_at=body.expires_at
    )


@router.delete(f"{ONE}/grants/{{agent}}", status_code=204, dependencies=[requires("database:grant", of_database)])
async def revoke_database(name: DatabaseName, agent: str, has: Has) -> None:
    """Ends the agent's connections at once."""
    await has.databases.revoke(name, check_name(agent))


# --- snapshots ----------------------------------------------------------------------------------------------------------
@router.post(
    f"{ONE}/snapshots",
    status_code=201,
    response_model=shapes.SharedSnapshot,
    dependencies=[requires("database:snapshot", of_database)],
)
async def take_database_snapshot(name: DatabaseName, has: Has, body: shapes.SharedSnapshotRequest | None = None) -> Any:
    """Keeps it as of one instant."""
    return await has.databases.take_snapshot(name, None if body is None else body.name)


@router.get(
    f"{ONE}/snapshots",
    response_model=shapes.SharedSnapshotList,
    dependencies=[requires("database:snapshot", of_database)],
)
async def list_database_snapshots(name: DatabaseName, has: Has) -> Any:
    """The oldest first."""
    return {"snapshots": await has.databases.snapshots(name)}


@router.delete(
    f"{ONE}/snapshots/{{snapshot}}", status_code=204, dependencies=[requires("database:snapshot", of_database)]
)
async def delete_database_snapshot(name: DatabaseName, snapshot: SnapshotId, has: Has) -> None:
    """Cannot be undone. Forks of it stay."""
    await has.databases.delete_snapshot(name, snapshot)


@router.post(
    f"{ONE}/snapshots/{{snapshot}}/restore",
    response_model=shapes.SharedRestored,
    dependencies=[requires("database:restore", of_database)],
)
async def restore_database_snapshot(name: DatabaseName, snapshot: SnapshotId, has: Has) -> Any:
    """Puts it back to a snapshot, after taking one of what is there. Grants stay as they are now."""
    return await has.databases.restore_snapshot(name, snapshot)


@router.post(
    f"{ONE}/fork",
    status_code=201,
    response_model=shapes.SharedDatabase,
    dependencies=[requires("database:fork", of_database)],
)
async def fork_database(name: DatabaseName, body: shapes.SharedForkRequest, has: Has) -> Any:
    """Makes a new database that is a copy-on-write clone of this one, granted to nobody."""
    snapshot = None if body.snapshot is None else check_id(body.snapshot, "snapshot")
    return await has.databases.fork(name, body.new, snapshot)


# --- backups ------------------------------------------------------------------------------------------------------------
@router.put(
    f"{ONE}/backup", response_model=shapes.SharedDatabase, dependencies=[requires("database:backup", of_database)]
)
async def back_up_database(name: DatabaseName, body: shapes.SharedBackupRequest, has: Has) -> Any:
    """Begins to back it up continuously. Its first base is taken at once."""
    return await has.databases.back_up(name, check_text("to", body.to), body.every_s)


@router.post(
    f"{ONE}/backup", response_model=shapes.SharedDatabase, dependencies=[requires("database:backup", of_database)]
)
async def back_up_database_now(name: DatabaseName, has: Has) -> Any:
    """Answers when whatever was committed until now can be restored."""
    return await has.databases.back_up_now(name)


@router.delete(f"{ONE}/backup", status_code=204, dependencies=[requires("database:backup", of_database)])
async def back_up_database_no_more(name: DatabaseName, has: Has) -> None:
    """What was sent stays where it is."""
    await has.databases.back_up_no_more(name)


@router.post(
    f"{ONE}/restore",
    status_code=201,
    response_model=shapes.SharedDatabase,
    dependencies=[requires("database:restore", of_database)],
)
async def restore_database(name: DatabaseName, body: shapes.MomentRequest, has: Has) -> Any:
    """Makes a new database as this one was at a moment, from its backups. Granted to nobody."""
    source = None if body.source is None else check_text("source", body.source)
    return await has.databases.restore_to(name, body.to, body.new, source)
