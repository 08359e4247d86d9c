"""What a provider's refusal means for the ladder: wait, another model, a shorter conversation, or a person."""

from __future__ import annotations

import re
from typing import Any, cast

from pydantic_ai.exceptions import (
    ModelAPIError,
    ModelAuthenticationError,
    ModelContextWindowExceededError,
    ModelHTTPError,
    ModelNotFoundError,
    ModelQuotaExceededError,
    ModelRequestRejectedError,
    ModelTimeoutError,
    UserError,
)

from tenure.brains.models.providers import Endpoint
from tenure.errors import ContextTooLong, ModelError, TenureError, Unauthenticated, UsageError

REASON_CHARS_MAX = 600
"""Of what the provider says."""
RETRY_AFTER_S_MAX = 86400.0
"""However long a provider asks to be left alone."""
_CONTEXT = re.compile(
    r"context[ _-]?(length|size|window)|maximum context|prompt is too long|too many tokens|input is too long"
    r"|exceed_context_size|input token count|reduce the length",
    re.IGNORECASE,
)
_PASSING = frozenset({408, 409, 425})
"""Refusals that pass by themselves, though they are of the 4xx."""
_MASKED_KEY = re.compile(r"\b(sk|key|AIza)[-_]?[A-Za-z0-9_-]*[*.…][A-Za-z0-9*_.…-]*")
"""How providers repeat a part of a key that they refuse."""


def trouble_of(error: Exception, model: str, endpoint: Endpoint, stall_s: float) -> TenureError:
    reason = _reason(error, endpoint)
    match error:
        case ModelContextWindowExceededError():
            return ContextTooLong(f"The conversation is too long for {model}: {reason}")
        case ModelAuthenticationError():
            return _refused_key(error, model, endpoint)
        case ModelQuotaExceededError():
            return ModelError(
                f"The account behind {model} has used up what it may spend: {reason}",
                hint="Raise the account's limit with the provider; or give the agent a model of another one to fall back to.",
                retry_after_s=_wait_s(error),
            )
        case ModelHTTPError() if error.status_code == 413 or (
            isinstance(error, ModelRequestRejectedError) and _CONTEXT.search(reason)
        ):
            return ContextTooLong(f"The conversation is too long for {model}: {reason}")
        case ModelNotFoundError():
            return UsageError(
                f"{model} was not found{_at(endpoint)}: {reason}",
                hint="Check the model's name, and the base_url of its server.",
            )
        case ModelHTTPError() if 400 <= error.status_code < 500 and error.status_code not in (*_PASSING, 429):
            return UsageError(f"{model} refused the request ({error.status_code}): {reason}")
        case ModelHTTPError():
            return ModelError(f"{model} answered with {error.status_code}: {reason}", retry_after_s=_wait_s(error))
        case ModelTimeoutError():
            return ModelError(f"{model} was silent for {stall_s:g} s{_at(endpoint)}, or could not be reached in time.")
        case ModelAPIError():
            return ModelError(f"{model} could not be asked{_at(endpoint)}: {reason}", retry_after_s=_wait_s(error))
        case UserError():
            return UsageError(f"{model} cannot be asked this way: {reason}")
        case _ if _is_transport(error, "Timeout"):
            return ModelError(f"{model} was silent for {stall_s:g} s{_at(endpoint)}, or could not be reached in time.")
        case _ if _is_transport(error, ""):
            return ModelError(f"The connection to {model} broke{_at(endpoint)}: {reason}")
        case _:
            return ModelError(f"What {model} answered makes no sense ({type(error).__name__}): {reason}")


def _refused_key(error: ModelAuthenticationError, model: str, endpoint: Endpoint) -> Unauthenticated:
    status = f" ({error.status_code})" if isinstance(error, ModelHTTPError) else ""
    which = f"the key of {endpoint.key_env}" if endpoint.key_env else "a request without a key"
    return Unauthenticated(
        f"{model} refused {which}{status}{_at(endpoint)}.",
        hint="Put a key that is allowed to use this model into that variable of the server's environment, and start it again.",
    )


def _wait_s(error: ModelAPIError) -> float | None:
    return None if error.retry_after is None else min(error.retry_after, RETRY_AFTER_S_MAX)


def _is_transport(error: BaseException, name: str) -> bool:
    """Of the HTTP library that the provider's library uses: both of them are about."""
    return any(
        kind.__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2") and name in kind.__name__
        for kind in type(error).__mro__
    )


def _at(endpoint: Endpoint) -> str:
    return f" at {endpoint.base_url}" if endpoint.base_url else ""


def _reason(error: Exception, endpoint: Endpoint) -> str:
    """The provider's own words where it has any, without the key or what looks like a piece of one."""
    body: Any = getattr(error, "body", None)
    text = _words(body) or getattr(error, "message", None) or str(error) or type(error).__name__
    if endpoint.key_env:
        text = text.replace(endpoint.key, "[key]")
    return _MASKED_KEY.sub("[key]", " ".join(text.split()))[:REASON_CHARS_MAX]


def _words(body: Any) -> str | None:
    if isinstance(body, str):
        return body
    if not isinstance(body, dict):
        return None
    fields = cast("dict[str, Any]", body)
    inner = fields.get("error", fields)
    if isinstance(inner, str):
        return inner
    if isinstance(inner, dict):
        said = [cast("dict[str, Any]", inner).get(name) for name in ("message", "code", "type")]
        return ", ".join(str(part) for part in said if part) or None
    return None
