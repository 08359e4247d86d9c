"""Named connections to databases and APIs elsewhere."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path

from tenure.names import check_name
from tenure.server.access import AgentName, Caller, Has, of_own, requires
from tenure.server.checks import check_text
from tenure.server.services import NamedConnection
from tenure.wire import connections as wire

router = APIRouter(prefix="/v1/connections", tags=["connections"])


async def connection_name(connection: Annotated[str, Path(description="Name of the connection")]) -> str:
    """The path's. Raises `InvalidName`."""
    return check_name(connection, "connection")


ConnectionName = Annotated[str, Depends(connection_name)]
OWN = of_own("connection")


@router.post("", status_code=201, response_model=wire.Connection, dependencies=[requires("connection:create", OWN)])
async def create(body: wire.ConnectionRequest, has: Has) -> Any:
    """Names an existing database or API. Nothing is connected to yet."""
    made = await has.connections.create(
        body.name,
        check_text("url", body.url),
        secret="" if body.secret is None else check_text("secret", body.secret.get_secret_value()),
        auth=None if body.auth is None else check_text("auth", body.auth),
        private=body.private,
        ca=check_text("ca", body.ca or ""),
    )
    return _shown(made)


@router.get("", response_model=wire.ConnectionList, dependencies=[requires("connection:list", OWN)])
async def list_connections(has: Has) -> Any:
    """By name."""
    return {"connections": [_shown(one) for one in await has.connections.list()]}


@router.get("/{connection}", response_model=wire.Connection, dependencies=[requires("connection:read", OWN)])
async def show(connection: ConnectionName, has: Has) -> Any:
    """One connection, and to whom it is granted."""
    found = await has.connections.get(connection)
    return _shown(found.connection, [grant.principal.name for grant in found.grants])


@router.post(
    "/{connection}/check", response_model=wire.ConnectionCheck, dependencies=[requires("connection:check", OWN)]
)
async def check(connection: ConnectionName, has: Has) -> Any:
    """Tries it from the server: whether it can be reached, and whether the credential works."""
    return await has.connections.check(connection)


@router.delete("/{connection}", status_code=204, dependencies=[requires("connection:delete", OWN)])
async def delete(connection: ConnectionName, has: Has) -> None:
    """With its credential and grants; what offices have open through it is broken."""
    await has.connections.delete(connection)


@router.put("/{connection}/grants/{name}", status_code=204, dependencies=[requires("connection:grant", OWN)])
async def grant(connection: ConnectionName, name: AgentName, caller: Caller, has: Has) -> None:
    """Lets an agent's office use it, from now on."""
    await has.offices.need(name)
    await has.connections.grant(connection, name, by=caller)


@router.delete("/{connection}/grants/{name}", status_code=204, dependencies=[requires("connection:revoke", OWN)])
async def revoke(connection: ConnectionName, name: AgentName, has: Has) -> None:
    """Lets it no more; what is open is broken."""
    await has.connections.revoke(connection, name)


def _shown(one: NamedConnection, agents: list[str] | None = None) -> wire.Connection:
    target = one.target
    return wire.Connection(
        name=one.name,
        url=target.url,
        kind=target.kind,
        auth=f"{target.auth}:{target.header}" if target.header else target.auth,
        address=f"{one.host}:{one.port}",
        private=one.private,
        created_at=one.created_at,
        agents=agents or [],
    )
