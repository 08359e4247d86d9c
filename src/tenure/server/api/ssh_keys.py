"""Public keys that the SSH gateway lets in, and where the gateway is."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from tenure import wire
from tenure.identity.authorize import Principal, PrincipalKind
from tenure.server.access import Has, of_own, requires
from tenure.server.checks import check_text

router = APIRouter(prefix="/v1", tags=["ssh"])

KEYS_OF = str(Principal(PrincipalKind.OWNER))
"""The one principal that has keys; the worker acts for it."""


@router.get("/ssh-gateway", response_model=wire.SshGateway, dependencies=[requires("server:read", of_own("server"))])
async def ssh_gateway(has: Has) -> Any:
    """Where the SSH gateway listens, and its host key."""
    settings = has.settings
    return wire.SshGateway(
        enabled=bool(settings.ssh_port) and not has.gateway.ssh_problem,
        problem=has.gateway.ssh_problem,
        host=settings.ssh_host,
        port=settings.ssh_port,
        host_key=has.gateway.ssh_host_key,
    )


@router.post(
    "/ssh-keys",
    status_code=201,
    response_model=wire.SshKey,
    dependencies=[requires("ssh-key:create", of_own("ssh-key"))],
)
async def add_ssh_key(body: wire.SshKeyRequest, has: Has) -> Any:
    """Lets a public key into every office, by the SSH gateway."""
    comment = None if body.comment is None else check_text("comment", body.comment)
    return await has.gateway.ssh_keys.add(KEYS_OF, check_text("public_key", body.public_key), comment)


@router.get("/ssh-keys", response_model=wire.SshKeyList, dependencies=[requires("ssh-key:list", of_own("ssh-key"))])
async def list_ssh_keys(has: Has) -> Any:
    """The oldest first."""
    return {"keys": await has.gateway.ssh_keys.list(KEYS_OF)}


@router.delete("/ssh-keys/{key:path}", status_code=204, dependencies=[requires("ssh-key:delete", of_own("ssh-key"))])
async def remove_ssh_key(key: str, has: Has) -> None:
    """By id or fingerprint. Connections that came in with it end."""
    removed = await has.gateway.ssh_keys.remove(KEYS_OF, check_text("key", key))
    has.gateway.hang_up(removed.id)
