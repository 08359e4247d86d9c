"""What a request cost, by the price list that comes with genai-prices: nothing is fetched."""

from __future__ import annotations

from genai_prices import calc_price
from pydantic_ai.messages import ModelResponse

from tenure.brains.models.conversation import BYTES_PER_TOKEN, Conversation
from tenure.brains.models.providers import COMPATIBLE
from tenure.work.thoughts import Usage


def usage_of(response: ModelResponse, conversation: Conversation) -> Usage:
    """As the provider says. Where it says nothing the tokens are estimated, so that a budget of tokens holds all the same, and
    nobody knows the cost."""
    used = response.usage
    if not used.input_tokens and not used.output_tokens:
        said = sum(len(str(getattr(part, "content", getattr(part, "args", "")))) for part in response.parts)
        return Usage(input_tokens=conversation.tokens, output_tokens=1 + said // BYTES_PER_TOKEN)
    return Usage(input_tokens=used.input_tokens, output_tokens=used.output_tokens, cost_usd=_cost_usd(response))


def _cost_usd(response: ModelResponse) -> float | None:
    try:
        if (
            response.provider_name == COMPATIBLE
        ):  # a model's name says nothing there: only a server that is known has prices
            url, name = response.provider_url, response.model_name or ""
            return float(calc_price(response.usage, name, provider_api_url=url).total_price)
        return float(response.cost().total_price)
    except Exception:  # noqa: BLE001 - a price list that does not know the model, or its tariff, must not fail the work
        return None
