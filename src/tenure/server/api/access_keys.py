"""Access keys of S3: long-lived ones, those that an office is lent, and addresses signed with one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.responses import JSONResponse, PlainTextResponse, Response

from tenure.data.objects import check_object_name
from tenure.data.s3 import clients
from tenure.errors import InvalidArgument
from tenure.identity.authorize import PrincipalKind
from tenure.names import check_bucket, check_name
from tenure.server.access import AgentName, Caller, Has, of_agent, of_own, requires
from tenure.server.checks import check_text
from tenure.wire import keys as wire

NOT_KEPT = {"cache-control": "no-store"}

router = APIRouter(prefix="/v1", tags=["objects"])


@router.post(
    "/access-keys",
    status_code=201,
    response_model=wire.NewAccessKey,
    dependencies=[requires("access-key:create", of_own("access-key"))],
)
async def create_access_key(body: wire.AccessKeyRequest, caller: Caller, has: Has) -> Any:
    """Makes a key that acts as an agent, or as the owner. Its secret is told now and never again."""
    agent = None if body.agent is None else check_name(body.agent)
    key, secret = await has.access_keys.create(
        agent,
        by=caller,
        expires_s=body.expires_s,
        buckets=body.buckets,
        comment=check_text("comment", body.comment),
    )
    return {**_shown(key), "secret": secret, "endpoint_url": has.access_keys.outside_url}


@router.get(
    "/access-keys",
    response_model=wire.AccessKeyList,
    dependencies=[requires("access-key:list", of_own("access-key"))],
)
async def list_access_keys(has: Has, agent: Annotated[str | None, Query()] = None) -> Any:
    """The oldest first."""
    found = await has.access_keys.list(None if agent is None else check_name(agent))
    return {"keys": [_shown(key) for key in found]}


@router.delete(
    "/access-keys/{key}", status_code=204, dependencies=[requires("access-key:delete", of_own("access-key"))]
)
async def revoke_access_key(key: str, has: Has) -> None:
    """At once: what is being sent with it is not stored."""
    await has.access_keys.revoke(check_text("key", key))


@router.delete(
    "/agents/{name}/lent-keys", status_code=204, dependencies=[requires("access-key:delete", of_agent("access-key"))]
)
async def revoke_lent_keys(name: AgentName, has: Has) -> None:
    """Ends the key that the agent's office was lent, and every address that was made for the agent."""
    await has.access_keys.revoke_lent(name)


@router.get("/s3-credentials", dependencies=[requires("object:list", of_own("object"))])
async def s3_credentials(
    caller: Caller, has: Has, format: Annotated[Literal["aws", "env"], Query()] = "aws"
) -> Response:
    """A key for an hour, for the office that asks, as AWS gives them to containers: SDKs fetch and renew it by themselves. For
    programs that do not, `env` has it as lines for a shell."""
    if caller.kind is not PrincipalKind.OFFICE:
        raise InvalidArgument("Only an office is lent a key.", hint="For yourself make one: `tenure key create`.")
    lent = await has.access_keys.lend(caller.name)
    if format == "env":
        return PlainTextResponse(clients.shell_lines(lent), headers=NOT_KEPT)
    return JSONResponse(
        {
            "AccessKeyId": lent.access_key_id,
            "SecretAccessKey": lent.secret_access_key,
            "Token": lent.token,
            "Expiration": f"{lent.expiration:%Y-%m-%dT%H:%M:%SZ}",
            "Version": 1,
            "SessionToken": lent.token,  # as a program that is a credential_process has it
        },
        headers=NOT_KEPT,
    )


@router.post(
    "/agents/{name}/addresses",
    status_code=201,
    response_model=wire.Address,
    dependencies=[requires("object:presign", of_agent("object"))],
)
async def presign_object(name: AgentName, body: wire.PresignRequest, has: Has) -> Any:
    """An address at which anybody may get or put one object, until its time. Whether there is the object is not looked at."""
    bucket = check_bucket(body.bucket)
    check_object_name(body.name)
    return await has.access_keys.presign(name, bucket, body.name, method=body.method, expires_s=body.expires_s)


def _shown(key: Any) -> dict[str, Any]:
    return {
        "id": key.id,
        "principal": str(key.principal),
        "buckets": dict(key.buckets),
        "comment": key.comment,
        "created_by": str(key.created_by),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "last_used_at": key.last_used_at,
    }
