"""`ModelBrain`: a plan of one step, in which a model is asked for the real one; then one model request per thought."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tenure.brains.base import Task
from tenure.errors import UsageError
from tenure.work.goals import first_plan
from tenure.work.plan import Plan
from tenure.work.thoughts import BrainSettings, Thought

if TYPE_CHECKING:
    import httpx2

NAME = "pydantic_ai"
REQUEST_S = 900.0
"""One request with its whole answer: models that reason may take minutes before, and write for minutes after."""
STALL_S = 180.0
"""Without a byte of the provider's, the request is given up: it hangs."""
CONNECT_S = 20.0


class ModelBrain:
    """A `Brain` and a `Thinker`. `transport` is for tests that speak a provider's dialect without a network."""

    name = NAME

    def __init__(
        self,
        *,
        request_s: float = REQUEST_S,
        stall_s: float = STALL_S,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._request_s, self._stall_s, self._transport = request_s, stall_s, transport

    def plan(self, goal: str, inputs: Mapping[str, Any]) -> Plan:
        """One step, which proposes the steps that take its place. Asks nobody."""
        return first_plan(BrainSettings(brain=NAME), goal, ()).model_copy(update={"inputs": dict(inputs)})

    async def think(self, task: Task) -> Thought:
        """One request to `task.model`, and the decision in its answer. Raises what `Thinker.think` raises."""
        from tenure.brains.models import reading, requests  # the library behind them takes a second to import
        from tenure.brains.models.conversation import conversation_of
        from tenure.brains.models.prices import usage_of

        model = task.model or next(iter(task.settings.models), "")
        if not model:
            raise UsageError(
                f"No model is set for the agent {task.agent!r}.",
                hint=f"`tenure brain set {task.agent} --model PROVIDER:MODEL` sets one.",
            )
        conversation = conversation_of(task)
        limits = requests.Limits(request_s=self._request_s, stall_s=self._stall_s, connect_s=CONNECT_S)
        response = await requests.ask(model, task.settings, conversation, limits, self._transport)
        read = reading.read(response, task)
        return Thought(
            decision=read.decision,
            text=read.text,
            model=model,
            usage=usage_of(response, conversation),
            memory=read.memory,
        )
