"""From `provider:model` to the library's model, with a client of our own; where keys are found, and to whom they are sent."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import JsonValue

from tenure.errors import Unauthenticated, UsageError
from tenure.work.thoughts import BrainSettings

if TYPE_CHECKING:
    import httpx2
    from pydantic_ai.models import Model

KEY_ENV = {
    "openai": ("OPENAI_API_KEY",),
    "openai-responses": ("OPENAI_API_KEY",),
    "openai-chat": ("OPENAI_API_KEY",),
    "anthropic": ("ANTHROPIC_API_KEY",),
    "google": ("GOOGLE_API_KEY", "GEMINI_API_KEY"),
}
"""The providers, and where each one's key usually is. `openai` is the server at `base_url`, if there is one; `openai-responses`
and `openai-chat` are always OpenAI's own, by one protocol or the other."""
COMPATIBLE = "openai-compatible"
"""How a server at a `base_url` is called in messages: what OpenAI alone understands is not sent to it."""
NO_KEY = "none"
SETTINGS_OURS = frozenset({"timeout", "request_timeout", "first_event_timeout", "max_retries", "extra_headers"})
"""Not for an agent's settings: the ladder retries, the limits are ours, and headers would carry keys into the journal."""
_KEY_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,99}\Z")


@dataclass(frozen=True)
class Endpoint:
    """Where a model is asked."""

    provider: str
    model: str
    base_url: str | None
    key_env: str
    """Where the key was found; empty when none is needed."""
    key: str = field(repr=False)


def check_model_name(model: str) -> tuple[str, str]:
    """Provider and model of `provider:model`. Raises `UsageError`."""
    provider, separator, name = model.partition(":")
    if not separator or not name.strip() or provider not in KEY_ENV:
        raise UsageError(
            f"{model!r} is no model that can be asked.",
            hint=f"Write PROVIDER:MODEL; providers are {', '.join(KEY_ENV)}. For a server that speaks OpenAI's protocol: "
            "openai:MODEL and its base_url.",
        )
    return provider, name.strip()


def check_key_env(name: str) -> str:
    """A variable that may hold a provider's key: the settings of an agent must not be a way to read any other secret of the
    worker. Raises `UsageError`."""
    if not _KEY_NAME.match(name) or not ("KEY" in name or "TOKEN" in name) or name.startswith("TENURE"):
        raise UsageError(
            f"{name!r} is not the name of a variable for a provider's key.",
            hint="Use capitals, digits and _, with KEY or TOKEN in it, and not beginning with TENURE: such as OPENAI_API_KEY.",
        )
    return name


def check_model_settings(given: Mapping[str, JsonValue]) -> None:
    """Raises `UsageError` for settings that are not an agent's to choose."""
    if ours := sorted(SETTINGS_OURS & given.keys()):
        raise UsageError(
            f"A brain's model settings cannot have {', '.join(ours)}.",
            hint="Timeouts and retries are the engine's. A key is named by key_env, and never written down.",
        )


def check_base_url(url: str) -> str:
    """Raises `UsageError` for what is no address of a server, or has a password in it."""
    found = urlsplit(url)
    if found.scheme not in ("http", "https") or not found.hostname:
        raise UsageError(f"{url[:200]!r} is no address of a server.", hint="Such as http://127.0.0.1:11434/v1.")
    if found.username is not None or found.password is not None or found.query:
        raise UsageError(
            "The address of a model's server has no user, password or query in it: it is shown and kept.",
            hint="Put the key into a variable of the server's environment, and name that by key_env.",
        )
    return url


def endpoint_of(model: str, settings: BrainSettings, environ: Mapping[str, str] = os.environ) -> Endpoint:
    """Raises `UsageError` for a name that means nothing, `Unauthenticated` where the key is missing. `key_env` and `base_url` of
    the settings are for models of the first one's provider; others are asked as usual."""
    provider, name = check_model_name(model)
    first = settings.models[0].partition(":")[0] if settings.models else provider
    base_url = settings.base_url if provider == "openai" else None
    given = settings.key_env if provider == first else None
    if given is None and base_url is not None:
        return Endpoint(provider, name, base_url, "", NO_KEY)  # never OpenAI's own key to somebody else's server
    names = (check_key_env(given),) if given else KEY_ENV[provider]
    for variable in names:
        if key := environ.get(variable, "").strip():
            return Endpoint(provider, name, base_url, variable, key)
    raise Unauthenticated(
        f"There is no key for {model}: the worker has no variable {' or '.join(names)}.",
        hint=f"Start the server with {names[0]} set; or name another variable: `tenure brain set AGENT --key-env NAME`.",
    )


def build(endpoint: Endpoint, client: httpx2.AsyncClient) -> Model[Any]:
    """Blocks for a second the first time: libraries are imported, a price list is read."""
    match endpoint.provider:
        case "anthropic":
            from pydantic_ai.models.anthropic import AnthropicModel
            from pydantic_ai.providers.anthropic import AnthropicProvider

            anthropic = AnthropicProvider(api_key=endpoint.key, http_client=client)
            return AnthropicModel(endpoint.model, provider=anthropic)
        case "google":
            from pydantic_ai.models.google import GoogleModel
            from pydantic_ai.providers.google import GoogleProvider

            return GoogleModel(endpoint.model, provider=GoogleProvider(api_key=endpoint.key, http_client=client))
        case _:
            return _openai(endpoint, client)


def _openai(endpoint: Endpoint, client: httpx2.AsyncClient) -> Model[Any]:
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.profiles.openai import OpenAIModelProfile
    from pydantic_ai.providers.openai import OpenAIProvider
    from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider

    if endpoint.base_url is not None:
        # Without a finish reason nobody could tell an answer from the first half of one.
        profile = OpenAIModelProfile(openai_chat_streaming_requires_finish_reason=True)
        compatible = OpenAICompatibleProvider(
            COMPATIBLE, base_url=endpoint.base_url, api_key=endpoint.key, http_client=client, profile=profile
        )
        return OpenAIChatModel(endpoint.model, provider=compatible)
    provider = OpenAIProvider(api_key=endpoint.key, http_client=client)
    if endpoint.provider == "openai-chat":
        return OpenAIChatModel(endpoint.model, provider=provider)
    return OpenAIResponsesModel(endpoint.model, provider=provider)
