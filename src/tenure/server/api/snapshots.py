"""Snapshots of agents' offices: take, compare, restore, fork."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query

from tenure import wire
from tenure.offices.models import SnapshotKind, StepMark
from tenure.server.access import AgentName, Has, of_agent, requires
from tenure.server.checks import check_id

router = APIRouter(prefix="/v1/agents/{name}", tags=["snapshots"])


async def snapshot_id(snapshot: Annotated[str, Path(description="Id or name of the snapshot")]) -> str:
    return check_id(snapshot, "snapshot")


SnapshotId = Annotated[str, Depends(snapshot_id)]
OF_SNAPSHOTS = of_agent("snapshot")


@router.post(
    "/snapshots",
    status_code=201,
    response_model=wire.Snapshot,
    dependencies=[requires("snapshot:create", OF_SNAPSHOTS)],
)
async def take_snapshot(name: AgentName, has: Has, body: wire.SnapshotRequest | None = None) -> Any:
    """Keeps files, database and objects as of one instant; the office goes on."""
    wanted = body or wire.SnapshotRequest()
    step = None if wanted.step is None else StepMark(wanted.step.run, wanted.step.node, wanted.step.verified)
    return await has.offices.snapshots.take(name, wanted.name, SnapshotKind(wanted.kind), step, wanted.key)


@router.get("/snapshots", response_model=wire.SnapshotList, dependencies=[requires("snapshot:list", OF_SNAPSHOTS)])
async def list_snapshots(name: AgentName, has: Has) -> Any:
    """The oldest first."""
    return {"snapshots": await has.offices.snapshots.list(name)}


@router.delete("/snapshots/{snapshot}", status_code=204, dependencies=[requires("snapshot:delete", OF_SNAPSHOTS)])
async def delete_snapshot(name: AgentName, snapshot: SnapshotId, has: Has) -> None:
    """Cannot be undone. Forks of it stay."""
    await has.offices.snapshots.delete(name, snapshot)


@router.post(
    "/snapshots/{snapshot}/restore",
    response_model=wire.Restored,
    dependencies=[requires("snapshot:restore", OF_SNAPSHOTS)],
)
async def restore_snapshot(
    name: AgentName, snapshot: SnapshotId, has: Has, body: wire.RestoreRequest | None = None
) -> Any:
    """Puts the whole office back to a snapshot, after taking one of what is there. What runs inside ends."""
    wanted = body or wire.RestoreRequest()
    return await has.offices.snapshots.restore(name, snapshot, by_run=wanted.by_run, key=wanted.key)


@router.get(
    "/snapshots/{snapshot}/diff", response_model=wire.Diff, dependencies=[requires("snapshot:read", OF_SNAPSHOTS)]
)
async def diff_snapshot(
    name: AgentName,
    snapshot: SnapshotId,
    has: Has,
    to: Annotated[
        str | None, Query(description="Id or name of another snapshot; without, the office as it is now")
    ] = None,
    tables: Annotated[bool, Query(description="Whether the rows of the database's tables are compared, too")] = True,
) -> Any:
    """Files, objects and rows that were added, removed or changed since."""
    after = None if to is None else check_id(to, "snapshot")
    return await has.offices.snapshots.diff(name, snapshot, after, tables=tables)


@router.post("/fork", status_code=201, response_model=wire.Agent, dependencies=[requires("agent:fork", of_agent())])
async def fork_agent(name: AgentName, body: wire.ForkRequest, has: Has) -> Any:
    """Makes a new agent whose office is a copy-on-write clone of this one's."""
    snapshot = None if body.snapshot is None else check_id(body.snapshot, "snapshot")
    return await has.offices.fork(name, body.new, snapshot)
