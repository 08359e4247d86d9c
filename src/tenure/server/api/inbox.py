"""The owner's inbox: what agents have to say."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from tenure import wire
from tenure.errors import Conflict, TooLarge
from tenure.identity.authorize import Principal, PrincipalKind, Resource, authorize
from tenure.server.access import Caller, Has, of_message, of_new_message, of_own, owned_by, requires
from tenure.server.checks import check_id, check_text
from tenure.server.services import Services

router = APIRouter(prefix="/v1/inbox", tags=["inbox"])

LIST_DEFAULT, LIST_MAX = 200, 1000
OFFICE_BODY_CHARS_MAX = 32 * 1024
OFFICE_UNREAD_MAX = 500
OFFICE_KEYS = "office."


@router.get("", response_model=wire.MessageList, dependencies=[requires("message:read", of_own("message"))])
async def list_messages(
    has: Has, unread: bool = False, limit: Annotated[int, Query(ge=1, le=LIST_MAX)] = LIST_DEFAULT
) -> Any:
    """Newest first."""
    return {"messages": await has.inbox.list(unread=unread, limit=limit)}


@router.post(
    "", status_code=201, response_model=wire.Message, dependencies=[requires("message:create", of_new_message)]
)
async def leave_message(body: wire.MessageRequest, has: Has, caller: Caller) -> Any:
    """Leaves a message; with a `key` that the agent used before, returns the first one."""
    own = owned_by(caller)
    agent = body.agent or own or None
    if agent is not None:
        await has.offices.need(agent)
    key = check_text("key", body.key) if body.key is not None else None
    if own:
        await check_from_office(body, own, has)
        # Keys of its own: else it could use up the one under which a run's question to the owner will be left.
        key = f"{OFFICE_KEYS}{key}" if key is not None else None
    return await has.inbox.create(
        agent=agent,
        subject=check_text("subject", body.subject),
        body=check_text("body", body.body),
        key=key,
        run_id=check_text("run_id", body.run_id) if body.run_id is not None else None,
    )


async def check_from_office(body: wire.MessageRequest, own: str, has: Services) -> None:
    """An office may write of its own runs only, and not fill the control database. Raises `Forbidden`, `NotFound`,
    `TooLarge`, `Conflict`."""
    if body.run_id is not None:
        run = await has.runs.get(check_id(body.run_id, "run"))
        authorize(Principal(PrincipalKind.OFFICE, own), "run:read", Resource("run", owner=run.agent, name=body.run_id))
    if len(body.body) > OFFICE_BODY_CHARS_MAX:
        raise TooLarge(
            f"A message from an office has {OFFICE_BODY_CHARS_MAX} characters at most.",
            hint="Put the rest into an object and name it in the message.",
        )
    if await has.inbox.count_unread(own) >= OFFICE_UNREAD_MAX:
        raise Conflict(
            f"{OFFICE_UNREAD_MAX} messages of {own} wait to be read already.",
            hint="They have to be read first: `tenure inbox`.",
        )


@router.post("/{message_id}/read", response_model=wire.Message, dependencies=[requires("message:update", of_message)])
async def mark_read(message_id: str, has: Has) -> Any:
    return await has.inbox.mark_read(message_id)
