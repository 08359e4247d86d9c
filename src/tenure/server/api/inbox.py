"""The owner's inbox: what agents have to say."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from tenure import wire
from tenure.server.access import Caller, Has, of_message, of_new_message, of_own, owned_by, requires
from tenure.server.checks import check_text

router = APIRouter(prefix="/v1/inbox", tags=["inbox"])

LIST_DEFAULT, LIST_MAX = 200, 1000


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
    agent = body.agent or owned_by(caller) or None
    if agent is not None:
        await has.offices.need(agent)
    return await has.inbox.create(
        agent=agent,
        subject=check_text("subject", body.subject),
        body=check_text("body", body.body),
        key=check_text("key", body.key) if body.key is not None else None,
        run_id=check_text("run_id", body.run_id) if body.run_id is not None else None,
    )


@router.post("/{message_id}/read", response_model=wire.Message, dependencies=[requires("message:update", of_message)])
async def mark_read(message_id: str, has: Has) -> Any:
    return await has.inbox.mark_read(message_id)
