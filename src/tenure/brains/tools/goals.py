"""Sub-goals: runs of their own, for this agent or another, that go on beside the one that began them."""

from __future__ import annotations

from pydantic import Field

from tenure.brains.tools.tool import Arguments, Call, Refused, Tool, done
from tenure.work.hands import RunStatus
from tenure.work.thoughts import CallResult

GOAL_CHARS_MAX = 10_000
RUN_PATTERN = "^run_[0-9a-z]{1,40}$"


class Start(Arguments):
    goal: str = Field(
        min_length=1,
        max_length=GOAL_CHARS_MAX,
        description="What is to be reached, and how it can be checked. Whoever works on it knows nothing but this.",
    )
    agent: str = Field(
        default="", max_length=40, description="Whose office and brain it is for. Without it, this agent."
    )


class Named(Arguments):
    run: str = Field(pattern=RUN_PATTERN, description="As goal_start returned it: run_….")


async def start(call: Call, wanted: Start) -> CallResult:
    agent, parent = wanted.agent or call.agent, call.order.run_id or None
    begun = await call.hands.start_run(agent, wanted.goal, key=call.key, parent=parent)
    return done(f"{_told(begun)}\nIt goes on by itself. goal_state shows how it stands.")


async def state(call: Call, wanted: Named) -> CallResult:
    return done(_told(await call.hands.run_status(wanted.run)))


async def cancel(call: Call, wanted: Named) -> CallResult:
    if call.order.run_id and (await call.hands.run_status(wanted.run)).parent != call.order.run_id:
        raise Refused(f"Nothing was done: {wanted.run} was not begun by this run.")
    return done(_told(await call.hands.cancel_run(wanted.run)))


def _told(run: RunStatus) -> str:
    return f"{run.id} of {run.agent}: {run.state}" + (f"\n{run.told}" if run.told else "")


TOOLS = (
    Tool(
        "goal_start", "Give a part of the work to a run of its own, in this agent's office or another's.", Start, start
    ),
    Tool("goal_state", "How a run that was begun with goal_start stands, and what it said.", Named, state, reads=True),
    Tool("goal_cancel", "End a run that this one began with goal_start.", Named, cancel),
)
