"""Messages to the owner."""

from __future__ import annotations

from pydantic import Field

from tenure.brains.tools.tool import Arguments, Call, Tool, done
from tenure.work.thoughts import CallResult

SUBJECT_CHARS_MAX = 200
BODY_CHARS_MAX = 30_000


class Message(Arguments):
    subject: str = Field(min_length=1, max_length=SUBJECT_CHARS_MAX, description="What it is about, in one line.")
    body: str = Field(default="", max_length=BODY_CHARS_MAX, description="All that there is to say.")


async def leave(call: Call, wanted: Message) -> CallResult:
    run_id = call.order.run_id or None
    await call.hands.notify(call.agent, wanted.subject, wanted.body, key=call.key, run_id=run_id)
    return done("The message is in the owner's inbox. Nobody answers here: to have an answer, ask a question instead.")


TOOLS = (Tool("message_owner", "Leave a message in the owner's inbox, without waiting for an answer.", Message, leave),)
