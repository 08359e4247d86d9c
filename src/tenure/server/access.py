"""How a route says what it does to what: `requires("agent:read", of_agent)` as its dependency.

Authentication happened before (`gates.IdentityGate`); here the one decision point is asked. `tests/test_access.py`
fails when a route has no such dependency.

All dependencies are coroutines, though most wait for nothing: FastAPI calls plain functions in a thread each.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Depends, Path
from starlette.requests import HTTPConnection

from tenure import wire
from tenure.errors import Unauthenticated
from tenure.identity.authorize import Principal, PrincipalKind, Resource, authorize
from tenure.identity.grants import granted
from tenure.names import check_bucket, check_name
from tenure.server.checks import check_id, check_question
from tenure.server.scopes import principal_of
from tenure.server.services import Services

ACTION_ATTRIBUTE = "tenure_action"
"""Marks the dependencies made by `requires`, for the test that walks all routes."""


async def current_principal(connection: HTTPConnection) -> Principal:
    """Who asks. Raises `Unauthenticated` on the public addresses when nobody showed a token."""
    principal = principal_of(connection.scope)
    if principal is None:
        raise Unauthenticated("This needs a token: `Authorization: Bearer TOKEN`.")
    return principal


async def current_services(connection: HTTPConnection) -> Services:
    """What the app was made with."""
    services = connection.app.state.services
    assert isinstance(services, Services)
    return services


Caller = Annotated[Principal, Depends(current_principal)]
Has = Annotated[Services, Depends(current_services)]


async def agent_name(name: Annotated[str, Path(description="Name of the agent")]) -> str:
    """The path's agent name, checked. Raises `InvalidName`."""
    return check_name(name)


AgentName = Annotated[str, Depends(agent_name)]


def requires(action: str, resource: Callable[..., Any]) -> Any:
    """A dependency that lets the request pass when its principal may do `action` on what `resource` (itself a
    dependency that returns a `Resource`) finds. Raises `Unauthenticated`, `Forbidden`, and what `resource` raises."""

    async def authorized(caller: Caller, found: Resource = Depends(resource)) -> Principal:
        authorize(caller, action, found)
        return caller

    setattr(authorized, ACTION_ATTRIBUTE, action)
    return Depends(authorized)


def owned_by(principal: Principal) -> str:
    """The agent to whose things this principal's lists are confined; empty for those who see everything."""
    return principal.name if principal.kind is PrincipalKind.OFFICE else ""


# --- resources: what a request is about -----------------------------------------------------------------------------
def of_agent(kind: str = "agent") -> Callable[..., Awaitable[Resource]]:
    """The agent in the path, or its `kind` ("database", "file", ...)."""

    async def resource(name: AgentName) -> Resource:
        return Resource(kind, owner=name, name=name if kind == "agent" else "")

    return resource


def of_own(kind: str) -> Callable[..., Awaitable[Resource]]:
    """All things of this kind that the caller may see: a list confines itself with `owned_by`."""

    async def resource(caller: Caller) -> Resource:
        return Resource(kind, owner=owned_by(caller))

    return resource


async def of_new_agent(body: wire.AgentRequest) -> Resource:
    return Resource("agent", owner=check_name(body.name), name=body.name)


async def of_object(name: AgentName, bucket: str, object_name: str) -> Resource:
    return Resource("object", owner=name, name=f"{bucket}/{object_name}")


async def database_name(name: Annotated[str, Path(description="Name of the shared database")]) -> str:
    """The path's database name, checked. Raises `InvalidName`."""
    return check_name(name, "database")


DatabaseName = Annotated[str, Depends(database_name)]


async def of_database(name: DatabaseName, caller: Caller, has: Has) -> Resource:
    """The shared database in the path, with what was granted of it to the caller."""
    resource = Resource("database", name=name)
    if caller.kind is not PrincipalKind.OFFICE:
        return resource
    return granted(resource, await has.databases.find_grant(caller, name))


async def bucket_name(name: Annotated[str, Path(description="Name of the shared bucket")]) -> str:
    """The path's bucket name, checked. Raises `InvalidName`."""
    return check_bucket(name)


BucketName = Annotated[str, Depends(bucket_name)]


async def of_bucket(name: BucketName, caller: Caller, has: Has) -> Resource:
    """The shared bucket in the path, with what was granted of it to the caller."""
    resource = Resource("bucket", name=name)
    if caller.kind is not PrincipalKind.OFFICE:
        return resource
    return granted(resource, await has.buckets.find_grant(caller, name))


async def of_buckets(caller: Caller) -> Resource:
    """All shared buckets that the caller may see: the list confines itself."""
    return Resource("buckets", owner=owned_by(caller))


async def of_databases(caller: Caller) -> Resource:
    """All shared databases that the caller may see: the list confines itself."""
    return Resource("databases", owner=owned_by(caller))


async def of_new_run(body: wire.RunRequest) -> Resource:
    return Resource("run", owner=check_name(body.agent))


async def of_new_subgoal(body: wire.SubgoalRequest) -> Resource:
    return Resource("run", owner=check_name(body.agent))


async def of_run(run_id: str, has: Has) -> Resource:
    """Raises `NotFound`."""
    run = await has.runs.get(check_id(run_id, "run"))
    return Resource("run", owner=run.agent, name=run_id)


async def of_question(question_id: str, has: Has) -> Resource:
    """Its run's. Raises `NotFound`."""
    check_question(question_id)
    run = await has.runs.get(check_id(question_id.partition(".")[0], "run"))
    return Resource("question", owner=run.agent, name=question_id)


async def of_new_message(body: wire.MessageRequest, caller: Caller) -> Resource:
    agent = body.agent or owned_by(caller)
    return Resource("message", owner=check_name(agent) if agent else "")


async def of_message(message_id: str, has: Has) -> Resource:
    """Raises `NotFound`."""
    message = await has.inbox.get(check_id(message_id, "message"))
    return Resource("message", owner=message.agent or "", name=message_id)
