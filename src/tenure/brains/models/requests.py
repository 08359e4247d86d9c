"""One request to a model, streamed so that silence is noticed. What goes wrong is an error of ours, without a key in it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, cast

import httpx2
from pydantic_ai.direct import model_request_stream
from pydantic_ai.messages import InstructionPart, ModelResponse
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition

from tenure.brains.models.conversation import Conversation
from tenure.brains.models.providers import build, check_model_settings, endpoint_of
from tenure.brains.models.troubles import trouble_of
from tenure.errors import ModelError, TenureError
from tenure.work.thoughts import BrainSettings


@dataclass(frozen=True)
class Limits:
    request_s: float
    stall_s: float
    connect_s: float


async def ask(
    model: str,
    settings: BrainSettings,
    conversation: Conversation,
    limits: Limits,
    transport: httpx2.AsyncBaseTransport | None = None,
) -> ModelResponse:
    """The whole answer. Raises what `Thinker.think` raises."""
    endpoint = endpoint_of(model, settings)
    check_model_settings(settings.model_settings)
    chosen = cast("ModelSettings", {"cache": True, **settings.model_settings, "max_retries": 0})
    timeout = httpx2.Timeout(limits.stall_s, connect=limits.connect_s)
    async with httpx2.AsyncClient(timeout=timeout, transport=transport) as client:
        try:
            asked = await asyncio.to_thread(build, endpoint, client)
            async with asyncio.timeout(limits.request_s):
                return await _stream(asked, conversation, chosen)
        except TenureError:
            raise
        except TimeoutError:
            raise ModelError(f"{model} did not come to the end of its answer within {limits.request_s:g} s.") from None
        except Exception as error:  # noqa: BLE001 - libraries raise of many kinds on what a server may send
            # `from None`: what the libraries raise holds the request, and with it the key.
            raise trouble_of(error, model, endpoint, limits.stall_s) from None


async def _stream(model: Model[Any], conversation: Conversation, settings: ModelSettings) -> ModelResponse:
    parameters = ModelRequestParameters(
        function_tools=[
            ToolDefinition(
                name=spec.name, description=spec.description, parameters_json_schema=dict(spec.parameters), strict=False
            )
            for spec in conversation.tools
        ],
        instruction_parts=[InstructionPart(content=conversation.instructions)],
    )
    async with model_request_stream(
        model, conversation.messages, model_settings=settings, model_request_parameters=parameters, instrument=False
    ) as stream:
        async for _ in stream:
            pass
        response = stream.get()
    details = response.provider_details or {}
    if response.state != "complete" or (response.finish_reason is None and not details.get("finish_reason")):
        raise ModelError("The answer broke off in the middle: the stream ended without saying why it ended.")
    return response
